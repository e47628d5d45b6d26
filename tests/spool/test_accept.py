"""Accepting: durable when it returns, once for each key, one body for all recipients, and 452 when there is no room."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from conftest import Spools
from making import NOW, assert_counts, claim, lane, message, put, rows, settled

from relay.recipient import State
from relay.spool import Filter, Place, SpoolError, SpoolFull
from relay.spool.hot import ID_BLOCK


async def test_what_is_accepted_is_found_by_another_run(spools: Spools) -> None:
    spool = await spools.open()
    number = await put(spool, "a@example.net", "b@example.net", body=b"first\r\n", tag="order-1")
    await spools.close(spool)

    spool = await spools.open()
    found = await spool.message(number)
    assert found is not None
    assert (found["sender"], found["tag"], found["size"]) == ("app@example.com", "order-1", len(found["head"]) + 7)
    assert [(r["recipient"], r["state"]) for r in found["recipients"]] == [
        ("a@example.net", "queued"),
        ("b@example.net", "queued"),
    ]
    assert [e["kind"] for e in found["events"]] == ["accepted"]
    assert await spool.read(number, Place.TABLE) == b"first\r\n"
    await assert_counts(spool)


async def test_the_body_is_stored_once_for_all_recipients(spools: Spools) -> None:
    spool = await spools.open()
    body = b"x" * 100_000
    before = await _stored_bytes(spool)
    await put(spool, *(f"r{i}@example.net" for i in range(100)), body=body)
    assert await _stored_bytes(spool) - before < 2 * len(body)


async def _stored_bytes(spool: object) -> int:
    size: int = await spool._reader.call(  # type: ignore[attr-defined]
        lambda c: c.execute("SELECT coalesce(sum(length(bytes)), 0) FROM content").fetchone()[0]
    )
    return size


async def test_states_that_are_decided_at_intake_are_stored_with_their_events(spools: Spools) -> None:
    spool = await spools.open()
    for state in (State.HELD, State.DELIVERED, State.FAILED):
        number = await put(spool, state=state)
        found = await spool.message(number)
        assert found is not None
        assert found["recipients"][0]["why"] == "as asked"
        assert [(e["kind"], e.get("why")) for e in found["events"]] == [("accepted", None), (state.label, "as asked")]
    assert await claim(spool) == []
    await assert_counts(spool)


async def test_a_key_is_accepted_once_for_each_user(spools: Spools) -> None:
    spool = await spools.open()
    first = await put(spool, key="order-7")
    assert await spool.accept(message(spool, key="order-7")) == (first, False)
    other = await put(spool, key="order-7", user="shop")
    assert await spool.accept(message(spool, key="order-7", user="shop")) == (other, False)
    await put(spool)
    await put(spool)  # no key: never a repetition
    assert len(await rows(spool)) == 4
    await assert_counts(spool)


async def test_a_usual_message_keeps_its_key_and_what_is_said_of_it(spools: Spools) -> None:
    """It is written as any other; a key that is known already turns it back, and nobody who is written with it."""
    spool = await spools.open()
    known = await put(spool)  # its lane
    first = await put(spool, key="order-7", metadata='{"order": 7}')
    answers = await asyncio.gather(
        spool.accept(message(spool, key="order-8", metadata='{"order": 8}')),
        spool.accept(message(spool, key="order-7", metadata='{"order": 9}')),
        spool.accept(message(spool)),
    )
    assert [fresh for _, fresh in answers] == [True, False, True] and answers[1][0] == first
    told = [await spool.message(number) for number in (known, first, answers[0][0], answers[2][0])]
    assert [(m["key"], m["metadata"]) for m in told if m] == [
        ("", {}), ("order-7", {"order": 7}), ("order-8", {"order": 8}), ("", {}),
    ]  # fmt: skip
    assert len(await rows(spool)) == 4
    await assert_counts(spool)


async def test_a_key_that_comes_many_times_at_once_is_accepted_once(spools: Spools) -> None:
    spool = await spools.open()
    answers = await asyncio.gather(*(spool.accept(message(spool, key=f"k{i % 3}")) for i in range(30)))
    fresh = {number for number, new in answers if new}
    assert len(fresh) == 3
    assert {number for number, _ in answers} == fresh
    assert {r["message"] for r in await rows(spool)} == fresh
    await assert_counts(spool)


async def test_a_key_is_known_after_a_restart_and_forgotten_with_its_message(spools: Spools) -> None:
    spool = await spools.open()
    first = await put(spool, key="order-7")
    await spools.close(spool)
    spool = await spools.open()
    assert await spool.accept(message(spool, key="order-7")) == (first, False)
    await spool.record(settled(await claim(spool), State.DELIVERED))
    assert await spool.purge(NOW + 1) == 1
    assert (await spool.accept(message(spool, key="order-7")))[1]


async def test_one_bad_message_of_a_group_fails_alone(spools: Spools) -> None:
    spool = await spools.open()
    good = [message(spool, f"{i}@example.net") for i in range(5)]
    bad = message(spool)
    bad.tag = None  # type: ignore[assignment]
    answers = await asyncio.gather(*(spool.accept(m) for m in (*good[:3], bad, *good[3:])), return_exceptions=True)
    assert isinstance(answers[3], SpoolError)
    assert [a for a in answers if not isinstance(a, BaseException)] == [(m.id, True) for m in good]
    assert len(await rows(spool)) == 5
    assert await spool.message(bad.id) is None
    await assert_counts(spool)


async def test_above_max_queued_nothing_is_accepted_while_deliveries_go_on(spools: Spools) -> None:
    spool = await spools.open()
    spool.max_queued = 3
    for _ in range(3):
        await put(spool)
    with pytest.raises(SpoolFull, match="max_queued is 3"):
        await spool.accept(message(spool))
    spool.check_room()
    assert "max_queued" in spool.refusal

    await spool.record(settled(await claim(spool), State.DELIVERED))
    spool.check_room()
    assert spool.refusal == ""
    await put(spool)
    assert len(await rows(spool, Filter(states=(State.DELIVERED,)))) == 3


async def test_below_the_reserve_nothing_is_accepted_while_deliveries_go_on(spools: Spools) -> None:
    spool = await spools.open()
    await put(spool)
    spool.reserve = 1 << 60
    spool.check_room()
    assert "reserve" in spool.refusal
    with pytest.raises(SpoolFull):
        await spool.accept(message(spool))
    await spool.record(settled(await claim(spool), State.DELIVERED))
    assert spool.counts[State.DELIVERED] == 1
    spool.reserve = 0
    spool.check_room()
    await put(spool)


async def test_ids_grow_and_are_never_given_twice(spools: Spools) -> None:
    given: list[int] = []
    for _ in range(4):
        spool = await spools.open()
        given += [await put(spool), spool.next_id(), await put(spool)]
        await spools.close(spool)
    assert given == sorted(set(given))


async def test_ids_grow_when_the_clock_went_back(spools: Spools) -> None:
    spool = await spools.open(now=NOW)
    last = await put(spool)
    await spools.close(spool)
    spool = await spools.open(now=NOW - 10 * 365 * 86400)
    assert spool.next_id() > last


async def test_lanes_that_were_met_at_once_are_all_known(spools: Spools) -> None:
    """Several transactions under way start from the same dictionary of lanes: none may forget another's."""
    spool = await spools.open()
    await asyncio.gather(*(_soon(i, put(spool, facts=lane(f"c{i}"))) for i in range(50)))
    assert len(spool.lanes) == 50
    assert len({head.lane for head in await spool.heads()}) == 50


async def _soon(turns: int, work: object) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    await work  # type: ignore[misc]


async def test_no_id_is_given_twice_however_many_were_given_for_nothing(spools: Spools) -> None:
    """Numbers are taken as content begins to arrive, and most of those may be refused: what is reserved is reserved."""
    spool = await spools.open()
    first = spool.next_id()
    for _ in range(10):
        spool.next_id()  # never stored
    await put(spool)
    while spool.next_id() < first + ID_BLOCK + 3:
        continue
    given = await put(spool)
    await spools.close(spool)
    spool = await spools.open(now=NOW - 3600)  # and the clock was set back meanwhile
    assert spool.next_id() > given


async def test_a_block_is_reserved_by_the_transaction_that_needs_it(spools: Spools) -> None:
    """Where that is rolled back the next one does it."""
    spool = await spools.open()
    await put(spool)
    for _ in range(2 * ID_BLOCK):
        given = spool.next_id()
    fail = "CREATE TEMP TRIGGER no BEFORE INSERT ON main.recipient BEGIN SELECT RAISE(ABORT, 'no'); END"
    await spool._writer._connection.call(lambda c: c.execute(fail))
    with pytest.raises(SpoolError):
        await put(spool)
    await spool._writer._connection.call(lambda c: c.execute("DROP TRIGGER no"))
    given = await put(spool)
    reserved = await spool._reader.call(
        lambda c: c.execute("SELECT value FROM meta WHERE key = 'next_id'").fetchone()[0]
    )
    assert given < spool._lanes.reserved <= reserved


async def test_a_disk_that_cannot_be_asked_for_room_leaves_nobody_waiting(spools: Spools, tmp_path: Path) -> None:
    """Each of the transaction hears that it is durable; from then on mail is refused, until the disk answers again."""
    spool = await spools.open()
    spool._room = 0  # as after much mail: it is looked at again
    spool.path.parent.rename(tmp_path / "elsewhere")
    given = await asyncio.wait_for(asyncio.gather(put(spool), put(spool)), 60)
    assert len(set(given)) == 2 and "room" in spool.refusal
    (tmp_path / "elsewhere").rename(spool.path.parent)
    spool.check_room()
    assert spool.refusal == ""
    await assert_counts(spool)
