// The driver for Node: lines of JSON on stdin and stdout. It connects with the package
// ws, or with the argument "native" with the WebSocket that Node has from 22 on.
import { createInterface } from "node:readline";
import { drive } from "./drive.mjs";

const WebSocket = process.argv[2] === "native" ? undefined : (await import("ws")).WebSocket;
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

async function read() {
  const { value, done } = await lines.next();
  return done ? undefined : JSON.parse(value);
}

// A bigint gets a mark that no string here has, and loses it with its quotes.
function tell(event) {
  const text = JSON.stringify(event, (_, v) => (typeof v === "bigint" ? `\uE000${v}` : v));
  process.stdout.write(text.replace(/"\uE000(-?\d+)"/g, "$1") + "\n");
}

await drive(read, tell, WebSocket);
process.exit(0);
