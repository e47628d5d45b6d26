"""A batch of any length: what is written for a hundred is what is written for each, and bodies go with what is done."""

from __future__ import annotations

import pytest
from conftest import Spools
from making import NOW, assert_counts, claim, message, put, rows, settled

from relay.recipient import State
from relay.spool import Place, Settlement
from relay.spool.sqlite import SqliteSpool
from relay.spool.writer import MOST

SIZES = (1, 2, MOST - 1, MOST, MOST + 1, 2 * MOST, 2 * MOST + 1, 100)
KEPT = {  # of keep_bodies: whose body stays
    "all": {"delivered", "failed", "captured", "deferred", "half"},
    "failed": {"failed", "captured", "deferred", "half"},
    "none": {"captured", "deferred", "half"},
}


async def put_file(spool: SqliteSpool, *to: str) -> int:
    made = message(spool, *to)
    staged = spool.stage(made.id)
    await staged.write(b"x" * 100)
    await staged.finish()
    made.body, made.body_size = staged.path, 100
    return (await spool.accept(made))[0]


@pytest.mark.parametrize("size", SIZES)
async def test_a_settlement_of_so_many_rows(spools: Spools, size: int) -> None:
    """Recipients of one message and of many, each with values of its own."""
    spool = await spools.open()
    await put(spool, *(f"r{i}@example.net" for i in range(size)))
    for _ in range(size):
        await put(spool)
    claims = await claim(spool, 1000)
    work = settled(claims, State.DEFERRED, due=NOW + 60)
    for i, change in enumerate(c for s in work for c in s.changes):
        change.due_at, change.attempts, change.egress = NOW + i, i, f"up{i}"
    await spool.record(work)
    found = {(row["message"], row["n"]): row for row in await rows(spool)}
    assert len(found) == 2 * size
    for change in (c for s in work for c in s.changes):
        row = found[change.message, change.n]
        assert (row["state"], row["due_at"], row["attempts"], row["egress"]) == (
            "deferred",
            change.due_at,
            change.attempts,
            change.egress,
        )
    await assert_counts(spool)


@pytest.mark.parametrize("keep", KEPT)
@pytest.mark.parametrize("size", [1, MOST + 1])
async def test_bodies_go_with_what_is_done(spools: Spools, keep: str, size: int) -> None:
    """In rows and in files, in one batch with what stays."""
    spool = await spools.open()
    spool.keep_bodies = keep
    fates: dict[int, str] = {}
    for i in range(size):
        for fate in ("delivered", "failed", "captured", "deferred", "half"):
            to = ("a@example.net", "b@example.net") if fate == "half" else ("a@example.net",)
            fates[await (put_file if i % 2 == 0 else put)(spool, *to)] = fate
    for i in range(size):
        fates[await (put_file if i % 2 else put)(spool)] = "delivered"
    files = set(spool.content.ids())
    work: list[Settlement] = []
    for done in await claim(spool, 10_000):
        fate = fates[done.message]
        state = {"failed": State.FAILED, "deferred": State.DEFERRED}.get(fate, State.DELIVERED)
        (made,) = settled([done], state, due=NOW + 60)
        if fate == "half":
            made.changes[1].state = State.DEFERRED
        if fate == "captured":
            made.changes[0].egress = "capture"
        work.append(made)
    await spool.record(work)
    stays = {number for number, fate in fates.items() if fate in KEPT[keep]}
    held = await spool._reader.call(lambda c: {row[0] for row in c.execute("SELECT id FROM content")})
    places = await spool._reader.call(lambda c: dict(c.execute("SELECT id, place FROM message").fetchall()))
    assert held == stays - files
    assert {n for n in files if places[n] == Place.FILE} == stays & files
    assert {n for n in fates if places[n] == Place.DROPPED} == files - stays
    spool.content._threads.shutdown()  # all that was to be removed is
    assert set(spool.content.ids()) == stays & files
    await assert_counts(spool)
