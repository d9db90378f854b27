"""A server that does what a test tells it, down to single bytes. It is written on
asyncio's streams alone, so that it can do what no library does."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import struct
from collections.abc import Callable
from http import HTTPStatus
from ssl import SSLContext
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

PATIENCE = 120.0  # seconds: the machine may be busy, nothing that works takes so long


async def patiently(waiting: Any) -> Any:
    async with asyncio.timeout(PATIENCE):
        return await waiting


class Peer:
    """A client's connection, as the server sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.path = ""
        self.query: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self._said: asyncio.Queue[str | int] = asyncio.Queue()
        self.pongs = asyncio.Event()

    async def handshake(self, status: int, subprotocol: str, location: str, accept: str) -> None:
        request = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.path = request[0].split(" ")[1]
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        self.query = {key: values[0] for key, values in query.items()}
        self.headers = {line.split(": ", 1)[0].lower(): line.split(": ", 1)[1] for line in request[1:] if line}
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        if status == 101:
            key = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            accept = accept or base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
            lines += ["Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}"]
            if subprotocol:
                lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
        else:
            lines += ["Content-Length: 0", "Connection: close"]
            if location:
                lines.append(f"Location: {location}")
        self.send_bytes(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def read(self) -> None:
        """Reads until the connection ends: texts, and the code of a close frame, or
        0 if there was none."""
        try:
            while True:
                first, second = await self._reader.readexactly(2)
                length = second & 0x7F
                if length == 126:
                    (length,) = struct.unpack("!H", await self._reader.readexactly(2))
                mask = await self._reader.readexactly(4)
                masked = await self._reader.readexactly(length)
                payload = bytes(b ^ mask[i % 4] for i, b in enumerate(masked))
                match first & 0x0F:
                    case 1:
                        self._said.put_nowait(payload.decode())
                    case 8:
                        self._said.put_nowait(struct.unpack("!H", payload[:2])[0] if payload else 1005)
                        self.send_frame(8, payload)
                        self._writer.close()
                        return
                    case 10:
                        self.pongs.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            self._said.put_nowait(0)

    def send_bytes(self, data: bytes) -> None:
        self._writer.write(data)

    def send_frame(self, opcode: int, payload: bytes, fin: bool = True) -> None:
        first = bytes([(0x80 if fin else 0) | opcode])
        if len(payload) < 126:
            length = bytes([len(payload)])
        elif len(payload) < 1 << 16:
            length = b"\x7e" + struct.pack("!H", len(payload))
        else:
            length = b"\x7f" + struct.pack("!Q", len(payload))
        self.send_bytes(first + length + payload)

    def send(self, frame: object) -> None:
        self.send_frame(1, json.dumps(frame).encode())

    def welcome(self, cursor: str = "c0", resumed: bool = False, **members: object) -> None:
        frame: dict[str, object] = {
            "action": "welcome",
            "session_id": "s",
            "cursor": cursor,
            "resumed": resumed,
            "channels": ["trade", "account", "position", "risk", "system"],
            "heartbeat_ms": 1_000_000,
            "refresh": False,
        }
        self.send(frame | members)

    def live(self) -> None:
        self.send({"action": "live"})

    def batch(self, cursor: str, *ids: str, **members: object) -> None:
        self.send({"cursor": cursor, "notifications": [notice(i) for i in ids]} | members)

    def close(self, code: int, reason: str = "") -> None:
        self.send_frame(8, struct.pack("!H", code) + reason.encode())

    def cut(self) -> None:
        with contextlib.suppress(AttributeError):  # of early versions of 3.11, if it is closed
            self._writer.transport.abort()

    def stall(self) -> None:
        """Reads no more."""
        transport = self._writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()

    async def said(self) -> Any:
        """What the client says next: a command, or the code that it closes with, 0
        for none."""
        text = await patiently(self._said.get())
        return json.loads(text) if isinstance(text, str) else text


def notice(message_id: str, **members: object) -> dict[str, object]:
    return {
        "message_id": message_id,
        "message_type": "trade_executed",
        "user_id": "alice",
        "priority": 1,
        "timestamp": 1700000000000000123,
        "source": "MatchingEngine",
        "payload": {"type": "trade_executed", "trade_id": message_id, "price": 50100, "volume": 2.5},
    } | members


class Server:
    """Accepts on a port of its own. What refuses says is for the next requests."""

    def __init__(self, ssl: SSLContext | None = None) -> None:
        self._ssl = ssl
        self.refuses: list[int] = []  # statuses
        self.subprotocol = "notification.batch.v1"
        self.location = ""  # of a redirect
        self.accept_key = ""  # a wrong one
        self.requests = 0
        self._accepted: asyncio.Queue[Peer] = asyncio.Queue()
        self._peers: list[Peer] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._ssl)
        self.address: str = "%s:%d" % self._server.sockets[0].getsockname()
        self.url = f"{'wss' if self._ssl else 'ws'}://{self.address}/notifications?site=1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for peer in self._peers:
            peer.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._talk(Peer(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _talk(self, peer: Peer) -> None:
        self._peers.append(peer)
        self.requests += 1
        status = self.refuses.pop(0) if self.refuses else 101
        try:
            await peer.handshake(status, self.subprotocol, self.location, self.accept_key)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        self._accepted.put_nowait(peer)
        if status == 101:
            await peer.read()
        peer._writer.close()

    async def accept(self) -> Peer:
        """The next request, whatever the answer was."""
        peer: Peer = await patiently(self._accepted.get())
        return peer


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what nobody tells of."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)
