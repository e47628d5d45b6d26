"""Deliveries that are cancelled give everything back: carriers, sessions, sockets, the breaker's probe, the recipients.

In the product a delivery is cancelled by a stop alone; a reload lets what runs come to its end. Both are done here for
real, and the first a thousand times by its means, the cancellation of a carrier.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path

import pytest
from cells import GROUNDS, KINDS, Cell, Ground, cells_of, mails
from conftest import NOW
from fakes import Early, Later, Upstream
from rig import Rig, running, until, write_config

from relay.policy.breaker import Breaker
from relay.recipient import State
from relay.reply import Stage
from relay.spool import Filter
from relay.spool.sqlite import SqliteSpool

CUTS = 1000
BIG = b"Subject: t\r\n\r\n" + (b"y" * 70 + b"\r\n") * 80_000  # more than the buffers between two sockets take
TEXT = [("app@example.com", (f"r{i}@example.net",), BIG) for i in range(10)]
HANG = next(k for k in KINDS if k.name == "hang")


def slow(gate: asyncio.Event) -> dict[str, object]:
    """An upstream that stops reading in the middle of a body until the gate opens."""
    return {"BODY": Early(20_000, Later(0, b"", gate))}


def amid(rig: Rig) -> list[asyncio.Task[None]]:
    """The carriers that are in the middle of a body, and can't go on."""
    return [
        task
        for task, session in rig.app.scheduler.carriers.at_work.items()
        if session is not None and session.stage is Stage.BODY and session._talk.paused
    ]


def assert_all_given_back(rig: Rig, *upstreams: Upstream) -> None:
    carriers = rig.app.scheduler.carriers
    assert not carriers.at_work
    for egress in [*carriers.egresses.values(), *carriers.retired]:
        assert (egress.carriers, egress.busy, egress.breaker.probing) == (0, 0, False), egress.name
        assert egress.sessions == len(egress._idle), egress.name
    assert sum(up.held for up in upstreams) == sum(e.sessions for e in carriers.egresses.values())


async def test_a_thousand_cuts_in_the_middle_of_a_body(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with Upstream(slow(gate), small_window=True) as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none, connections: 10"})
        async with running(file) as rig:
            ids = await rig.send_many(TEXT)
            cut = 0
            while cut < CUTS:
                await until(lambda: len(amid(rig)) == 10)
                carriers = amid(rig)
                cut += sum(task.cancel() for task in carriers)
                await asyncio.wait(carriers)
                up.cut()  # else the kernel keeps what it has not got rid of
            await until(lambda: len(amid(rig)) == 10)
            assert rig.egress().sessions == rig.egress().carriers == up.held == 10
            assert rig.app.spool.counts[State.ACTIVE] == 10 and up.done == []
            gate.set()
            await rig.settled()
            await until(lambda: rig.egress().busy == 0)
            assert_all_given_back(rig, up)
            assert rig.egress().breaker == Breaker()
            assert {(r["state"], r["attempts"], r["in_doubt"]) for r in await rig.rows(*ids)} == {
                ("delivered", 1, False)
            }
            assert sorted(up.delivered()) == [f"r{i}@example.net" for i in range(10)]
            assert len(up.transactions) == cut + 10 and up.most_held == 10


async def test_a_cut_probe_is_as_if_it_had_not_been(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with Upstream(slow(gate), small_window=True) as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none, connections: 10"})
        async with running(file) as rig:
            rig.egress().breaker = Breaker(failures=5, opened=2)
            await rig.send_many(TEXT)
            for _ in range(20):
                await until(lambda: amid(rig))
                (probe,) = amid(rig)
                assert rig.egress().breaker.probing
                probe.cancel()
                await asyncio.wait([probe])
                assert rig.egress().breaker == Breaker(failures=5, opened=2)
                up.cut()
            gate.set()
            await rig.settled()
            assert rig.egress().breaker == Breaker() and len(up.done) == 10


# -- what cancels in the product


def there(rig: Rig, cell: Cell) -> bool:
    """Whether the carrier of this cell, or its goodbye, hangs where it is to be cut."""
    egress = rig.egress(cell.name)
    held = [s for t, s in rig.app.scheduler.carriers.at_work.items() if t.get_name() == f"carrier-{cell.name}"]
    said = cell.up.sessions[-1]
    if cell.stage == "connect":
        return held == [None] and egress.sessions == 1
    if cell.stage == "banner":
        return held == [None] and said == []
    if cell.stage in ("body", "dot"):
        return any(s and s.stage is Stage[cell.stage.upper()] and None in s.answers for s in held)
    verb = {"handshake": "STARTTLS"}.get(cell.stage, cell.stage.upper())
    return bool(said) and said[-1].startswith(verb) and (cell.stage != "rcpt" or "hit" in said[-1])


@pytest.mark.parametrize("ground", GROUNDS, ids=lambda g: g.name)
def test_a_stop_at_every_stage(ground: Ground, tmp_path: Path) -> None:
    with asyncio.Runner(loop_factory=ground.loop) as runner:
        runner.run(stopped(ground, tmp_path))


async def stopped(ground: Ground, folder: Path) -> None:
    """What was not said waits as if it had not been tried; who was answered keeps that; after the dot it is in doubt."""
    async with cells_of([HANG], ground, folder) as (file, cells):
        file.write_text(file.read_text().replace("stop_timeout: 5s", "stop_timeout: 1500ms"))
        async with running(file) as rig:
            await rig.send_many(mails(cells, "first"))
            await rig.settled()
            for cell in cells:
                await cell.fall_ill()
            await rig.send_many(mails(cells, "second", "third"))
            await until(lambda: all(there(rig, cell) for cell in cells))
            await rig.app.stop()
            assert_all_given_back(rig, *(c.up for c in cells if c.hole is None))
            assert all(egress.sessions == 0 for egress in rig.app.scheduler.egresses.values())
        before = await spooled(folder)
        for cell in cells:
            for recipient, rest in after_a_stop(cell).items():
                assert before[recipient] == rest, recipient
            await cell.recover()
        async with running(file) as rig:
            service = rig.app.admin.service
            await service.act("retry", service.parse_filter({"sender": "*"}), dry_run=False)
            await rig.settled()
            assert not rig.said("recovered")
        after = await spooled(folder)
        taken = Counter(recipient for cell in cells for recipient in cell.up.delivered())
        for recipient, (state, attempts, in_doubt) in before.items():
            again = ("delivered", attempts + 1, in_doubt)
            assert after[recipient] == (again if state in ("queued", "deferred") else (state, attempts, in_doubt))
            assert taken[recipient] == (after[recipient][0] == "delivered")


async def spooled(folder: Path) -> dict[str, tuple[str, int, bool]]:
    """recipient -> (state, attempts, in doubt), as the next start finds it."""
    spool = await SqliteSpool.open(folder / "spool" / "spool.db", NOW)
    try:
        return {r["recipient"]: (r["state"], r["attempts"], bool(r["in_doubt"])) async for r in spool.find(Filter())}
    finally:
        await spool.close()


def after_a_stop(cell: Cell) -> dict[str, tuple[str, int, bool]]:
    """As `spooled`: what a hang would have done to the recipients, but for those of whom nothing was said."""
    found: dict[str, tuple[str, int, bool]] = {}
    hung = False
    for message in ("second", "third"):
        fates = {recipient: cell.expected[recipient] for recipient in cell.recipients(message)}
        untried = hung or (cell.stage, message) == ("rset", "third")
        for recipient, fate in fates.items():
            unsaid = untried or (fate.hop and not fate.in_doubt)
            found[recipient] = ("queued", 0, False) if unsaid else (fate.state, fate.attempts, fate.in_doubt)
        hung = hung or any(fate.hop for fate in fates.values())
    return found


async def test_a_stop_while_a_body_is_read_for_the_next_message(tmp_path: Path) -> None:
    """What a recipient of the message before was answered in the same session is not this one's answer."""
    both, read = asyncio.Event(), threading.Event()
    async with Upstream({"BANNER": "421 4.3.2 not yet"}) as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none, connections: 1"})
        async with running(file) as rig:
            small = b"Subject: t\r\n\r\nx\r\n"
            await rig.send_many([("app@example.com", (f"r{i}@example.net",), small) for i in range(2)])
            await until(lambda: rig.app.spool.counts[State.DEFERRED] == 2)
        tried = {recipient: attempts for recipient, (_, attempts, _) in (await spooled(tmp_path)).items()}
        up.script = {"RCPT": Later(0, "550 5.1.1 nobody", both)}
        async with running(file) as rig:  # no body is in memory any more
            await until(lambda: rig.egress().backlog)
            reading = asyncio.ensure_future(rig.app.spool._reader.call(lambda _: read.wait(120)))
            both.set()
            await until(lambda: rig.said("failed") and not rig.egress().backlog)
            stopping = asyncio.ensure_future(rig.app.stop())
            await until(lambda: not rig.app.scheduler.carriers.at_work)
            read.set()
            await asyncio.gather(stopping, reading)
        states = {name: (state, attempts) for name, (state, attempts, _) in (await spooled(tmp_path)).items()}
        assert sorted(state for state, _ in states.values()) == ["failed", "queued"]
        assert states == {name: (s, tried[name] + (s == "failed")) for name, (s, _) in states.items()}


async def test_accounts_that_are_retired_in_the_middle_of_a_body(tmp_path: Path) -> None:
    """What runs goes on by the old settings; a stop cuts it there too; all of it is delivered once."""
    gate, names = asyncio.Event(), [f"r{i}@example.net" for i in range(20)]
    async with Upstream(slow(gate), small_window=True) as up:
        file = write_config(
            tmp_path, {"main": f"port: {up.port}, tls: none, connections: 1, messages_per_connection: 100"}
        )
        async with running(file) as rig:
            old = file.read_text()
            for i, name in enumerate(names[:10], 1):
                await rig.send(name, message=BIG)
                await until(lambda i=i: len(amid(rig)) == i)
                file.write_text(old.replace("connection: 100", f"connection: {100 + i}"))
                assert rig.app.reload()[0]
            assert len(rig.app.scheduler.carriers.retired) == 10 and rig.egress().carriers == 0
            assert up.held == 10
            gate.set()
            await rig.settled()
            await until(lambda: not rig.app.scheduler.carriers.retired)
            assert_all_given_back(rig, up)
            gate.clear()
            for i, name in enumerate(names[10:], 1):
                await rig.send(name, message=BIG)
                await until(lambda i=i: len(amid(rig)) == i)
                file.write_text(old.replace("connection: 100", f"connection: {200 + i}"))
                assert rig.app.reload()[0]
            await rig.app.stop()
            assert_all_given_back(rig, up)
            assert up.held == 0
        gate.set()
        async with running(file) as rig:
            await rig.settled()
            assert {(r["state"], r["attempts"], r["in_doubt"]) for r in await rig.rows()} == {("delivered", 1, False)}
            assert sorted(up.delivered()) == sorted(names)
