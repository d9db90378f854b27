// A client whose server is the test: each socket that it makes is in sockets, and
// hears what the test says. Time is the test's too.
import { vi } from "vitest";
import { connect, type Options, type State, type Stopped } from "../src/notification-client.ts";

export class ScriptedSocket extends EventTarget {
  static made: ScriptedSocket[] = [];
  protocol = "";
  sent: any[] = [];
  closedWith: number | undefined;
  readonly url: URL;

  constructor(url: string, readonly protocols: string[], readonly options?: { headers: Record<string, string> }) {
    super();
    this.url = new URL(url);
    ScriptedSocket.made.push(this);
  }

  get query(): Record<string, string> {
    return Object.fromEntries(this.url.searchParams);
  }

  send(text: string): void {
    this.sent.push(JSON.parse(text));
  }

  close(code?: number): void {
    this.closedWith = code;
  }

  // ---- The server's side ----

  open(protocol = "notification.batch.v1"): this {
    this.protocol = protocol;
    this.dispatchEvent(new Event("open"));
    return this;
  }

  say(frame: object | string): this {
    const data = typeof frame === "string" ? frame : JSON.stringify(frame);
    this.dispatchEvent(Object.assign(new Event("message"), { data }));
    return this;
  }

  welcome(more: object = {}): this {
    return this.open().say({
      action: "welcome", session_id: "s", cursor: "c0", resumed: false,
      channels: ["trade", "account", "position", "risk", "system"], heartbeat_ms: 20_000, refresh: false, ...more,
    });
  }

  live(): this {
    return this.say({ action: "live" });
  }

  batch(cursor: string, ...ids: number[]): this {
    return this.say({ cursor, notifications: ids.map(notification) });
  }

  end(code: number): this {
    this.dispatchEvent(Object.assign(new Event("close"), { code }));
    return this;
  }

  refuse(status: number): this {
    this.dispatchEvent(Object.assign(new Event("error"), { message: `Unexpected server response: ${status}` }));
    return this.end(1006);
  }
}

export function notification(id: number) {
  return { message_id: `n-${id}`, message_type: "trade_executed", user_id: "alice", priority: 1, timestamp: id, source: "test", payload: { type: "trade_executed" } };
}

export interface Play {
  client: ReturnType<typeof connect>;
  /** What the callbacks were called with, in order: "state live", "got n-1", "cursor c1", … */
  log: string[];
  /** What log has got since the last call. */
  news(): string[];
  /** The last socket that was made. */
  socket(): ScriptedSocket;
  sockets: ScriptedSocket[];
  stopped: Stopped | undefined;
}

/** Begins a client whose waits have no jitter: half of the most. Callbacks that are not
 *  given are there all the same, but credentials, and a snapshot that is undefined. */
export async function play(options: Partial<Options> = {}): Promise<Play> {
  ScriptedSocket.made = [];
  const log: string[] = [];
  let read = 0;
  const p = {
    log,
    news: () => log.slice(read, (read = log.length)),
    sockets: ScriptedSocket.made,
    socket: () => ScriptedSocket.made.at(-1)!,
    stopped: undefined as Stopped | undefined,
  } as Play;
  vi.spyOn(Math, "random").mockReturnValue(0.5);
  const { onNotifications, snapshot, onCursor, credentials, onState, ...rest } = options;
  p.client = connect({
    url: "ws://exchange/notifications?user=alice",
    WebSocket: ScriptedSocket,
    onNotifications: async (batch, cursor) => {
      await onNotifications?.(batch, cursor);
      for (const n of batch) log.push(`got ${n.message_id}`);
    },
    snapshot: "snapshot" in options && !snapshot ? undefined : async (reason) => {
      log.push(`snapshot ${reason}`);
      await snapshot?.(reason);
    },
    onCursor: async (cursor) => {
      log.push(`cursor ${cursor}`);
      await onCursor?.(cursor);
    },
    onState: (state: State) => {
      log.push(`state ${state.state}` + ("reason" in state ? ` ${state.reason} ${state.code}` : "") + ("retryMs" in state ? ` ${state.retryMs}` : ""));
      onState?.(state);
    },
    credentials: credentials && ((why) => {
      log.push(`credentials ${why}`);
      return credentials(why);
    }),
    ...rest,
  });
  void p.client.stopped.then((s) => (p.stopped = s));
  await settle();
  return p;
}

/** Lets everything happen that waits for nothing but its turn. */
export const settle = () => pass(0);

export const pass = async (ms: number): Promise<void> => void (await vi.advanceTimersByTimeAsync(ms));

/** A promise that the test resolves. */
export function gate<T = void>() {
  let open!: (value: T) => void, fail!: (error: unknown) => void;
  const promise = new Promise<T>((resolve, reject) => ((open = resolve), (fail = reject)));
  return { promise, open, fail };
}
