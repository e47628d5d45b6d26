"""Rates under anything: random limits, times, zones, clocks that go back, restarts and reloads, beside a naive exact count."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.policy.rate import PARTS, PERIODS, Rate, Spent

NOW = 1_800_000_000.0
ZONES = ("UTC", "Europe/Berlin", "America/Havana", "Asia/Kathmandu", "Australia/Lord_Howe", "America/Santiago")
CHANGES = ("2026-03-29T00:00", "2026-10-25T00:00", "2026-04-05T00:00", "2026-11-01T00:00", "2026-03-08T00:00")
CLOCK = st.sampled_from(CHANGES).map(lambda text: datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def sums_fit(found: Sequence[tuple[float, int]], rate: Rate) -> None:
    """No half-open span as long as the period holds more than the count; by the exact times."""
    times, begin, held = [when for when, _ in found], 0, 0
    for i, (when, n) in enumerate(found):
        held += n
        while times[begin] + rate.period <= when:
            held -= found[begin][1]
            begin += 1
        assert held <= rate.count or begin == i, (found[begin : i + 1], rate)


def by_clock(found: Sequence[tuple[float, int]], rate: Rate) -> None:
    """Nor does a second, minute, hour or day of the clock; told apart by what a clock there shows."""
    shown: dict[object, int] = {}
    for when, n in found:
        local = datetime.fromtimestamp(when, ZoneInfo(rate.timezone))
        if rate.period == PERIODS["d"]:
            period: object = local.date()
        else:
            # What comes twice at the end of summer time are two hours.
            parts = local.timetuple()[: {1.0: 6, 60.0: 5, 3600.0: 4}[rate.period]]
            period = (*parts, local.utcoffset() if rate.timezone != "Australia/Lord_Howe" else None)
        shown[period] = shown.get(period, 0) + n
    # There half an hour comes twice, and is an hour and a half that shows one number.
    most = rate.count * (2 if rate.timezone == "Australia/Lord_Howe" and rate.period == 3600.0 else 1)
    assert max(shown.values(), default=0) <= most, (rate, shown)


RATES = st.builds(
    lambda count, period, burst: Rate(count, PERIODS[period], "recipients", f"{count}/{period}", burst=burst),
    st.integers(1, 40),
    st.sampled_from(sorted(PERIODS)),
    st.integers(0, 10),
)
STEPS = st.lists(
    st.tuples(st.one_of(st.floats(0, 1.5), st.floats(0, 0.05), st.just(0.0)), st.integers(1, 6), st.booleans()),
    max_size=120,
)  # pause in periods, how much, whether exactly when it is told to


@settings(max_examples=150, deadline=None)
@given(RATES, STEPS, CLOCK, st.floats(-7200, 90000), st.one_of(st.none(), st.sampled_from(ZONES)))
def test_no_window_exceeds_any_limit(
    rate: Rate, steps: list[tuple[float, int, bool]], start: float, offset: float, zone: str | None
) -> None:
    if zone is not None:
        rate = replace(rate, calendar=True, timezone=zone)
    now, spent, found = start + offset, Spent(), list[tuple[float, int]]()
    for pause, n, told in steps:
        n = min(n, rate.count)
        now += spent.wait(rate, n, now) if told else pause * rate.period
        wait, left = spent.wait(rate, n, now), spent.left(rate, now)
        assert 0 <= wait <= rate.period + 3600 * (zone is not None)
        assert (wait <= 1e-4) >= (n <= left), (wait, left)  # as much as is left may go
        if wait == 0:
            assert left >= n or rate.at_once < rate.count
            spent.add(rate, n, now)
            found.append((now, n))
    sums_fit(found, rate) if zone is None else by_clock(found, rate)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.lists(st.floats(0, 0.3), min_size=1, max_size=150))
def test_from_rest_the_burst_goes_at_once_and_no_more(count: int, burst: int, pauses: list[float]) -> None:
    """In no span of any length goes more than the burst, what was late, and what the span is long for."""
    rate, now, spent = Rate(count, 1.0, "messages", "x", burst=burst), NOW, Spent()
    once = rate.at_once
    for _ in range(once):
        assert spent.wait(rate, 1, now) == 0
        spent.add(rate, 1, now)
    assert spent.wait(rate, 1, now) > 0
    sent = [now] * once
    for pause in pauses:
        now += pause
        while spent.wait(rate, 1, now) == 0:
            spent.add(rate, 1, now)
            sent.append(now)
    if once < count:
        late = min(max(rate.interval, 0.25), once * rate.interval)
        for i, first in enumerate(sent):
            for j in range(i, len(sent)):
                assert j - i + 1 <= once + (sent[j] - first + late) / rate.interval + 1 + 1e-3


def test_by_the_second_is_evenly_spaced() -> None:
    for text, once in (
        ("14/s", 1), ("14 messages/s", 1), ("100/s", 12), ("1/s", 1),
        ("100/min", 100), ("14 connections/s", 14), ("1MB/s", 1_000_000),
    ):  # fmt: skip
        assert Rate.parse(text).at_once == once, text
    assert replace(Rate.parse("14/s"), burst=5).at_once == 5
    assert replace(Rate.parse("14/s"), burst=50).at_once == 14
    assert replace(Rate.parse("14/s"), when_full="reject").at_once == 14  # nobody waits for his turn at the door
    assert replace(Rate.parse("100/min"), burst=1).at_once == 1
    rate, spent, now = Rate.parse("14/s"), Spent(), NOW
    for _ in range(100):
        assert spent.wait(rate, 1, now) == 0
        spent.add(rate, 1, now)
        wait = spent.wait(rate, 1, now)
        assert wait == pytest.approx(1 / 14, abs=1e-6)
        now += wait + 1e-6


def test_a_message_to_many_goes_from_rest_and_who_follows_waits() -> None:
    rate, spent = Rate.parse("14/s"), Spent()
    assert (spent.wait(rate, 14, NOW), spent.left(rate, NOW)) == (0, 14)
    spent.add(rate, 7, NOW)
    assert spent.left(rate, NOW + 0.4) == 0
    assert spent.wait(rate, 1, NOW) == pytest.approx(0.5, abs=1e-6) == spent.wait(rate, 7, NOW)
    assert spent.wait(rate, 8, NOW) == 1.0  # the window


def test_what_may_be_claimed_ahead() -> None:
    rate, spent = Rate.parse("14/s"), Spent()
    assert spent.ready(rate, NOW, 0.0) == 1 and spent.ready(rate, NOW, 0.25) == 4
    spent.add(rate, 1, NOW)
    assert spent.ready(rate, NOW, 0.0) == 0 and spent.ready(rate, NOW, 0.25) == 3
    assert spent.ready(rate, NOW, 100.0) == 13  # the window


# -- throughput


@pytest.mark.parametrize(
    ("text", "burst", "periods"),
    [("14/s", 0, 60), ("14/s", 14, 60), ("100/s", 0, 10), ("100/min", 0, 20), ("100/min", 1, 20), ("2000/d", 0, 5)]
)  # fmt: skip
@pytest.mark.parametrize("late", ["some ms", "20 ms", "all that may go at each turn"])
def test_who_comes_late_each_time_reaches_the_limit(text: str, burst: int, periods: int, late: str) -> None:
    rate, spent, lot = replace(Rate.parse(text), burst=burst), Spent(), random.Random(8)
    now, sent, end = NOW, list[tuple[float, int]](), NOW + periods * rate.period
    while now < end:
        wait = spent.wait(rate, 1, now)
        if wait == 0:
            spent.add(rate, 1, now)
            sent.append((now, 1))
            if late.startswith("all") or rate.interval < 0.02:
                continue  # a loop that is late sends all that it may
        now += wait + (0.02 if late == "20 ms" else lot.uniform(0.001, 0.02))
    first = rate.count if rate.at_once == rate.count else rate.at_once
    assert len(sent) >= 0.97 * (rate.count * (end - NOW) / rate.period), len(sent)
    assert len(sent) <= rate.count * periods + first
    sums_fit(sent, rate)


# -- nothing is lost, and nothing made up


class Ledger:
    """What a spool would keep, and the exact count: each spend with its time."""

    def __init__(self) -> None:
        self.rows: dict[float, int] = {}
        self.every: list[list[float]] = []  # [time, count]
        self.gone, self.exact = 0, 0  # how many of them are a period old, and what the others sum up to

    def write(self, spent: Spent) -> None:
        self.rows |= dict(spent.changed())

    def add(self, now: float, count: int) -> None:
        self.every.append([now, count])
        self.exact += count

    def back(self, place: int) -> tuple[float, int]:
        when, count = self.every[place]
        if place >= self.gone:
            self.exact -= int(count)
        self.every[place][1] = 0
        return when, int(count)

    def held(self, now: float, period: float) -> int:
        while self.gone < len(self.every) and self.every[self.gone][0] + period <= now:
            self.exact -= int(self.every[self.gone][1])
            self.gone += 1
        return self.exact

    def late(self, now: float, period: float) -> int:
        """With what is forgotten as late as may be."""
        place, sum_ = self.gone - 1, 0
        while place >= 0 and self.every[place][0] + period + period / PARTS > now:
            sum_ += int(self.every[place][1])
            place -= 1
        return self.exact + sum_


@pytest.mark.parametrize(("text", "burst"), [("20/min", 0), ("50/s", 4), ("300/h", 0)])
def test_over_a_million_steps_no_token_is_lost_or_made_up(text: str, burst: int) -> None:
    """With restarts (what was written comes back), reloads (other numbers) and refunds: the count is that of the exact model.

    Nothing is forgotten sooner, and nothing later than the part of a period that the module promises.
    """
    rate, lot = replace(Rate.parse(text), burst=burst), random.Random(text)
    draw, spent, ledger, now = lot.random, Spent(), Ledger(), NOW
    mean, period, taken = rate.interval * 1.2, rate.period, 0
    for step in range(334_000):
        now += draw() * mean
        count = 1 if draw() < 0.8 else int(draw() * 4) + 1
        wait, exact = spent.wait(rate, count, now), ledger.held(now, period)
        assert spent.total >= exact, "made up"
        if spent.total != exact:
            assert spent.total <= ledger.late(now, period), "lost"
        if wait == 0:
            assert exact + count <= rate.count
            spent.add(rate, count, now)
            ledger.add(now, count)
            taken += 1
        elif exact + count <= rate.count and not burst:
            assert wait <= period / PARTS * 1.000_001, "it waits for nothing"
        if step % 7 == 0 and len(ledger.every) > 3 and draw() < 0.5:
            spent.take_back(rate, *reversed(ledger.back(len(ledger.every) - 1 - int(draw() * 3))))
        if step % 13 == 0:
            ledger.write(spent)
        if step % 1009 == 0:
            ledger.write(spent)
            ledger.rows = {until: n for until, n in ledger.rows.items() if until > now and n}
            spent = Spent.restored(rate, list(ledger.rows.items()), now)
        if step % 2003 == 0:
            rate = replace(rate, count=lot.choice((rate.count, 10, 33, 60, 300)), burst=lot.choice((0, burst)))
    assert taken > 30_000


@settings(max_examples=100, deadline=None)
@given(RATES, STEPS, st.integers(0, 119), st.integers(1, 40), st.one_of(st.none(), st.sampled_from(ZONES)), CLOCK)
def test_a_restart_is_never_more_generous(
    rate: Rate, steps: list[tuple[float, int, bool]], at: int, other: int, zone: str | None, start: float
) -> None:
    if zone is not None:
        rate = replace(rate, calendar=True, timezone=zone, burst=rate.count)
    now, spent, rows = start, Spent(), dict[float, int]()
    for i, (pause, n, told) in enumerate(steps):
        n = min(n, rate.count)
        now += spent.wait(rate, n, now) if told else pause * rate.period
        if spent.wait(rate, n, now) == 0:
            spent.add(rate, n, now)
        rows |= dict(spent.changed())
        if i == at:
            break
    for one in (rate, replace(rate, count=other, burst=other)):  # other numbers: the log
        back = Spent.restored(one, list(rows.items()), now)
        for n in range(1, one.count + 1):
            was, wait = spent.wait(one, n, now), back.wait(one, n, now)
            assert wait >= was - 1e-3
            # Later by the step of a part, and by what is to be made up for the burst.
            slack = rate.period / PARTS + (one.at_once + 1) * one.interval * (one.at_once < one.count)
            assert wait <= was + slack + 1e-3 or n > one.count - spent.total


def test_rows_of_one_part_have_one_key_and_unchanged_ones_are_not_told() -> None:
    rate, spent = Rate.parse("100/min"), Spent()
    spent.add(rate, 1, NOW)
    (first,) = spent.changed()
    spent.add(rate, 2, NOW + 0.1)
    assert spent.changed() == [(first[0], 3)] and spent.changed() == []
    spent.add(rate, 1, NOW + 1)
    assert [n for _, n in spent.changed()] == [1]
    spent.take_back(rate, 2, NOW + 0.1)
    assert spent.changed() == [(first[0], 1)]
    again = Spent.restored(rate, [first], NOW + 0.2)
    again.add(rate, 1, NOW + 0.3)
    assert again.changed() == [(first[0], 2)]
    spent.wait(rate, 1, NOW + 1000)
    assert spent.changed() == [] and spent.empty(NOW + 1000)


def test_a_refund_of_what_is_forgotten_takes_nothing_from_what_came_since() -> None:
    rate, spent = Rate.parse("5/min"), Spent()
    spent.add(rate, 1, NOW)
    spent.add(rate, 5, NOW + 60)
    spent.take_back(rate, 1, NOW)
    assert spent.left(rate, NOW + 60) == 0


# -- a clock that goes back


@settings(max_examples=150, deadline=None)
@given(
    RATES,
    st.lists(st.tuples(st.floats(-3, 2), st.integers(1, 6)), max_size=150),
    st.one_of(st.none(), st.sampled_from(ZONES)),
    CLOCK,
)
def test_a_clock_that_goes_back_does_no_harm(
    rate: Rate, steps: list[tuple[float, int]], zone: str | None, start: float
) -> None:
    """It waits for no more than two periods, and by the latest time that was seen no span holds more than the limit."""
    if zone is not None:
        rate = replace(rate, calendar=True, timezone=zone)
    now, spent, found = start, Spent(), deque[tuple[float, int]]()
    longest = rate.period * (1 if zone is None else 25 / 24) + (3600 if zone else 0)
    for by, n in steps:
        now += (by if by > 0 else by / 2) * rate.period
        if now < spent._latest - rate.period:  # what it held counts as spent just now
            found = deque((now, m) for when, m in found if when + rate.period > spent._latest)
        wait = spent.wait(rate, min(n, rate.count), now)
        assert 0 <= wait <= longest + rate.period
        assert spent.left(rate, now) >= 0 and spent.total >= 0
        if wait == 0:
            spent.add(rate, min(n, rate.count), now)
            latest = spent._latest
            found.append((latest, min(n, rate.count)))
            assert latest >= now
            if zone is None:
                held = sum(m for when, m in found if when + rate.period > latest)
                assert held <= rate.count
        back = Spent.restored(rate, spent.changed(), now)
        assert back.wait(rate, 1, now) <= longest + rate.period / PARTS + 1e-3
        spent.changed()


@pytest.mark.parametrize("step", [0.5, 30.0, 59.0, 61.0, 3600.0, 1e9])
def test_what_a_step_back_costs_is_no_more_than_the_step(step: float) -> None:
    rate, spent = Rate.parse("5/min"), Spent()
    spent.add(rate, 5, NOW)
    now = NOW + 10 - step
    wait = spent.wait(rate, 1, now)
    assert 50 <= wait <= min(50 + step, 120.0)
    assert spent.wait(rate, 5, now + wait + 1e-6) == 0


def test_after_a_restart_with_the_clock_behind_it_waits_a_period_and_no_more() -> None:
    rate, spent = Rate.parse("5/min"), Spent()
    spent.add(rate, 3, NOW)
    spent.add(rate, 1, NOW + 20)
    rows = dict(spent.changed())
    back = Spent.restored(rate, list(rows.items()), NOW - 1e6)
    assert back.left(rate, NOW - 1e6) == 1
    assert back.wait(rate, 5, NOW - 1e6) == 60.0
    rows |= dict(back.changed())
    live = sorted((until, n) for until, n in rows.items() if n)
    assert [n for _, n in live] == [4] and live[0][0] <= NOW - 1e6 + 61  # the others are written over


def test_a_day_by_the_clock_after_a_step_back_ends_with_the_day() -> None:
    rate, spent = replace(Rate.parse("5/d"), calendar=True, timezone="Europe/Berlin"), Spent()
    noon = datetime(2026, 10, 24, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    spent.add(rate, 5, noon.timestamp())
    before = (noon - timedelta(days=3)).timestamp()
    assert spent.wait(rate, 1, before) == 12 * 3600
    assert spent.wait(rate, 1, before + 12 * 3600) == 0
