// What npm would publish, installed somewhere else, without a network.
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { build, noServer, root, Server, timestampOf } from "./server.ts";

describe("the package", () => {
  let dir: string;
  const run = (program: string, ...args: string[]) => execFileSync(program, args, { cwd: dir, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"], timeout: 100_000 });

  beforeAll(() => {
    dir = mkdtempSync(join(tmpdir(), "pack"));
    const [packed] = JSON.parse(execFileSync("npm", ["pack", "--json", "--ignore-scripts", "--pack-destination", dir], { cwd: root, encoding: "utf8" })) as [{ filename: string; files: { path: string }[] }];
    writeFileSync(join(dir, "package.json"), JSON.stringify({ type: "module", private: true }));
    run("npm", "install", "--offline", "--ignore-scripts", "--no-audit", "--no-fund", "./" + packed.filename);
    expect(packed.files.map((f) => f.path).sort()).toEqual([
      "LICENSE", "README.md", "dist/notification-client.d.ts", "dist/notification-client.js", "dist/notifications.d.ts", "package.json",
    ]);
  });
  afterAll(() => rmSync(dir, { recursive: true, force: true }));

  test("brings nothing else with it", () => {
    const lock = JSON.parse(readFileSync(join(dir, "package-lock.json"), "utf8")) as { packages: object };
    expect(Object.keys(lock.packages)).toEqual(["", "node_modules/@qaexchange/notification-client"]);
    expect(readFileSync(join(root, "LICENSE"), "utf8")).toBe(readFileSync(join(root, "../../LICENSE"), "utf8"));
  });

  test("has types that a strict program compiles with", () => {
    writeFileSync(join(dir, "program.ts"), `
      import { connect, isKnown, type State } from "@qaexchange/notification-client";
      let last: State | undefined;
      const client = connect({
        url: "/notifications",
        cursor: sessionStorage.getItem("cursor"),
        onState: (state) => { last = state; },
        onNotifications(notifications) {
          for (const n of notifications) {
            if (isKnown(n) && n.message_type === "margin_call") { const at: bigint = n.payload.deadline; void at; }
          }
        },
      });
      client.stopped.then(({ reason, error }) => console.log(reason, error, last));
    `);
    for (const module of ["nodenext", "preserve"]) {
      run(process.execPath, join(root, "node_modules/typescript/bin/tsc"), "--strict", "--exactOptionalPropertyTypes", "--noEmit",
        "--target", "es2022", "--lib", "es2022,dom", "--types", "", "--module", module, "program.ts");
    }
  });

  test.skipIf(noServer)("runs against the real server, with the WebSocket that Node has", async () => {
    const built = build();
    const server = await Server.start(built.program);
    try {
      mkdirSync(join(dir, "sub"));
      writeFileSync(join(dir, "sub/program.mjs"), `
        import { connect } from "@qaexchange/notification-client";
        const client = connect({
          url: process.argv[2],
          credentials: () => ({ token: "alice" }),
          onNotifications(notifications) {
            for (const n of notifications) console.log(n.message_id, n.timestamp);
            client.close();
          },
          onState: async ({ state }) => {
            if (state === "live") await fetch(process.argv[3], { method: "POST" });
          },
        });
        console.log((await client.stopped).reason);
      `);
      const publish = `http://${server.host}/publish?user=alice&from=7&to=7`;
      // Node 20 has to be asked for it; later ones take the flag as well.
      expect(run(process.execPath, "--experimental-websocket", "--no-warnings", "sub/program.mjs", server.ws, publish))
        .toBe(`trade-7 ${timestampOf(7)}n\nclosed\n`);
    } finally {
      await server.kill();
      built.remove();
    }
  });
});
