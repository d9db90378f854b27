// The connection, what is true of it right now, and what an interruption has cost.

import { connect } from "./notification-client.js";
import { Audit } from "./audit.js";
import { request } from "./identity.js";
import { say } from "./plot.js";
import { t, number } from "./text.js";

export const channelNames = ["trade", "account", "position", "risk", "system"];

const overEvents = new URLSearchParams(location.search).has("events"); // in place of a WebSocket
const Socket = overEvents ? (await import("./events.js")).EventSocket : WebSocket;
const backoff = { max: 10_000 };
const cutFor = 5;           // seconds
const quietAfter = 2;       // heartbeats: one was due and did not come
const giveUpAfter = 30_000; // milliseconds for which nothing missing comes

const $ = (id) => document.getElementById(id);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// hearing is a kind of socket that tells of each message before the client sees it.
const hearing = (Base, hear) => class extends Base {
  constructor(...args) {
    super(...args);
    this.addEventListener("message", hear);
  }
};

export class Connection {
  subscribed = new Set(channelNames);
  audit = new Audit();
  heard = 0; // when, by performance.now
  #on;       // what the page gives: see app.js
  #client = null;
  #phase = "running";
  #beat = 20_000;      // of this connection
  #live = false;       // what comes is new
  #away = null;        // an interruption that is not settled: see #left
  #state = { name: "off", text: () => t.off, ago: () => "" };
  #turn = 0; // changes with each client that ends
  #verdict = () => "";

  // on: check() returns whether the user is still the one that it was, notifications(list,
  // at, replayed) takes them, which came at a time of performance.now, mark(text) and
  // warn(text) show something in the list and above all else.
  constructor(on) {
    this.#on = on;
    $("again").onclick = () => this.again();
    setInterval(() => this.look(), 1000);
    addEventListener("online", () => this.#state.name === "lost" && this.again());
    document.addEventListener("visibilitychange", () => {
      this.look();
      if (!document.hidden && this.#state.name === "lost" && this.#client) this.again();
    });
    this.look();
  }

  get live() { return this.#state.name === "live"; }
  get cursor() { return this.#client?.cursor ?? ""; }

  // begin connects. saved is the position of an earlier page of this user, if it kept one.
  begin(saved) {
    this.#disconnect();
    this.audit = new Audit(saved?.positions);
    this.#away = saved ? { ...this.#left(), since: saved.at } : null;
    this.#begin(saved?.cursor ?? "");
  }

  end() {
    this.#disconnect();
    this.#away = null;
    this.audit = new Audit();
    this.subscribed = new Set(channelNames);
    this.heard = 0;
    this.#conclude(() => "", "");
    this.#become("off", () => t.off);
  }

  // again does not wait until it is time for the next attempt.
  async again() {
    this.#become("connecting", () => t.connecting);
    const stopped = this.#disconnect(), turn = this.#turn;
    const cursor = (await stopped)?.cursor ?? "";
    if (turn === this.#turn) this.#begin(cursor);
  }

  // cut is what a tunnel does.
  async cut() {
    this.#away ??= this.#left();
    this.#on.mark(() => t.wasCut);
    this.#conclude(() => "", "");
    const until = performance.now() + cutFor * 1000;
    this.#become("cut", () => t.isCut, () => t.backIn(Math.max(0, Math.ceil((until - performance.now()) / 1000))));
    const stopped = this.#disconnect(), turn = this.#turn;
    const cursor = (await stopped)?.cursor ?? "";
    await pause(until - performance.now());
    if (turn === this.#turn) this.#begin(cursor);
  }

  // phase is what the exchange says of itself.
  set phase(phase) {
    if (phase === this.#phase) return;
    this.#phase = phase;
    this.translate();
  }

  // position is what a page that is loaded again goes on with.
  position() {
    return { cursor: this.cursor, at: Date.now(), positions: [...this.audit.positions()] };
  }

  // ---- What is true right now ----

  // Only changes are written to the status, which is read aloud: what counts seconds
  // stands beside it.
  #become(name, text, ago = () => "") {
    this.#state = { name, text, ago };
    this.translate();
  }

  translate() {
    const { name, text } = this.#state;
    document.body.dataset.connection = name;
    const closing = { draining: t.draining, finished: t.finished }[this.#phase];
    say($("connection"), closing && name !== "off" ? `${text()} · ${closing}` : text());
    say($("verdict"), this.#verdict());
    $("again").textContent = name === "stopped" ? t.here : t.tryNow;
    const hidden = !["lost", "stopped"].includes(name);
    if (hidden && document.activeElement === $("again")) $("state").focus();
    $("again").hidden = hidden;
    for (const id of ["cut", "margin-call", "halt"]) $(id).setAttribute("aria-disabled", name !== "live");
    this.look();
  }

  // look says how long ago something was heard. A page that has slept may find that it
  // was long ago before the client does.
  look() {
    const silence = performance.now() - this.heard;
    const { name, ago } = this.#state;
    if (name === "live" && silence > quietAfter * this.#beat) return this.#become("silent", () => t.silent);
    if (name === "silent" && silence <= quietAfter * this.#beat) return this.#become("live", () => t.live);
    const seconds = Math.floor(silence / 1000);
    const last = this.heard && ["live", "silent", "lost"].includes(name) && seconds >= 2 ? t.lastHeard(number(seconds)) : "";
    say($("ago"), [last, ago()].filter(Boolean).join(" · "));
  }

  #conclude(text, whole) {
    this.#verdict = text;
    say($("verdict"), text());
    $("verdict").dataset.whole = whole;
  }

  // ---- One client after the other ----

  #begin(cursor) {
    let arrived = []; // when each batch came that has yet to be handed over
    const hear = ({ timeStamp, data }) => {
      if (c !== this.#client) return;
      this.heard = timeStamp;
      const welcome = /^\{"action":"welcome".*?"heartbeat_ms":(\d+)/.exec(data);
      if (welcome) {
        this.#beat = Number(welcome[1]);
        arrived = [];
      } else if (/"notifications":\[\{/.test(data.slice(0, 1000))) {
        arrived.push(timeStamp);
      }
      if (this.#state.name === "silent") this.look();
    };
    const c = this.#client = connect({
      url: overEvents ? "events" : "ws",
      WebSocket: hearing(Socket, hear),
      channels: [...this.subscribed],
      cursor,
      backoff,
      credentials: () => this.#admitted(),
      snapshot: (reason) => c === this.#client && this.#startOver(reason),
      onNotifications: (list) => {
        const at = arrived.shift() ?? this.heard;
        if (c === this.#client) this.#on.notifications(list, at, !this.#live);
      },
      onState: (state) => { if (c === this.#client) this.#changed(state, c); },
    });
  }

  #disconnect() {
    this.#turn++;
    this.#live = false;
    const c = this.#client;
    this.#client = null;
    return c?.close();
  }

  async #admitted() {
    if (await this.#on.check() === false) throw new Error("somebody else");
  }

  #changed({ state, reason, code, retryMs, error }, c) {
    this.#live = state === "live";
    switch (state) {
      case "connecting": return this.#become("connecting", () => t.connecting);
      case "replaying":
        this.#become("connecting", () => t.replaying);
        this.#on.check(); // the cookie may have changed since it was asked
        if (this.#away) this.#back(c);
        return;
      case "live": return this.#become("live", () => t.live);
      case "waiting": {
        this.#away ??= this.#left(reason === "watchdog" ? performance.now() - this.heard : 0);
        const until = performance.now() + retryMs;
        return this.#become("lost", () => reason === "watchdog" ? t.silent : t.lost,
          () => t.retryIn(Math.max(0, Math.ceil((until - performance.now()) / 1000))));
      }
    }
    this.#away ??= this.#left();
    this.#become("stopped", () => code === 4409 ? t.replaced : t.refused);
    if (error) console.error(error);
    this.#on.check(); // it may be the sign-in, of which another tab or another place has made an end
  }

  // #startOver forgets where we were: what happened meanwhile is in the snapshot that
  // a real page loads here. This one learns where the streams of the session begin.
  async #startOver(reason) {
    const gap = this.#away;
    this.#away = null;
    this.audit = new Audit();
    if (gap || reason !== "start") {
      const text = () => reason === "cursor_gone" ? t.gone : t.gap;
      this.#on.warn(text);
      this.#on.mark(text);
      this.#conclude(text, "false");
    }
    const numbers = await streams();
    if (numbers) this.audit.settle(numbers, this.subscribed);
  }

  // ---- What an interruption has cost ----

  // #left is where we were when the connection went, so many milliseconds ago.
  #left(ago = 0) {
    return { since: Date.now() - ago, missing: this.audit.missing, twice: this.audit.twice, positions: this.audit.positions() };
  }

  // #back watches until all that was published until we were back has arrived. If the
  // connection goes again, the next one's #back does, from where the first one went.
  async #back(c) {
    const gap = this.#away, current = () => c === this.#client && gap === this.#away && ["replaying", "live"].includes(c.state.state);
    const seconds = ((Date.now() - gap.since) / 1000).toFixed(1);
    this.audit.resume();
    this.#on.mark(() => t.isBack);
    this.#conclude(() => t.checking, "");
    let numbers, behind = Infinity, until = performance.now() + giveUpAfter;
    for (; behind > 0 && performance.now() < until; await pause(100)) {
      if (!current()) return;
      if (!numbers) {
        numbers = await streams();
        if (!numbers || !current()) continue;
        this.audit.settle(numbers, this.subscribed);
      }
      const left = this.audit.since(this.audit.positions(), numbers, this.subscribed);
      if (left !== behind) until = performance.now() + giveUpAfter;
      behind = left;
    }
    if (!current()) return;
    this.#away = null;
    if (!numbers) return this.#conclude(() => "", "");
    const published = this.audit.since(gap.positions, numbers, this.subscribed) + this.audit.arrived(gap.positions, numbers);
    const missing = this.audit.missing - gap.missing + behind, twice = this.audit.twice - gap.twice;
    if (missing + twice) this.#conclude(() => t.hole(seconds, number(missing), number(twice)), "false");
    else this.#conclude(() => t.whole(seconds, published, number(published)), "true");
  }

  // ---- Channels ----

  // subscribe adds or takes away a channel, and returns when the server has said so.
  async subscribe(name, wanted) {
    const before = this.subscribed;
    let now;
    try {
      now = new Set(await (wanted ? this.#client.subscribe(name) : this.#client.unsubscribe(name)));
    } catch { // there is none, or it has come to its end: told to the next one
      now = new Set(before);
      now[wanted ? "add" : "delete"](name);
    }
    // Streams of a channel that is new begin anew.
    const added = now.difference(this.subscribed);
    this.audit.begin(now.symmetricDifference(this.subscribed));
    this.subscribed = now;
    if (!added.size) return;
    const numbers = await streams();
    if (numbers) this.audit.settle(numbers, added);
  }
}

async function streams() {
  try {
    const answer = await request("api/streams");
    return answer.ok ? await answer.json() : null;
  } catch { return null; }
}
