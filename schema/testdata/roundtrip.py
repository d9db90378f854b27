"""Reads notifications, a line of JSON each, through the generated types, and
writes what they hold in the same form."""

import dataclasses
import json
import math
import sys

from notifications import Channel, MessageType, Notification, TradeExecuted, UnknownPayload, notification


def wire(n: Notification) -> str:
    assert not isinstance(n.payload, UnknownPayload), n
    assert n.channel == n.payload.CHANNEL
    assert n.message_type == n.payload.TYPE
    o = {f.name: getattr(n, f.name) for f in dataclasses.fields(n) if f.name != "raw"}
    payload = {k: None if v != v else v for k, v in dataclasses.asdict(n.payload).items()}
    o["payload"] = {"type": n.payload.TYPE} | payload
    return json.dumps(o)


def refused(value: object, key: str) -> None:
    try:
        notification(value)
    except ValueError as e:
        assert key in str(e), e
    else:
        raise AssertionError(f"taken: {value}")


def main() -> None:
    for line in sys.stdin:
        print(wire(notification(json.loads(line))))

    n = notification({"message_type": "order_eaten", "payload": {"by": "dog"}, "more": 1})
    assert n.payload == UnknownPayload(type="order_eaten", members={"by": "dog"}), n
    assert n.channel is None and n.raw["more"] == 1 and n.priority == 0
    assert notification({"message_type": "order_eaten", "payload": None}).payload == UnknownPayload(type="order_eaten")

    value = {"message_type": "trade_executed", "payload": {"price": None, "more": 2}}
    n = notification(value)
    assert isinstance(n.payload, TradeExecuted) and math.isnan(n.payload.price) and n.payload.volume == 0.0
    assert n.raw is value and n.channel is Channel.TRADE and n.message_type is not MessageType.TRADE_EXECUTED
    hash(n)
    try:
        n.priority = 1  # type: ignore[misc]
    except dataclasses.FrozenInstanceError:
        pass
    else:
        raise AssertionError("it is not frozen")

    for key, wrong in {"price": "1", "volume": True, "commission": 10**400, "timestamp": 1.5, "order_id": 7}.items():
        refused({"message_type": "trade_executed", "payload": {key: wrong}}, key)
    refused({"message_type": 1}, "message_type")
    refused({"message_type": "trade_executed", "payload": []}, "list")
    refused([], "list")


main()
