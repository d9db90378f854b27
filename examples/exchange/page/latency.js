// How long a message took from the exchange's timestamp to this page: two clocks, so
// what can be said depends on how well the page knows the other one.
//
// The difference of the clocks (theirs minus ours) lies within bounds, and all that is
// known narrows them: the exchange reads its clock after we have asked and before we
// have the answer, and no message arrives before it was made. Clocks drift, so bounds
// widen with time; when they contradict each other, a clock was set, and it begins anew.

const drift = 20e-6; // of a clock; what is usual
const grain = 0.1; // milliseconds: browsers round their clock to this

// ours is our clock, in Unix milliseconds: one that nobody sets while the page is open.
const ours = (time) => performance.timeOrigin + time;

export class Clock {
  low = -Infinity;
  high = Infinity;
  #at = 0;

  #narrow(low, high, time) {
    const wider = (time - this.#at) * drift;
    this.#at = time;
    this.low = Math.max(this.low - wider, low);
    this.high = Math.min(this.high + wider, high);
    if (this.low > this.high) [this.low, this.high] = [low, high];
  }

  // compare takes that the other clock was at theirs, in Unix milliseconds, at some
  // time between sent and received, which are of performance.now.
  compare(sent, received, theirs) {
    this.#narrow(theirs - ours(received) - grain, theirs - ours(sent) + grain, received);
  }

  // known says whether the clocks have been compared.
  get known() { return this.high < Infinity; }

  // difference is what is taken out. As long as nothing says otherwise, the clocks agree.
  get difference() {
    return this.low <= 0 && this.high >= 0 ? 0 : (this.low + this.high) / 2;
  }

  // error is by how much it may be wrong.
  get error() { return Math.max(this.high - this.difference, this.difference - this.low); }

  // took returns the milliseconds from a timestamp of theirs, in nanoseconds, to a time
  // of performance.now.
  took(timestamp, time) {
    // A difference of two BigInts first: Unix nanoseconds do not fit a number.
    const origin = BigInt(Math.round(performance.timeOrigin * 1000)) * 1000n;
    const apart = time - Number(timestamp - origin) / 1e6; // if the clocks agreed
    this.#narrow(-apart - grain, Infinity, time);
    return Math.max(0, apart + this.difference);
  }
}
