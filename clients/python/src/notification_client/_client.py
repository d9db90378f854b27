"""The client: it keeps a connection, and hands over what comes through it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from ssl import SSLContext
from types import TracebackType
from typing import NoReturn, Self, TypeVar

from ._connection import Connection, Loss, Lost
from ._handover import Abandoned, Handover
from ._protocol import Batch, Heartbeat, Live, Reset, Verdict, Welcome, address, check_url
from ._state import CommandError, Credentials, Reason, SnapshotReason, State, StoppedError, Ticket, Token, Why
from .notifications import Channel

A = TypeVar("A")
R = TypeVar("R")

_log = logging.getLogger("notification_client")

ANSWER_TIMEOUT = 30.0  # seconds, for that to authenticate, of which the server takes 5


class Client:
    """A client of one user's notifications.

    Either give it on_notifications and await run(), or iterate:

        async with Client(url, snapshot=load) as client:
            async for batch in client:
                ...

    It reconnects by itself, and hands over every notification once and in order,
    as long as the process lives. What is said to the callbacks one after the other
    is never said at the same time, but for credentials("expiring").

    url: ws:// or wss://, with whatever query the server wants.
    credentials: awaited before each attempt, with why it is asked, and when they are
        about to expire. It returns a Ticket, a Token, or None for none. If it raises,
        the client stops.
    on_notifications: awaited with each batch. The cursor moves when it has returned.
        If it raises, the client stops with the cursor before that batch.
    snapshot: awaited with the reason whenever the stream begins anew, before anything
        that follows is handed over: load the state that the notifications change.
        "start": there was no cursor. "cursor_gone": too much was missed. "gap": the
        server lost something. If it raises, the client stops.
    channels: which to receive. None: all; empty: none.
    cursor: where to go on, if an earlier process has stored it.
    on_cursor: awaited with each new cursor, when all before it has been dealt with:
        store it. Empty: there is none any more, forget it.
    on_state: called with each new state. It must not block, and what it raises is
        only logged.
    ssl: for wss://, in place of ssl.create_default_context().
    backoff_base, backoff_max: seconds. The n-th wait, from 0, is uniform in
        [0, min(backoff_max, backoff_base * 2**n)]; a minute of life begins anew.
    watchdog_factor: nothing heard for so many heartbeats means that the connection is
        dead.

    A Client belongs to one event loop and is not safe for threads. It starts none.
    Raises ValueError, which names the parameter.
    """

    _random = staticmethod(random.random)
    # Seconds; tests have other ones.
    _stable = 60.0  # that a connection has lived when the back-off begins anew
    _least_pause = 1.0  # between two questions for credentials that expire

    def __init__(
        self,
        url: str,
        *,
        credentials: Callable[[Why], Awaitable[Credentials | None]] | None = None,
        on_notifications: Callable[[Batch], Awaitable[object]] | None = None,
        snapshot: Callable[[SnapshotReason], Awaitable[object]] | None = None,
        channels: Iterable[str] | None = None,
        cursor: str = "",
        on_cursor: Callable[[str], Awaitable[object]] | None = None,
        on_state: Callable[[State], object] | None = None,
        ssl: SSLContext | None = None,
        backoff_base: float = 0.5,
        backoff_max: float = 30.0,
        watchdog_factor: float = 2.5,
    ) -> None:
        check_url(url)
        if isinstance(channels, str):
            raise ValueError("channels: want a collection of names, not one name")
        if backoff_base < 0 or backoff_max < 0:
            raise ValueError("backoff_base and backoff_max: want seconds from 0")
        if watchdog_factor <= 1:
            raise ValueError("watchdog_factor: want more than 1, or every pause is the end")
        if ssl is not None and not url.startswith("wss:"):
            raise ValueError("ssl: is for wss://")
        self._url = url
        self._credentials = credentials
        self._deliver = on_notifications
        self._snapshot = snapshot
        self._channels = None if channels is None else list(dict.fromkeys(channels))
        self._cursor = cursor
        self._on_cursor = on_cursor
        self._on_state = on_state
        self._ssl = ssl
        self._backoff_base = backoff_base
        self._backoff_max = backoff_max
        self._watchdog_factor = watchdog_factor

        self._state: State | None = None
        self._ran = False
        self._stopping = False
        self._interruptible: asyncio.Timeout | None = None  # what stop() ends at once

        # For the next attempt.
        self._given: tuple[Credentials | None] | None = None  # it need not ask
        self._refused = False  # 4401 was the last word, there was no welcome since
        self._losses = 0  # since the back-off began anew
        self._owed: SnapshotReason | None = None  # a snapshot that was not loaded yet
        self._begun = False  # the program has had a state that notifications build on

        self._connection: Connection | None = None  # from its welcome to its end
        self._settled = asyncio.Event()  # no attempt is under way that has said the channels
        self._settled.set()
        self._refreshing: asyncio.Task[None] | None = None  # owned by _attempt
        self._expires: float | None = None  # seconds that the server has told of last
        self._renewed: float | None = None  # when credentials("expiring") was called last

        self._handover: Handover | None = None  # of an iteration
        self._running: asyncio.Task[None] | None = None  # of async with

    @property
    def cursor(self) -> str:
        """The place up to which everything has been dealt with."""
        return self._cursor

    @property
    def state(self) -> State | None:
        """The last state; None before the first."""
        return self._state

    @property
    def channels(self) -> frozenset[str] | None:
        """What is received, or will be after the next connect. None: all."""
        return None if self._channels is None else frozenset(self._channels)

    async def run(self) -> None:
        """Runs until stop(), and returns when nothing is left: no task, no connection.

        Raises what a callback raised; StoppedError if the server says that to come
        back is of no use; RuntimeError if it ran before, or has no on_notifications.
        It may be cancelled, which cancels the callback that runs.
        """
        if self._ran:
            raise RuntimeError("a Client runs once")
        if self._deliver is None:
            raise RuntimeError("a Client without on_notifications is for: async with, async for")
        self._ran = True
        end: Exception | None = None
        last = State("stopped", "closed", 1000)
        try:
            while True:
                await self._recover(await self._attempt())
        except _Closed:
            pass
        except _Failed as failed:
            last, end = State("stopped", failed.reason), failed.error
        except StoppedError as stopped:
            last, end = State("stopped", stopped.reason, stopped.code), stopped
        except Exception:  # of the library: a proxy that it cannot use, say
            last = State("stopped", "network")
            raise
        finally:
            self._tell(last)
        if end is not None:
            raise end

    def stop(self) -> None:
        """Asks run() to return, and an iteration to end.

        What runs of on_notifications, snapshot and on_cursor is waited for, that of
        credentials is cancelled, and nothing else is handed over. May be called from
        wherever the event loop is: a callback, a signal handler of the loop, before
        run(), twice.
        """
        if self._stopping:
            return
        self._stopping = True
        if self._interruptible is not None:
            self._interruptible.reschedule(0)

    async def subscribe(self, *channels: str) -> None:
        """Adds channels; narrows a client that has all of them to these.

        Returns when it holds for what is published from now on or, without a
        connection, for the next one. Raises CommandError if the server refuses.
        """
        await self._change("subscribe", channels)

    async def unsubscribe(self, *channels: str) -> None:
        """Takes channels away, from all of them too; as subscribe otherwise."""
        await self._change("unsubscribe", channels)

    async def __aenter__(self) -> Self:
        """Runs the client in a task of its own, as long as the block lasts."""
        if self._deliver is None:
            self._handover = Handover()
            self._deliver = self._handover.put
        self._running = asyncio.create_task(self.run(), name="notification_client")
        if self._handover is not None:
            self._running.add_done_callback(self._handover.end)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops the client. Raises what run() does, unless the block has raised."""
        running = self._running
        assert running is not None
        self.stop()
        if self._handover is not None:
            self._handover.abandon()
        if isinstance(error, asyncio.CancelledError):
            running.cancel()
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            running.cancel()
            await asyncio.wait([running])
            raise
        if not running.cancelled() and (failure := running.exception()) and error is None:
            raise failure

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch:
        """The next batch. With that the one before has been dealt with: who leaves
        the loop otherwise, by break or an exception, leaves the cursor before it.
        The iteration ends after stop(), and raises what run() does."""
        if self._handover is None or self._running is None:
            raise RuntimeError("to iterate: async with Client(…) as client, without on_notifications")
        batch = await self._handover.take()
        if batch is not None:
            return batch
        await asyncio.wait([self._running])
        if failure := self._running.exception():
            raise failure
        raise StopAsyncIteration

    async def _attempt(self) -> Loss:
        """Connects, goes on for as long as the connection does, and returns its end."""
        if self._stopping:
            raise _Closed
        self._tell(State("connecting"))
        given, self._given = self._given or (await self._ask_unless_stopped(),), None
        ticket = given[0].value if isinstance(given[0], Ticket) else ""
        token = given[0].value if isinstance(given[0], Token) else ""
        self._settled.clear()
        try:
            async with self._unless_stopped():
                url = address(self._url, self._cursor, self._channels, ticket)
                connection = await Connection.open(url, token, self._ssl, self._watchdog_factor, self._expiring)
            self._connection = connection
        except Lost as lost:
            return lost.loss
        finally:
            self._settled.set()
            if self._connection is None:
                self._stop_refreshing()
        try:
            await self._serve(connection)
        except Lost as lost:
            await connection.close()
            return lost.loss
        except (_Closed, _Failed):
            await connection.close()
            raise
        finally:
            self._connection = None
            self._stop_refreshing()
            await connection.abort()
            if asyncio.get_running_loop().time() - connection.welcomed >= self._stable:
                self._losses = 0

    async def _serve(self, connection: Connection) -> NoReturn:
        """Hands over what arrives, in its order. Raises Lost behind the last of it."""
        self._refused = False
        self._tell(State("replaying"))
        if not connection.welcome.resumed:
            self._owed = "cursor_gone" if self._cursor else self._owed or ("gap" if self._begun else "start")
        elif self._owed != "gap":
            self._owed = None  # the hole was before a cursor that is good after all
        self._begun = self._begun or connection.welcome.resumed
        if self._owed is not None:
            await self._load(connection, self._owed)
        if not connection.welcome.resumed:
            await self._move(connection.welcome.cursor)
        while True:
            async with self._unless_stopped():
                frame = await connection.next()
            match frame:
                case Batch():
                    if frame.dropped:
                        await self._load(connection, "gap")
                    if self._stopping:
                        raise _Closed  # with the cursor before this batch
                    if frame.notifications:
                        assert self._deliver is not None
                        await self._call("handler", self._deliver, frame)
                    await self._move(frame.cursor)
                case Heartbeat():
                    await self._move(frame.cursor)
                case Live():
                    self._tell(State("live"))
                case Reset() if connection.welcome.resumed:
                    await self._load(connection, "cursor_gone")
                case Welcome():
                    raise Lost(Loss("protocol", 0))  # a second one

    async def _load(self, connection: Connection, reason: SnapshotReason) -> None:
        """Has the program load a snapshot. It does not count if the connection is lost
        meanwhile, and with it what follows the snapshot: raises Lost then. A connection
        that is given up for new credentials has lost nothing."""
        self._owed = reason
        if self._snapshot is not None:
            connection.check_not_lost()
            with connection.holding():
                await self._call("handler", self._snapshot, reason)
            connection.check_not_lost()
        elif reason != "start":
            _log.warning("%s: notifications are missing, and there is no snapshot callback", reason)
        self._owed = None
        self._begun = True

    async def _move(self, cursor: str) -> None:
        if cursor == self._cursor:
            return
        self._cursor = cursor
        if self._on_cursor is not None:
            await self._call("handler", self._on_cursor, cursor)

    async def _recover(self, loss: Loss) -> None:
        """Does what follows from the end of a connection, up to the next attempt."""
        if self._stopping:
            raise _Closed
        if loss.error is not None:
            raise _Failed(loss.reason, loss.error)
        match loss.verdict:
            case Verdict.STOP:
                raise StoppedError(loss.reason, loss.code)
            case Verdict.REFUSED:
                if self._refused:
                    raise StoppedError(loss.reason, loss.code)
                self._refused = True
            case Verdict.GAP:
                self._owed = "gap"
                await self._move("")
        losses = self._losses
        if loss.reason == "credentials":  # no failure, and their renewal has a pause of its own
            losses = 0
        else:
            self._losses += 1
        delay = self._random() * min(self._backoff_max, self._backoff_base * 2.0 ** min(losses, 100))
        self._tell(State("waiting", loss.reason, loss.code, delay))
        async with self._unless_stopped():
            await asyncio.sleep(delay)

    async def _ask_unless_stopped(self) -> Credentials | None:
        async with self._unless_stopped():
            return await self._ask("refused" if self._refused else "start")

    async def _ask(self, why: Why) -> Credentials | None:
        if self._credentials is None:
            return None
        given = await self._call("credentials", self._credentials, why)
        if given is None or isinstance(given, (Ticket, Token)):
            return given
        error = TypeError(f"credentials returned a {type(given).__name__}: want a Ticket, a Token or None")
        raise _Failed("credentials", error)

    def _expiring(self, connection: Connection, left: float) -> None:
        """Is called when the server says for how long the credentials hold."""
        if self._credentials is None:
            return
        self._expires = left
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh(connection), name="notification_client refresh")

    async def _refresh(self, connection: Connection) -> None:
        """Gets new credentials, while the connection goes on with the old ones."""
        # The answer to authenticate may be followed at once by what makes the next
        # one due, so this looks again before it ends.
        while self._expires is not None:
            # Credentials that live for less than a minute expire as soon as they
            # are there: without a pause this would be all that the client does. A
            # connection that took long to come about has the whole of it, too.
            pause = max(self._least_pause, self._expires / 2)
            self._expires = None
            if self._renewed is not None:
                due = max(self._renewed, connection.welcomed) + pause
                await asyncio.sleep(due - asyncio.get_running_loop().time())
            self._renewed = asyncio.get_running_loop().time()
            try:
                given = await self._ask("expiring")
            except _Failed as failed:
                return connection.end(Loss("credentials", 0, Verdict.STOP, failed.error))
            if not isinstance(given, Token) or not connection.welcome.refresh:
                self._given = (given,)
                return connection.end(Loss("credentials", 0))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    answer = await connection.command("authenticate", token=given.value)
                    if answer is not None and answer.code:  # the connection lives until they expire
                        _log.warning("the credentials are not extended: %s", answer.code)
        self._refreshing = None

    def _stop_refreshing(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            self._refreshing = None
        self._expires = None

    async def _change(self, action: str, channels: Collection[str]) -> None:
        if not channels:
            raise ValueError("channels: want at least one")
        await self._settled.wait()
        connection = self._connection
        if connection is not None:
            answer = await connection.command(action, channels=list(channels))
            if answer is not None and answer.code:
                raise CommandError(answer.code, answer.message)
            if answer is not None and answer.channels is not None:
                self._channels = list(answer.channels)
                return
        # The next attempt says it, in the same way as the server would have.
        if action == "unsubscribe":
            had = [str(name) for name in Channel] if self._channels is None else self._channels
            self._channels = [name for name in had if name not in channels]
        else:
            self._channels = list(dict.fromkeys([*(self._channels or ()), *channels]))

    async def _call(self, reason: Reason, callback: Callable[[A], Awaitable[R]], argument: A) -> R:
        try:
            return await callback(argument)
        except Abandoned:
            raise _Closed from None
        except Exception as error:
            raise _Failed(reason, error) from error

    @contextlib.asynccontextmanager
    async def _unless_stopped(self) -> AsyncIterator[None]:
        """stop() cancels what is awaited in it, and raises _Closed then."""
        if self._stopping:
            raise _Closed
        scope = self._interruptible = asyncio.timeout(None)
        try:
            async with scope:
                yield
        except TimeoutError:
            if scope.expired():
                raise _Closed from None
            raise
        finally:
            self._interruptible = None

    def _tell(self, state: State) -> None:
        if state == self._state:
            return
        self._state = state
        _log.debug("%s", state)
        if self._on_state is not None:
            try:
                self._on_state(state)
            except Exception:
                _log.exception("on_state raised")


class _Closed(Exception):
    """stop() was called."""


class _Failed(Exception):
    """A callback raised."""

    def __init__(self, reason: Reason, error: Exception) -> None:
        super().__init__(reason, error)
        self.reason = reason
        self.error = error
