// The rule for numbers, with nothing clever: a parser that goes from character to
// character, for valid JSON, and texts to compare with.
import { bigintKeys } from "../src/notifications.ts";

export function naive(text: string): unknown {
  let at = 0;
  const space = () => { while (" \t\r\n".includes(text[at] ?? "x")) at++; };
  const list = (end: string, item: () => void) => {
    at++;
    for (space(); text[at] !== end; space()) {
      item();
      space();
      if (text[at] === ",") at++;
    }
    at++;
  };
  const string = (): string => {
    const from = at++;
    while (text[at] !== '"') at += text[at] === "\\" ? 2 : 1;
    return JSON.parse(text.slice(from, ++at)) as string;
  };
  const value = (key: string): unknown => {
    space();
    if (text[at] === '"') return string();
    if (text[at] === "[") {
      const all: unknown[] = [];
      list("]", () => all.push(value(String(all.length))));
      return all;
    }
    if (text[at] === "{") {
      const all = {};
      list("}", () => {
        const name = string();
        space();
        at++; // the colon
        Object.defineProperty(all, name, { value: value(name), writable: true, enumerable: true, configurable: true });
      });
      return all;
    }
    const from = at;
    while (at < text.length && !",]} \t\r\n".includes(text[at]!)) at++;
    const word = text.slice(from, at);
    const plain = JSON.parse(word) as unknown;
    if (typeof plain !== "number" || !Number.isInteger(plain)) return plain;
    if (Number.isSafeInteger(plain)) return bigintKeys.has(key) ? BigInt(plain) : plain;
    if (/[.eE]/.test(word)) return plain;
    return bigintKeys.has(key) || String(plain) !== word ? BigInt(word) : plain;
  };
  return value("");
}

/** Returns a function that makes up JSON. The same seed makes up the same. */
export function randomText(seed: number, keys: string[]): () => string {
  const random = () => { // mulberry32
    let t = (seed = (seed + 0x6d2b79f5) | 0);
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  };
  const one = <T>(of: readonly T[]): T => of[random() % of.length]!;
  const space = () => (random() % 8 ? "" : one([" ", "\n", "\t "]));
  const digits = (n: number) => Array.from({ length: n }, (_, i) => (i ? random() % 10 : 1 + (random() % 9))).join("");
  const number = () => one(["", "", "-"]) + one(["0", digits(1 + (random() % 25)), digits(15 + (random() % 5))]) + one(["", "", "", ".5", "e2", "E+3", "e-7", "." + digits(18)]);
  const pieces = ["a", "é", "😀", ":", ",", "{", "}", "[", "]", " ", '\\"', "\\\\", "\\n", "\\u0022", "\\u005c", "\\/", "1700000000000000123", '\\":1700000000000000123,\\"'];
  const string = () => `"${Array.from({ length: random() % 6 }, () => one(pieces)).join("")}"`;
  const value = (depth: number): string => {
    switch (random() % (depth > 3 ? 5 : 8)) {
      case 0: return one(["true", "false", "null"]);
      case 1: return string();
      case 2: case 3: case 4: return number();
      case 5: return "[" + Array.from({ length: random() % 4 }, () => space() + value(depth + 1) + space()).join() + "]";
      default: return "{" + Array.from({ length: random() % 5 }, () =>
        space() + one([string(), ...keys.map((k) => `"${k}"`)]) + space() + ":" + space() + value(depth + 1) + space()).join() + "}";
    }
  };
  return () => space() + value(0) + space();
}
