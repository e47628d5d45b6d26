"""Opening: one owner, modes, what is refused and in which words, migrations, and backups that start held."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from pathlib import Path

import pytest
from conftest import Spools
from making import NOW, claim, keys, message, put, rows, settled, states

from relay.recipient import State, Verb
from relay.spool import SpoolBusy, SpoolCorrupt, SpoolError, SpoolNewer, opening
from relay.spool.sqlite import SqliteSpool


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_nobody_else_may_read(spools: Spools) -> None:
    before = os.umask(0)
    try:
        spool = await spools.open("deep/er")
        await put(spool)
    finally:
        os.umask(before)
    folder = spool.path.parent
    assert mode(folder) == mode(folder / "content") == 0o700
    assert {mode(p) for p in folder.iterdir() if p.is_file()} == {0o600}


async def test_an_empty_folder_is_closed_and_one_with_other_things_is_left_as_it_is(spools: Spools) -> None:
    for name, extra, expected in (("empty", "", 0o700), ("shared", "other.txt", 0o755)):
        folder = spools.path(name).parent
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
        if extra:
            (folder / extra).write_text("somebody's")
        spool = await spools.open(name)
        assert mode(folder) == expected
        assert mode(spool.path) == 0o600


async def test_a_folder_that_everybody_writes_to_is_refused(spools: Spools) -> None:
    folder = spools.path().parent
    folder.mkdir()
    folder.chmod(0o1777)
    with pytest.raises(SpoolError, match="folder of its own"):
        await spools.open()
    assert mode(folder) == 0o1777
    folder.chmod(0o700)


async def test_a_second_instance_refuses(spools: Spools) -> None:
    spool = await spools.open()
    await put(spool)
    with pytest.raises(SpoolBusy, match=f"pid {os.getpid()}"):
        await spools.open()
    await put(spool)
    await spools.close(spool)
    assert len(await rows(await spools.open())) == 2


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
async def test_what_is_no_database_is_refused_and_left_as_it_is(spools: Spools, content: bytes) -> None:
    path = spools.path()
    path.parent.mkdir(mode=0o700)
    path.write_bytes(content)
    for _ in range(2):  # the lock is given back
        with pytest.raises(SpoolCorrupt, match="no spool or is damaged"):
            await spools.open()
    assert path.read_bytes() == content


async def test_a_foreign_database_is_refused_and_left_as_it_is(spools: Spools) -> None:
    path = spools.path()
    path.parent.mkdir(mode=0o700)
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE theirs (x)")
    foreign.close()
    content = path.read_bytes()
    with pytest.raises(SpoolCorrupt, match="not a relay's spool"):
        await spools.open()
    assert path.read_bytes() == content


async def test_paths_that_cannot_be_are_told(spools: Spools) -> None:
    spools.path().mkdir(parents=True)
    with pytest.raises(SpoolError, match="directory"):
        await spools.open()
    (spools.folder / "file").write_text("")
    with pytest.raises(SpoolError, match=r"set spool\.path"):
        await spools.open("file")
    (spools.folder / "odd").mkdir(mode=0o700)
    (spools.folder / "odd" / "content").write_text("")
    with pytest.raises(SpoolError):
        await spools.open("odd")
    (spools.folder / "odd" / "content").unlink()
    await spools.open("odd")  # nothing was left locked


async def test_a_newer_schema_is_refused_by_name(spools: Spools) -> None:
    await _at_version(spools, 99)
    with pytest.raises(SpoolNewer, match="schema 99"):
        await spools.open()


async def _at_version(spools: Spools, version: int) -> None:
    await spools.close(await spools.open())
    connection = sqlite3.connect(spools.path(), isolation_level=None)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()


async def test_a_migration_takes_a_copy_first_and_keeps_what_was_there(
    spools: Spools, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = await spools.open()
    number = await put(spool)
    latest = opening.migrations()[-1][0]
    await spools.close(spool)

    step = (latest + 1, "ALTER TABLE message ADD COLUMN extra TEXT NOT NULL DEFAULT '';\nCREATE TABLE added (x);\n")
    steps = [*opening.migrations(), step]
    monkeypatch.setattr(opening, "migrations", lambda: steps)
    spool = await spools.open()
    assert spool.opened.migrated_from == latest
    found = await spool.message(number)
    assert found is not None
    assert found["extra"] == ""
    copy = spool.path.with_name(f"spool.db.schema-{latest}")
    assert mode(copy) == 0o600
    old = sqlite3.connect(copy)
    assert old.execute("SELECT id FROM message").fetchall() == [(number,)]
    assert old.execute("PRAGMA user_version").fetchone() == (latest,)
    old.close()
    await spools.close(spool)

    monkeypatch.undo()
    with pytest.raises(SpoolNewer, match="newer relay"):
        await spools.open()
    copy.rename(spool.path)  # the way back that the copy is for
    assert len(await rows(await spools.open())) == 1


async def test_a_migration_that_fails_changes_nothing(spools: Spools, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = await spools.open()
    number = await put(spool)
    latest = opening.migrations()[-1][0]
    await spools.close(spool)
    step = (latest + 1, "CREATE TABLE added (x);\nCREATE TABLE message (x);\n")
    steps = [*opening.migrations(), step]
    monkeypatch.setattr(opening, "migrations", lambda: steps)
    with pytest.raises(SpoolError):
        await spools.open()
    monkeypatch.undo()
    spool = await spools.open()
    assert [r["message"] for r in await rows(spool)] == [number]
    assert await spool.check() == []


async def test_a_backup_while_mail_is_written_starts_with_everything_held(spools: Spools) -> None:
    spool = await spools.open()
    big = spool.stage(number := spool.next_id())
    await big.write(b"x" * 300_000)
    await big.finish()
    made = message(spool)
    made.id, made.body, made.body_size = number, big.path, big.size
    await spool.accept(made)
    await put(spool)
    await spool.record(settled((await claim(spool, limit=1))[:1], State.DEFERRED, due=NOW + 60))
    stop = False

    async def write() -> int:
        count = 0
        while not stop:
            await put(spool)
            count += 1
        return count

    writing = asyncio.create_task(write())
    folder = spools.folder / "backup"
    told = await spool.backup(folder)
    stop = True
    assert await writing > 0
    assert told["body_files"] == 1
    assert mode(folder) == mode(folder / "content") == 0o700
    assert mode(folder / "spool.db") == 0o600
    with pytest.raises(SpoolError, match="exists already"):
        await spool.backup(folder)
    ahead = spool.next_id()

    restored = await spools.open("backup", now=NOW + 100)
    found = await rows(restored)
    assert len(found) >= 2
    assert {r["state"] for r in found} == {"held"}
    assert all("restored from a backup" in r["why"] for r in found)
    assert restored.opened.restored == len(found) == told["waiting_recipients"]
    assert restored.next_id() > ahead  # it does not know of what was accepted after it was taken
    assert await restored.check() == []
    assert await restored.sweep() == []
    assert await claim(restored) == []
    assert await restored.change(keys(found), Verb.RELEASE, NOW + 100, "looked at") == len(found)
    assert len(await claim(restored, now=NOW + 100)) == len(found)
    assert "held" not in await states(spool)
    await spools.close(restored)
    assert (await spools.open("backup", now=NOW + 200)).opened.restored == 0


async def test_deliveries_read_while_a_backup_and_a_check_run(spools: Spools) -> None:
    """They use a connection of their own: a long one must not stop every delivery of a body that is not at hand."""
    spool = await spools.open()
    entered, leave = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(connection: sqlite3.Connection) -> None:
        loop.call_soon_threadsafe(entered.set)
        asyncio.run_coroutine_threadsafe(leave.wait(), loop).result(60)

    aside = asyncio.create_task(spool._aside(slow))
    await entered.wait()
    number = await put(spool)
    assert (await spool.message(number)) is not None
    leave.set()
    await aside


async def test_a_probe_is_a_transaction_and_the_pulse_of_the_writing_thread(spools: Spools) -> None:
    spool = await spools.open()
    before = spool.alive_at
    await spool.probe(NOW)
    assert spool.alive_at > before


async def test_an_open_that_is_refused_leaves_no_thread_and_no_file_open(spools: Spools) -> None:
    await _at_version(spools, 99)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(SpoolNewer):
            await SqliteSpool.open(spools.path(), NOW)
    assert len(os.listdir("/proc/self/fd")) <= before  # something else of this process may close meanwhile
