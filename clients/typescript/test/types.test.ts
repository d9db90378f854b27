// What the compiler has to say; at run time there is little to see.
import { expect, expectTypeOf, test } from "vitest";
import { WebSocket as WS } from "ws";
import { bigintKeys, isKnown, type AnyNotification, type Channel, type Options, type Payloads, type State } from "../src/notification-client.ts";

type BigintKeys<T> = { [K in keyof T]: T[K] extends bigint ? K : never }[keyof T];
type Written = "timestamp" | "deadline" | "resume_at";

test("every int64 of every payload is read as a bigint", () => {
  expectTypeOf<{ [K in keyof Payloads]: BigintKeys<Payloads[K]> }[keyof Payloads]>().toEqualTypeOf<Written>();
  expect([...bigintKeys].sort()).toEqual(["deadline", "resume_at", "timestamp"] satisfies Written[]);
});

test("the type of a message narrows its payload, and the state what there is to say of it", () => {
  const tell = (n: AnyNotification): string => {
    if (!isKnown(n)) return n.message_type;
    switch (n.message_type) {
      case "margin_call":
        expectTypeOf(n.payload.deadline).toEqualTypeOf<bigint>();
        return n.payload.message;
      case "trade_executed":
        return n.payload.instrument_id;
    }
    return n.payload.type;
  };
  const of = (s: State) => (s.state === "waiting" ? s.retryMs : s.state === "stopped" ? s.cursor : undefined);
  expect(of({ state: "live" })).toBeUndefined();
  expect(tell({ message_type: "order_amended", payload: {} } as never)).toBe("order_amended");
});

test("the WebSockets of browsers and of ws may be given, and callbacks may be async or not", () => {
  const all: Options[] = [
    { url: new URL("wss://exchange"), WebSocket: globalThis.WebSocket, onNotifications() {} },
    {
      url: "/notifications", WebSocket: WS, channels: ["trade"] as const,
      async onNotifications(batch, cursor) { void [batch.length, cursor.length]; },
      credentials: async (why) => (why === "start" ? undefined : { ticket: "t" }),
      snapshot: async (reason: "start" | "cursor_gone" | "gap") => reason,
      cursor: globalThis.sessionStorage?.getItem("cursor"), onCursor: (c) => c.length,
    },
    { url: "/", onNotifications: () => {}, credentials() {}, channels: [] as Channel[] },
    { url: "/", onNotifications: () => {}, credentials: () => ({ token: "t" }) },
    // @ts-expect-error: there is no such channel
    { url: "/", onNotifications: () => {}, channels: ["news"] },
    // @ts-expect-error: somebody has to deal with them
    { url: "/" },
  ];
  expect(all).toHaveLength(6);
});
