# Generated from payload.go by go generate ./schema: do not edit.
"""The notifications of an exchange as dataclasses.

Floats are prices, volumes, amounts and ratios; NaN is null on the wire. Times are
Unix nanoseconds, as int.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, TypeAlias


class Channel(StrEnum):
    """What a session subscribes to: each type of notification belongs to one."""

    TRADE = "trade"
    ACCOUNT = "account"
    POSITION = "position"
    RISK = "risk"
    SYSTEM = "system"


class MessageType(StrEnum):
    """What happened, and thereby which payload a notification has."""

    ORDER_ACCEPTED = "order_accepted"
    ORDER_REJECTED = "order_rejected"
    ORDER_PARTIALLY_FILLED = "order_partially_filled"
    ORDER_FILLED = "order_filled"
    ORDER_CANCELED = "order_canceled"
    ORDER_EXPIRED = "order_expired"
    TRADE_EXECUTED = "trade_executed"
    TRADE_CANCELED = "trade_canceled"
    ACCOUNT_OPEN = "account_open"
    ACCOUNT_UPDATE = "account_update"
    POSITION_UPDATE = "position_update"
    POSITION_PROFIT = "position_profit"
    RISK_ALERT = "risk_alert"
    MARGIN_CALL = "margin_call"
    POSITION_LIMIT = "position_limit"
    SYSTEM_NOTICE = "system_notice"
    TRADING_SESSION_START = "trading_session_start"
    TRADING_SESSION_END = "trading_session_end"
    MARKET_HALT = "market_halt"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderAccepted:
    """The exchange took an order."""

    TYPE: ClassVar[MessageType] = MessageType.ORDER_ACCEPTED
    CHANNEL: ClassVar[Channel] = Channel.TRADE

    order_id: str = ""
    exchange_order_id: str = ""
    instrument_id: str = ""
    direction: str = ""
    offset: str = ""
    price: float = 0.0
    volume: float = 0.0
    order_type: str = ""
    frozen_margin: float = 0.0
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRejected:
    """The exchange refused an order."""

    TYPE: ClassVar[MessageType] = MessageType.ORDER_REJECTED
    CHANNEL: ClassVar[Channel] = Channel.TRADE

    order_id: str = ""
    instrument_id: str = ""
    reason: str = ""
    error_code: int = 0
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderPartiallyFilled:
    """A part of an order was filled and the rest stands."""

    TYPE: ClassVar[MessageType] = MessageType.ORDER_PARTIALLY_FILLED
    CHANNEL: ClassVar[Channel] = Channel.TRADE

    order_id: str = ""
    exchange_order_id: str = ""
    instrument_id: str = ""
    filled_volume: float = 0.0
    remaining_volume: float = 0.0
    average_price: float = 0.0
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderFilled:
    """An order was filled to the end."""

    TYPE: ClassVar[MessageType] = MessageType.ORDER_FILLED
    CHANNEL: ClassVar[Channel] = Channel.TRADE

    order_id: str = ""
    exchange_order_id: str = ""
    instrument_id: str = ""
    filled_volume: float = 0.0
    average_price: float = 0.0
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderCanceled:
    """What was left of an order was canceled."""

    TYPE: ClassVar[MessageType] = MessageType.ORDER_CANCELED
    CHANNEL: ClassVar[Channel] = Channel.TRADE

    order_id: str = ""
    exchange_order_id: str = ""
    instrument_id: str = ""
    reason: str = ""
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderExpired:
    """The time of an order ran out."""

    TYPE: ClassVar[MessageType] = MessageType.ORDER_EXPIRED
    CHANNEL: ClassVar[Channel] = Channel.TRADE

    order_id: str = ""
    exchange_order_id: str = ""
    instrument_id: str = ""
    reason: str = ""
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeExecuted:
    """An execution, with its price and commission."""

    TYPE: ClassVar[MessageType] = MessageType.TRADE_EXECUTED
    CHANNEL: ClassVar[Channel] = Channel.TRADE

    trade_id: str = ""
    order_id: str = ""
    exchange_order_id: str = ""
    instrument_id: str = ""
    direction: str = ""
    offset: str = ""
    price: float = 0.0
    volume: float = 0.0
    commission: float = 0.0
    fill_type: str = ""
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeCanceled:
    """An execution was taken back."""

    TYPE: ClassVar[MessageType] = MessageType.TRADE_CANCELED
    CHANNEL: ClassVar[Channel] = Channel.TRADE

    trade_id: str = ""
    order_id: str = ""
    exchange_order_id: str = ""
    instrument_id: str = ""
    reason: str = ""
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountOpen:
    """An account was opened."""

    TYPE: ClassVar[MessageType] = MessageType.ACCOUNT_OPEN
    CHANNEL: ClassVar[Channel] = Channel.ACCOUNT

    account_id: str = ""
    user_id: str = ""
    account_name: str = ""
    init_cash: float = 0.0
    account_type: int = 0
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountUpdate:
    """The balance or margin of an account changed."""

    TYPE: ClassVar[MessageType] = MessageType.ACCOUNT_UPDATE
    CHANNEL: ClassVar[Channel] = Channel.ACCOUNT

    user_id: str = ""
    balance: float = 0.0
    available: float = 0.0
    frozen: float = 0.0
    margin: float = 0.0
    position_profit: float = 0.0
    close_profit: float = 0.0
    risk_ratio: float = 0.0
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionUpdate:
    """The volume or cost of a position changed."""

    TYPE: ClassVar[MessageType] = MessageType.POSITION_UPDATE
    CHANNEL: ClassVar[Channel] = Channel.POSITION

    user_id: str = ""
    instrument_id: str = ""
    volume_long: float = 0.0
    volume_short: float = 0.0
    cost_long: float = 0.0
    cost_short: float = 0.0
    profit_long: float = 0.0
    profit_short: float = 0.0
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionProfit:
    """A position was marked to a settlement price."""

    TYPE: ClassVar[MessageType] = MessageType.POSITION_PROFIT
    CHANNEL: ClassVar[Channel] = Channel.POSITION

    user_id: str = ""
    instrument_id: str = ""
    position_profit: float = 0.0
    settlement_price: float = 0.0
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskAlert:
    """A risk ratio crossed a threshold."""

    TYPE: ClassVar[MessageType] = MessageType.RISK_ALERT
    CHANNEL: ClassVar[Channel] = Channel.RISK

    user_id: str = ""
    alert_type: str = ""
    severity: str = ""
    message: str = ""
    risk_ratio: float = 0.0
    suggestion: str = ""
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginCall:
    """Margin must be paid in by a deadline."""

    TYPE: ClassVar[MessageType] = MessageType.MARGIN_CALL
    CHANNEL: ClassVar[Channel] = Channel.RISK

    user_id: str = ""
    current_margin: float = 0.0
    required_margin: float = 0.0
    deadline: int = 0  # Unix nanoseconds
    message: str = ""
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionLimit:
    """A position reached its limit."""

    TYPE: ClassVar[MessageType] = MessageType.POSITION_LIMIT
    CHANNEL: ClassVar[Channel] = Channel.RISK

    user_id: str = ""
    instrument_id: str = ""
    current_volume: float = 0.0
    limit_volume: float = 0.0
    message: str = ""
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemNotice:
    """An announcement of the exchange."""

    TYPE: ClassVar[MessageType] = MessageType.SYSTEM_NOTICE
    CHANNEL: ClassVar[Channel] = Channel.SYSTEM

    title: str = ""
    content: str = ""
    level: str = ""
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class TradingSessionStart:
    """A trading session opened."""

    TYPE: ClassVar[MessageType] = MessageType.TRADING_SESSION_START
    CHANNEL: ClassVar[Channel] = Channel.SYSTEM

    session_id: str = ""
    trading_day: str = ""
    message: str = ""
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class TradingSessionEnd:
    """A trading session closed."""

    TYPE: ClassVar[MessageType] = MessageType.TRADING_SESSION_END
    CHANNEL: ClassVar[Channel] = Channel.SYSTEM

    session_id: str = ""
    trading_day: str = ""
    message: str = ""
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketHalt:
    """Trading in an instrument stopped."""

    TYPE: ClassVar[MessageType] = MessageType.MARKET_HALT
    CHANNEL: ClassVar[Channel] = Channel.SYSTEM

    instrument_id: str = ""
    reason: str = ""
    resume_at: int = 0  # Unix nanoseconds
    timestamp: int = 0  # Unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownPayload:
    """The payload of a type that is newer than this file."""

    type: str
    members: Mapping[str, object] = field(default_factory=dict, hash=False)


Payload: TypeAlias = (
    OrderAccepted
    | OrderRejected
    | OrderPartiallyFilled
    | OrderFilled
    | OrderCanceled
    | OrderExpired
    | TradeExecuted
    | TradeCanceled
    | AccountOpen
    | AccountUpdate
    | PositionUpdate
    | PositionProfit
    | RiskAlert
    | MarginCall
    | PositionLimit
    | SystemNotice
    | TradingSessionStart
    | TradingSessionEnd
    | MarketHalt
    | UnknownPayload
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """What an exchange tells a user: match on the payload."""

    message_id: str  # Unique: who gets a notification twice knows it by this
    message_type: str  # What happened, and thereby which payload this is
    user_id: str  # Whose notification it is; "*" for everybody, which only those of channel system may be
    priority: int  # The lane, 0 to 3: 0 overtakes all others
    timestamp: int  # Unix nanoseconds. When it happened
    source: str  # The service that says so, such as "MatchingEngine"
    payload: Payload  # The details
    raw: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)  # all that came, unknown keys too

    @property
    def channel(self) -> Channel | None:
        """The channel of its type; None if the type is unknown here."""
        payload = self.payload
        return None if isinstance(payload, UnknownPayload) else payload.CHANNEL


def notification(value: object) -> Notification:
    """Makes a Notification of what json.loads returned for one.

    Unknown keys and types are no error: they are in raw and UnknownPayload. A key
    that is missing is zero, and null for a float is NaN. Raises ValueError, naming
    the key, for a value of the wrong kind. The value is kept as raw, not copied.
    """
    o = _Object(value)
    return Notification(
        message_id=o.string("message_id"),
        message_type=o.string("message_type"),
        user_id=o.string("user_id"),
        priority=o.integer("priority"),
        timestamp=o.integer("timestamp"),
        source=o.string("source"),
        payload=_payload(o),
        raw=o.members,
    )


def _payload(o: _Object) -> Payload:
    kind, value = o.string("message_type"), o.members.get("payload", {})
    if read := _READERS.get(kind):
        return read(_Object(value))
    return UnknownPayload(type=kind, members=value if isinstance(value, Mapping) else {})


class _Object:
    """A JSON object whose values are read by the kind that they should have."""

    __slots__ = ("members",)

    def __init__(self, value: object) -> None:
        if not isinstance(value, Mapping):
            raise ValueError(f"a notification and its payload are objects, not {type(value).__name__}")
        self.members: Mapping[str, object] = value

    def string(self, key: str) -> str:
        value = self.members.get(key, "")
        if isinstance(value, str):
            return value
        raise _wrong(key, value)

    def number(self, key: str) -> float:
        value = self.members.get(key, 0.0)
        if value is None:
            return math.nan
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            with suppress(OverflowError):  # an integer beyond every double
                return float(value)
        raise _wrong(key, value)

    def integer(self, key: str) -> int:
        value = self.members.get(key, 0)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise _wrong(key, value)


def _wrong(key: str, value: object) -> ValueError:
    return ValueError(f"{key} is a {type(value).__name__}")


def _order_accepted(p: _Object) -> OrderAccepted:
    return OrderAccepted(
        order_id=p.string("order_id"),
        exchange_order_id=p.string("exchange_order_id"),
        instrument_id=p.string("instrument_id"),
        direction=p.string("direction"),
        offset=p.string("offset"),
        price=p.number("price"),
        volume=p.number("volume"),
        order_type=p.string("order_type"),
        frozen_margin=p.number("frozen_margin"),
        timestamp=p.integer("timestamp"),
    )


def _order_rejected(p: _Object) -> OrderRejected:
    return OrderRejected(
        order_id=p.string("order_id"),
        instrument_id=p.string("instrument_id"),
        reason=p.string("reason"),
        error_code=p.integer("error_code"),
        timestamp=p.integer("timestamp"),
    )


def _order_partially_filled(p: _Object) -> OrderPartiallyFilled:
    return OrderPartiallyFilled(
        order_id=p.string("order_id"),
        exchange_order_id=p.string("exchange_order_id"),
        instrument_id=p.string("instrument_id"),
        filled_volume=p.number("filled_volume"),
        remaining_volume=p.number("remaining_volume"),
        average_price=p.number("average_price"),
        timestamp=p.integer("timestamp"),
    )


def _order_filled(p: _Object) -> OrderFilled:
    return OrderFilled(
        order_id=p.string("order_id"),
        exchange_order_id=p.string("exchange_order_id"),
        instrument_id=p.string("instrument_id"),
        filled_volume=p.number("filled_volume"),
        average_price=p.number("average_price"),
        timestamp=p.integer("timestamp"),
    )


def _order_canceled(p: _Object) -> OrderCanceled:
    return OrderCanceled(
        order_id=p.string("order_id"),
        exchange_order_id=p.string("exchange_order_id"),
        instrument_id=p.string("instrument_id"),
        reason=p.string("reason"),
        timestamp=p.integer("timestamp"),
    )


def _order_expired(p: _Object) -> OrderExpired:
    return OrderExpired(
        order_id=p.string("order_id"),
        exchange_order_id=p.string("exchange_order_id"),
        instrument_id=p.string("instrument_id"),
        reason=p.string("reason"),
        timestamp=p.integer("timestamp"),
    )


def _trade_executed(p: _Object) -> TradeExecuted:
    return TradeExecuted(
        trade_id=p.string("trade_id"),
        order_id=p.string("order_id"),
        exchange_order_id=p.string("exchange_order_id"),
        instrument_id=p.string("instrument_id"),
        direction=p.string("direction"),
        offset=p.string("offset"),
        price=p.number("price"),
        volume=p.number("volume"),
        commission=p.number("commission"),
        fill_type=p.string("fill_type"),
        timestamp=p.integer("timestamp"),
    )


def _trade_canceled(p: _Object) -> TradeCanceled:
    return TradeCanceled(
        trade_id=p.string("trade_id"),
        order_id=p.string("order_id"),
        exchange_order_id=p.string("exchange_order_id"),
        instrument_id=p.string("instrument_id"),
        reason=p.string("reason"),
        timestamp=p.integer("timestamp"),
    )


def _account_open(p: _Object) -> AccountOpen:
    return AccountOpen(
        account_id=p.string("account_id"),
        user_id=p.string("user_id"),
        account_name=p.string("account_name"),
        init_cash=p.number("init_cash"),
        account_type=p.integer("account_type"),
        timestamp=p.integer("timestamp"),
    )


def _account_update(p: _Object) -> AccountUpdate:
    return AccountUpdate(
        user_id=p.string("user_id"),
        balance=p.number("balance"),
        available=p.number("available"),
        frozen=p.number("frozen"),
        margin=p.number("margin"),
        position_profit=p.number("position_profit"),
        close_profit=p.number("close_profit"),
        risk_ratio=p.number("risk_ratio"),
        timestamp=p.integer("timestamp"),
    )


def _position_update(p: _Object) -> PositionUpdate:
    return PositionUpdate(
        user_id=p.string("user_id"),
        instrument_id=p.string("instrument_id"),
        volume_long=p.number("volume_long"),
        volume_short=p.number("volume_short"),
        cost_long=p.number("cost_long"),
        cost_short=p.number("cost_short"),
        profit_long=p.number("profit_long"),
        profit_short=p.number("profit_short"),
        timestamp=p.integer("timestamp"),
    )


def _position_profit(p: _Object) -> PositionProfit:
    return PositionProfit(
        user_id=p.string("user_id"),
        instrument_id=p.string("instrument_id"),
        position_profit=p.number("position_profit"),
        settlement_price=p.number("settlement_price"),
        timestamp=p.integer("timestamp"),
    )


def _risk_alert(p: _Object) -> RiskAlert:
    return RiskAlert(
        user_id=p.string("user_id"),
        alert_type=p.string("alert_type"),
        severity=p.string("severity"),
        message=p.string("message"),
        risk_ratio=p.number("risk_ratio"),
        suggestion=p.string("suggestion"),
        timestamp=p.integer("timestamp"),
    )


def _margin_call(p: _Object) -> MarginCall:
    return MarginCall(
        user_id=p.string("user_id"),
        current_margin=p.number("current_margin"),
        required_margin=p.number("required_margin"),
        deadline=p.integer("deadline"),
        message=p.string("message"),
        timestamp=p.integer("timestamp"),
    )


def _position_limit(p: _Object) -> PositionLimit:
    return PositionLimit(
        user_id=p.string("user_id"),
        instrument_id=p.string("instrument_id"),
        current_volume=p.number("current_volume"),
        limit_volume=p.number("limit_volume"),
        message=p.string("message"),
        timestamp=p.integer("timestamp"),
    )


def _system_notice(p: _Object) -> SystemNotice:
    return SystemNotice(
        title=p.string("title"),
        content=p.string("content"),
        level=p.string("level"),
        timestamp=p.integer("timestamp"),
    )


def _trading_session_start(p: _Object) -> TradingSessionStart:
    return TradingSessionStart(
        session_id=p.string("session_id"),
        trading_day=p.string("trading_day"),
        message=p.string("message"),
        timestamp=p.integer("timestamp"),
    )


def _trading_session_end(p: _Object) -> TradingSessionEnd:
    return TradingSessionEnd(
        session_id=p.string("session_id"),
        trading_day=p.string("trading_day"),
        message=p.string("message"),
        timestamp=p.integer("timestamp"),
    )


def _market_halt(p: _Object) -> MarketHalt:
    return MarketHalt(
        instrument_id=p.string("instrument_id"),
        reason=p.string("reason"),
        resume_at=p.integer("resume_at"),
        timestamp=p.integer("timestamp"),
    )


_READERS: Mapping[str, Callable[[_Object], Payload]] = {
    "order_accepted": _order_accepted,
    "order_rejected": _order_rejected,
    "order_partially_filled": _order_partially_filled,
    "order_filled": _order_filled,
    "order_canceled": _order_canceled,
    "order_expired": _order_expired,
    "trade_executed": _trade_executed,
    "trade_canceled": _trade_canceled,
    "account_open": _account_open,
    "account_update": _account_update,
    "position_update": _position_update,
    "position_profit": _position_profit,
    "risk_alert": _risk_alert,
    "margin_call": _margin_call,
    "position_limit": _position_limit,
    "system_notice": _system_notice,
    "trading_session_start": _trading_session_start,
    "trading_session_end": _trading_session_end,
    "market_halt": _market_halt,
}
