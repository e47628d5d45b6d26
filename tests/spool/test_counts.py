"""What was spent of rates, and small documents: durable when it is said so, with mail or without, and found again at a start."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from conftest import Spools
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import DAY, NOW, assert_counts, message, put, rows

from relay.spool import SpoolError, SpoolFull, opening
from relay.spool.salvage import salvage
from relay.spool.sqlite import SqliteSpool
from relay.spool.writer import COMMITS

ODD = ("", "lane\x00with a zero", "ключ", "a'b\"c", "x" * 2000)


async def again(spools: Spools, spool: SqliteSpool, now: float = NOW) -> SqliteSpool:
    await spools.close(spool)
    return await spools.open(now=now)


async def test_what_is_spent_is_there_after_a_restart_in_order(spools: Spools) -> None:
    spool = await spools.open()
    assert await spool.spent() == {}
    await spool.spend([("b", NOW + 20, 2), ("a", NOW + 60, 7), ("b", NOW + 10.000000001, 1)])
    await spool.spend([(key, NOW + 1 / 3, 1) for key in ODD])
    await spool.spend([])
    spool = await again(spools, spool)
    expected = {"b": [(NOW + 10.000000001, 1), (NOW + 20, 2)], "a": [(NOW + 60, 7)]}
    assert await spool.spent() == expected | {key: [(NOW + 1 / 3, 1)] for key in ODD}


async def test_a_count_is_the_new_one_and_of_none_nothing_is_kept(spools: Spools) -> None:
    spool = await spools.open()
    await spool.spend([("a", NOW + 60, 1), ("a", NOW + 120, 5), ("b", NOW + 60, 3)])
    await spool.spend([("a", NOW + 60, 2), ("a", NOW + 60, 4), ("b", NOW + 60, 0), ("never", NOW + 60, 0)])
    assert await spool.spent() == {"a": [(NOW + 60, 4), (NOW + 120, 5)]}
    await spool.spend([("a", NOW + 120, 0), ("a", NOW + 120, 1)])  # the last word
    assert await spool.spent() == {"a": [(NOW + 60, 4), (NOW + 120, 1)]}
    await spool.spend([(f"k{i}", NOW + i, i % 3) for i in range(100)])
    found = await spool.spent()
    assert {key for key in found if key != "a"} == {f"k{i}" for i in range(100) if i % 3}


async def test_many_who_spend_at_once_share_a_transaction_and_its_statements(spools: Spools) -> None:
    spool = await spools.open()
    said: list[str] = []
    await spool._writer._connection.call(lambda c: c.set_trace_callback(said.append))
    before = COMMITS.values[()]
    await asyncio.gather(*(spool.spend([("up", NOW + 60, n), (f"to {n % 10}", NOW + 60, n)]) for n in range(1, 501)))
    assert COMMITS.values[()] - before == 1
    assert len(said) == 3  # BEGIN, one for all of them, COMMIT
    assert (await spool.spent())["up"] == [(NOW + 60, 500)]
    assert (await spool.spent())["to 9"] == [(NOW + 60, 499)]


async def test_they_share_it_with_whatever_else_is_written(spools: Spools) -> None:
    spool = await spools.open()
    await put(spool)  # its lane is known
    before = COMMITS.values[()]
    await asyncio.gather(
        *(work for n in range(50) for work in (spool.accept(message(spool)), spool.spend([("up", NOW + 60, n)]))),
        spool.remember({"doc": "{}"}),
        spool.probe(NOW),
    )
    assert COMMITS.values[()] - before == 1
    assert len(await rows(spool)) == 51
    assert await spool.spent() == {"up": [(NOW + 60, 49)]}
    await assert_counts(spool)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 1 << 30))
async def test_of_what_is_spent_with_mail_and_without_the_last_word_stays(
    spools: Spools, with_mail: list[bool], key: int
) -> None:
    """The order inside a transaction is that of the calls: an older count must never overtake a newer one."""
    spool = spools._open[-1] if spools._open else await spools.open()
    work = []
    for count, mail in enumerate(with_mail, 1):
        row = (str(key), NOW + 60, count)
        made = message(spool)
        made.spent = [row] if mail else ()
        work.append(spool.accept(made) if mail else spool.spend([row]))
    await asyncio.gather(*work)
    assert (await spool.spent())[str(key)] == [(NOW + 60, len(with_mail))]


async def test_what_is_spent_with_a_message_is_written_with_it(spools: Spools) -> None:
    spool = await spools.open()
    await put(spool)
    for n in range(3):  # with one lane that is known, and one that is not
        made = message(spool, *(f"r{i}@example.net" for i in range(n + 1)), class_="new" if n else "default")
        made.spent = [("user shop", NOW + 60, n + 1), ("tag", NOW + 60, n + 5)]
        before = COMMITS.values[()]
        assert (await spool.accept(made))[1]
        assert COMMITS.values[()] - before == 1
    spool = await again(spools, spool)
    assert await spool.spent() == {"tag": [(NOW + 60, 7)], "user shop": [(NOW + 60, 3)]}
    assert len(await rows(spool)) == 7


async def test_a_message_that_is_not_stored_spends_nothing(spools: Spools) -> None:
    spool = await spools.open()
    first = message(spool, key="order 1", user="shop")
    first.spent = [("user shop", NOW + 60, 1)]
    repeated = message(spool, key="order 1", user="shop")
    repeated.spent = [("user shop", NOW + 60, 2)]
    assert (await spool.accept(first))[1]
    assert await spool.accept(repeated) == (first.id, False)
    twice = message(spool)
    twice.id, twice.spent = first.id, [("user shop", NOW + 60, 3)]
    other = message(spool)
    other.spent = [("user other", NOW + 60, 1)]
    told = await asyncio.gather(spool.accept(twice), spool.accept(other), return_exceptions=True)
    assert isinstance(told[0], SpoolError) and told[1] == (other.id, True)
    spool.refusal = "no room"
    refused = message(spool)
    refused.spent = [("user shop", NOW + 60, 4)]
    with pytest.raises(SpoolFull):
        await spool.accept(refused)
    assert await spool.spent() == {"user shop": [(NOW + 60, 1)], "user other": [(NOW + 60, 1)]}
    await assert_counts(spool)


async def test_a_row_that_cannot_be_fails_its_caller_alone(spools: Spools) -> None:
    spool = await spools.open()
    told = await asyncio.gather(
        spool.spend([("good", NOW, 1)]), spool.spend([("bad", float("nan"), 1)]), put(spool), return_exceptions=True
    )
    assert told[0] is None and isinstance(told[1], SpoolError) and isinstance(told[2], int)
    assert await spool.spent() == {"good": [(NOW, 1)]}


async def test_what_has_ended_is_forgotten(spools: Spools) -> None:
    spool = await spools.open()
    await spool.spend([(f"k{i}", NOW + until, 1) for i in range(300) for until in (-DAY, -1, 0, 1, DAY)])
    await spool.forget_spent(NOW)
    assert await spool.spent() == {f"k{i}": [(NOW + 1, 1), (NOW + DAY, 1)] for i in range(300)}
    before = COMMITS.values[()]
    await spool.forget_spent(NOW)
    assert COMMITS.values[()] == before  # nothing is written where nothing has ended
    await spool.forget_spent(NOW + DAY)
    assert await spool.spent() == {}


async def test_documents(spools: Spools) -> None:
    spool = await spools.open()
    assert await spool.remembered() == {}
    await spool.remember(
        {"breaker up": '{"open": true}', "pace up": "14", "gone": "x"} | dict.fromkeys(ODD, "ü\n" * 1000)
    )
    await asyncio.gather(
        spool.remember({"pace up": "1"}), spool.remember({"pace up": "2", "gone": None}), spool.remember({"no": None})
    )
    await spool.remember({})
    spool = await again(spools, spool)
    expected = {"breaker up": '{"open": true}', "pace up": "2"} | dict.fromkeys(ODD, "ü\n" * 1000)
    assert await spool.remembered() == expected
    await spool.remember(dict.fromkeys(expected))
    assert await spool.remembered() == {}


async def test_a_clock_that_was_set_back_makes_nothing_bind_for_so_much_longer(spools: Spools) -> None:
    spool = await spools.open()
    await spool.spend([("a", NOW + n * DAY, n) for n in range(1, 6)])
    await spool.probe(NOW)
    spool = await again(spools, spool, now=NOW - 2 * DAY)  # by whole distances: a row moves to where its neighbour was
    assert await spool.spent() == {"a": [(NOW + (n - 2) * DAY, n) for n in range(1, 6)]}
    spool = await again(spools, spool, now=NOW)  # forward, or it did not run: nothing is forgotten later for it
    assert await spool.spent() == {"a": [(NOW + (n - 2) * DAY, n) for n in range(1, 6)]}


async def test_rows_that_fall_together_when_they_move_add_up(spools: Spools) -> None:
    spool = await spools.open()
    close = [2.0**-30, 2.0**-30 + 2.0**-80]
    await spool.spend([("a", until, 3) for until in close])
    await spool.probe(NOW)
    spool = await again(spools, spool, now=NOW - DAY)
    assert await spool.spent() == {"a": [(close[0] - DAY, 6)]}


async def _of_schema_3(spools: Spools, monkeypatch: pytest.MonkeyPatch) -> int:
    """A spool as the relay before this one left it, with a message in it."""
    steps = opening.migrations()[:3]
    with monkeypatch.context() as older:
        older.setattr(opening, "migrations", lambda: steps)
        older.setattr(opening.stream, "lift", lambda *_: None)  # it asks what a later schema has
        spool = await spools.open()
        number = await put(spool)
        await spools.close(spool)
    return number


async def test_a_spool_of_schema_3_learns_to_count(spools: Spools, monkeypatch: pytest.MonkeyPatch) -> None:
    number = await _of_schema_3(spools, monkeypatch)
    spool = await spools.open(now=NOW - DAY)  # the clock set back as well
    assert spool.opened.migrated_from == 3
    assert spool.path.with_name("spool.db.schema-3").exists()
    assert (await spool.spent(), await spool.remembered()) == ({}, {})
    made = message(spool)
    made.spent = [("a", NOW, 1)]
    await spool.accept(made)
    await spool.remember({"doc": "{}"})
    assert (await spool.spent(), await spool.remembered()) == ({"a": [(NOW, 1)]}, {"doc": "{}"})
    assert [r["message"] for r in await rows(spool)] == [number, made.id]
    assert await spool.check() == []


async def test_a_backup_has_them(spools: Spools) -> None:
    spool = await spools.open()
    await spool.spend([("a", NOW + 60, 1)])
    await spool.remember({"doc": "{}"})
    await spool.backup(spools.folder / "backup")
    restored = await spools.open("backup")
    assert (await restored.spent(), await restored.remembered()) == ({"a": [(NOW + 60, 1)]}, {"doc": "{}"})


async def _salvaged(spools: Spools, tmp_path: Path) -> tuple[SqliteSpool, set[str]]:
    done = salvage(spools.path().parent, tmp_path / "saved", lambda *_: None)
    return await spools.open("saved"), done.errors


async def test_salvage_keeps_them(spools: Spools, tmp_path: Path) -> None:
    spool = await spools.open()
    counted = {f"k{i}": [(NOW + 60, i)] for i in range(1, 2000)}
    await spool.spend([(key, *parts[0]) for key, parts in counted.items()])
    await spool.remember({"doc": "{}", "": "x" * 10_000})
    await spools.close(spool)
    saved, errors = await _salvaged(spools, tmp_path)
    assert (await saved.spent(), await saved.remembered()) == (counted, {"doc": "{}", "": "x" * 10_000})
    assert not errors


async def test_salvage_keeps_what_is_readable_on_both_sides_of_a_bad_page(spools: Spools, tmp_path: Path) -> None:
    spool = await spools.open()
    counted = {f"key {i:06} " + "x" * 50: [(NOW + 60, i)] for i in range(1, 2000)}
    await spool.spend([(key, *parts[0]) for key, parts in counted.items()])
    number = await put(spool)
    await spools.close(spool)
    data = bytearray(spools.path().read_bytes())
    place = data.index(b"key 001000 ") // 4096 * 4096
    data[place : place + 4096] = b"\xff" * 4096
    spools.path().write_bytes(data)
    saved, errors = await _salvaged(spools, tmp_path)
    found = await saved.spent()
    assert errors
    assert 1800 < len(found) < 1999
    assert found.items() <= counted.items()
    assert {min(counted), max(counted)} <= found.keys()
    assert [r["message"] for r in await rows(saved)] == [number]


async def test_salvage_passes_over_values_that_cannot_be(spools: Spools, tmp_path: Path) -> None:
    spool = await spools.open()
    await spool.spend([("a", NOW + 60, 1)])
    await spools.close(spool)
    damaged = sqlite3.connect(spools.path())
    damaged.execute("INSERT INTO spent VALUES (x'ff', 1.0, 1), ('b', 'soon', 1), ('c', 1.0, 'some')")
    damaged.execute("INSERT INTO kept VALUES ('a', x'ff'), ('b', '{}')")
    damaged.commit()
    damaged.close()
    saved, _ = await _salvaged(spools, tmp_path)
    assert (await saved.spent(), await saved.remembered()) == ({"a": [(NOW + 60, 1)]}, {"b": "{}"})


async def test_salvage_of_an_older_schema_misses_nothing(
    spools: Spools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = await _of_schema_3(spools, monkeypatch)
    saved, errors = await _salvaged(spools, tmp_path)
    assert [r["message"] for r in await rows(saved)] == [number]
    assert (await saved.spent(), await saved.remembered(), errors) == ({}, {}, set())
