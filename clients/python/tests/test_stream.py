"""What a client hands over, and in which order."""

from __future__ import annotations

import asyncio
import math

from notification_client import MessageType, State, UnknownPayload
from notification_client._connection import MAX_HELD
from notification_client.notifications import AccountUpdate, TradeExecuted

from .case import Case
from .scripted import Server, notice, until


class Stream(Case):
    async def test_a_first_connection_loads_the_snapshot_before_anything_is_handed_over(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.loading.shut()
            p.start()
            peer = await server.accept()
            peer.welcome("c0")
            peer.live()
            peer.batch("c1", "n1", "n2")
            peer.send({"action": "heartbeat", "cursor": "c2"})
            await p.saw("snapshot", "start")
            peer.send_frame(9, b"")  # its pong tells that the client reads on
            await peer.pongs.wait()
            self.assertEqual(p.ids, [])
            p.loading.open()
            await p.saw("cursor", "c2")
            await p.stop()
            self.assertEqual(await peer.said(), 1000)
        self.assertEqual(
            p.events,
            [
                ("connecting",),
                ("credentials", "start"),
                ("replaying",),
                ("snapshot", "start"),
                ("loaded",),
                ("cursor", "c0"),
                ("live",),
                ("notification", "n1"),
                ("notification", "n2"),
                ("cursor", "c1"),
                ("cursor", "c2"),
                ("stopped", "closed", 1000),
            ],
        )
        self.assertEqual(peer.query, {"site": "1"})
        self.assertEqual(peer.headers["sec-websocket-protocol"], "notification.batch.v1")

    async def test_a_stored_cursor_resumes_without_a_snapshot(self) -> None:
        async with Server() as server:
            p = self.program(server.url, cursor="stored&1", channels=["trade", "risk"])
            p.start()
            peer = await server.accept()
            self.assertEqual(peer.query, {"site": "1", "cursor": "stored&1", "channels": "trade,risk"})
            peer.welcome("stored&1", resumed=True)
            peer.batch("c1", "n1")
            peer.live()
            await p.saw("live")
            await p.stop()
        self.assertEqual(p.told("snapshot"), [])
        events = p.told("replaying", "notification", "live")
        self.assertEqual(events, [("replaying",), ("notification", "n1"), ("live",)])

    async def test_no_channels_are_said_as_none(self) -> None:
        async with Server() as server:
            p = self.program(server.url, channels=[])
            p.start()
            self.assertEqual((await server.accept()).query["channels"], "")
            await p.stop()

    async def test_a_reset_loads_the_snapshot_once(self) -> None:
        async with Server() as server:
            p = self.program(server.url, cursor="old")
            p.start()
            peer = await server.accept()
            peer.welcome("c5")
            peer.send({"action": "reset", "reason": "cursor_gone"})
            peer.live()
            await p.saw("live")
            await p.stop()
        self.assertEqual(
            p.told("snapshot", "loaded", "cursor", "live"),
            [("snapshot", "cursor_gone"), ("loaded",), ("cursor", "c5"), ("live",)],
        )

    async def test_a_loss_reconnects_with_the_cursor_of_what_was_handled(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.start()
            peer = await server.accept()
            peer.welcome()
            peer.batch("c1", "n1")
            await p.saw("cursor", "c1")
            p.handling.shut()
            peer.batch("c2", "n2")
            await until(lambda: p.handling.entries == 2)
            peer.cut()
            await until(p.lost)
            self.assertEqual((p.client.cursor, server.requests), ("c1", 1))
            p.handling.open()
            peer = await server.accept()
            self.assertEqual(peer.query["cursor"], "c2")
            peer.welcome("c2", resumed=True)
            peer.live()
            await p.saw("live")
            await p.stop()
        self.assertEqual(p.told("waiting"), [("waiting", "network", 1006)])
        self.assertEqual(len(p.told("snapshot")), 1)
        self.assertEqual(len(set(p.ids)), len(p.ids))

    async def test_what_was_received_before_a_close_is_handed_over(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.handling.shut()
            p.start()
            peer = await server.accept()
            peer.welcome()
            peer.batch("c1", "n1")
            peer.batch("c2", "n2")
            peer.close(4000)
            self.assertEqual(await peer.said(), 4000)
            p.handling.open()
            peer = await server.accept()
            self.assertEqual(peer.query["cursor"], "c2")
            await p.stop()
        self.assertEqual(p.ids, ["n1", "n2"])
        self.assertEqual(p.told("waiting"), [("waiting", "server", 4000)])

    async def test_a_gap_drops_the_cursor_and_loads_a_snapshot(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.start()
            peer = await server.accept()
            peer.welcome()
            peer.batch("c1", "n1")
            peer.close(4123)
            peer = await server.accept()
            self.assertNotIn("cursor", peer.query)
            peer.welcome("c9")
            await p.saw("cursor", "c9")
            await p.stop()
        self.assertEqual(
            p.told("cursor", "snapshot", "waiting"),
            [
                ("snapshot", "start"),
                ("cursor", "c0"),
                ("cursor", "c1"),
                ("cursor", ""),
                ("waiting", "server", 4123),
                ("snapshot", "gap"),
                ("cursor", "c9"),
            ],
        )

    async def test_dropped_loads_a_snapshot_before_the_batch(self) -> None:
        async with Server() as server:
            p = self.program(server.url, cursor="c0")
            p.start()
            peer = await server.accept()
            peer.welcome("c0", resumed=True)
            peer.batch("c1", "n4", dropped=3)
            await p.saw("cursor", "c1")
            await p.stop()
        self.assertEqual(
            p.told("snapshot", "notification", "cursor"),
            [("snapshot", "gap"), ("notification", "n4"), ("cursor", "c1")],
        )
        self.assertEqual(p.batches[0].dropped, 3)

    async def test_a_snapshot_during_which_the_connection_is_lost_is_loaded_again(self) -> None:
        async with Server() as server:
            p = self.program(server.url, cursor="c0")
            p.loading.shut()
            p.start()
            peer = await server.accept()
            peer.welcome("c0", resumed=True)
            peer.batch("c1", "n4", dropped=3)
            await p.saw("snapshot", "gap")
            peer.cut()
            await until(p.lost)
            p.loading.open()
            peer = await server.accept()
            self.assertEqual(peer.query["cursor"], "c0")
            peer.welcome("c0", resumed=True)
            peer.batch("c1", "n4")
            await p.saw("notification", "n4")
            await p.stop()
        self.assertEqual(p.told("snapshot", "notification"), [("snapshot", "gap")] * 2 + [("notification", "n4")])

    async def test_a_connection_that_is_lost_already_needs_no_snapshot(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.handling.shut()
            p.start()
            peer = await server.accept()
            peer.welcome()
            peer.batch("c1", "n1")
            peer.batch("c3", "n3", dropped=1)
            await until(lambda: p.handling.entries == 1)
            peer.cut()
            await until(p.lost)
            p.handling.open()
            peer = await server.accept()
            self.assertEqual(peer.query["cursor"], "c1")
            peer.welcome("c1", resumed=True)
            peer.batch("c3", "n3")
            await p.saw("cursor", "c3")
            await p.stop()
        self.assertEqual(
            p.told("snapshot", "notification"),
            [("snapshot", "start"), ("notification", "n1"), ("snapshot", "gap"), ("notification", "n3")],
        )

    async def test_without_a_snapshot_nothing_that_came_is_thrown_away(self) -> None:
        async with Server() as server:
            p = self.program(server.url, snapshot=None)
            p.start()
            peer = await server.accept()
            peer.welcome()
            peer.batch("c1", "n1")
            peer.cut()
            with self.assertLogs("notification_client", "WARNING"):
                peer = await server.accept()
                self.assertEqual(peer.query["cursor"], "c1")
                peer.welcome("c2")
                peer.send({"action": "reset", "reason": "cursor_gone"})
                peer.batch("c3", "n3")
                await p.saw("cursor", "c3")
            await p.stop()
        self.assertEqual(p.told("notification", "cursor")[-2:], [("notification", "n3"), ("cursor", "c3")])

    async def test_a_server_that_keeps_no_history_leaves_a_gap(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.start()
            for _ in range(2):
                peer = await server.accept()
                self.assertNotIn("cursor", peer.query)
                peer.welcome("")
                peer.live()
                peer.batch("", "n1")
                await until(lambda: p.ids.count("n1") == server.requests)
                peer.cut()
            await server.accept()
            await p.stop()
        self.assertEqual(p.told("snapshot", "cursor"), [("snapshot", "start"), ("snapshot", "gap")])

    async def test_too_much_during_a_snapshot_begins_anew(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.loading.shut()
            p.start()
            peer = await server.accept()
            peer.welcome()
            half = [f"n{i}" for i in range(MAX_HELD // 2)]
            peer.batch("c1", *half)
            peer.batch("c2", *half)
            peer.live()
            peer.send_frame(9, b"")
            await peer.pongs.wait()  # so many may be held
            peer.batch("c3", "one more")
            self.assertEqual(await peer.said(), 0)  # at once, whatever the program does
            p.loading.open()
            peer = await server.accept()
            self.assertNotIn("cursor", peer.query)
            peer.welcome("c4")
            peer.batch("c5", "n0")
            await p.saw("cursor", "c5")
            await p.stop()
        self.assertEqual(
            p.told("waiting", "snapshot", "notification"),
            [("snapshot", "start"), ("waiting", "overflow", 0), ("snapshot", "start"), ("notification", "n0")],
        )

    async def test_a_slow_handler_holds_up_the_server_and_loses_nothing(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.handling.shut()
            p.start()
            peer = await server.accept()
            peer.welcome()
            for i in range(4 * MAX_HELD // 100):
                peer.batch(f"c{i + 1}", *(f"n{i}-{j}" for j in range(100)))
            await until(lambda: p.client._connection is not None and p.client._connection._held > MAX_HELD)
            for _ in range(100):
                await asyncio.sleep(0)
                assert p.client._connection is not None
                self.assertLessEqual(p.client._connection._held, MAX_HELD + 100)
            p.handling.open()
            await p.saw("cursor", f"c{4 * MAX_HELD // 100}")
            await p.stop()
        self.assertEqual(p.ids, [f"n{i}-{j}" for i in range(4 * MAX_HELD // 100) for j in range(100)])
        self.assertEqual(p.told("waiting"), [])

    async def test_batches_without_notifications_move_the_cursor_only(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.start()
            peer = await server.accept()
            peer.welcome()
            peer.batch("c1")
            await p.saw("cursor", "c1")
            await p.stop()
        self.assertEqual(p.handling.entries, 0)

    async def test_notifications_are_exact_and_typed(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.start()
            peer = await server.accept()
            peer.welcome()
            account = {"type": "account_update", "balance": None, "timestamp": -(2**63), "new": {"a": [1]}}
            notifications = [
                notice("trade"),
                notice("account", message_type="account_update", payload=account, timestamp=2**63 - 1, newer=1),
                notice("newer", message_type="moon_phase", payload={"phase": 0.5}),
                notice("other", payload={"price": "a string"}),
                notice("none", message_type="", payload=None),
                notice("text", timestamp="1700000000000000123", priority=True),
            ]
            peer.send({"cursor": "c1", "notifications": notifications, "newer": True})
            await p.saw("cursor", "c1")
            await p.stop()
        trade, account_update, newer, other, none, text = p.batches[0].notifications
        self.assertEqual(trade.payload, TradeExecuted(trade_id="trade", price=50100.0, volume=2.5))
        self.assertIs(type(trade.payload.price), float)  # type: ignore[union-attr]
        self.assertEqual(trade.message_type, MessageType.TRADE_EXECUTED)
        self.assertEqual(trade.timestamp, 1700000000000000123)
        assert isinstance(account_update.payload, AccountUpdate)
        self.assertTrue(math.isnan(account_update.payload.balance))
        self.assertEqual((account_update.timestamp, account_update.payload.timestamp), (2**63 - 1, -(2**63)))
        self.assertEqual(newer.payload, UnknownPayload(type="moon_phase", members={"phase": 0.5}))
        self.assertEqual(other.payload, UnknownPayload(type="trade_executed", members={"price": "a string"}))
        self.assertEqual(none.payload, UnknownPayload(type=""))
        self.assertEqual((text.timestamp, text.priority, text.user_id), (0, 0, "alice"))
        self.assertEqual([dict(n.raw) for n in p.batches[0].notifications], notifications)

    async def test_unknown_frames_and_keys_are_ignored(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.start()
            peer = await server.accept()
            peer.send({"action": "soon"})
            peer.welcome(newer={"key": 1})
            peer.send({"action": "soon", "cursor": "x"})
            peer.send({"neither": "action nor notifications"})
            peer.send({"action": "pong", "id": 7})
            peer.send({"action": "ok", "id": 7, "channels": ["trade"]})
            peer.send({"action": "error", "id": {"of": "nobody"}, "code": "bad_json"})
            peer.live()
            await p.saw("live")
            await p.stop()
        self.assertEqual(p.told("waiting"), [])

    async def test_large_and_fragmented_frames_arrive(self) -> None:
        async with Server() as server:
            p = self.program(server.url)
            p.start()
            peer = await server.accept()
            peer.welcome()
            peer.send({"cursor": "c1", "notifications": [notice("big", source="x" * (3 << 20))]})
            peer.send_frame(1, b'{"cursor":"c2",', fin=False)
            peer.send_frame(9, b"")
            peer.send_frame(0, b'"notifications":[]}')
            await p.saw("cursor", "c2")
            await p.stop()
        self.assertEqual(p.ids, ["big"])

    async def test_what_is_no_frame_is_the_servers_bug_and_reconnects(self) -> None:
        wrong: list[tuple[str, int, bytes]] = [
            ("no JSON", 1, b"{"),
            ("not a number of JSON", 1, b'{"action":"live","x":NaN}'),
            ("no object", 1, b"[]"),
            ("too deep", 1, b"[" * 100_000),
            ("an integer of 5,000 digits", 1, b'{"x":' + b"1" * 5000 + b"}"),
            ("binary", 2, b'{"action":"live"}'),
            ("no UTF-8", 1, b'"\xff"'),
            ("a cursor that is no text", 1, b'{"action":"heartbeat","cursor":1}'),
            ("notifications that are no list", 1, b'{"cursor":"c9","notifications":{}}'),
            ("a notification that is no object", 1, b'{"cursor":"c9","notifications":[1]}'),
            ("a second welcome", 1, b'{"action":"welcome","cursor":"c9","resumed":true,"heartbeat_ms":1000}'),
            ("an opcode that there is not", 3, b""),
        ]
        for name, opcode, payload in wrong:
            with self.subTest(name), self.assertLogs("notification_client", "DEBUG"):
                async with Server() as server:
                    p = self.program(server.url, cursor="c0")
                    p.start()
                    peer = await server.accept()
                    peer.welcome("c0", resumed=True)
                    peer.batch("c1", "n1")
                    peer.send_frame(opcode, payload)
                    peer = await server.accept()
                    self.assertEqual(peer.query["cursor"], "c1")
                    await p.stop()
                self.assertEqual(p.told("waiting"), [("waiting", "protocol", 0)])
                self.assertEqual(p.ids, ["n1"])

    async def test_the_states_are_told_once_each(self) -> None:
        async with Server() as server:
            states: list[State] = []
            p = self.program(server.url, on_state=states.append)
            p.start()
            peer = await server.accept()
            peer.welcome()
            peer.live()
            peer.live()
            peer.close(1001)
            peer = await server.accept()
            await p.stop()
        names = [state.name for state in states]
        self.assertEqual(names, ["connecting", "replaying", "live", "waiting", "connecting", "stopped"])
        self.assertEqual(p.client.state, State("stopped", "closed", 1000))
