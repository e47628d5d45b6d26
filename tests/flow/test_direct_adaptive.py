"""How much mail by MX goes where at once: places shared by all destinations, limits, hosts that are busy, dead or greylist."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fakes import SILENT, Later
from lab import Lab, burst, lab, sites, soon, trunk
from rig import Rig, running
from simmx import SimMx, greylist

from relay.deliver import connect
from relay.deliver.direct import Direct
from relay.deliver.pool import Egress
from relay.policy.gate import EgressView
from relay.reply import Stage
from relay.scheduler import egresses, housekeeping
from tests.ports import blackhole

# What the tests wait for without a word of how fast: slower than any machine, faster than what an idle session is kept.
PROMPT = 25.0
TEN = {f"d{n}.test": f"127.0.1.{n}" for n in range(1, 11)}


def watched(here: Lab) -> list[int]:
    """The most sessions that all hosts had at once, kept up to date."""
    most = [0]
    for host in here.mx.values():
        before = host.action

        def action(command: str, argument: str, otherwise: object, before=before) -> object:  # type: ignore[no-untyped-def]
            most[0] = max(most[0], here.open)
            return before(command, argument, otherwise)

        host.action = action  # type: ignore[method-assign]
    return most


async def test_three_places_for_ten_destinations(tmp_path: Path) -> None:
    async with lab(tmp_path, TEN) as here:
        most = watched(here)
        file = here.config(direct="mx-1: {connections: 3}", routes="  - {name: all, via: mx-1}")
        async with running(file) as rig:
            began = asyncio.get_running_loop().time()
            await burst(rig, [f"u{i}@{name}" for i in range(6) for name in TEN])
            await rig.settled()
            assert asyncio.get_running_loop().time() - began < PROMPT
            assert Counter(r.partition("@")[2] for r in here.delivered) == dict.fromkeys(TEN, 6)
            assert most[0] <= 3
            await soon(lambda: trunk(rig, "mx-1").sessions == here.open)  # one of them may be saying QUIT
        assert trunk(rig, "mx-1").sessions == 0
        assert all(way.sessions == 0 for way in sites(rig, "mx-1"))


async def test_a_destination_with_much_mail_starves_nobody(tmp_path: Path) -> None:
    """Two places, and one destination has mail without end: the others come to their turn within seconds."""
    hosts = {f"d{n}.test": f"127.0.1.{n}" for n in range(1, 4)}
    async with lab(tmp_path, hosts) as here:
        here.mx["d1.test"].script["DOT"] = lambda _: Later(0.2, "250 2.0.0 ok")
        file = here.config(direct="mx-1: {connections: 2}", routes="  - {name: all, via: mx-1}")
        async with running(file) as rig:
            await burst(rig, [f"u{i}@d1.test" for i in range(1000)])
            await soon(lambda: here.mx["d1.test"].open == 2)
            late = await burst(rig, ["x@d2.test", "x@d3.test"])
            for number in late:
                await rig.reaches(number, "delivered", deadline=PROMPT)
            assert rig.app.spool.queued > 100  # it has much yet


# -- how much a host takes at once


def after_all(host: SimMx, seconds: float) -> asyncio.Event:
    """No message is taken before that is set: however slowly they are handed in, all are there then. Each takes so long."""
    go = asyncio.Event()

    def dot(_: str) -> Later:
        return Later(seconds, "250 2.0.0 ok", until=None if go.is_set() else go)

    host.script["DOT"] = dot
    return go


def takes(host: SimMx, most: int, reply: str) -> None:
    host.script["BANNER"] = lambda _: reply if host.open > most else None


@pytest.mark.parametrize(
    "reply", ["421 4.3.2 Service not available", "421 4.7.0 Too many connections, try again later"]
)
async def test_a_host_that_takes_three_sessions(tmp_path: Path, reply: str) -> None:
    """The lane settles there; no message pays for it with an attempt."""
    async with lab(tmp_path, {"a.test": "127.0.1.1"}) as here:
        mx = here.mx["a.test"]
        takes(mx, 3, reply)
        go = after_all(mx, 0.02)
        async with running(here.config("per: mx, connections: 12")) as rig:
            ids = await burst(rig, [f"u{i}@a.test" for i in range(300)])
            go.set()
            (way,) = sites(rig)
            await soon(lambda: len(mx.delivered()) > 150)
            assert 2 <= way.connections <= 4
            await rig.settled()
            rows = [row for part in range(0, 300, 100) for row in await rig.rows(*ids[part : part + 100])]
            assert {row["attempts"] for row in rows} == {1}
            assert not way.breaker.failures
        refused = sum(not visit.commands for visit in mx.visits)
        assert refused <= 6, refused
        assert sorted(here.delivered) == sorted(f"u{i}@a.test" for i in range(300))


async def test_a_good_host_gets_all_its_connections(tmp_path: Path) -> None:
    async with lab(tmp_path, {"a.test": "127.0.1.1"}) as here:
        go = after_all(here.mx["a.test"], 0.05)
        async with running(here.config("per: mx, connections: 8")) as rig:
            await burst(rig, [f"u{i}@a.test" for i in range(200)])
            go.set()
            await rig.settled()
        assert here.mx["a.test"].most_open == 8


async def test_what_the_host_says_of_itself_shrinks_and_of_a_mailbox_does_not(tmp_path: Path) -> None:
    hour = "  default: {retry: {schedule: [1h], give_up: 1d}}"
    async with lab(tmp_path, {"a.test": "127.0.1.1"}) as here:
        mx = here.mx["a.test"]
        go = after_all(mx, 0.02)
        async with running(here.config("per: mx, connections: 8", classes=hour)) as rig:
            await burst(rig, [f"u{i}@a.test" for i in range(100)])
            go.set()
            await rig.settled()
            (way,) = sites(rig)
            assert way.connections == 8
            for reply in [
                "450 4.2.0 Greylisted, try again later",
                "452 4.2.2 mailbox full",
                "450 4.1.1 unknown for now",
            ]:
                mx.script["RCPT"] = reply
                for number in await burst(rig, [f"v{i}@a.test" for i in range(20)]):
                    await rig.tried(number)
                assert way.connections == 8, reply
            mx.script = {"DOT": "451 4.3.0 local error in processing"}
            for number in await burst(rig, [f"w{i}@a.test" for i in range(10)]):
                await rig.tried(number)
            assert way.connections < 8
            assert "local error" in way.fewer


async def test_greylisting_costs_one_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the time that the host names, from the same address, once."""
    async with lab(tmp_path, {"a.test": "127.0.1.1"}) as here:
        here.mx["a.test"].script["RCPT"] = greylist(1.0, "450 4.2.0 Greylisted, try again in 1 seconds")
        hour = "  default: {retry: {schedule: [1h], give_up: 1d}}"
        file = here.config(
            direct="one: {source: 127.0.2.1}, two: {source: 127.0.2.2}, three: {source: 127.0.2.3}",
            pools="bulk: {members: {one: 1, two: 1, three: 1}}",
            routes="  - {name: all, via: bulk}",
            classes=hour,
        )
        async with running(file) as rig:
            ids = await burst(rig, [f"u{i}@a.test" for i in range(30)])
            await rig.settled()
            assert {row["attempts"] for row in await rig.rows(*ids)} == {2}
        tried: dict[str, list[str]] = {}
        for visit in here.mx["a.test"].visits:
            for line in visit.commands:
                if line.startswith("RCPT"):
                    tried.setdefault(line, []).append(visit.source)
        assert len(tried) == 30
        assert all(len(sources) == 2 and sources[0] == sources[1] for sources in tried.values())


# -- limits: of an hour, so that none of it comes back while a test runs


async def waits(rig: Rig, number: str, why: str) -> None:
    end = asyncio.get_running_loop().time() + 30
    while why not in (row := await rig.row(number))["why"]:
        assert asyncio.get_running_loop().time() < end, row
        await asyncio.sleep(0.01)


async def test_connections_a_minute_are_counted_by_the_host(tmp_path: Path) -> None:
    """Many carriers at once, TLS that breaks, a reload: never one more. What is open goes on."""
    async with lab(tmp_path, {"a.test": "127.0.1.1"}, extensions=("PIPELINING", "STARTTLS")) as here:
        mx = here.mx["a.test"]
        mx.script["STARTTLS"] = "454 4.7.0 not now"
        go = after_all(mx, 0.02)
        rule = "per: mx, connections: 20, limits: [6 connections/h]"
        async with running(here.config(rule)) as rig:
            await burst(rig, [f"u{i}@a.test" for i in range(150)])
            go.set()
            await soon(lambda: len(mx.delivered()) > 60)
            here.config(rule, extra="log: {redact: false}")
            assert rig.app.reload()[0]
            await rig.settled()
            assert len(mx.visits) <= 6
            mx.cut()
            number = await rig.send("late@a.test")
            await waits(rig, number, "6 connections/h is used up")
            await asyncio.sleep(0.5)
            row = await rig.row(number)
            assert len(mx.visits) <= 6 and row["attempts"] == 0, row
            assert row["state"] == "queued" and "6 connections/h is used up" in row["why"], row


async def test_connections_a_minute_where_a_lane_has_many_hosts(tmp_path: Path) -> None:
    """A session with one host is none for another: what needs one more waits, and goes round in no circle."""
    async with lab(tmp_path, TEN) as here:
        rule = "per: egress, connections: 20, limits: [4 connections/h]"
        async with running(here.config(rule)) as rig:
            ids = await burst(rig, [f"u{i}@{name}" for i in range(3) for name in TEN])
            carriers = rig.app.scheduler.carriers
            await soon(lambda: sum(len(host.visits) for host in here.mx.values()) >= 4 and not carriers.at_work)
            await asyncio.sleep(1)
            assert sum(len(host.visits) for host in here.mx.values()) == 4
            claims = len([1 for number in ids for kind in await rig.story(number) if kind == "deferred"])
            assert claims == 0
            assert carriers.at_work == {} and 4 <= len(here.delivered) <= 12
            rows = await rig.rows(*ids)
            assert all(row["attempts"] == 0 for row in rows if row["state"] != "delivered")


@pytest.mark.parametrize(
    ("per", "entries", "count"),
    [("egress", 1, 5), ("egress", 2, 10), ("relay", 1, 5), ("relay", 2, 5), ("mx", 1, 15), ("domain", 1, 20)],
)
async def test_what_a_limit_is_of(tmp_path: Path, per: str, entries: int, count: int) -> None:
    """Four domains, two of them with one host: 5 messages/h for each of what `per` says, over a reload."""
    hosts = {f"d{n}.test": f"127.0.1.{n}" for n in range(1, 4)}
    async with lab(tmp_path, hosts) as here:
        here.dns.say("d4.test", "MX", "1 mx1.d3.test.")
        direct = ", ".join(f"e{n}: {{source: 127.0.2.{n}}}" for n in range(1, entries + 1))
        routes = "\n".join(f"  - {{name: r{n}, match: {{sender: '{n}@*'}}, via: e{n}}}" for n in range(1, entries + 1))
        rule = f"per: {per}, limits: [5 messages/h]"
        async with running(here.config(rule, direct=direct, routes=routes)) as rig:
            mail = [
                (f"{n}@example.com", (f"u{n}{i}@d{d}.test",), b"Subject: x\r\n\r\nx\r\n")
                for i in range(8)
                for n in range(1, entries + 1)
                for d in range(1, 5)
            ]
            await rig.send_many(mail)
            await soon(lambda: len(here.delivered) >= count)
            here.config(rule, direct=direct, routes=routes, extra="log: {redact: false}")
            assert rig.app.reload()[0]
            await asyncio.sleep(0.7)
            assert len(here.delivered) == count


# -- hosts that are gone


async def test_dead_hosts_beside_live_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One never accepts, one refuses, one never greets: mail of the others goes on, and theirs waits and comes when they do."""
    monkeypatch.setattr(connect, "TIMEOUTS", connect.TIMEOUTS | {Stage.BANNER: 0.5, Stage.CONNECT: 0.5})
    live = {f"live{n}.test": f"127.0.1.{n}" for n in range(1, 4)}
    gone = {"hole.test": "127.0.3.1", "closed.test": "127.0.3.2", "mute.test": "127.0.3.3"}
    fast = "  default: {retry: {schedule: [300ms], give_up: 1d}}"
    async with lab(tmp_path, live, also=gone.values()) as here:
        for name, address in gone.items():
            here.domain(name, address)
        hole = contextlib.ExitStack()
        hole.enter_context(blackhole(gone["hole.test"], here.port))
        mute = SimMx(gone["mute.test"], here.port, {"BANNER": SILENT})
        with hole:
            async with mute, running(here.config(classes=fast, extra="breaker: {cool_down: 1s}")) as rig:
                await burst(rig, [f"u{i}@{name}" for i in range(10) for name in gone])
                began = asyncio.get_running_loop().time()
                for number in await burst(rig, [f"v{i}@{name}" for i in range(10) for name in live]):
                    await rig.reaches(number, "delivered")
                assert asyncio.get_running_loop().time() - began < 10  # each of theirs in turn takes 15 s
                ways = {way.site.removeprefix("lab/mx1."): way for way in sites(rig)}
                await soon(lambda: all(ways[name].breaker.is_open for name in gone))
                before = len(mute.visits)
                await soon(lambda: len(mute.visits) >= before + 2)
                assert mute.most_open <= 2 and ways["mute.test"].staff == 1  # one probe at a time
                hole.close()
                mute.script.clear()
                mute.cut()
                async with (
                    SimMx(gone["hole.test"], here.port) as first,
                    SimMx(gone["closed.test"], here.port) as second,
                ):
                    await rig.settled()
                    for host, name in ((first, "hole.test"), (second, "closed.test"), (mute, "mute.test")):
                        assert sorted(host.delivered()) == sorted(f"u{i}@{name}" for i in range(10))


async def test_a_backup_for_a_dead_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first time-outs it is used at once; and the best one again, after its time."""
    monkeypatch.setattr(connect, "TIMEOUTS", connect.TIMEOUTS | {Stage.CONNECT: 3.0})
    dialled, dial = list[str](), Direct._dial

    async def counted(way: Direct, address: str) -> Any:
        dialled.append(address)
        return await dial(way, address)

    monkeypatch.setattr(Direct, "_dial", counted)
    best, second = "127.0.1.1", "127.0.1.2"
    async with lab(tmp_path, {"a.test": "127.0.1.2"}, also=["127.0.1.1"]) as here:
        here.domain("a.test", "127.0.1.1", "127.0.1.2")
        backup = here.mx["a.test"]
        rule = "per: mx, messages_per_connection: 1"
        with blackhole("127.0.1.1", here.port):
            async with running(here.config(rule)) as rig:
                await rig.reaches(await rig.send("x@a.test"), "delivered")
                assert dialled == [best, second]
                for i in range(5):
                    await rig.reaches(await rig.send(f"y{i}@a.test"), "delivered")
                assert dialled == [best] + [second] * 6
                assert len(backup.visits) == 6
                assert not sites(rig)[0].breaker.failures
                dead = rig.app.scheduler.network.dead
                for what, (until, seconds) in dead._until.items():  # their time is over
                    dead._until[what] = (until - 3600, seconds)
                await rig.reaches(await rig.send("z@a.test"), "delivered")
                assert dialled[7:] == [best, second]
        assert len(here.delivered) == 7


async def test_broken_tls_is_not_asked_for_with_each_session(tmp_path: Path) -> None:
    """In clear text on a connection of its own; the next session does not begin with what failed just now."""
    async with lab(tmp_path, {"a.test": "127.0.1.1"}, extensions=("PIPELINING", "STARTTLS")) as here:
        mx = here.mx["a.test"]
        mx.script["STARTTLS"] = "454 4.7.0 TLS not available"
        async with running(here.config("per: mx, messages_per_connection: 1")) as rig:
            for i in range(5):
                row = await rig.reaches(await rig.send(f"x{i}@a.test"), "delivered")
                assert row["attempts"] == 1
        assert sum("STARTTLS" in visit.commands for visit in mx.visits) == 1
        assert len(mx.visits) == 6


# -- what is kept in memory


async def test_destinations_without_mail_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their lanes, sites, ways and sessions; and mail that comes again finds its way as before."""
    monkeypatch.setattr(housekeeping, "PURGE_EVERY", 0.5)
    monkeypatch.setattr(housekeeping, "FORGET_EVERY", 0.5)
    monkeypatch.setattr(egresses, "FORGET", 0.5)
    async with lab(tmp_path, TEN) as here:
        file = here.config("per: mx, messages_per_connection: 1", spool=", keep: 1s")
        async with running(file) as rig:
            lanes, sites_of = rig.app.scheduler.lanes, rig.app.scheduler.sites
            for _ in range(2):
                going = [after_all(host, 0.0) for host in here.mx.values()]
                await burst(rig, [f"x@{name}" for name in TEN])
                assert len(lanes.by_id) >= 9
                for go in going:
                    go.set()
                await rig.settled()
                # The number of the latest lane is not given again, so that one stays.
                await soon(lambda: len(lanes.by_id) <= 1 and len(rig.app.spool.lanes) <= 1 and not sites(rig))
                kept = {
                    len(lanes._ways),
                    len(lanes._by),
                    len(lanes._of_domain),
                    len(sites_of._hops),
                    len(sites_of.by_name),
                }
                assert kept <= {0, 1}
        assert len(here.delivered) == 20


async def test_mail_for_lanes_that_are_just_being_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "PURGE_EVERY", 0.05)
    monkeypatch.setattr(housekeeping, "FORGET_EVERY", 0.05)
    monkeypatch.setattr(housekeeping, "TICK", 0.02)
    monkeypatch.setattr(egresses, "FORGET", 0.0)
    async with lab(tmp_path, TEN) as here:
        async with running(here.config("per: mx, messages_per_connection: 2", spool=", keep: 1s")) as rig:
            rig.app.spool.keep = 0.05
            wanted = []
            for i in range(40):
                part = [f"u{i}@{name}" for name in list(TEN)[i % 3 :: 3]]
                wanted += part
                await burst(rig, part)
                await asyncio.sleep(0.1)
            await rig.settled()
            assert max(rig.app.spool.lanes.values()) > len(TEN)  # some were forgotten, and came again
            assert not rig.said("housekeeping_failed") and not rig.said("loop_died")
        assert sorted(here.delivered) == sorted(wanted)


async def test_what_stands_in_line_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two places and 300 destinations: the gate is asked a few times for each, not of all with each pass."""
    asked = Counter[str]()
    view = Egress.view

    def counted(egress: Egress[Any], now: float) -> EgressView:
        asked["views"] += 1
        return view(egress, now)

    monkeypatch.setattr(Egress, "view", counted)
    names = [f"m{n}.test" for n in range(300)]
    async with lab(tmp_path, {"a.test": "127.0.1.1"}) as here:
        for name in names:
            here.dns.say(name, "MX", "1 mx1.a.test.")
        file = here.config("per: domain", direct="mx-1: {connections: 2}", routes="  - {name: all, via: mx-1}")
        async with running(file) as rig:
            await burst(rig, [f"x@{name}" for name in names])
            await rig.settled()
        assert sorted(here.delivered) == sorted(f"x@{name}" for name in names)
    assert asked["views"] < 10 * len(names), asked
