// What a program does with the types: it must compile, and what is wrong must not.
import { bigintKeys, channelOf, isKnown, type AnyNotification, type Channel, type Notification } from "./notifications.js";

declare const console: { log(line: string): void };

export function read(n: AnyNotification): bigint | string {
  if (!isKnown(n)) {
    const payload: Record<string, unknown> = n.payload;
    return `${n.message_type} ${Object.keys(payload).length}`;
  }
  const channel: Channel = channelOf[n.message_type];
  switch (n.message_type) {
    case "margin_call":
      return n.payload.deadline - n.timestamp;
    case "trade_executed": {
      const price: number | null = n.payload.price;
      return price === null ? "no price" : `${channel} ${price}`;
    }
    default:
      return n.payload.type;
  }
}

// A switch over all types leaves nothing over.
export function exhaustive(n: Notification<"market_halt" | "system_notice">): string {
  switch (n.message_type) {
    case "market_halt":
      return n.payload.instrument_id;
    case "system_notice":
      return n.payload.title;
  }
}

export const urgent = (n: Notification): boolean => n.priority === 0;

// @ts-expect-error: a margin call has no price
export const wrongField = (n: Notification<"margin_call">) => n.payload.price;
// @ts-expect-error: times are no numbers
export const wrongKind = (n: Notification): number => n.timestamp;
// @ts-expect-error: there is no such type
export const wrongType = (n: Notification<"order_eaten">) => n;

console.log(JSON.stringify({ channelOf, bigintKeys: [...bigintKeys] }));
