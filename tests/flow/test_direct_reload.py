"""A reload while mail by MX waits and is under way: nothing is lost, doubled or left behind; what is unchanged goes on."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import Later
from lab import Lab, burst, lab, sites, soon, trunk
from nameserver import Told
from rig import Rig, running
from simmx import SimMx

from relay.scheduler import sites as siting

HOSTS = {f"d{n}.test": f"127.0.1.{n}" for n in range(1, 5)}
ACCOUNT = "  - {name: all, via: ses}"
DIRECT = "  - {name: all, via: mx-1}"
ENTRY = "mx-1: {source: 127.0.2.1}"


async def all_there(
    rig: Rig, here: Lab, wanted: list[str], *others: SimMx, entries: tuple[str, ...] = ("mx-1",)
) -> None:
    """Each recipient once, and nothing of the machinery is left in use."""
    await rig.settled()
    came = Counter(here.delivered + [r for other in others for r in other.delivered()])
    assert came == Counter(wanted)
    await soon(lambda: not rig.app.scheduler.carriers.at_work and not rig.app.scheduler.recorder.unrecorded)
    for name in entries:
        if name in rig.app.scheduler.egresses.trunks:
            held = [way for way in [*sites(rig, name), *rig.app.scheduler.carriers.retired] if way.direct]
            await soon(lambda: trunk(rig, name).sessions == sum(way.sessions for way in held))  # noqa: B023


CHANGES: dict[str, Callable[[Lab], object]] = {
    "nothing": lambda here: here.config(direct=ENTRY, routes=DIRECT),
    "fewer connections": lambda here: here.config("per: mx, connections: 1", direct=ENTRY, routes=DIRECT),
    "a limit": lambda here: here.config("per: mx, limits: [2000 messages/min]", direct=ENTRY, routes=DIRECT),
    "tls": lambda here: here.config("per: mx, tls: none", direct=ENTRY, routes=DIRECT),
    "per domain": lambda here: here.config("per: domain", direct=ENTRY, routes=DIRECT),
    "per egress": lambda here: here.config("per: egress", direct=ENTRY, routes=DIRECT),
    "per relay": lambda here: here.config("per: relay", direct=ENTRY, routes=DIRECT),
    "another rule first": lambda here: here.config(
        rules="name: own, match: {recipient: '*@d1.test'}, connections: 2", direct=ENTRY, routes=DIRECT
    ),
    "a rule by mx": lambda here: here.config(
        rules="name: own, match: {mx: '*.d2.test'}, per: egress", direct=ENTRY, routes=DIRECT
    ),
    "another source": lambda here: here.config(direct="mx-1: {source: 127.0.2.9}", routes=DIRECT),
    "fewer places": lambda here: here.config(direct="mx-1: {source: 127.0.2.1, connections: 2}", routes=DIRECT),
    "entry gone": lambda here: here.config(direct="mx-2: {source: 127.0.2.2}", routes="  - {name: all, via: mx-2}"),
    "a pool": lambda here: here.config(
        direct=f"{ENTRY}, mx-2: {{source: 127.0.2.2}}",
        pools="both: {members: {mx-1: 1, mx-2: 1}}",
        routes="  - {name: all, via: both}",
    ),
    "another name": lambda here: renamed(here.config(direct=ENTRY, routes=DIRECT)),
}


def renamed(file: Path) -> None:
    file.write_text(file.read_text().replace("hostname: relay.test", "hostname: other.test", 1))


@pytest.mark.parametrize("change", CHANGES)
async def test_in_the_middle_of_a_burst(tmp_path: Path, change: str) -> None:
    async with lab(tmp_path, HOSTS) as here:
        for host in here.mx.values():
            host.script["DOT"] = Later(0.02, "250 2.0.0 ok")
        async with running(here.config(direct=ENTRY, routes=DIRECT)) as rig:
            wanted = [f"u{i}@{name}" for i in range(40) for name in HOSTS]
            await burst(rig, wanted)
            await soon(lambda: len(here.delivered) > 20)
            for _ in range(3):
                CHANGES[change](here)
                assert rig.app.reload()[0]
                await asyncio.sleep(0.05)
            await all_there(rig, here, wanted)


async def test_from_an_account_to_mx_and_back(tmp_path: Path) -> None:
    there, back = asyncio.Event(), asyncio.Event()
    script = {"DOT": [Later(0.02, "250 ok", until=there)]}
    async with lab(tmp_path, HOSTS) as here, SimMx("127.0.0.1", script=script) as ses:
        accounts = {"ses": f"port: {ses.port}, tls: none, connections: 2"}
        for host in here.mx.values():  # so that there is mail left for the way back
            host.script["DOT"] = [*[Later(0.05, "250 2.0.0 ok")] * 6, Later(0.05, "250 2.0.0 ok", until=back)]
        async with running(here.config(accounts=accounts, direct=ENTRY, routes=ACCOUNT)) as rig:
            wanted = [f"u{i}@{name}" for i in range(100) for name in HOSTS]
            await burst(rig, wanted)
            there.set()
            await soon(lambda: len(ses.delivered()) > 10)
            here.config(accounts=accounts, direct=ENTRY, routes=DIRECT)
            assert rig.app.reload()[0]
            await soon(lambda: len(here.delivered) > 10)
            here.config(accounts=accounts, direct=ENTRY, routes=ACCOUNT)
            assert rig.app.reload()[0]
            back.set()
            await all_there(rig, here, wanted, ses)
            assert len(ses.delivered()) > 50


async def test_a_name_that_was_an_account_is_an_entry_now(tmp_path: Path) -> None:
    there = asyncio.Event()
    script = {"DOT": Later(0.05, "250 ok", until=there)}
    async with lab(tmp_path, HOSTS) as here, SimMx("127.0.0.1", script=script) as ses:
        accounts = {"out": f"port: {ses.port}, tls: none, connections: 1"}
        routes = "  - {name: all, via: out}"
        async with running(here.config(accounts=accounts, routes=routes)) as rig:
            wanted = [f"u{i}@{name}" for i in range(10) for name in HOSTS]
            await burst(rig, wanted)
            there.set()
            await soon(lambda: len(ses.delivered()) > 2)
            here.config(direct="out: {source: 127.0.2.1}", routes=routes)
            assert rig.app.reload()[0]
            await soon(lambda: len(here.delivered) > 2)
            here.config(accounts=accounts, routes=routes)
            assert rig.app.reload()[0]
            await all_there(rig, here, wanted, ses, entries=("out",))


async def test_sessions_of_what_is_unchanged_are_kept(tmp_path: Path) -> None:
    """And what was learnt of them; the rule that changed has new ones."""
    rules = "name: own, match: {mx: '*.d1.test'}, per: egress, connections: 3"
    async with lab(tmp_path, HOSTS) as here:
        async with running(here.config(rules=rules, direct=ENTRY, routes=DIRECT)) as rig:
            await burst(rig, [f"x@{name}" for name in HOSTS])
            await rig.settled()
            # One rule more before them: the others are the same, on another line of the file.
            before = "name: nobody, match: {recipient: '*@nobody.test'}\n"
            here.config(rules=before + rules.replace("3", "4"), direct=ENTRY, routes=DIRECT)
            assert rig.app.reload()[0]
            await burst(rig, [f"y@{name}" for name in HOSTS])
            await rig.settled()
        assert {name: len(host.visits) for name, host in here.mx.items()} == {
            "d1.test": 2,
            "d2.test": 1,
            "d3.test": 1,
            "d4.test": 1,
        }


async def test_another_name_server(tmp_path: Path) -> None:
    """A question that is under way at the reload is asked of the new one: the old one's answer is for nobody."""
    async with lab(tmp_path, {"a.test": "127.0.1.1", "b.test": "127.0.1.2"}) as here:
        with Told() as other:
            other.say("a.test", "MX", "1 mx1.b.test.")
            other.say("mx1.b.test", "A", "127.0.1.2")
            other.say("mx1.b.test", "AAAA")
            late = threading.Event()
            here.dns.told["a.test", "MX"].until = late
            file = here.config(direct=ENTRY, routes=DIRECT)
            async with running(file) as rig:
                number = await rig.send("x@a.test")
                await soon(lambda: ("a.test", "MX") in here.dns.questions)
                file.write_text(file.read_text().replace(here.dns.server, other.server))
                assert rig.app.reload()[0]
                await rig.reaches(number, "delivered")
                late.set()
                await asyncio.sleep(0.6)
                assert [way.site for way in sites(rig, "mx-1")] == ["lab/mx1.b.test"]
            assert here.mx["b.test"].delivered() == ["x@a.test"]


async def test_a_domain_that_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lane follows, though each message of it is claimed as it comes in."""
    monkeypatch.setattr(siting, "AGAIN", 0.2)
    async with lab(tmp_path, {"a.test": "127.0.1.1", "b.test": "127.0.1.2"}) as here:
        here.domain("a.test", "127.0.1.1", ttl=1)
        async with running(here.config(direct=ENTRY, routes=DIRECT)) as rig:
            await rig.reaches(await rig.send("x@a.test"), "delivered")
            here.dns.say("a.test", "MX", "1 mx1.b.test.", ttl=300)
            await asyncio.sleep(1.1)
            for i in range(3):
                await rig.reaches(await rig.send(f"y{i}@a.test"), "delivered")
                await asyncio.sleep(0.1)
            assert {way.site for way in sites(rig, "mx-1") if way.sessions} == {"lab/mx1.a.test", "lab/mx1.b.test"}
            lane = next(iter(rig.app.scheduler.lanes.by_id.values()))
            assert lane.site == "lab/mx1.b.test"
        assert here.mx["b.test"].delivered() == ["y0@a.test", "y1@a.test", "y2@a.test"]


async def test_counts_of_a_limit_outlive_a_change_of_the_rule(tmp_path: Path) -> None:
    async with lab(tmp_path, HOSTS) as here:
        rule = "per: egress, limits: [6 messages/h]"
        async with running(here.config(rule, direct=ENTRY, routes=DIRECT)) as rig:
            await burst(rig, [f"x{i}@d1.test" for i in range(4)])
            await rig.settled()
            here.config(rule + ", connections: 3", direct=ENTRY, routes=DIRECT)
            assert rig.app.reload()[0]
            await burst(rig, [f"y{i}@d1.test" for i in range(4)])
            await soon(lambda: len(here.delivered) >= 6)
            await asyncio.sleep(0.5)
            assert len(here.delivered) == 6


async def test_held_mail_under_a_new_question(tmp_path: Path) -> None:
    """A rule by recipient asks lanes something new: of those that are held too."""
    async with (
        lab(tmp_path, HOSTS) as here,
        running(here.config(direct=ENTRY, routes="  - {name: all, hold: true}")) as rig,
    ):
        ids = await burst(rig, [f"u{i}@{name}" for i in range(5) for name in HOSTS])
        rules = "name: own, match: {recipient: '*@d1.test'}, per: egress"
        here.config(rules=rules, direct=ENTRY, routes=DIRECT)
        assert rig.app.reload()[0]
        service = rig.app.admin.service
        await service.act("release", service.parse_filter({"id": ",".join(ids)}), dry_run=False)
        await all_there(rig, here, [f"u{i}@{name}" for i in range(5) for name in HOSTS])
        assert {way.site for way in sites(rig, "mx-1")} >= {"own"}
