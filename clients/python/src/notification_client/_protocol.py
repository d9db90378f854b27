"""The frames of notification.batch.v1, and what close codes and statuses mean."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn, TypeAlias, TypeGuard, TypeVar
from urllib.parse import urlencode, urlsplit, urlunsplit

from .notifications import Notification, UnknownPayload, notification

SUBPROTOCOL = "notification.batch.v1"

T = TypeVar("T")


class ProtocolError(ValueError):
    """The server said what it should not: its bug."""


@dataclass(frozen=True, slots=True)
class Welcome:
    cursor: str
    resumed: bool
    channels: tuple[str, ...]
    heartbeat: float  # seconds
    refresh: bool


@dataclass(frozen=True, slots=True)
class Reset:
    pass


@dataclass(frozen=True, slots=True)
class Live:
    pass


@dataclass(frozen=True, slots=True)
class Heartbeat:
    cursor: str


@dataclass(frozen=True, slots=True)
class Batch:
    """What is handed over at once, in the order of the stream."""

    notifications: tuple[Notification, ...]
    cursor: str  # the place behind it; empty if the server keeps no history
    dropped: int = 0  # so many are missing before it; the snapshot was loaded for them


@dataclass(frozen=True, slots=True)
class Expiring:
    left: float  # seconds


@dataclass(frozen=True, slots=True)
class Answer:
    id: object
    channels: tuple[str, ...] | None
    code: str  # of an error, else empty
    message: str


Frame: TypeAlias = Welcome | Reset | Live | Heartbeat | Batch | Expiring | Answer


def parse(text: str | bytes) -> Frame | None:
    """Returns the frame; None if it is of a kind that is newer than this client."""
    if isinstance(text, bytes):
        raise ProtocolError("a binary message")
    try:
        frame = json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise ProtocolError("JSON that is too deep") from error
    except ValueError as error:
        raise ProtocolError(f"no JSON: {error}") from error
    if not isinstance(frame, dict):
        raise ProtocolError("no JSON object")
    match frame.get("action"):
        case None if "notifications" in frame:
            return _batch(frame)
        case "welcome":
            return Welcome(
                cursor=_get(frame, "cursor", ""),
                resumed=_get(frame, "resumed", False),
                channels=_names(frame.get("channels", [])),
                heartbeat=_seconds(frame, "heartbeat_ms") or 20.0,
                refresh=_get(frame, "refresh", False),
            )
        case "reset":
            return Reset()
        case "live":
            return Live()
        case "heartbeat":
            return Heartbeat(_get(frame, "cursor", ""))
        case "expiring":
            return Expiring(_seconds(frame, "in_ms"))
        case "ok":
            channels = frame.get("channels")
            return Answer(frame.get("id"), None if channels is None else _names(channels), "", "")
        case "error":
            return Answer(frame.get("id"), None, _get(frame, "code", "unknown"), _get(frame, "message", ""))
    return None


def _batch(frame: dict[str, object]) -> Batch:
    values = frame["notifications"]
    if not isinstance(values, list):
        raise ProtocolError("notifications is no list")
    return Batch(
        notifications=tuple(_notification(value) for value in values),
        cursor=_get(frame, "cursor", ""),
        dropped=_get(frame, "dropped", 0),
    )


def _notification(value: object) -> Notification:
    try:
        return notification(value)
    except ValueError as error:
        if not isinstance(value, dict):
            raise ProtocolError(str(error)) from error
    # One whose fields have other kinds than here is one that this client does not
    # know. To refuse it would be to reconnect to it for ever.
    kind = _or(value.get("message_type"), "")
    payload = value.get("payload")
    return Notification(
        message_id=_or(value.get("message_id"), ""),
        message_type=kind,
        user_id=_or(value.get("user_id"), ""),
        priority=_or(value.get("priority"), 0),
        timestamp=_or(value.get("timestamp"), 0),
        source=_or(value.get("source"), ""),
        payload=UnknownPayload(type=kind, members=payload if isinstance(payload, dict) else {}),
        raw=value,
    )


def _or(value: object, default: T) -> T:
    return value if _alike(value, default) else default


def _alike(value: object, other: T) -> TypeGuard[T]:
    """Whether both are of one kind: true and false are no numbers here."""
    return isinstance(value, type(other)) and isinstance(value, bool) == isinstance(other, bool)


def _get(frame: dict[str, object], key: str, default: T) -> T:
    value = frame.get(key, default)
    if not _alike(value, default):
        raise ProtocolError(f"{key} is a {type(value).__name__}")
    return value


def _seconds(frame: dict[str, object], key: str) -> float:
    value = frame.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise ProtocolError(f"{key} is no time")
    return min(value, 1e12) / 1000


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ProtocolError("channels is no list of names")
    return tuple(value)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


class Verdict(Enum):
    """What follows from the end of a connection."""

    RETRY = "back off, reconnect with the cursor"
    REFUSED = "get new credentials, reconnect with the cursor"
    GAP = "drop the cursor, reconnect, load a snapshot"
    STOP = "stop"


def verdict(code: int) -> Verdict:
    """Goes by the ranges, so that a code that is not known here has one too."""
    if code in (1000, 1002, 1003, 1007, 1008, 1009):
        return Verdict.STOP
    if code == 4401:
        return Verdict.REFUSED
    if 4100 <= code <= 4199:
        return Verdict.GAP
    if 4400 <= code <= 4499:
        return Verdict.STOP
    return Verdict.RETRY


def code_of_status(status: int) -> int:
    """The close code that means what the status of a handshake does; 0: none."""
    return {400: 4400, 401: 4401, 403: 4403}.get(status, 0)


def verdict_of_status(status: int) -> Verdict:
    if code := code_of_status(status):
        return verdict(code)
    # 421: the user is at another server, which the next attempt may find.
    if 400 <= status <= 499 and status != 421:
        return Verdict.STOP
    return Verdict.RETRY


def check_url(url: str) -> None:
    """Raises ValueError if url cannot be connected to."""
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname or parts.fragment:
        raise ValueError("url: want ws://host/path or wss://host/path, without a fragment")


def address(url: str, cursor: str, channels: Collection[str] | None, ticket: str) -> str:
    """Returns url with the parameters of an attempt behind the query that it has."""
    said = {}
    if cursor:
        said["cursor"] = cursor
    if channels is not None:
        said["channels"] = ",".join(channels)
    if ticket:
        said["ticket"] = ticket
    parts = urlsplit(url)
    query = "&".join(filter(None, (parts.query, urlencode(said, safe=","))))
    return urlunsplit(parts._replace(path=parts.path or "/", query=query))
