"""How a client begins and ends, and what a program may do meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any
from unittest.mock import patch

from notification_client import Batch, Client, CommandError, State, StoppedError, _connection
from notification_client._connection import MAX_HELD

from .case import Case, Program
from .scripted import Peer, Server, patiently, until


class Beginnings(Case):
    async def test_what_is_wrong_is_named(self) -> None:
        for url in ("http://h", "ws:///path", "ws://h/#fragment"):
            with self.assertRaisesRegex(ValueError, "url"):
                Client(url)
        wrong: list[tuple[str, dict[str, Any]]] = [
            ("channels", {"channels": "trade"}),
            ("backoff", {"backoff_base": -1}),
            ("watchdog_factor", {"watchdog_factor": 1}),
            ("ssl", {"ssl": object()}),
        ]
        for name, options in wrong:
            with self.assertRaisesRegex(ValueError, name):
                Client("ws://h", **options)

    async def test_a_client_runs_once(self) -> None:
        p = self.program("ws://127.0.0.1:1")
        p.client.stop()
        await p.client.run()
        with self.assertRaisesRegex(RuntimeError, "once"):
            await p.client.run()
        self.assertEqual(p.events, [("stopped", "closed", 1000)])

    async def test_a_client_without_a_handler_iterates(self) -> None:
        client = Client("ws://127.0.0.1:1")
        with self.assertRaisesRegex(RuntimeError, "async with"):
            await client.run()
        with self.assertRaisesRegex(RuntimeError, "async with"):
            await anext(client)


class Ends(Case):
    async def test_stop_waits_for_the_handler_and_hands_over_nothing_else(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.handling.shut()
            p.start()
            peer = await server.accept()
            peer.welcome()
            peer.batch("c1", "n1")
            peer.batch("c2", "n2")
            await until(lambda: p.handling.entries == 1)
            p.client.stop()
            p.client.stop()
            for _ in range(10):
                await asyncio.sleep(0)
            assert p.task is not None
            self.assertFalse(p.task.done())
            p.handling.open()
            await p.ended()
            self.assertEqual(await peer.said(), 1000)
        self.assertEqual((p.ids, p.client.cursor), (["n1"], "c1"))
        self.assertEqual(p.events[-2:], [("cursor", "c1"), ("stopped", "closed", 1000)])

    async def test_stop_waits_for_the_snapshot(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.loading.shut()
            p.start()
            peer = await server.accept()
            peer.welcome()
            peer.batch("c1", "n1")
            await p.saw("snapshot", "start")
            p.client.stop()
            p.loading.open()
            await p.ended()
            self.assertEqual(await peer.said(), 1000)
        self.assertEqual(p.ids, [])

    async def test_stop_during_the_snapshot_of_a_batch_leaves_the_cursor_before_it(self) -> None:
        async with Server() as server:
            p = self.program(server.url, cursor="c0")
            p.loading.shut()
            p.start()
            peer = await server.accept()
            peer.welcome("c0", resumed=True)
            peer.batch("c1", "n1", dropped=2)
            await p.saw("snapshot", "gap")
            p.client.stop()
            p.loading.open()
            await p.ended()
        self.assertEqual((p.ids, p.client.cursor), ([], "c0"))

    async def test_stop_does_not_wait_for_a_connection(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.start()
            await server.accept()  # there will be no welcome
            await p.stop()
            self.assertEqual(p.events[-1], ("stopped", "closed", 1000))

    async def test_stop_does_not_wait_for_the_next_attempt(self) -> None:
        async with Server() as server:
            server.refuses = [503]
            p = self.program(server.url, backoff_base=1e6, backoff_max=1e6)
            p.start()
            await p.saw("waiting", "handshake", 0)
            await p.stop()

    async def test_stop_does_not_wait_for_credentials(self) -> None:
        asked = asyncio.Event()

        async def ask(why: str) -> None:
            asked.set()
            await asyncio.Event().wait()

        p = self.program("ws://127.0.0.1:1", credentials=ask)
        p.start()
        await asked.wait()
        await p.stop()
        self.assertEqual(p.events[-1], ("stopped", "closed", 1000))

    async def test_stop_works_in_callbacks_and_in_signal_handlers(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.client._on_state = lambda state: p.client.stop() if state.name == "live" else None
            p.start()
            peer = await server.accept()
            peer.welcome()
            peer.live()
            await p.ended()

            p = self.program(server.url)
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, p.client.stop)
            p.start()
            (await server.accept()).welcome()
            os.kill(os.getpid(), signal.SIGUSR1)
            await p.ended()
            asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)

    async def test_a_server_that_does_not_answer_a_close_is_left(self) -> None:
        for cancelled, patience in ((False, 0.01), (True, 1e6)):
            with self.subTest(cancelled=cancelled), patch.object(_connection, "CLOSE_TIMEOUT", patience):
                async with Server() as server:
                    p = self.program(server.url)
                    p.start()
                    peer = await server.accept()
                    peer.welcome()
                    await p.saw("replaying")
                    peer.stall()
                    p.client.stop()
                    if cancelled:
                        await until(p.lost)
                        assert p.task is not None
                        p.task.cancel()
                        with self.assertRaises(asyncio.CancelledError):
                            await p.ended()
                    else:
                        await p.ended()
                self.assertEqual(p.events[-1], ("stopped", "closed", 1000))

    async def test_cancelling_run_leaves_nothing(self) -> None:
        async def connecting(p: Program, peer: Peer) -> None: ...

        async def handling(p: Program, peer: Peer) -> None:
            p.handling.shut()
            peer.welcome()
            peer.batch("c1", "n1")
            await until(lambda: p.handling.entries == 1)

        async def loading(p: Program, peer: Peer) -> None:
            p.loading.shut()
            peer.welcome()
            await p.saw("snapshot", "start")

        async def idle(p: Program, peer: Peer) -> None:
            peer.welcome()
            peer.live()
            await p.saw("live")

        async def waiting(p: Program, peer: Peer) -> None:
            peer.cut()
            await p.saw("waiting", "network", 1006)

        for situation in (connecting, handling, loading, idle, waiting):
            with self.subTest(situation.__name__):
                async with Server() as server:
                    p = self.program(server.url, backoff_base=1e6, backoff_max=1e6)
                    p.start()
                    peer = await server.accept()
                    await situation(p, peer)
                    assert p.task is not None
                    p.task.cancel()
                    with self.assertRaises(asyncio.CancelledError):
                        await p.ended()
                    if situation is not waiting:
                        self.assertEqual(await peer.said(), 0)
                self.assertEqual(p.events[-1], ("stopped", "closed", 1000))
                self.assertEqual(p.ids, [])
                self.assertNotIn(("cursor", "c1"), p.events)

    async def test_a_handler_that_raises_stops_with_the_cursor_before(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.start()
            peer = await server.accept()
            peer.welcome()
            peer.batch("c1", "n1")
            await p.saw("cursor", "c1")
            p.handling.error = TimeoutError("of the handler")
            peer.batch("c2", "n2")
            with self.assertRaisesRegex(TimeoutError, "of the handler") as caught:
                await p.ended()
            self.assertIsNone(caught.exception.__context__)
            self.assertEqual(await peer.said(), 1000)
        self.assertEqual(p.events[-1], ("stopped", "handler", 0))
        self.assertEqual(p.client.cursor, "c1")

    async def test_other_callbacks_that_raise_stop_too(self) -> None:
        async def keep(cursor: str) -> None:
            raise OSError("disk full")

        async with Server() as server:
            p = self.program(server.url, on_cursor=keep)
            p.start()
            (await server.accept()).welcome()
            with self.assertRaisesRegex(OSError, "disk full"):
                await p.ended()
            p = self.program(server.url)
            p.loading.error = LookupError("no snapshot")
            p.start()
            (await server.accept()).welcome()
            with self.assertRaisesRegex(LookupError, "no snapshot"):
                await p.ended()
        self.assertEqual((p.events[-1], p.client.cursor), (("stopped", "handler", 0), ""))

    async def test_on_state_that_raises_is_logged(self) -> None:
        def see(state: State) -> None:
            raise ValueError("of the program")

        async with Server() as server:
            p = self.program(server.url, on_state=see)
            with self.assertLogs("notification_client", "ERROR") as logs:
                p.start()
                peer = await server.accept()
                peer.welcome()
                peer.batch("c1", "n1")
                await p.saw("cursor", "c1")
                await p.stop()
        self.assertEqual(len(logs.records), 3)


class Iterations(Case):
    async def test_a_batch_is_handled_when_the_next_one_is_asked_for(self) -> None:
        async with Server() as server:
            p = self.program(server.url, iterates=True)
            async with p.client as client:
                peer = await server.accept()
                peer.welcome()
                peer.batch("c1", "n1")
                peer.batch("c2", "n2")
                peer.batch("c3", "n3")
                async for batch in client:
                    await p.handle(batch)
                    await asyncio.sleep(0)
                    self.assertEqual(client.cursor, f"c{len(p.ids) - 1}")
                    if p.ids[-1] == "n3":
                        client.stop()
            self.assertEqual(await peer.said(), 1000)
        self.assertEqual((p.ids, client.cursor), (["n1", "n2", "n3"], "c3"))
        self.assertEqual(p.events[-2:], [("cursor", "c3"), ("stopped", "closed", 1000)])

    async def test_a_batch_whose_loop_is_left_is_not_handled(self) -> None:
        for error in (None, LookupError("of the block")):
            with self.subTest(error=error):
                async with Server() as server:
                    p = self.program(server.url, iterates=True)
                    with contextlib.suppress(LookupError):
                        async with p.client as client:
                            peer = await server.accept()
                            peer.welcome()
                            peer.batch("c1", "n1")
                            peer.batch("c2", "n2")
                            async for batch in client:
                                await p.handle(batch)
                                if error:
                                    raise error
                                break
                        self.assertIsNone(error)
                    self.assertEqual(await peer.said(), 1000)
                self.assertEqual((p.ids, client.cursor), (["n1"], "c0"))
                self.assertEqual(p.events[-1], ("stopped", "closed", 1000))

    async def test_an_iteration_goes_on_over_reconnects(self) -> None:
        async with Server() as server:
            p = self.program(server.url, iterates=True)
            async with p.client as client:
                peer = await server.accept()
                peer.welcome()
                peer.batch("c1", "n1")
                self.assertEqual((await anext(client)).cursor, "c1")
                peer.cut()
                await until(p.lost)
                following = asyncio.ensure_future(anext(client))
                peer = await server.accept()
                self.assertEqual(peer.query["cursor"], "c1")
                peer.welcome("c1", resumed=True)
                peer.batch("c2", "n2")
                self.assertEqual((await patiently(following)).cursor, "c2")

    async def test_it_raises_what_stops_the_client(self) -> None:
        async with Server() as server:
            p = self.program(server.url, iterates=True)
            with self.assertRaises(StoppedError) as caught:
                async with p.client as client:
                    peer = await server.accept()
                    peer.welcome()
                    peer.batch("c1", "n1")
                    peer.close(4409)
                    async for batch in client:
                        await p.handle(batch)
            self.assertEqual(caught.exception.code, 4409)
        self.assertEqual((p.ids, client.cursor), (["n1"], "c1"))

    async def test_a_block_that_does_not_iterate_learns_at_its_end(self) -> None:
        async with Server() as server:
            server.refuses = [403]
            p = self.program(server.url)
            with self.assertRaises(StoppedError):
                async with p.client:
                    await p.saw("stopped", "handshake", 4403)

    async def test_cancelling_it_leaves_nothing(self) -> None:
        async with Server() as server:
            for handling in (False, True):
                with self.subTest(handling=handling):
                    p = self.program(server.url, iterates=True)
                    busy = asyncio.Event()

                    async def iterate(client: Client) -> None:
                        async with client:
                            async for _ in client:
                                busy.set()
                                await asyncio.Event().wait()

                    task = asyncio.create_task(iterate(p.client))
                    peer = await server.accept()
                    peer.welcome()
                    if handling:
                        peer.batch("c1", "n1")
                        await busy.wait()
                    await p.saw("cursor", "c0")
                    task.cancel()
                    await asyncio.wait([task])
                    self.assertTrue(task.cancelled())
                    self.assertEqual(p.client.cursor, "c0")

    async def test_cancelling_a_block_cancels_the_handler(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.handling.shut()

            async def use() -> None:
                async with p.client:
                    await asyncio.Event().wait()

            task = asyncio.create_task(use())
            peer = await server.accept()
            peer.welcome()
            peer.batch("c1", "n1")
            await until(lambda: p.handling.entries == 1)
            task.cancel()
            await patiently(asyncio.wait([task]))
            self.assertTrue(task.cancelled())
            self.assertEqual(p.client.cursor, "c0")

    async def test_a_timeout_while_waiting_for_the_next_batch_loses_none(self) -> None:
        async with Server() as server:
            p = self.program(server.url, iterates=True)
            async with p.client as client:
                peer = await server.accept()
                peer.welcome()
                await p.saw("cursor", "c0")
                with self.assertRaises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await anext(client)
                peer.batch("c1", "n1")
                peer.batch("c2", "n2")
                batches: list[Batch] = [await anext(client), await anext(client)]
        self.assertEqual([batch.cursor for batch in batches], ["c1", "c2"])


class Channels(Case):
    async def test_a_command_returns_when_the_server_has_answered(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.start()
            peer = await server.accept()
            peer.welcome()
            await p.saw("replaying")
            self.assertIsNone(p.client.channels)
            p.handling.shut()
            peer.batch("c1", "n1")  # a busy program may
            subscribing = asyncio.ensure_future(p.client.subscribe("trade", "risk"))
            self.assertEqual(await peer.said(), {"action": "subscribe", "id": 1, "channels": ["trade", "risk"]})
            unsubscribing = asyncio.ensure_future(p.client.unsubscribe("risk"))
            self.assertEqual(await peer.said(), {"action": "unsubscribe", "id": 2, "channels": ["risk"]})
            self.assertFalse(subscribing.done())
            peer.send({"action": "ok", "id": 1, "channels": ["trade", "risk"]})
            peer.send({"action": "ok", "id": 2, "channels": ["trade"]})
            await patiently(subscribing)
            await patiently(unsubscribing)
            self.assertEqual(p.client.channels, {"trade"})
            p.handling.open()
            peer.cut()
            self.assertEqual((await server.accept()).query["channels"], "trade")
            await p.stop()

    async def test_a_handler_may_wait_for_an_answer_however_much_waits_for_it(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.start()
            peer = await server.accept()
            peer.welcome()
            await p.saw("cursor", "c0")
            p.handling.shut()
            for i in range(MAX_HELD // 100 + 3):
                peer.batch(f"c{i + 1}", *(f"n{i}-{j}" for j in range(100)))
            await until(lambda: p.client._connection is not None and p.client._connection._held > MAX_HELD)
            subscribing = asyncio.ensure_future(p.client.subscribe("trade"))
            await peer.said()
            peer.send({"action": "ok", "id": 1, "channels": ["trade"]})
            await patiently(subscribing)
            p.handling.open()
            await p.stop()
        self.assertEqual(p.client.channels, {"trade"})

    async def test_what_the_server_refuses_is_not_said_again(self) -> None:
        async with Server() as server:
            p = self.program(server.url, channels=["trade"])
            p.start()
            peer = await server.accept()
            peer.welcome()
            await p.saw("replaying")
            subscribing = asyncio.ensure_future(p.client.subscribe("moon"))
            await peer.said()
            peer.send({"action": "error", "id": 1, "code": "unknown_channel", "message": "no moon"})
            with self.assertRaisesRegex(CommandError, "unknown_channel: no moon"):
                await patiently(subscribing)
            peer.cut()
            self.assertEqual((await server.accept()).query["channels"], "trade")
            await p.stop()

    async def test_without_a_connection_the_next_one_says_it(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            await p.client.unsubscribe("trade", "account", "position")
            self.assertEqual(p.client.channels, {"risk", "system"})
            await p.client.subscribe("trade", "risk")
            p.start()
            peer = await server.accept()
            self.assertEqual(peer.query["channels"], "risk,system,trade")
            waiting = asyncio.ensure_future(p.client.unsubscribe("risk"))  # the attempt has said its channels
            await asyncio.sleep(0)
            self.assertFalse(waiting.done())
            peer.welcome()
            self.assertEqual(await peer.said(), {"action": "unsubscribe", "id": 1, "channels": ["risk"]})
            peer.cut()  # before the answer
            await patiently(waiting)
            self.assertEqual((await server.accept()).query["channels"], "system,trade")
            await p.stop()
            with self.assertRaises(ValueError):
                await p.client.subscribe()
