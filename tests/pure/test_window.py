"""How many at once: it finds what a destination takes, stays there, and asks for more seldom."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.policy.window import COLD, LONGEST, PATIENCE, START, Window


@dataclass
class Run:
    refusals: list[float] = field(default_factory=list)
    delivered: int = 0
    busy: float = 0.0  # sessions times seconds
    seconds: float = 0.0

    @property
    def used(self) -> float:
        return self.busy / self.seconds


def run(window: Window, takes: int, start: float, seconds: float, *, latency: float = 0.2, jitter: float = 0.5) -> Run:
    """A server that says 421 to who comes while `takes` are there, and always more mail than it takes.

    Each transaction is a dial of its own. A refusal is heard sooner than a delivery, but not at once.
    """
    lot = random.Random(7)
    found = Run()
    flying: list[tuple[float, float, bool]] = []  # (ends, began, taken)
    now = start
    while now < start + seconds:
        while len(flying) < window.limit(now):
            taken = sum(f[2] for f in flying) < takes
            length = (latency if taken else latency / 4) * (1 + jitter * lot.random())
            heapq.heappush(flying, (now + length, now + lot.random() * 1e-6, taken))
        ends, began, taken = heapq.heappop(flying)
        found.busy += (ends - now) * (sum(f[2] for f in flying) + taken)
        now = ends
        if taken:
            found.delivered += 1
            window.good(now)
        else:
            found.refusals.append(now - start)
            window.bad(now, began, "421 too many connections")
    found.seconds = now - start
    return found


@pytest.mark.parametrize("takes", [1, 2, 5, 20])
def test_it_finds_what_a_server_takes(takes: int) -> None:
    window = Window(50)
    first = run(window, takes, 1000.0, 600.0)
    assert len(first.refusals) <= max(15, 2 * takes)
    then = run(window, takes, 1600.0, 3600.0)
    assert 0.9 * takes < then.used < takes + 1e-6, "it is halved too seldom to matter"
    assert len(then.refusals) <= 10, "one now and then, in an hour"
    assert then.delivered > 1000 * len(then.refusals)


def test_a_server_that_takes_all_is_given_all() -> None:
    window = Window(20)
    found = run(window, 1000, 0.0, 5.0)
    assert not found.refusals
    assert window.limit(5.0) == 20
    assert window.why == ""


@pytest.mark.parametrize(("before", "after"), [(20, 4), (4, 20), (1, 10)])
def test_it_follows_a_server_that_changes(before: int, after: int) -> None:
    window = Window(50)
    run(window, before, 0.0, 1200.0)
    run(window, after, 1200.0, 2 * LONGEST)
    then = run(window, after, 1200.0 + 2 * LONGEST, 1800.0)
    assert 0.5 * after < then.used < after + 1e-6


# -- the steps


def goods(window: Window, now: float, count: int) -> None:
    for _ in range(count):
        window.good(now)


def test_from_two_it_doubles_in_each_round() -> None:
    window, seen = Window(100), []
    for now in range(5):
        seen.append(window.limit(now))
        goods(window, now, window.limit(now))
    assert seen == [2, 4, 8, 16, 32]


def test_after_a_refusal_it_is_half_and_grows_by_one_a_round() -> None:
    window = Window(100)
    goods(window, 0.0, 14)
    assert window.limit(0.0) == 16
    assert window.bad(1.0, 0.5, "421 busy")
    assert (window.limit(1.0), window.why, window.since) == (8, "421 busy", 1.0)
    for rounds in range(1, 4):
        goods(window, 2.0, window.limit(2.0) + 1)  # a whole round, and what is lost by rounding down
        assert window.limit(2.0) == 8 + rounds


def test_the_refusals_of_one_cohort_are_one() -> None:
    window = Window(100)
    goods(window, 0.0, 14)
    assert window.bad(1.0, 0.9)
    assert not window.bad(1.1, 0.95)
    assert not window.bad(5.0, 1.0)
    assert window.limit(5.0) == 8
    assert window.bad(5.0, 1.01)
    assert window.limit(5.0) == 4


def test_what_was_refused_is_asked_again_after_a_while_and_later_each_time() -> None:
    window, now, waits = Window(20), 0.0, []
    goods(window, now, 4)
    for _ in range(8):
        refused = window.limit(now)
        assert refused == 6
        window.bad(now, now)
        start = now
        while window.limit(now) < refused:
            assert now - start < 2 * LONGEST
            now += 5.0
            window.good(now)
        waits.append(now - start)
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(PATIENCE, abs=25)
    assert waits[-1] == pytest.approx(LONGEST, abs=25)


def test_one_session_is_always_left() -> None:
    window = Window(20)
    for now in range(1, 20):
        window.bad(float(now), now - 0.5)
    assert window.limit(20.0) == 1
    window.good(21.0)
    assert window.limit(21.0) == 1, "one was refused: two are not asked for at once"


def test_a_destination_that_was_silent_for_long_is_not_hit_by_all() -> None:
    window = Window(20)
    goods(window, 0.0, 30)
    assert window.limit(COLD) == 20
    assert window.limit(COLD + 1) == START
    window.good(COLD + 1)
    assert window.limit(COLD + 1) == 3, "and is known again in a few rounds"
    window.bad(COLD + 2, COLD + 1.5)
    assert window.limit(COLD + 2) == 1


def test_what_was_not_used_proves_nothing() -> None:
    window = Window(20)
    for _ in range(50):
        window.good(1.0, busy=1)
    assert window.limit(1.0) == 3, "one of two sessions is half of them, one of three is not"
    goods(window, 1.0, 3)
    window.good(1.0, busy=3)
    assert window.limit(1.0) == 7


def test_a_reload_keeps_what_was_learnt() -> None:
    old = Window(20)
    goods(old, 0.0, 30)
    old.bad(1.0, 0.5, "421 busy")
    new = Window(6)
    new.keep(old)
    assert (new.limit(1.0), new.why, new.since) == (6, "421 busy", 1.0)
    assert not new.bad(2.0, 0.9), "who began before the reload is of the old cohort"
    more = Window(40)
    more.keep(new)
    assert more.limit(2.0) == 6
    fresh = Window(40)
    fresh.keep(Window(20))
    assert fresh.limit(0.0) == START


# -- whatever it hears

events = st.lists(
    st.tuples(
        st.sampled_from(["good", "good", "bad", "reload"]), st.floats(0, 2000), st.floats(0, 100), st.integers(1, 50)
    ),
    max_size=200,
)


@given(st.integers(1, 50), events)
def test_it_is_never_below_one_nor_above_most(most: int, heard: list[tuple[str, float, float, int]]) -> None:
    window, now = Window(most), 0.0
    for what, passed, ago, number in heard:
        now += passed
        before = window.limit(now)
        match what:
            case "good":
                window.good(now, number)
                assert before <= window.limit(now) <= 2 * before + 1
            case "bad":
                news = window.bad(now, now - ago, "421")
                assert window.limit(now) == (max(1, before // 2) if news else before)
            case "reload":
                changed = Window(number)
                changed.keep(window)
                window = changed
        assert 1 <= window.limit(now) <= window.most
        assert math.isfinite(window.size)
