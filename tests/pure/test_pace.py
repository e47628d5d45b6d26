"""The pace of an account: known limits are never exceeded, an unknown one is learnt, and nothing is wasted."""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.policy.gate import ANY
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


def of(rows: Mapping[str, list[tuple[float, int]]]) -> Callable[[str], list[tuple[float, int]]]:
    """As the scheduler's ledger has them."""
    return lambda key: rows.get(key, [])


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


def test_of_two_that_bind_the_longest_says_whether_the_next_egress_takes_over() -> None:
    passing = replace(Rate.parse("2/h"), when_full="next")
    pace = Pace((passing, Rate.parse("2 messages/min"), Rate.parse("1 connections/min")))
    pace.take(0.0, 1)
    pace.take(0.0, 1)
    assert pace.wait(1.0) == (3599.0, "its limit of 2/h is used up", True)
    assert Pace((), also=(pace,)).wait(1.0).passes
    again = Pace((replace(passing, when_full="defer"), replace(Rate.parse("2 messages/min"), when_full="next")))
    again.keep(pace)
    assert again.wait(1.0) == (3599.0, "its limit of 2/h is used up", False)
    pace.dialled(0.0)
    assert pace.dial_wait(1.0) == (59.0, "its limit of 1 connections/min is used up", False) and pace.dials(1.0) == 0


def test_two_limits_that_differ_in_numbers_alone_count_apart() -> None:
    """One that passes on, and a harder one that holds: what is sent counts once in each, before and after a reload."""
    soft, hard = replace(Rate.parse("3/h"), when_full="next"), Rate.parse("5/h")
    pace = Pace((soft, hard), prefix="a")
    rows: dict[str, list[tuple[float, int]]] = {}
    for _ in range(3):
        pace.take(1.0, 1)
    for key, until, count in pace.rows():
        rows.setdefault(key, []).append((until, count))
    assert len(rows) == 2 and pace.rows() == []
    assert pace.wait(2.0).passes
    new = Pace((soft, hard, Rate.parse("4/h")))
    new.keep(pace)
    for _ in range(2):
        new.take(3.0, 1)
    only = Pace((hard,))
    only.keep(new)
    assert new.room(4.0) == 0 and only.room(4.0) == 0
    back = Pace((hard, soft), prefix="a")
    back.restore(of(rows), 2.0)
    assert back.room(2.0) == 0 and back.wait(2.0).passes
    alone = Pace((hard,), prefix="a")
    alone.restore(of(rows), 2.0)
    assert alone.room(2.0) == 2


def test_bytes() -> None:
    pace = Pace((Rate.parse("10kB/min"),))
    pace.take(0.0, 3, 6000)
    assert pace.room(1.0) == pace.recipients(1.0) == ANY
    assert pace.wait(1.0, 1, 4000).seconds == 0
    assert pace.wait(1.0, 1, 4001) == (59.0, "its limit of 10kB/min is used up", False)
    assert pace.wait(1.0, 1, 50_000).seconds == 59.0
    assert pace.wait(60.0, 1, 50_000).seconds == 0  # nothing else is counted
    pace.take(60.0, 1, 50_000)
    assert pace.room(61.0) == pace.recipients(61.0) == 0 and pace.wait(61.0).seconds == 59.0
    pace.untake(60.0, 1, 50_000)
    assert pace.wait(61.0, 1, 10_000).seconds == 0


def test_what_did_not_leave_is_given_back_everywhere() -> None:
    entry = Pace((Rate.parse("5/h"),))
    pace = Pace((Rate.parse("14/s"), Rate.parse("3 messages/h")), (entry,))
    for when in (1.0, 2.0, 3.0):
        pace.take(when, 1)
    assert pace.room(4.0) == 0
    pace.untake(3.0, 1)
    assert pace.room(4.0) == 1 and entry.room(4.0) == 3 and pace.wait(4.0).seconds == 0
    pace.complained(5.0, 4.9, 0.0, "x")
    before = pace._next
    pace.take(6.0, 1)
    pace.untake(6.0, 1)
    assert pace._next == pytest.approx(max(before, 6.0))


class Stair:
    """A ramp: so many recipients in all."""

    unit: Literal["messages", "recipients"] = "recipients"

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0

    def left(self, now: float) -> int:
        return self.most - self.taken

    def wait(self, now: float, n: int) -> Held:
        return Held(500.0, "it is warming up", True) if n > self.left(now) else Held(0.0, "")

    def take(self, now: float, n: int) -> None:
        self.taken += n

    def take_back(self, n: int, when: float) -> None:
        self.taken -= n


def test_a_ramp_binds_beside_the_limits() -> None:
    pace = Pace((Rate.parse("100/h"),), ramp=Stair(5))
    assert not pace.free and not Pace(ramp=Stair(1)).free and Pace().free
    assert pace.room(0.0) == pace.recipients(0.0) == 5
    pace.take(0.0, 4)
    assert pace.room(0.0) == 1 and pace.wait(0.0, 1).seconds == 0
    assert pace.wait(0.0, 2) == (500.0, "it is warming up", True)
    assert Pace(also=(pace,)).wait(0.0, 2).passes
    pace.take(0.0, 1)
    assert pace.room(0.0) == pace.recipients(0.0) == 0
    pace.untake(0.0, 1)
    assert pace.room(0.0) == 1


def test_what_was_spent_survives_a_restart() -> None:
    limits, rows = (Rate.parse("6/h"), Rate.parse("2 connections/min")), dict[tuple[str, float], int]()
    pace = Pace(limits, prefix="account main")
    for i in range(4):
        pace.take(i * 100.0, 1)
        rows |= {(key, until): count for key, until, count in pace.rows()}
    pace.dialled(310.0)
    rows |= {(key, until): count for key, until, count in pace.rows()}
    kept: dict[str, list[tuple[float, int]]] = {}
    for (key, until), count in rows.items():
        kept.setdefault(key, []).append((until, count))
    back = Pace((Rate.parse("7/h"), Rate.parse("2 connections/min")), prefix="account main")
    back.restore(of(kept), 320.0)
    assert back.room(320.0) == 3 and back.dials(320.0) == 1
    other = Pace((Rate.parse("7/h"),), prefix="account second")
    other.restore(of(kept), 320.0)
    assert other.room(320.0) == 7


def test_what_was_learnt_survives_a_restart() -> None:
    assert Pace().state() == {}
    pace = Pace()
    pace.complained(10.0, 9.9, 300.0, "421 wait")
    for i in range(20):
        pace.accepted(400.0 + i)
    state = json.loads(json.dumps(pace.state()))
    back, late = Pace(), Pace()
    back.load(state, 450.0)
    assert back.state() == state and back.rate == pace.rate and back.wait(200.0) == pace.wait(200.0)
    late.load({"rate": None, "until": 310.0, "why": "x"}, 311.0)
    assert late.free and late.why == ""
    late.load({}, 1.0)
    assert late.free


def test_a_speed_by_the_second_is_even() -> None:
    """And what may leave within a quarter of a second is claimed at once: a claim costs a transaction."""
    pace, now, sent = Pace((Rate.parse("14/s"),)), 0.0, list[float]()
    assert pace.room(now) == 4
    while len(sent) < 50:
        held = pace.wait(now)
        if held.seconds <= 0:
            pace.take(now, 1)
            sent.append(now)
        now += held.seconds
    assert all(b - a == pytest.approx(1 / 14, abs=1e-4) for a, b in pairwise(sent))


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
