"""Drives this client for the conformance runner: options and commands come in on
stdin, what happens goes out on stdout, a line of JSON each. The README of
clients/conformance has them."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from notification_client import (  # noqa: E402
    Batch,
    Client,
    CommandError,
    Credentials,
    State,
    Ticket,
    Token,
    UnknownPayload,
)


def tell(event: str, **members: object) -> None:
    print(json.dumps({"event": event, **members}), flush=True)


def fetch(url: str) -> object:
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


class Driver:
    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.credentials: list[dict[str, str] | None] = options.get("credentials") or [{}]
        self.taken = 0
        self.stopped = State("stopped", "closed")
        self.client = Client(
            options["url"],
            credentials=self.ask,
            on_notifications=self.take,
            snapshot=self.load,
            channels=options.get("channels"),
            cursor=options.get("cursor", ""),
            on_cursor=self.keep,
            on_state=self.see,
            backoff_base=options.get("backoff_base_ms", 500) / 1000,
            backoff_max=options.get("backoff_max_ms", 30_000) / 1000,
            watchdog_factor=options.get("watchdog_factor", 2.5),
        )
        self.client._stable = options.get("stable_ms", 60_000) / 1000

    async def ask(self, why: str) -> Credentials | None:
        tell("credentials", why=why)
        given = self.credentials.pop(0) if len(self.credentials) > 1 else self.credentials[0]
        match given:
            case None:
                raise RuntimeError("the credentials throw")
            case {"ticket": value}:
                return Ticket(value)
            case {"token": value}:
                return Token(value)
        return None

    async def take(self, batch: Batch) -> None:
        for n in batch.notifications:
            await asyncio.sleep(self.options.get("handler_ms", 0) / 1000)
            self.taken += 1
            if self.taken == self.options.get("handler_throws_at", 0):
                raise RuntimeError("the handler throws")
            known = None if isinstance(n.payload, UnknownPayload) else n.payload.TYPE
            assert known in (None, n.message_type)
            tell(
                "notification",
                message_id=n.message_id,
                type=n.message_type,
                timestamp=str(n.timestamp),
                raw=n.raw,
            )

    async def load(self, reason: str) -> None:
        tell("snapshot", reason=reason)
        await asyncio.sleep(self.options.get("snapshot_ms", 0) / 1000)
        if url := self.options.get("snapshot_url"):
            tell("snapshot_done", body=await asyncio.to_thread(fetch, url))
        else:
            tell("snapshot_done")

    async def keep(self, cursor: str) -> None:
        tell("cursor", cursor=cursor)

    def see(self, state: State) -> None:
        match state.name:
            case "waiting":
                retry_ms = round(state.retry_in * 1000, 3)
                tell("state", state="waiting", reason=state.reason, code=state.code, retry_ms=retry_ms)
            case "stopped":
                self.stopped = state
            case _:
                tell("state", state=state.name)

    async def obey(self, lines: asyncio.StreamReader) -> None:
        async with asyncio.TaskGroup() as commands:
            while line := await lines.readline():
                match json.loads(line):
                    case {"do": "stop"}:
                        break
                    case {"do": "subscribe", "channels": channels}:
                        commands.create_task(self.change(self.client.subscribe(*channels)))
                    case {"do": "unsubscribe", "channels": channels}:
                        commands.create_task(self.change(self.client.unsubscribe(*channels)))
            self.client.stop()

    async def change(self, changing: Awaitable[None]) -> None:
        try:
            await changing
        except (CommandError, ValueError) as error:
            tell("error", message=str(error))

    async def run(self, lines: asyncio.StreamReader) -> None:
        obeying = asyncio.create_task(self.obey(lines))
        try:
            await self.client.run()
        except Exception as error:  # whatever stopped it: StoppedError, or what a callback raised
            print(repr(error), file=sys.stderr)
        obeying.cancel()
        await asyncio.wait([obeying])
        tell("stopped", reason=self.stopped.reason, code=self.stopped.code, cursor=self.client.cursor)


async def main() -> None:
    lines = asyncio.StreamReader(limit=1 << 20)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    await Driver(json.loads(await lines.readline())).run(lines)
    transport.close()


if __name__ == "__main__":
    asyncio.run(main())
