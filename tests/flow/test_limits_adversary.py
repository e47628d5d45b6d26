"""Limits, warm-ups and suspensions where they are weakest: mail under way, a site that was quiet, a broken document."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fakes import Later, Upstream
from lab import burst, lab, soon
from rig import running, until
from test_blame import many, quiet, rules

from relay.scheduler import egresses as ways

WARM = "per: mx, warm_up: {start: 2024-01-01, first: 3/d, until: 1000/d, spread: none}"


async def test_a_site_that_was_quiet_does_not_begin_its_day_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "FORGET", -1.0)
    async with lab(tmp_path, {"d1.test": "127.0.1.1"}) as here, running(here.config(WARM)) as rig:
        await burst(rig, [f"r{n}@d1.test" for n in range(3)])
        await rig.settled()
        egresses = rig.app.scheduler.egresses
        await soon(lambda: all(not e.busy for e in egresses.values()))
        for egress in egresses.values():
            while egress.idle:
                egress.spare()
        await soon(lambda: all(not e.sessions for e in egresses.values()))
        egresses.forget()
        ids = await burst(rig, ["late@d1.test"])
        await until(lambda: rig.app.scheduler.lanes.by_id)
        row = await rig.row(ids[0])
        async with asyncio.timeout(30):
            while row["state"] != "delivered" and "warm-up" not in row["why"]:
                await asyncio.sleep(0.02)
                row = await rig.row(ids[0])
        await asyncio.sleep(0.3)
        assert len(here.delivered) == 3 and "warm-up" in row["why"]


async def test_what_is_claimed_waits_when_its_egress_is_suspended(tmp_path: Path) -> None:
    held = asyncio.Event()
    async with (
        Upstream({"DOT": lambda _: Later(0, "250 ok", held)}) as up,
        running(rules(tmp_path, {"main": up})) as rig,
    ):
        await rig.send_many(many(30))
        await until(lambda: len(rig.egress().backlog) > 0 and len(up.transactions) == 3)
        await rig.app.scheduler.pauses.suspend("egress", "main", None, "")
        held.set()
        await quiet(rig)
        assert len(up.delivered()) == 3
        await rig.app.scheduler.pauses.resume("egress", "main")
        await rig.settled()
        assert len(up.delivered()) == 30


async def test_what_is_claimed_waits_when_its_class_is_suspended(tmp_path: Path) -> None:
    held = asyncio.Event()
    async with (
        Upstream({"DOT": lambda _: Later(0, "250 ok", held)}) as up,
        running(rules(tmp_path, {"main": up})) as rig,
    ):
        await rig.send_many(many(30))
        await until(lambda: len(rig.egress().backlog) > 0 and len(up.transactions) == 3)
        await rig.app.scheduler.pauses.suspend("class", "default", None, "")
        held.set()
        await quiet(rig)
        assert len(up.delivered()) == 3
        await rig.app.scheduler.pauses.resume("class", "default")
        await rig.settled()
        assert len(up.delivered()) == 30


async def test_nothing_fails_over_to_a_suspended_egress(tmp_path: Path) -> None:
    async with (
        Upstream({"MAIL": "421 4.3.2 going down"}) as up,
        Upstream() as spare,
        running(rules(tmp_path, {"main": up, "spare": spare})) as rig,
    ):
        await rig.app.scheduler.pauses.suspend("egress", "spare", None, "")
        number = await rig.send()
        await rig.tried(number)
        assert spare.transactions == []


async def test_what_was_counted_for_a_session_that_was_gone_comes_back(tmp_path: Path) -> None:
    """The kept session ended, and no other may be opened yet."""
    async with (
        Upstream({"MAIL": ["250 ok", "421 4.4.2 idle for too long"]}) as up,
        running(rules(tmp_path, {"main": up}, more=", limits: [1 connections/h, 100/h]")) as rig,
    ):
        await rig.reaches(await rig.send(), "delivered")
        await rig.send()
        await until(lambda: rig.egress().sessions == 0)
        await quiet(rig)
        spent = {rate.text: spent.total for rate, spent in rig.egress().pace.spent}
        assert spent == {"1 connections/h": 1, "100/h": 1}
