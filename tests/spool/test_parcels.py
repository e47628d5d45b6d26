"""What endpoints have not taken yet: cursors and parcels are written together, and of one message in order."""

from __future__ import annotations

import asyncio
import random
import sqlite3

from conftest import Spools
from making import NOW

from relay.spool.feed import Parcel, Progress
from relay.spool.sqlite import SqliteSpool
from relay.spool.writer import COMMITS


def parcel(event: int, message: int = 0, due: float = NOW, endpoint: str = "crm", **more: object) -> Parcel:
    return Parcel(endpoint, event, message, f'{{"id":{event}}}', due_at=due, first_at=NOW, **more)  # type: ignore[arg-type]


async def keep(spool: SqliteSpool, *parcels: Parcel, endpoint: str = "crm") -> None:
    await spool.progress(Progress(endpoint, max((p.event for p in parcels), default=0), parcels))


async def due(spool: SqliteSpool, now: float = NOW, limit: int = 100) -> list[int]:
    return [p.event for p in await spool.parcels_due("crm", now, limit)]


async def test_progress_is_one_transaction_that_another_process_sees(spools: Spools) -> None:
    spool = await spools.open()
    before = COMMITS.values[()]
    await spool.progress(Progress("crm", 9, [parcel(3, 1), parcel(7, 2)]))
    assert COMMITS.values[()] - before == 1
    await spool.progress(Progress("crm", 12, [parcel(7, 2, NOW + 60, attempts=1, why="503")], [3]))
    other = sqlite3.connect(f"file:{spool.path}?mode=ro", uri=True)
    assert other.execute("SELECT * FROM endpoint").fetchall() == [("crm", 12)]
    assert other.execute("SELECT event, attempts, why FROM parcel").fetchall() == [(7, 1, "503")]
    other.close()
    await spools.close(spool)
    spool = await spools.open()
    assert await spool.cursors() == {"crm": 12}
    assert await spool.parcels("crm", dead=False) == [parcel(7, 2, NOW + 60, attempts=1, why="503")]


async def test_of_many_at_once_the_last_word_stays(spools: Spools) -> None:
    spool = await spools.open()
    await asyncio.gather(
        *(spool.progress(Progress(name, i, [parcel(1, attempts=i, endpoint=name)])) for i in range(50) for name in "ab")
    )
    await asyncio.gather(spool.progress(Progress("a", 7, [], [1])), spool.progress(Progress("a", 3)))  # a replay
    assert await spool.cursors() == {"a": 3, "b": 49}
    assert await spool.parcels("a", dead=False) == []
    assert [p.attempts for p in await spool.parcels("b", dead=False)] == [49]


async def test_pages_in_order_of_events(spools: Spools) -> None:
    spool = await spools.open()
    numbers = random.Random(1).sample(range(1, 100_000), 5000)
    for start in range(0, 5000, 500):
        await keep(spool, *(parcel(n, dead=n % 10 == 0) for n in numbers[start : start + 500]))
    await keep(spool, parcel(1, endpoint="other"), endpoint="other")
    for dead in (False, True):
        paged: list[Parcel] = []
        while page := await spool.parcels("crm", dead=dead, after=paged[-1].event if paged else 0, limit=300):
            paged += page
        assert [p.event for p in paged] == sorted(n for n in numbers if (n % 10 == 0) is dead)
        assert all(p.dead is dead for p in paged)


async def test_of_one_message_none_overtakes_an_earlier_one(spools: Spools) -> None:
    spool = await spools.open()
    await keep(spool, parcel(1, 7, NOW + 60), parcel(2, 7), parcel(3, 7), parcel(4, 8), parcel(5), parcel(6))
    assert await due(spool) == [4, 5, 6]  # 2 and 3 wait for 1; what is about no message has no order
    assert await due(spool, NOW - 1) == []
    assert await due(spool, NOW + 60) == [4, 5, 6, 1, 2, 3]
    await spool.progress(Progress("crm", 6, [], [1]))
    assert await due(spool) == [2, 4, 5, 6, 3]
    assert await due(spool, limit=1) == [2]
    await keep(spool, parcel(2, 7, dead=True))  # a dead letter holds nobody up
    assert await due(spool) == [3, 4, 5, 6]


async def test_those_of_a_message_that_are_due_together_come_together(spools: Spools) -> None:
    spool = await spools.open()
    await keep(spool, *(parcel(i, 7, NOW + 60) for i in range(1, 50)), parcel(60, 8, NOW + 30))
    assert await due(spool, NOW + 60) == [60, *range(1, 50)]
    assert await due(spool, NOW + 60, 10) == [60, *range(1, 10)]


async def test_whatever_comes_of_them_the_order_of_a_message_is_kept(spools: Spools) -> None:
    """Some are taken, some are not and wait for longer: each message is told in order, and all come to their end."""
    spool, lot = await spools.open(), random.Random(7)
    await keep(spool, *(parcel(i, lot.randrange(5), NOW + lot.randrange(20)) for i in range(1, 200)))
    told: dict[int, list[int]] = {}
    now, failed = NOW, 0
    while waiting := (await spool.parcel_counts())["crm"][0]:
        found = await spool.parcels_due("crm", now, lot.randrange(1, 30))
        assert found or (await spool.parcel_counts())["crm"][2] is not None
        stuck: set[int] = set()
        for one in found:
            if one.message in stuck and one.message:
                continue  # behind one that was not taken
            if lot.random() < 0.3:
                stuck.add(one.message)
                failed += 1
                await keep(spool, parcel(one.event, one.message, now + lot.randrange(1, 10)))
            else:
                told.setdefault(one.message, []).append(one.event)
                await spool.progress(Progress("crm", 200, [], [one.event]))
        now += 1
        assert waiting < 200
        assert now < NOW + 10_000
    assert failed > 10
    assert sum(map(len, told.values())) == 199
    assert all(events == sorted(events) for message, events in told.items() if message)


async def test_counts_and_messages_that_wait(spools: Spools) -> None:
    spool = await spools.open()
    assert await spool.parcel_counts() == {}
    await keep(spool, parcel(1, 7, NOW + 5), parcel(2, 8, NOW + 3), parcel(3, 9, dead=True), parcel(4))
    await keep(spool, parcel(1, 7, endpoint="dead", dead=True), endpoint="dead")
    await keep(spool, endpoint="idle")
    assert await spool.parcel_counts() == {"crm": (3, 1, NOW), "dead": (0, 1, None), "idle": (0, 0, None)}
    assert await spool.waiting_messages("crm") == {7, 8}
    assert await spool.waiting_messages("nobody") == set()


async def test_an_endpoint_is_forgotten_whole(spools: Spools) -> None:
    spool = await spools.open()
    for start in range(1, 3000, 500):
        await keep(spool, *(parcel(n, n % 9, dead=n % 3 == 0) for n in range(start, start + 500)))
    await keep(spool, parcel(1, endpoint="other"), endpoint="other")
    await spool.forget_endpoint("crm")
    await spool.forget_endpoint("nobody")
    assert await spool.cursors() == {"other": 1}
    assert await spool.parcel_counts() == {"other": (1, 0, NOW)}
    assert await spool.check() == []


async def test_a_clock_that_was_set_back_makes_no_parcel_wait_for_the_old_time(spools: Spools) -> None:
    spool = await spools.open()
    await keep(spool, parcel(1, due=NOW + 60))
    await spool.probe(NOW)
    await spools.close(spool)
    spool = await spools.open(now=NOW - 86400)
    assert await due(spool, NOW - 86400 + 60) == [1]
