"""`relay explain` tells what would hold a message back beside its egress, and by which egress it leaves then."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from fakes import Upstream
from rig import running, write_config

from relay import clock

NOBODY = {"from": "app@example.com", "to": "you@example.net"}


async def test_a_limit_of_its_mail_hours_and_a_hand(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    quiet = f"{(now - timedelta(hours=2)):%H:%M}-{(now + timedelta(hours=2)):%H:%M}"
    classes = f'  default: {{}}\n  news: {{quiet: {{hours: "{quiet}"}}}}'
    extra = "limits: [{name: each, per: sender, rate: 1/h}]"
    async with Upstream() as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none"}, classes=classes, extra=extra)
        async with running(file) as rig:
            service = rig.app.admin.service
            assert (await service.explain(NOBODY))["held"] is None
            held = (await service.explain({**NOBODY, "class": "news"}))["held"]
            assert held["why"].startswith("in its quiet hours") and 3600 < held["until"] - clock.now() < 7260
            await rig.reaches(await rig.send(), "delivered")
            held = (await service.explain(NOBODY))["held"]
            assert (
                held["why"] == "limit each (app@example.com) of 1/h is used up" and held["until"] > clock.now() + 3000
            )
            await rig.app.scheduler.pauses.suspend("class", "default", clock.now() + 60, "a break")
            held = (await service.explain({**NOBODY, "from": "b@example.com"}))["held"]
            assert "a break" in held["why"] and 0 < held["until"] - clock.now() <= 60
            number = await rig.send(sender="b@example.com")
            row = await rig.row(number)
            assert "a break" in row["why"] and row["next_at"] == held["until"]


async def test_a_senders_score_and_what_takes_the_excess_of_a_warm_up(tmp_path: Path) -> None:
    async with Upstream() as up:
        plan = "warm_up: {start: 2026-01-01, first: 1/d, until: 9/d, spread: none, overflow: old}"
        accounts = {"new": f"port: {up.port}, tls: none, {plan}", "old": f"port: {up.port}, tls: none"}
        routes = '  - {name: poor, match: {reputation: "< 0.7"}, via: old}\n  - {name: rest, via: new}'
        async with running(write_config(tmp_path, accounts, routes=routes)) as rig:
            service, reputation = rig.app.admin.service, rig.app.scheduler.standing.reputation
            found = await service.explain(NOBODY)
            assert (found["route"], [e["egress"] for e in found["egresses"]]) == ("rest", ["new", "old"])
            reputation.note("sender example.com", 0, 0, 50, 0, clock.now())
            assert (await service.explain(NOBODY))["route"] == "poor"


async def test_what_is_suspended_does_not_rest_and_nothing_is_leaving(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, {"main": f"port: {up.port}, tls: none"})) as rig:
        await rig.app.scheduler.pauses.suspend("egress", "main", None, "")
        assert rig.app.health()["leaving"] is False
        number = await rig.send()
        assert (await rig.row(number))["why"].startswith("main: suspended")
