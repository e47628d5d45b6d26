"""The table of states: what it allows, what it refuses, and that docs/states.md shows it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from relay.recipient import (
    FINAL,
    READY,
    TRANSITIONS,
    WAITING,
    IllegalTransition,
    State,
    Verb,
    diagram,
    move,
    states_before,
)

DOC = Path(__file__).parents[2] / "docs" / "states.md"
EVERY = list(itertools.product(State, Verb))


@pytest.mark.parametrize(("state", "verb"), EVERY)
def test_every_pair_moves_as_tabled_or_raises(state: State, verb: Verb) -> None:
    if (state, verb) in TRANSITIONS:
        assert move(state, verb) is TRANSITIONS[state, verb]
    else:
        with pytest.raises(IllegalTransition, match=f"{state.label} cannot {verb.value}"):
            move(state, verb)


def test_what_is_final_stays() -> None:
    assert not any(state in FINAL for state, _ in TRANSITIONS)


def test_every_state_is_reached_and_left() -> None:
    reached = {State.QUEUED}
    for _ in State:
        reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
    assert reached == set(State)
    assert {before for before, _ in TRANSITIONS} == set(State) - set(FINAL)


def test_only_what_is_in_flight_is_delivered_by_a_next_hop() -> None:
    assert states_before(Verb.ACCEPTED) == (State.ACTIVE,)
    assert set(states_before(Verb.CLAIM)) == set(READY)
    assert set(states_before(Verb.CANCEL)) == set(WAITING)


def test_numbers_are_those_that_lie_in_spools() -> None:
    assert [(s.label, int(s)) for s in State] == [
        ("queued", 0),
        ("deferred", 1),
        ("active", 2),
        ("held", 3),
        ("delivered", 4),
        ("failed", 5),
    ]


def test_the_page_is_current() -> None:
    page = DOC.read_text()
    assert f"```mermaid\n{diagram()}\n```\n" in page
    assert all(f"| {state.label} | " in page for state in State)
