"""Claiming: in order, never twice, a message once for all its recipients of a lane; and what the scheduler is told."""

from __future__ import annotations

import asyncio

from conftest import Spools
from making import NOW, assert_counts, claim, lane, put, rows, settled

from relay.recipient import State
from relay.spool import Ask, recent


async def test_priority_first_then_due_then_age(spools: Spools) -> None:
    spool = await spools.open()
    low = await put(spool, priority=3, due=NOW - 100)
    late = await put(spool, priority=2, due=NOW)
    early = await put(spool, priority=2, due=NOW - 50)
    same = await put(spool, priority=2, due=NOW)
    immediate = await put(spool, priority=0, due=NOW)
    assert [c.message for c in await claim(spool)] == [immediate, early, late, same, low]


async def test_a_claim_carries_what_a_delivery_needs(spools: Spools) -> None:
    spool = await spools.open()
    number = await put(spool, "a@example.net", "b@example.net", body=b"text\r\n", tag="t", class_="bulk")
    (found,) = await claim(spool)
    assert (found.message, found.sender, found.class_, found.tag) == (number, "app@example.com", "bulk", "t")
    assert [(r.n, r.address, r.attempts, r.was, r.in_doubt) for r in found.recipients] == [
        (0, "a@example.net", 0, State.QUEUED, False),
        (1, "b@example.net", 0, State.QUEUED, False),
    ]
    assert await spool.read(number, found.place) == b"text\r\n"
    assert spool.counts[State.ACTIVE] == 2
    await assert_counts(spool)


async def test_what_was_claimed_is_not_claimed_again(spools: Spools) -> None:
    spool = await spools.open()
    for _ in range(40):
        await put(spool)
    (head,) = await spool.heads()
    answers = await asyncio.gather(*(spool.claim([Ask(head.lane, 7, NOW)]) for _ in range(10)))
    taken = [c.message for claims, _ in answers for c in claims]
    assert len(taken) == len(set(taken)) == 40
    assert answers[-1][0] == []


async def test_a_claim_is_durable_before_it_returns(spools: Spools) -> None:
    spool = await spools.open()
    await put(spool)
    await claim(spool)
    await spools.close(spool)
    spool = await spools.open()
    assert spool.counts[State.ACTIVE] == 1
    assert await claim(spool) == []


async def test_the_limit_counts_recipients_but_never_splits_a_message(spools: Spools) -> None:
    spool = await spools.open()
    many = await put(spool, *(f"r{i}@example.net" for i in range(30)))
    await put(spool)
    claims = await claim(spool, limit=5)
    assert [(c.message, len(c.recipients)) for c in claims] == [(many, 30)]
    assert sorted(r.n for r in claims[0].recipients) == list(range(30))
    assert len(await claim(spool, limit=5)) == 1


async def test_siblings_of_another_lane_or_time_stay(spools: Spools) -> None:
    spool = await spools.open()
    first = await put(spool, "a@example.net", "b@example.net", "c@example.net")
    claims = await claim(spool)
    one, two, three = (settled(claims, State.DEFERRED, due=NOW + at)[0] for at in (0, 0, 60))
    one.changes, two.changes, three.changes = one.changes[:1], two.changes[1:2], three.changes[2:]
    await spool.record([one, two, three])
    await spool.relane([(first, 1, claims[0].recipients[1].lane, lane("other"))])
    (head, other) = await spool.heads()
    found, _ = await spool.claim([Ask(head.lane, 1, NOW)])
    assert [r.n for r in found[0].recipients] == [0]
    found, _ = await spool.claim([Ask(other.lane, 1, NOW)])
    assert [r.n for r in found[0].recipients] == [1]


async def test_a_limit_of_nothing_claims_nothing(spools: Spools) -> None:
    spool = await spools.open()
    await put(spool)
    assert await claim(spool, limit=0) == []
    assert len(await claim(spool, limit=1)) == 1


async def test_what_is_due_later_is_not_claimed_and_told(spools: Spools) -> None:
    spool = await spools.open()
    await put(spool, due=NOW + 60)
    (head,) = await spool.heads()
    assert head.due_at == NOW + 60
    claims, due = await spool.claim([Ask(head.lane, 10, NOW)])
    assert (claims, due) == ([], {head.lane: NOW + 60})
    claims, due = await spool.claim([Ask(head.lane, 10, NOW + 60)])
    assert (len(claims), due) == (1, {head.lane: None})


async def test_several_lanes_in_one_call(spools: Spools) -> None:
    spool = await spools.open()
    for name in ("a", "b", "c"):
        for _ in range(5):
            await put(spool, facts=lane(name))
    heads = await spool.heads()
    claims, due = await spool.claim([Ask(h.lane, 2, NOW) for h in heads])
    assert [c.recipients[0].lane for c in claims] == [h.lane for h in heads for _ in range(2)]
    assert set(due) == {h.lane for h in heads}
    assert set(due.values()) == {NOW}


async def test_wait_tells_which_lanes_got_something(spools: Spools) -> None:
    spool = await spools.open()
    assert await spool.wait(0.0) == []
    waiting = asyncio.create_task(spool.wait(60))
    await put(spool, facts=lane("a"), due=NOW + 5)
    (head,) = await waiting
    assert (head.facts, head.due_at) == (lane("a"), NOW + 5)
    await put(spool, facts=lane("a"), due=NOW + 9)
    await put(spool, facts=lane("a"), due=NOW + 1)
    (head,) = await spool.wait(10)
    assert head.due_at == NOW + 1
    assert await spool.wait(0.0) == []


async def test_wait_tells_of_what_was_deferred_or_let_go(spools: Spools) -> None:
    spool = await spools.open()
    await put(spool)
    claims = await claim(spool)
    await spool.wait(0.0)
    await spool.record(settled(claims, State.DEFERRED, due=NOW + 30))
    (head,) = await spool.wait(10)
    assert (head.lane, head.due_at) == (claims[0].recipients[0].lane, NOW + 30)


async def test_bodies_of_those_that_do_not_move_make_room(spools: Spools) -> None:
    spool = await spools.open()
    for at in (NOW, NOW + 2 * recent.HOT_SECONDS):
        for _ in range(100):
            await put(spool, body=b"x" * 250_000, at=at)
    claims = await claim(spool, limit=500, now=NOW + 100)
    kept = [i for i, c in enumerate(claims) if c.body]
    assert kept and min(kept) >= 100


async def test_a_body_is_at_hand_while_it_is_fresh_and_memory_is_bounded(spools: Spools) -> None:
    spool = await spools.open()
    for _ in range(200):
        await put(spool, body=b"x" * 250_000)
    assert spool._hot.bytes <= recent.HOT_BYTES
    claims = await claim(spool, limit=500)
    assert claims[0].body is not None
    assert spool._hot.bytes == sum(len(c.body) for c in claims if c.body)
    assert claims[-1].body is None  # there was no room, it is read when it is needed
    assert await spool.read(claims[-1].message, claims[-1].place) == b"x" * 250_000
    await spool.record(settled(claims, State.DELIVERED))
    assert spool._hot.bytes == 0
    assert len(await rows(spool)) == 200
