#!/usr/bin/env python3
"""Reads archives, as ARCHIVE.md describes them, with the standard library alone.

    read(data)           one archive -> a dict
    read_stream(file)    archives one behind the other -> an iterator of dicts

Both raise Corrupt for what is no archive. From the command line:

    read.py FILE...      one archive in each file
    read.py < STREAM     archives one behind the other

prints each as a line of JSON. What JSON cannot hold is an object there: a string
that is not UTF-8 {"hex": its bytes}, a float that is -0, infinite or NaN
{"bits": its 64 bits}, and what is no archive {"check": ..., "corrupt": why}.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from typing import Any, BinaryIO, Iterator, NamedTuple

VERSION = 1
MAX_SIZE = 2 << 20  # bytes of an archive
MAX_TEXT = 1 << 20  # bytes of Source and the payload's strings together
MAX_ID = 256  # bytes of ID, and of UserID
MAX_PRIORITY = 3
ALL_USERS = b"*"
SYSTEM_CODES = range(16, 20)

START = struct.Struct("<3sBI")  # magic, version, size
# Behind the start: the lengths of Source, ID and UserID, Timestamp, type, Priority.
HEADER = struct.Struct("<8xIHHqBB")
FIELD_CODES = {"s": "I", "f": "d", "i": "q", "u32": "I", "u8": "B"}


class Type(NamedTuple):
    """What the table of types says about one code."""

    name: str
    fields: list[list[str]]  # name and kind of each
    layout: struct.Struct


def _type(name: str, fields: str) -> Type:
    pairs = [field.split() for field in fields.split(", ")]
    layout = "<" + "".join(FIELD_CODES[kind] for _, kind in pairs)
    return Type(name, pairs, struct.Struct(layout))


# fmt: off
TYPES: dict[int, Type] = {
    1: _type("order_accepted", "order_id s, exchange_order_id s, instrument_id s, direction s, offset s, price f, volume f, order_type s, frozen_margin f, timestamp i"),
    2: _type("order_rejected", "order_id s, instrument_id s, reason s, error_code u32, timestamp i"),
    3: _type("order_partially_filled", "order_id s, exchange_order_id s, instrument_id s, filled_volume f, remaining_volume f, average_price f, timestamp i"),
    4: _type("order_filled", "order_id s, exchange_order_id s, instrument_id s, filled_volume f, average_price f, timestamp i"),
    5: _type("order_canceled", "order_id s, exchange_order_id s, instrument_id s, reason s, timestamp i"),
    6: _type("order_expired", "order_id s, exchange_order_id s, instrument_id s, reason s, timestamp i"),
    7: _type("trade_executed", "trade_id s, order_id s, exchange_order_id s, instrument_id s, direction s, offset s, price f, volume f, commission f, fill_type s, timestamp i"),
    8: _type("trade_canceled", "trade_id s, order_id s, exchange_order_id s, instrument_id s, reason s, timestamp i"),
    9: _type("account_open", "account_id s, user_id s, account_name s, init_cash f, account_type u8, timestamp i"),
    10: _type("account_update", "user_id s, balance f, available f, frozen f, margin f, position_profit f, close_profit f, risk_ratio f, timestamp i"),
    11: _type("position_update", "user_id s, instrument_id s, volume_long f, volume_short f, cost_long f, cost_short f, profit_long f, profit_short f, timestamp i"),
    12: _type("position_profit", "user_id s, instrument_id s, position_profit f, settlement_price f, timestamp i"),
    13: _type("risk_alert", "user_id s, alert_type s, severity s, message s, risk_ratio f, suggestion s, timestamp i"),
    14: _type("margin_call", "user_id s, current_margin f, required_margin f, deadline i, message s, timestamp i"),
    15: _type("position_limit", "user_id s, instrument_id s, current_volume f, limit_volume f, message s, timestamp i"),
    16: _type("system_notice", "title s, content s, level s, timestamp i"),
    17: _type("trading_session_start", "session_id s, trading_day s, message s, timestamp i"),
    18: _type("trading_session_end", "session_id s, trading_day s, message s, timestamp i"),
    19: _type("market_halt", "instrument_id s, reason s, resume_at i, timestamp i"),
}
# fmt: on


class Corrupt(ValueError):
    """The bytes are no archive. check is the number of the page's check that failed."""

    def __init__(self, check: int, why: str) -> None:
        super().__init__(why)
        self.check = check


def _check_start(start: bytes) -> int:
    """Check the first eight bytes and return the size that they give."""
    magic, version, size = START.unpack(start)
    if magic != b"QXN":
        raise Corrupt(1, f"it begins with {magic!r}")
    if version != VERSION:
        raise Corrupt(2, f"version {version} is unknown")
    if size > MAX_SIZE:
        raise Corrupt(3, f"a size of {size} is over {MAX_SIZE}")
    return int(size)


def read(data: bytes) -> dict[str, Any]:
    """Return the notification of which data is the archive, nothing before or behind it.

    A string that is not UTF-8 has its odd bytes as surrogates: encode it with
    errors="surrogateescape" to have them back.
    """
    if len(data) < HEADER.size:
        raise Corrupt(1, f"{len(data)} bytes are less than a header")
    size = _check_start(data[: START.size])
    if size != len(data):
        raise Corrupt(3, f"{len(data)} bytes where the header says {size}")

    source, id_, user, timestamp, code, priority = HEADER.unpack_from(data)
    if code not in TYPES:
        raise Corrupt(4, f"type {code} is unknown")
    if priority > MAX_PRIORITY:
        raise Corrupt(4, f"priority {priority} is over {MAX_PRIORITY}")
    name, fields, layout = TYPES[code]
    at = HEADER.size + layout.size
    if size < at:
        raise Corrupt(4, f"{size} bytes are less than a {name}")

    values = layout.unpack_from(data, HEADER.size)
    payload = {field: value for (field, _), value in zip(fields, values)}
    strings = [field for field, kind in fields if kind == "s"]
    texts = [source, *(payload[field] for field in strings)]
    if at + id_ + user + sum(texts) != size:
        raise Corrupt(5, f"{size} bytes where the lengths make {at + id_ + user + sum(texts)}")
    if sum(texts) > MAX_TEXT:
        raise Corrupt(6, f"{sum(texts)} bytes of text are over {MAX_TEXT}")
    for what, length in ("ID", id_), ("UserID", user):
        if not 1 <= length <= MAX_ID:
            raise Corrupt(7, f"{what} has {length} bytes")
    if data[at + id_ : at + id_ + user] == ALL_USERS and code not in SYSTEM_CODES:
        raise Corrupt(7, f"UserID is * with a {name}")

    def take(length: int) -> str:
        nonlocal at
        at += length
        return data[at - length : at].decode("utf-8", "surrogateescape")

    head = {"type": name, "id": take(id_), "user_id": take(user), "source": take(source)}
    for field in strings:
        payload[field] = take(payload[field])
    return {**head, "priority": priority, "timestamp": timestamp, "payload": payload}


def read_stream(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Yield what read returns of each archive, up to the end of file.

    It asks for eight bytes, and for more only if they can begin an archive: so it
    never holds more than 2 MiB. file.read(n) must return n bytes, or less at the
    end, as files opened in binary mode do.
    """
    while start := file.read(START.size):
        if len(start) < START.size:
            raise Corrupt(1, f"the stream ends behind {len(start)} bytes of an archive")
        size = _check_start(start)
        yield read(start + file.read(max(0, size - START.size)))


def _json(value: Any) -> Any:
    """Return value as JSON can hold it: what it cannot is an object of hex digits."""
    if isinstance(value, dict):
        return {key: _json(v) for key, v in value.items()}
    if isinstance(value, float) and (not math.isfinite(value) or str(value) == "-0.0"):
        return {"bits": struct.pack(">d", value).hex()}
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return {"hex": value.encode("utf-8", "surrogateescape").hex()}
    return value


def _notifications(path: str) -> Iterator[dict[str, Any]]:
    if path == "-":
        yield from read_stream(sys.stdin.buffer)
    else:
        with open(path, "rb") as file:
            yield read(file.read())


def main(paths: list[str]) -> int:
    status = 0
    for path in paths or ["-"]:
        try:
            for notification in _notifications(path):
                print(json.dumps(_json(notification)), flush=True)
        except Corrupt as err:
            print(json.dumps({"check": err.check, "corrupt": str(err)}), flush=True)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
