"""How a batch gets from a running client into an async for."""

from __future__ import annotations

import asyncio

from ._protocol import Batch


class Abandoned(Exception):
    """The loop was left with a batch that was not dealt with."""


class Handover:
    """One task puts a batch, and waits until another, which took it, asks for more."""

    def __init__(self) -> None:
        self._batch: Batch | None = None  # put, and not taken
        self._taken = False  # one was taken, and not dealt with
        self._abandoned = False
        self._ended = False
        self._came = asyncio.Event()  # a batch, or the end
        self._done = asyncio.Event()  # a batch was dealt with, or abandoned

    async def put(self, batch: Batch) -> None:
        """Returns when the batch has been dealt with. Raises Abandoned."""
        self._batch = batch
        self._done.clear()
        self._came.set()
        if not self._abandoned:
            await self._done.wait()
        if self._abandoned:
            raise Abandoned

    async def take(self) -> Batch | None:
        """Says that the batch before was dealt with, and returns the next one; None
        at the end."""
        if self._taken:
            self._taken = False
            self._done.set()
        while self._batch is None:
            if self._ended:
                return None
            self._came.clear()
            await self._came.wait()
        batch, self._batch = self._batch, None
        self._taken = True
        return batch

    def abandon(self) -> None:
        """No more is asked for."""
        self._abandoned = True
        self._done.set()

    def end(self, _: object) -> None:
        """No more is put."""
        self._ended = True
        self._came.set()
