"""When a client comes back, with what, and when it does not."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import unittest
from pathlib import Path
from unittest.mock import patch

from notification_client import StoppedError, Ticket, Token, _client, _connection
from notification_client._connection import MAX_HELD
from notification_client._protocol import Verdict, address, verdict, verdict_of_status

from .case import Case
from .scripted import Server, until


class Bugs(Case):
    async def test_a_reader_that_fails_is_the_end_of_its_connection(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.start()
            peer = await server.accept()
            peer.welcome()
            await p.saw("replaying")
            logged = self.assertLogs("notification_client", "ERROR")
            with logged, patch.object(_connection, "parse", side_effect=KeyError):
                peer.live()
                await p.saw("waiting", "protocol", 0)
            await p.stop()

    async def test_a_library_that_fails_is_heard_of(self) -> None:
        with patch.object(_connection, "_connect", side_effect=ImportError("a proxy needs a package")):
            p = self.program("ws://127.0.0.1:1")
            p.start()
            with self.assertRaisesRegex(ImportError, "a proxy"):
                await p.ended()
        self.assertEqual(p.events[-1], ("stopped", "network", 0))


class CloseCodes(Case):
    async def test_ranges_decide(self) -> None:
        for code in (1000, 1002, 1003, 1007, 1008, 1009, 4400, 4402, 4403, 4409, 4499):
            self.assertEqual(verdict(code), Verdict.STOP, code)
        for code in (0, 1001, 1005, 1006, 1010, 1011, 1012, 1013, 1014, 3000, 4000, 4001, 4099, 4200, 4399, 4500, 4999):
            self.assertEqual(verdict(code), Verdict.RETRY, code)
        for code in (4100, 4150, 4199):
            self.assertEqual(verdict(code), Verdict.GAP, code)
        self.assertEqual(verdict(4401), Verdict.REFUSED)

    async def test_statuses_decide(self) -> None:
        for status in (200, 302, 421, 500, 502, 503, 504):
            self.assertEqual(verdict_of_status(status), Verdict.RETRY, status)
        for status in (400, 403, 404, 410, 426, 429):
            self.assertEqual(verdict_of_status(status), Verdict.STOP, status)
        self.assertEqual(verdict_of_status(401), Verdict.REFUSED)

    async def test_a_code_that_says_so_stops(self) -> None:
        for code in (1000, 1008, 4403, 4409):
            with self.subTest(code):
                async with Server() as server:
                    p = self.program(server.url)
                    p.start()
                    peer = await server.accept()
                    peer.welcome()
                    peer.batch("c1", "n1")
                    peer.close(code, "because")
                    with self.assertRaises(StoppedError) as caught:
                        await p.ended()
                self.assertEqual((caught.exception.reason, caught.exception.code), ("server", code))
                self.assertIn(str(code), str(caught.exception))
                self.assertIsNone(caught.exception.__context__)
                self.assertEqual(p.ids, ["n1"])  # it came before the close
                self.assertEqual((p.client.cursor, server.requests), ("c1", 1))

    async def test_other_codes_reconnect_with_the_cursor(self) -> None:
        for code in (1001, 1011, 1012, 1013, 3456, 4001, 4321):
            with self.subTest(code):
                async with Server() as server:
                    p = self.program(server.url, cursor="c0")
                    p.start()
                    peer = await server.accept()
                    peer.welcome("c0", resumed=True)
                    peer.batch("c1")
                    peer.close(code)
                    self.assertEqual((await server.accept()).query["cursor"], "c1")
                    await p.stop()
                self.assertEqual(p.told("waiting"), [("waiting", "server", code)])

    async def test_a_close_without_a_code_reconnects(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.start()
            peer = await server.accept()
            peer.welcome()
            peer.send_frame(8, b"")
            await server.accept()
            await p.stop()
        self.assertEqual(p.told("waiting"), [("waiting", "server", 1005)])

    async def test_a_cut_in_the_middle_of_a_frame_reconnects(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.start()
            peer = await server.accept()
            peer.welcome()
            peer.send_bytes(b'\x81\x7e\x10\x00{"cursor":"c1","notif')
            await p.saw("cursor", "c0")
            peer.cut()
            self.assertEqual((await server.accept()).query["cursor"], "c0")
            await p.stop()
        self.assertEqual(p.told("waiting"), [("waiting", "network", 1006)])


class Handshakes(Case):
    async def test_refusals_that_pass_are_tried_again(self) -> None:
        async with Server() as server:
            server.refuses = [421, 503, 500, 302]
            server.location = "ws://127.0.0.1:1/elsewhere"
            p = self.program(server.url)
            p.start()
            for _ in range(4):
                await server.accept()
            (await server.accept()).welcome()
            await p.saw("replaying")
            await p.stop()
        self.assertEqual(p.told("waiting"), [("waiting", "handshake", 0)] * 4)

    async def test_refusals_that_do_not_pass_stop(self) -> None:
        for status, code in ((400, 4400), (403, 4403), (404, 0), (410, 0)):
            with self.subTest(status):
                async with Server() as server:
                    server.refuses = [status]
                    p = self.program(server.url)
                    p.start()
                    with self.assertRaises(StoppedError) as caught:
                        await p.ended()
                self.assertEqual(p.events[-1], ("stopped", "handshake", code))
                self.assertEqual(caught.exception.code, code)

    async def test_nobody_there_is_tried_again(self) -> None:
        with socket.socket() as unheard:
            unheard.bind(("127.0.0.1", 0))  # and nobody listens
            p = self.program("ws://127.0.0.1:%d" % unheard.getsockname()[1])
            p.start()
            await until(lambda: len(p.told("waiting")) > 2)
            await p.stop()
        self.assertEqual(set(p.told("waiting")), {("waiting", "network", 1006)})

    async def test_a_server_of_another_protocol_is_tried_again(self) -> None:
        async with Server() as server:
            server.subprotocol = ""
            p = self.program(server.url)
            p.start()
            await server.accept()
            await server.accept()
            await p.stop()
        self.assertEqual(p.told("waiting")[0], ("waiting", "protocol", 0))

    async def test_a_handshake_that_is_wrong_is_tried_again(self) -> None:
        async with Server() as server:
            server.accept_key = "wrong"
            p = self.program(server.url)
            p.start()
            await server.accept()
            await server.accept()
            await p.stop()
        self.assertEqual(p.told("waiting")[0], ("waiting", "protocol", 0))

    async def test_a_first_frame_that_is_no_welcome_is_tried_again(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.start()
            (await server.accept()).live()
            await server.accept()
            await p.stop()
        self.assertEqual(p.told("waiting", "replaying"), [("waiting", "protocol", 0)])


@unittest.skipIf(shutil.which("openssl") is None, "skipped: there is no openssl here, to make a certificate")
class Tls(Case):
    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        with tempfile.TemporaryDirectory() as folder:
            cert, key = Path(folder, "cert"), Path(folder, "key")
            make = "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2"
            name = "-subj /CN=test -addext subjectAltName=IP:127.0.0.1"
            command = [*make.split(), *name.split(), "-out", str(cert), "-keyout", str(key)]
            subprocess.run(command, check=True, capture_output=True)
            self.theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.theirs.load_cert_chain(cert, key)
            self.ours = ssl.create_default_context(cafile=cert)

    async def test_a_certificate_is_checked(self) -> None:
        async with Server(self.theirs) as server:
            p = self.program(server.url, backoff_base=1e6, backoff_max=1e6)  # which does not know it
            p.start()
            await p.saw("waiting", "network", 1006)
            await p.stop()

    async def test_every_end_leaves_nothing(self) -> None:
        async with Server(self.theirs) as server:
            p = self.program(server.url, ssl=self.ours, watchdog_factor=2)
            p.start()
            for number, end in enumerate(("cut", "closed", "wrong", "silent", "stopped")):
                peer = await server.accept()
                peer.welcome(heartbeat_ms=50 if end == "silent" else 1_000_000)
                await until(lambda: len(p.told("replaying")) == number + 1)
                match end:
                    case "cut":
                        peer.cut()
                    case "closed":
                        peer.close(1012)
                    case "wrong":
                        peer.send_frame(3, b"")
            await p.stop()
        self.assertEqual([event[1] for event in p.told("waiting")], ["network", "server", "protocol", "watchdog"])


class Credentials(Case):
    async def test_a_ticket_goes_into_the_url_and_a_token_into_a_header(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.credentials = [Ticket("once&für all+/="), Token("secret"), None]
            p.start()
            peer = await server.accept()
            self.assertEqual(peer.query, {"site": "1", "ticket": "once&für all+/="})
            self.assertNotIn("authorization", peer.headers)
            peer.cut()
            peer = await server.accept()
            self.assertEqual(peer.query, {"site": "1"})
            self.assertEqual(peer.headers["authorization"], "Bearer secret")
            peer.cut()
            peer = await server.accept()
            self.assertEqual(peer.query, {"site": "1"})
            self.assertNotIn("authorization", peer.headers)
            await p.stop()
        self.assertEqual(p.told("credentials"), [("credentials", "start")] * 3)

    async def test_refused_ones_are_replaced_once(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.start()
            peer = await server.accept()
            peer.welcome()
            peer.batch("c1")
            peer.close(4401)
            peer = await server.accept()
            self.assertEqual(peer.query["cursor"], "c1")
            peer.welcome("c1", resumed=True)
            peer.close(4401)  # a welcome was in between
            peer = await server.accept()
            peer.close(4401)
            with self.assertRaises(StoppedError):
                await p.ended()
        self.assertEqual(
            p.told("credentials", "waiting", "stopped"),
            [
                ("credentials", "start"),
                ("waiting", "server", 4401),
                ("credentials", "refused"),
                ("waiting", "server", 4401),
                ("credentials", "refused"),
                ("stopped", "server", 4401),
            ],
        )

    async def test_a_status_of_401_is_a_4401(self) -> None:
        async with Server() as server:
            server.refuses = [401, 503, 401]
            p = self.program(server.url)
            p.start()
            with self.assertRaises(StoppedError):
                await p.ended()
        self.assertEqual(
            p.told("credentials", "waiting", "stopped"),
            [
                ("credentials", "start"),
                ("waiting", "handshake", 4401),
                ("credentials", "refused"),
                ("waiting", "handshake", 0),
                ("credentials", "refused"),  # there was no welcome yet
                ("stopped", "handshake", 4401),
            ],
        )

    async def test_a_callback_that_raises_stops(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.credentials = [TimeoutError("no answer")]
            p.start()
            with self.assertRaisesRegex(TimeoutError, "no answer") as caught:
                await p.ended()
            self.assertIsNone(caught.exception.__context__)
        self.assertEqual(p.events[1:], [("credentials", "start"), ("stopped", "credentials", 0)])

    async def test_a_callback_that_returns_something_else_stops(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.credentials = ["secret"]  # type: ignore[list-item]
            p.start()
            with self.assertRaisesRegex(TypeError, "want a Ticket") as caught:
                await p.ended()
        self.assertNotIn("secret", str(caught.exception))

    async def test_expiring_ones_are_extended_with_a_token(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.start()
            peer = await server.accept()
            peer.welcome(refresh=True)
            p.handling.shut()
            peer.batch("c1", "n1")  # who is busy is extended too
            p.credentials = [Token("new"), Token("newer")]
            peer.send({"action": "expiring", "in_ms": 10})
            self.assertEqual(await peer.said(), {"action": "authenticate", "id": 1, "token": "new"})
            peer.send({"action": "ok", "id": 1, "channels": ["trade"], "expires_in_ms": 1})
            p.handling.open()
            with self.assertLogs("notification_client", "WARNING"):
                peer.send({"action": "expiring", "in_ms": 10})
                self.assertEqual(await peer.said(), {"action": "authenticate", "id": 2, "token": "newer"})
                peer.send({"action": "error", "id": 2, "code": "unauthorized", "message": "no"})
                peer.batch("c2", "n2")  # it lives on
                await p.saw("notification", "n2")
            self.assertIsNone(p.client.channels)
            await p.stop()
        self.assertEqual(p.told("credentials"), [("credentials", "start")] + [("credentials", "expiring")] * 2)
        self.assertEqual(p.told("waiting"), [])

    async def test_expiring_ones_are_replaced_by_a_reconnect_otherwise(self) -> None:
        cases: list[tuple[bool, Ticket | Token | None]] = [(True, Ticket("new")), (False, Token("new")), (True, None)]
        for refresh, given in cases:
            with self.subTest(refresh=refresh, given=given):
                async with Server() as server:
                    p = self.program(server.url, cursor="c0")
                    p.start()
                    peer = await server.accept()
                    peer.welcome("c0", resumed=True, refresh=refresh)
                    p.credentials = [given]
                    peer.batch("c1", "n1")
                    peer.send({"action": "expiring", "in_ms": 10})
                    self.assertEqual(await peer.said(), 1000)
                    peer = await server.accept()
                    self.assertEqual(peer.query["cursor"], "c1")
                    self.assertEqual(peer.query.get("ticket"), "new" if isinstance(given, Ticket) else None)
                    header = "Bearer new" if isinstance(given, Token) else None
                    self.assertEqual(peer.headers.get("authorization"), header)
                    await p.stop()
                self.assertEqual(
                    p.told("credentials", "waiting"),
                    [("credentials", "start"), ("credentials", "expiring"), ("waiting", "credentials", 0)],
                )

    async def test_expiring_ones_lose_nothing_of_what_came_before(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.loading.shut()
            p.credentials = [Ticket("1"), Ticket("2")]
            p.start()
            peer = await server.accept()
            peer.welcome()
            peer.batch("c1", "n1")
            peer.send({"action": "expiring", "in_ms": 10})
            await p.saw("credentials", "expiring")
            await until(p.lost)
            p.loading.open()
            self.assertEqual((await server.accept()).query, {"site": "1", "cursor": "c1", "ticket": "2"})
            await p.stop()
        self.assertEqual(p.told("snapshot", "notification"), [("snapshot", "start"), ("notification", "n1")])

    async def test_an_answer_that_does_not_come_is_not_waited_for_for_ever(self) -> None:
        async with Server() as server:
            with patch.object(_client, "ANSWER_TIMEOUT", 0.05):
                p = self.program(server.url)
                p.start()
                peer = await server.accept()
                peer.welcome(refresh=True)
                p.credentials = [Token("2"), Token("3")]
                peer.send({"action": "expiring", "in_ms": 10})
                self.assertEqual((await peer.said())["token"], "2")
                peer.send({"action": "expiring", "in_ms": 10})
                self.assertEqual((await peer.said())["token"], "3")
                await p.stop()

    async def test_expiring_ones_are_no_failure_and_not_asked_for_without_a_pause(self) -> None:
        times: list[float] = []

        async def ask(why: str) -> None:
            if why == "expiring":
                times.append(asyncio.get_running_loop().time())

        async with Server() as server:
            p = self.program(server.url, backoff_base=0.001, credentials=ask)
            p.client._random = lambda: 1.0
            waits = p.waits()
            welcomes: list[float] = []
            p.start()
            for number in range(4):
                peer = await server.accept()
                if number == 2:
                    await asyncio.sleep(0.2)  # the pause begins behind this
                welcomes.append(asyncio.get_running_loop().time())
                peer.welcome()
                peer.send({"action": "expiring", "in_ms": 200})
            await server.accept()
            await p.stop()
        self.assertEqual(waits, [0.001] * 4)
        for before, after in zip(times, times[1:]):
            self.assertGreaterEqual(after - before, 0.1)  # half of their life
        for welcome, expired in zip(welcomes[1:], times[1:]):
            self.assertGreaterEqual(expired - welcome, 0.1)

    async def test_a_callback_that_raises_for_expiring_ones_stops(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.start()
            peer = await server.accept()
            peer.welcome()
            await p.saw("replaying")
            p.credentials = [LookupError("signed out")]
            peer.send({"action": "expiring", "in_ms": 10})
            with self.assertRaisesRegex(LookupError, "signed out"):
                await p.ended()
            self.assertEqual(await peer.said(), 1000)
        self.assertEqual(p.events[-1], ("stopped", "credentials", 0))

    async def test_nothing_of_them_is_shown(self) -> None:
        self.assertNotIn("secret", repr(Token("secret")) + repr(Ticket("secret")))
        for value in ("", "a\r\nHost: b", "é"):
            with self.assertRaises(ValueError) as caught:
                Token(value)
            self.assertNotIn(value or "quoted", str(caught.exception))
        with self.assertLogs(level=logging.DEBUG) as logs:
            async with Server() as server:
                p = self.program(server.url)
                p.credentials = [Ticket("secret"), Token("secret"), Token("secret")]
                p.start()
                (await server.accept()).cut()
                peer = await server.accept()
                peer.welcome(refresh=True)
                peer.send({"action": "expiring", "in_ms": 10})
                await peer.said()
                await p.stop()
        self.assertNotIn("secret", "".join(logs.output))


class Times(Case):
    async def test_waits_are_drawn_from_a_range_that_doubles_up_to_the_maximum(self) -> None:
        async with Server() as server:
            server.refuses = [503] * 6
            p = self.program(server.url, backoff_base=0.001, backoff_max=0.005)
            drawn = iter([1.0, 0.5, 1.0, 1.0, 0.25, 1.0])
            p.client._random = lambda: next(drawn)
            waits = p.waits()
            p.start()
            await until(lambda: len(waits) == 6)
            await p.stop()
        self.assertEqual(waits, [0.001, 0.001, 0.004, 0.005, 0.00125, 0.005])

    async def test_a_welcome_does_not_begin_anew_but_a_long_life_does(self) -> None:
        for stable, wait in ((1e9, 0.004), (0.0, 0.001)):
            with self.subTest(stable=stable):
                async with Server() as server:
                    server.refuses = [503] * 2
                    p = self.program(server.url, backoff_base=0.001)
                    p.client._random = lambda: 1.0
                    p.client._stable = stable
                    waits = p.waits()
                    p.start()
                    for _ in range(2):
                        await server.accept()
                    peer = await server.accept()
                    peer.welcome()
                    peer.cut()
                    await server.accept()
                    await p.stop()
                self.assertEqual(waits, [0.001, 0.002, wait])

    async def test_silence_is_the_end_of_a_connection(self) -> None:
        async with Server() as server:
            p = self.program(server.url, watchdog_factor=2)
            p.start()
            peer = await server.accept()
            peer.welcome(heartbeat_ms=50)
            peer.batch("c1", "n1")
            peer.send_frame(9, b"")  # pings do not count
            self.assertEqual(await peer.said(), 0)
            self.assertEqual((await server.accept()).query["cursor"], "c1")
            await p.stop()
        self.assertEqual(p.told("waiting"), [("waiting", "watchdog", 0)])

    async def test_a_program_that_stopped_the_loop_is_no_silence(self) -> None:
        async with Server() as server:
            p = self.program(server.url, watchdog_factor=2)
            p.start()
            peer = await server.accept()
            peer.welcome(heartbeat_ms=1_000)
            peer.batch("c1", "n1")
            await p.saw("cursor", "c1")
            peer.batch("c2", "n2")  # arrives, and cannot be read
            time.sleep(4)
            await p.saw("cursor", "c2")
            await p.stop()
        self.assertEqual(p.told("waiting"), [])

    async def test_heartbeats_keep_a_connection(self) -> None:
        async with Server() as server:
            p = self.program(server.url, watchdog_factor=1000)
            p.start()
            peer = await server.accept()
            peer.welcome(heartbeat_ms=50)
            for i in range(100):
                peer.send({"action": "heartbeat", "cursor": f"h{i}"})
            await p.saw("cursor", "h99")
            await p.stop()
        self.assertEqual(p.told("waiting"), [])

    async def test_a_handler_that_takes_long_is_no_silence(self) -> None:
        async with Server() as server:
            p = self.program(server.url, watchdog_factor=2)
            p.handling.shut()
            p.start()
            peer = await server.accept()
            # Until the client has enough it does read, and a busy machine may stop it
            # for a moment with what has come unread.
            peer.welcome(heartbeat_ms=1_500)
            for i in range(101):
                peer.batch(f"c{i}", *(f"n{i}-{j}" for j in range(100)))  # over MAX_HELD, with the one in hand
            peer.batch("last")
            await until(lambda: p.client._connection is not None and p.client._connection._held > MAX_HELD)
            await asyncio.sleep(7)  # more than twice what would be silence
            self.assertFalse(p.lost())
            p.handling.open()
            await p.saw("cursor", "last")
            await p.stop()


class Addresses(Case):
    async def test_parameters_are_added_to_the_query(self) -> None:
        for url, want in (
            ("ws://h", "ws://h/?cursor=c%26d&channels=trade,risk&ticket=t"),
            ("wss://h:1/p?a=b&a=c", "wss://h:1/p?a=b&a=c&cursor=c%26d&channels=trade,risk&ticket=t"),
        ):
            self.assertEqual(address(url, "c&d", ["trade", "risk"], "t"), want)
        self.assertEqual(address("ws://h/p?x=%20", "", None, ""), "ws://h/p?x=%20")
        self.assertEqual(address("ws://h/p", "", [], ""), "ws://h/p?channels=")
