"""The client and the real server, which is a program in Go."""

from __future__ import annotations

import unittest
from typing import Any

from notification_client import Batch, StoppedError, Ticket, Token
from notification_client.notifications import RiskAlert, TradeExecuted

from .case import Case, Program
from .gateway import MISSING, Gateway, available
from .scripted import until

@unittest.skipUnless(available(), MISSING)
class RealServer(Case):
    def trader(self, gateway: Gateway, user: str = "alice", **options: Any) -> Program:
        # The server sends a heartbeat every half second, or when the machine lets it.
        p = self.program(gateway.url, **({"watchdog_factor": 120} | options))

        async def ask(why: str) -> Token:
            p.events.append(("credentials", why))
            return Token(user)

        p.client._credentials = options.get("credentials", ask)
        return p

    def numbers(self, *ranges: tuple[int, int]) -> list[str]:
        return [f"trade-{i}" for first, last in ranges for i in range(first, last + 1)]

    async def test_every_notification_once_and_in_order_however_often_the_network_is_cut(self) -> None:
        async with Gateway() as gateway:
            p = self.trader(gateway)
            p.start()
            await p.saw("live")
            for i in range(1, 2001, 100):
                await gateway.do("publish", "alice", "trade", i, i + 99)
                await p.saw("notification", f"trade-{i}")  # the rest may be on its way
                await gateway.do("cut")
            await p.saw("notification", "trade-2000")
            await p.stop()
        self.assertEqual(p.ids, self.numbers((1, 2000)))
        self.assertGreaterEqual(p.told("waiting").count(("waiting", "network", 1006)), 10)
        self.assertEqual(p.told("snapshot"), [("snapshot", "start")])
        for batch in p.batches:
            for n in batch.notifications:
                number = int(n.message_id.removeprefix("trade-"))
                self.assertEqual(n.timestamp, 1_700_000_000_000_000_001 + number)
                trade = TradeExecuted(trade_id=str(number), price=0.1 * number, timestamp=n.timestamp)
                self.assertEqual(n.payload, trade)

    async def test_a_program_that_comes_back_with_its_cursor_goes_on(self) -> None:
        async with Gateway() as gateway:
            p = self.trader(gateway)
            p.start()
            await p.saw("live")
            await gateway.do("publish", "alice", "trade", 1, 5)
            await p.saw("notification", "trade-5")
            await p.stop()
            await gateway.do("publish", "alice", "trade", 6, 300)
            again = self.trader(gateway, cursor=p.client.cursor)
            again.start()
            await again.saw("live")
            await again.stop()
        self.assertEqual(again.ids, self.numbers((6, 300)))
        self.assertEqual(again.told("replaying", "live", "snapshot"), [("replaying",), ("live",)])

    async def test_a_restart_of_the_server_loads_a_snapshot(self) -> None:
        async with Gateway() as gateway:
            for ending in (gateway.kill, gateway.shut_down):
                with self.subTest(ending.__name__):
                    p = self.trader(gateway, backoff_base=0.05, backoff_max=0.05)
                    p.start()
                    await p.saw("live")
                    await gateway.do("publish", "alice", "trade", 1, 3)
                    await p.saw("notification", "trade-3")
                    ending()
                    await until(lambda: len(p.told("waiting")) > 1)
                    await gateway.start()
                    await p.saw("snapshot", "cursor_gone")
                    await gateway.do("publish", "alice", "trade", 4, 5)
                    await p.saw("notification", "trade-5")
                    await p.stop()
                    self.assertEqual(p.ids, self.numbers((1, 5)))
                    self.assertEqual(p.told("snapshot"), [("snapshot", "start"), ("snapshot", "cursor_gone")])

    async def test_too_much_was_missed(self) -> None:
        async with Gateway(history=100) as gateway:
            p = self.trader(gateway)
            p.start()
            await p.saw("live")
            await p.stop()
            await gateway.do("publish", "alice", "trade", 1, 300)
            again = self.trader(gateway, cursor=p.client.cursor)
            again.start()
            await again.saw("live")
            await again.stop()
        self.assertEqual(again.told("snapshot", "notification"), [("snapshot", "cursor_gone")])

    async def test_a_gap(self) -> None:
        async with Gateway() as gateway:
            p = self.trader(gateway)
            p.start()
            await p.saw("live")
            await gateway.do("gap")
            await p.saw("snapshot", "gap")
            await gateway.do("publish", "alice", "trade", 1, 1)
            await p.saw("notification", "trade-1")
            await p.stop()
        self.assertIn(("waiting", "server", 4100), p.events)
        self.assertIn(("cursor", ""), p.events)

    async def test_refusals(self) -> None:
        for user, code, attempts in (("nobody", 4401, 2), ("banned", 4403, 1)):
            with self.subTest(user):
                async with Gateway() as gateway:
                    p = self.trader(gateway, user)
                    p.start()
                    with self.assertRaises(StoppedError) as caught:
                        await p.ended()
                self.assertEqual((caught.exception.code, len(p.told("credentials"))), (code, attempts))

    async def test_the_newer_of_two_sessions_stays(self) -> None:
        async with Gateway() as gateway:
            p, newer = self.trader(gateway), self.trader(gateway)
            p.start()
            await p.saw("live")
            newer.start()
            with self.assertRaises(StoppedError) as caught:
                await p.ended()
            await newer.saw("live")
            await newer.stop()
        self.assertEqual(caught.exception.code, 4409)

    async def test_tickets(self) -> None:
        async with Gateway() as gateway:

            async def ask(why: str) -> Ticket:
                return Ticket(await gateway.do("ticket", "alice"))

            p = self.trader(gateway, credentials=ask)
            p.start()
            await p.saw("live")
            await gateway.do("cut")
            await gateway.do("publish", "alice", "trade", 1, 1)
            await p.saw("notification", "trade-1")
            await p.stop()

    async def test_tokens_that_expire_are_extended_on_the_connection(self) -> None:
        async with Gateway() as gateway:
            whys: list[str] = []

            async def ask(why: str) -> Token:
                whys.append(why)
                return Token("alice:20000") if len(whys) < 3 else Token("alice")

            p = self.trader(gateway, credentials=ask)
            p.client._least_pause = 0.1
            p.start()
            await until(lambda: len(whys) == 3)
            await gateway.do("publish", "alice", "trade", 1, 1)
            await p.saw("notification", "trade-1")
            await p.stop()
        self.assertEqual(whys, ["start", "expiring", "expiring"])
        self.assertEqual(p.told("waiting"), [])

    async def test_channels(self) -> None:
        async with Gateway() as gateway:
            p = self.trader(gateway, channels=["trade"])
            p.start()
            await p.saw("live")
            await gateway.do("publish", "alice", "risk", 1, 1)
            await gateway.do("publish", "alice", "trade", 1, 1)
            await p.saw("notification", "trade-1")
            await p.client.subscribe("risk")
            await gateway.do("publish", "alice", "risk", 2, 2)
            await p.saw("notification", "risk-2")
            await p.client.unsubscribe("trade")
            await gateway.do("cut")
            await gateway.do("publish", "alice", "trade", 2, 2)
            await gateway.do("publish", "alice", "risk", 3, 3)
            await p.saw("notification", "risk-3")
            await p.stop()
        self.assertEqual(p.ids, ["trade-1", "risk-2", "risk-3"])
        alert = p.batches[-1].notifications[0]
        self.assertEqual(
            alert.payload,
            RiskAlert(user_id="alice", message='"ü" 1700000000000000001,', timestamp=alert.timestamp),
        )

    async def test_heartbeats_keep_it_alive_and_move_the_cursor(self) -> None:
        async with Gateway() as gateway:
            p = self.trader(gateway, channels=["risk"])
            p.start()
            await p.saw("live")
            began = p.client.cursor
            await gateway.do("publish", "alice", "trade", 1, 1)  # which it does not get
            await until(lambda: p.client.cursor != began)
            await p.stop()
        self.assertEqual((p.told("waiting"), p.ids), ([], []))

    async def test_an_iteration_over_cuts_and_a_stop(self) -> None:
        async with Gateway() as gateway:
            p = self.trader(gateway, iterates=True)
            batches: list[Batch] = []
            async with p.client as client:
                await p.saw("live")
                await gateway.do("publish", "alice", "trade", 1, 250)
                async for batch in client:
                    batches.append(batch)
                    await gateway.do("cut")
                    if batch.notifications[-1].message_id == "trade-250":
                        client.stop()
            ids = [n.message_id for batch in batches for n in batch.notifications]
            self.assertEqual(ids, self.numbers((1, 250)))
            self.assertEqual(client.cursor, batches[-1].cursor)
