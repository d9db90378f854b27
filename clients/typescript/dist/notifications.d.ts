/** What a session subscribes to: each type of notification belongs to one. */
export type Channel = "trade" | "account" | "position" | "risk" | "system";
/** The lane: 0 overtakes all others. */
export type Priority = 0 | 1 | 2 | 3;
/** The exchange took an order. */
export interface OrderAccepted {
    /** The same as message_type. */
    type: "order_accepted";
    order_id: string;
    exchange_order_id: string;
    instrument_id: string;
    direction: string;
    offset: string;
    price: number | null;
    volume: number | null;
    order_type: string;
    frozen_margin: number | null;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** The exchange refused an order. */
export interface OrderRejected {
    /** The same as message_type. */
    type: "order_rejected";
    order_id: string;
    instrument_id: string;
    reason: string;
    error_code: number;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** A part of an order was filled and the rest stands. */
export interface OrderPartiallyFilled {
    /** The same as message_type. */
    type: "order_partially_filled";
    order_id: string;
    exchange_order_id: string;
    instrument_id: string;
    filled_volume: number | null;
    remaining_volume: number | null;
    average_price: number | null;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** An order was filled to the end. */
export interface OrderFilled {
    /** The same as message_type. */
    type: "order_filled";
    order_id: string;
    exchange_order_id: string;
    instrument_id: string;
    filled_volume: number | null;
    average_price: number | null;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** What was left of an order was canceled. */
export interface OrderCanceled {
    /** The same as message_type. */
    type: "order_canceled";
    order_id: string;
    exchange_order_id: string;
    instrument_id: string;
    reason: string;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** The time of an order ran out. */
export interface OrderExpired {
    /** The same as message_type. */
    type: "order_expired";
    order_id: string;
    exchange_order_id: string;
    instrument_id: string;
    reason: string;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** An execution, with its price and commission. */
export interface TradeExecuted {
    /** The same as message_type. */
    type: "trade_executed";
    trade_id: string;
    order_id: string;
    exchange_order_id: string;
    instrument_id: string;
    direction: string;
    offset: string;
    price: number | null;
    volume: number | null;
    commission: number | null;
    fill_type: string;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** An execution was taken back. */
export interface TradeCanceled {
    /** The same as message_type. */
    type: "trade_canceled";
    trade_id: string;
    order_id: string;
    exchange_order_id: string;
    instrument_id: string;
    reason: string;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** An account was opened. */
export interface AccountOpen {
    /** The same as message_type. */
    type: "account_open";
    account_id: string;
    user_id: string;
    account_name: string;
    init_cash: number | null;
    account_type: number;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** The balance or margin of an account changed. */
export interface AccountUpdate {
    /** The same as message_type. */
    type: "account_update";
    user_id: string;
    balance: number | null;
    available: number | null;
    frozen: number | null;
    margin: number | null;
    position_profit: number | null;
    close_profit: number | null;
    risk_ratio: number | null;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** The volume or cost of a position changed. */
export interface PositionUpdate {
    /** The same as message_type. */
    type: "position_update";
    user_id: string;
    instrument_id: string;
    volume_long: number | null;
    volume_short: number | null;
    cost_long: number | null;
    cost_short: number | null;
    profit_long: number | null;
    profit_short: number | null;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** A position was marked to a settlement price. */
export interface PositionProfit {
    /** The same as message_type. */
    type: "position_profit";
    user_id: string;
    instrument_id: string;
    position_profit: number | null;
    settlement_price: number | null;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** A risk ratio crossed a threshold. */
export interface RiskAlert {
    /** The same as message_type. */
    type: "risk_alert";
    user_id: string;
    alert_type: string;
    severity: string;
    message: string;
    risk_ratio: number | null;
    suggestion: string;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** Margin must be paid in by a deadline. */
export interface MarginCall {
    /** The same as message_type. */
    type: "margin_call";
    user_id: string;
    current_margin: number | null;
    required_margin: number | null;
    /** Unix nanoseconds. */
    deadline: bigint;
    message: string;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** A position reached its limit. */
export interface PositionLimit {
    /** The same as message_type. */
    type: "position_limit";
    user_id: string;
    instrument_id: string;
    current_volume: number | null;
    limit_volume: number | null;
    message: string;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** An announcement of the exchange. */
export interface SystemNotice {
    /** The same as message_type. */
    type: "system_notice";
    title: string;
    content: string;
    level: string;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** A trading session opened. */
export interface TradingSessionStart {
    /** The same as message_type. */
    type: "trading_session_start";
    session_id: string;
    trading_day: string;
    message: string;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** A trading session closed. */
export interface TradingSessionEnd {
    /** The same as message_type. */
    type: "trading_session_end";
    session_id: string;
    trading_day: string;
    message: string;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** Trading in an instrument stopped. */
export interface MarketHalt {
    /** The same as message_type. */
    type: "market_halt";
    instrument_id: string;
    reason: string;
    /** Unix nanoseconds. */
    resume_at: bigint;
    /** Unix nanoseconds. */
    timestamp: bigint;
}
/** The payload of each type of notification. */
export interface Payloads {
    order_accepted: OrderAccepted;
    order_rejected: OrderRejected;
    order_partially_filled: OrderPartiallyFilled;
    order_filled: OrderFilled;
    order_canceled: OrderCanceled;
    order_expired: OrderExpired;
    trade_executed: TradeExecuted;
    trade_canceled: TradeCanceled;
    account_open: AccountOpen;
    account_update: AccountUpdate;
    position_update: PositionUpdate;
    position_profit: PositionProfit;
    risk_alert: RiskAlert;
    margin_call: MarginCall;
    position_limit: PositionLimit;
    system_notice: SystemNotice;
    trading_session_start: TradingSessionStart;
    trading_session_end: TradingSessionEnd;
    market_halt: MarketHalt;
}
/** What happened. */
export type MessageType = keyof Payloads;
/** What every notification has, whatever its type. A server that is older than
 *  this file may leave out a key that is newer than it: that means zero. A newer
 *  one may send keys that are not here. */
export interface Envelope<T extends string, P> {
    /** Unique: who gets a notification twice knows it by this. */
    message_id: string;
    /** What happened, and thereby which payload this is. */
    message_type: T;
    /** Whose notification it is; "*" for everybody, which only those of channel system may be. */
    user_id: string;
    /** The lane, 0 to 3: 0 overtakes all others. */
    priority: Priority;
    /** Unix nanoseconds. When it happened. */
    timestamp: bigint;
    /** The service that says so, such as "MatchingEngine". */
    source: string;
    /** The details. */
    payload: P;
}
/** A notification of the types that this file knows: a switch over message_type
 *  narrows the payload. */
export type Notification<T extends MessageType = MessageType> = {
    [K in T]: Envelope<K, Payloads[K]>;
}[T];
/** A notification of a type that is newer than this file. */
export type UnknownNotification = Envelope<string, Record<string, unknown>>;
/** Whatever may come. */
export type AnyNotification = Notification | UnknownNotification;
/** The channel of each type. */
export declare const channelOf: Readonly<Record<MessageType, Channel>>;
/** Reports whether a notification is of a type that this file knows. */
export declare function isKnown(n: AnyNotification): n is Notification;
/** The keys, in the envelope or a payload, whose values are int64 on the wire and
 *  bigint here, also where they are small enough for a number. */
export declare const bigintKeys: ReadonlySet<string>;
