"""Lanes that no recipient is of any more are forgotten; whatever is written meanwhile keeps its own."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

from conftest import Spools
from making import NOW, assert_counts, claim, lane, put, rows, settled

from relay.recipient import State, Verb
from relay.spool import Ask
from relay.spool.sqlite import SqliteSpool


async def done(spool: SqliteSpool, count: int, name: str = "x") -> None:
    """Lanes x0, x1, … with a message each, delivered and purged."""
    for i in range(count):
        await put(spool, facts=lane(f"{name}{i}"))
    await spool.record(settled(await claim(spool, limit=count), State.DELIVERED, now=NOW))
    await spool.purge(NOW + 1)


def no_orphans(spool: SqliteSpool) -> None:
    """Each row's lane is there, and the dictionary says nothing else than the table. In one moment."""
    believed = dict(spool.lanes)
    with contextlib.closing(sqlite3.connect(f"file:{spool.path}?mode=ro", uri=True)) as connection:
        known = dict(connection.execute("SELECT facts, id FROM lane").fetchall())
        lost = connection.execute("SELECT * FROM recipient WHERE lane NOT IN (SELECT id FROM lane)").fetchall()
    assert lost == []
    assert believed.items() <= known.items()


async def test_only_those_without_recipients(spools: Spools) -> None:
    spool = await spools.open()
    await done(spool, 30)
    waits = await put(spool, facts=lane("waits"))
    held = await put(spool, facts=lane("held"), state=State.HELD)
    kept = await put(spool, facts=lane("kept"))
    claims, _ = await spool.claim([Ask(spool.lanes[lane("kept")], 1, NOW)])
    await spool.record(settled(claims, State.DELIVERED, now=NOW + 100))
    before = dict(spool.lanes)
    gone = await spool.forget_lanes()
    assert sorted(gone) == sorted(number for facts, number in before.items() if facts.find('"x') > 0)
    assert set(spool.lanes) == {lane("waits"), lane("held"), lane("kept")}
    assert {row["message"] for row in await rows(spool)} == {waits, held, kept}
    assert await spool.forget_lanes() == []
    no_orphans(spool)
    await assert_counts(spool)


async def test_no_number_is_given_again(spools: Spools) -> None:
    """Who remembers the old lane would send the new one's mail its way."""
    spool = await spools.open()
    await done(spool, 10)
    given = set(spool.lanes.values())
    await spool.forget_lanes()
    assert set(spool.lanes.values()) == {max(given)}  # and is forgotten once there is a higher one
    await spools.close(spool)
    spool = await spools.open()
    await put(spool, facts=lane("new"))
    assert spool.lanes[lane("new")] not in given
    no_orphans(spool)


async def test_mail_for_a_forgotten_lane(spools: Spools) -> None:
    spool = await spools.open()
    await done(spool, 10)
    await put(spool, facts=lane("last"))
    await spool.forget_lanes()
    number = await put(spool, facts=lane("x3"))
    claims, _ = await spool.claim([Ask(spool.lanes[lane("x3")], 1, NOW)])
    assert [c.message for c in claims] == [number]
    no_orphans(spool)


async def test_while_mail_comes_in_and_moves(spools: Spools) -> None:
    """Acceptances, reroutes and lanes anew at every moment of it: no row is left in a lane that is gone."""
    spool = await spools.open()
    await done(spool, 40)
    mover = await put(spool, facts=lane("mover"), due=NOW + 1000)
    holder = await put(spool, facts=lane("holder"), state=State.HELD)
    stop = False
    puts = 0

    async def comes(part: int) -> None:
        nonlocal puts
        i = 0
        while not stop:
            await put(spool, f"r{part}.{i}@example.net", facts=lane(f"x{(7 * i + part) % 40}"))
            i, puts = i + 1, puts + 1

    async def moves() -> None:
        at = spool.lanes[lane("mover")]
        i = 0
        while not stop:
            to = lane(f"x{i % 40}")
            await spool.relane([(mover, 0, at, to)])
            at = next(row["lane"] for row in await rows(spool) if row["message"] == mover)
            held = next(row["lane"] for row in await rows(spool) if row["message"] == holder)
            await spool.change([(holder, 0)], Verb.RELEASE, NOW + 1000, "x", {held: lane(f"x{(i + 5) % 40}")})
            await spool.change([(holder, 0)], Verb.HOLD, NOW, "x")
            i += 1

    tasks = [asyncio.ensure_future(work) for work in (comes(0), comes(1), comes(2), moves())]
    try:
        for _ in range(10):
            await spool.forget_lanes()
            claims = await claim(spool, limit=200)
            await spool.record(settled(claims, State.DELIVERED, now=NOW))
            await spool.purge(NOW + 1)
            no_orphans(spool)
    finally:
        stop = True
        await asyncio.gather(*tasks)
    no_orphans(spool)
    await assert_counts(spool)
    assert puts > 40
    heads = {head.lane for head in await spool.heads()}
    assert {row["lane"] for row in await rows(spool)} <= heads


async def test_in_slices(spools: Spools) -> None:
    spool = await spools.open()
    await put(spool, facts=lane("first"))
    await spools.close(spool)
    with contextlib.closing(sqlite3.connect(spool.path)) as connection, connection:
        connection.executemany("INSERT INTO lane (facts) VALUES (?)", [(lane(f"m{i}"),) for i in range(1200)])
    spool = await spools.open()
    await put(spool, facts=lane("last"))
    assert len(await spool.forget_lanes()) == 1200
    assert set(spool.lanes) == {lane("first"), lane("last")}
