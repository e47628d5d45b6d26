"""The power is cut under load: what was answered 250 is delivered or still there, and the spool is sound.

Short as part of the tests; `make storm` runs it long: STORM_CUTS, STORM_SEED.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import smtplib
import sqlite3
from pathlib import Path

import pytest
from service.storm import Storm
from service.support import ENV, Relay, config_text, free_port

from .powercut import Disk


def sound(disk: Disk, aside: Path) -> None:
    """Of a copy: to look at a WAL is to recover it."""
    shutil.copytree(disk.folder / "spool", aside)
    db = sqlite3.connect(aside / "spool.db")
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()
    shutil.rmtree(aside)


@pytest.mark.parametrize("lie", [False, True])
def test_the_cut_is_real(tmp_path: Path, shim: Path, lie: bool) -> None:
    """A disk that says it synced and did not loses all of it: so it is our syncs that keep mail, in the row and in the file."""
    disk = Disk(tmp_path / "disk", tmp_path / "shadow")
    file = tmp_path / "relay.yaml"
    file.write_text(config_text(tmp_path, free_port(), spool=disk.folder / "spool"))
    with Relay(file, env=ENV | disk.env(shim, lie=lie)) as relay:
        for size in (1, 5000):
            submit(relay.port, b"x" * 70 + b"\r\n", size)
        relay.kill()
        disk.cut(random.Random(1), 0.0)
        relay.start()
        waiting = json.loads(relay.cli("status", "--json"))["waiting"]
        assert waiting == (0 if lie else 2)
        if not lie:
            assert json.loads(relay.cli("spool", "check", "--json"))["ok"]


def submit(port: int, line: bytes, lines: int) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as smtp:
        smtp.sendmail("app@example.com", ["user@example.com"], b"Subject: hi\r\n\r\n" + line * lines)


@pytest.mark.storm
async def test_nothing_that_was_answered_is_lost(tmp_path: Path, shim: Path) -> None:
    cuts = int(os.environ.get("STORM_CUTS", "6"))
    seed = int(os.environ.get("STORM_SEED") or random.SystemRandom().randrange(1 << 32))
    dice = random.Random(seed)
    disk = Disk(tmp_path / "disk", tmp_path / "shadow")

    def dead() -> None:
        disk.cut(dice)
        sound(disk, tmp_path / "aside")

    storm = Storm(
        tmp_path, cuts, cuts * 60, seed, bool(os.environ.get("STORM_SHOW")),
        large=0.05, spool=disk.folder / "spool", env=disk.env(shim), dead=dead,
    )  # fmt: skip
    await storm.run()
    result = storm.result()
    told = f"seed {seed}\n{result.table()}"
    if storm.show:
        print(f"\n{told}")
    assert result.kills == cuts, told
    assert result.accepted >= cuts * 60, told
    assert (result.lost, result.damaged, result.unknown, result.refused) == (0, 0, 0, []), told
    assert result.unexplained == 0, told
    assert result.both >= cuts // 2, told
