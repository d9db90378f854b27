// One connection after the other: states, waits, codes, cursors.
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { connect, type Stopped } from "../src/notification-client.ts";
import { gate, notification, pass, play, settle, ScriptedSocket, type Play } from "./scripted.ts";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => {
  expect(vi.getTimerCount(), "timers that were left").toBe(0);
  vi.useRealTimers();
  vi.restoreAllMocks();
});

// Every test ends its client, so that the check above has a meaning.
async function stop(p: Play): Promise<Stopped> {
  void p.client.close();
  await settle();
  expect(p.stopped).toBeDefined();
  return p.stopped!;
}

async function live(options: Parameters<typeof play>[0] = {}): Promise<Play> {
  const p = await play(options);
  p.socket().welcome().live();
  await settle();
  p.news();
  return p;
}

describe("a connection", () => {
  test("begins with the snapshot, and what comes is handed over in order", async () => {
    const p = await play();
    expect(p.news()).toEqual(["state connecting"]);
    p.socket().welcome().batch("c1", 1, 2).live().batch("c2", 3);
    await settle();
    expect(p.news()).toEqual([
      "state replaying", "snapshot start", "cursor c0", "got n-1", "got n-2", "cursor c1", "state live", "got n-3", "cursor c2",
    ]);
    expect(p.client.cursor).toBe("c2");
    expect(p.client.state).toEqual({ state: "live" });
    await stop(p);
  });

  test("asks for the subprotocol, and keeps the query of the URL", async () => {
    const p = await play({ url: "https://exchange/a/b?user=bob#c", channels: ["trade", "risk"], cursor: "c9" });
    expect(p.socket().url.href.split("?")[0]).toBe("wss://exchange/a/b");
    expect(p.socket().query).toEqual({ user: "bob", channels: "trade,risk", cursor: "c9" });
    expect(p.socket().protocols).toEqual(["notification.batch.v1"]);
    expect(p.socket().url.hash).toBe("");
    await stop(p);
  });

  test("says no channels for all, and empty ones for none", async () => {
    const all = await play();
    expect(all.socket().query).toEqual({ user: "alice" });
    await stop(all);
    const none = await play({ channels: [], cursor: null });
    expect(none.socket().query).toEqual({ user: "alice", channels: "" });
    await stop(none);
  });

  test("that resumes has no snapshot, and keeps its cursor until a batch was dealt with", async () => {
    const p = await play({ cursor: "c7" });
    p.socket().welcome({ resumed: true, cursor: "c7" });
    await settle();
    expect(p.client.cursor).toBe("c7");
    p.socket().batch("c8", 8).live();
    await settle();
    expect(p.news()).toEqual(["state connecting", "state replaying", "got n-8", "cursor c8", "state live"]);
    await stop(p);
  });

  test("whose cursor is gone has one snapshot, before anything that follows", async () => {
    const p = await play({ cursor: "old" });
    p.socket().welcome({ cursor: "c1" }).say({ action: "reset", reason: "cursor_gone" }).batch("c2", 2).live();
    await settle();
    expect(p.news().slice(2)).toEqual(["snapshot cursor_gone", "cursor c1", "got n-2", "cursor c2", "state live"]);
    await stop(p);
  });

  test("that drops has a snapshot before the batch that says so", async () => {
    const p = await live();
    p.socket().say({ cursor: "c3", notifications: [], dropped: 3 });
    await settle();
    expect(p.news()).toEqual(["snapshot gap", "cursor c3"]);
    await stop(p);
  });

  test("ignores actions and keys that it does not know, before the welcome too", async () => {
    const p = await play();
    p.socket().open().say({ action: "news", of: [1] }).welcome({ mood: "good" }).live().live().say({ action: "pong" }).say({ action: "error", code: "x" });
    await settle();
    expect(p.log.filter((l) => l.startsWith("state"))).toEqual(["state connecting", "state replaying", "state live"]);
    await stop(p);
  });

  test("hands over a type that it does not know, as it is", async () => {
    const got: unknown[] = [];
    const p = await live({ onNotifications: (batch) => got.push(...batch) });
    const unknown = '{"message_id":"n-1","message_type":"order_amended","timestamp":1700000000000000123,"payload":{"type":"order_amended","at":[1700000000000000124],"x":null},"more":1.5}';
    p.socket().say(`{"cursor":"c1","notifications":[${unknown}]}`);
    await settle();
    expect(got).toEqual([{
      message_id: "n-1", message_type: "order_amended", timestamp: 1700000000000000123n,
      payload: { type: "order_amended", at: [1700000000000000124n], x: null }, more: 1.5,
    }]);
    await stop(p);
  });

  test("keeps the cursors of heartbeats, each once", async () => {
    const p = await live();
    p.socket().say({ action: "heartbeat", cursor: "c1" }).say({ action: "heartbeat", cursor: "c1" }).say({ action: "heartbeat", cursor: "c2" });
    await settle();
    expect(p.news()).toEqual(["cursor c1", "cursor c2"]);
    await stop(p);
  });

  test("moves the cursor with an empty batch, without a call of the handler", async () => {
    const onNotifications = vi.fn();
    const p = await live({ onNotifications });
    p.socket().batch("c1");
    await settle();
    expect(p.news()).toEqual(["cursor c1"]);
    expect(onNotifications).not.toHaveBeenCalled();
    await stop(p);
  });

  test.each(["no JSON", "5", "null", '{"cursor":"c1"}', '{"cursor":"c1","notifications":[1'])("with a frame %s is made anew", async (frame) => {
    const p = await live();
    p.socket().say(frame);
    await settle();
    expect(p.news()).toEqual(["state waiting protocol 0 250"]);
    await pass(250);
    expect(p.socket().query["cursor"]).toBe("c0");
    await stop(p);
  });

  test.each([
    ["a batch before the welcome", (s: ScriptedSocket) => s.open().batch("c1", 1)],
    ["two welcomes", (s: ScriptedSocket) => s.welcome().welcome()],
    ["no subprotocol", (s: ScriptedSocket) => s.open("")],
    ["bytes in place of text", (s: ScriptedSocket) => s.open().dispatchEvent(Object.assign(new Event("message"), { data: new ArrayBuffer(4) }))],
  ])("with %s is made anew", async (_, say) => {
    const p = await play();
    say(p.socket());
    await settle();
    expect(p.log).toContain("state waiting protocol 0 250");
    await stop(p);
  });
});

describe("a lost connection", () => {
  test("is made anew behind the cursor, and is told", async () => {
    const p = await live();
    p.socket().batch("c1", 1).end(1006);
    await settle();
    expect(p.news()).toEqual(["got n-1", "state waiting network 1006 250", "cursor c1"].sort((a, b) => p.log.indexOf(a) - p.log.indexOf(b)));
    expect(p.client.state).toEqual({ state: "waiting", reason: "network", code: 1006, retryMs: 250 });
    await pass(250);
    expect(p.news()).toEqual(["state connecting"]);
    expect(p.socket().query["cursor"]).toBe("c1");
    await stop(p);
  });

  test("has waits that double up to the maximum, and begin anew after a minute of life only", async () => {
    const p = await play();
    const waits: number[] = [];
    for (let i = 0; i < 9; i++) {
      p.socket().end(1006);
      await settle();
      if (p.client.state.state === "waiting") waits.push(p.client.state.retryMs);
      await pass(waits.at(-1)!);
    }
    expect(waits).toEqual([250, 500, 1000, 2000, 4000, 8000, 15000, 15000, 15000]);
    for (const [life, wait] of [[59_000, 15_000], [60_000, 250], [10, 500]] as const) {
      p.socket().welcome({ heartbeat_ms: 100_000 });
      await pass(life);
      p.socket().end(1006);
      await settle();
      expect(p.client.state).toMatchObject({ retryMs: wait });
      await pass(wait);
    }
    await stop(p);
  });

  test("has waits that are drawn from all of the range", async () => {
    const p = await play({ backoff: { base: 100, max: 300 } });
    vi.mocked(Math.random).mockReturnValueOnce(0).mockReturnValueOnce(0.99).mockReturnValueOnce(0.999);
    for (const wait of [0, 198, 300]) {
      p.socket().end(1012);
      await settle();
      if (wait) expect(p.client.state).toEqual({ state: "waiting", reason: "server", code: 1012, retryMs: wait });
      await pass(wait);
    }
    await stop(p);
  });

  test.each([1001, 1005, 1006, 1010, 1011, 1012, 1013, 1014, 1015, 3000, 3999, 4000, 4001, 4099, 4200, 4399, 4500, 4999])("with %i comes back with the cursor", async (code) => {
    const p = await live();
    p.socket().end(code);
    await settle();
    expect(p.news()).toEqual([`state waiting ${code === 1006 ? "network" : "server"} ${code} 250`]);
    await pass(250);
    expect(p.socket().query["cursor"]).toBe("c0");
    await stop(p);
  });

  test.each([1000, 1002, 1003, 1007, 1008, 1009, 4400, 4402, 4403, 4409, 4499])("with %i stops", async (code) => {
    const p = await live();
    p.socket().end(code);
    await settle();
    expect(p.news()).toEqual([`state stopped server ${code}`]);
    expect(p.stopped).toEqual({ state: "stopped", reason: "server", code, cursor: "c0" });
    expect(await p.client.close()).toBe(p.stopped);
  });

  test.each([4100, 4150, 4199])("with %i drops the cursor, and has a snapshot", async (code) => {
    const p = await live();
    p.socket().batch("c1", 1).end(code);
    await settle();
    await pass(250);
    expect(p.news().slice(-2)).toEqual(["cursor ", "state connecting"]);
    expect(p.socket().query).toEqual({ user: "alice" });
    p.socket().welcome({ cursor: "d0" });
    await settle();
    expect(p.news()).toEqual(["state replaying", "snapshot gap", "cursor d0"]);
    await stop(p);
  });

  test.each([
    [400, "stopped", 4400], [403, "stopped", 4403], [404, "stopped", 0], [426, "stopped", 0], [499, "stopped", 0],
    [421, "waiting", 0], [500, "waiting", 0], [502, "waiting", 0], [503, "waiting", 0], [599, "waiting", 0], [302, "waiting", 0], [401, "waiting", 4401],
  ])("that was answered with status %i is %s", async (status, state, code) => {
    const p = await play();
    p.socket().refuse(status);
    await settle();
    expect(p.client.state).toMatchObject({ state, reason: "handshake", code });
    await stop(p);
  });

  test("is one if only an error tells of it", async () => {
    const p = await play();
    p.socket().dispatchEvent(new Event("error"));
    await settle();
    expect(p.client.state).toMatchObject({ state: "waiting", reason: "network", code: 1006 });
    await stop(p);
  });

  test("is asked nothing and heard no more", async () => {
    const p = await live();
    const first = p.socket();
    first.end(1006).batch("c9", 9).end(4409);
    await settle();
    expect(p.news()).toEqual(["state waiting network 1006 250"]);
    await stop(p);
  });

  test("has a snapshot of reason gap, if the server keeps no history", async () => {
    const p = await play();
    p.socket().welcome({ cursor: "" }).live().batch("", 1);
    await settle();
    p.socket().end(1006);
    await pass(250);
    expect(p.socket().query).toEqual({ user: "alice" });
    p.socket().welcome({ cursor: "" });
    await settle();
    expect(p.log.filter((l) => /snapshot|cursor/.test(l))).toEqual(["snapshot start", "snapshot gap"]);
    await stop(p);
  });

  test("before the first welcome leaves the reason for the snapshot what it was", async () => {
    const p = await play();
    p.socket().end(1006);
    await pass(250);
    p.socket().welcome();
    await settle();
    expect(p.log).toContain("snapshot start");
    await stop(p);
  });
});

describe("the watchdog", () => {
  test("ends a connection after 2.5 heartbeats without a word, and not before", async () => {
    const p = await live();
    await pass(49_999);
    expect(p.client.state.state).toBe("live");
    p.socket().say({ action: "heartbeat", cursor: "c0" });
    await pass(49_999);
    expect(p.client.state.state).toBe("live");
    await pass(1);
    expect(p.client.state).toMatchObject({ state: "waiting", reason: "watchdog", code: 0 });
    expect(p.sockets[0]!.closedWith).toBe(1000);
    await stop(p);
  });

  test("does not wait for ever for a welcome", async () => {
    const p = await play();
    p.socket().open();
    await pass(20_000);
    expect(p.client.state).toMatchObject({ state: "waiting", reason: "watchdog" });
    await stop(p);
  });

  test("takes the factor that it is given", async () => {
    const p = await live({ watchdogFactor: 1.5 });
    await pass(30_000);
    expect(p.client.state).toMatchObject({ state: "waiting", reason: "watchdog" });
    await stop(p);
  });

  test("gives a moment to what came while the program did not run", async () => {
    const p = await live();
    const now = performance.now();
    vi.spyOn(performance, "now").mockReturnValue(now + 3_600_000); // the lid was closed for an hour
    await pass(50_000);
    expect(p.client.state.state).toBe("live");
    await pass(1_000);
    expect(p.client.state).toMatchObject({ state: "waiting", reason: "watchdog" });
    await stop(p);
  });

  test("ends a connection of a hidden page too, whose timers are all late", async () => {
    const p = await live();
    vi.spyOn(performance, "now").mockImplementation(() => 10 * Date.now());
    await pass(60_000);
    expect(p.log.filter((l) => l.includes("watchdog"))).toHaveLength(1);
    await stop(p);
  });

  test("hears while the handler runs", async () => {
    const handler = gate();
    const p = await live({ onNotifications: () => handler.promise });
    p.socket().batch("c1", 1);
    for (let i = 0; i < 10; i++) {
      await pass(20_000);
      p.socket().say({ action: "heartbeat", cursor: "c1" });
    }
    expect(p.client.state.state).toBe("live");
    handler.open();
    await stop(p);
  });
});

describe("close", () => {
  test("waits for the handler that runs, keeps its cursor, and hands over nothing more", async () => {
    const handler = gate();
    const p = await live({ onNotifications: () => handler.promise });
    p.socket().batch("c1", 1).batch("c2", 2);
    await settle();
    const closed = p.client.close();
    await settle();
    expect(p.socket().closedWith).toBe(1000);
    expect(p.stopped).toBeUndefined();
    handler.open();
    expect(await closed).toEqual({ state: "stopped", reason: "closed", code: 1000, cursor: "c1" });
    expect(p.news()).toEqual(["got n-1", "cursor c1", "state stopped closed 1000"]);
  });

  test("during the snapshot of what was dropped hands over nothing: the cursor stays before that batch", async () => {
    const snapshot = gate();
    const p = await live({ snapshot: (reason) => (reason === "gap" ? snapshot.promise : undefined) });
    p.socket().say({ cursor: "c1", notifications: [notification(1)], dropped: 1 }).batch("c2", 2);
    await settle();
    const closed = p.client.close();
    await settle();
    expect(p.stopped, "the snapshot is waited for").toBeUndefined();
    snapshot.open();
    expect(await closed).toEqual({ state: "stopped", reason: "closed", code: 1000, cursor: "c0" });
    expect(p.news()).toEqual(["snapshot gap", "state stopped closed 1000"]);
  });

  test.each([
    ["at once", async () => {}],
    ["while it connects", async () => settle()],
    ["in the middle of a snapshot", async (p: Play) => { p.socket().welcome(); await settle(); }],
    ["while it waits", async (p: Play) => { p.socket().end(1006); await settle(); }],
  ])("%s ends it, and nothing is begun afterwards", async (_, reach) => {
    const snapshot = gate();
    const p = await play({ snapshot: () => snapshot.promise });
    await reach(p);
    const seen = p.sockets.length;
    void p.client.close();
    await settle();
    snapshot.open();
    await settle();
    expect(p.stopped).toMatchObject({ reason: "closed" });
    await pass(100_000);
    expect(p.sockets.length).toBe(seen);
    expect(p.log.at(-1)).toBe("state stopped closed 1000");
    expect(p.client.cursor).toBe("");
  });

  test("before anything else has happened tells nothing but the end", async () => {
    const states: string[] = [];
    const client = connect({ url: "ws://x", WebSocket: ScriptedSocket, onNotifications: () => {}, onState: (s) => states.push(s.state) });
    await client.close();
    expect(states).toEqual(["stopped"]);
  });

  test("may be called by a callback", async () => {
    const p = await play({ onNotifications: () => void p.client.close() });
    p.socket().welcome().live().batch("c1", 1).batch("c2", 2);
    await settle();
    expect(p.stopped).toMatchObject({ reason: "closed", cursor: "c1" });
  });
});

describe("an option that cannot be used", () => {
  test.each([
    ["onNotifications", { onNotifications: undefined }],
    ["url", { url: "ftp://exchange" }],
    ["Invalid URL", { url: "/no/page" }],
    ["WebSocket", { WebSocket: undefined }],
  ])("is a TypeError that names %s", (name, wrong) => {
    vi.stubGlobal("WebSocket", undefined);
    const all = { url: "ws://exchange", WebSocket: ScriptedSocket, onNotifications: () => {}, ...wrong };
    expect(() => connect(all as never)).toThrow(TypeError);
    expect(() => connect(all as never)).toThrow(name);
    vi.unstubAllGlobals();
  });

  test("is the end, if only the WebSocket finds out", async () => {
    class Picky extends ScriptedSocket {
      constructor(...args: ConstructorParameters<typeof ScriptedSocket>) {
        super(...args);
        throw new SyntaxError("not from here");
      }
    }
    const p = await play({ WebSocket: Picky });
    expect(p.stopped).toMatchObject({ reason: "network", error: new SyntaxError("not from here") });
  });
});
