// In Node, with the package ws, against the real server. What is tested is what was
// built.
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { WebSocket as WS } from "ws";
import { connect, isKnown, type AnyNotification, type Client, type Options, type State } from "../dist/notification-client.js";
import { build, Front, noServer, Server, timestampOf, until } from "./server.ts";

const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => `trade-${from + i}`);

describe.skipIf(noServer)("with the real server", () => {
  let server: Server, built: ReturnType<typeof build>, front: Front | undefined, clients: Client[] = [], sockets = 0;

  beforeAll(() => void (built = build()));
  afterAll(() => built.remove());
  beforeEach(async () => {
    sockets = 0;
    server = await Server.start(built.program);
  });
  afterEach(async () => {
    await Promise.all(clients.splice(0).map((c) => c.close()));
    front?.close();
    front = undefined;
    await server.kill();
  });

  class Counted extends WS {
    constructor(url: string, protocols: string[], options?: object) {
      super(url, protocols, options);
      sockets++;
    }
  }

  function follow(options: Partial<Options> = {}) {
    const got: AnyNotification[] = [], states: State[] = [], snapshots: string[] = [], cursors: string[] = [];
    const client = connect({
      url: server.ws,
      WebSocket: Counted,
      credentials: () => ({ token: "alice" }),
      onNotifications: (batch) => void got.push(...batch),
      snapshot: (reason) => void snapshots.push(reason),
      onState: (state) => void states.push(state),
      onCursor: (cursor) => void cursors.push(cursor),
      backoff: { base: 50, max: 200 },
      watchdogFactor: 60, // the machine may be busy
      ...options,
    });
    clients.push(client);
    const live = () => until(() => client.state.state === "live", "live");
    const ids = () => got.map((n) => n.message_id);
    return { client, got, ids, states, snapshots, cursors, live };
  }

  test("notifications arrive, with every nanosecond", async () => {
    const c = follow();
    await c.live();
    await server.publish("alice", 1, 50);
    await server.publish("alice", 51, 51, "risk");
    await until(() => c.got.length === 51, "51 notifications");
    expect(c.states.map((s) => s.state)).toEqual(["connecting", "replaying", "live"]);
    expect(c.snapshots).toEqual(["start"]);
    for (const n of c.got) {
      if (!isKnown(n)) throw new Error(`${n.message_type} is unknown`);
      const k = Number(n.message_id.split("-")[1]);
      expect(n.timestamp).toBe(timestampOf(k));
      expect(n.payload.timestamp).toBe(timestampOf(k) + 1n);
      expect(n.source).toBe('a "test": 1700000000000000123,');
      if (n.message_type === "trade_executed") expect(n.payload.price).toBe(k + 0.5);
      if (n.message_type === "margin_call") expect(n.payload.deadline).toBe(timestampOf(k) + 2n);
    }
    await until(() => c.client.cursor === c.cursors.at(-1), "the last cursor");
  });

  test("each of 4,000 arrives once and in order, however often the connection is cut", async () => {
    let handled = 0;
    const c = follow({ onNotifications: async (batch) => {
      await new Promise((resolve) => setTimeout(resolve, 1));
      for (const n of batch) c.got.push(n);
      handled++;
    } });
    await c.live();
    for (let k = 0; k < 20; k++) {
      const published = server.publish("alice", 200 * k + 1, 200 * k + 200);
      const before = handled;
      await until(() => handled > before, "a batch more");
      await server.cut();
      await published;
    }
    await until(() => c.got.length >= 4_000, "4,000 notifications");
    expect(c.ids()).toEqual(range(1, 4_000));
    expect(c.snapshots).toEqual(["start"]);
    expect(sockets).toBeGreaterThan(1);
  });

  test("a later program goes on where the cursor was stored", async () => {
    const first = follow();
    await first.live();
    await server.publish("alice", 1, 10);
    await until(() => first.got.length === 10, "10 notifications");
    const { cursor } = await first.client.close();
    expect(cursor).toBe(first.cursors.at(-1));
    await server.publish("alice", 11, 20);
    const second = follow({ cursor });
    await second.live();
    expect(second.ids()).toEqual(range(11, 20));
    expect(second.snapshots).toEqual([]);
  });

  test("a ticket is good for one connection, and the next one gets another", async () => {
    const tickets: string[] = [];
    const c = follow({ credentials: async () => {
      tickets.push(await server.post("tickets", { token: "alice" }));
      return { ticket: tickets.at(-1)! };
    } });
    await c.live();
    await server.cut();
    await until(() => sockets >= 2, "another connection");
    await c.live();
    expect(new Set(tickets).size).toBe(2);
    expect(c.snapshots).toEqual(["start"]);
  });

  test("credentials that are refused are asked for once more, and then it stops", async () => {
    const whys: string[] = [];
    const c = follow({ credentials: (why) => { whys.push(why); return { ticket: "old" }; } });
    expect(await c.client.stopped).toEqual({ state: "stopped", reason: "server", code: 4401, cursor: "" });
    expect(whys).toEqual(["start", "refused"]);
  });

  test("who is forbidden stops", async () => {
    const c = follow({ credentials: () => ({ token: "nobody" }) });
    expect(await c.client.stopped).toMatchObject({ reason: "server", code: 4403 });
  });

  test("a token that expires is extended without another connection", async () => {
    const whys: string[] = [];
    const c = follow({ credentials: (why) => { whys.push(why); return { token: why === "expiring" ? "alice" : "alice:30000" }; } });
    await c.live();
    await until(() => whys.includes("expiring"), "the credentials expire");
    await server.publish("alice", 1, 1);
    await until(() => c.got.length === 1, "a notification");
    expect(sockets).toBe(1);
  });

  test("a ticket in its place leads to another connection, behind the cursor", async () => {
    const whys: string[] = [];
    const c = follow({ credentials: async (why) => {
      whys.push(why);
      return why === "start" ? { token: "alice:30000" } : { ticket: await server.post("tickets", { token: "alice" }) };
    } });
    await until(() => sockets >= 2, "another connection");
    await c.live();
    await server.publish("alice", 1, 1);
    await until(() => c.got.length === 1, "a notification");
    expect(whys).toEqual(["start", "expiring"]);
    expect(c.snapshots).toEqual(["start"]);
  });

  test("credentials that have expired are asked for, and the next connection goes on", async () => {
    const whys: string[] = [];
    const c = follow({ credentials: (why) => {
      whys.push(why);
      return why === "expiring" ? new Promise(() => {}) : { token: why === "start" ? "alice:5000" : "alice" };
    } });
    await until(() => whys.includes("refused"), "the end of the credentials");
    await c.live();
    expect(whys).toEqual(["start", "expiring", "refused"]);
    expect(c.states).toContainEqual(expect.objectContaining({ state: "waiting", reason: "server", code: 4401 }));
    expect(c.snapshots).toEqual(["start"]);
  });

  test("a foreign origin stops, where the status can be seen", async () => {
    const Foreign = class extends WS {
      constructor(url: string, protocols: string[], options?: object) {
        super(url, protocols, { ...options, origin: "https://elsewhere.example" });
      }
    };
    expect(await follow({ WebSocket: Foreign }).client.stopped).toMatchObject({ reason: "handshake", code: 4403 });
  });

  test("an unknown channel stops", async () => {
    expect(await follow({ channels: ["news" as never] }).client.stopped).toMatchObject({ reason: "server", code: 4400 });
  });

  test("a third session of a user ends the first for good", async () => {
    const [a, b] = [follow(), follow()];
    await Promise.all([a.live(), b.live()]);
    const c = follow();
    await c.live();
    const stopped = await Promise.race([a.client.stopped, b.client.stopped]);
    expect(stopped).toMatchObject({ reason: "server", code: 4409 });
  });

  test("channels narrow the session at the server, and the next connection too", async () => {
    const c = follow({ channels: ["trade", "risk"] });
    await c.live();
    expect(await server.sessions("alice")).toEqual([expect.stringContaining("[trade risk]")]);
    expect(await c.client.unsubscribe("trade")).toEqual(["risk"]);
    await server.publish("alice", 1, 3);
    await server.publish("alice", 4, 4, "risk");
    await until(() => c.got.length === 1, "a margin call");
    expect(c.ids()).toEqual(["risk-4"]);
    await server.cut();
    await until(() => sockets >= 2, "another connection");
    await c.live();
    expect(await server.sessions("alice")).toContainEqual(expect.stringContaining("[risk]"));
    expect(await c.client.subscribe("system")).toEqual(["risk", "system"]);
    await expect(c.client.subscribe("news" as never)).rejects.toThrow("the channels are");
  });

  test("a server that goes down in order is come back to, and its successor has no history: a snapshot", async () => {
    front = await Front.of(server);
    const c = follow({ url: front.ws });
    await c.live();
    await server.publish("alice", 1, 5);
    await until(() => c.got.length === 5, "5 notifications");
    front.server = undefined;
    await server.shutdown();
    await until(() => c.states.some((s) => s.state === "waiting"), "the end of the connection");
    front.server = server = await Server.start(built.program);
    await until(() => c.snapshots.length === 2, "another snapshot");
    await c.live();
    await server.publish("alice", 6, 9);
    await until(() => c.got.length === 9, "4 more");
    expect(c.ids()).toEqual(range(1, 9));
    expect(c.snapshots).toEqual(["start", "cursor_gone"]);
    expect(c.states.find((s) => s.state === "waiting")).toMatchObject({ reason: "server", code: 1001 });
  });

  test("one that is killed is as well", async () => {
    front = await Front.of(server);
    const c = follow({ url: front.ws });
    await c.live();
    front.server = undefined;
    await server.kill();
    await until(() => c.states.filter((s) => s.state === "connecting").length >= 3, "attempts");
    front.server = server = await Server.start(built.program);
    await c.live();
    expect(c.snapshots).toEqual(["start", "cursor_gone"]);
    expect(c.states.filter((s) => s.state === "waiting")).toContainEqual(expect.objectContaining({ reason: "network", code: 1006 }));
  });
});
