"""The pace of an account: known limits are never exceeded, an unknown one is learnt, and nothing is wasted."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.policy.pace import Held, Pace
from relay.policy.rate import Rate


class Upstream:
    """A token bucket that answers after a while."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst, self.tokens, self.last = rate, burst, burst, 0.0

    def takes(self, now: float) -> bool:
        self.tokens, self.last = min(self.burst, self.tokens + (now - self.last) * self.rate), now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


def drain(
    pace: Pace, upstream: Upstream, count: int, *, sessions: int = 10, latency: float = 0.05
) -> tuple[float, list[float]]:
    """All messages through so many sessions; (seconds, when it complained)."""
    lot = random.Random(7)
    flying: list[tuple[float, float]] = []
    complaints: list[float] = []
    now, done = 0.0, 0
    while done < count:
        while len(flying) < sessions and done + len(flying) < count and pace.wait(now)[0] <= 0:
            pace.take(now, 1)
            heapq.heappush(flying, (now + latency * lot.uniform(0.5, 1.5), now))
        turn = now + pace.wait(now)[0] + 1e-6
        free = len(flying) < sessions and done + len(flying) < count
        now = min([end for end, _ in flying[:1]] + [turn] * free)
        while flying and flying[0][0] <= now:
            _, began = heapq.heappop(flying)
            if upstream.takes(now):
                done += 1
                pace.accepted(now)
            else:
                complaints.append(now)
                pace.complained(now, began, None, "too fast")
    return now, complaints


@pytest.mark.parametrize(
    ("limit", "rate", "burst"),
    [("14/s", 14, 14), ("30 messages/min", 0.5, 30), ("100/min", 100 / 60, 100), ("2000/h", 2000 / 3600, 2000)],
)
def test_a_known_limit_brings_no_complaint_and_takes_no_time(limit: str, rate: float, burst: float) -> None:
    pace = Pace((Rate.parse(limit),))
    count = max(2500, int(3 * burst))
    seconds, complaints = drain(pace, Upstream(rate, burst), count)
    assert complaints == []
    assert seconds < 1.05 * (count - burst) / rate


@pytest.mark.parametrize(("rate", "burst"), [(14, 14), (0.5, 30), (100 / 60, 100), (50, 50), (3, 60)])
def test_an_unknown_limit_is_learnt(rate: float, burst: float) -> None:
    """After the first minute under 1 % of all tries are refused, and hardly any time is lost."""
    count = max(2000, int(rate * 400))
    seconds, complaints = drain(Pace(), Upstream(rate, burst), count)
    late = [when for when in complaints if when > 60]
    assert len(late) <= 0.01 * count
    assert seconds < 1.1 * (count - burst) / rate


def test_one_that_stores_nothing_is_learnt_too() -> None:
    seconds, complaints = drain(Pace(), Upstream(14, 1), 4000)
    assert len([when for when in complaints if when > 60]) <= 40
    assert seconds < 2 * 4000 / 14


def test_what_was_under_way_is_one_complaint() -> None:
    pace = Pace()
    assert pace.complained(10.0, 9.9, None, "x")
    rate = pace.rate
    assert not pace.complained(10.1, 9.95, None, "x")
    assert pace.rate == rate and pace.wait(10.1)[0] == pytest.approx(0.9)


def test_a_time_that_is_told_is_kept() -> None:
    pace = Pace()
    pace.complained(10.0, 9.9, 300.0, "421 wait 5 minutes")
    assert pace.wait(10.0) == Held(300.0, "421 wait 5 minutes")
    assert pace.room(10.0) == 0 and pace.room(310.0) >= 1


def test_a_limit_of_recipients_waits_for_all_of_a_message() -> None:
    pace = Pace((Rate.parse("10/min"),))
    pace.take(0.0, 8)
    assert pace.wait(1.0, 2)[0] == 0
    assert pace.wait(1.0, 3)[0] == pytest.approx(60.0, abs=2)
    assert pace.room(1.0) == 2
    # More than all of it goes when nothing else was spent.
    assert Pace((Rate.parse("10/min"),)).wait(0.0, 50)[0] == 0


def test_a_reload_keeps_what_was_spent() -> None:
    old = Pace((Rate.parse("5/h"), Rate.parse("100/d")))
    old.take(0.0, 4)
    new = Pace((Rate.parse("6/h"), Rate.parse("50 messages/d")))
    new.keep(old)
    assert new.room(1.0) == 2
    old.take(1.0, 1)  # by a session that was at work when it was reloaded
    assert new.room(1.0) == 1


def test_a_reload_keeps_what_was_learnt_and_asks_again_at_once() -> None:
    old = Pace()
    old.complained(0.0, 0.0, 3600.0, "too fast")
    new = Pace()
    new.keep(old)
    assert (new.rate, new.why) == (old.rate, "too fast") and new.wait(1.0)[0] == 3599
    new.ask_again(1.0)
    assert new.wait(1.0)[0] == 0
    assert new.complained(2.0, 1.5, 3600.0, "too fast") and new.wait(2.0)[0] == 3600


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 7)), min_size=1, max_size=120),
    st.sampled_from(["7/s", "9/min", "11 messages/min"]),
)
def test_no_window_ever_exceeds_its_limit(steps: list[tuple[float, int]], text: str) -> None:
    rate = Rate.parse(text)
    pace, now, sent = Pace((rate,)), 0.0, list[tuple[float, int]]()
    for later, recipients in steps:
        now += later
        if pace.wait(now, recipients)[0] <= 0:
            pace.take(now, recipients)
            sent.append((now, recipients if rate.unit == "recipients" else 1))
    for start, _ in sent:
        assert sum(n for when, n in sent if start <= when < start + rate.period) <= rate.count
