"""Warm-ups, reputation, breakers and alarms with the real scheduler, over restarts."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import free_port, until
from fakes import Later, Upstream
from rig import Rig, running, write_config
from test_blame import SLOW, many

from relay import clock
from relay.scheduler import standing


def warm(up: Upstream, first: str = "3/d", more: str = "") -> str:
    today = datetime.now(UTC).date()  # not when this was imported: another day may have begun since
    plan = f"start: {today - timedelta(days=1)}, first: {first}, growth: 20%, until: 1000/d, spread: none{more}"
    return f"port: {up.port}, tls: none, warm_up: {{{plan}}}"


async def test_what_is_in_excess_of_a_warm_up_goes_by_the_warm_egress_and_so_after_a_restart(tmp_path: Path) -> None:
    async with Upstream() as new, Upstream() as old:
        accounts = {"new": warm(new, more=", overflow: old"), "old": f"port: {old.port}, tls: none"}
        file = write_config(tmp_path, accounts, routes="  - {name: all, via: new}")
        async with running(file) as rig:
            await rig.send_many(many(5))
            await rig.settled()
            assert (len(new.delivered()), len(old.delivered())) == (3, 2)
            (row,) = [r for r in rig.app.scheduler.usage.limits(clock.now()) if "warm-up" in r["limit"]]
            assert (row["spent"], row["count"], row["whose"]) == (3, 3, "account new")
            assert "day 1, 3 of 3 recipients today" in row["limit"]
            assert rig.said("alarm") == []
        async with running(file) as rig:
            await rig.send_many(many(2))
            await rig.settled()
        assert (len(new.delivered()), len(old.delivered())) == (3, 4)


async def test_without_an_overflow_it_waits_and_says_so(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, {"main": warm(up)})) as rig:
        ids = await rig.send_many(many(4))
        await until(lambda: len(up.delivered()) == 3)
        (waits,) = [row for row in await rig.rows(*ids) if row["state"] == "queued"]
        assert "warm-up of main: day 1, 3 of 3 recipients today" in waits["why"]


async def test_a_sender_whose_mail_bounces_goes_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "JUDGE_EVERY", 0.1)
    routes = '  - {name: poor, match: {reputation: "< 0.7"}, via: slow}\n  - {name: rest, via: main}'
    # Nobody is refused before all are handed in: who comes after the first of them were judged goes the other way already.
    go = asyncio.Event()
    script = {"RCPT": lambda arg: Later(0, "550 5.1.1 nobody", go) if "gone" in arg else None}
    async with Upstream(script) as up, Upstream() as slow:
        accounts = {"main": f"port: {up.port}, tls: none", "slow": f"port: {slow.port}, tls: none"}
        file = write_config(tmp_path, accounts, routes=routes)
        async with running(file) as rig:
            for sender, to in (("app@poor.example", "gone"), ("app@good.example", "you")):
                await rig.send_many((sender, (f"{to}{i}@example.net",), b"Subject: t\r\n\r\nhi\r\n") for i in range(30))
            go.set()
            await rig.settled()
            await until(lambda: rig.app.scheduler.score("x@poor.example") < 0.7)
            assert rig.app.scheduler.score("x@good.example") > 0.9
            await _one_of_each(rig)
            assert slow.delivered() == ["last@example.net"] and len(up.delivered()) == 31
            rows = {(r["what"], r["name"]): r for r in rig.app.scheduler.usage.reputation(clock.now())}
            assert rows["sender", "poor.example"]["bounces"] == pytest.approx(30 / 31)
            assert rows["egress", "main"]["tried"] == 61 and rows["class", "default"]["score"] < 0.7
        async with running(file) as rig:
            await _one_of_each(rig)
            assert len(slow.delivered()) == 2, "what is known of a sender survives a restart"


async def _one_of_each(rig: Rig) -> None:
    for sender in ("app@poor.example", "app@good.example"):
        await rig.reaches(await rig.send("last@example.net", sender=sender), "delivered")


async def test_a_fail_over_alarms_once_until_it_is_over(tmp_path: Path) -> None:
    port = free_port()
    extra = "breaker: {failures: 1, cool_down: 300ms, max: 300ms}"
    async with Upstream() as second:
        accounts = {"main": f"port: {port}, tls: none", "second": f"port: {second.port}, tls: none"}
        async with running(write_config(tmp_path, accounts, extra=extra, classes=SLOW)) as rig:
            for _ in range(4):
                await rig.reaches(await rig.send(), "delivered")
            (alarm,) = rig.said("alarm")
            assert (alarm["what"], alarm["egress"], alarm["to"]) == ("failed_over", "main", "second")
            assert [row["egress"] for row in rig.app.scheduler.usage.alarms()] == ["main"]
            async with Upstream(port=port) as main:
                await until(lambda: not rig.egress().breaker.wait(clock.now()))
                await rig.reaches(await rig.send(), "delivered")
                await until(lambda: len(main.delivered()) + len(second.delivered()) >= 5)
                while not main.delivered():
                    await rig.reaches(await rig.send(), "delivered")
            assert len(rig.said("alarm_over")) == 1 and rig.app.scheduler.usage.alarms() == []


async def test_a_breaker_that_is_open_is_so_after_a_restart(tmp_path: Path) -> None:
    extra = "breaker: {failures: 1, cool_down: 10m, max: 30m}"
    file = write_config(tmp_path, {"main": f"port: {free_port()}, tls: none"}, extra=extra, classes=SLOW)
    async with running(file) as rig:
        await rig.tried(await rig.send())
        wait = rig.egress().breaker.wait(clock.now())
    async with running(file) as rig:
        breaker = rig.egress().breaker
        assert breaker.is_open and wait - 60 < breaker.wait(clock.now()) <= wait and "refused" in breaker.why


async def test_what_is_not_a_document_of_ours_stops_no_start(tmp_path: Path) -> None:
    async with Upstream() as up:
        file = write_config(tmp_path, {"main": warm(up, "100/d")})
        async with running(file) as rig:
            keys = ("egress main", "reputation", "shaping", "suppressed", "suspensions", "shared egress x")
            await rig.app.spool.remember(
                dict.fromkeys(keys, '{"rows": [1], "breaker": {"until": "x"}, "pace": {"warm-up": {}}}')
            )
            await rig.app.spool.remember({"egress second": "[]", "egress third": "{"})
            rig.app.scheduler.memory.sources.clear()
            rig.app.scheduler.memory._known.clear()
        async with running(file) as rig:
            await rig.reaches(await rig.send(), "delivered")
