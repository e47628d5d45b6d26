"""With a crowd in the spool: what is asked of it costs by the answer, and work on all of it is cut small.

Counted in steps of SQLite's machine and in statements, not in seconds.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

import crowd
import pytest
from conftest import Spools
from crowd import Crowd
from making import DAY, NOW, assert_counts, claim, keys, put, rows

from relay.recipient import State, Verb
from relay.spool import End, Filter, Original, Report, opening, queries, slices
from relay.spool.slices import SIZES, TARGET, Slices
from relay.spool.sqlite import SqliteSpool
from relay.spool.writer import COMMITS

MANY = Crowd(recipients=20_000, lanes=1_000)
EVERY = 100  # steps that are counted as one


class Machine:
    """What SQLite did since `forget`, on every connection."""

    def __init__(self) -> None:
        self.ticks = 0
        self.statements: list[str] = []

    def tick(self) -> int:
        self.ticks += 1
        return 0

    @property
    def steps(self) -> int:
        return self.ticks * EVERY

    def forget(self) -> None:
        self.ticks = 0
        self.statements.clear()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made, connect = Machine(), sqlite3.connect

    def watched(*arguments: Any, **more: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **more)
        connection.set_progress_handler(made.tick, EVERY)
        connection.set_trace_callback(made.statements.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", watched)
    return made


async def crowded(spools: Spools, **more: Any) -> tuple[SqliteSpool, int]:
    """A spool with many in it, and the id of the first."""
    asked = dataclasses.replace(MANY, **more)
    first = crowd.make(spools.path(), NOW, asked)
    spool = await spools.open()
    spool.max_queued = 10 * asked.recipients
    return spool, first


async def test_the_crowd_is_what_the_relay_would_have_left(spools: Spools) -> None:
    spool, first = await crowded(spools, recipients=3_000, state=State.QUEUED, due_in=-10.0, spread=5.0)
    assert await spool.check() == []
    assert spool.counts[State.QUEUED] == 3_000 and len(await spool.heads()) == 1_000
    await assert_counts(spool)
    found = await spool.message(first)
    assert found is not None and [e["kind"] for e in found["events"]] == ["accepted"]
    assert sum(len(c.recipients) for c in await claim(spool)) == 3_000
    assert spool.next_id() > first + 3_000


async def test_what_expires_is_looked_for_once_there_is_some(spools: Spools, machine: Machine) -> None:
    spool, _ = await crowded(spools)
    assert await spool.expired(NOW) == []
    machine.forget()
    for i in range(100):
        assert await spool.expired(NOW + i) == []
    assert machine.statements == []
    soon = await put(spool, expires=NOW + 200)
    assert await spool.expired(NOW + 199) == []
    assert await spool.expired(NOW + 200) == [(soon, 0)]
    assert len(await spool.expired(NOW + 5 * DAY)) == 1000


async def test_all_that_expires_is_read_once(spools: Spools, machine: Machine) -> None:
    """Page by page; those of the pages before are not gone over again."""
    spool, _ = await crowded(spools)
    machine.forget()
    after: tuple[int, int] | None = None
    count = 0
    while keys := await spool.expired(NOW + 5 * DAY, after):
        after, count = keys[-1], count + len(keys)
    assert count == 20_000
    assert machine.steps < 30 * 20_000


async def test_what_is_to_be_told_is_looked_for_once_there_is_some(spools: Spools, machine: Machine) -> None:
    spool, _ = await crowded(spools)
    assert await spool.tell_delays(NOW - DAY, NOW) is None
    machine.forget()
    for i in range(100):
        assert await spool.tell_delays(NOW - DAY + i, NOW) is None
    assert machine.statements == []
    spool.reporter = Slow(0.0)
    old = await put(spool, at=NOW - 2 * DAY)
    assert await spool.tell_delays(NOW - DAY, NOW) is None
    found = await spool.message(old)
    assert found is not None and found["events"][-1]["kind"] == "not_reported"


async def test_the_oldest_is_not_looked_for_behind_all_that_is_held(spools: Spools, machine: Machine) -> None:
    spool, first = await crowded(spools, state=State.HELD)
    assert await spool.oldest() is None
    await put(spool, at=NOW)
    assert await spool.oldest() == NOW
    machine.forget()
    for _ in range(10):
        assert await spool.oldest() == NOW
    assert machine.steps < 5_000
    await spool.change([(first + 7, 0)], Verb.RELEASE, NOW, "released")
    oldest = await spool.oldest()
    assert oldest is not None and NOW - 3700 < oldest < NOW - 3500


async def test_a_lane_is_routed_anew_by_the_index(spools: Spools, machine: Machine) -> None:
    spool, _ = await crowded(spools)
    machine.forget()
    assert len(await spool.stale(500, 200)) == 20
    assert machine.steps < 2_000


async def test_those_that_are_held_are_found_in_one_walk(spools: Spools, machine: Machine) -> None:
    spool, _ = await crowded(spools, state=State.HELD)
    machine.forget()
    after: tuple[int, int] | None = None
    found = list[tuple[int, int]]()
    while page := await spool.stale_held(range(1, 101), after, 200):
        after = (page[-1]["message"], page[-1]["n"])
        found += [(row["message"], row["lane"]) for row in page]
    assert len(found) == 2_000 and found == sorted(found)
    assert machine.steps < 40 * 20_000


async def test_a_start_reads_no_row_for_files_that_are_not(spools: Spools, machine: Machine) -> None:
    spool, _ = await crowded(spools)
    machine.forget()
    assert await spool.sweep() == []
    assert machine.steps < 1_000


async def test_a_start_goes_over_the_rows_few_times(
    spools: Spools, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "CHECK_LIMIT", 0)
    spool, _ = await crowded(spools)
    await spools.close(spool)
    machine.forget()
    spool = await spools.open()
    await spool.recover({}, NOW, 0.5)
    assert len(await spool.heads()) == 1_000
    assert machine.steps < 60 * 20_000
    # None of it sorts the rows to group them: a million would lie in memory.
    assert not [s for s in machine.statements if "GROUP BY" in s]


async def test_stats_count_every_lane(spools: Spools, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts, and the parts are put together."""
    monkeypatch.setattr(queries, "_PART", 700)
    spool, first = await crowded(spools, recipients=5_000, lanes=10)
    await spool.change([(first + i, 0) for i in range(0, 100, 10)], Verb.HOLD, NOW, "held")
    found = {s["lane"]: (s["states"], s["oldest"] - NOW + 3600) for s in await spool.stats()}
    step = 1800 / 5_000
    wanted = {lane: ({"deferred": 500}, (lane - 1) * step) for lane in range(2, 11)}
    wanted[1] = {"deferred": 490, "held": 10}, 0.0
    assert found == {lane: (states, pytest.approx(age, abs=1e-3)) for lane, (states, age) in wanted.items()}


async def test_who_counts_what_waits_reads_its_index_alone(spools: Spools, machine: Machine) -> None:
    """A row each would be ten times as long, for who asks when one message leaves."""
    spool, first = await crowded(spools, recipients=20_000, lanes=10)
    machine.forget()
    place = (1, 2, NOW + 7200, first)
    _, due = await spool.before(place, range(2, 11), NOW + 7200)
    assert due == dict.fromkeys(range(2, 11), 2_000)
    assert machine.steps < 12 * 20_000
    plan = await spool._reader.call(  # type: ignore[attr-defined]
        lambda c: c.execute(f"EXPLAIN QUERY PLAN {queries._BY_LANE}", ("[1]", 0)).fetchall()
    )
    assert any("USING COVERING INDEX ready" in step[-1] for step in plan)


async def test_a_verb_runs_few_statements(spools: Spools, machine: Machine) -> None:
    """Each begs for the interpreter's lock, which a busy loop gives away after 5 ms."""
    spool, first = await crowded(spools)
    wanted = [(first + i, 0) for i in range(1000)]
    for verb in (Verb.HOLD, Verb.RELEASE, Verb.RETRY):
        machine.forget()
        assert await spool.change(wanted, verb, NOW, "by an operator") == 1000
        changed = [s for s in machine.statements if "UPDATE recipient" in s]
        assert len(changed) < 250, verb
    machine.forget()
    moves = [(m, n, (m - first) % 1000 + 1, crowd.facts_of(3)) for m, n in wanted]
    await spool.relane(moves)
    assert len([s for s in machine.statements if "UPDATE recipient" in s]) < 250
    assert {row["lane"] for row in await rows(spool, Filter(ids=tuple(m for m, _ in wanted)))} == {4}
    await assert_counts(spool)


async def test_no_clock_that_jumped_lies_in_memory(spools: Spools, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are moved, in parts, in one transaction."""
    monkeypatch.setattr(queries, "_PART", 300)
    spool, _ = await crowded(spools, recipients=2_000, alive_ago=2 * DAY)
    assert (spool.opened.gap, spool.opened.moved) == (2 * DAY, 2_000)
    found = await rows(spool)
    assert all(r["expires_at"] >= NOW + 6 * DAY for r in found) and len(found) == 2_000


# -- slices


class Slow:
    """A reporter that takes its time for each report; nobody is told."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.made = self.told = 0

    def make(self, original: Original, ends: Sequence[End], now: float) -> Report:
        time.sleep(self.seconds)
        self.made += 1
        return Report(original.id, ends[0].tell.news, "off", why="nobody wants to know")

    def tell(self, reports: Sequence[Report]) -> None:
        self.told += len(reports)


async def test_what_takes_long_is_written_in_more_transactions(spools: Spools) -> None:
    """Two milliseconds for each report: 200 of them in one transaction held up everybody for 0.4 s."""
    spool, _ = await crowded(spools, recipients=300, lanes=10)
    spool.reporter = reporter = Slow(0.002)
    before = COMMITS.values[()]
    assert await spool.change(keys(await rows(spool)), Verb.EXPIRE, NOW, "expired") == 300
    assert reporter.made == reporter.told == 300
    assert COMMITS.values[()] - before >= 40
    await assert_counts(spool)


async def test_delays_are_told_in_small_transactions(spools: Spools) -> None:
    spool, _ = await crowded(spools, recipients=300, lanes=10)
    spool.reporter = reporter = Slow(0.002)
    before = COMMITS.values[()]
    after = await spool.tell_delays(NOW, NOW)
    assert reporter.made == 200 and after is not None
    assert COMMITS.values[()] - before >= 20


async def test_retention_counts_the_rows_of_a_message(spools: Spools) -> None:
    """Fifty messages of two hundred recipients each are not one slice."""
    spool = await spools.open()
    for _ in range(50):
        await put(spool, *(f"r{i}@example.net" for i in range(200)), state=State.DELIVERED)
    before = COMMITS.values[()]
    assert await spool.purge(NOW + 1) == 50
    assert COMMITS.values[()] - before >= 20


def test_slices_follow_what_they_cost() -> None:
    made = Slices()
    for _ in range(20):
        made.took(0.0001)
    assert made.size == SIZES[-1]
    for _ in range(20):
        made.took(TARGET / 2)
    assert made.size == SIZES[-1]
    for _ in range(20):
        made.took(10 * TARGET)
    assert made.size == SIZES[0]


def test_slices_keep_a_message_together() -> None:
    made = Slices()
    several = [(m, n) for m in range(10) for n in range(50)] + [(10, n) for n in range(1000)]
    parts = list(made.cut(several))
    assert [row for part in parts for row in part] == several
    assert [len(part) for part in parts[:10]] == [50] * 10
    assert all(len(part) <= slices.TOGETHER for part in parts)
    assert [len(part) for part in made.cut([(i, 30) for i in range(100)], lambda row: row[1])] == [1] * 100
