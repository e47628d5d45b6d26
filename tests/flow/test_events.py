"""The stream of events: each change of state is one of them, it is read from any point on, and followed over restarts."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from fakes import DROP, Upstream
from pydantic import ValidationError
from rig import Process, Rig, free_port, process, running, until, write_config
from test_blame import CROWD, QUOTA, RATE, many, quiet, rules

from relay import clock
from relay.admin.events import MOST, Asked
from relay.api.events import EventsQuery
from relay.events import KINDS
from relay.maillog import MailLog
from relay.recipient import Verb
from relay.scheduler import housekeeping
from relay.scheduler import journal as module
from relay.scheduler.journal import Journal
from relay.spool import SpoolError
from relay.spool.feed import Learnt

ROUTES = """  - {name: no, match: {recipient: "*@no.example", header: {Subject: t}}, reject: "not here"}
  - {name: keep, match: {recipient: "*@keep.example"}, hold: true}
  - {name: gone, match: {recipient: "*@gone.example"}, discard: true}
  - {name: all, via: [main]}"""
CAPTURE = 'capture: {allow: ["*@example.net", "*@keep.example", "*@no.example", "*@gone.example"]}'


def parse(query: dict[str, str]) -> Asked:
    return EventsQuery.model_validate(query).asked()


def main(up: Upstream, more: str = "") -> dict[str, str]:
    return {"main": f"port: {up.port}, tls: none{more}"}


async def stream(rig: Rig, **query: str) -> list[dict[str, Any]]:
    """All that there is, page by page."""
    found: list[dict[str, Any]] = []
    while True:
        page = await rig.app.admin.stream.read(parse(query))
        found += page["events"]
        if not page["more"]:
            return found
        query = {k: v for k, v in query.items() if k != "since"} | {"after": str(page["next"])}


async def kinds(rig: Rig, **query: str) -> list[str]:
    return [event["event"] for event in await stream(rig, **query)]


async def noted(rig: Rig) -> None:
    """What is about no message is written a moment after it happened."""
    await until(lambda: not rig.app.scheduler.journal._events)


# -- what is written


async def test_what_rules_and_operators_do_is_told_as_that(tmp_path: Path) -> None:
    async with Upstream({"RCPT": [None, "550 5.1.1 no such user", None]}) as up:
        file = write_config(tmp_path, main(up), routes=ROUTES, extra=CAPTURE)
        async with running(file) as rig:
            service = rig.app.admin.service

            async def act(verb: str, number: str, to: str = "") -> None:
                await service.act(verb, service.parse_filter({"id": number}), to, dry_run=False)

            taken = await rig.send("a@no.example", "b@gone.example", "c@other.example")
            assert await rig.story(taken) == ["accepted", "failed", "discarded", "captured"]
            told = {e.get("recipient"): e for e in await stream(rig, message=taken)}
            assert told["b@gone.example"]["egress"] == "discard" and told["c@other.example"]["egress"] == "capture"
            number = await rig.send("a@keep.example")
            await act("release", number)
            await rig.reaches(number, "delivered", "held")
            other = await rig.send("b@keep.example")
            await act("reroute", other, "main")
            assert (await rig.reaches(other, "failed"))["why"] == "rejected: main: 550 5.1.1 no such user"
            assert await rig.story(other) == ["accepted", "held", "rerouted", "failed"]
            last = await rig.send("c@keep.example")
            await act("cancel", last)
            assert await rig.story(last) == ["accepted", "held", "cancelled"]
            assert (await rig.story(number))[:3] == ["accepted", "held", "released"]


async def test_a_reroute_is_one_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it goes, its state and the event that tells: it was a move, and then a release or a retry."""
    monkeypatch.setattr(housekeeping, "TICK", 3600.0)  # it writes now and then that the relay is alive
    async with Upstream() as up:
        file = write_config(tmp_path, main(up), routes=ROUTES)
        async with running(file) as rig:
            number = await rig.send("a@keep.example")
            await noted(rig)
            before = rig.app.spool._writer.commits
            service = rig.app.admin.service
            await service.act("reroute", service.parse_filter({"id": number}), "main", dry_run=False)
            assert [e["event"] for e in await stream(rig, message=number)][:3] == ["accepted", "held", "rerouted"]
            await rig.reaches(number, "delivered")
            assert rig.app.spool._writer.commits - before <= 3  # the claim and the delivery are the others


async def test_a_reload_to_discard_is_told_as_discarded(tmp_path: Path) -> None:
    async with Upstream({"MAIL": "451 4.3.0 not now"}) as up:
        slow = "  default: {retry: {schedule: [1h], give_up: 1d}}"
        file = write_config(tmp_path, main(up), classes=slow)
        async with running(file) as rig:
            number = await rig.send()
            await rig.tried(number)
            write_config(tmp_path, main(up), classes=slow, routes="  - {name: all, discard: true}", path=file)
            assert rig.app.reload()[0]
            service = rig.app.admin.service
            await service.act("retry", service.parse_filter({"id": number}), "", dry_run=False)
            await rig.reaches(number, "delivered")
            assert await rig.story(number) == ["accepted", "deferred", "retried", "discarded"]


async def test_in_doubt_says_what_comes_of_it(tmp_path: Path) -> None:
    for rule, state in (("hold", "held"), ("fail", "failed"), ("retry", "deferred")):
        folder = tmp_path / rule
        folder.mkdir()
        async with Upstream({"DOT": DROP}) as up:
            classes = f"  default: {{in_doubt: {rule}, retry: {{schedule: [1h], give_up: 1d}}}}"
            async with running(write_config(folder, main(up), classes=classes)) as rig:
                await rig.reaches(await rig.send(), state)
                (event,) = await stream(rig, kind="in_doubt")
                assert event["state"] == state


async def test_expiry_is_told(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, main(up), routes=ROUTES)) as rig:
        number = await rig.send("a@keep.example")
        keys = [(r["message"], r["n"]) async for r in rig.app.spool.find(rig.app.admin.service.parse_filter({}))]
        await rig.app.spool.change(keys, Verb.EXPIRE, clock.now(), "too late")
        assert await rig.story(number) == ["accepted", "held", "expired"]


# -- what is about no message


async def test_a_pause_is_told_once_and_its_end_once(tmp_path: Path) -> None:
    async with (
        Upstream({"DOT": ["550 5.4.5 Daily user sending limit exceeded"] * 3 + [None]}) as up,
        running(rules(tmp_path, {"main": up}, QUOTA)) as rig,
    ):
        ids = await rig.send_many(many(20))
        await until(lambda: rig.egress().breaker.is_open)
        await quiet(rig)
        up.script = {}
        rig.app.scheduler.pauses.ask_again("main")
        service = rig.app.admin.service
        await service.act("retry", service.parse_filter({"id": ",".join(ids)}), "", dry_run=False)
        await rig.settled()
        await until(lambda: not rig.egress().breaker.is_open)
        await noted(rig)
        paused, resumed = await stream(rig, kind="paused,resumed")
        assert (paused["egress"], paused["what"], paused["code"]) == ("main", "account", 550)
        assert paused["last_reply"].startswith("550 5.4.5") and 1700 < paused["until"] - paused["at"] <= 1801
        assert (resumed["event"], resumed["what"]) == ("resumed", "egress")
        assert await stream(rig, kind="throttled") == []


async def test_an_egress_that_can_not_be_reached_rests_and_is_well_again(tmp_path: Path) -> None:
    port = free_port()
    extra = "breaker: {failures: 1, cool_down: 200ms}"
    classes = "  default: {retry: {schedule: [100ms], give_up: 1d}}"
    file = write_config(tmp_path, {"main": f"port: {port}, tls: none"}, extra=extra, classes=classes)
    async with running(file) as rig:
        number = await rig.send()
        await rig.tried(number, 3)
        async with Upstream(port=port):
            await rig.reaches(number, "delivered")
            await until(lambda: len(rig.said("egress_back")) == 1)
        await until(lambda: not rig.app.scheduler.journal._events)
        assert await kinds(rig, kind="paused,resumed") == ["paused", "resumed"]


async def test_an_upstream_that_wants_less_is_told_of_once(tmp_path: Path) -> None:
    async with (
        Upstream({"MAIL": ["421 4.7.0 you are too fast"] * 2 + [None] * 50}) as up,
        running(rules(tmp_path, {"main": up}, RATE)) as rig,
    ):
        await rig.send_many(many(6))
        await rig.settled()
        await noted(rig)
        (event,) = await stream(rig, kind="throttled")
        assert (event["egress"], event["what"], event["code"]) == ("main", "rate", 421)
        assert event["rate"].endswith(("/s", "/min"))


async def test_too_many_sessions_are_told_of_once(tmp_path: Path) -> None:
    async with (
        Upstream({"MAIL": ["432 4.3.2 too many connections"] * 2 + [None] * 50}) as up,
        running(rules(tmp_path, {"main": up}, CROWD)) as rig,
    ):
        await rig.send_many(many(6))
        await rig.settled()
        await noted(rig)
        (event,) = await stream(rig, kind="throttled")
        assert (event["what"], event["egress"]) == ("connections", "main")


async def test_shaping_is_told_at_its_beginning_and_its_end(tmp_path: Path) -> None:
    extra = 'shaping: [{match: {reply: "^451 4.7.1"}, slow: 50%, for: 300ms}]'
    async with (
        Upstream({"MAIL": ["451 4.7.1 slower please", None]}) as up,
        running(write_config(tmp_path, main(up), extra=extra)) as rig,
    ):
        await rig.reaches(await rig.send(), "delivered")

        async def ended() -> bool:
            await rig.app.scheduler.carriers.sweep()
            return await kinds(rig, kind="throttled,resumed") == ["throttled", "resumed"]

        end = time.monotonic() + 30
        while not await ended():
            assert time.monotonic() < end, await stream(rig)
            await asyncio.sleep(0.05)
        began = (await stream(rig, kind="throttled"))[0]
        assert began["last_reply"].startswith("451 4.7.1") and "why" in began


async def test_a_suspension_is_told_with_its_document(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, main(up))) as rig:
        pauses = rig.app.scheduler.pauses
        await pauses.suspend("egress", "main", clock.now() + 3600, "maintenance")
        assert "maintenance" in (await rig.app.spool.remembered())["suspensions"]
        await pauses.suspend("tag", "order-*", None, "")
        await pauses.resume("tag", "order-*")
        await pauses.tidy(clock.now() + 3601)
        told = await stream(rig, kind="paused,resumed")
        assert [(e["event"], e["what"], e["name"], e["by"]) for e in told] == [
            ("paused", "egress", "main", "hand"), ("paused", "tag", "order-*", "hand"),
            ("resumed", "tag", "order-*", "hand"), ("resumed", "egress", "main", "its time is over"),
        ]  # fmt: skip
        assert told[0]["egress"] == "main" and told[0]["why"] == "maintenance" and "egress" not in told[1]


async def test_a_configuration_is_told_where_it_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAIN_PASSWORD", "a secret")
    async with Upstream() as up:
        file = write_config(tmp_path, main(up, ", username: app, password: {env: MAIN_PASSWORD}"))
        for starts, last in ((1, None), (1, None), (2, "classes")):
            if last:
                file.write_text(file.read_text().replace("give_up: 1d", "give_up: 2d"))
            async with running(file) as rig:
                await until(lambda rig=rig: not rig.app.scheduler.journal._events)
                told = await stream(rig, kind="config_changed")
                assert [e["by"] for e in told] == ["start"] * starts
        assert told[1]["sections"] == ["classes"] and {"accounts", "routes"} <= set(told[0]["sections"])
        assert told[0]["digest"] != told[1]["digest"] and told[0]["source"] == str(file)
        async with running(file) as rig:
            assert rig.app.reload()[0]
            file.write_text(file.read_text().replace("give_up: 2d", "give_up: two days"))
            assert not rig.app.reload()[0]
            await until(lambda: not rig.app.scheduler.journal._events)
            told = (await stream(rig, kind="config_changed"))[2:]
            assert [(e["by"], e.get("sections", [])) for e in told] == [("reload", [])]
            assert "secret" not in json.dumps(await stream(rig)) and "app" not in told[0]


class Sick:
    """A spool up to its disk."""

    def __init__(self) -> None:
        self.taken: list[Learnt] = []
        self.sick = True

    async def learn(self, learnt: Learnt) -> list[Any]:
        if self.sick:
            raise SpoolError("the disk is full")
        self.taken.append(learnt)
        return []


async def test_a_disk_that_refuses_loses_none_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN", 0.01)
    log, spool = MailLog(None), Sick()
    told: list[str] = []
    log.listeners.append(lambda kind, fields: told.append(kind))
    journal = Journal(spool, log)
    loop = asyncio.get_running_loop().create_task(journal.run())
    for number in range(module.MOST + 5):
        journal.note("paused", "main to google", number, why="" if number else "x")
    await until(lambda: "not_noted" in told)
    spool.sick = False
    await until(lambda: spool.taken)
    assert [e.code for learnt in spool.taken for e in learnt.events] == list(range(module.MOST))
    first = spool.taken[0].events[0]
    assert (first.egress, first.data) == ("main", {"why": "x", "site": "google"})
    assert "events_lost" in told
    loop.cancel()
    journal.note("resumed")
    await asyncio.gather(loop, return_exceptions=True)
    await journal.finish()
    assert spool.taken[-1].events[0].kind == "resumed"


# -- what is read


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"kind": "delivert"}, "unknown kind 'delivert'"),
        ({"colour": "red"}, "colour"),
        ({"after": "-1"}, "wants the id of an event"),
        ({"after": "x"}, "wants the id of an event"),
        ({"after": "9" * 30}, "wants the id of an event"),
        ({"after": "1", "since": "1"}, "not both"),
        ({"since": "yesterday"}, "wants a time"),
        ({"since": "nan"}, "wants a time"),
        ({"since": "99999-01-01"}, "wants a time"),
        ({"limit": "many"}, "valid integer"),
        ({"wait": "inf"}, "finite number"),
        ({"message": "!!"}, "queue id"),
    ],
)
def test_what_makes_no_sense_is_refused(query: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        parse(query)


def test_what_is_asked_is_kept_within_bounds() -> None:
    asked: Asked = parse(
        {"limit": "1000000", "wait": "1e9", "kind": "failed, bounced", "since": "2026-12-01T08:00:00Z"}
    )
    assert (asked.limit, asked.wait, asked.after, asked.since) == (MOST, 55.0, None, 1796112000.0)
    assert asked.wanted.kinds == {"failed", "bounced"}


async def test_pages_filters_and_times(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, main(up))) as rig:
        ids = await rig.send_many([("a@example.com", (f"r{i}@d{i % 2}.example",), b"\r\nx\r\n") for i in range(30)])
        await rig.settled()
        await noted(rig)
        every = await stream(rig)
        assert [e["id"] for e in every] == sorted({e["id"] for e in every}) and len(every) == 61
        assert await stream(rig, limit="7") == every
        middle = every[30]
        assert await stream(rig, after=str(middle["id"])) == every[31:]
        assert all(e["at"] >= middle["at"] - 0.001 for e in await stream(rig, since=str(middle["at"])))
        assert [e["queue_id"] for e in await stream(rig, message=ids[3])] == [ids[3]] * 2
        assert len(await stream(rig, domain="D1.example", kind="delivered", limit="4")) == 15
        assert await stream(rig, recipient="r7@*", egress="main") == [
            e for e in every if e.get("recipient") == "r7@d1.example" and e["event"] == "delivered"
        ]
        page = await rig.app.admin.stream.read(parse({"tag": "nobody"}))
        assert page == {"events": [], "next": every[-1]["id"], "more": False}
        assert (await rig.app.admin.stream.read(parse({"after": "end"})))["next"] == every[-1]["id"]
        beyond = {"events": [], "next": 10**15, "more": False}
        assert await rig.app.admin.stream.read(parse({"after": str(10**15)})) == beyond


async def test_who_waits_is_answered_when_it_happens(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, main(up))) as rig:
        await noted(rig)
        began = time.monotonic()
        at = str((await rig.app.admin.stream.read(parse({"after": "end"})))["next"])
        waiting = [
            asyncio.create_task(rig.app.admin.stream.read(parse({"after": at, "wait": "50", "kind": kind})))
            for kind in ("delivered", "delivered", "failed")
        ]
        await asyncio.sleep(0.05)
        number = await rig.send()
        for task in waiting[:2]:
            (event,) = (await task)["events"]
            assert (event["queue_id"], event["event"]) == (number, "delivered")
        assert time.monotonic() - began < 40 and not waiting[2].done()
        waiting[2].cancel()
        short = await rig.app.admin.stream.read(parse({"after": "end", "wait": "0.05"}))
        assert short["events"] == []


# -- the command


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Process]:
    file = write_config(tmp_path, {}, routes="  - {name: gone, discard: true}")
    with process(file) as made:
        yield made


def send(relay: Process, count: int = 1) -> list[str]:
    from rig import submit

    return asyncio.run(submit(relay.port, many(count)))


def follow(relay: Process, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "relay", "events", "--follow", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=relay.env | {"RELAY_ENDPOINT": str(relay.socket)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # who runs us in the background may ignore it
    )  # fmt: skip


def test_followed_over_restarts_nothing_is_lost_nor_doubled(tmp_path: Path) -> None:
    file = write_config(tmp_path, {}, routes="  - {name: gone, discard: true}")
    with process(file) as first:
        command = follow(first, "--after", "0")
        assert command.stdout is not None
        send(first, 5)
        seen = [json.loads(command.stdout.readline()) for _ in range(11)]
        first.signal(signal.SIGKILL)
        first.wait()
    with process(file) as second:
        send(second, 5)
        seen += [json.loads(command.stdout.readline()) for _ in range(10)]
        whole = [json.loads(line) for line in second.cli("events").splitlines()]
        assert [e["id"] for e in seen] == [e["id"] for e in whole]
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=120)
        assert (out, command.returncode) == ("", 0)
        assert "waiting for it" in err and "Traceback" not in err


def test_it_ends_when_nobody_reads_it(relay: Process) -> None:
    command = follow(relay)
    assert command.stdout is not None and command.stderr is not None
    command.stdout.close()  # nothing is written, so that nothing tells it
    assert command.wait(120) == 0 and command.stderr.read() == ""
    command.stderr.close()
    send(relay, 30)
    script = f"{shlex.quote(sys.executable)} -m relay events | head -n 1"
    env = relay.env | {"RELAY_ENDPOINT": str(relay.socket)}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, env=env, check=False
    )
    assert (done.returncode, done.stderr) == (0, "") and json.loads(done.stdout)["event"] == "config_changed"


def test_no_relay_and_slips_of_the_pen(relay: Process) -> None:
    assert relay.call("events", "--after", "1", "--since", "1h").returncode == 64
    assert relay.call("events", "--since", "yesterday").returncode == 64
    assert "unknown kind" in relay.call("events", "--kind", "delivert").stderr
    relay.signal()
    relay.wait()
    assert relay.call("events", "--follow").returncode == 69


def test_the_examples_of_the_document_run_and_their_fields_are_told(relay: Process) -> None:
    text = (ROOT / "docs" / "events.md").read_text()
    number = send(relay, 3)[0]
    lines = [li for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for li in block.splitlines()]
    assert len(lines) >= 5
    for command in lines:
        arguments = shlex.split(command.replace("1NG78TM0001", number), comments=True)
        assert arguments[0] == "relay"
        relay.cli(*arguments[1:])
    table = text.partition("## The fields")[2].partition("## Cursors")[0]
    fields = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE))))
    told = [json.loads(line) for line in relay.cli("events", "--since", "1h").splitlines()]
    assert {key for event in told for key in event} <= fields
    assert {e["event"] for e in told} == {"config_changed", "accepted", "discarded"} <= set(KINDS)
    assert json.loads(relay.cli("events", "--kind", "discarded", "--limit", "1"))["event"] == "discarded"
