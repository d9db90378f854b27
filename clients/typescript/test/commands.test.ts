// What the client says: credentials, channels.
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { gate, pass, play, settle, type Play } from "./scripted.ts";
import type { Credentials } from "../src/notification-client.ts";

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

const asked = (p: Play) => p.log.filter((l) => l.startsWith("credentials"));

describe("credentials", () => {
  test("are asked for before each connection, and a ticket goes into the URL", async () => {
    let n = 0;
    const p = await play({ credentials: () => ({ ticket: `t${++n}` }) });
    expect(p.socket().query["ticket"]).toBe("t1");
    p.socket().end(1006);
    await pass(250);
    expect(p.socket().query["ticket"]).toBe("t2");
    expect(asked(p)).toEqual(["credentials start", "credentials start"]);
    await stop(p);
  });

  test("that are a token go into the header", async () => {
    const p = await play({ credentials: async () => ({ token: "secret" }) });
    expect(p.socket().options).toEqual({ headers: { Authorization: "Bearer secret" } });
    expect(p.socket().url.href).not.toContain("secret");
    await stop(p);
  });

  test("that are nothing leave it to the cookie", async () => {
    const p = await play({ credentials: () => {} });
    expect(p.socket().query).toEqual({ user: "alice" });
    expect(p.socket().options).toBeUndefined();
    await stop(p);
  });

  test("that were refused are asked for once more", async () => {
    const p = await play({ credentials: () => ({ ticket: "t" }) });
    p.socket().open().end(4401);
    await settle();
    expect(p.client.state).toEqual({ state: "waiting", reason: "server", code: 4401, retryMs: 250 });
    await pass(250);
    p.socket().welcome().live();
    await settle();
    expect(asked(p)).toEqual(["credentials start", "credentials refused"]);
    p.socket().end(4401); // they have expired, hours later
    await pass(500);
    expect(asked(p).at(-1)).toBe("credentials refused");
    expect(p.socket().query["cursor"]).toBe("c0");
    await stop(p);
  });

  test("that were refused twice are the end, whatever lay between but a welcome", async () => {
    const p = await play({ credentials: () => ({ ticket: "t" }) });
    p.socket().open().end(4401);
    await pass(250);
    p.socket().end(1006);
    await pass(500);
    p.socket().refuse(401);
    await settle();
    expect(p.stopped).toMatchObject({ reason: "handshake", code: 4401 });
    expect(asked(p)).toEqual(["credentials start", "credentials refused", "credentials refused"]);
  });

  test.each([
    ["throws", () => { throw new Error("signed out"); }],
    ["rejects", () => Promise.reject(new Error("signed out"))],
  ])("whose callback %s are the end", async (_, credentials) => {
    const p = await play({ credentials });
    expect(p.stopped).toEqual({ state: "stopped", reason: "credentials", code: 0, cursor: "", error: new Error("signed out") });
    expect(p.sockets).toHaveLength(0);
  });

  test("that do not come are not waited for by close", async () => {
    const answer = gate<Credentials>();
    const p = await play({ credentials: () => answer.promise });
    await stop(p);
    answer.fail(new Error("too late"));
    await settle();
    expect(p.sockets).toHaveLength(0);
  });
});

describe("credentials that expire soon", () => {
  const expiring = { action: "expiring", in_ms: 60_000 };

  test("are extended with a token, if the server does that", async () => {
    const p = await play({ credentials: (why) => ({ token: why }) });
    p.socket().welcome({ refresh: true }).live().say(expiring);
    await settle();
    expect(p.socket().sent).toEqual([{ action: "authenticate", token: "expiring" }]);
    p.socket().say({ action: "ok", channels: ["trade"], expires_in_ms: 900_000 });
    await settle();
    expect(p.client.state.state).toBe("live");
    await stop(p);
  });

  test.each([
    ["the server does not extend", { refresh: false }, { token: "expiring" }],
    ["it is a ticket", { refresh: true }, { ticket: "expiring" }],
    ["it is a cookie", { refresh: true }, undefined],
  ])("lead to another connection if %s, which has what was given", async (_, welcome, given) => {
    const p = await play({ credentials: () => given });
    p.socket().welcome(welcome).live();
    await settle();
    p.socket().say(expiring);
    await settle();
    expect(p.client.state).toEqual({ state: "waiting", reason: "credentials", code: 0, retryMs: 250 });
    expect(p.sockets[0]!.closedWith).toBe(1000);
    await pass(250);
    expect(asked(p)).toEqual(["credentials start", "credentials expiring"]);
    expect(p.socket().query["ticket"]).toBe(given && "ticket" in given ? "expiring" : undefined);
    expect(p.socket().query["cursor"]).toBe("c0");
    await stop(p);
  });

  test("lead to another connection when what had come was handed over", async () => {
    const handler = gate();
    const p = await play({ credentials: () => {}, onNotifications: () => handler.promise });
    p.socket().welcome().live().batch("c1", 1).batch("c2", 2).say(expiring);
    await pass(5_000);
    expect(p.client.state.state).toBe("live");
    handler.open();
    await settle();
    expect(p.log.slice(-4)).toEqual(["cursor c1", "got n-2", "cursor c2", "state waiting credentials 0 250"]);
    await stop(p);
  });

  test("that are renewed by another connection are no failure, however often: each wait is within the base", async () => {
    const p = await play({ credentials: (why) => ({ ticket: why }) });
    for (let i = 0; i < 8; i++) {
      p.socket().welcome({ resumed: i > 0 }).live();
      await settle();
      p.socket().say({ action: "expiring", in_ms: 2_000 });
      await pass(i > 0 ? 1_000 : 0); // the first time at once, later after half of their life
      expect(p.client.state, `renewal ${i}`).toEqual({ state: "waiting", reason: "credentials", code: 0, retryMs: 250 });
      await pass(250);
    }
    p.socket().end(1006);
    await settle();
    expect(p.client.state, "the first loss").toMatchObject({ reason: "network", retryMs: 250 });
    await stop(p);
  });

  test("are left alone if nobody has others", async () => {
    const p = await play();
    p.socket().welcome().live().say(expiring);
    await settle();
    expect(p.client.state.state).toBe("live");
    await stop(p);
  });

  test("whose callback throws are the end", async () => {
    const p = await play({ credentials: (why) => { if (why === "expiring") throw new Error("signed out"); } });
    p.socket().welcome().live().say(expiring);
    await settle();
    expect(p.stopped).toMatchObject({ reason: "credentials", error: new Error("signed out") });
  });

  test("again and again are not asked for again and again", async () => {
    const p = await play({ credentials: (why) => ({ token: why }) });
    p.socket().welcome({ refresh: true }).live().say({ action: "expiring", in_ms: 30_000 });
    await settle();
    p.socket().say({ action: "expiring", in_ms: 30_000 });
    await pass(14_999);
    expect(asked(p)).toEqual(["credentials start", "credentials expiring"]);
    await pass(1);
    expect(asked(p)).toHaveLength(3);
    p.socket().say({ action: "expiring", in_ms: 100 });
    await pass(999);
    expect(asked(p)).toHaveLength(3);
    p.socket().end(1006); // which ends the wait
    await settle();
    expect(asked(p)).toHaveLength(3);
    await stop(p);
  });

  test("are not asked for any more once the connection has gone", async () => {
    const answer = gate<Credentials>();
    const p = await play({ credentials: (why) => (why === "expiring" ? answer.promise : undefined) });
    p.socket().welcome({ refresh: true }).live().say(expiring).end(1006);
    answer.open({ token: "late" });
    await pass(250);
    expect(p.sockets).toHaveLength(2);
    expect(p.sockets[0]!.sent).toEqual([]);
    await stop(p);
  });
});

describe("channels", () => {
  test("are asked for with an id, and are the answer's", async () => {
    const p = await play();
    p.socket().welcome().live();
    await settle();
    const [narrowed, more] = [p.client.subscribe("trade"), p.client.subscribe("risk", "system")];
    expect(p.socket().sent).toEqual([
      { action: "subscribe", id: 1, channels: ["trade"] },
      { action: "subscribe", id: 2, channels: ["risk", "system"] },
    ]);
    p.socket().say({ action: "ok", id: 1, channels: ["trade"] }).say({ action: "ok", id: 2, channels: ["trade", "risk", "system"] });
    expect(await narrowed).toEqual(["trade"]);
    expect(await more).toEqual(["trade", "risk", "system"]);
    p.socket().end(1006);
    await pass(250);
    expect(p.socket().query["channels"]).toBe("trade,risk,system");
    await stop(p);
  });

  test("may be awaited by the handler", async () => {
    const p = await play({ onNotifications: async () => void (await p.client.unsubscribe("trade")) });
    p.socket().welcome().live();
    await settle();
    p.socket().batch("c1", 1);
    await settle();
    p.socket().say({ action: "ok", id: 1, channels: ["risk"] });
    await settle();
    expect(p.client.cursor).toBe("c1");
    await stop(p);
  });

  test("that are refused stay what they were", async () => {
    const p = await play({ channels: ["trade"] });
    p.socket().welcome().live();
    await settle();
    const refused = p.client.subscribe("nonsense" as never);
    p.socket().say({ action: "error", id: 1, code: "unknown_channel", message: "the channels are …" });
    await expect(refused).rejects.toThrow("the channels are …");
    p.socket().end(1006);
    await pass(250);
    expect(p.socket().query["channels"]).toBe("trade");
    await stop(p);
  });

  test("that were asked for when the connection went are said by the next one", async () => {
    const p = await play();
    p.socket().welcome().live();
    await settle();
    const [less, again] = [p.client.unsubscribe("trade", "risk"), p.client.subscribe("risk")];
    p.socket().end(1006);
    await pass(250);
    expect(p.socket().query["channels"]).toBe("account,position,system,risk");
    expect(p.socket().sent).toEqual([]);
    p.socket().welcome({ channels: ["account", "position", "risk", "system"] });
    expect(await less).toEqual(["account", "position", "risk", "system"]);
    expect(await again).toEqual(["account", "position", "risk", "system"]);
    expect(p.socket().sent).toEqual([]);
    await stop(p);
  });

  test("that are asked for while it connects are said after the welcome", async () => {
    const p = await play();
    const narrowed = p.client.subscribe("trade");
    p.socket().open();
    expect(p.socket().sent).toEqual([]);
    p.socket().welcome();
    expect(p.socket().sent).toEqual([{ action: "subscribe", id: 1, channels: ["trade"] }]);
    p.socket().say({ action: "ok", id: 1, channels: ["trade"] });
    expect(await narrowed).toEqual(["trade"]);
    await stop(p);
  });

  test("are refused at the end", async () => {
    const p = await play();
    const waiting = expect(p.client.subscribe("trade")).rejects.toThrow("stopped: closed");
    await stop(p);
    await waiting;
    await expect(p.client.subscribe("trade")).rejects.toThrow("stopped");
  });
});
