"""What the program and the client tell each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Why: TypeAlias = Literal["start", "expiring", "refused"]
SnapshotReason: TypeAlias = Literal["start", "cursor_gone", "gap"]
Reason: TypeAlias = Literal[
    "",
    "closed",  # by the program
    "network",
    "watchdog",  # nothing was heard, not even a heartbeat
    "overflow",  # too much came during a snapshot
    "server",  # it closed: the code tells why
    "handshake",  # an HTTP status: the code is the close code that means the same, or 0
    "credentials",  # they expire; or their callback raised
    "handler",  # a callback raised
    "protocol",  # the server said what it should not
]


@dataclass(frozen=True, slots=True)
class State:
    """Where a client stands.

    connecting: from an attempt to its welcome. replaying: what was missed is being
    handed over. live: what comes is new. waiting: until the next attempt. stopped:
    it is over.
    """

    name: Literal["connecting", "replaying", "live", "waiting", "stopped"]
    reason: Reason = ""  # of waiting and stopped
    code: int = 0  # the close code of waiting and stopped; 0: there is none
    retry_in: float = 0.0  # seconds, of waiting


@dataclass(frozen=True, slots=True)
class Ticket:
    """Credentials for one attempt, of a short life: they stand in the URL."""

    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token: it goes into the Authorization header, never into a URL.

    Raises ValueError if value is empty or not of printable ASCII.
    """

    value: str = field(repr=False)

    def __post_init__(self) -> None:
        # Anything else would end the header. The value is not quoted: errors are
        # logged.
        if not self.value or not self.value.isascii() or not self.value.isprintable():
            raise ValueError("value: want printable ASCII, and not empty")


Credentials: TypeAlias = Ticket | Token


class StoppedError(Exception):
    """The server has sent the client away for good.

    reason and code are those of the last state.
    """

    def __init__(self, reason: Reason, code: int) -> None:
        super().__init__(reason, code)
        self.reason = reason
        self.code = code

    def __str__(self) -> str:
        text = _TEXTS.get(self.code, "a bug of the client" if 1002 <= self.code <= 1009 else "refused")
        return f"stopped by the server: {text} ({self.reason}, close code {self.code or 'none'})"


_TEXTS = {
    1000: "it has closed the session",
    4400: "it does not understand the request",
    4401: "it refuses the credentials",
    4403: "it forbids the access",
    4409: "a newer session has taken the place of this one",
}


class CommandError(Exception):
    """The server refused a command, which did nothing; the connection lives on."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
