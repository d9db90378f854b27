"""What the tests share: a program that writes down what its client tells it, and a
check that nothing is left of either."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
import unittest
from collections.abc import Awaitable, Callable
from typing import Any

from notification_client import Batch, Client, Credentials, State

from .scripted import patiently, until


class Program:
    """Uses a client, and writes down in events what happens, in order."""

    def __init__(self, url: str, *, iterates: bool = False, **options: Any) -> None:
        self.events: list[tuple[object, ...]] = []
        self.batches: list[Batch] = []
        self.credentials: list[Credentials | Exception | None] = []  # to return, in turn; then None
        self.loading = Gate()
        self.handling = Gate()
        self.task: asyncio.Task[None] | None = None
        callbacks: dict[str, Any] = {
            "credentials": self._ask,
            "snapshot": self._load,
            "on_cursor": self._keep,
            "on_state": self._see,
            "backoff_base": 0.0,
        }
        if not iterates:
            callbacks["on_notifications"] = self.handle
        self.client = Client(url, **callbacks | options)
        self.client._least_pause = 0.01

    async def _ask(self, why: str) -> Credentials | None:
        self.events.append(("credentials", why))
        given = self.credentials.pop(0) if self.credentials else None
        if isinstance(given, Exception):
            raise given
        return given

    async def _load(self, reason: str) -> None:
        self.events.append(("snapshot", reason))
        await self.loading.passed()
        self.events.append(("loaded",))

    async def handle(self, batch: Batch) -> None:
        await self.handling.passed()
        self.batches.append(batch)
        self.events += [("notification", n.message_id) for n in batch.notifications]

    async def _keep(self, cursor: str) -> None:
        self.events.append(("cursor", cursor))

    def _see(self, state: State) -> None:
        if state.name in ("waiting", "stopped"):
            self.events.append((state.name, state.reason, state.code))
        else:
            self.events.append((state.name,))

    def start(self) -> None:
        self.task = asyncio.create_task(self.client.run())

    async def stop(self) -> None:
        self.client.stop()
        await self.ended()

    async def ended(self) -> None:
        """Waits for the end of run(), and raises what it does."""
        assert self.task is not None
        await patiently(asyncio.wait([self.task]))
        self.task.result()

    async def saw(self, *event: object) -> None:
        """Waits for an event, the last one or one before."""
        await until(lambda: event in self.events)

    def waits(self) -> list[float]:
        """A list of the seconds that it waits from now on."""
        waits: list[float] = []

        def see(state: State) -> None:
            if state.name == "waiting":
                waits.append(state.retry_in)

        self.client._on_state = see
        return waits

    def lost(self) -> bool:
        """Whether the client has noticed that its connection is lost."""
        connection = self.client._connection
        return connection is not None and connection.loss is not None

    def told(self, *kinds: object) -> list[tuple[object, ...]]:
        """The events of these kinds."""
        return [event for event in self.events if event[0] in kinds]

    @property
    def ids(self) -> list[object]:
        return [event[1] for event in self.told("notification")]


class Gate:
    """Where a callback waits, when it is shut."""

    def __init__(self) -> None:
        self.entries = 0  # that came to it
        self.error: Exception | None = None  # to raise
        self._open = asyncio.Event()
        self._open.set()

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        self.entries += 1
        await self._open.wait()
        if self.error is not None:
            raise self.error


class Case(unittest.IsolatedAsyncioTestCase):
    """A test in asyncio's debug mode, behind which no task, no thread, no complaint
    of asyncio and nothing unclosed is left."""

    async def asyncSetUp(self) -> None:
        self._ends: list[Callable[[], Awaitable[None]]] = []
        self._complaints: list[object] = []
        self._threads = threading.active_count()
        self._hook = sys.unraisablehook
        sys.unraisablehook = lambda args: self._complaints.append((args.err_msg, args.exc_value))
        loop = asyncio.get_running_loop()
        self.assertTrue(loop.get_debug())
        loop.slow_callback_duration = 60  # how fast this machine is now, is not tested
        loop.set_exception_handler(lambda _, context: self._complain(context))

    def _complain(self, context: dict[str, Any]) -> None:
        if "incoming connection" not in context["message"]:  # that is the server, of a client that hung up
            self._complaints.append(context)

    def program(self, url: str, **options: Any) -> Program:
        """A program that ends with the test."""
        program = Program(url, **options)

        async def end() -> None:
            if program.task is not None and not program.task.done():
                program.task.cancel()
                await asyncio.wait([program.task])

        self._ends.append(end)
        return program

    async def asyncTearDown(self) -> None:
        for end in self._ends:
            await end()
        # The library's and asyncio's own need a few rounds of the loop to end, or an
        # answer of the system.
        for _ in range(20):
            await asyncio.sleep(0)
        with contextlib.suppress(TimeoutError):
            await until(lambda: len(asyncio.all_tasks()) == 1)
        self.assertEqual([task for task in asyncio.all_tasks() if task is not asyncio.current_task()], [])
        gc.collect()
        sys.unraisablehook = self._hook
        self.assertEqual(self._complaints, [])
        self.assertEqual(threading.active_count(), self._threads)
