// What to do when a connection has ended, by its code.

import type { Reason } from "./notification-client.ts";

/** What follows: retry comes back with the cursor, reset without it, and renew
 *  with other credentials. */
export type Next = "stop" | "retry" | "reset" | "renew";

export interface Ending {
  reason: Reason;
  /** The code of the close frame; 1006 if there was none; 0 if it was we who gave up. */
  code: number;
  next: Next;
  /** What was thrown. */
  error?: unknown;
}

/** By range, so that a code of a later server has a meaning too. */
export function ofCode(code: number): Ending {
  const reason = code === 1006 ? "network" : "server";
  return { reason, code, next: nextOf(code) };
}

function nextOf(code: number): Next {
  if (code === 4401) return "renew";
  if (code >= 4400 && code < 4500) return "stop";
  if (code >= 4100 && code < 4200) return "reset";
  return [1000, 1002, 1003, 1007, 1008, 1009].includes(code) ? "stop" : "retry";
}

/** Those that have a close code of the same meaning get it. 421 is an edge that
 *  does not have this user, at the moment. */
export function ofStatus(status: number): Ending {
  if ([400, 401, 403].includes(status)) return { ...ofCode(4000 + status), reason: "handshake" };
  const final = status >= 400 && status < 500 && status !== 421;
  return { reason: "handshake", code: 0, next: final ? "stop" : "retry" };
}

/** For what ends on this side. */
export function ofUs(reason: Reason, next: Next, error?: unknown): Ending {
  return error === undefined ? { reason, code: 0, next } : { reason, code: 0, next, error };
}
