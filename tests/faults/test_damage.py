"""Bytes of the spool that changed: it starts or refuses in one line, changes nothing, and what is lost is told.

Short as part of the tests; `make storm` flips more: STORM_FLIPS, STORM_SEED.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Spools
from making import NOW, claim, lane, message, put, rows, settled

from relay.cli.show import plural
from relay.envelope import queue_id
from relay.recipient import State, Verb
from relay.spool import Filter, SpoolBusy, SpoolCorrupt, SpoolError
from relay.spool.access import Audit, AuditFilter
from relay.spool.salvage import salvage
from relay.spool.sqlite import SqliteSpool

BODY = b"x" * 70 + b"\r\n"


async def filled(spools: Spools, count: int = 300) -> list[int]:
    """A spool that has seen life: done and waiting, small and large, and some in files; the numbers of those that wait."""
    spool = await spools.open()
    for i in range(count):
        await put(spool, f"u{i}@example.net", body=BODY * (i % 60), facts=lane(f"c{i % 3}"), class_=f"c{i % 3}")
    claims = await claim(spool, limit=count)
    await spool.record(settled(claims[: count // 3], State.DELIVERED))
    await spool.record(settled(claims[count // 3 :], State.DEFERRED, due=NOW + 60))
    for _ in range(3):
        file = spool.stage(number := spool.next_id())
        await file.write(BODY * 5000)
        await file.finish()
        made = message(spool, "a@example.net", "b@example.net")
        made.id, made.body, made.body_size = number, file.path, file.size
        await spool.accept(made)
    waiting = sorted({r["message"] for r in await rows(spool) if r["state"] != "delivered"})
    await spools.close(spool)
    return waiting


def digest(folder: Path) -> dict[str, bytes]:
    """All that is kept in it; who reads may make an empty log and shared memory beside the file."""
    files = {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {n: data for n, data in files.items() if data and n not in ("spool.lock", "spool.db-shm")}


def flip(path: Path, dice: random.Random) -> None:
    """1 to 64 bytes, apart or in a row, or a whole page."""
    data = bytearray(path.read_bytes())
    match dice.randrange(3):
        case 0:
            places = [dice.randrange(len(data)) for _ in range(dice.randrange(1, 65))]
        case 1:
            start = dice.randrange(len(data) - 64)
            places = list(range(start, start + dice.randrange(1, 65)))
        case _:
            start = dice.randrange(len(data) // 4096) * 4096
            places = list(range(start, start + 4096))
    for place in places:
        data[place] ^= dice.randrange(1, 256)
    path.write_bytes(data)


async def there(folder: Path) -> set[int]:
    """The messages whose recipients and body can be read, of a spool that starts."""
    spool = await SqliteSpool.open(folder / "spool.db", NOW + 1)
    try:
        spool.reserve = 0
        found = [r async for r in spool.find(Filter(states=(State.QUEUED, State.DEFERRED, State.HELD)))]
        for number in {r["message"] for r in found}:
            row = await spool.message(number)
            assert row is not None
            await spool.read(number, row["place"])
        spool.check_room()
        if problems := ([spool.refusal] if spool.refusal else await spool.check()):
            raise SpoolError(problems[0])
        return {r["message"] for r in found}
    finally:
        await spool.close()


@pytest.mark.storm
async def test_flipped_bytes(spools: Spools, tmp_path: Path) -> None:
    flips = int(os.environ.get("STORM_FLIPS", "30"))
    seed = int(os.environ.get("STORM_SEED") or random.SystemRandom().randrange(1 << 32))
    dice = random.Random(seed)
    waiting = set(await filled(spools))
    whole = spools.path().parent
    refused = started = 0
    told_lost = 0
    for i in range(flips):
        damaged = tmp_path / f"damaged-{i}"
        shutil.copytree(whole, damaged)
        flip(damaged / "spool.db", dice)
        why = f"seed {seed}, flip {i}"
        before = digest(damaged)
        try:
            found = await there(damaged)
        except SpoolError as error:
            found, said = None, str(error)
            assert said.count("\n") == 0, why
            if "left as it is" in said:
                assert digest(damaged) == before, why
                with pytest.raises(SpoolError):
                    await SqliteSpool.open(damaged / "spool.db", NOW + 1)
                assert digest(damaged) == before, why
        if found is not None and found >= waiting:
            started += 1
        else:
            refused += 1
            shutil.rmtree(damaged)
            shutil.copytree(whole, damaged)
            told_lost += await _salvaged(damaged, before, tmp_path / f"saved-{i}", waiting, why)
        shutil.rmtree(damaged)
    if os.environ.get("STORM_SHOW"):
        print(
            f"\n  seed {seed}: {plural(flips, 'damage')}, {started} started whole, {refused} refused, {told_lost} messages told lost"
        )
    assert refused >= flips // 5


async def _salvaged(damaged: Path, before: dict[str, bytes], target: Path, waiting: set[int], why: str) -> int:
    """What waited is in the new spool or told as lost; how many were told."""
    (damaged / "spool.db").write_bytes(before["spool.db"])
    try:
        done = salvage(damaged, target, lambda *_: None)
    except SpoolCorrupt as error:
        said = str(error)
        assert "restore a backup" in said and not target.exists(), why
        return 0
    finally:
        assert digest(damaged)["spool.db"] == before["spool.db"], why
    found = await there(target)
    lost = {r["queue_id"] for r in done.lost}
    silent = {queue_id(n) for n in waiting - found} - lost
    assert not silent, f"{why}: {len(silent)} neither there nor told: {sorted(silent)[:5]}"
    shutil.rmtree(target)
    return len(lost)


async def test_one_bad_page_loses_its_own_rows_and_no_others(spools: Spools, tmp_path: Path) -> None:
    waiting = set(await filled(spools))
    path = spools.path()
    db = sqlite3.connect(path)
    # A page that holds rows of `message` and nothing else.
    pages = db.execute(
        "SELECT pageno FROM dbstat WHERE name = 'message' AND pagetype = 'leaf' ORDER BY pageno"
    ).fetchall()
    db.close()
    data = bytearray(path.read_bytes())
    start = (pages[len(pages) // 2][0] - 1) * 4096
    data[start : start + 4096] = os.urandom(4096)
    path.write_bytes(data)
    before = digest(path.parent)
    with pytest.raises(SpoolCorrupt, match="relay spool salvage"):
        await spools.open()
    assert digest(path.parent) == before
    calls: list[tuple[int, int]] = []
    done = salvage(path.parent, tmp_path / "saved", lambda *at: calls.append(at))
    assert calls[-1][0] == calls[-1][1] > 0
    assert 0 < len(done.lost) < 60
    assert all(r["lost"] == "its row, with sender and header" and r["recipients"] for r in done.lost)
    assert digest(path.parent) == before
    spool = await SqliteSpool.open(tmp_path / "saved" / "spool.db", NOW + 1)
    found = await rows(spool)
    held = {r["message"] for r in found if r["state"] == "held"}
    assert held | {n for n in waiting if queue_id(n) in {r["queue_id"] for r in done.lost}} == waiting
    assert spool.opened.restored == done.waiting
    assert await spool.check() == []
    assert (
        await spool.change([(r["message"], r["n"]) for r in found], Verb.RELEASE, NOW + 2, "looked at") == done.waiting
    )
    assert len(await claim(spool, limit=1000, now=NOW + 100)) == len(held)
    assert spool.next_id() > max(waiting)
    await spool.close()


async def test_a_column_whose_name_is_spoilt_ends_nothing(spools: Spools, tmp_path: Path) -> None:
    """One letter in the list of the tables; what is lost with it is told, and all else is found."""
    waiting = set(await filled(spools, 30))
    whole = spools.path().parent
    with sqlite3.connect(whole / "spool.db") as db:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = [(t, row[1]) for t in tables for row in db.execute(f"PRAGMA table_info({t})")]
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole_ones = 0
    for table, column in columns:
        damaged = tmp_path / f"{table}-{column}"
        shutil.copytree(whole, damaged)
        with sqlite3.connect(damaged / "spool.db") as db:
            db.execute("PRAGMA writable_schema = ON")
            (text,) = db.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()
            spoilt = re.sub(rf"\b{column}\b", "z" + column[1:] if column[0] != "z" else "y" + column[1:], text)
            assert spoilt != text
            db.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (spoilt, table))
        before = digest(damaged)
        told = await _salvaged(damaged, before, tmp_path / "saved", waiting, f"{table}.{column}")
        whole_ones += not told
        shutil.rmtree(damaged)
    assert whole_ones > len(columns) // 2


async def test_a_whole_spool_is_copied_whole(spools: Spools, tmp_path: Path) -> None:
    waiting = await filled(spools)
    done = salvage(spools.path().parent, tmp_path / "saved", lambda *_: None)
    assert (done.lost, done.events_lost) == ([], 0)
    spool = await spools.open()
    original = [r async for r in spool.find(Filter())]
    saved = await SqliteSpool.open(tmp_path / "saved" / "spool.db", NOW)
    for row, other in zip(original, [r async for r in saved.find(Filter())], strict=True):
        assert {k: row[k] for k in ("message", "n", "recipient", "class", "attempts", "expires_at")} == {
            k: other[k] for k in ("message", "n", "recipient", "class", "attempts", "expires_at")
        }
    for number in waiting:
        a, b = await spool.message(number), await saved.message(number)
        assert a is not None and b is not None
        assert (a["head"], a["sender"], len(a["events"])) == (
            b["head"],
            b["sender"],
            len(b["events"]) - len(b["recipients"]),
        )
        one, two = await spool.read(number, a["place"]), await saved.read(number, b["place"])
        assert (one if isinstance(one, bytes) else one.read_bytes()) == (
            two if isinstance(two, bytes) else two.read_bytes()
        )
    await saved.close()


async def test_an_audit_that_cannot_be_read_whole_hides_no_other(spools: Spools, tmp_path: Path) -> None:
    spool = await spools.open()
    for number in range(3):
        await spool.begin_audit(Audit(NOW, "uid 0", "", f"r{number}", "POST /v1/suspend", {"number": number}))
    await spools.close(spool)
    with sqlite3.connect(spools.path()) as db:
        db.execute("UPDATE audit SET asked = substr(asked, 3), result = '' WHERE request = 'r1'")
    salvage(spools.path().parent, tmp_path / "saved", lambda *_: None)
    saved = await SqliteSpool.open(tmp_path / "saved" / "spool.db", NOW)
    found = await saved.audits(AuditFilter())
    assert [(one.request, one.asked) for one in found] == [("r2", {"number": 2}), ("r1", {}), ("r0", {"number": 0})]
    await saved.close()


async def test_salvage_refuses_a_spool_in_use_a_target_that_exists_and_what_is_none(
    spools: Spools, tmp_path: Path
) -> None:
    spool = await spools.open()
    with pytest.raises(SpoolBusy, match="stop it first"):
        salvage(spool.path.parent, tmp_path / "saved", lambda *_: None)
    assert not (tmp_path / "saved").exists()
    await spools.close(spool)
    (tmp_path / "there").mkdir()
    with pytest.raises(SpoolError, match="exists already"):
        salvage(spool.path.parent, tmp_path / "there", lambda *_: None)
    with pytest.raises(SpoolError, match=r"no spool\.db"):
        salvage(tmp_path / "there", tmp_path / "saved", lambda *_: None)


async def test_the_verb_tells_what_is_lost(spools: Spools, tmp_path: Path) -> None:
    await filled(spools, 12)
    folder = spools.path().parent
    lost = next((folder / "content").iterdir())
    lost.unlink()

    def relay(*arguments: str) -> Any:
        return subprocess.run(
            [sys.executable, "-m", "relay", "spool", "salvage", *arguments], capture_output=True, text=True, check=False
        )

    done = await asyncio.to_thread(relay, str(folder), str(tmp_path / "saved"), "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["messages"], done.stderr) == (65, 14, "")
    assert found["lost"] == [
        {
            "queue_id": lost.name,
            "lost": "its body (No such file or directory)",
            "recipients": "a@example.net b@example.net",
        }
    ]
    done = await asyncio.to_thread(relay, str(folder), str(tmp_path / "again"))
    assert f"{lost.name}  lost: its body" in done.stderr
    assert "14 messages, 12 recipients waiting, 1 lost" in done.stdout


async def test_a_page_that_goes_bad_while_it_runs_ends_the_acceptance_of_mail(spools: Spools) -> None:
    waiting = await filled(spools)
    spool = await spools.open()
    db = sqlite3.connect(f"file:{spool.path}?mode=ro", uri=True)
    (page,) = db.execute("SELECT min(pageno) FROM dbstat WHERE name = 'content' AND pagetype = 'leaf'").fetchone()
    db.close()
    with spool.path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(os.urandom(4096))
    failed = 0
    for number in waiting:
        try:
            await spool.read(number, 0)
        except SpoolCorrupt as error:
            failed += 1
            said = str(error)
            assert "stop the relay, keep a copy of its folder" in said
        except SpoolError:
            continue  # its body lies in a file
    assert failed
    await spool.probe(NOW)  # other pages can be written still
    spool.check_room()
    assert "the spool is damaged" in spool.refusal
    with pytest.raises(SpoolError, match="damaged"):
        await put(spool)
