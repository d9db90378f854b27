// The built files that the repository carries.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { expect, test } from "vitest";

const here = fileURLToPath(new URL("..", import.meta.url));
const contents = (dir: string) => Object.fromEntries(readdirSync(dir).sort().map((name) => [name, readFileSync(join(dir, name), "utf8")]));

test("dist is what src builds: otherwise run npm run build", () => {
  const dir = mkdtempSync(join(tmpdir(), "dist"));
  try {
    execFileSync(process.execPath, [join(here, "build.mjs"), dir], { stdio: "pipe" });
    const built = contents(dir), carried = contents(join(here, "dist"));
    for (const name of new Set([...Object.keys(built), ...Object.keys(carried)])) {
      expect(carried[name] === built[name], `dist/${name} is stale: run npm run build`).toBe(true);
    }
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test("the client is below 6 kB with gzip", () => {
  const text = readFileSync(join(here, "dist/notification-client.js"));
  const size = gzipSync(text, { level: 6 }).length;
  console.log(`${text.length} bytes, ${size} with gzip`);
  expect(size).toBeLessThan(6_000);
});
