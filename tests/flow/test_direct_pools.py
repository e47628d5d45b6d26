"""From where mail by MX leaves: entries with a source, a name and limits of their own; places among their sessions; pools."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest
from fakes import SILENT, Later
from lab import Lab, burst, lab, sites, soon, trunk
from rig import Rig, running
from simmx import SimMx

from relay.deliver.direct import Direct
from relay.deliver.smtp import Failure
from relay.reply import Reply, Stage
from tests.ports import blackhole

TWO = {"a.test": "127.0.1.1", "b.test": "127.0.1.2"}


async def no_place_is_lost(rig: Rig, *entries: str) -> None:
    """After a stop."""
    for name in entries:
        assert trunk(rig, name).sessions == 0 and not trunk(rig, name).wanted
        for way in sites(rig, name):
            assert (way.sessions, way.busy, way.idle) == (0, 0, False), way.key


# -- sources


async def test_the_host_sees_the_address_and_the_name_of_each_entry(tmp_path: Path) -> None:
    direct = (
        "mx-1: {source: 127.0.2.1, hostname: one.example}, mx-2: {source: 127.0.2.2, hostname: two.example}, mx-3: {}"
    )
    routes = "\n".join(f"  - {{name: r{n}, match: {{sender: '{n}@*'}}, via: mx-{n}}}" for n in (1, 2, 3))
    async with lab(tmp_path, TWO) as here, running(here.config(direct=direct, routes=routes)) as rig:
        await rig.send_many(
            [(f"{n}@example.com", (f"{n}@{d}",), b"Subject: x\r\n\r\nx\r\n") for n in (1, 2, 3) for d in TWO]
        )
        await rig.settled()
        for name in TWO:
            seen = {m.sender: (m.visit.source, m.visit.helo) for m in here.mx[name].accepted}
            assert seen == {
                "1@example.com": ("127.0.2.1", "one.example"),
                "2@example.com": ("127.0.2.2", "two.example"),
                "3@example.com": ("127.0.0.1", "relay.test"),
            }


async def test_an_entry_with_both_families(tmp_path: Path) -> None:
    hosts = {"a.test": "127.0.1.1", "b.test": "::1"}
    direct = "mx-1: {source: [127.0.2.1, '::1'], hostname: one.example}"
    async with lab(tmp_path, hosts) as here:
        file = here.config(direct=direct, routes="  - {name: all, via: mx-1}")
        async with running(file) as rig:
            await burst(rig, ["x@a.test", "x@b.test"])
            await rig.settled()
    assert [v.source for v in here.mx["a.test"].visits] == ["127.0.2.1"]
    assert [v.source for v in here.mx["b.test"].visits] == ["::1"]


async def test_patience_is_not_evaded_by_another_source(tmp_path: Path) -> None:
    """A host that was reached and says 421 is not asked at once from the next address; one that is gone would be."""
    routes = "  - {name: all, via: [mx-1, mx-2]}"
    direct = "mx-1: {source: 127.0.2.1}, mx-2: {source: 127.0.2.2}"
    async with lab(tmp_path, {"a.test": "127.0.1.1"}) as here:
        here.mx["a.test"].script = {"MAIL": "421 4.7.0 come back in an hour, your rate is too high"}
        async with running(here.config(direct=direct, routes=routes)) as rig:
            row = await rig.tried(await rig.send("x@a.test"))
            assert (row["state"], row["egress"], row["attempts"]) == ("deferred", "mx-1", 1)
    assert {visit.source for visit in here.mx["a.test"].visits} == {"127.0.2.1"}


async def test_a_source_of_the_other_family_alone(tmp_path: Path) -> None:
    """The route's next way out takes it; without one it waits, and says for what."""
    routes = "\n".join(["  - {name: two, match: {sender: 'two@*'}, via: [mx-6, mx-4]}", "  - {name: one, via: mx-6}"])
    direct = "mx-6: {source: '::1'}, mx-4: {source: 127.0.2.4}"
    async with (
        lab(tmp_path, {"a.test": "127.0.1.1"}) as here,
        running(here.config(direct=direct, routes=routes)) as rig,
    ):
        first = await rig.send("x@a.test", sender="two@example.com")
        row = await rig.reaches(first, "delivered")
        assert row["egress"] == "mx-4" and "failed_over" in await rig.story(first)
        row = await rig.tried(await rig.send("x@a.test", sender="one@example.com"))
        assert row["state"] == "deferred" and "mx-6 has no IPv4 source" in row["why"], row
        assert [v.source for v in here.mx["a.test"].visits] == ["127.0.2.4"]


async def test_a_source_that_the_machine_lacks(tmp_path: Path) -> None:
    """It says so; the host is not taken for dead, and other entries go on to it."""
    direct = "bad: {source: 192.0.2.77}, good: {source: 127.0.2.1}"
    routes = "\n".join(["  - {name: b, match: {sender: 'bad@*'}, via: bad}", "  - {name: g, via: good}"])
    async with lab(tmp_path, {"a.test": "127.0.1.1"}, also=["127.0.1.9"]) as here:
        here.domain("a.test", "127.0.1.1", "127.0.1.9")
        async with running(here.config(direct=direct, routes=routes)) as rig:
            row = await rig.tried(await rig.send("x@a.test", sender="bad@example.com"))
            assert row["state"] == "deferred" and "can't leave from 192.0.2.77" in row["why"], row
            dead = rig.app.scheduler.network.dead
            assert not dead.until("mx1.a.test", time.monotonic()) and not dead.until("127.0.1.1", time.monotonic())
            for _ in range(6):
                await rig.tried(await rig.send("x@a.test", sender="bad@example.com"))
                if sites(rig, "bad")[0].breaker.is_open:
                    break
            await rig.reaches(await rig.send("y@a.test", sender="ok@example.com"), "delivered")
            assert not sites(rig, "good")[0].breaker.failures


async def test_the_next_way_out_is_made_when_it_is_needed(tmp_path: Path) -> None:
    """Mail that is claimed as it comes in asked for the first way alone; there was no second one to take over."""
    direct = "one: {source: 127.0.2.1}, two: {source: 127.0.2.2}"
    async with lab(tmp_path, {"a.test": "127.0.1.1"}) as here:
        refuse = {"127.0.2.1"}
        mx = here.mx["a.test"]
        mx.script["BANNER"] = lambda _: "554 5.7.1 no" if mx.visits[-1].source in refuse else None
        file = here.config(direct=direct, routes="  - {name: all, via: [one, two]}")
        async with running(file) as rig:
            refuse.clear()
            await rig.reaches(await rig.send("x@a.test"), "delivered")
            refuse.add("127.0.2.1")
            (first,) = sites(rig, "one")
            await first.sweep()
            for session in first._idle:
                session.close()
            rig.app.scheduler.egresses.pop("two to lab/mx1.a.test", None)
            row = await rig.reaches(await rig.send("x@a.test"), "delivered")
            assert row["egress"] == "two" and row["attempts"] == 1


# -- places


async def test_idle_sessions_give_their_places(tmp_path: Path) -> None:
    async with lab(tmp_path, TWO) as here:
        file = here.config(direct="mx-1: {connections: 1}", routes="  - {name: all, via: mx-1}")
        async with running(file) as rig:
            for name in ["a.test", "b.test", "a.test"]:
                began = time.monotonic()
                await rig.reaches(await rig.send(f"x@{name}"), "delivered")
                assert time.monotonic() - began < 20
                await soon(lambda: trunk(rig, "mx-1").sessions == 1)
            assert here.open <= 1
        await no_place_is_lost(rig, "mx-1")


async def test_a_stop_while_mail_waits_for_a_place(tmp_path: Path) -> None:
    """It goes back: not an attempt, and not in doubt."""
    async with lab(tmp_path, TWO) as here:
        here.mx["a.test"].script["RCPT"] = SILENT
        file = here.config(direct="mx-1: {connections: 1}", routes="  - {name: all, via: mx-1}")
        async with running(file) as rig:
            first = await rig.send("x@a.test")
            await soon(lambda: here.mx["a.test"].open == 1)
            second = await rig.send("x@b.test")
            await soon(lambda: trunk(rig, "mx-1").wanted)
            await rig.app.stop()
        await no_place_is_lost(rig, "mx-1")
        here.mx["a.test"].script.clear()
        async with running(file) as rig:
            for number in (first, second):
                row = await rig.reaches(number, "delivered")
                assert (row["attempts"], row["in_doubt"]) == (1, False)
    assert sorted(here.delivered) == ["x@a.test", "x@b.test"]


async def test_a_question_that_fails_loses_no_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether an idle session serves a domain is asked of the DNS, which may be in trouble just then."""
    async with lab(tmp_path, {"a.test": "127.0.1.1"}) as here, running(here.config()) as rig:
        await rig.reaches(await rig.send("x@a.test"), "delivered")
        (way,) = sites(rig)
        await soon(lambda: way.idle)

        async def trouble(*_: object) -> bool:
            raise Failure(Stage.RESOLVE, Reply(451, "trouble", "4.4.3"))

        with monkeypatch.context() as patched:
            patched.setattr(Direct, "serves", trouble)
            await rig.tried(await rig.send("y@a.test"))
        await rig.settled()
        await soon(lambda: (way.sessions, way.idle) == (1, True))
        assert len(here.mx["a.test"].visits) == 1
    await no_place_is_lost(rig, "direct")


async def test_fewer_and_more_places_by_a_reload(tmp_path: Path) -> None:
    hosts = {f"d{n}.test": f"127.0.1.{n}" for n in range(1, 7)}
    async with lab(tmp_path, hosts) as here:
        routes = "  - {name: all, via: mx-1}"
        file = here.config(direct="mx-1: {connections: 6}", routes=routes)
        async with running(file) as rig:
            await burst(rig, [f"x@{name}" for name in hosts])
            await rig.settled()
            assert trunk(rig, "mx-1").sessions == 6
            here.config(direct="mx-1: {connections: 2}", routes=routes)
            assert rig.app.reload()[0]
            await soon(lambda: here.open <= 2 and trunk(rig, "mx-1").sessions <= 2)
            for host in here.mx.values():
                host.script["RCPT"] = Later(0.3, "250 2.1.5 ok")
            await burst(rig, [f"y@{name}" for name in hosts])
            await asyncio.sleep(0.1)
            assert here.open <= 2
            here.config(direct="mx-1: {connections: 6}", routes=routes)
            assert rig.app.reload()[0]
            await rig.settled()
        await no_place_is_lost(rig, "mx-1")


async def test_dead_hosts_leave_places_for_others(tmp_path: Path) -> None:
    """More dead destinations than places: who is alive is not kept waiting for their time-outs."""
    dead = {f"dead{n}.test": f"127.0.3.{n}" for n in range(1, 9)}
    live = {f"live{n}.test": f"127.0.1.{n}" for n in range(1, 3)}
    async with lab(tmp_path, live, also=dead.values()) as here:
        with contextlib.ExitStack() as stack:
            for name, address in dead.items():
                stack.enter_context(blackhole(address, here.port))
                here.domain(name, address)
            file = here.config(direct="mx-1: {connections: 8}", routes="  - {name: all, via: mx-1}")
            async with running(file) as rig:
                await burst(rig, [f"x@{name}" for name in live])
                await rig.settled()
                await burst(rig, [f"x{i}@{name}" for i in range(4) for name in dead])
                await asyncio.sleep(0.5)
                for number in await burst(rig, [f"y@{name}" for name in live]):
                    await rig.reaches(number, "delivered", deadline=15)
        await no_place_is_lost(rig, "mx-1")


# -- pools

POOL = "bulk: {members: {one: 3, two: 1}}"
ENTRIES = "one: {source: 127.0.2.1}, two: {source: 127.0.2.2}"
BULK = "  - {name: all, via: bulk}"


def by_source(here: Lab, name: str = "a.test") -> dict[str, list[str]]:
    """The recipients whose mail came from each address."""
    found: dict[str, list[str]] = {}
    for m in here.mx[name].accepted:
        found.setdefault(m.visit.source, []).extend(m.recipients)
    return found


async def test_by_weight(tmp_path: Path) -> None:
    async with lab(tmp_path, {"a.test": "127.0.1.1"}) as here:
        async with running(here.config(direct=ENTRIES, pools=POOL, routes=BULK)) as rig:
            await burst(rig, [f"u{i}@a.test" for i in range(400)])
            await rig.settled()
        shares = {source: len(to) for source, to in by_source(here).items()}
        assert sum(shares.values()) == 400
        assert 256 <= shares["127.0.2.1"] <= 344, shares  # 5 standard deviations around 300


async def test_a_message_keeps_its_member(tmp_path: Path) -> None:
    """Over retries, a reload and a restart; all its recipients by the same one."""
    async with lab(tmp_path, TWO) as here:
        for host in here.mx.values():
            host.script["RCPT"] = "450 4.2.0 not now"
        # Of 20 all by one member: once in half a million times.
        file = here.config(direct=ENTRIES, pools="bulk: {members: {one: 1, two: 1}}", routes=BULK)

        def sources() -> dict[str, set[str]]:
            """By message, told by the local part: the addresses from which it was tried."""
            found: dict[str, set[str]] = {}
            for host in here.mx.values():
                for visit in host.visits:
                    for line in visit.commands:
                        if line.startswith("RCPT TO:<"):
                            found.setdefault(line[9:].partition("@")[0], set()).add(visit.source)
            return found

        async with running(file) as rig:
            mail = [
                ("app@example.com", (f"u{i}@a.test", f"u{i}@b.test"), b"Subject: x\r\n\r\nx\r\n") for i in range(20)
            ]
            ids = await rig.send_many(mail)
            for number in ids:
                await rig.tried(number, 2)
            assert rig.app.reload()[0]
            for number in ids:
                await rig.tried(number, 3)
        async with running(file) as rig:
            for number in ids:
                await rig.tried(number, 4)
            for host in here.mx.values():
                host.script.clear()
            await rig.settled()
        assert len(sources()) == 20
        assert all(len(seen) == 1 for seen in sources().values())
        assert {s for seen in sources().values() for s in seen} == {"127.0.2.1", "127.0.2.2"}
        assert len(here.delivered) == 40


async def test_the_next_member_while_one_rests(tmp_path: Path) -> None:
    async with lab(tmp_path, {"a.test": "127.0.1.1"}) as here:
        mx = here.mx["a.test"]
        mx.script["BANNER"] = lambda _: "554 5.7.1 not you" if mx.visits[-1].source == "127.0.2.1" else None
        async with running(here.config(direct=ENTRIES, pools=POOL, routes=BULK)) as rig:
            ids = await burst(rig, [f"u{i}@a.test" for i in range(30)])
            await rig.settled()
            assert {row["attempts"] for row in await rig.rows(*ids)} == {1}
        assert set(by_source(here)) == {"127.0.2.2"}


async def test_a_member_that_is_gone(tmp_path: Path) -> None:
    """What had drawn it draws anew, of what waits and of what is held; the others keep theirs."""
    async with lab(tmp_path, {"a.test": "127.0.1.1"}) as here:
        here.mx["a.test"].script["RCPT"] = "450 4.2.0 not now"
        slow = "  default: {retry: {schedule: [1h], give_up: 1d}}"
        async with running(here.config(direct=ENTRIES, pools=POOL, routes=BULK, classes=slow)) as rig:
            ids = await burst(rig, [f"u{i}@a.test" for i in range(20)])
            for number in ids:
                await rig.tried(number)
            here.mx["a.test"].script.clear()
            here.config(direct="two: {source: 127.0.2.2}", pools="bulk: {members: {two: 1}}", routes=BULK)
            assert rig.app.reload()[0]
            service = rig.app.admin.service
            await service.act("retry", service.parse_filter({"id": ",".join(ids)}), dry_run=False)
            await rig.settled()
        assert {source: len(to) for source, to in by_source(here).items()} == {"127.0.2.2": 20}
        assert sorted(here.delivered) == sorted(f"u{i}@a.test" for i in range(20))


async def test_an_account_in_a_pool(tmp_path: Path) -> None:
    async with lab(tmp_path, {"a.test": "127.0.1.1"}) as here, SimMx("127.0.0.1") as account:
        file = here.config(
            accounts={"ses": f"port: {account.port}, tls: none"},
            direct=ENTRIES,
            pools="bulk: {members: {ses: 1, one: 1}}",
            routes=BULK,
        )
        async with running(file) as rig:
            await burst(rig, [f"u{i}@a.test" for i in range(40)])
            await rig.settled()
            assert len(account.delivered()) >= 4 and len(here.delivered) >= 4  # fewer: once in fifty million times
            assert len(account.delivered()) + len(here.delivered) == 40
            account.script["BANNER"] = "554 5.7.1 no"
            account.cut()
            ids = await burst(rig, [f"v{i}@a.test" for i in range(20)])
            for number in ids:
                await rig.reaches(number, "delivered")
            assert {row["egress"] for row in await rig.rows(*ids)} == {"one"}


@pytest.mark.parametrize("to", ["bulk", "two"])
async def test_reroute_of_an_accounts_mail(tmp_path: Path, to: str) -> None:
    """Its lane names no destination, for an account needs none: the mail finds its way all the same."""
    async with lab(tmp_path, TWO) as here:
        with blackhole("127.0.1.9") as port:
            file = here.config(
                accounts={"ses": f"port: {port}, tls: none"},
                direct=ENTRIES,
                pools=POOL,
                routes="  - {name: all, via: ses}",
            )
            file.write_text(file.read_text().replace("host: 127.0.0.1, port", "host: 127.0.1.9, port"))
            async with running(file) as rig:
                rig.app.scheduler.egresses["ses"].breaker.rest(time.time(), 3600, "its quota", passes=False)
                ids = await burst(rig, [f"u{i}@{name}" for i in range(3) for name in TWO])
                service = rig.app.admin.service
                done = await service.act("reroute", service.parse_filter({"id": ",".join(ids)}), to, dry_run=False)
                assert done["recipients"] == 6, done
                for number in ids:
                    row = await rig.reaches(number, "delivered")
                    assert row["egress"] in (("one", "two") if to == "bulk" else (to,))
        assert len(here.delivered) == 6


async def test_members_that_may_not_send_as_everybody(tmp_path: Path) -> None:
    direct = "one: {source: 127.0.2.1, senders: ['*@one.example']}, two: {source: 127.0.2.2}"
    async with lab(tmp_path, {"a.test": "127.0.1.1"}) as here:
        async with running(here.config(direct=direct, pools=POOL, routes=BULK)) as rig:
            mail = [
                (f"x@{sender}.example", (f"{sender}{i}@a.test",), b"Subject: x\r\n\r\nx\r\n")
                for i in range(20)
                for sender in ("one", "other")
            ]
            await rig.send_many(mail)
            await rig.settled()
        found = by_source(here)
        assert all(to.startswith("one") for to in found["127.0.2.1"])
        assert sum(to.startswith("other") for to in found["127.0.2.2"]) == 20


async def test_reports_by_a_pool(tmp_path: Path) -> None:
    async with lab(tmp_path, TWO) as here:
        here.mx["a.test"].script["RCPT"] = "550 5.1.1 no such user"
        file = here.config(direct=ENTRIES, pools=POOL, routes="  - {name: all, via: two}", dsn="to: sender, via: bulk")
        async with running(file) as rig:
            for i in range(12):  # all by the other member: once in 16 million times
                await rig.reaches(await rig.send(f"x{i}@a.test", sender="me@b.test"), "failed")
            await rig.settled()
        assert here.mx["b.test"].delivered() == ["me@b.test"] * 12
        assert {m.sender for m in here.mx["b.test"].accepted} == {""}
        assert "127.0.2.1" in by_source(here, "b.test")
