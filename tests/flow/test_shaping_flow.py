"""Rules of `shaping` with the real scheduler: each action does what it says to whom it names, for its time, and ends."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import until
from fakes import Upstream
from lab import burst, lab, sites
from rig import Rig, running, write_config
from test_blame import SLOW, many, quiet

from relay import clock
from relay.policy.shaping import ShapingRule
from relay.policy.suppression import Why
from relay.reply import Stage

RATE = "451 4.7.28 unusual rate of mail"


def rule(reply: str = "^451 4.7.28", **more: object) -> ShapingRule:
    return replace(ShapingRule("fast", re.compile(reply), origin="relay.yaml:9"), **more)  # type: ignore[arg-type]


def config(folder: Path, ups: dict[str, Upstream], connections: int = 3, more: str = "") -> Path:
    rest = f", connections: {connections}{more}"
    return write_config(folder, {n: f"port: {u.port}, tls: none{rest}" for n, u in ups.items()}, classes=SLOW)


def shape(rig: Rig, *rules: ShapingRule) -> None:
    """A reload that brings these rules."""
    scheduler = rig.app.scheduler
    scheduler.apply(replace(scheduler.config, shaping=rules))


def in_force(rig: Rig) -> list[tuple[str, str, str]]:
    rows = rig.app.scheduler.carriers.blame.shaping.shaped.rows(clock.now())
    return [(row["egress"], row["destination"], row["what"]) for row in rows]


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """So much time has passed."""
    monkeypatch.setattr(clock, "now", lambda real=clock.now: real() + seconds)


async def test_it_is_slowed_to_half_of_what_it_sent_in_the_last_minute(tmp_path: Path) -> None:
    said = {"DOT": ["250 ok"] * 240 + [RATE] + ["250 ok"] * 100}
    async with Upstream(said) as up, running(config(tmp_path, {"main": up})) as rig:
        shape(rig, rule(slow=0.5))
        await rig.send_many(many(240))
        await rig.settled()
        await rig.send()
        await until(lambda: rig.said("shaped"))
        (told,) = rig.said("shaped")
        assert (told["egress"], told["what"], told["rule"]) == ("main", "slow to 50%", "fast (relay.yaml:9)")
        assert rig.egress().pace.throttle.rate == pytest.approx(2.0, rel=0.15)
        began = clock.now()
        await rig.send_many(many(5))
        await until(lambda: len(up.delivered()) == 245)
        spaces = 4 / rig.egress().pace.throttle.rate  # before the first a moment may have passed
        assert spaces - 0.01 < clock.now() - began < spaces + 15, "five at two a second, one after another"
        assert rig.said("account_rests") == [] and not rig.egress().breaker.is_open


async def test_what_waits_for_its_slow_turn_says_why_and_leaves_when_the_rule_is_gone(tmp_path: Path) -> None:
    async with Upstream({"RCPT": [RATE] + ["250 ok"] * 100}) as up, running(config(tmp_path, {"main": up})) as rig:
        shape(rig, rule(slow=0.5))
        await rig.tried(await rig.send())
        number = await rig.send()
        await quiet(rig)
        row = await rig.row(number)
        assert row["state"] == "queued" and "slowed to 1.0/min: 451 4.7.28 unusual rate" in row["why"]
        shape(rig, rule(slow=0.5), rule(slow=0.9))
        assert rig.egress().pace.throttle.binds(clock.now()), "the rule is still there"
        shape(rig)
        assert (await rig.reaches(number, "delivered"))["attempts"] == 1
        assert len(rig.said("shaping_over")) == 1 and in_force(rig) == []


@pytest.mark.parametrize(("most", "left"), [(0.5, 2), (1.0, 1)])
async def test_it_has_fewer_connections(tmp_path: Path, most: float, left: int) -> None:
    async with Upstream({"DOT": [RATE] + ["250 ok"] * 100}) as up, running(config(tmp_path, {"main": up}, 4)) as rig:
        shape(rig, rule(connections=most))
        await rig.tried(await rig.send())
        assert rig.egress().connections == left
        await rig.send_many(many(30))
        await until(lambda: len(up.delivered()) == 30)
        assert up.held <= left
        (row,) = rig.app.scheduler.outlook.egress_rows()
        assert f"{left} of 4 connections: 451 4.7.28" in str(row["why"])


async def test_a_pause_holds_up_all_and_bounces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 5xx that pauses says nothing about the message."""
    said = {"DOT": ["554 5.7.1 your address is blocked"] + ["250 ok"] * 100}
    async with (
        Upstream(said) as up,
        Upstream() as second,
        running(config(tmp_path, {"main": up, "second": second}, 1)) as rig,
    ):
        shape(rig, rule("^554 .*blocked", pause=True, alarm=True, seconds=600.0))
        await rig.tried(await rig.send())
        number = await rig.send()
        await quiet(rig)
        row = await rig.row(number)
        assert row["state"] == "queued" and "main waits: 554 5.7.1 your address is blocked" in row["why"]
        assert rig.said("failed") == [] and second.transactions == []
        (told,) = rig.said("alarm")
        assert (told["what"], told["egress"]) == ("shaped", "main")
        assert "554 5.7.1 your address is blocked" in told["why"]
        assert rig.said("shaped")[0]["what"] == "pause, alarm"
        later(monkeypatch, 601.0)
        await rig.reaches(number, "delivered")
        await until(lambda: len(up.delivered()) == 2)


async def test_the_next_egress_takes_over_what_heard_it_and_what_comes_after(tmp_path: Path) -> None:
    said = {"MAIL": "550 5.7.1 your address is blocked"}
    async with (
        Upstream(said) as up,
        Upstream() as second,
        running(config(tmp_path, {"main": up, "second": second}, 1)) as rig,
    ):
        shape(rig, rule("^550 .*blocked", next=True))
        await rig.send_many(many(10))
        await rig.settled()
        assert len(second.delivered()) == 10 and up.delivered() == [] and len(up.commands("MAIL")) == 1
        shape(rig, rule("^550 .*blocked", next=True))
        await rig.send()
        await rig.settled()
        assert len(second.delivered()) == 11 and len(up.commands("MAIL")) == 1, (
            "a reload ends no rule that is still there"
        )


@pytest.mark.parametrize("onward", [False, True])
async def test_one_domain_of_an_accounts_mail(tmp_path: Path, onward: bool) -> None:
    said = {"RCPT": lambda a: RATE if "slow.example" in a else "250 ok"}
    async with (
        Upstream(said) as up,
        Upstream() as second,
        running(config(tmp_path, {"main": up, "second": second})) as rig,
    ):
        shape(rig, rule(destination=("*slow.example",), pause=not onward, next=onward, seconds=600.0))
        await rig.tried(await rig.send("a@slow.example"))
        number = await rig.send("b@slow.example", "c@slow.example", "d@else.example")
        await until(lambda: "d@else.example" in up.delivered())
        if onward:
            await until(lambda: sorted(second.delivered()) == ["b@slow.example", "c@slow.example"])
            assert len(second.transactions) == 1
        else:
            await quiet(rig)
            rows = await rig.rows(number)
            assert all("slow.example rests at main: 451 4.7.28" in r["why"] for r in rows if "slow" in r["recipient"])
            assert second.transactions == []
        assert len([c for c in up.commands("RCPT") if "slow" in c]) == 1
        shape(rig, rule(destination=("*slow.example",), pause=not onward, next=onward, seconds=600.0))
        assert list(rig.app.scheduler.carriers.blame.resting.rests) == [("main", "slow.example")]
        shape(rig)
        assert rig.app.scheduler.carriers.blame.resting.rests == {} and not rig.egress().breaker.is_open


async def test_the_session_that_heard_it_is_ended_with_quit(tmp_path: Path) -> None:
    async with Upstream({"DOT": [RATE] + ["250 ok"] * 9}) as up, running(config(tmp_path, {"main": up}, 1)) as rig:
        shape(rig, rule(drop=True))
        await rig.tried(await rig.send())
        await until(lambda: up.held == 0)
        await rig.send()
        await rig.send()
        await until(lambda: len(up.delivered()) == 2)
        assert len(up.sessions) == 2 and len(up.commands("QUIT")) == 1 and in_force(rig) == []


async def test_a_recipient_is_suppressed_and_fails_now(tmp_path: Path) -> None:
    said = {"RCPT": lambda a: "450 4.2.1 never again" if "gone" in a else "250 ok"}
    async with Upstream(said) as up, running(config(tmp_path, {"main": up})) as rig:
        shape(rig, rule("^450 4.2.1 never", suppress=True, seconds=86400.0))
        number = await rig.send("gone@example.net", "b@example.net")
        await rig.settled()
        rows = {r["recipient"]: (r["state"], r["attempts"]) for r in await rig.rows(number)}
        assert rows == {"gone@example.net": ("failed", 1), "b@example.net": ("delivered", 1)}
        story = (await rig.message(number))["events"]
        assert any("suppressed by fast (relay.yaml:9)" in str(event) for event in story)
        (found,) = await rig.app.spool.suppressed("gone@example.net")
        assert (found.why, found.source, found.scope) == (Why.SHAPING, "shaping", "")
        assert found.until > clock.now() + 86000 and found.evidence == "450 4.2.1 never again (fast (relay.yaml:9))"
        (told,) = rig.said("suppression_added")
        assert (told["recipient"], told["why"], told["source"]) == ("gone@example.net", "shaping", "shaping")
        with pytest.raises(AssertionError, match=r"gone@example[.]net> is suppressed"):
            await rig.send("gone@example.net")


async def test_a_word_about_a_message_to_two_suppresses_neither(tmp_path: Path) -> None:
    async with Upstream({"DOT": "550 5.7.1 spam"}) as up, running(config(tmp_path, {"main": up})) as rig:
        shape(rig, rule("^550 .*spam", suppress=True))
        await rig.send("a@example.net", "b@example.net")
        await rig.settled()
        assert not rig.app.suppressions
        await rig.send("a@example.net")
        await rig.settled()
        assert len(rig.app.suppressions) == 1


async def test_an_alarm_is_told_once_while_it_is_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Upstream({"RCPT": "550 5.7.1 blocked"}) as up, running(config(tmp_path, {"main": up}, 1)) as rig:
        shape(rig, rule("^550 .*blocked", alarm=True, seconds=600.0))
        await rig.send_many(many(5))
        await rig.settled()
        assert len(rig.said("alarm")) == 1 and len(rig.said("failed")) == 5
        later(monkeypatch, 601.0)
        await until(lambda: rig.said("shaping_over"))
        await rig.send()
        await rig.settled()
        assert len(rig.said("alarm")) == 2 and len(rig.said("alarm_over")) == 1


async def test_a_kept_session_that_says_it_with_421_is_heard(tmp_path: Path) -> None:
    """It is not taken for one that was closed while it was idle, and asked again at once."""
    said = {"MAIL": ["250 ok", "421 4.7.28 unusual rate", "250 ok"]}
    async with Upstream(said) as up, running(config(tmp_path, {"main": up}, 1)) as rig:
        shape(rig, rule("^421 4.7.28", slow=0.5, at=frozenset({Stage.MAIL})))
        await rig.send()
        await rig.settled()
        await rig.send()
        await until(lambda: rig.said("shaped"))
        await quiet(rig)
        assert len(up.delivered()) == 1 and in_force(rig) == [("main", "", "slow to 50%")]


async def test_a_quoted_reply_touches_nobody(tmp_path: Path) -> None:
    quoted = "450 4.1.1 rejected: host mx.example.net[192.0.2.1] said: 451 4.7.28 unusual rate"
    async with Upstream({"RCPT": quoted}) as up, running(config(tmp_path, {"main": up})) as rig:
        shape(rig, rule("4.7.28", slow=0.5, pause=True))
        await rig.tried(await rig.send())
        assert in_force(rig) == []


async def test_what_is_in_force_survives_a_restart(tmp_path: Path) -> None:
    async with Upstream({"RCPT": [RATE] + ["250 ok"] * 9}) as up:
        file = config(tmp_path, {"main": up}, 4)
        one = rule(slow=0.5, connections=0.5)
        async with running(file) as rig:
            shape(rig, one)
            await rig.tried(await rig.send())
            kept = rig.app.scheduler.carriers.blame.shaping.shaped.state()
        async with running(file) as rig:
            blame = rig.app.scheduler.carriers.blame
            blame.shaping.shaped.load(kept)
            shape(rig, one)
            assert rig.egress().connections == 2 and rig.egress().pace.throttle.binds(clock.now())


async def test_by_mx_the_lane_is_hit_and_no_other(tmp_path: Path) -> None:
    async with lab(tmp_path, {"a.test": "127.0.1.1", "b.test": "127.0.1.2"}) as here:
        here.mx["a.test"].script["DOT"] = ["550 5.7.606 Access denied, banned sending IP"] + ["250 ok"] * 9
        async with running(here.config(direct="mx-1: {connections: 5}", routes="  - {name: all, via: mx-1}")) as rig:
            shape(rig, rule("^550 5.7.606", destination=("a.test",), pause=True, connections=1.0))
            await burst(rig, ["x@a.test"])
            await until(lambda: rig.said("shaped"))
            await burst(rig, ["y@a.test", "y@b.test"])
            await until(lambda: list(here.delivered) == ["y@b.test"])
            resting = {way.site: (way.breaker.is_open, way.connections) for way in sites(rig, "mx-1")}
            assert {open_ for open_, _ in resting.values()} == {True, False} and rig.said("failed") == []
            (told,) = rig.said("shaped")
            assert told["egress"].startswith("mx-1 to ") and told["domain"] is None
