"""fsync fails: what is answered 250 is on the disk all the same. What docs/adr/0006-fsync-errors.md says is shown here.

The shim drops what a failed sync should have written, as Linux does; and at the end the power is cut, so that nothing
survives in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import smtplib
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from service.storm import CLASSES, Storm
from service.support import ENV, Recorder, Relay, config_text, free_port, until

from .powercut import Disk

# Commands come in by standard input, so that the test says when the disk is sick and when someone reads.
COMMITTER = """
import sqlite3, sys
path = sys.argv[1]
db = sqlite3.connect(path, isolation_level=None)
for pragma in ("journal_mode = WAL", "synchronous = FULL", "wal_autocheckpoint = 0"):
    db.execute(f"PRAGMA {pragma}")
db.execute("CREATE TABLE IF NOT EXISTS t (x INTEGER PRIMARY KEY, y)")
reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
n = 0
for word in sys.stdin:
    try:
        if word == "commit\\n":
            n += 1
            db.execute("INSERT INTO t VALUES (?, ?)", (n, "x" * 3000))
        elif word == "checkpoint\\n":
            db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        elif word == "read\\n":
            reader.execute("BEGIN").execute("SELECT count(*) FROM t").fetchall()
        else:
            reader.execute("ROLLBACK")
        print("ok", n, flush=True)
    except sqlite3.Error as error:
        print("no", n, error.sqlite_errorname, flush=True)
"""


class Committer:
    """The child, and what it was told of each commit."""

    def __init__(self, disk: Disk, shim: Path, control: Path) -> None:
        self.control, self.committed = control, set[int]()
        env = os.environ | disk.env(shim) | {"FAULT_CONTROL": str(control)}
        command = [sys.executable, "-c", COMMITTER, str(disk.folder / "a.db")]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True)

    def say(self, word: str, times: int = 1) -> str:
        assert self.child.stdin is not None and self.child.stdout is not None
        answer = ""
        for _ in range(times):
            self.child.stdin.write(f"{word}\n")
            self.child.stdin.flush()
            answer = self.child.stdout.readline()
            if word == "commit" and answer.startswith("ok"):
                self.committed.add(int(answer.split()[1]))
        return answer

    def kill(self) -> None:
        self.child.send_signal(signal.SIGKILL)
        self.child.communicate()


def lost(disk: Disk, committed: set[int]) -> set[int] | str:
    db = sqlite3.connect(disk.folder / "a.db")
    try:
        if (found := db.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
            return str(found)
        return committed - {row[0] for row in db.execute("SELECT x FROM t")}
    except sqlite3.DatabaseError as error:
        return str(error)
    finally:
        db.close()


def test_a_commit_whose_sync_fails_harms_no_later_one(tmp_path: Path, shim: Path) -> None:
    disk, control = Disk(tmp_path / "disk", tmp_path / "shadow"), tmp_path / "control"
    child = Committer(disk, shim, control)
    for probability in (0, 0.3, 1, 0.3, 0):
        control.write_text(f"sync EIO {probability} -wal\n")
        child.say("commit", 100)
    child.kill()
    assert 200 < len(child.committed) < 450
    disk.cut(random.Random(1), 0.0)
    assert lost(disk, child.committed) == set()


@pytest.mark.parametrize("someone_reads", [False, True])
def test_a_checkpoint_whose_sync_fails_harms_if_one_before_it_was_partial(
    tmp_path: Path, shim: Path, someone_reads: bool
) -> None:
    """SQLite does not sync the file after a part of a checkpoint, and takes that part for done. The second case is why
    relay.spool.writer ends the process; if a version of SQLite makes it fail here, that can go."""
    disk, control = Disk(tmp_path / "disk", tmp_path / "shadow"), tmp_path / "control"
    child = Committer(disk, shim, control)
    child.say("commit", 20)
    if someone_reads:
        child.say("read")
    child.say("commit", 20)
    child.say("checkpoint")
    if someone_reads:
        child.say("release")
    child.say("commit", 20)
    control.write_text("sync EIO 1 a.db\n")
    assert "SQLITE_IOERR_FSYNC" in child.say("checkpoint")
    control.write_text("")
    assert child.say("checkpoint").startswith("ok")
    child.say("commit", 80)  # over the beginning of the WAL
    child.kill()
    assert len(child.committed) == 140
    disk.cut(random.Random(1), 0.0)
    assert bool(lost(disk, child.committed)) is someone_reads


class Sick(Storm):
    """Instead of kills: a disk that fails now and then, that fails always, and that is well again."""

    control: Path
    faults: Path  # a byte for each
    recovery = 0.0

    async def _kill_and_restart(self, relay: Relay) -> None:
        def refused() -> int:
            return sum(1 for m in self.mails.values() if m.refused)

        await self._until(lambda: self.accepted >= 150)
        self.control.write_text("sync EIO 0.05\n")
        await self._until(lambda: refused() >= 20 and self.accepted >= 300)
        self.control.write_text("sync EIO 1\n")
        # A sync that began before may end well, and who waits for that is answered 250, however long it takes.
        waiting = [m for m in self.mails.values() if m.dot_at and not m.accepted_at and not m.refused]
        await self._until(lambda: all(m.accepted_at or m.refused for m in waiting))
        before, mark = refused(), self.accepted
        # Those whom MAIL is refused, because one was a moment ago, cost no sync: else there would be few faults.
        await self._until(lambda: refused() >= before + 200 and self.faults.stat().st_size >= FAULTS)
        assert self.accepted == mark, "answered 250 while no sync succeeded"
        self.control.write_text("")
        healed = time.monotonic()
        await self._until(lambda: self.accepted > mark)
        self.recovery = time.monotonic() - healed
        await self._until(lambda: self.accepted >= mark + 150)
        self._go.clear()
        relay.signal(signal.SIGKILL)
        assert relay.process is not None
        await asyncio.to_thread(relay.process.wait, 30)
        await asyncio.to_thread(self.dead)
        await asyncio.to_thread(relay.start)
        self._go.set()


FAULTS = 5


async def test_no_250_that_is_not_on_the_disk(tmp_path: Path, shim: Path) -> None:
    disk, dice = Disk(tmp_path / "disk", tmp_path / "shadow"), random.Random(5)
    control, count = tmp_path / "control", tmp_path / "count"
    control.write_text("")
    env = disk.env(shim) | {"FAULT_CONTROL": str(control), "FAULT_COUNT": str(count)}
    storm = Sick(tmp_path, 0, 0, 7, large=0.05, spool=disk.folder / "spool", env=env, dead=lambda: disk.cut(dice, 0.0))
    storm.control, storm.faults = control, count
    await storm.run()
    result = storm.result()
    assert (result.lost, result.damaged, result.unknown) == (0, 0, 0), result.table()
    assert all(text.startswith("452 4.3.1") for text in result.refused), result.refused
    assert count.stat().st_size >= FAULTS  # each refuses all that wait for the same transaction
    assert storm.recovery < 30.0
    assert "Traceback" not in (tmp_path / "relay.log").read_text()


def test_it_ends_where_a_later_sync_would_lie(tmp_path: Path, shim: Path) -> None:
    """Pages were written back and not synced because someone reads, then the sync fails: only a new start is safe."""
    disk, control = Disk(tmp_path / "disk", tmp_path / "shadow"), tmp_path / "control"
    control.write_text("")
    file = tmp_path / "relay.yaml"
    env = ENV | disk.env(shim) | {"FAULT_CONTROL": str(control)}
    accepted = 0

    def send(port: int) -> None:
        nonlocal accepted
        with contextlib.suppress(smtplib.SMTPException, OSError), smtplib.SMTP("127.0.0.1", port, timeout=60) as smtp:
            smtp.sendmail("app@example.com", ["user@example.com"], b"Subject: x\r\n\r\n" + (b"y" * 70 + b"\r\n") * 2800)
            accepted += 1

    with Recorder() as upstream:
        file.write_text(config_text(tmp_path, free_port(), spool=disk.folder / "spool", extra=CLASSES))
        with Relay(file, env=env) as relay:
            reader = sqlite3.connect(f"file:{disk.folder}/spool/spool.db?mode=ro", uri=True, isolation_level=None)
            reader.execute("BEGIN").execute("SELECT count(*) FROM message").fetchall()
            for _ in range(60):
                send(relay.port)
            assert accepted == 60
            # While someone reads that file is not synced; right after it might be, by a checkpoint on its own way.
            control.write_text("sync EIO 1 spool.db\n")
            reader.execute("ROLLBACK")
            reader.close()
            until(lambda: send(relay.port) or relay.ended, 60, "it ends")
            assert relay.process is not None
            assert relay.process.returncode == 74, relay.log()
            assert "ended, so that the next start writes them again" in relay.log()
            disk.cut(random.Random(1), 0.0)
            control.write_text("")
            file.write_text(config_text(tmp_path, upstream.port, spool=disk.folder / "spool", extra=CLASSES))
            relay.start()
            upstream.wait(accepted, 60)
            assert relay.stop() == 0
