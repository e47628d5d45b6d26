"""The power cut is one: what was not synced is gone, what was is there. Else the tests that use it prove nothing."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from .powercut import Disk

WRITER = """
import sqlite3, sys, os
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.execute(f"PRAGMA synchronous = {sys.argv[2]}")
db.execute("PRAGMA wal_autocheckpoint = 20")
db.execute("CREATE TABLE t (x, y)")
for i in range(50):
    db.execute("INSERT INTO t VALUES (?, ?)", (i, "x" * 3000))
    os.write(1, b"%d\\n" % i)
os.write(1, b"done\\n")
os.read(0, 1)
"""


def killed_after_50_commits(disk: Disk, synchronous: str, env: dict[str, str]) -> None:
    """They were all answered; then kill -9."""
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, disk.folder / "a.db", synchronous],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | env,
    )  # fmt: skip
    with child:
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(51)]
        assert said[-2:] == [b"49\n", b"done\n"]
        child.send_signal(signal.SIGKILL)


def rows(disk: Disk) -> int:
    db = sqlite3.connect(disk.folder / "a.db")
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return int(db.execute("SELECT count(*) FROM t").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # not even the table is there
    finally:
        db.close()


@pytest.mark.parametrize("survive", [0.0, 0.1, 0.5, 1.0, None])
def test_what_was_synced_survives_whatever_becomes_of_the_rest(
    tmp_path: Path, shim: Path, survive: float | None
) -> None:
    disk = Disk(tmp_path / "disk", tmp_path / "shadow")
    killed_after_50_commits(disk, "FULL", disk.env(shim))
    disk.cut(random.Random(1), survive)
    assert rows(disk) == 50


def test_what_was_not_synced_is_gone(tmp_path: Path, shim: Path) -> None:
    disk = Disk(tmp_path / "disk", tmp_path / "shadow")
    killed_after_50_commits(disk, "OFF", disk.env(shim))
    disk.cut(random.Random(1), 0.0)
    assert rows(disk) == 0


def test_normal_loses_what_came_after_the_last_checkpoint(tmp_path: Path, shim: Path) -> None:
    disk = Disk(tmp_path / "disk", tmp_path / "shadow")
    killed_after_50_commits(disk, "NORMAL", disk.env(shim))
    disk.cut(random.Random(1), 0.0)
    assert 0 < rows(disk) < 50


def test_a_disk_that_lies_loses_all_of_it(tmp_path: Path, shim: Path) -> None:
    disk = Disk(tmp_path / "disk", tmp_path / "shadow")
    killed_after_50_commits(disk, "FULL", disk.env(shim, lie=True))
    disk.cut(random.Random(1), 0.0)
    assert rows(disk) == 0
