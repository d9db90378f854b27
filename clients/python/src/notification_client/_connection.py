"""One connection, from its handshake to its end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any

import websockets.exceptions
import websockets.version
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from ._protocol import (
    SUBPROTOCOL,
    Answer,
    Batch,
    Expiring,
    Frame,
    Heartbeat,
    ProtocolError,
    Verdict,
    Welcome,
    code_of_status,
    parse,
    verdict,
    verdict_of_status,
)
from ._state import Reason

OPEN_TIMEOUT = 20.0  # seconds, for the handshake and the welcome together
CLOSE_TIMEOUT = 2.0  # seconds, for the closing handshake
MOMENT = 1.0  # seconds that a timer may be late for reasons of no account
MAX_HELD = 10_000  # notifications that may wait for the program
MAX_SIZE = 64 << 20  # bytes of a frame; one of 2 MB is nothing unusual after a long absence

_log = logging.getLogger("notification_client")

# The library logs every header and frame at Debug, so tickets and tokens too.
_silent = logging.getLogger("notification_client.websockets")
_silent.setLevel(logging.WARNING)

# The library has had two APIs of asyncio, for a while both at once. No type of
# theirs is in all versions.
_ProxyError: Any = getattr(websockets.exceptions, "ProxyError", ())
_connect_since_14: Any = None
_connect_until_13: Any = None
if int(websockets.version.version.split(".")[0]) >= 14:
    _connect_since_14 = importlib.import_module("websockets.asyncio.client").connect
else:
    _connect_until_13 = importlib.import_module("websockets.legacy.client").connect


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a connection ended, or did not come about."""

    reason: Reason
    code: int
    verdict: Verdict = Verdict.RETRY
    error: Exception | None = None  # which a callback raised


class Lost(Exception):
    def __init__(self, loss: Loss) -> None:
        super().__init__(loss)
        self.loss = loss


NETWORK = Loss("network", 1006)


class Connection:
    """A connection that has been welcomed.

    A task of its own reads, also while the program is busy: pings are answered
    and the frames wait here, in their order. Over MAX_HELD it reads no more until
    the program has taken some, so that the server feels it; but during a snapshot,
    which may take any time, that is the end of the connection.
    """

    def __init__(self, ws: Any, factor: float, on_expiring: Callable[[Connection, float], None]) -> None:
        self.welcome: Welcome
        self.welcomed = 0.0  # when, in the time of the loop
        self.loss: Loss | None = None  # set once, when nothing more arrives
        self._ws = ws
        self._factor = factor
        self._on_expiring = on_expiring
        self._silence: float | None = None  # seconds; open has a deadline of its own
        self._frames: deque[Frame] = deque()
        self._held = 0  # notifications in frames
        self._holding = False  # a snapshot is being loaded
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._asked: dict[object, asyncio.Future[Answer | None]] = {}
        self._last_id = 0
        self._reader = asyncio.create_task(self._read(), name="notification_client reader")

    @classmethod
    async def open(
        cls,
        url: str,
        token: str,
        ssl: SSLContext | None,
        factor: float,
        on_expiring: Callable[[Connection, float], None],
    ) -> Connection:
        """Connects, and returns when the welcome is there. Raises Lost."""
        deadline = asyncio.get_running_loop().time() + OPEN_TIMEOUT
        try:
            async with asyncio.timeout_at(deadline):
                ws = await _connect(url, token, ssl)
        except InvalidHandshake as error:
            raise Lost(_refusal(error)) from None
        except (OSError, EOFError):  # TimeoutError is an OSError
            raise Lost(NETWORK) from None
        connection = cls(ws, factor, on_expiring)
        try:
            if ws.subprotocol != SUBPROTOCOL:
                raise Lost(Loss("protocol", 0))
            async with asyncio.timeout_at(deadline):
                first = await connection.next()
            if not isinstance(first, Welcome):
                raise Lost(Loss("protocol", 0))
            return connection
        except TimeoutError:
            await connection.abort()
            raise Lost(Loss("watchdog", 0)) from None
        except BaseException:
            await connection.abort()
            raise

    async def next(self) -> Frame:
        """Returns the next frame, but for those that are dealt with on arrival.
        Raises Lost behind the last one."""
        while not self._frames:
            if self.loss is not None:
                raise Lost(self.loss)
            self._arrived.clear()
            await self._arrived.wait()
        frame = self._frames.popleft()
        self._held -= _weight(frame)
        self._room.set()
        return frame

    def check_not_lost(self) -> None:
        """Raises Lost if the connection is, and not only given up for another one."""
        if self.loss is not None and self.loss.reason != "credentials":
            raise Lost(self.loss)

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """While it lasts, frames are held, and too many are the end."""
        self._holding = True
        self._room.set()  # the reader looks again
        try:
            yield
        finally:
            self._holding = False

    async def command(self, action: str, **members: object) -> Answer | None:
        """Says a command and returns the answer; None if the connection ended before."""
        self._last_id = this = self._last_id + 1
        answer: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._asked[this] = answer
        self._room.set()  # the reader looks again
        try:
            if self.loss is not None:
                return None
            await self._ws.send(json.dumps({"action": action, "id": this, **members}))
            return await answer
        except ConnectionClosed:
            return None
        finally:
            del self._asked[this]

    def end(self, loss: Loss) -> None:
        """Ends the connection, for a reason that is not the server's."""
        self._end(loss)
        self._reader.cancel()

    async def close(self) -> None:
        """Closes it with a handshake, if somebody is there for one, and returns when
        nothing of it is left."""
        self.end(Loss("closed", 1000))
        if self.loss is None or self.loss.reason not in ("closed", "credentials"):
            return await self.abort()
        # In a task of its own, because in some versions of the library close takes
        # a cancellation for an answer, and waits on.
        closing = asyncio.create_task(self._ws.close(), name="notification_client close")
        try:
            await asyncio.wait([closing], timeout=CLOSE_TIMEOUT)
        finally:
            await self.abort()
            await asyncio.gather(closing, return_exceptions=True)

    async def abort(self) -> None:
        """Cuts it, and returns when nothing of it is left."""
        self.end(Loss("closed", 1000))
        self._cut()
        await asyncio.wait([self._reader])
        await self._ws.wait_closed()

    def _cut(self) -> None:
        # Early versions of 3.11 cannot abort a transport of TLS that was closed
        # twice, which the library may have done.
        with contextlib.suppress(AttributeError):
            self._ws.transport.abort()

    async def _read(self) -> None:
        """Reads until the end. It owns the frames' arrival; abort waits for it."""
        try:
            self._end(await self._read_until_wrong())
        except ConnectionClosed as closed:
            return self._end(_ending(closed))
        except TimeoutError:
            self._end(Loss("watchdog", 0))
        except ProtocolError as error:
            _log.warning("the server's frame is wrong: %s", error)
            self._end(Loss("protocol", 0))
        except Exception:  # a bug, here or in the library: the program must not wait for ever
            _log.exception("reading failed")
            self._end(Loss("protocol", 0))
        # Whatever the program is doing, the server need not wait for it.
        self._cut()

    async def _read_until_wrong(self) -> Loss:
        while True:
            message = await self._hear()
            frame = parse(message)
            if frame is not None:
                self._take(frame)
            while self._held > MAX_HELD:
                if self._holding:
                    return Loss("overflow", 0)
                if self._asked:
                    break  # for an answer, perhaps in the callback that ought to make room
                self._room.clear()
                await self._room.wait()

    async def _hear(self) -> Any:
        """Returns what the server says next. Raises TimeoutError if it is silent."""
        if self._silence is None:
            return await self._ws.recv()
        loop = asyncio.get_running_loop()
        due = loop.time() + self._silence
        try:
            async with asyncio.timeout_at(due):
                return await self._ws.recv()
        except TimeoutError:
            if loop.time() - due < MOMENT:
                raise
        # It was this program who slept, so what came meanwhile may not have been read.
        async with asyncio.timeout(MOMENT):
            return await self._ws.recv()

    def _take(self, frame: Frame) -> None:
        match frame:
            case Answer():
                asked = self._asked.get(frame.id) if isinstance(frame.id, int) else None
                if asked is not None and not asked.done():
                    asked.set_result(frame)
                return
            case Expiring():
                return self._on_expiring(self, frame.left)
            case Welcome():
                self.welcome = frame
                self.welcomed = asyncio.get_running_loop().time()
                self._silence = self._factor * frame.heartbeat
            case Heartbeat() if self._frames and isinstance(self._frames[-1], Heartbeat):
                self._frames.pop()  # it is older
        self._frames.append(frame)
        self._held += _weight(frame)
        self._arrived.set()

    def _end(self, loss: Loss) -> None:
        self.loss = self.loss or loss
        self._arrived.set()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_result(None)


def _weight(frame: Frame) -> int:
    return max(1, len(frame.notifications)) if isinstance(frame, Batch) else 0


def _ending(closed: ConnectionClosed) -> Loss:
    if closed.rcvd is not None:
        return Loss("server", closed.rcvd.code, verdict(closed.rcvd.code))
    if closed.sent is not None:
        return Loss("protocol", 0)  # the library found a frame that is wrong
    return NETWORK


def _refusal(error: InvalidHandshake) -> Loss:
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
    else:
        status = getattr(error, "status_code", 0)  # of the library's versions up to 13
    if status:
        return Loss("handshake", code_of_status(status), verdict_of_status(status))
    if isinstance(error, (InvalidMessage, _ProxyError)):
        return NETWORK  # it ended before the answer did; or did not get as far as the server
    if isinstance(error, Redirected):
        return Loss("handshake", 0)
    return Loss("protocol", 0)


async def _connect(url: str, token: str, ssl: SSLContext | None) -> Any:
    """Opens a WebSocket, with whichever API the library has."""
    headers = {"Authorization": "Bearer " + token} if token else {}
    options: dict[str, Any] = {
        "subprotocols": [SUBPROTOCOL],
        "compression": None,  # the server has none
        "open_timeout": None,  # the caller has one
        "ping_interval": None,  # the heartbeats tell more: a ping is answered by a dead program
        "close_timeout": CLOSE_TIMEOUT,
        "max_size": MAX_SIZE,
        "logger": _silent,
    }
    if ssl is not None:
        options["ssl"] = ssl
    # A redirect is a refusal, as in a browser: what stands in the headers and in
    # the query is for nobody else.
    if _connect_since_14 is not None:
        attempt = _connect_since_14(url, additional_headers=headers, **options)
        attempt.process_redirect = lambda error: error
    else:
        attempt = _connect_until_13(url, extra_headers=headers, **options)
        attempt.handle_redirect = _refuse_redirect
    return await attempt


class Redirected(InvalidHandshake):
    """The status was one of a redirect."""


def _refuse_redirect(url: str) -> None:
    raise Redirected
