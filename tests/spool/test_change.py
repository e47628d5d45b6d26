"""What moves a recipient besides a claim: settlements, an operator's verbs, recovery, expiry, purge, other lanes."""

from __future__ import annotations

import asyncio

import pytest
from conftest import Spools
from making import DAY, NOW, assert_counts, claim, keys, lane, message, put, rows, settled, states

from relay.policy.classes import InDoubt
from relay.recipient import TRANSITIONS, WAITING, State, Verb
from relay.spool import Ask, Event, Filter, Place, Settlement, SpoolError
from relay.spool.sqlite import SqliteSpool


async def test_a_batch_is_recorded_whole(spools: Spools) -> None:
    spool = await spools.open()
    numbers = [await put(spool, f"r{i}@example.net") for i in range(130)]
    claims = await claim(spool, limit=200)
    await spool.record(settled(claims[:50], State.DELIVERED) + settled(claims[50:90], State.FAILED))
    await spool.record(settled(claims[90:], State.DEFERRED, due=NOW + 60))
    assert await states(spool) == ["delivered"] * 50 + ["failed"] * 40 + ["deferred"] * 40
    found = await spool.message(numbers[60])
    assert found is not None
    (recipient,) = found["recipients"]
    assert (recipient["egress"], recipient["attempts"], recipient["why"]) == ("up", 1, "said so")
    assert [(e["kind"], e["egress"], e["code"]) for e in found["events"]] == [
        ("accepted", "", 250),
        ("failed", "up", 250),
    ]
    await assert_counts(spool)


async def test_a_batch_with_a_fault_is_not_recorded_at_all_and_others_are(spools: Spools) -> None:
    spool = await spools.open()
    for _ in range(3):
        await put(spool)
    claims = await claim(spool)
    bad = settled(claims[1:], State.DELIVERED)
    bad[1].changes[0].note = None  # type: ignore[assignment]
    good, failed = await asyncio.gather(
        spool.record(settled(claims[:1], State.DELIVERED)), spool.record(bad), return_exceptions=True
    )
    assert not isinstance(good, BaseException)
    assert isinstance(failed, SpoolError)
    assert await states(spool) == ["delivered", "active", "active"]
    await assert_counts(spool)


async def test_a_settlement_may_change_nothing_or_only_tell(spools: Spools) -> None:
    spool = await spools.open()
    number = await put(spool)
    await spool.record([])
    await spool.record([Settlement([], [Event(NOW, number, 0, "failed_over", "a", 421, {"why": "busy"})])])
    found = await spool.message(number)
    assert found is not None
    assert found["events"][-1]["why"] == "busy"


@pytest.mark.parametrize(
    ("keep", "state", "kept"),
    [
        ("none", State.DELIVERED, False),
        ("none", State.FAILED, False),
        ("failed", State.DELIVERED, False),
        ("failed", State.FAILED, True),
        ("all", State.DELIVERED, True),
    ],
)
async def test_bodies_are_kept_as_the_configuration_says(spools: Spools, keep: str, state: State, kept: bool) -> None:
    spool = await spools.open()
    spool.keep_bodies = keep
    number = await put(spool, "a@example.net", "b@example.net")
    claims = await claim(spool)
    half, other = settled(claims, state)[0], settled(claims, state)[0]
    half.changes, other.changes = half.changes[:1], other.changes[1:]
    await spool.record([half])
    assert await spool.read(number, Place.TABLE)  # the other one still waits
    await spool.record([other])
    if kept:
        assert await spool.read(number, Place.TABLE)
    else:
        with pytest.raises(SpoolError, match="not kept"):
            await spool.read(number, Place.TABLE)
    found = await spool.message(number)
    assert found is not None
    assert (found["place"] == Place.TABLE) is kept
    assert found["head"]


OPERATORS = (Verb.HOLD, Verb.RELEASE, Verb.RETRY, Verb.EXPIRE, Verb.CANCEL, Verb.SUPPRESS)


async def _one_of_each(spool: SqliteSpool) -> None:
    """A recipient in every state, in order."""
    await put(spool)
    for state in (State.DEFERRED, None, State.DELIVERED, State.FAILED):
        await put(spool, facts=lane("moved"))
        (head,) = [h for h in await spool.heads() if h.facts == lane("moved")]
        claims, _ = await spool.claim([_ask(head.lane)])
        if state:
            await spool.record(settled(claims, state, due=NOW + 600))
    await put(spool, state=State.HELD)


def _ask(number: int) -> Ask:
    return Ask(number, 10, NOW)


@pytest.mark.parametrize("verb", OPERATORS)
async def test_a_verb_changes_those_that_know_it_and_no_other(spools: Spools, verb: Verb) -> None:
    spool = await spools.open()
    await _one_of_each(spool)
    before = await rows(spool)
    assert {r["state"] for r in before} == {s.label for s in State}
    expected = [
        TRANSITIONS.get((State[r["state"].upper()], verb), State[r["state"].upper()])
        if State[r["state"].upper()] in WAITING
        else State[r["state"].upper()]
        for r in before
    ]
    known = sum((s, verb) in TRANSITIONS for s in WAITING)
    assert await spool.change(keys(before), verb, NOW + 5, "by an operator") == known
    after = await rows(spool)
    assert [r["state"] for r in after] == [s.label for s in expected]
    for old, new in zip(before, after, strict=True):
        touched = State[old["state"].upper()] in WAITING and (State[old["state"].upper()], verb) in TRANSITIONS
        assert (new["why"] == "by an operator") is touched
        assert (new["due_at"] == NOW + 5) is (touched and new["state"] in ("queued", "deferred"))
        found = await spool.message(old["message"])
        assert found is not None
        assert (found["events"][-1].get("why") == "by an operator") is touched
    await assert_counts(spool)


async def test_what_is_in_flight_is_not_expired_under_its_delivery(spools: Spools) -> None:
    """Found expired, then claimed, then told to expire: it belongs to its delivery, which looks at the time itself."""
    spool = await spools.open()
    await put(spool, expires=NOW + 1)
    found = await spool.expired(NOW + 2)
    claims = await claim(spool, now=NOW + 2)
    assert await spool.change(found, Verb.EXPIRE, NOW + 2, "expired") == 0
    await spool.record(settled(claims, State.DELIVERED))
    assert await states(spool) == ["delivered"]
    await assert_counts(spool)


async def test_a_verb_on_more_than_one_slice(spools: Spools) -> None:
    spool = await spools.open()
    await put(spool, *(f"r{i}@example.net" for i in range(450)))
    everyone = keys(await rows(spool))
    assert await spool.change(everyone + everyone[:10], Verb.HOLD, NOW, "held") == 450
    assert await claim(spool, limit=1000) == []
    assert await spool.change(everyone, Verb.RELEASE, NOW, "released") == 450
    assert len((await claim(spool, limit=1000))[0].recipients) == 450
    await assert_counts(spool)


async def test_retry_and_release_wake_the_lane(spools: Spools) -> None:
    spool = await spools.open()
    await put(spool, due=NOW + 900)
    await spool.wait(0.0)
    await spool.change(keys(await rows(spool)), Verb.RETRY, NOW, "retry")
    (head,) = await spool.wait(10)
    assert (head.facts, head.due_at) == (lane(), NOW)
    assert len(await claim(spool)) == 1


async def test_expiry_is_found_in_every_state_that_waits(spools: Spools) -> None:
    spool = await spools.open()
    await _one_of_each(spool)
    assert await spool.expired(NOW + 4 * DAY) == []
    found = await spool.expired(NOW + 5 * DAY)
    assert len(found) == 3
    assert await spool.change(found, Verb.EXPIRE, NOW + 5 * DAY, "expired: too old") == 3
    assert await spool.expired(NOW + 5 * DAY) == []
    await assert_counts(spool)


async def test_a_message_that_took_long_to_arrive_is_oldest_and_expires_too(spools: Spools) -> None:
    """Its id was given when its content began to arrive; younger ones overtook it."""
    spool = await spools.open()
    slow = message(spool, "slow@example.net", at=NOW - 5, expires=NOW + 10)
    await put(spool, at=NOW)
    assert await spool.oldest() == NOW
    await spool.accept(slow)
    assert await spool.oldest() == NOW - 5
    assert await spool.expired(NOW + 10) == [(slow.id, 0)]


async def test_the_oldest_that_waits(spools: Spools) -> None:
    spool = await spools.open()
    assert await spool.oldest() is None
    for i in range(3):
        await put(spool, at=NOW + i)
    claims = await claim(spool, now=NOW + 9)
    await spool.record(settled(claims[:2], State.DELIVERED))
    assert await spool.oldest() == NOW + 2
    await spool.record(settled(claims[2:], State.FAILED))
    assert await spool.oldest() is None


async def test_into_another_lane(spools: Spools) -> None:
    spool = await spools.open()
    first, second = await put(spool), await put(spool)
    (head,) = await spool.heads()
    await spool.wait(0.0)
    stale = await spool.stale(head.lane, 10)
    assert [(r["message"], r["sender"], r["class"]) for r in stale] == [
        (n, "app@example.com", "default") for n in (first, second)
    ]
    await spool.relane([(first, 0, head.lane, lane("new"))])
    (moved,) = await spool.wait(10)
    assert (moved.facts, moved.due_at) == (lane("new"), NOW)
    claims, _ = await spool.claim([_ask(moved.lane)])
    assert [c.message for c in claims] == [first]
    # It moved and is in flight: what saw it in its old lane moves nothing.
    await spool.relane([(first, 0, head.lane, lane("third"))])
    assert (await rows(spool))[0]["lane"] == moved.lane
    await assert_counts(spool)


@pytest.mark.parametrize(
    ("rule", "state"),
    [(InDoubt.RETRY, "deferred"), (InDoubt.HOLD, "held"), (InDoubt.FAIL, "failed"), (None, "deferred")],
)
async def test_what_was_in_flight_at_a_crash_is_in_doubt(spools: Spools, rule: InDoubt | None, state: str) -> None:
    spool = await spools.open()
    number = await put(spool, class_="orders")
    waits = await put(spool, due=NOW + 60)
    await claim(spool)
    await spools.close(spool)  # nothing was recorded

    spool = await spools.open()
    assert await spool.recover({"orders": rule} if rule else {}, NOW + 7, 0.5) == (1, [])
    assert await spool.recover({}, NOW + 7, 0.5) == (0, [])
    doubtful, other = await rows(spool)
    assert (doubtful["message"], doubtful["state"], doubtful["in_doubt"], doubtful["attempts"]) == (
        number,
        state,
        True,
        1,
    )
    assert "may have been delivered" in doubtful["why"]
    assert (other["message"], other["state"], other["in_doubt"]) == (waits, "queued", False)
    found = await spool.message(number)
    assert found is not None
    assert found["events"][-1]["kind"] == "in_doubt"
    await assert_counts(spool)
    if state == "deferred":
        ((again,),) = [c.recipients for c in await claim(spool, now=NOW + 7)]
        assert (again.in_doubt, again.attempts) == (True, 1)


async def _crash(spools: Spools, now: float, **rules: InDoubt) -> tuple[SqliteSpool, tuple[int, list[int]]]:
    """The spool after a process died with all that was due in flight."""
    spool = await spools.open()
    await claim(spool, now=now)
    await spools.close(spool)
    spool = await spools.open()
    return spool, await spool.recover(rules, now, 0.5)


async def test_what_was_in_flight_at_three_crashes_in_a_row_is_held(spools: Spools) -> None:
    spool = await spools.open()
    number = await put(spool, "a@example.net", "b@example.net")
    await spools.close(spool)
    now = NOW
    for crashes in (1, 2):
        spool, told = await _crash(spools, now)
        assert told == (2, [])
        found = await rows(spool)
        assert [r["state"] for r in found] == ["deferred"] * 2
        # At once after the first; then at a moment of its own, the same for all recipients of a message.
        (due,) = {r["due_at"] for r in found}
        assert due == now if crashes == 1 else now <= due < now + 10
        await spools.close(spool)
        now = due
    spool, told = await _crash(spools, now)
    assert told == (2, [number])
    for row in await rows(spool):
        assert (row["state"], row["in_doubt"]) == ("held", True)
        assert "3 times in a row" in row["why"]
        assert "relay queue release" in row["why"]
    found = await spool.message(number)
    assert found is not None
    assert [e["state"] for e in found["events"] if e["kind"] == "in_doubt"] == ["deferred"] * 4 + ["held"] * 2
    await assert_counts(spool)
    # Released it starts anew: one more crash does not hold it.
    assert await spool.change(keys(await rows(spool)), Verb.RELEASE, now, "looked at") == 2
    await spools.close(spool)
    spool, told = await _crash(spools, now)
    assert told == (2, [])
    assert await states(spool) == ["deferred"] * 2


async def test_an_ordinary_end_clears_the_innocent(spools: Spools) -> None:
    spool = await spools.open()
    await put(spool)
    await spools.close(spool)
    for _ in range(2):
        spool, _ = await _crash(spools, NOW + 30)
        await spools.close(spool)
    spool = await spools.open()
    claims = await claim(spool, now=NOW + 60)
    assert [r.crashes for c in claims for r in c.recipients] == [2]
    await spool.record(settled(claims, State.DEFERRED, due=NOW + 60))
    await spools.close(spool)
    spool, told = await _crash(spools, NOW + 60)
    assert told == (1, [])
    ((again,),) = [c.recipients for c in await claim(spool, now=NOW + 60)]
    assert again.crashes == 1


@pytest.mark.parametrize(("rule", "state"), [(InDoubt.HOLD, "held"), (InDoubt.FAIL, "failed")])
async def test_the_rule_of_a_class_goes_before_that_for_poison(spools: Spools, rule: InDoubt, state: str) -> None:
    spool = await spools.open()
    await put(spool)
    await spools.close(spool)
    spool, told = await _crash(spools, NOW, default=rule)
    assert told == (1, [])
    assert await states(spool) == [state]


async def test_purge_forgets_only_what_was_done_before_that_time(spools: Spools) -> None:
    spool = await spools.open()
    old = [await put(spool) for _ in range(5)]
    claims = await claim(spool)
    await spool.record(settled(claims[:2], State.DELIVERED, now=NOW + 1))
    await spool.record(settled(claims[2:3], State.FAILED, now=NOW + 100))
    await spool.record(settled(claims[3:4], State.DEFERRED, now=NOW + 1))
    assert await spool.purge(NOW + 50) == 2
    assert [r["message"] for r in await rows(spool)] == old[2:]
    await assert_counts(spool)
    assert await spool.purge(NOW + 200) == 1
    assert await spool.message(old[2]) is None
    assert await spool.check() == []


async def test_purge_in_slices(spools: Spools) -> None:
    spool = await spools.open()
    for _ in range(3):
        await asyncio.gather(*(put(spool) for _ in range(200)))
        await spool.record(settled(await claim(spool, limit=500), State.DELIVERED, now=NOW))
    last = await put(spool)
    assert await spool.purge(NOW + 1) == 600
    assert [r["message"] for r in await rows(spool)] == [last]
    assert spool.counts[State.DELIVERED] == 0
    await assert_counts(spool)


async def test_every_filter_selects(spools: Spools) -> None:
    spool = await spools.open()
    one = await put(spool, "Ann@One.example", tag="order-1", class_="a", user="u1", at=NOW - 10, facts=lane("a", "u1"))
    two = await put(spool, "bob@two.example", sender="x[1]@example.com", state=State.HELD, facts=lane("b"))
    claims = await claim(spool)
    await spool.record(settled(claims, State.DEFERRED, why="421 Come Later"))
    lanes = spool.lanes
    for wanted, expected in [
        (Filter(), [one, two]),
        (Filter(ids=(two,)), [two]),
        (Filter(sender="APP@*"), [one]),
        (Filter(sender="x[1]@*"), [two]),
        (Filter(recipient="ann@one.example"), [one]),
        (Filter(domain="*.example"), [one, two]),
        (Filter(domain="two.example"), [two]),
        (Filter(egress="u?"), [one]),
        (Filter(lanes=(lanes[lane("b")],)), [two]),
        (Filter(lanes=()), []),
        (Filter(class_="A"), [one]),
        (Filter(tag="order-*"), [one]),
        (Filter(user="u1"), [one]),
        (Filter(states=(State.HELD, State.ACTIVE)), [two]),
        (Filter(error="come later"), [one]),
        (Filter(accepted_before=NOW - 1), [one]),
        (Filter(sender="app@*", states=(State.HELD,)), []),
    ]:
        assert [r["message"] for r in await rows(spool, wanted)] == expected, wanted


async def test_find_reads_in_pages(spools: Spools) -> None:
    spool = await spools.open()
    await put(spool, *(f"r{i}@example.net" for i in range(25)))
    await put(spool)
    whole = keys(await rows(spool))
    assert keys([r async for r in spool.find(Filter(), limit=10)]) == whole
    assert keys([r async for r in spool.find(Filter(), after=whole[9], limit=7)]) == whole[10:]
    assert [s["states"] for s in await spool.stats()] == [{"queued": 26}]


@pytest.mark.parametrize("verb", [Verb.HOLD, Verb.EXPIRE])
async def test_a_change_costs_what_it_changes(spools: Spools, verb: Verb) -> None:
    """A few recipients of a large queue: the others are not read."""
    spool = await spools.open()
    for _ in range(20):
        number = await put(spool, *(f"r{n}@x.example" for n in range(500)))
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    connection = spool._writer._connection
    await connection.call(lambda c: c.set_progress_handler(step, 100))
    assert await spool.change([(number, 0), (number, 1)], verb, NOW, "why") == 2
    await connection.call(lambda c: c.set_progress_handler(None, 0))
    assert steps < 50  # a scan of the 10,000 takes more than 500
