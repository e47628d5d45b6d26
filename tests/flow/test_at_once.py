"""A message that the transaction which accepts it claims: it goes at once, or is given back, and nothing of it is kept.

Where dispatch is stopped, only what is claimed so can leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import socket
import struct
import threading
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import NOW
from fakes import Later, Upstream
from making import assert_counts
from rig import Rig, running, submit, until, write_config

from relay import clock
from relay.app import App
from relay.recipient import State
from relay.spool import Filter, Head
from relay.spool.sqlite import SqliteSpool

TEXT = b"Subject: t\r\n\r\nhello\r\n"
LARGE = b"Subject: t\r\n\r\n" + b"y" * 70 + b"\r\n" + (b"x" * 76 + b"\r\n") * 6000
HONOUR = "honour: [send_at, idempotency_key]"


def to(up: Upstream, more: str = "") -> dict[str, str]:
    return {"main": f"port: {up.port}, tls: none{more}"}


async def warm(rig: Rig, *, dispatch: bool = False) -> None:
    """The lane is known after its first message; then dispatch stops."""
    await rig.reaches(await rig.send("first@example.net"), "delivered")
    await until(lambda: not rig.egress().busy)
    if not dispatch:
        await rig.app.supervisor.stop("dispatch")


@contextlib.asynccontextmanager
async def no_commit(app: App) -> AsyncIterator[threading.Event]:
    """The spool's writing thread is held up until the block ends, or the event is set."""
    gate = threading.Event()
    held = asyncio.ensure_future(app.spool._writer._connection.call(lambda _: gate.wait(120)))
    try:
        yield gate
    finally:
        gate.set()
        await held


async def gone_through(rig: Rig, *upstreams: Upstream) -> None:
    """No place, carrier or session is left over, and the counters are what the rows say."""
    scheduler = rig.app.scheduler
    await until(lambda: not scheduler.carriers.at_work and not scheduler.recorder.unrecorded)
    await until(lambda: rig.app.spool.counts[State.ACTIVE] == 0)
    assert not scheduler._granted
    for egress in [*scheduler.egresses.values(), *scheduler.carriers.retired]:
        assert (egress.granted, egress.busy) == (0, 0), egress.name
        await until(lambda egress=egress: egress.sessions == len(egress._idle))  # type: ignore[misc]
    await assert_counts(rig.app.spool)
    for up in upstreams:  # one end of a session hears of its end before the other
        await until(lambda up=up: up.open == up.held)  # type: ignore[misc]


# -- what goes at once


@pytest.mark.parametrize("message", [TEXT, LARGE], ids=["row", "file"])
async def test_it_leaves_without_dispatch_once_and_whole(tmp_path: Path, message: bytes) -> None:
    async with Upstream() as up, running(write_config(tmp_path, to(up))) as rig:
        await warm(rig)
        names = [(f"a{i}@example.net", f"b{i}@example.net") for i in range(20)]
        ids = await rig.send_many([("app@example.com", pair, message) for pair in names])
        await rig.settled()
        rows = await rig.rows(*ids)
        assert {(r["state"], r["attempts"], r["in_doubt"]) for r in rows} == {("delivered", 1, False)}
        assert Counter(up.delivered()[1:]) == Counter(name for pair in names for name in pair)
        assert [len(t.recipients) for t in up.done[1:]] == [2] * 20
        body = message.partition(b"\r\n\r\n")[2]
        assert all(t.message.endswith(b"\r\n\r\n" + body) for t in up.done[1:])
        assert await rig.story(ids[0]) == ["accepted", "delivered", "delivered"]
        await gone_through(rig, up)
        await until(lambda: not list((tmp_path / "spool" / "content").iterdir()))


@pytest.mark.parametrize("end", [b"450 4.2.0 later\r\n", b"550 5.1.1 no\r\n"])
async def test_what_is_refused_is_settled_as_ever(tmp_path: Path, end: bytes) -> None:
    slow = "  default: {retry: {schedule: [1h], give_up: 1d}}"
    async with Upstream() as up, running(write_config(tmp_path, to(up), classes=slow)) as rig:
        await warm(rig)
        up.script = {"RCPT": end}
        row = await rig.tried(await rig.send())
        assert (row["state"], row["attempts"]) == ("deferred" if end[:1] == b"4" else "failed", 1)
        await gone_through(rig, up)


# -- what does not


@pytest.mark.parametrize(
    ("sender", "recipients", "header", "more"),
    [
        ("app@example.com", ("a@example.net", "b@other.example"), b"", ""),
        ("app@example.com", ("a@example.net", "b@example.net", "c@example.net"), b"", ", recipients_per_message: 2"),
        ("app@example.com", ("a@example.net",), b"X-Relay-Send-At: %s\r\n", ""),
        ("app@example.com", ("a@held.example",), b"", ""),
        ("app@example.com", ("a@example.net", "b@held.example"), b"", ""),
    ],
    ids=["two lanes", "too many", "later", "held", "one held"],
)
async def test_what_waits_for_dispatch(
    tmp_path: Path, sender: str, recipients: tuple[str, ...], header: bytes, more: str
) -> None:
    routes = "\n".join(
        [
            "  - {name: held, match: {recipient: '*@held.example'}, hold: true}",
            "  - {name: other, match: {recipient: '*@other.example'}, via: main}",
            "  - {name: all, via: main}",
        ]
    )
    if header:
        header %= datetime.fromtimestamp(clock.now() + 3600, UTC).isoformat(timespec="seconds").encode()
    async with Upstream() as up:
        file = write_config(tmp_path, to(up, more), routes=routes)
        file.write_text(file.read_text().replace("{name: local,", "{name: local, " + HONOUR + ","))
        async with running(file) as rig:
            await rig.reaches(await rig.send("first@other.example"), "delivered")
            await warm(rig)
            number = await rig.send(*recipients, sender=sender, message=header + TEXT)
            wanted = [("held" if "held" in r else "queued", 0) for r in recipients]
            assert [(r["state"], r["attempts"]) for r in await rig.rows(number)] == wanted
            await gone_through(rig, up)
            assert len(up.done) == 2
            rig.app.supervisor.start("dispatch", rig.app.scheduler.dispatch)
            if not header:
                await until(lambda: len(up.delivered()) == 2 + sum("held" not in r for r in recipients))
            await gone_through(rig, up)


async def test_what_is_due_goes_before_what_has_just_come(tmp_path: Path) -> None:
    """While something that could leave by the account waits, nobody passes it."""
    async with Upstream() as up, running(write_config(tmp_path, to(up, ", connections: 1"))) as rig:
        await warm(rig, dispatch=True)
        gate = asyncio.Event()
        up.script = {"DOT": Later(0, "250 2.0.0 ok", gate)}
        count = rig.egress().capacity + 5
        await rig.send_many([("app@example.com", (f"r{i}@example.net",), TEXT) for i in range(count)])
        await until(lambda: rig.app.scheduler.lanes.waiting)
        assert not rig.app.scheduler.grant(1 << 60, next(iter(rig.app.scheduler.lanes.by_id)), 1)
        gate.set()
        await rig.settled()
        assert up.delivered()[1:] == [f"r{i}@example.net" for i in range(count)]
        await gone_through(rig, up)


async def test_a_busy_lane_does_not_starve_anothers_retries(tmp_path: Path) -> None:
    """One comes to its turn within a few transactions, whatever comes in meanwhile."""
    routes = "  - {name: a, match: {recipient: '*@retry.example'}, via: main}\n  - {name: b, via: main}"
    classes = "  default: {retry: {schedule: [300ms], give_up: 1d}}"
    async with Upstream() as up:
        file = write_config(tmp_path, to(up, ", connections: 1"), routes=routes, classes=classes)
        async with running(file) as rig:
            await rig.reaches(await rig.send("first@retry.example"), "delivered")
            await warm(rig, dispatch=True)
            up.script = {"RCPT": lambda r: "450 4.2.0 later" if "retry" in r and len(up.done) < 60 else "250 ok"}
            number = await rig.send("again@retry.example")
            sending = True

            async def flood(sender: str) -> None:
                i = 0
                while sending:
                    i += 1
                    await submit(rig.port, [(sender, (f"{i}@busy.example",), TEXT)] * 5)

            floods = [asyncio.ensure_future(flood(f"s{i}@example.com")) for i in range(4)]
            await rig.reaches(number, "delivered", deadline=60)
            sending = False
            await asyncio.gather(*floods)
            assert (await rig.row(number))["attempts"] >= 2
            await rig.settled()
            await gone_through(rig, up)


# -- between the grant and the commit


async def test_a_client_that_hangs_up_while_it_commits(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, to(up))) as rig:
        await warm(rig)
        async with no_commit(rig.app):
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            writer.write(b"EHLO x\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n")
            await reader.readuntil(b"354 ")
            writer.write(TEXT + b".\r\n")
            await until(lambda: rig.egress().granted == 1)
            linger = struct.pack("ii", 1, 0)  # a reset: who says no more may still listen
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            await until(lambda: not rig.app.doors[0].sessions)
        await until(lambda: up.delivered()[1:] == ["b@example.net"])
        await gone_through(rig, up)


async def test_a_key_that_was_seen_gives_its_place_back(tmp_path: Path) -> None:
    message = b"X-Relay-Idempotency-Key: k%d\r\n" + TEXT
    async with Upstream() as up:
        file = write_config(tmp_path, to(up))
        file.write_text(file.read_text().replace("{name: local,", "{name: local, " + HONOUR + ","))
        async with running(file) as rig:
            await warm(rig)
            async with no_commit(rig.app):  # both in one transaction
                sending = [asyncio.ensure_future(rig.send(message=message % 1)) for _ in range(3)]
                await until(lambda: rig.egress().granted == 3)
            ids = await asyncio.gather(*sending)
            assert len(set(ids)) == 1 and await rig.send(message=message % 1) == ids[0]
            await rig.settled()
            assert len(up.done) == 2
            await gone_through(rig, up)


@pytest.mark.parametrize("error", ["full", "constraint"])
async def test_a_spool_that_refuses_gives_the_place_back(tmp_path: Path, error: str) -> None:
    async with Upstream() as up, running(write_config(tmp_path, to(up))) as rig:
        await warm(rig)
        spool = rig.app.spool

        def spoil(connection: object) -> None:
            if error == "full":
                pages = connection.execute("PRAGMA page_count").fetchone()[0]  # type: ignore[attr-defined]
                connection.execute(f"PRAGMA max_page_count = {pages}")  # type: ignore[attr-defined]
            else:
                connection.execute(  # type: ignore[attr-defined]
                    "CREATE TEMP TRIGGER no BEFORE INSERT ON main.recipient WHEN NEW.address LIKE 'bad%' "
                    "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
                )

        await spool._writer._connection.call(spoil)
        body = b"Subject: t\r\n\r\n" + b"z" * 70 + b"\r\n" + (b"x" * 76 + b"\r\n") * 2000
        with pytest.raises(AssertionError, match="452"):
            await rig.send("bad@example.net", message=body)
        await gone_through(rig, up)
        await spool._writer._connection.call(
            lambda c: c.execute("PRAGMA max_page_count = 1000000" if error == "full" else "DROP TRIGGER no").fetchall()
        )
        await spool.probe(clock.now())
        spool.check_room()
        await rig.send("good@example.net", message=body)
        await rig.settled()
        assert up.delivered()[1:] == ["good@example.net"]
        await gone_through(rig, up)


async def test_one_bad_message_does_not_fail_those_that_commit_with_it(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, to(up))) as rig:
        await warm(rig)
        await rig.app.spool._writer._connection.call(
            lambda c: c.execute(
                "CREATE TEMP TRIGGER no BEFORE INSERT ON main.recipient WHEN NEW.address LIKE 'bad%' "
                "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
            )
        )
        async with no_commit(rig.app):
            names = ["a@example.net", "bad@example.net", "b@example.net"]
            sending = [asyncio.ensure_future(rig.send(name)) for name in names]
            await until(lambda: rig.egress().granted == 3)
        said = await asyncio.gather(*sending, return_exceptions=True)
        assert [isinstance(s, str) for s in said] == [True, False, True]
        await rig.settled()
        assert sorted(up.delivered()[1:]) == ["a@example.net", "b@example.net"]
        await gone_through(rig, up)


CHANGES = {
    "account changed": ("connections: 3", "connections: 4"),
    "account gone": ("main: {", "fresh: {"),
    "hold": ("via: [main]", "hold: true"),
    "discard": ("via: [main]", "discard: true"),
    "reject": ("via: [main]", "reject: not any more"),
    "capture": ("routes:", 'capture: {allow: ["*@allowed.example"]}\nroutes:'),
    "no route": ("{name: all, via", '{name: all, match: {recipient: "*@else.example"}, via'),
    "a new question": ("{name: all, via", '{name: some, match: {from: "*@else.example"}, hold: true}\n  - {name: all, via'),
    "fewer recipients": ("connections: 3", "connections: 3, recipients_per_message: 1"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
async def test_a_reload_while_it_commits(tmp_path: Path, change: str) -> None:
    """It follows the new rules, as what waits does, and the account that was dropped is free of it."""
    slow = "  default: {retry: {schedule: [1h], give_up: 1d}}"
    async with Upstream() as up, running(write_config(tmp_path, to(up, ", connections: 3"), classes=slow)) as rig:
        await warm(rig, dispatch=True)
        old, new = CHANGES[change]
        text = rig.app.config.source and Path(rig.app.config.source).read_text()
        assert text
        text = text.replace("[main]", "[fresh]") if change == "account gone" else text
        before = rig.egress()
        async with no_commit(rig.app):
            sending = asyncio.ensure_future(rig.send("a@example.net", "b@example.net"))
            await until(lambda: before.granted == 1)
            Path(str(rig.app.config.source)).write_text(text.replace(old, new, 1))
            taken, notes = rig.app.reload()
            assert taken, notes
        number = await sending
        if change == "no route":
            await until(lambda: rig.app.spool.counts[State.QUEUED] == 2)
        else:
            await rig.reaches(number, *{"hold": ["held"], "reject": ["failed"]}.get(change, ["delivered"]))
        await gone_through(rig, up)
        assert before.granted == 0
        if before not in rig.app.scheduler.egresses.values():
            await until(lambda: before not in rig.app.scheduler.carriers.retired)
        left = change not in ("hold", "discard", "reject", "capture", "no route")
        assert sorted(up.delivered()[1:]) == (["a@example.net", "b@example.net"] if left else [])
        if change == "fewer recipients":
            assert [len(t.recipients) for t in up.done[1:]] == [1, 1]
        for row in await rig.rows(number):
            assert row["attempts"] == (1 if left or change in ("discard", "reject", "capture") else 0), row


async def test_an_account_that_begins_to_rest_while_it_commits(tmp_path: Path) -> None:
    """It was not tried, and waits for the account; nothing is in doubt."""
    async with Upstream() as up, running(write_config(tmp_path, to(up))) as rig:
        await warm(rig, dispatch=True)
        async with no_commit(rig.app):
            sending = asyncio.ensure_future(rig.send())
            await until(lambda: rig.egress().granted == 1)
            for _ in range(5):
                rig.egress().breaker.failed(clock.now(), "gone", 0.5)
        number = await sending
        await until(lambda: rig.app.spool.counts[State.QUEUED] == 1)
        row = await rig.row(number)
        assert (row["attempts"], row["in_doubt"]) == (0, False) and "rests" in row["why"]
        await gone_through(rig, up)
        assert not rig.app.scheduler.grant(1 << 60, next(iter(rig.app.scheduler.lanes.by_id)), 1)
        assert rig.app.reload()[0]  # asks it again
        await rig.reaches(number, "delivered")
        await gone_through(rig, up)


@pytest.mark.parametrize("late", [False, True], ids=["in time", "the clients are cut before it commits"])
async def test_a_stop_while_it_commits(tmp_path: Path, late: bool) -> None:
    """It was not sent: the next start finds it waiting, not in doubt."""
    async with Upstream() as up:
        file = write_config(tmp_path, to(up))
        file.write_text(file.read_text().replace("stop_timeout: 5s", "stop_timeout: 1100ms"))
        async with running(file) as rig:
            await warm(rig)
            async with no_commit(rig.app) as gate:
                sending = asyncio.ensure_future(rig.send())
                await until(lambda: rig.egress().granted == 1)
                stopping = asyncio.ensure_future(rig.app.stop())
                await until(lambda: rig.app.scheduler.carriers.stopping)
                await asyncio.sleep(1.5 if late else 0.0)
                gate.set()
                await stopping
            await asyncio.gather(sending, return_exceptions=True)
            assert not rig.app.scheduler._granted
        spool = await SqliteSpool.open(tmp_path / "spool" / "spool.db", NOW)
        try:
            rows = [row async for row in spool.find(Filter(states=(State.QUEUED, State.ACTIVE)))]
            assert [(row["state"], row["attempts"]) for row in rows] == [("queued", 0)]
        finally:
            await spool.close()
        assert len(up.done) == 1
        async with running(file) as rig:
            await rig.settled()
            assert not rig.said("recovered") and len(up.done) == 2


async def test_more_than_max_queued_is_refused_while_it_is_in_flight(tmp_path: Path) -> None:
    """What is claimed counts as queued, and what has left makes room."""
    gate = asyncio.Event()
    async with Upstream() as up, running(write_config(tmp_path, to(up), spool=", max_queued: 3")) as rig:
        await warm(rig)
        up.script = {"DOT": Later(0, "250 2.0.0 ok", gate)}
        for _ in range(3):
            await rig.send()
        with pytest.raises(AssertionError, match="452"):
            await rig.send()
        gate.set()
        await rig.settled()
        await until(lambda: not rig.app.spool.refusal)
        await rig.send()
        await rig.settled()
        assert len(up.done) == 5
        await gone_through(rig, up)


async def test_who_died_with_it_in_flight_finds_it_in_doubt(tmp_path: Path) -> None:
    """The claim is as durable as the message: another start does not send it as if nothing had been."""
    async with Upstream() as up:
        file = write_config(tmp_path, to(up))
        file.write_text(file.read_text().replace("stop_timeout: 5s", "stop_timeout: 1100ms"))
        async with running(file) as rig:
            await warm(rig)
            up.script = {"DOT": Later(0, "250 2.0.0 ok", asyncio.Event())}
            await rig.send()
            await until(lambda: len(up.transactions) == 2 and up.transactions[1].ended)
            async with no_commit(rig.app):  # both files are of one moment
                for name in ("spool.db", "spool.db-wal"):
                    (tmp_path / "died").mkdir(exist_ok=True)
                    shutil.copy(tmp_path / "spool" / name, tmp_path / "died" / name)
        spool = await SqliteSpool.open(tmp_path / "died" / "spool.db", NOW)
        try:
            assert await spool.recover({}, NOW, 0.5) == (1, [])
            (row,) = [r async for r in spool.find(Filter(states=(State.DEFERRED,)))]
            assert (row["attempts"], bool(row["in_doubt"])) == (1, True)
        finally:
            await spool.close()


async def test_a_storm_of_changes_while_mail_comes_in(tmp_path: Path) -> None:
    """Reloads, accounts that rest, a dispatch that dies, refusals of all kinds: each message is delivered once in the end."""
    chance = random.Random(8)
    routes = "\n".join(f"  - {{name: r{i}, match: {{recipient: '*@d{i}.example'}}, via: [one, two]}}" for i in range(3))
    calm = routes + "\n  - {name: rest, via: [two, one]}"
    async with Upstream() as one, Upstream(extensions=()) as two:
        accounts = {"one": f"port: {one.port}, tls: none, connections: 2", "two": f"port: {two.port}, tls: none"}
        file = write_config(
            tmp_path, accounts, routes=calm, classes="  default: {retry: {schedule: [50ms], give_up: 1d}}"
        )
        text = file.read_text()
        async with running(file) as rig:
            sent: list[str] = []

            async def client(number: int) -> None:
                for i in range(60):
                    names = [
                        f"c{number}x{i}y{j}@d{chance.randrange(5)}.example" for j in range(chance.choice((1, 1, 2)))
                    ]
                    sent.extend(names)
                    await submit(rig.port, [("a@example.com", tuple(names), LARGE if chance.random() < 0.05 else TEXT)])

            clients = [asyncio.ensure_future(client(i)) for i in range(5)]
            while not all(c.done() for c in clients):
                await asyncio.sleep(0.01)
                up = chance.choice((one, two))
                up.script = chance.choice(
                    ({}, {"MAIL": ["421 4.3.2 busy", "250 ok"]}, {"DOT": ["451 4.0.0 no", "250 ok"]},
                     {"RCPT": ["452 4.2.2 no", "250 ok"]}, {"DATA": "451 4.0.0 no"}, {"RSET": "502 5.5.1 what"})
                )  # fmt: skip
                match chance.randrange(6):
                    case 0:
                        config = text.replace("connections: 2", f"connections: {chance.randrange(1, 5)}")
                        config = config.replace(
                            "via: [two, one]", chance.choice(("via: [one]", "hold: true", "via: [two]"))
                        )
                        if chance.random() < 0.3:
                            config = config.replace(
                                "routes:\n", f"routes:\n  - {{name: q, match: {{tag: t{chance.random()}}}, via: one}}\n"
                            )
                        file.write_text(config)
                        assert rig.app.reload()[0]
                    case 1:
                        await rig.app.supervisor.stop("dispatch")
                        rig.app.supervisor.start("dispatch", rig.app.scheduler.dispatch)
                    case 2:
                        egress = chance.choice(list(rig.app.scheduler.egresses.values()))
                        for _ in range(5):
                            egress.breaker.failed(clock.now(), "as asked", 0.5)
                    case 3:
                        chance.choice((one, two)).cut()
            await asyncio.gather(*clients)
            one.script, two.script = {}, {}
            file.write_text(text)
            assert rig.app.reload()[0]
            service = rig.app.admin.service
            end = clock.monotonic() + 120
            while rig.app.spool.queued:
                assert clock.monotonic() < end, rig.app.spool.counts
                await service.act("release", service.parse_filter({"state": "held"}), dry_run=False)
                for egress in rig.app.scheduler.egresses.values():
                    egress.breaker.ask_again(clock.now())
                rig.app.spool.wake()
                await asyncio.sleep(0.2)
            taken = Counter([*one.delivered(), *two.delivered()])
            doubtful = {r["recipient"] for r in await rig.rows() if r["in_doubt"]}
            assert set(taken) == set(sent)
            assert {name for name, count in taken.items() if count > 1} <= doubtful
            await gone_through(rig, one, two)


async def test_who_waited_for_a_place_that_is_given_back_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not when dispatch comes round the next time: here it would not for ten minutes."""
    message = b"X-Relay-Idempotency-Key: k\r\n" + TEXT
    async with Upstream() as up:
        classes = "  default: {retry: {schedule: [400ms], give_up: 1d}}"
        file = write_config(tmp_path, to(up, ", connections: 1"), classes=classes)
        file.write_text(file.read_text().replace("{name: local,", "{name: local, " + HONOUR + ","))
        async with running(file) as rig:
            wait = rig.app.spool.wait

            async def patient(timeout: float | None) -> list[Head]:
                return await wait(timeout if timeout is None or timeout < 2.0 else 600.0)

            monkeypatch.setattr(rig.app.spool, "wait", patient)
            await rig.send(message=message)
            await rig.settled()
            up.script = {"RCPT": ["450 4.2.0 later", "250 2.1.5 ok"]}
            number = await rig.send("again@example.net")
            await rig.tried(number)
            await until(lambda: not rig.app.scheduler.recorder.unrecorded)
            rig.egress().duration = 10.0  # room for two
            async with no_commit(rig.app):
                sending = [asyncio.ensure_future(rig.send(message=message)) for _ in range(2)]
                await until(lambda: rig.egress().granted == 2)
                await until(lambda: rig.app.scheduler.lanes.waiting)  # it is due, and there is no room
                await asyncio.sleep(0.05)
            await asyncio.gather(*sending)
            await rig.reaches(number, "delivered", deadline=60)
            await gone_through(rig, up)
