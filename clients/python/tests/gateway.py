"""The real server, as a process that does what a test tells it."""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from .scripted import patiently

PROGRAM = Path(__file__).parent.parent / "testdata" / "gateway"
MISSING = "skipped: the real server needs go, and the rest of the repository"


def available() -> bool:
    return shutil.which("go") is not None and (PROGRAM.parents[3] / "wsgateway").exists()


@functools.cache
def build() -> str:
    """Returns the program. It is removed with the process."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    built = subprocess.run(
        ["go", "build", "-o", folder, "."],
        cwd=PROGRAM,
        env=os.environ | {"GOWORK": "off"},
        capture_output=True,
        text=True,
    )
    if built.returncode != 0:
        raise RuntimeError(built.stderr)
    return os.path.join(folder, "gateway")


class Lines:
    """What a process says on its stdout."""

    def __init__(self, reader: asyncio.StreamReader, transport: asyncio.ReadTransport) -> None:
        self._reader = reader
        self._transport = transport

    @classmethod
    async def of(cls, process: subprocess.Popen[bytes]) -> Lines:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), process.stdout
        )
        return cls(reader, transport)

    async def next(self) -> str:
        """The next line, without its end; empty behind the last."""
        line: bytes = await patiently(self._reader.readline())
        return line.decode().rstrip()

    async def soon(self) -> str:
        """next, or empty if there is none for a moment."""
        try:
            async with asyncio.timeout(0.1):
                return await self.next()
        except TimeoutError:
            return ""

    def close(self) -> None:
        self._transport.close()


class Gateway:
    """A process of the server, on a port that stays the same. Nobody else gets it while
    there is no server: a socket of ours is bound to it, and does not listen, so that
    who connects is refused as ever."""

    def __init__(self, **flags: int) -> None:
        self._flags: dict[str, object] = {**flags}
        self._process: subprocess.Popen[bytes] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        self._place.bind(("127.0.0.1", 0))
        self.address = "%s:%d" % self._place.getsockname()

    async def __aenter__(self) -> Gateway:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            self.shut_down()
        self._place.close()

    async def start(self) -> None:
        flags = [f"-{name}={value}" for name, value in ({"addr": self.address} | self._flags).items()]
        self._process = subprocess.Popen([build(), *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._lines = await Lines.of(self._process)
        assert await self._lines.next() == self.address
        self.url = f"ws://{self.address}/"

    def kill(self) -> None:
        self._end(lambda process: process.kill())

    def shut_down(self) -> None:
        """Returns when it has sent all clients away."""
        self._end(lambda process: None)

    def _end(self, how: Callable[[subprocess.Popen[bytes]], None]) -> None:
        process, self._process = self._process, None
        assert process is not None and process.stdin is not None
        how(process)
        process.stdin.close()
        process.wait(60)
        self._lines.close()

    async def do(self, *words: object) -> str:
        """Says a command and returns the answer."""
        async with self._one_at_a_time:
            assert self._process is not None and self._process.stdin is not None
            self._process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
            self._process.stdin.flush()
            return await self._lines.next()
