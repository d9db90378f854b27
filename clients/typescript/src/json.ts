// JSON with the numbers that it says. JSON.parse makes a double of each, and of
// the nanoseconds of this protocol nearly every one is then another number.
//
// The rule: an integer is a bigint if it stands under one of bigintKeys, so that
// a type may say so, or if no number is written like it, so that what is newer
// than this file is not changed silently. A float64 of the server is written as
// JavaScript would write it, so it stays a number, however large.

import { bigintKeys } from "./notifications.ts";

/** Returns the value of a JSON text. Throws SyntaxError if it is none. */
export const parse: (text: string) => unknown = hasSource() ? parseWithSource : parseByMarks;

type Context = { source: string } | undefined;

function hasSource(): boolean {
  let has = false;
  JSON.parse("1", function (this: unknown, _key: string, _value: unknown, context?: Context) {
    has = context?.source === "1";
  });
  return has;
}

function exact(key: string, value: number, source: string): number | bigint {
  const big = bigintKeys.has(key);
  if (Number.isSafeInteger(value)) return big ? BigInt(value) : value;
  return /^-?\d+$/.test(source) && (big || String(value) !== source) ? BigInt(source) : value;
}

/** For engines that tell a reviver what a number was written like. */
export function parseWithSource(text: string): unknown {
  const revive = (key: string, value: unknown, context: Context) =>
    typeof value === "number" ? exact(key, value, context!.source) : value;
  return JSON.parse(text, revive as (key: string, value: unknown) => unknown);
}

// A string, whole, so that what looks like a number in it is passed over; or
// whatever else is no punctuation. Neither can begin inside the other.
const tokens = /"[^"\\]*(?:\\.[^"\\]*)*"|[^\s"[\]{}:,]+/g;

// What a number has to look like for JSON.parse to change it: from 2^53 on.
const long = /^-?[1-9]\d{15,}$/;

// In front of a number that was made a string. Nobody can know it beforehand.
const mark = Math.random().toString(36) + ":";

/** For engines that do not: long integers become strings on the way in, and
 *  bigints behind JSON.parse, which still does most of the work. */
export function parseByMarks(text: string): unknown {
  const marked = text.replace(tokens, (token) => (long.test(token) ? `"${mark}${token}"` : token));
  return unmark({ "": JSON.parse(marked) })[""];
}

function unmark(holder: Record<string, unknown>): Record<string, unknown> {
  for (const key in holder) {
    const value = holder[key];
    if (typeof value === "string") {
      if (value.startsWith(mark)) {
        const source = value.slice(mark.length);
        holder[key] = exact(key, Number(source), source);
      }
    } else if (typeof value === "number") {
      if (bigintKeys.has(key)) holder[key] = exact(key, value, "");
    } else if (value !== null && typeof value === "object") {
      unmark(value as Record<string, unknown>);
    }
  }
  return holder;
}
