// Writes dist, or the folder that the argument names: one file of JavaScript, and
// the types of what it exports.
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = fileURLToPath(new URL(".", import.meta.url));
const to = process.argv[2] ?? join(here, "dist");
mkdirSync(to, { recursive: true });

await build({
  absWorkingDir: here,
  entryPoints: ["src/notification-client.ts"],
  outfile: join(to, "notification-client.js"),
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  charset: "utf8",
  banner: { js: "// @qaexchange/notification-client, MIT license" },
});

const types = mkdtempSync(join(tmpdir(), "types"));
try {
  execFileSync(process.execPath, [join(here, "node_modules/typescript/bin/tsc"), "-p", join(here, "tsconfig.types.json"), "--outDir", types], { stdio: "inherit" });
  for (const name of ["notification-client.d.ts", "notifications.d.ts"]) {
    const text = readFileSync(join(types, name), "utf8");
    writeFileSync(join(to, name), text.replace(/ from "\.\/(.*)\.ts";/g, ' from "./$1.js";'));
  }
} finally {
  rmSync(types, { recursive: true });
}
