// An Audit proves that nothing is missing. Every notification of this exchange
// is numbered within its stream, one per recipient, channel and lane:
// "u00042-trade-P1-17" follows "u00042-trade-P1-16", and within a lane the
// library keeps the order. So a jump is a hole and a number again is a repeat,
// whatever overtook it in another lane. An exchange with a log on disk begins new
// streams with each run, "u00042.dk2f9-trade-P1-1".
//
// Where a stream begins for us is known from the server: what it had published
// when it was asked, after our session began, is an upper bound of what came
// before us.

export class Audit {
  constructor(positions = []) {
    this.streams = new Map(); // by ID without the number: {last, floor}
    for (const [key, last] of positions) this.streams.set(key, { last, floor: last });
    this.runs = new Set(); // whose streams are known; others begin with 1
    this.missing = 0;
    this.twice = 0;
    this.checked = 0;
  }

  // resume takes that the session goes on where it was: streams of a run that is not
  // known yet are ours from their first number on.
  resume() { this.runs = runsOf(this.streams.keys()); }

  #floor(key, otherwise) {
    return this.runs.size && !this.runs.has(runOf(key)) ? 0 : otherwise;
  }

  // begin starts the streams of these channels; until settle they take any
  // number.
  begin(channels) {
    for (const key of [...this.streams.keys()]) {
      if (channels.has(channelOf(key))) this.streams.delete(key);
    }
  }

  // settle takes the server's numbers for streams of these channels in which
  // nothing has arrived yet.
  settle(numbers, channels) {
    for (const [key, published] of Object.entries(numbers)) {
      if (channels.has(channelOf(key)) && !this.streams.has(key)) this.streams.set(key, { last: null, floor: this.#floor(key, published) });
    }
  }

  // take checks one ID.
  take(id) {
    const at = id.lastIndexOf("-");
    const key = id.slice(0, at), number = Number(id.slice(at + 1));
    let s = this.streams.get(key);
    if (!s) this.streams.set(key, s = { last: null, floor: this.#floor(key, number - 1) });
    this.checked++;
    if (s.last === null) {
      this.missing += Math.max(0, number - s.floor - 1);
    } else if (number <= s.last) {
      this.twice++;
      return;
    } else {
      this.missing += number - s.last - 1;
    }
    s.last = number;
  }

  // positions tells up to which number each stream has come.
  positions() {
    return new Map([...this.streams].map(([key, s]) => [key, s.last ?? s.floor]));
  }

  // since tells how many were published behind these positions, up to the
  // server's numbers, in streams of these channels.
  since(positions, numbers, channels) {
    const runs = runsOf(positions.keys());
    let n = 0;
    for (const [key, published] of Object.entries(numbers)) {
      if (!channels.has(channelOf(key))) continue;
      const from = positions.get(key) ?? (runs.size && !runs.has(runOf(key)) ? 0 : published);
      n += Math.max(0, published - from);
    }
    return n;
  }

  // arrived tells how many have come behind these positions in streams that the server
  // no longer numbers: those of a run before.
  arrived(positions, numbers) {
    let n = 0;
    for (const [key, last] of this.positions()) {
      if (!(key in numbers) && positions.has(key)) n += last - positions.get(key);
    }
    return n;
  }

  get whole() { return this.missing === 0 && this.twice === 0; }
}

// "u00042-trade-P1" → "trade"
const channelOf = (key) => key.split("-").at(-2);

// "u00042.dk2f9-trade-P1" → "u00042.dk2f9"
const runOf = (key) => key.split("-").at(0);

const runsOf = (keys) => new Set([...keys].map(runOf));
