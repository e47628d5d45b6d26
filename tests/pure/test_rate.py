"""Rates: as they are written, and never more than they say, exact at every edge."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.listener.limits import Allowance, Allowances, Full
from relay.policy.rate import Rate, Spent, known_timezone

NOW = 1_800_000_000.0


def calendar(text: str, zone: str = "UTC") -> Rate:
    found = Rate.parse(text)
    return replace(found, calendar=True, timezone=zone, burst=found.count)


@pytest.mark.parametrize(
    ("text", "count", "period", "unit"),
    [
        ("14/s", 14, 1, "recipients"),
        ("100/min", 100, 60, "recipients"),
        ("30 messages/min", 30, 60, "messages"),
        ("5000 recipients/h", 5000, 3600, "recipients"),
        ("1/d", 1, 86400, "recipients"),
        ("10 connections/min", 10, 60, "connections"),
        ("500MB/h", 500_000_000, 3600, "bytes"),
        ("5 MiB/min", 5 * 2**20, 60, "bytes"),
        ("1kB/s", 1000, 1, "bytes"),
        ("3GB/d", 3 * 10**9, 86400, "bytes"),
        ("7 bytes/s", 7, 1, "bytes"),
    ],
)
def test_as_written(text: str, count: int, period: float, unit: str) -> None:
    rate = Rate.parse(text)
    assert (rate.count, rate.period, rate.unit, str(rate)) == (count, period, unit, text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "5", "/s", "0/s", "-1/s", "1.5/s", "5/ms", "5/week", "٥/s", "5/s ", "5  messages/s"),
        *("5 bits/s", "5 mb/s", "5MB", "5MBs/s", "5  MB/s", "5TB/s"),
        5,
        None,
    ],
)
def test_what_is_no_rate(text: object) -> None:
    with pytest.raises(ValueError, match="rate"):
        Rate.parse(text)


# -- sliding


def passed(rate: Rate, asked: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Those that had room when they asked."""
    spent, found = Spent(), []
    for now, count in asked:
        if not spent.wait(rate, count, now):
            spent.add(rate, count, now)
            found.append((now, count))
    return found


def most(found: list[tuple[float, int]], period: float) -> int:
    """The most in any span of that length, its end not in it."""
    return max((sum(n for t, n in found if start <= t < start + period) for start, _ in found), default=0)


STEPS = st.lists(st.tuples(st.floats(0, 20, allow_nan=False), st.integers(1, 6)), max_size=60)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.integers(1, 20), st.floats(0, 100))
def test_no_span_ever_holds_more_than_the_rate(steps: list[tuple[float, int]], count: int, offset: float) -> None:
    rate, now, asked = Rate(count, 60.0, "recipients", "x"), NOW + offset, []
    for pause, n in steps:
        now += pause
        asked.append((now, n))
    assert most(passed(rate, asked), 60.0) <= count


@settings(max_examples=300, deadline=None)
@given(STEPS, st.integers(1, 20))
def test_when_it_says_to_wait_that_long_is_enough_and_not_much_too_long(
    steps: list[tuple[float, int]], count: int
) -> None:
    rate, now, spent = Rate(count, 60.0, "recipients", "x"), NOW, Spent()
    for pause, n in steps:
        now += pause
        n = min(n, count)
        if wait := spent.wait(rate, n, now):
            assert 0 < wait <= 60.0
            assert deepcopy(spent).wait(rate, n, now + wait - 0.001) > 0
            assert deepcopy(spent).wait(rate, n, now + wait + 0.000_001) == 0
        else:
            spent.add(rate, n, now)
        assert len(spent.parts) <= 130


def test_the_edge_of_the_period() -> None:
    rate, spent = Rate.parse("2/min"), Spent()
    spent.add(rate, 2, NOW + 0.5)
    assert spent.wait(rate, 1, NOW + 60.499) == pytest.approx(0.001, abs=1e-4)
    assert spent.wait(rate, 1, NOW + 60.5) == 0


def test_more_than_the_whole_rate_never_fits() -> None:
    rate, spent = Rate.parse("5/min"), Spent()
    assert spent.wait(rate, 6, NOW) == 60.0
    assert spent.wait(rate, 5, NOW) == 0


@settings(max_examples=200, deadline=None)
@given(STEPS, st.lists(st.integers(0, 59)), st.integers(1, 20))
def test_what_is_given_back_is_what_was_taken_then(
    steps: list[tuple[float, int]], refused: list[int], count: int
) -> None:
    """A refusal long after the DATA that it belongs to must not shorten the memory of what came since."""
    rate, now, spent = Rate(count, 60.0, "recipients", "x"), NOW, Spent()
    kept: list[tuple[float, int]] = []
    pending: list[tuple[float, int]] = []
    for i, (pause, n) in enumerate(steps):
        now += pause
        if not spent.wait(rate, n, now):
            spent.add(rate, n, now)
            (pending if i in refused else kept).append((now, n))
        if pending and i % 5 == 4:
            when, taken = pending.pop(0)
            spent.take_back(rate, taken, when)
    assert most(kept, 60.0) <= count


def test_given_back_at_once_is_room_at_once() -> None:
    rate, spent = Rate.parse("2/min"), Spent()
    spent.add(rate, 2, NOW)
    spent.take_back(rate, 2, NOW)
    assert spent.wait(rate, 2, NOW) == 0
    spent.take_back(rate, 5, NOW)  # too much changes nothing
    spent.add(rate, 2, NOW)
    assert spent.wait(rate, 1, NOW) > 0


# -- by the calendar


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("rate", "zone", "start", "end"),
    [
        ("5/s", "UTC", "2026-05-01T10:00:00", "2026-05-01T10:00:01"),
        ("5/min", "Asia/Kathmandu", "2026-05-01T10:00:00", "2026-05-01T10:01:00"),
        ("5/h", "UTC", "2026-05-01T10:00:00", "2026-05-01T11:00:00"),
        ("5/h", "Asia/Kathmandu", "2026-05-01T10:00:00", "2026-05-01T11:00:00"),  # +05:45
        ("5/h", "Asia/Kolkata", "2026-05-01T23:00:00", "2026-05-02T00:00:00"),  # +05:30
        ("5/h", "America/St_Johns", "2026-05-01T23:00:00", "2026-05-02T00:00:00"),  # -02:30
        ("5/h", "Europe/Berlin", "2026-03-29T01:00:00", "2026-03-29T03:00:00"),  # the hour from 2 to 3 is none
        ("5/d", "UTC", "2026-05-01T00:00:00", "2026-05-02T00:00:00"),
        ("5/d", "Europe/Berlin", "2026-05-01T00:00:00", "2026-05-02T00:00:00"),
        ("5/d", "Europe/Berlin", "2026-03-29T00:00:00", "2026-03-30T00:00:00"),  # 23 hours
        ("5/d", "Europe/Berlin", "2026-10-25T00:00:00", "2026-10-26T00:00:00"),  # 25 hours
        ("5/d", "Pacific/Kiritimati", "2026-05-01T00:00:00", "2026-05-02T00:00:00"),  # +14
        ("5/d", "Australia/Lord_Howe", "2026-04-05T00:00:00", "2026-04-06T00:00:00"),  # half an hour
        ("5/d", "America/Havana", "2026-03-07T00:00:00", "2026-03-08T01:00:00"),  # midnight of the 8th is skipped
        ("5/d", "America/Havana", "2026-11-01T00:00:00", "2026-11-02T00:00:00"),  # midnight comes twice
        ("5/d", "America/Santiago", "2026-04-04T00:00:00", "2026-04-05T00:00:00"),  # 23:00 comes twice
    ],
)
def test_a_period_by_the_clock_ends_exactly(rate: str, zone: str, start: str, end: str) -> None:
    wanted, first, last = calendar(rate, zone), at(start, zone), at(end, zone)
    for full_at in (first, (first + last) / 2, last - 0.001):
        spent = Spent()
        spent.add(wanted, 5, full_at)
        assert spent.wait(wanted, 1, last - 0.0005) > 0
        assert full_at + spent.wait(wanted, 1, full_at) == pytest.approx(last, abs=1e-5)
        assert spent.wait(wanted, 5, last) == 0
    before = Spent()
    before.add(wanted, 5, first - 0.001)
    assert before.wait(wanted, 5, first) == 0  # what was spent before belongs to the one before


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1_767_225_600, 1_830_297_600),
    st.sampled_from(
        ["UTC", "Europe/Berlin", "America/Havana", "Asia/Kathmandu", "Australia/Lord_Howe", "Africa/Cairo"]
    ),
    st.sampled_from(["5/min", "5/h", "5/d"]),
)
def test_every_moment_has_an_end_ahead_of_it_and_no_later_than_a_period(now: int, zone: str, text: str) -> None:
    rate, spent = calendar(text, zone), Spent()
    spent.add(rate, 5, float(now))
    wait = spent.wait(rate, 1, float(now))
    assert 0 < wait <= rate.period + (3600 if rate.period == 86400 else 0)
    end = datetime.fromtimestamp(now + wait, UTC).astimezone(ZoneInfo(zone))
    assert (end.second, end.microsecond) == (0, 0)
    if text != "5/min":
        assert end.minute == 0 or zone in ("Australia/Lord_Howe",)


def test_time_zones() -> None:
    assert known_timezone("Europe/Berlin") and known_timezone("UTC")
    for name in ("Nowhere/City", "", "../etc/passwd", "/etc/localtime", "Europe", "a\0b"):
        assert not known_timezone(name), name


# -- several at once


def test_all_or_nothing_over_several() -> None:
    counts = Allowances()
    both = (Allowance("user a", Rate.parse("5/min")), Allowance("user a", Rate.parse("2 messages/h")))
    counts.take(both, 3, NOW)
    with pytest.raises(Full, match=r"user a has sent its 5/min"):
        counts.take(both, 3, NOW)
    counts.take(both, 2, NOW)  # nothing of the refused one was spent
    with pytest.raises(Full, match=r"2 messages/h; try again in 35\d\d s"):
        counts.take(both, 1, NOW + 100)
    counts.give_back(both, 2, NOW)
    counts.take(both, 2, NOW + 0.5)
    with pytest.raises(Full):
        counts.take(both, 1, NOW + 0.5)
    counts.take((Allowance("user b", Rate.parse("5/min")),), 5, NOW)  # others have their own


def test_a_rate_of_another_text_counts_apart_and_the_same_goes_on() -> None:
    counts = Allowances()
    counts.take((Allowance("user a", Rate.parse("2/min")),), 2, NOW)
    with pytest.raises(Full):
        counts.check((Allowance("user a", Rate.parse("2/min")),), 1, NOW)
    counts.check((Allowance("user a", Rate.parse("3/min")),), 1, NOW)


def test_forgotten_counters_are_thrown_away() -> None:
    counts = Allowances()
    for i in range(10_050):
        counts.take((Allowance(f"client {i}", Rate.parse("1/s")),), 1, NOW + i)
    assert len(counts._spent) < 100


# -- said later than it was counted


def test_what_is_said_later_is_forgotten_later() -> None:
    rate, spent = Rate.parse("2/min"), Spent()
    spent.add(rate, 2, NOW)
    spent.move(rate, 1, NOW, NOW + 20)
    assert spent.left(rate, NOW + 59) == 0
    assert spent.left(rate, NOW + 61) == 1
    assert spent.left(rate, NOW + 79) == 1
    assert spent.left(rate, NOW + 81) == 2


def test_so_after_a_restart() -> None:
    rate, spent = Rate.parse("2/min"), Spent()
    spent.add(rate, 2, NOW)
    rows = dict(spent.changed())
    spent.move(rate, 2, NOW, NOW + 20)
    rows |= dict(spent.changed())
    again = Spent.restored(rate, [row for row in rows.items() if row[1]], NOW + 30)
    assert (again.left(rate, NOW + 79), again.left(rate, NOW + 81)) == (0, 2)


def test_what_was_forgotten_before_it_was_said_counts_again() -> None:
    rate, spent = Rate.parse("2/min"), Spent()
    spent.add(rate, 2, NOW)
    assert spent.left(rate, NOW + 100) == 2
    spent.move(rate, 2, NOW, NOW + 100)
    assert spent.left(rate, NOW + 101) == 0


def test_a_move_takes_no_turn() -> None:
    rate, spent = Rate.parse("10/s"), Spent()
    spent.add(rate, 1, NOW)
    before = spent.wait(rate, 1, NOW + 0.05)
    spent.move(rate, 1, NOW, NOW + 0.05)
    assert spent.wait(rate, 1, NOW + 0.05) == before
