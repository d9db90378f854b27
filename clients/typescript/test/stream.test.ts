// What is handed over while the connection goes on, or goes: snapshots, slow and
// failing callbacks, floods.
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { gate, notification, pass, play, settle, type Play } from "./scripted.ts";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => {
  expect(vi.getTimerCount(), "timers that were left").toBe(0);
  vi.useRealTimers();
  vi.restoreAllMocks();
});

async function stop(p: Play): Promise<void> {
  void p.client.close();
  await settle();
  expect(p.stopped).toBeDefined();
}

const many = (n: number) => ({ cursor: "c1", notifications: Array.from({ length: n }, (_, i) => notification(i)) });

describe("while a snapshot is loaded", () => {
  test("what comes is held, and live is not told before it was handed over", async () => {
    const snapshot = gate();
    const p = await play({ snapshot: () => snapshot.promise });
    p.socket().welcome().batch("c1", 1).live().batch("c2", 2);
    await pass(1_000);
    expect(p.news()).toEqual(["state connecting", "state replaying", "snapshot start"]);
    snapshot.open();
    await settle();
    expect(p.news()).toEqual(["cursor c0", "got n-1", "cursor c1", "state live", "got n-2", "cursor c2"]);
    await stop(p);
  });

  test("10,000 notifications are held", async () => {
    const snapshot = gate();
    const p = await play({ snapshot: () => snapshot.promise });
    p.socket().welcome().say(many(4_000)).say(many(6_000)).live();
    snapshot.open();
    await settle();
    expect(p.client.state.state).toBe("live");
    expect(p.log.filter((l) => l.startsWith("got")).length).toBe(10_000);
    await stop(p);
  });

  test("one more is too many: it begins anew, with another snapshot", async () => {
    const snapshots = [gate(), gate()];
    let n = 0;
    const p = await play({ snapshot: () => snapshots[n++]!.promise });
    p.socket().welcome().say(many(4_000)).say(many(6_001));
    await settle();
    expect(p.client.state).toEqual({ state: "waiting", reason: "overflow", code: 0, retryMs: 250 });
    expect(p.socket().closedWith).toBe(1000);
    await pass(10_000);
    expect(p.sockets.length, "the snapshot still runs").toBe(1);
    snapshots[0]!.open();
    await settle();
    p.socket().welcome().live();
    snapshots[1]!.open();
    await settle();
    expect(p.log).toEqual(["state connecting", "state replaying", "snapshot start", "state waiting overflow 0 250",
      "state connecting", "state replaying", "snapshot start", "cursor c0", "state live"]);
    await stop(p);
  });

  test("the connection may go: the next one begins with a snapshot of its own", async () => {
    const snapshot = gate();
    const p = await play({ cursor: "old", snapshot: () => snapshot.promise });
    p.socket().welcome().batch("c1", 1).end(1006);
    await settle();
    snapshot.open();
    await pass(250);
    expect(p.socket().query["cursor"]).toBe("old");
    p.socket().welcome({ cursor: "d0" }).live();
    await settle();
    expect(p.log.filter((l) => !l.startsWith("state"))).toEqual(["snapshot cursor_gone", "snapshot cursor_gone", "cursor d0"]);
    await stop(p);
  });

  test("a failure stops", async () => {
    const error = new Error("no snapshot");
    const p = await play({ snapshot: () => Promise.reject(error) });
    p.socket().welcome().batch("c1", 1);
    await settle();
    expect(p.stopped).toEqual({ state: "stopped", reason: "handler", code: 0, cursor: "", error });
    expect(p.socket().closedWith).toBe(1000);
  });
});

test("without a snapshot callback nothing that came is thrown away", async () => {
  const p = await play({ snapshot: undefined });
  p.socket().welcome().batch("c1", 1).end(1006);
  await pass(250);
  expect(p.socket().query["cursor"]).toBe("c1");
  expect(p.log).toContain("got n-1");
  await stop(p);
});

describe("a slow handler", () => {
  test("gets one batch after the other", async () => {
    let running = 0, most = 0;
    const p = await play({
      onNotifications: async () => {
        most = Math.max(most, ++running);
        await new Promise((resolve) => setTimeout(resolve, 1_000));
        running--;
      },
    });
    p.socket().welcome().batch("c1", 1).batch("c2", 2).batch("c3", 3).live();
    await pass(3_000);
    expect(most).toBe(1);
    expect(p.log.slice(4)).toEqual(["got n-1", "cursor c1", "got n-2", "cursor c2", "got n-3", "cursor c3", "state live"]);
    await stop(p);
  });

  test("has finished, and has had all that came, before the next connection says its cursor", async () => {
    const handler = gate();
    const p = await play({ onNotifications: () => handler.promise });
    p.socket().welcome();
    await settle();
    p.socket().batch("c1", 1).batch("c2", 2).live().end(1006);
    await pass(10_000);
    expect(p.sockets.length).toBe(1);
    expect(p.client.state.state).toBe("waiting");
    handler.open();
    await settle();
    expect(p.log.slice(-6)).toEqual(["state waiting network 1006 250", "got n-1", "cursor c1", "got n-2", "cursor c2", "state connecting"]);
    expect(p.socket().query["cursor"]).toBe("c2");
    await stop(p);
  });

  test("behind which 10,000 are held has them, and the connection is made anew", async () => {
    const handler = gate();
    const p = await play({ onNotifications: () => handler.promise });
    p.socket().welcome();
    await settle();
    p.socket().batch("c1", -1).say(many(10_000)).batch("c2", -2);
    await settle();
    expect(p.client.state).toMatchObject({ state: "waiting", reason: "overflow" });
    handler.open();
    await pass(250);
    expect(p.log.filter((l) => l.startsWith("got")).length).toBe(10_002);
    expect(p.socket().query["cursor"]).toBe("c2");
    await stop(p);
  });

  test("may have the batch of any size that a server sends", async () => {
    const p = await play();
    p.socket().welcome().live();
    await settle();
    p.socket().say(many(20_000));
    await settle();
    expect(p.log.filter((l) => l.startsWith("got")).length).toBe(20_000);
    await stop(p);
  });
});

describe("a handler that throws", () => {
  test.each([
    ["at once", () => { throw new Error("bug"); }],
    ["later", () => Promise.reject(new Error("bug"))],
  ])("%s stops the client with the cursor before that batch", async (_, fail) => {
    let calls = 0;
    const p = await play({ onNotifications: () => (++calls === 2 ? fail() : undefined) });
    p.socket().welcome().batch("c1", 1).batch("c2", 2).batch("c3", 3);
    await settle();
    expect(p.stopped).toEqual({ state: "stopped", reason: "handler", code: 0, cursor: "c1", error: new Error("bug") });
    expect(p.log.slice(2)).toEqual(["snapshot start", "cursor c0", "got n-1", "cursor c1", "state stopped handler 0"]);
    expect(p.socket().closedWith).toBe(1000);
  });

  test("after the connection has gone stops it without a wait", async () => {
    const handler = gate();
    const p = await play({ onNotifications: () => handler.promise });
    p.socket().welcome();
    await settle();
    p.socket().batch("c1", 1).batch("c2", 2).end(1006);
    await settle();
    handler.fail(new Error("bug"));
    await settle();
    expect(p.stopped).toMatchObject({ reason: "handler", cursor: "c0" });
    expect(p.sockets.length).toBe(1);
  });

  test("as close waits for it is told", async () => {
    const handler = gate();
    const p = await play({ onNotifications: () => handler.promise });
    p.socket().welcome().batch("c1", 1);
    await settle();
    void p.client.close();
    handler.fail(new Error("bug"));
    await settle();
    expect(p.stopped).toMatchObject({ reason: "handler", error: new Error("bug") });
  });

  test("stops, also if it is the one for the cursor", async () => {
    const p = await play({ onCursor: (cursor) => { if (!cursor) throw new Error("no room"); } });
    p.socket().welcome();
    await settle();
    p.socket().end(4100);
    await pass(250);
    expect(p.stopped).toMatchObject({ reason: "handler", code: 0, error: new Error("no room") });
  });
});

test("a listener of states that throws is reported, and disturbs nothing", async () => {
  const reported: unknown[] = [];
  const before = process.listeners("uncaughtException");
  process.removeAllListeners("uncaughtException");
  process.on("uncaughtException", (error) => reported.push(error));
  try {
    const p = await play({ onState: () => { throw new Error("listener"); } });
    p.socket().welcome().live();
    await settle();
    expect(p.client.state.state).toBe("live");
    await stop(p);
    expect(reported).toHaveLength(4);
  } finally {
    process.removeAllListeners("uncaughtException");
    for (const listener of before) process.on("uncaughtException", listener);
  }
});
