// Both ways to read JSON exactly, against a parser that reads it byte by byte.
import { readFileSync, readdirSync } from "node:fs";
import { setFlagsFromString } from "node:v8";
import { describe, expect, test } from "vitest";
import { parse, parseByMarks, parseWithSource } from "../src/json.ts";
import { bigintKeys } from "../src/notifications.ts";
import { naive, randomText } from "./naive.ts";

const supported = () => {
  let source: string | undefined;
  JSON.parse("1", ((_: string, __: unknown, context?: { source: string }) => (source = context?.source)) as never);
  return source === "1";
};
const hadIt = supported();
// The engine of Node 20 can tell the source, if it is asked to.
if (!hadIt) setFlagsFromString("--harmony-json-parse-with-source");

const ways = { "by marks": parseByMarks, ...(supported() && { "with source": parseWithSource }) };
if (!supported()) console.warn("skipped: JSON.parse with source, which this Node cannot do even with a flag");

test("it is told from the engine which way is taken", () => {
  expect(parse).toBe(hadIt ? parseWithSource : parseByMarks);
});

describe.each(Object.entries(ways))("JSON read %s", (_, read) => {
  test("has every int64 of the notifications as it is written, and the rest as ever", () => {
    const golden = new URL("../../../testdata/golden/", import.meta.url);
    const names = readdirSync(golden).filter((name) => name.endsWith(".json"));
    expect(names.length).toBeGreaterThanOrEqual(19);
    for (const name of names) {
      const text = readFileSync(new URL(name, golden), "utf8");
      const got = read(text);
      expect(got).toEqual(naive(text));
      const again = JSON.stringify(got, (_, v) => (typeof v === "bigint" ? `big ${v}` : v)).replace(/"big (\d+)"/g, "$1");
      expect(again).toBe(text.trim());
    }
  });

  test.each<[string, unknown]>([
    ['{"timestamp":1700000000000000123}', 1700000000000000123n],
    ['{"timestamp":-9223372036854775808}', -9223372036854775808n],
    ['{"timestamp":9223372036854775807}', 9223372036854775807n],
    ['{"timestamp" : 9007199254740993 }', 9007199254740993n],
    ['{"timestamp":9007199254740991}', 9007199254740991n],
    ['{"timestamp":0}', 0n],
    ['{"timestamp":-7}', -7n],
    ['{"timestamp":null}', null],
    ['{"timestamp":"1700000000000000123"}', "1700000000000000123"],
    ['{"timestamp":1.5}', 1.5],
    ['{"resume_at":0}', 0n],
    ['{"unknown":1700000000000000123}', 1700000000000000123n],
    ['{"unknown":9007199254740993}', 9007199254740993n],
    ['{"unknown":[1,9007199254740993]}', [1, 9007199254740993n]],
    ['{"price":50110}', 50110],
    ['{"price":-0}', -0],
    ['{"price":12345678901234567000}', 12345678901234567000], // how a float64 of the server looks
    ['{"price":100000000000000000000}', 1e20],
    ['{"price":1e+21}', 1e21],
    ['{"price":1.7976931348623157e+308}', Number.MAX_VALUE],
    ['{"price":0.12345678901234567}', 0.12345678901234567],
    ['{"price":1234567890123456.7}', 1234567890123456.7],
    ['{"text":":1700000000000000123,"}', ":1700000000000000123,"],
    [String.raw`{"text":"\":1700000000000000123,\""}`, '":1700000000000000123,"'],
    [String.raw`{"text":"\\","timestamp":1700000000000000123}`, "\\"],
    [String.raw`{"text":"\\\"timestamp\":1700000000000000123"}`, '\\"timestamp":1700000000000000123'],
    [String.raw`{"te\"xt":1700000000000000123}`, 1700000000000000123n],
    [String.raw`{"1700000000000000123":"\u0031700000000000000123"}`, "1700000000000000123"],
    ['{"":1700000000000000123}', 1700000000000000123n],
    ['{"ключ":1700000000000000123}', 1700000000000000123n],
    ['[\n\t1700000000000000123\r]', 1700000000000000123n],
  ])("%s is what it says", (text, want) => {
    const got = read(text);
    expect(Object.values(got as object)[0]).toEqual(want);
    expect(got).toEqual(naive(text));
  });

  test.each(["", "{", "01700000000000000123", "1700000000000000123.", "[1700000000000000123,]", '"', '{"a":1700000000000000123', "nul", "-", '"\\"', "1700000000000000123a", "\u00001"])("%j is a SyntaxError", (text) => {
    expect(() => read(text)).toThrow(SyntaxError);
  });

  test("does not touch the prototypes", () => {
    const got = read('{"__proto__":{"timestamp":1700000000000000123},"toString":1}') as Record<string, unknown>;
    expect(Object.getPrototypeOf(got)).toBe(Object.prototype);
    expect(Object.getOwnPropertyDescriptor(got, "__proto__")!.value).toEqual({ timestamp: 1700000000000000123n });
  });

  test("takes strings of megabytes", () => {
    for (const part of ["x", '\\"', "\\\\", "1700000000000000123"]) {
      const text = `{"message":"${part.repeat(2_000_000)}","timestamp":1700000000000000123}`;
      expect((read(text) as { timestamp: bigint }).timestamp).toBe(1700000000000000123n);
    }
  });

  test("is the same as byte by byte, whatever it is", () => {
    const seed = Number(process.env["NOTIFICATION_SEED"] ?? Math.floor(Math.random() * 2 ** 32));
    const next = randomText(seed, [...bigintKeys]);
    for (let i = 0; i < 3_000; i++) {
      const text = next();
      expect(read(text), `NOTIFICATION_SEED=${seed}: ${text}`).toEqual(naive(text));
    }
  });
});
