// The client: one connection after the other, and what outlives each.

import { ofUs, type Ending } from "./closing.ts";
import type {
  Client, Credentials, CredentialsReason, Options, SnapshotReason, State, Stopped, WebSocketConstructor, WebSocketLike,
} from "./notification-client.ts";
import type { Channel } from "./notifications.ts";
import { Session, protocol, type Answer, type Frame, type Owner, type Welcome } from "./session.ts";

const allChannels: readonly Channel[] = ["trade", "account", "position", "risk", "system"];

// How long credentials live that are renewed at once when they end soon; others
// would be asked for all the time. Milliseconds.
const minute = 60_000;

const closed: Ending = { reason: "closed", code: 1000, next: "stop" };

interface Command {
  action: "subscribe" | "unsubscribe";
  id: number;
  channels: Channel[];
}

interface Pending {
  command: Command;
  inURL: boolean; // of the current connection: the welcome answers it
  resolve: (channels: Channel[]) => void;
  reject: (error: Error) => void;
}

export class Connector implements Client, Owner {
  state: State = { state: "connecting" };
  cursor: string;
  readonly stopped: Promise<Stopped>;

  readonly #options: Options;
  readonly #url: URL;
  readonly #make: (url: string, token: string | undefined) => WebSocketLike;
  #channels: readonly Channel[] | undefined; // as the server last said, or as asked for; undefined: all
  #pending = new Map<number, Pending>();
  #lastID = 0;

  #session: Session | undefined; // the current one, or the last
  #asked = false; // it began with a cursor
  #begun = false; // the application has a state that notifications build on
  #refused = false; // 4401, and no welcome since
  #failures = 0; // in a row
  #renewed: [Credentials] | undefined; // for the next connection
  #lastRenewal = -minute; // when it began

  #closing = false;
  #wake: () => void = () => {}; // ends the wait that the loop is in

  constructor(options: Options) {
    this.#options = { ...options };
    if (typeof options.onNotifications !== "function") throw new TypeError("onNotifications is not a function");
    this.#url = new URL(options.url, globalThis.location?.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#url.hash = "";
    if (!/^wss?:$/.test(this.#url.protocol)) throw new TypeError(`url: ${this.#url.protocol} is neither ws nor http`);
    this.#make = maker(options.WebSocket);
    this.#channels = options.channels && [...options.channels];
    this.cursor = options.cursor ?? "";
    this.stopped = this.#run();
  }

  subscribe(...channels: Channel[]): Promise<Channel[]> {
    return this.#command("subscribe", channels);
  }

  unsubscribe(...channels: Channel[]): Promise<Channel[]> {
    return this.#command("unsubscribe", channels);
  }

  close(): Promise<Stopped> {
    this.#closing = true;
    this.#session?.end(closed);
    this.#session?.abandon();
    this.#wake();
    return this.stopped;
  }

  // ---- One connection after the other ----

  async #run(): Promise<Stopped> {
    await undefined; // connect returns before anything is called
    for (;;) {
      if (!this.#closing) this.#tell({ state: "connecting" });
      const ending = await this.#connection();
      if (ending.next === "stop") return this.#stop(ending);
    }
  }

  // #connection makes one, and returns when it has ended, all that it brought was
  // dealt with, and it is time for the next.
  async #connection(): Promise<Ending> {
    let credentials: Credentials;
    try {
      credentials = await this.#credentials();
    } catch (error) {
      return ofUs("credentials", "stop", error);
    }
    if (this.#closing) return closed;
    let session: Session;
    try {
      session = this.#session = this.#open(credentials);
    } catch (error) {
      return ofUs("network", "stop", error); // ws from a page of https, for one
    }
    let ending = await session.ended;
    if (ending.next === "renew") {
      if (this.#refused) ending = { ...ending, next: "stop" };
      this.#refused = true;
    }
    if (ending.next !== "stop") await this.#backOff(ending, session);
    await session.drained;
    if (session.failure) return session.failure;
    if (ending.next === "reset") {
      this.#begun = true;
      try {
        await this.#keep("");
      } catch (error) {
        return ofUs("handler", "stop", error);
      }
    }
    return this.#closing && ending.next !== "stop" ? closed : ending;
  }

  #open(credentials: Credentials): Session {
    const url = new URL(this.#url);
    const channels = this.#toSay();
    if (channels) url.searchParams.set("channels", channels.join());
    if (this.cursor) url.searchParams.set("cursor", this.cursor);
    if (credentials?.ticket) url.searchParams.set("ticket", credentials.ticket);
    this.#asked = this.cursor !== "";
    return new Session(this, this.#make(url.href, credentials?.token), this.#options.watchdogFactor ?? 2.5);
  }

  // #backOff waits, while what the session has brought is still being dealt with.
  #backOff({ reason, code }: Ending, session: Session): Promise<void> {
    const { base = 500, max = 30_000, stable = 60_000 } = this.#options.backoff ?? {};
    if (session.welcome && performance.now() - session.began >= stable) this.#failures = 0;
    // A renewal is no failure, and renewals pause by themselves.
    const failures = reason === "credentials" ? 0 : this.#failures++;
    const retryMs = Math.round(Math.random() * Math.min(max, base * 2 ** failures));
    this.#tell({ state: "waiting", reason, code, retryMs });
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, retryMs);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
      if (this.#closing) this.#wake();
      void session.drained.then(() => session.failure && this.#wake());
    });
  }

  #stop({ reason, code, ...thrown }: Ending): Stopped {
    this.#closing = true;
    const stopped: Stopped = { state: "stopped", reason, code, cursor: this.cursor };
    if ("error" in thrown) stopped.error = thrown.error;
    for (const { reject } of this.#pending.values()) reject(new Error(`stopped: ${reason}`));
    this.#pending.clear();
    this.#tell(stopped);
    return stopped;
  }

  #tell(state: State): void {
    this.state = state;
    try {
      this.#options.onState?.(state);
    } catch (error) {
      queueMicrotask(() => { throw error; }); // as with a listener of any event
    }
  }

  // ---- What a connection brings ----

  welcomed({ channels }: Welcome): void {
    this.#refused = false;
    this.#tell({ state: "replaying" });
    for (const [id, { command, inURL, resolve }] of this.#pending) {
      if (!inURL) {
        this.#session!.send(command);
        continue;
      }
      this.#pending.delete(id);
      this.#channels = channels;
      resolve(channels);
    }
  }

  async take(frame: Frame): Promise<void> {
    const session = this.#session!;
    switch (frame.action) {
      case "welcome":
        if (frame.resumed) this.#begun = true;
        else await this.#load(this.#asked ? "cursor_gone" : this.#begun ? "gap" : "start", frame.cursor);
        return;
      case "reset": // the welcome has said so already
        if (session.welcome!.resumed) await this.#load("cursor_gone", session.welcome!.cursor);
        return;
      case "live":
        if (!session.over && this.state.state !== "live") this.#tell({ state: "live" });
        return;
      case "heartbeat":
        return this.#keep(frame.cursor);
    }
    const { notifications, cursor, dropped } = frame;
    if (dropped) {
      await this.#options.snapshot?.("gap");
      if (this.#closing) return; // the batch has left the queue that close empties
    }
    if (notifications.length > 0) await this.#options.onNotifications(notifications, cursor);
    await this.#keep(cursor);
  }

  // A snapshot is good for the connection that it was loaded in: the next one
  // begins somewhere else.
  async #load(reason: SnapshotReason, cursor: string): Promise<void> {
    if (this.#options.snapshot) {
      await this.#options.snapshot(reason);
      if (this.#session!.over) return this.#session!.abandon();
    }
    this.#begun = true;
    await this.#keep(cursor);
  }

  async #keep(cursor = this.cursor): Promise<void> {
    if (cursor === this.cursor) return;
    this.cursor = cursor;
    await this.#options.onCursor?.(cursor);
  }

  // ---- Credentials ----

  async #ask(why: CredentialsReason): Promise<Credentials> {
    return this.#options.credentials?.(why);
  }

  #credentials(): Promise<Credentials> {
    const renewed = this.#renewed;
    this.#renewed = undefined;
    return new Promise((resolve, reject) => {
      this.#wake = () => resolve(undefined);
      if (renewed || this.#closing) resolve(renewed?.[0]);
      else this.#ask(this.#refused ? "refused" : "start").then(resolve, reject);
    });
  }

  expiring(ms: number): void {
    if (this.#options.credentials) void this.#renew(this.#session!, ms); // else nobody has others
  }

  async #renew(session: Session, ms: number): Promise<void> {
    // What holds for less than a minute ends soon from its first moment on.
    const soon = performance.now() - this.#lastRenewal < minute;
    if (soon) await session.sleep(Math.max(1_000, ms / 2));
    if (session.over) return; // the next connection asks for itself
    this.#lastRenewal = performance.now();
    try {
      const credentials = await this.#ask("expiring");
      if (session.over) return;
      if (credentials?.token && session.welcome!.refresh) {
        // If it is refused, the connection lives until the old ones expire, and
        // 4401 asks once more.
        session.send({ action: "authenticate", token: credentials.token });
      } else {
        this.#renewed = [credentials];
        session.endInTurn(ofUs("credentials", "retry"));
      }
    } catch (error) {
      session.end(ofUs("credentials", "stop", error));
    }
  }

  // ---- Commands ----

  #command(action: Command["action"], channels: Channel[]): Promise<Channel[]> {
    return new Promise((resolve, reject) => {
      if (this.#closing) return reject(new Error("stopped"));
      const command = { action, id: ++this.#lastID, channels };
      this.#pending.set(command.id, { command, inURL: false, resolve, reject });
      const session = this.#session;
      if (session?.welcome && !session.over) session.send(command);
    });
  }

  answered({ action, id, channels, message }: Answer): void {
    const pending = this.#pending.get(id as number);
    if (!pending) return;
    this.#pending.delete(id as number);
    if (action === "error") return pending.reject(new Error(message));
    this.#channels = channels;
    pending.resolve(channels);
  }

  // #toSay is what a connection begins with: what the server has said last, and
  // what was asked for since.
  #toSay(): readonly Channel[] | undefined {
    let said = this.#channels;
    for (const pending of this.#pending.values()) {
      pending.inURL = true;
      const { action, channels } = pending.command;
      if (action === "subscribe") said = [...new Set([...(said ?? []), ...channels])];
      else said = (said ?? allChannels).filter((c) => !channels.includes(c));
    }
    return said;
  }
}

// maker knows where each kind of WebSocket takes a header from. Those of browsers
// take none.
function maker(given: WebSocketConstructor | undefined): (url: string, token: string | undefined) => WebSocketLike {
  const headers = (token: string) => ({ headers: { Authorization: `Bearer ${token}` } });
  if (given) return (url, token) => new given(url, [protocol], token ? headers(token) : undefined);
  const native = globalThis.WebSocket;
  if (!native) throw new TypeError("WebSocket: there is no global one, so the option is needed");
  const browser = !(globalThis as { process?: { versions?: { node?: string } } }).process?.versions?.node;
  return (url, token) =>
    new native(url, token && !browser ? ({ protocols: [protocol], ...headers(token) } as never) : [protocol]);
}
