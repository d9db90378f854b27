// One connection: what comes is checked at once, and handed over one after the
// other.

import { ofCode, ofStatus, ofUs, type Ending } from "./closing.ts";
import { parse } from "./json.ts";
import type { WebSocketLike } from "./notification-client.ts";
import type { AnyNotification, Channel } from "./notifications.ts";

export const protocol = "notification.batch.v1";

// How long a server may take for its welcome, in milliseconds.
const patience = 20_000;

// How much may wait behind a callback that has not returned.
const maxHeld = 10_000;

// How late a timer may be for reasons of no account; milliseconds.
const moment = 1_000;

export interface Welcome {
  action: "welcome";
  cursor: string;
  resumed: boolean;
  channels: Channel[];
  heartbeat_ms: number;
  refresh: boolean;
}

export interface Batch {
  action?: undefined;
  cursor: string;
  notifications: AnyNotification[];
  dropped?: number;
}

/** What is of the stream, and so has an order. */
export type Frame = Welcome | Batch | { action: "reset" } | { action: "live" } | { action: "heartbeat"; cursor: string };

/** What answers a command. */
export interface Answer {
  action: "ok" | "error";
  id: unknown;
  channels: Channel[];
  message: string;
}

export interface Owner {
  /** At once, before anything else. */
  welcomed(welcome: Welcome): void;
  /** At once, out of the order of the stream. */
  answered(answer: Answer): void;
  expiring(ms: number): void;
  /** In order, each when the one before is done. */
  take(frame: Frame): Promise<void>;
}

export class Session {
  /** Resolves when nothing more will come. */
  readonly ended: Promise<Ending>;
  /** Resolves when all that came was handed over, or one of them failed. */
  readonly drained: Promise<void>;
  welcome: Welcome | undefined;
  /** When that was. */
  began = 0;
  over = false;
  /** Why it was not all handed over, if so. */
  failure: Ending | undefined;

  #resolveEnded!: (ending: Ending) => void;
  #resolveDrained!: () => void;
  #queue: (Frame | { action: "end"; ending: Ending })[] = [];
  #held = 0;
  #busy = false;
  #opened = false;
  #heard = performance.now();
  #limit = patience;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly owner: Owner,
    private readonly socket: WebSocketLike,
    private readonly watchdogFactor: number,
  ) {
    this.ended = new Promise((resolve) => (this.#resolveEnded = resolve));
    this.drained = new Promise((resolve) => (this.#resolveDrained = resolve));
    socket.addEventListener("open", () => this.#open());
    socket.addEventListener("message", (event: { data: unknown }) => this.#receive(event.data));
    socket.addEventListener("close", (event: { code: number }) => this.end(ofCode(event.code)));
    socket.addEventListener("error", (event: { message?: string }) => this.#error(event.message));
    this.#watch(this.#limit);
  }

  send(command: object): void {
    this.socket.send(JSON.stringify(command));
  }

  /** Nothing that comes afterwards counts; what has come is still handed over. */
  end(ending: Ending): void {
    if (this.over) return;
    this.over = true;
    clearTimeout(this.#timer);
    this.socket.close(1000);
    // It may wait for an answer that will not come. The package ws can be told not to.
    if (ending.reason === "watchdog") (this.socket as { terminate?: () => void }).terminate?.();
    this.#resolveEnded(ending);
    if (!this.#busy) this.#resolveDrained();
  }

  /** The same when all that has come until now was handed over. */
  endInTurn(ending: Ending): void {
    this.#queue.push({ action: "end", ending });
    if (!this.#busy) void this.#handOver();
  }

  /** Returns at the end of the connection at the latest. */
  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      void this.ended.then(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }

  /** Nothing is handed over any more; the callback that runs is not interrupted. */
  abandon(): void {
    this.#queue = [];
  }

  #open(): void {
    this.#opened = true;
    // A browser does not mind a server, or a proxy, that leaves it out.
    if (this.socket.protocol !== protocol) this.#nonsense();
  }

  // A connection that never was: not every WebSocket lets a close follow. ws tells
  // the status in the text and nowhere else.
  #error(message = ""): void {
    if (this.#opened) return; // a close follows
    const status = /^Unexpected server response: (\d+)$/.exec(message)?.[1];
    this.end(status ? ofStatus(Number(status)) : ofCode(1006));
  }

  #nonsense(): void {
    this.end(ofUs("protocol", "retry"));
  }

  #receive(data: unknown): void {
    if (this.over) return;
    this.#heard = performance.now();
    let frame: Frame | Answer | { action: "expiring"; in_ms: number } | null;
    try {
      frame = parse(data as string) as typeof frame; // what is no text is no JSON
    } catch {
      return this.#nonsense();
    }
    if (frame === null || typeof frame !== "object") return this.#nonsense();
    switch (frame.action) {
      case "welcome":
        if (this.welcome) return this.#nonsense();
        this.welcome = frame;
        this.began = this.#heard;
        this.#limit = this.watchdogFactor * frame.heartbeat_ms || patience;
        clearTimeout(this.#timer);
        this.#watch(this.#limit);
        this.owner.welcomed(frame);
        break;
      case "ok":
      case "error":
        return this.owner.answered(frame);
      case "expiring":
        return this.owner.expiring(frame.in_ms);
      case undefined:
        if (!Array.isArray(frame.notifications)) return this.#nonsense();
        break;
      case "reset":
      case "live":
      case "heartbeat":
        break;
      default: // pong, and what a later server may say
        return;
    }
    if (!this.welcome) return this.#nonsense();
    this.#queue.push(frame);
    this.#held += weight(frame);
    if (!this.#busy) void this.#handOver();
    if (this.#held > maxHeld) this.end(ofUs("overflow", "retry"));
  }

  async #handOver(): Promise<void> {
    this.#busy = true;
    for (let frame; (frame = this.#queue.shift()); ) {
      if (frame.action === "end") {
        this.end(frame.ending);
        continue;
      }
      this.#held -= weight(frame);
      try {
        await this.owner.take(frame);
      } catch (error) {
        this.failure = ofUs("handler", "stop", error);
        this.end(this.failure);
        this.abandon();
      }
    }
    this.#busy = false;
    if (this.over) this.#resolveDrained();
  }

  // A page does not see pings, and a connection may be dead and look open.
  // A timer that is late says that it was not the server who slept: what came
  // meanwhile may not have been read yet, so it gets a moment, once. (Once, because
  // in a hidden page every timer is late.)
  #watch(ms: number, again = false): void {
    const due = performance.now() + ms;
    this.#timer = setTimeout(() => {
      const now = performance.now();
      const left = this.#heard + this.#limit - now;
      if (left > 0) this.#watch(left);
      else if (now - due > moment && !again) this.#watch(moment, true);
      else this.end(ofUs("watchdog", "retry"));
    }, ms);
  }
}

function weight(frame: Frame): number {
  return frame.action === undefined ? frame.notifications.length : 0;
}
