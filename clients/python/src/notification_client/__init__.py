"""A client of an exchange's notifications, which reconnects without losing or
repeating one. Begin with Client; README.md shows it. The payloads are in
notification_client.notifications."""

from ._client import Client
from ._protocol import Batch
from ._state import (
    CommandError,
    Credentials,
    Reason,
    SnapshotReason,
    State,
    StoppedError,
    Ticket,
    Token,
    Why,
)
from .notifications import Channel, MessageType, Notification, Payload, UnknownPayload

__all__ = [
    "Batch",
    "Channel",
    "Client",
    "CommandError",
    "Credentials",
    "MessageType",
    "Notification",
    "Payload",
    "Reason",
    "SnapshotReason",
    "State",
    "StoppedError",
    "Ticket",
    "Token",
    "UnknownPayload",
    "Why",
]
