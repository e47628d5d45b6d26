"""The fault matrix: wherever a session with an upstream can fail, and however, who suffers is who should, and once the
upstream is well again each recipient gets the message exactly as often as was promised.

Three messages with three recipients each go to every cell (tests/cells.py). The first is delivered; then the fault
begins. The second has no recipient that is taken, so that RSET comes before the third; the third is the last of its
session, so that QUIT follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import email
import re
import resource
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from cells import FLOOD, GROUNDS, KINDS, MESSAGES, Cell, Ground, Kind, Who, cells_of, mails, suffers
from fakes import Transaction
from rig import FAST, Rig, process, running, submit, until

from relay.deliver import smtp
from relay.policy.breaker import Breaker
from relay.recipient import State
from relay.reply import Stage

PATIENCE = 2.5  # seconds before a hang is one


@pytest.mark.parametrize("ground", GROUNDS, ids=lambda g: g.name)
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_fault(kind: Kind, ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with asyncio.Runner(loop_factory=ground.loop) as runner:
        runner.run(column(kind, ground, tmp_path, monkeypatch))


async def column(kind: Kind, ground: Ground, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kind of fault at every stage."""
    async with cells_of([kind], ground, folder) as (file, cells), running(file) as rig:
        await rig.send_many(mails(cells, "first"))
        await quiet(rig, cells, 0)
        with monkeypatch.context() as patch:
            if kind.name == "hang":
                for stage in Stage:
                    patch.setitem(smtp.TIMEOUTS, stage, PATIENCE)
            for cell in cells:
                await cell.fall_ill()
            async with growth() as grown:
                await rig.send_many(mails(cells, "second", "third"))
                await quiet(rig, cells, sum(f.state == "queued" for c in cells for f in c.expected.values()))
        assert grown[0] < FLOOD / 2
        rows = {r["recipient"]: r for r in await rig.rows()}
        assert_none(problem for cell in cells for problem in (*judged(cell, rows), *told(rig, cell)))

        begun = {c.name: len(c.up.transactions) for c in cells}
        for cell in cells:
            await cell.recover()
            rig.egress(cell.name).breaker = Breaker()  # its pause is no part of this
        service = rig.app.admin.service
        await service.act("retry", service.parse_filter({"sender": "*"}), dry_run=False)
        await rig.settled()
        rows = {r["recipient"]: r for r in await rig.rows()}
        assert_none(problem for cell in cells for problem in counted(cell, rows, begun[cell.name]))


def assert_none(problems: Iterator[str]) -> None:
    found = list(problems)
    assert not found, "\n".join(found)


async def quiet(rig: Rig, cells: list[Cell], queued: int) -> None:
    """Until nothing is in flight, and only those wait untried of whom it is expected."""

    def settled() -> bool:
        counts = rig.app.spool.counts
        return not rig.app.scheduler.carriers.at_work and not counts[State.ACTIVE] and counts[State.QUEUED] == queued

    def held() -> list[tuple[str, int, int]]:
        there = [(c.name, c.up.held, rig.egress(c.name).sessions) for c in cells if c.hole is None]
        return [(name, held, counted) for name, held, counted in there if held != counted]

    await until(settled, 120)
    with contextlib.suppress(AssertionError):
        await until(lambda: not held(), 30)
    assert not held(), "(account, connections that are open, sessions that are counted)"


def judged(cell: Cell, rows: dict[str, Any]) -> Iterator[str]:
    """Which recipients are not as expected while the fault lasts."""
    for recipient, fate in cell.expected.items():
        row = rows[recipient]
        found = (row["state"], row["attempts"], row["in_doubt"])
        if found != (fate.state, fate.attempts, fate.in_doubt):
            yield f"{recipient} is {found}, not {fate}: {row['why']}"
        says = f"{row['last_reply']} {row['why']}"
        if fate.says not in says or not says.isprintable() or len(says) > 1200:
            yield f"{recipient} says {says[:300]!r}, not {fate.says!r}"
        if fate.attempts and not row["last_reply"]:
            yield f"{recipient} does not say why"


def told(rig: Rig, cell: Cell) -> Iterator[str]:
    """What is not as expected of the account and its sessions."""
    who, breaker, sessions = suffers(cell.stage, cell.kind), rig.egress(cell.name).breaker, cell.up.sessions
    failures = sum(any(cell.expected[r].hop for r in cell.recipients(m)) for m in MESSAGES)
    account = who is Who.ACCOUNT
    should = (1 if account else failures, account, account, False)
    if (found := (breaker.failures, breaker.is_open, breaker.auth_failed, breaker.probing)) != should:
        yield f"{cell.name}: (failures, open, login failed, probing) are {found}, not {should}"
    for stage in ("rset", "quit"):
        if cell.stage == stage and stage.upper() not in sessions[0]:
            yield f"{cell.name}: no {stage.upper()} was said: {sessions}"
    if who in (Who.MESSAGE, Who.RECIPIENT) and cell.stage != "body" and len(sessions) != 1:
        yield f"{cell.name}: {len(sessions)} sessions for a fault that is not the session's"
    if cell.up.most_held > 1:
        yield f"{cell.name}: {cell.up.most_held} sessions at once"


def counted(cell: Cell, rows: dict[str, Any], begun: int) -> Iterator[str]:
    """What is not as promised once all has been delivered; `begun`: transactions that were begun before."""
    taken = Counter(cell.up.delivered())
    unanswered = [t for t in cell.up.transactions if t.ended and t.answered[:1] not in ("2", "4", "5")]
    for recipient, fate in cell.expected.items():
        row, again = rows[recipient], fate.state in ("deferred", "queued")
        state = "failed" if fate.state == "failed" else "delivered"
        if (row["state"], row["attempts"], row["in_doubt"]) != (state, fate.attempts + again, fate.in_doubt):
            yield f"{recipient} ended as {row['state']} after {row['attempts']} attempts: {row['why']}"
        if taken[recipient] != (state == "delivered"):
            yield f"{recipient} was delivered {taken[recipient]} times"
        if (named := sum(recipient in t.recipients for t in cell.up.transactions[begun:])) != again:
            yield f"{recipient}, who was {fate.state}, was named {named} times after the fault"
        copies = [t for t in unanswered if recipient in t.accepted]
        if len(copies) != fate.in_doubt:
            yield f"{recipient} was sent {len(copies)} times without an answer"
        elif copies and not same(copies[0], next(t for t in cell.up.done if recipient in t.accepted)):
            yield f"{recipient}: the second copy is not the first one"


def same(one: Transaction, other: Transaction) -> bool:
    """The same bytes, and so the same Message-ID, by which a receiver may know a copy."""
    ids = {email.message_from_bytes(t.message)["Message-ID"] for t in (one, other)}
    return one.wire == other.wire and len(ids) == 1 and bool(ids.pop())


@contextlib.asynccontextmanager
async def growth() -> AsyncIterator[list[int]]:
    """How many bytes this process, with relay and upstreams in it, grew at most within the block."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before, grown = resident(), [0]

    async def watch() -> None:
        while True:
            grown[0] = max(grown[0], resident() - before)
            await asyncio.sleep(0.002)

    watcher = asyncio.create_task(watch())
    try:
        yield grown
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)


async def test_a_flood_of_replies_is_not_kept(tmp_path: Path) -> None:
    """Endless lines, and endlessly many of them, at every stage at once; measured in a process of its own."""
    kinds, ground = [k for k in KINDS if k.name.startswith("endless")], GROUNDS[-1]

    def peak() -> int:
        return int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{relay.popen.pid}/status").read_text())[0])

    async with cells_of(kinds, ground, tmp_path, FAST) as (file, cells):
        with process(file) as relay:
            await submit(relay.port, mails(cells, "first"))
            await until(lambda: all(len(c.up.done) == 1 for c in cells))
            before = peak()
            for cell in cells:
                await cell.fall_ill()
            await submit(relay.port, mails(cells, "second", "third"))
            floods = 2 * len(cells)  # each, and once more, as all are tried again
            await until(lambda: all(c.up.floods for c in cells) and sum(c.up.floods for c in cells) > floods, 240)
            assert peak() - before < 10_000  # kB
