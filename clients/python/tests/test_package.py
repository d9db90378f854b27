"""What a user of the package gets: a README whose programs run, types, and something
that can be installed."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from .gateway import MISSING, Gateway, Lines, available
from .scripted import PATIENCE

FOLDER = Path(__file__).parent.parent
README = (FOLDER / "README.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def run(*command: str, cwd: Path | str = FOLDER, **environment: str) -> str:
    """Runs a program and returns what it prints."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | {"PYTHONWARNINGS": "", "PYTHONDONTWRITEBYTECODE": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=5 * PATIENCE,
    )
    if done.returncode != 0:
        raise AssertionError(f"{command} ends with {done.returncode}:\n{done.stdout}")
    return done.stdout


@unittest.skipUnless(available(), MISSING)
class Readme(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def start(self, text: str, url: str) -> subprocess.Popen[bytes]:
        self.assertEqual(text.count("ws://127.0.0.1:8080/notifications"), 1)
        program = text.replace("ws://127.0.0.1:8080/notifications", url)
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-X", "dev", "-c", program],
            cwd=self.folder.name,
            env=os.environ | {"PYTHONPATH": str(FOLDER / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
        )
        self.addCleanup(process.stdout.close)  # type: ignore[union-attr]
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    async def test_the_first_program_prints_what_comes(self) -> None:
        async with Gateway() as gateway:
            process = self.start(PROGRAMS[0], gateway.url)
            lines = await Lines.of(process)
            # When it is connected cannot be seen, so it is told until it says so.
            line = ""
            number = 0
            while not line:
                number += 1
                await gateway.do("publish", "alice", "trade", number, number)
                line = await lines.soon()
            self.assertRegex(line, r"^trade-\d+ TradeExecuted\(.*trade_id='\d+'")
            lines.close()

    async def test_the_second_goes_on_where_it_was_stopped(self) -> None:
        async with Gateway() as gateway:
            for first, last in ((1, 3), (4, 6)):
                process = self.start(PROGRAMS[1], gateway.url)
                lines = await Lines.of(process)
                said: list[str] = []
                while not said or said[-1] not in ("live", ""):
                    said.append(await lines.next())
                self.assertEqual(said, ["connecting", "replaying", "live"])
                await gateway.do("publish", "alice", "trade", first, last)
                for i in range(first, last + 1):
                    self.assertEqual(await lines.next(), f"trade_executed at {1_700_000_000_000_000_001 + i}")
                process.send_signal(signal.SIGTERM)
                self.assertEqual(await lines.next(), "stopped closed")
                self.assertEqual(await lines.next(), "")
                lines.close()
                self.assertEqual(process.wait(PATIENCE), 0)
                self.assertTrue(Path(self.folder.name, "cursor.txt").read_text())


class Types(unittest.TestCase):
    def test_mypy_is_content_with_everything(self) -> None:
        if shutil.which("mypy") is None:
            self.skipTest("skipped: there is no mypy here")
        with tempfile.TemporaryDirectory() as cache:
            run("mypy", "--strict", "--cache-dir", cache, "src", "conformance", "tests")
            program = Path(cache, "readme.py")
            program.write_text(PROGRAMS[1])
            run("mypy", "--strict", "--cache-dir", cache, str(program))


class Package(unittest.TestCase):
    def test_a_wheel_and_an_sdist_can_be_built_and_installed_elsewhere(self) -> None:
        missing = [name for name in ("pip", "setuptools", "wheel") if importlib.util.find_spec(name) is None]
        if missing:
            self.skipTest(f"skipped: this Python has no {', no '.join(missing)}")
        with tempfile.TemporaryDirectory() as folder:
            source, out = Path(folder, "source"), Path(folder, "out")
            shutil.copytree(FOLDER, source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
            build = "import setuptools.build_meta as b, sys; print(b.build_sdist(sys.argv[1]))"
            name = run(sys.executable, "-c", build, str(out), cwd=source).splitlines()[-1]
            pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir")
            offline = ("--no-index", "--no-deps")
            run(*pip, "wheel", *offline, "--no-build-isolation", "-w", str(out), str(out / name))
            (wheel,) = out.glob("notification_client-*-py3-none-any.whl")
            installed = Path(folder, "installed")
            run(*pip, "install", *offline, "--target", str(installed), str(wheel))
            self.assertTrue((installed / "notification_client" / "py.typed").exists())
            where = "import notification_client, sys; print(notification_client.__file__)"
            said = run(sys.executable, "-c", where, cwd=folder, PYTHONPATH=str(installed))
            self.assertEqual(Path(said.strip()).parent, installed / "notification_client")

    def test_the_driver_runs_without_being_installed(self) -> None:
        done = subprocess.run(
            [sys.executable, "conformance/driver.py"],
            cwd=FOLDER,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONDONTWRITEBYTECODE": "1"},
            input='{"url":"ws://127.0.0.1:1/","credentials":[null]}\n',
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn('{"event": "stopped", "reason": "credentials", "code": 0, "cursor": ""}', done.stdout)
