// In Chromium, with its own WebSocket, against the real server.
import { build as bundle } from "esbuild";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { Chromium, noChromium } from "./chromium.ts";
import { build, noServer, root, Server, timestampOf } from "./server.ts";

describe.skipIf(noServer ?? noChromium)("in Chromium", () => {
  let server: Server, built: ReturnType<typeof build>, chromium: Chromium, page: <T>(expression: string) => Promise<T>;

  beforeAll(() => {
    built = build();
    chromium = new Chromium();
  });
  afterAll(async () => {
    await chromium.close();
    built.remove();
  });
  beforeEach(async () => {
    server = await Server.start(built.program);
    page = await chromium.open(`http://${server.host}/files/test/page.html`);
    await page(`cookieStore.set("token", "alice")`);
  });
  afterEach(async () => {
    await page(`window.f?.client.close()`);
    await server.kill();
  });

  const inPage = <T>(body: string) => page<T>(`(async () => { ${body} })()`);

  test("a cookie signs in, and notifications arrive with every nanosecond", async () => {
    await inPage(`
      f = follow();
      await until(() => f.client.state.state === "live");
      await post("publish", { user: "alice", from: 1, to: 50 });
      await until(() => f.got.length === 50);`);
    expect(await page(`f.got.map((n) => typeof n.timestamp + n.timestamp + " " + n.payload.timestamp)`))
      .toEqual(Array.from({ length: 50 }, (_, i) => `bigint${timestampOf(i + 1)} ${timestampOf(i + 1) + 1n}`));
    expect(await page(`f.states.map((s) => s.state)`)).toEqual(["connecting", "replaying", "live"]);
    expect(await page(`f.snapshots`)).toEqual(["start"]);
  });

  test("each of 4,000 arrives once and in order, however often the connection is cut", async () => {
    await inPage(`
      f = follow();
      await until(() => f.client.state.state === "live");
      for (let k = 0; k < 20; k++) {
        const published = post("publish", { user: "alice", from: 200 * k + 1, to: 200 * k + 200 }), before = f.got.length;
        await until(() => f.got.length > before);
        await post("cut");
        await published;
      }
      await until(() => f.got.length >= 4000);`);
    expect(await page(`f.got.map((n) => n.message_id)`)).toEqual(Array.from({ length: 4_000 }, (_, i) => `trade-${i + 1}`));
    expect(await page(`f.snapshots`)).toEqual(["start"]);
    expect(await page(`f.states.filter((s) => s.state === "waiting").length`)).toBeGreaterThan(0);
  });

  test("a page that is loaded anew goes on where it was", async () => {
    await inPage(`
      f = follow({ onCursor: (cursor) => sessionStorage.setItem("cursor", cursor) });
      await until(() => f.client.state.state === "live");
      await post("publish", { user: "alice", from: 1, to: 5 });
      await until(() => f.got.length === 5);
      await f.client.close();
      await post("publish", { user: "alice", from: 6, to: 9 });
      location.reload();`);
    await inPage(`
      while (!window.follow || window.f) await new Promise((resolve) => setTimeout(resolve, 10));`).catch(() => {}); // the old page
    await inPage(`
      while (!window.follow) await new Promise((resolve) => setTimeout(resolve, 10));
      f = follow({ cursor: sessionStorage.getItem("cursor") });
      await until(() => f.client.state.state === "live");`);
    expect(await page(`f.got.map((n) => n.message_id)`)).toEqual([6, 7, 8, 9].map((k) => `trade-${k}`));
    expect(await page(`f.snapshots`)).toEqual([]);
  });

  test("who is not signed in gets to know, though a page sees no status", async () => {
    await inPage(`
      await cookieStore.delete("token");
      f = follow();
      await f.client.stopped;`);
    expect(await page(`f.stopped`)).toMatchObject({ reason: "server", code: 4401 });
  });

  test("a ticket signs in where there is no cookie, and a token extends", async () => {
    await inPage(`
      await cookieStore.delete("token");
      whys = [];
      f = follow({ credentials: async (why) => {
        whys.push(why);
        return why === "expiring" ? { token: "alice" } : { ticket: await post("tickets", { token: "alice:30000" }), token: "of no use" };
      } });
      await until(() => whys.includes("expiring"));
      await post("publish", { user: "alice", from: 1, to: 1 });
      await until(() => f.got.length === 1);`);
    expect(await page(`whys`)).toEqual(["start", "expiring"]);
    expect(await page(`f.states.map((s) => s.state)`)).toEqual(["connecting", "replaying", "live"]);
  });

  test("the page of another origin does not get in, and tries again", async () => {
    await inPage(`
      f = follow({ url: "http://localhost:" + location.port + "/notifications" });
      await until(() => f.states.filter((s) => s.state === "connecting").length >= 3);`);
    expect(await page(`f.states.find((s) => s.state === "waiting")`)).toMatchObject({ reason: "network", code: 1006 });
  });

  test("three tabs of one user where two may be: the first stops, and says why", async () => {
    await inPage(`
      f = follow();
      await until(() => f.client.state.state === "live");
      const others = [follow()];
      await until(() => others[0].client.state.state === "live");
      others.push(follow());
      await Promise.race([f.client.stopped, others[0].client.stopped]);
      stopped = f.stopped ?? others[0].stopped;
      for (const o of others) await o.client.close();`);
    expect(await page(`stopped`)).toMatchObject({ reason: "server", code: 4409 });
  });

  test("a WebSocket that this page may not make is the end, with the reason", async () => {
    await inPage(`
      const policy = document.createElement("meta");
      policy.httpEquiv = "Content-Security-Policy";
      policy.content = "connect-src 'none'";
      document.head.append(policy);
      f = follow();
      await until(() => f.stopped || f.states.some((s) => s.state === "waiting"));`);
    expect(await page(`f.states.at(-1).reason`)).toBe("network");
  });

  test("both ways to read JSON agree with the one that goes byte by byte", async () => {
    const { outputFiles } = await bundle({
      stdin: {
        contents: `export * from "./src/json.ts"; export * from "./test/naive.ts"; export { bigintKeys } from "./src/notifications.ts";`,
        resolveDir: root,
        loader: "ts",
      },
      bundle: true, write: false, format: "iife", globalName: "json", target: "es2022",
    });
    await page(outputFiles[0]!.text + "; window.json = json; 0");
    expect(await page(`json.parse === json.parseWithSource`)).toBe(true);
    const seed = Number(process.env["NOTIFICATION_SEED"] ?? Math.floor(Math.random() * 2 ** 32));
    const differ = await page<string[]>(`(() => {
      const next = json.randomText(${seed}, [...json.bigintKeys]), differ = [];
      const shown = (v) => JSON.stringify(v, (_, x) => typeof x === "bigint" ? "big " + x : Object.is(x, -0) ? "-0" : x);
      for (let i = 0; i < 3000; i++) {
        const text = next(), want = shown(json.naive(text));
        if (shown(json.parseWithSource(text)) !== want || shown(json.parseByMarks(text)) !== want) differ.push(text);
      }
      return differ;
    })()`);
    expect(differ, `NOTIFICATION_SEED=${seed}`).toEqual([]);
  });
});
