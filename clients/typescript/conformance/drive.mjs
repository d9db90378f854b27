// Drives the built client by lines: options first, then commands. What happens is
// told. It runs in Node and in a page alike.
import { connect } from "../dist/notification-client.js";

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// read is a promise of the next line, parsed, or of undefined at the end.
export async function drive(read, tell, WebSocket) {
  const o = await read();
  let asked = 0, taken = 0;
  const client = connect({
    url: o.url,
    WebSocket,
    channels: o.channels ?? undefined,
    cursor: o.cursor,
    backoff: { base: o.backoff_base_ms, max: o.backoff_max_ms, stable: o.stable_ms },
    watchdogFactor: o.watchdog_factor,
    credentials: o.credentials && ((why) => {
      tell({ event: "credentials", why });
      const given = o.credentials[Math.min(asked++, o.credentials.length - 1)];
      if (given === null) throw new Error("no credentials");
      return given;
    }),
    snapshot: async (reason) => {
      tell({ event: "snapshot", reason });
      if (o.snapshot_ms) await sleep(o.snapshot_ms);
      const body = o.snapshot_url && await (await fetch(o.snapshot_url)).json();
      tell({ event: "snapshot_done", body });
    },
    onNotifications: async (notifications) => {
      for (const n of notifications) {
        if (o.handler_ms) await sleep(o.handler_ms);
        if (++taken === o.handler_throws_at) throw new Error("as told");
        tell({ event: "notification", message_id: n.message_id, type: n.message_type, timestamp: String(n.timestamp), raw: writable(n) });
      }
    },
    onCursor: (cursor) => tell({ event: "cursor", cursor }),
    onState: ({ state, reason, code, retryMs }) => {
      if (state !== "stopped") tell({ event: "state", state, reason, code, retry_ms: retryMs });
    },
  });
  const refused = (error) => tell({ event: "error", message: error.message });
  (async () => {
    for (let line; (line = await read()) && line.do !== "stop"; ) {
      client[line.do](...line.channels).catch(refused);
    }
    client.close();
  })();
  const { reason, code, cursor } = await client.stopped;
  tell({ event: "stopped", reason, code, cursor });
}

// A bigint is a number of JSON like any other, for which JSON.stringify has a word
// that Node 20 does not know.
function writable(value) {
  if (typeof value === "bigint") return JSON.rawJSON?.(String(value)) ?? value;
  if (value === null || typeof value !== "object" || Array.isArray(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([key, v]) => [key, writable(v)]));
}
