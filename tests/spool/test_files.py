"""Large bodies lie in files of their own: there before the row, gone with it, never left behind."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
from conftest import Spools, until
from making import NOW, claim, message, put, settled

from relay.envelope import queue_id
from relay.incoming import MAX_PARTS, Budget, Incoming
from relay.recipient import State
from relay.spool import NewMessage, Place
from relay.spool.sqlite import SqliteSpool


async def staged(spool: SqliteSpool, *to: str, size: int = 1_000_000, key: str = "") -> NewMessage:
    made = message(spool, *to, key=key)
    file = spool.stage(made.id)
    for start in range(0, size, 65536):
        await file.write(b"x" * min(65536, size - start))
    await file.finish()
    made.body, made.body_size = file.path, file.size
    return made


def files(spool: SqliteSpool) -> list[str]:
    return sorted(p.name for p in spool.content.folder.iterdir())


async def test_a_large_body_is_a_file_of_its_own(spools: Spools) -> None:
    spool = await spools.open()
    made = await staged(spool, "a@example.net", "b@example.net")
    await spool.accept(made)
    assert files(spool) == [queue_id(made.id)]
    (found,) = await claim(spool)
    body = await spool.read(made.id, found.place)
    assert isinstance(body, Path)
    assert body.read_bytes() == b"x" * 1_000_000
    assert stat.S_IMODE(body.stat().st_mode) == 0o600
    assert stat.S_IMODE(body.parent.stat().st_mode) == 0o700
    await spool.record(settled([found], State.DELIVERED))
    await until(lambda: files(spool) == [])
    row = await spool.message(made.id)
    assert row is not None
    assert row["place"] == Place.DROPPED
    assert await spool.check() == []


async def test_it_goes_with_its_message_when_that_is_forgotten(spools: Spools) -> None:
    spool = await spools.open()
    spool.keep_bodies = "all"
    made = await staged(spool)
    await spool.accept(made)
    await spool.record(settled(await claim(spool), State.DELIVERED))
    assert files(spool) == [queue_id(made.id)]
    assert await spool.purge(NOW + 1) == 1
    await until(lambda: files(spool) == [])


async def test_what_was_abandoned_leaves_nothing(spools: Spools) -> None:
    spool = await spools.open()
    file = spool.stage(spool.next_id())
    await file.write(b"half")
    assert len(files(spool)) == 1
    file.abandon()
    file.abandon()
    await until(lambda: files(spool) == [])
    never_written = spool.stage(spool.next_id())
    never_written.abandon()


async def test_abandoned_while_a_slice_is_being_written(spools: Spools) -> None:
    spool = await spools.open()
    for _ in range(50):
        file = spool.stage(spool.next_id())
        writing = [asyncio.ensure_future(file.write(b"x" * 100_000)) for _ in range(3)]
        await asyncio.sleep(0)
        file.abandon()
        await asyncio.gather(*writing)
    await until(lambda: files(spool) == [])


async def test_orphans_are_swept_at_the_next_start_and_nothing_else_is(spools: Spools) -> None:
    spool = await spools.open()
    made = await staged(spool)
    await spool.accept(made)
    orphan = await staged(spool)  # the relay died before its row was committed
    (spool.content.folder / "notes.txt").write_text("an operator's")
    await spools.close(spool)

    spool = await spools.open()
    assert await spool.sweep() == []
    await until(lambda: queue_id(orphan.id) not in files(spool))
    assert files(spool) == [queue_id(made.id), "notes.txt"]


async def test_a_missing_file_is_told(spools: Spools) -> None:
    spool = await spools.open()
    made = await staged(spool)
    await spool.accept(made)
    assert await spool.check() == []
    spool.content.path(made.id).unlink()
    (problem,) = await spool.check()
    assert queue_id(made.id) in problem
    assert "missing" in problem
    assert await spool.sweep() == [made.id]


async def test_a_repeated_key_leaves_the_first_body_alone(spools: Spools) -> None:
    spool = await spools.open()
    first = await staged(spool, key="k")
    await spool.accept(first)
    second = await staged(spool, key="k")
    assert await spool.accept(second) == (first.id, False)
    assert spool.content.path(first.id).exists()


async def test_a_copy_is_durable_or_not_there(spools: Spools, tmp_path: Path) -> None:
    spool = await spools.open()
    source = tmp_path / "source"
    source.write_bytes(b"y" * 2_500_000)
    number = spool.next_id()
    assert (await spool.content.copy(source, number)).read_bytes() == source.read_bytes()
    with pytest.raises(OSError):
        await spool.content.copy(tmp_path, spool.next_id())
    assert files(spool) == [queue_id(number)]


async def test_check_finds_a_message_that_waits_without_its_body(spools: Spools) -> None:
    spool = await spools.open()
    await put(spool)
    number = await put(spool)
    await spool._writer.submit(
        lambda c, jobs: [c.execute("DELETE FROM content WHERE id = ?", (n,)).rowcount for n in jobs], number, 0
    )
    assert await spool.check() == ["1 message without a body, still waiting"]


async def test_what_is_abandoned_after_the_end_goes_too(spools: Spools) -> None:
    """A session that is cut while the relay stops gives its file back when the threads are gone already."""
    spool = await spools.open()
    file = spool.stage(spool.next_id())
    await file.write(b"half")
    spool.content.close()
    file.abandon()
    assert files(spool) == []


async def test_a_message_that_dribbles_in_takes_no_more_memory_than_its_size(spools: Spools) -> None:
    """A byte in a piece of its own takes forty times its size, and the limit over all sessions counts bytes."""
    spool = await spools.open()
    wanted = b"Subject: x\r\n\r\n" + b"0123456789abcde\n" * 40_000
    incoming = Incoming(spool, budget := Budget())
    for start in range(0, len(wanted), 7):
        if incoming.feed(wanted[start : start + 7]):
            await incoming.spill()
        assert len(incoming._parts) <= MAX_PARTS
    head, body = await incoming.finish()
    assert not isinstance(body, bytes)
    assert head + body.path.read_bytes() == wanted
    assert body.size == len(wanted) - len(head)
    incoming.release()
    assert budget.used == 0
    await until(lambda: files(spool) == [])
