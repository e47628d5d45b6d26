"""The bad event of a batch is found, and a bad endpoint is not taken for it: over any events and any bad ones."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from relay.webhooks.turn import Turn, take_turn
from relay.webhooks.words import Item, Said, Verdict


def run(messages: Sequence[int], bad: set[int], answer: Verdict, *, doubt: bool, credit: int) -> tuple[Turn, int]:
    """The turn, and how many times the endpoint was asked. It answers so to whatever holds a bad event."""
    asked: list[Sequence[Item]] = []

    async def send(items: Sequence[Item]) -> Said:
        asked.append(items)
        return Said(answer, "no") if bad & {item.event for item in items} else Said(Verdict.TAKEN)

    items = [Item(n, message, 0.0, "{}") for n, message in enumerate(messages, 1)]
    return asyncio.run(take_turn(items, send, doubt=doubt, credit=credit)), len(asked)


BATCHES = st.lists(st.integers(0, 4), min_size=1, max_size=24).flatmap(
    lambda messages: st.tuples(st.just(messages), st.sets(st.integers(1, len(messages))))
)


@settings(max_examples=150, deadline=None)
@given(BATCHES, st.sampled_from(Verdict), st.booleans(), st.integers(0, 3))
def test_every_event_is_in_one_place_and_none_overtakes(
    batch: tuple[list[int], set[int]], answer: Verdict, doubt: bool, credit: int
) -> None:
    messages, bad = batch
    turn, _ = run(messages, set() if answer is Verdict.TAKEN else bad, answer, doubt=doubt, credit=credit)
    refused = [item for item, _ in turn.refused]
    places = [*turn.taken, *refused, *turn.behind, *turn.left]
    waits = min((item.event for item in turn.left), default=len(messages) + 1)
    # What is behind may be read once more, where something is left before it; nothing else is in two places or in none.
    assert {item.event for item in places} == set(range(1, len(messages) + 1))
    assert len({item.event for item in places}) == len(places)
    assert all(item.event < waits for item in (*turn.taken, *refused))
    assert not {item.event for item in turn.taken} & bad or answer is Verdict.TAKEN
    assert all(item.event in bad for item in refused)
    for item in turn.taken:  # nothing of its message that is not taken comes before it
        assert not any(o.message == item.message != 0 and o.event < item.event for o in (*refused, *turn.behind))
    assert bool(turn.left) is (turn.said is not None)
    if refused and not turn.taken:
        assert len(refused) <= credit


def test_one_of_many_is_found_in_few_steps() -> None:
    turn, asked = run([*range(1, 101)], {42}, Verdict.REFUSED, doubt=False, credit=0)
    assert [item.event for item, _ in turn.refused] == [42]
    assert len(turn.taken) == 99 and not turn.left and asked <= 16


def test_who_is_ill_is_asked_twice_and_no_more() -> None:
    everything = set(range(1, 101))
    turn, asked = run([*range(1, 101)], everything, Verdict.TROUBLE, doubt=True, credit=3)
    assert asked == 2 and len(turn.left) == 100 and not turn.refused
    turn, asked = run([*range(1, 101)], everything, Verdict.REFUSED, doubt=False, credit=0)
    assert asked <= 10 and len(turn.left) == 100 and not turn.refused


def test_trouble_is_the_endpoints_until_there_is_doubt() -> None:
    turn, asked = run([1, 2, 3, 4], {2}, Verdict.TROUBLE, doubt=False, credit=3)
    assert asked == 1 and len(turn.left) == 4
    turn, _ = run([1, 2, 3, 4], {2}, Verdict.TROUBLE, doubt=True, credit=3)
    assert [item.event for item, _ in turn.refused] == [2] and [item.event for item in turn.taken] == [1, 3, 4]


def test_what_is_of_the_same_message_bears_no_witness() -> None:
    turn, _ = run([1, 1, 1, 2], {1}, Verdict.TROUBLE, doubt=True, credit=0)
    assert [item.event for item, _ in turn.refused] == [1]
    assert [item.event for item in turn.behind] == [2, 3] and [item.event for item in turn.taken] == [4]
