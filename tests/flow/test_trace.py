"""One message's story, told for people and for programs; and the figures of what came back."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click import unstyle
from click.testing import CliRunner
from fakes import Upstream
from rig import ENV, Rig, running, until, write_config

from relay import clock
from relay.admin.feedback import stats
from relay.api.events import EventsQuery
from relay.cli import show
from relay.cli.events import line
from relay.cli.feedback_stats import SHARES, narrow
from relay.cli.feedback_stats import stats as command
from relay.cli.trace import story
from relay.envelope import parse_queue_id
from relay.policy.reputation import wilson
from relay.policy.suppression import Suppression, Why
from relay.scheduler.standing import JUDGE_EVERY
from relay.spool import Event
from relay.spool.feed import Learnt

SLOW = "  default: {retry: {schedule: [1h], give_up: 1d}}"


async def cli(rig: Rig, *arguments: str, code: int = 0) -> str:
    env = ENV | {"RELAY_ENDPOINT": str(rig.app.config.admin.socket)}
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "relay", *arguments],
        capture_output=True, text=True, timeout=120, check=False, env=env,
    )  # fmt: skip
    assert done.returncode == code and "Traceback" not in done.stderr, (done.returncode, done.stdout, done.stderr)
    return done.stdout if code == 0 else done.stderr


async def learn(rig: Rig, number: str, kind: Any, n: int | None = 0, **data: Any) -> None:
    """As a door of feedback has the spool learn it."""
    event = Event(clock.now(), parse_queue_id(number), n, kind, "main", data=data)
    assert await rig.app.spool.learn(Learnt([event])) is not None


async def test_a_story_from_the_first_try_to_the_report_that_came_back(tmp_path: Path) -> None:
    async with Upstream({"RCPT": ["451 4.2.1 greylisted", None, None]}) as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none"}, classes=SLOW)
        async with running(file) as rig:
            number = await rig.send("a@example.net", "b@example.net")
            await rig.tried(number)
            before = await cli(rig, "queue", "trace", number)
            assert "accepted for 2 recipients" in before
            assert "a@example.net: deferred by main at rcpt (try 1, " in before and "451 4.2.1 greylisted" in before
            assert "next try: " in before and ", 5m" in before
            assert "  a@example.net  deferred via main, 1 try" in before and "leaves: about " in before
            assert "b@example.net: delivered by main (try 1, " in before
            await cli(rig, "queue", "retry", number)
            await rig.reaches(number, "delivered")
            entry = Suppression("b@example.net", "", Why.HARD_BOUNCE, "550 5.1.1 gone", "bounce", clock.now())
            at = clock.now()
            event = Event(at, parse_queue_id(number), 1, "bounced", "main",
                          data={"class": "hard", "status": "5.1.1", "reason": "user_unknown", "reply": "550 5.1.1 gone",
                                "source": "bounce", "late": True})  # fmt: skip
            await rig.app.spool.learn(Learnt([event], [entry]))
            await learn(rig, number, "complained", source="imap:fbl")
            after = await cli(rig, "queue", "trace", number)
            assert "retried by an operator" in after
            assert (
                "b@example.net: it came back, for good (heard at the SMTP door): 5.1.1 user_unknown 550 5.1.1 gone"
                in after
            )
            assert "a@example.net: its recipient complained (heard by imap:fbl)" in after
            assert "suppressed for all mail, by a hard bounce: 550 5.1.1 gone" in after
            found = json.loads(await cli(rig, "queue", "trace", number, "--json"))
            assert set(found) == {"message", "events"}
            assert [e["event"] for e in found["events"]] == [
                "accepted", "deferred", "delivered", "retried", "delivered", "bounced", "complained"
            ]  # fmt: skip
            page = await rig.app.admin.stream.read(EventsQuery(message=number).asked())
            assert found["events"] == page["events"]
            (row,) = [r for r in found["message"]["recipients"] if r["recipient"] == "b@example.net"]
            assert row["suppressed"][0]["why"] == "hard_bounce"


async def test_what_is_forgotten_and_what_never_was(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, {"main": f"port: {up.port}, tls: none"})) as rig:
        number = await rig.send()
        await rig.reaches(number, "delivered")
        await rig.app.scheduler.pauses.suspend("tag", "x", None, "")  # the newest event stays
        await rig.app.spool.purge(clock.now() + 1)
        assert "no message" in await cli(rig, "queue", "trace", number, code=65)
        await learn(rig, number, "bounced", n=None, recipient="you@example.net", source="ses", **{"class": "soft"})
        told = await cli(rig, "queue", "trace", number)
        assert "it is forgotten" in told and "it came back, for now (heard by ses)" in told
        assert json.loads(await cli(rig, "queue", "trace", number, "--json"))["message"] is None
        assert "queue id" in await cli(rig, "queue", "trace", "!!", code=64)


def test_words_of_strangers_steer_no_terminal() -> None:
    event = {"at": 1.0, "event": "failed", "why": "\x1b[2J gone\nforever", "egress": "main", "remote": "mx\x07"}
    lines = [text for text, _ in story([event], several=False)]
    assert all(text.isprintable() for text in lines) and len(lines) == 2


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"event": "accepted", "queue_id": "Q1", "sender": "a@x.example", "recipients": ["b@y.example", "c@y.example"]},
         "accepted        Q1  <a@x.example> -> b@y.example and 1 more"),
        ({"event": "deferred", "recipient": "b@y.example", "egress": "main", "last_reply": "451 no", "why": "main: 451 no",
          "due_at": 5.0}, "deferred        b@y.example  via main  main: 451 no  due_at=" + show.stamp(5.0)[:19].replace(" ", "T")),
        ({"event": "suppression_added", "queue_id": "Q1", "recipient": "b@y.example", "address": "b@y.example", "scope": "all",
          "why": "manual", "until": 0.0}, "suppression_added  Q1  b@y.example  manual  scope=all"),
        ({"event": "config_changed", "sections": ["routes", "users"]}, "config_changed  sections=routes,users"),
        ({"event": "bounced", "recipient": "\x1b[31mb@y.example", "reply": "550\nno"}, "bounced         ?[31mb@y.example  reply=550?no"),
    ],
)  # fmt: skip
def test_a_line_for_a_terminal(event: dict[str, Any], said: str) -> None:
    assert unstyle(line({"id": 1, "at": 1.0, **event})).split("  ", 1)[1] == said


# -- what comes back counts


async def test_complaints_hold_a_warm_up(tmp_path: Path) -> None:
    plan = "warm_up: {start: 2020-01-01, first: 1000/d, until: 5000/d, spread: none, hold_above: {complaints: 0.1%}}"
    async with Upstream() as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none, {plan}"})
        async with running(file) as rig:
            await rig.send_many([("a@example.com", (f"r{i}@example.net",), b"\r\nx\r\n") for i in range(40)])
            await rig.settled()
            standing, ramp = rig.app.scheduler.standing, rig.egress().pace.ramp
            for _ in range(2):
                standing.came_back("main", "example.net", "example.com", "default", "complained")
            assert standing.score("a@example.com") == 1.0
            standing.look(clock.now() + JUDGE_EVERY)
            assert ramp.held.startswith("complaints 5.00%")
            assert standing.score("a@example.com") == 0.0  # 2 of 40 is beyond 1 in 150 at its lower bound
            rates = standing.reputation.rates("egress main", clock.now())
            assert (rates.total, rates.complaints) == (40, wilson(2, 40))
            await until(lambda: not rig.app.scheduler.journal._events)
            (event,) = (await rig.app.admin.stream.read(EventsQuery(kind="throttled").asked()))["events"]
            assert (event["egress"], event["what"]) == ("main", "warm_up") and "complaints" in event["why"]


async def test_late_bounces_hold_a_warm_up_and_are_no_second_try(tmp_path: Path) -> None:
    plan = "warm_up: {start: 2020-01-01, first: 1000/d, until: 5000/d, spread: none, hold_above: {bounces: 2%}}"
    async with Upstream() as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none, {plan}"})
        async with running(file) as rig:
            await rig.send_many([("a@example.com", (f"r{i}@example.net",), b"\r\nx\r\n") for i in range(30)])
            await rig.settled()
            standing = rig.app.scheduler.standing
            for _ in range(10):
                standing.came_back("main", "example.net", "example.com", "default", "bounced")
            standing.look(clock.now() + JUDGE_EVERY)
            rates = standing.reputation.rates("egress main", clock.now())
            assert (rates.total, rates.bounces) == (30, wilson(10, 30))
            assert "bounces 33.33%" in rig.egress().pace.ramp.held


async def test_figures_of_what_came_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = {"RCPT": ["550 5.1.1 no such user"] + [None] * 19}
    async with (
        Upstream(refuses) as up,
        running(write_config(tmp_path, {"main": f"port: {up.port}, tls: none"}, classes=SLOW)) as rig,
    ):
        ids = await rig.send_many([("a@example.com", (f"r{i}@d{i % 2}.example",), b"\r\nx\r\n") for i in range(20)])
        await rig.settled()
        for number in ids[10:12]:
            await learn(rig, number, "bounced", reason="mailbox_full", **{"class": "soft"})
        await learn(rig, ids[12], "complained")
        await learn(rig, ids[13], "unsubscribed")
        await learn(rig, ids[14], "auto_replied")
        usage = rig.app.scheduler.usage
        found = await stats(rig.app.spool, usage, clock.now() - 3600)
        rows = {(row["what"], row["name"]): row for row in found["rows"]}
        assert {("all", ""), ("egress", "main"), ("class", "default"), ("sender", "example.com"),
                ("destination", "d0.example"), ("destination", "d1.example")} == set(rows)  # fmt: skip
        main = rows["egress", "main"]
        assert {key: main[key] for key in ("sent", "bounced_hard", "bounced_soft", "complained", "unsubscribed",
                                           "auto_replied")} == {
            "sent": 20, "bounced_hard": 1, "bounced_soft": 2, "complained": 1, "unsubscribed": 1, "auto_replied": 1,
        }  # fmt: skip
        assert (main["bounced_soft_low"], main["bounced_soft_high"], main["bounced_soft_rate"]) == wilson(2, 20)
        assert main["reasons"] == [{"reason": "mailbox_full", "count": 2}, {"reason": "user_unknown", "count": 1}]
        assert main["score"] is not None and rows["all", ""]["score"] is None
        assert sum(rows["destination", f"d{i}.example"]["sent"] for i in range(2)) == 20
        assert (await stats(rig.app.spool, usage, clock.now() + 60))["rows"] == []
        monkeypatch.setenv("RELAY_ENDPOINT", str(rig.app.config.admin.socket))
        told = await asyncio.to_thread(CliRunner().invoke, command, ["--json", "--since", "1h"])
        assert json.loads(told.output) == found["rows"]
        lines = (await asyncio.to_thread(CliRunner().invoke, command, [])).output.splitlines()
        assert "egress\tmain\t20\t1 5.00% (0.89% to 23.61%)\t2 10.00%" in "\n".join(lines)
        assert (await asyncio.to_thread(CliRunner().invoke, command, ["--since", "x"])).exit_code != 0


def test_figures_fit_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    none = dict.fromkeys((f"{name}{end}" for name in SHARES for end in ("", "_rate", "_low", "_high")), 0)
    row = {"what": "destination", "name": "shop.example.com", "sent": 12345, "score": 0.5, **none}
    row |= {"bounced_hard": 1234, "bounced_hard_rate": 0.1, "bounced_hard_low": 0.09, "bounced_hard_high": 0.11}
    row |= {"complained": 2, "complained_rate": 0.0002, "complained_low": 0.0001, "complained_high": 0.0003}
    narrow([row | {"reasons": [{"reason": "user_unknown", "count": 1234}]}])
    head, line, *below = capsys.readouterr().out.splitlines()
    assert head.split() == ["WHAT", "NAME", "SENT", "HARD", "COMPLAINED", "SCORE"]
    assert "1234 10.00%  2 0.02%" in line
    assert "hard 9.00% to 11.00%, complained 0.01% to 0.03%; user_unknown 1234" in " ".join(" ".join(below).split())
    assert all(len(one) <= 80 for one in (head, line, *below))
