"""Warm-up: what a plan allows, what a ramp lets go by day and hour, what it keeps, and when it is held."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.policy.gate import ANY
from relay.policy.held import FREE, Held
from relay.policy.reputation import Rates, wilson
from relay.policy.warmup import DAY, FEW, HOUR, HoldAbove, Ramp, WarmUp

BERLIN = "Europe/Berlin"
START = date(2026, 12, 1)
PLAN = WarmUp(START, first=100, growth=0.2, max_step=5000, until=50_000, timezone=BERLIN)
CAREFUL = replace(PLAN, hold_above=HoldAbove(bounces=0.02, complaints=0.001))
GOOD = Rates(1000, wilson(1, 1000), wilson(0, 1000), wilson(900, 1000))
BAD = Rates(1000, wilson(35, 1000), wilson(0, 1000), wilson(0, 1000))  # 3.5 %, and 2.5 % at least
FAR = Rates(1000, wilson(80, 1000), wilson(0, 1000), wilson(0, 1000))
DOUBTFUL = Rates(40, wilson(1, 40), wilson(0, 40), wilson(0, 40))  # 2.5 %, but it may be less


def at(day: date, hour: float = 0, zone: str = BERLIN) -> float:
    """So many hours after the day began."""
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).timestamp() + hour * HOUR


def on(number: int, hour: float = 12) -> float:
    """On the so-manieth day since the start, which is 0."""
    return at(START + timedelta(number), hour)


def send(ramp: Ramp, now: float, most: int = ANY) -> int:
    count = min(most, ramp.left(now))
    ramp.take(now, count)
    return count


def full(ramp: Ramp, number: int) -> int:
    """All of a day's allowance leaves."""
    return send(ramp, on(number, 23))


def worn(days: int, plan: WarmUp = PLAN) -> Ramp:
    """After so many full days."""
    ramp = Ramp(plan, "mx-2")
    for number in range(days):
        full(ramp, number)
    return ramp


# -- the plan


def test_what_a_plan_allows() -> None:
    found = [PLAN.allowance(level) for level in range(40)]
    assert found[:6] == [100, 120, 144, 173, 207, 249]
    assert found[30:40] == [23738, 28485, 33485, 38485, 43485, 48485, 50_000, None, None, None]


@pytest.mark.parametrize(
    ("plan", "found"),
    [
        (WarmUp(START, table=(50, 0, 500)), [50, 0, 500, None]),
        (WarmUp(START, first=1, growth=0.5, until=3), [1, 2, 2, 3]),
        (WarmUp(START, first=10, growth=1, max_step=5, until=17), [10, 15, 17, None]),
        (WarmUp(START, first=100, until=50), [50, None, None, None]),
        (WarmUp(START, first=7, growth=0.0), [7, 7, 7, 7]),
    ],
)
def test_small_plans(plan: WarmUp, found: list[int | None]) -> None:
    assert [plan.allowance(level) for level in range(4)] == found


def test_a_plan_without_an_end_grows_to_an_end_of_numbers() -> None:
    assert WarmUp(START, first=100, growth=1.0).allowance(10_000) == 10**12


@given(st.integers(1, 1000), st.floats(0, 3), st.integers(0, 500), st.integers(1, 10**6))
def test_a_plan_never_falls_and_takes_no_step_too_great(first: int, growth: float, step: int, until: int) -> None:
    plan = WarmUp(START, first=first, growth=growth, max_step=step, until=until)
    before = plan.allowance(0)
    for level in range(1, 60):
        allowed = plan.allowance(level)
        if before is None or allowed is None:
            assert allowed is None
        else:
            assert before <= allowed <= until
            assert not step or allowed - before <= step + 1
        before = allowed


# -- the day


def test_nothing_leaves_before_the_start() -> None:
    ramp = Ramp(replace(PLAN, overflow="mx-1"), "mx-2")
    assert ramp.left(on(-1)) == 0
    assert ramp.wait(on(-1), 1) == Held(12 * HOUR, "warm-up of mx-2 starts on 2026-12-01", True)
    assert ramp.wait(on(0, 0), 1) == FREE


def test_the_hours_add_up_and_what_is_left_over_may_go_later() -> None:
    ramp = Ramp(PLAN, "mx-2")
    assert ramp.left(on(0, 0)) == 5  # 100 / 24, rounded up
    assert send(ramp, on(0, 0.5)) == 5
    assert ramp.wait(on(0, 0.5), 1) == Held(
        0.5 * HOUR, "warm-up of mx-2: day 1, 5 of 100 recipients today; next at 01:00 CET", False
    )
    assert ramp.left(on(0, 1)) == 4
    assert ramp.left(on(0, 11)) == 45
    assert send(ramp, on(0, 23)) == 95
    assert ramp.wait(on(0, 23), 1).why == ("warm-up of mx-2: day 1, 100 of 100 recipients today; next at 00:00 CET")
    assert ramp.wait(on(0, 23), 1).seconds == HOUR
    assert ramp.wait(on(1, 0), 1) == FREE


def test_without_a_spread_all_of_it_may_leave_at_once() -> None:
    ramp = Ramp(replace(PLAN, spread="none", unit="messages"), "mx-2")
    assert (ramp.left(on(0, 0)), ramp.unit) == (100, "messages")
    send(ramp, on(0, 0))
    assert ramp.wait(on(0, 1), 1).seconds == 23 * HOUR


@pytest.mark.parametrize(("day", "hours"), [(date(2027, 3, 28), 23), (date(2027, 10, 31), 25), (date(2027, 6, 1), 24)])
def test_days_of_other_lengths(day: date, hours: int) -> None:
    plan = WarmUp(day, table=(hours * 10, 1000), timezone=BERLIN)
    ramp = Ramp(plan, "mx-2")
    assert [send(ramp, at(day, hour + 0.99)) for hour in range(hours)] == [10] * hours
    assert ramp.left(at(day, hours - 0.01)) == 0
    assert ramp.wait(at(day, hours - 0.5), 1).seconds == HOUR / 2
    assert send(ramp, at(day, hours)) == 42


@pytest.mark.parametrize("zone", ["America/Sao_Paulo", "Australia/Lord_Howe", "America/Havana", "Asia/Kathmandu"])
def test_odd_midnights(zone: str) -> None:
    start = date(2018, 10, 1)
    ramp, now, seen = (
        Ramp(WarmUp(start, first=48, growth=0, timezone=zone), "mx-2"),
        at(start, 0, zone),
        Counter[date](),
    )
    while now < at(start, 200 * 24, zone):
        seen[datetime.fromtimestamp(now, ZoneInfo(zone)).date()] += send(ramp, now)
        now += HOUR / 2
    assert set(seen.values()) == {48}


def test_more_than_a_day_allows_goes_when_all_of_a_day_is_left() -> None:
    ramp = Ramp(WarmUp(START, first=24, timezone=BERLIN), "mx-2")
    assert ramp.wait(on(0, 0), 500).seconds == 23 * HOUR
    assert ramp.wait(on(0, 23), 500) == FREE
    assert ramp.left(on(0, 23)) == 24  # so it is split


@given(st.integers(1, 400), st.integers(0, 400), st.integers(1, 50), st.floats(0, 23.9))
def test_it_waits_until_the_hour_with_room_and_no_longer(first: int, spent: int, n: int, hour: float) -> None:
    ramp = Ramp(WarmUp(START, first=first, timezone=BERLIN), "mx-2")
    now = on(0, hour)
    ramp.take(now, min(spent, ramp.left(now)))
    wait = ramp.wait(now, n).seconds
    asked = min(n, first)
    assert (wait == 0) is (ramp.left(now) >= asked)
    if wait > 0 and now + wait < on(1, 0):
        assert ramp.left(now + wait - 0.01) < asked <= ramp.left(now + wait)


# -- what is earned


def test_a_day_is_earned_by_half_of_it() -> None:
    ramp = Ramp(PLAN, "mx-2")
    send(ramp, on(0, 23), 49)
    assert "day 1, 0 of 100 " in ramp.told(on(1))
    send(ramp, on(1, 23), 50)
    assert "day 2, 0 of 120 " in ramp.told(on(2))
    assert "day 2, 0 of 120 " in ramp.told(on(30))  # nothing was sent: nothing was earned


def test_days_on_which_nobody_asked_are_not_earned() -> None:
    ramp = worn(3)
    assert "day 4, 0 of 173 " in ramp.told(on(20))


def test_after_the_plan_nothing_is_counted() -> None:
    ramp = worn(2, WarmUp(START, table=(10, 20), timezone=BERLIN))
    ramp.changed()
    assert ramp.wait(on(2), 10_000) == FREE
    assert ramp.over
    assert send(ramp, on(2)) == ANY
    assert ramp.changed() == []
    assert ramp.told(on(2)) == "warm-up of mx-2 has ended"
    assert ramp.judge(on(2), FAR) == ""


def test_what_did_not_leave_comes_back() -> None:
    ramp = Ramp(PLAN, "mx-2")
    ramp.take(on(0, 1), 9)
    ramp.changed()
    ramp.take_back(4, on(0, 1))
    assert (ramp.count, ramp.changed()) == (5, [(on(2, 0), 5)])
    ramp.take_back(9, on(0, 1))
    assert ramp.count == 0
    ramp.take(on(1), 7)
    ramp.take_back(3, on(0, 1))
    assert ramp.count == 7


def test_the_count_of_a_day_that_just_ended_is_made_durable_as_well() -> None:
    ramp = Ramp(PLAN, "mx-2")
    ramp.take(on(0, 23.9), 60)
    ramp.take(on(1, 0.1), 3)
    assert ramp.changed() == [(on(2, 0), 60), (on(3, 0), 3)]
    assert ramp.changed() == []


# -- over a restart


def test_a_restart_after_midnight_knows_what_was_earned() -> None:
    ramp, anew = worn(2), Ramp(PLAN, "mx-2")
    stale = json.loads(json.dumps(worn(1).state()))
    rows = [row for row in ramp.changed() if row[0] > on(2)]
    anew.load(stale, on(2))
    anew.restore(rows[::-1], on(2))
    assert anew.told(on(2)) == ramp.told(on(2))
    assert "day 3, 0 of 144" in anew.told(on(2))


def test_the_rows_alone_hold_the_day() -> None:
    ramp, anew = worn(1), Ramp(PLAN, "mx-2")
    anew.restore(ramp.changed(), on(0, 23.5))
    assert anew.left(on(0, 23.5)) == 0


def test_what_no_state_is() -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Ramp(PLAN, "mx-2").load({"level": "x"}, on(0))


@pytest.mark.parametrize("zone", ["UTC", "America/Los_Angeles", "Asia/Tokyo"])
def test_the_day_counts_on_in_another_time_zone(zone: str) -> None:
    ramp, anew = worn(1), Ramp(replace(PLAN, timezone=zone), "mx-2")
    anew.load(ramp.state(), on(0, 23.5))
    anew.restore(ramp.changed(), on(0, 23.5))
    assert anew.count == (0 if zone == "Asia/Tokyo" else 100)  # there it is another day by now


# -- over a reload


@pytest.mark.parametrize(
    ("changed", "level"),
    [
        ({}, 5),
        ({"until": 100_000}, 5),
        ({"growth": 0.5}, 2),  # 225 is nearest to 249
        ({"growth": 0.1}, 10),  # 259
        ({"first": 1000}, 0),
        ({"table": (10, 20, 240, 1000)}, 2),
        ({"table": (10, 20)}, 1),
    ],
)
def test_a_plan_of_other_numbers_goes_on_at_the_nearest(changed: dict[str, object], level: int) -> None:
    old = worn(5)
    send(old, on(5), 30)
    plan = replace(PLAN, **changed)  # type: ignore[arg-type]
    new, restarted = Ramp(plan, "mx-2"), Ramp(plan, "mx-2")
    restarted.load(json.loads(json.dumps(old.state())), on(5))
    new.keep(old)
    assert (new.level, new.count, restarted.level, restarted.count) == (level, 30, level, 30)
    assert new.left(on(5, 23)) == max(0, (plan.allowance(level) or 0) - 30)


def test_who_is_at_work_by_the_old_one_counts_in_the_new() -> None:
    old, new, newest = worn(1), Ramp(PLAN, "mx-2"), Ramp(PLAN, "mx-2")
    send(old, on(1), 10)
    new.keep(old)
    newest.keep(new)
    old.take(on(1), 3)
    new.take_back(2, on(1))
    assert (newest.count, newest.changed()[-1][1]) == (11, 11)
    assert old.left(on(1)) == newest.left(on(1))
    assert old.wait(on(1), 500) == newest.wait(on(1), 500)


# -- over random days


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 30)),
        st.tuples(st.just("pass"), st.floats(0.01, 14)),
        st.tuples(st.just("back"), st.integers(1, 9)),
        st.tuples(st.just("save"), st.just(0)),
        st.tuples(st.just("crash"), st.just(0)),
        st.tuples(st.just("reload"), st.sampled_from([0.2, 0.5, 0.05])),
    ),
    max_size=120,
)


class Relay:
    """A ramp in a process that crashes, with what it made durable, and a ledger of what truly left."""

    def __init__(self, plan: WarmUp) -> None:
        self.now, self.ramp = at(plan.start, 3), Ramp(plan, "mx-2")
        self.rows: dict[float, int] = {}
        self.state = self.ramp.state()
        self.left: Counter[date] = Counter()
        self.sent: list[tuple[float, int]] = []
        self.most: dict[date, int] = {}

    @property
    def day(self) -> date:
        return datetime.fromtimestamp(self.now, ZoneInfo(BERLIN)).date()

    def do(self, what: str, amount: float) -> None:
        match what:
            case "pass":
                self.now += amount * HOUR
            case "send" if not self.ramp.wait(self.now, int(amount)).seconds:
                count = min(int(amount), self.ramp.left(self.now))
                self.ramp.take(self.now, count)
                self.left[self.day] += count
                self.sent.append((self.now, count))
            case "back" if self.sent and self.sent[-1][1] >= amount:
                when, count = self.sent.pop()
                if datetime.fromtimestamp(when, ZoneInfo(BERLIN)).date() == self.day:
                    self.left[self.day] -= int(amount)
                    self.sent.append((when, count - int(amount)))
                self.ramp.take_back(int(amount), when)
            case "save":
                self.state = json.loads(json.dumps(self.ramp.state()))
            case "crash":
                self.ramp = Ramp(self.ramp.plan, "mx-2")
                self.ramp.load(self.state, self.now)
                self.ramp.restore([row for row in self.rows.items() if row[0] > self.now], self.now)
            case "reload":
                ramp = Ramp(replace(self.ramp.plan, growth=amount), "mx-2")
                ramp.keep(self.ramp)
                self.ramp = ramp
        self.rows |= dict(self.ramp.changed())

    def check(self) -> None:
        self.ramp.left(self.now)
        assert self.ramp.count == self.left[self.day]  # nothing lost, nothing made up
        allowed = self.ramp.plan.allowance(self.ramp.level)
        assert allowed is not None
        self.most[self.day] = max(allowed, self.most.get(self.day, 0))
        assert self.left[self.day] <= self.most[self.day]


@settings(max_examples=300, deadline=None)
@given(STEPS, st.sampled_from([date(2027, 3, 26), date(2027, 10, 29), date(2026, 12, 1)]))
def test_no_day_has_more_than_its_allowance(steps: list[tuple[str, float]], start: date) -> None:
    relay = Relay(WarmUp(start, first=40, growth=0.2, timezone=BERLIN))
    for what, amount in steps:
        relay.do(what, amount)
        relay.check()
    used = [sum(n for day, n in relay.left.items() if day <= last) for last in sorted(relay.left)]
    assert used == sorted(used)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=20))
def test_the_level_is_the_number_of_days_that_were_used(days: list[int]) -> None:
    ramp, level = Ramp(WarmUp(START, first=40, growth=0.1, timezone=BERLIN), "mx-2"), 0
    for number, count in enumerate(days):
        used, allowed = send(ramp, on(number, 23), count), ramp.plan.allowance(level)
        assert allowed is not None
        assert ramp.level == level
        assert used <= allowed
        level += 2 * used >= allowed
    ramp.left(on(len(days)))
    assert ramp.level == level


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 20), st.integers(0, 50)), max_size=60))
def test_a_clock_that_runs_backwards_gives_no_day_twice(steps: list[tuple[float, int]]) -> None:
    ramp, now, furthest = Ramp(WarmUp(START, first=24, growth=0.0, timezone=BERLIN), "mx-2"), on(3), on(3)
    total, first = 0, on(3)
    for step, count in steps:
        now = max(now + step * HOUR, furthest - 24 * HOUR, first)
        furthest = max(now, furthest)
        total += send(ramp, now, count)
        days = (datetime.fromtimestamp(furthest, ZoneInfo(BERLIN)).date() - START).days - 2
        assert total <= 24 * days


def test_a_clock_that_was_years_ahead_stops_nothing() -> None:
    ramp = worn(3, CAREFUL)
    ramp.left(on(3))
    assert ramp.judge(on(4000), FAR).startswith("halved")
    assert ramp.left(on(3, 23)) == 86
    assert ramp.judge(on(3, 23.5), FAR) == ""
    assert ramp.judge(on(5), FAR).startswith("halved: 43 ")
    assert ramp.judge(on(7), GOOD).startswith("resumed")


# -- held


def test_held_above_a_threshold_and_resumed_after_a_whole_day() -> None:
    ramp = worn(3, CAREFUL)
    assert ramp.judge(on(3, 10), DOUBTFUL) == ""
    assert ramp.judge(on(3, 11), BAD) == "held: at 173 recipients a day; bounces 3.50% (at least 2.53%), above 2.00%"
    assert ramp.judge(on(3, 12), BAD) == ""
    assert full(ramp, 3) == 173
    assert ramp.judge(on(4, 10), GOOD) == ""
    assert full(ramp, 4) == 173  # not earned while it was held
    assert ramp.wait(on(4, 23), 1).why == (
        "warm-up of mx-2: day 4, 173 of 173 recipients today, held: bounces 3.50% (at least 2.53%), above 2.00%; "
        "next at 00:00 CET"
    )
    assert ramp.judge(on(5, 0.1), GOOD) == "resumed: 173 recipients a day, after a day below its thresholds"
    assert (ramp.held, full(ramp, 5), full(ramp, 6)) == ("", 173, 207)


def test_a_rate_in_doubt_holds_nothing_and_ends_no_hold() -> None:
    ramp = worn(3, CAREFUL)
    ramp.judge(on(3), BAD)
    for number in range(4, 8):
        assert ramp.judge(on(number), DOUBTFUL) == ""
        assert ramp.held
    assert ramp.judge(on(8), GOOD) == ""
    assert ramp.judge(on(9), GOOD).startswith("resumed")


def test_halved_once_in_a_day_and_grown_again_from_there() -> None:
    ramp = worn(10, CAREFUL)
    assert ramp.left(on(10, 23)) == 619
    send(ramp, on(10, 12), 320)
    assert ramp.judge(on(10, 20), FAR) == "halved: 309 recipients a day; bounces 8.00% (at least 6.47%), above 2.00%"
    assert ramp.left(on(10, 23)) == 0
    assert ramp.judge(on(11, 10), FAR) == ""  # it is the same mail
    assert ramp.left(on(11, 23)) == 309
    assert "day 11, 0 of 309 recipients today, halved: bounces" in ramp.told(on(11, 23))
    assert ramp.judge(on(11, 20), FAR).startswith("halved: 154 ")
    anew = Ramp(CAREFUL, "mx-2")
    anew.load(json.loads(json.dumps(ramp.state())), on(12))
    assert anew.judge(on(12), GOOD) == ""
    assert anew.left(on(12, 23)) == 154
    assert anew.judge(on(13), GOOD) == "resumed: 144 recipients a day, after a day below its thresholds"
    assert (full(anew, 13), full(anew, 14)) == (144, 173)


def test_the_worst_of_several_counts() -> None:
    ramp = worn(3, CAREFUL)
    both = Rates(10_000, wilson(250, 10_000), wilson(90, 10_000), wilson(0, 10_000))
    assert ramp.judge(on(3), both).startswith("halved: 86 recipients a day; complaints 0.90%")


def test_one_a_day_is_not_halved() -> None:
    ramp = Ramp(replace(CAREFUL, first=1), "mx-2")
    assert ramp.judge(on(0), FAR).startswith("held: at 1 recipients")
    assert ramp.left(on(0)) == 1


def test_without_thresholds_nothing_is_held_and_taking_them_away_frees() -> None:
    assert worn(3).judge(on(3), FAR) == ""
    old, new = worn(3, CAREFUL), Ramp(PLAN, "mx-2")
    old.judge(on(3), BAD)
    new.keep(old)
    assert new.held == ""


def test_nothing_is_judged_before_the_start() -> None:
    assert Ramp(CAREFUL, "mx-2").judge(on(-1), FAR) == ""


def test_a_halving_is_a_day_apart_even_over_midnight() -> None:
    ramp = worn(5, CAREFUL)
    assert ramp.judge(on(5, 23.9), FAR).startswith("halved")
    assert ramp.judge(on(6, 0.1), FAR) == ""
    assert ramp.judge(on(5, 23.9) + DAY, FAR).startswith("halved")


def test_one_bounce_among_the_first_holds_nothing() -> None:
    ramp = worn(3, CAREFUL)
    for tried in range(1, FEW):
        assert ramp.judge(on(3, 10), Rates(tried, wilson(1, tried), wilson(0, tried), wilson(0, tried))) == "", tried
    assert ramp.judge(on(3), Rates(FEW, wilson(10, FEW), wilson(0, FEW), wilson(0, FEW))).startswith("halved")
