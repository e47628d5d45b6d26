"""Sending hours: exact to the second by the clock of their zone, also on the two days of the year that are not 24 hours."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from time import process_time
from timeit import timeit
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.policy.hours import Clockwork, Hours, waits

MINUTE, DAY = 60, 86400
ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "America/St_Johns", "Asia/Kathmandu"),
    *("Australia/Lord_Howe", "Pacific/Apia", "Africa/Casablanca", "America/Sao_Paulo", "Europe/Dublin"),
)


def at(text: str, zone: str = "Europe/Berlin", fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def berlin(hours: str = "", days: str = "") -> Hours:
    return Hours.parse(hours, days, "Europe/Berlin")


# -- as they are written


@pytest.mark.parametrize(
    ("hours", "days", "start", "end", "on"),
    [
        ("08:00-20:00", "mon-fri", 480, 1200, {0, 1, 2, 3, 4}),
        ("22:00-07:00", "", 1320, 420, set(range(7))),
        ("8:30 - 9:05", "mon,wed, fri", 510, 545, {0, 2, 4}),
        ("00:00-24:00", "sat-sun", 0, 1440, {5, 6}),
        ("18:00-24:00", "Fri-Mon", 1080, 1440, {4, 5, 6, 0}),
        ("", "mon-tue,sun", 0, 1440, {0, 1, 6}),
    ],
)
def test_as_written(hours: str, days: str, start: int, end: int, on: set[int]) -> None:
    found = berlin(hours, days)
    assert (found.start, found.end, found.days, found.timezone) == (start, end, on, "Europe/Berlin")
    assert str(found) == " ".join(filter(None, (days, hours, "Europe/Berlin")))


@pytest.mark.parametrize(
    ("hours", "days", "zone", "said"),
    [
        ("", "", "UTC", "expected hours such as 08:00-20:00, days such as mon-fri, or both"),
        ("8-20", "", "UTC", "expected hours such as 08:00-20:00, found '8-20'"),
        ("٠٨:٠٠-٢٠:٠٠", "", "UTC", "expected hours such as 08:00-20:00"),
        ("08:00-20:60", "", "UTC", "a day's times are 00:00 to 24:00"),
        ("24:00-08:00", "", "UTC", "a day's times are 00:00 to 24:00"),
        ("20:00-24:01", "", "UTC", "a day's times are 00:00 to 24:00"),
        ("08:00-08:00", "", "UTC", "All day is 00:00-24:00"),
        ("00:00-00:00", "", "UTC", "All day is 00:00-24:00"),
        ("", "monday", "UTC", "no day 'monday'; expected days such as mon-fri"),
        ("", "mon-", "UTC", "no day ''"),
        ("", "mon,,fri", "UTC", "no day ''"),
        ("", "mon-wed-fri", "UTC", "no day 'wed-fri'"),
        ("08:00-20:00", "", "Mars/Olympus", "no time zone 'Mars/Olympus'"),
        ("08:00-20:00", "", "../etc/passwd", "no time zone '../etc/passwd'"),
        ("08:00-20:00", "", "", "no time zone ''"),
    ],
)
def test_a_mistake_is_told(hours: str, days: str, zone: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        Hours.parse(hours, days, zone)
    assert said in str(caught.value)


# -- by the clock


def test_it_opens_and_closes_to_the_second() -> None:
    work = berlin("08:00-20:00", "mon-fri")
    opening, closing = at("2026-12-07T08:00"), at("2026-12-07T20:00")  # a Monday
    assert work.opens(opening - 0.25) == 0.25
    assert work.opens(opening) == 0.0
    assert work.closes(opening) == 12 * 3600
    assert work.closes(closing - 0.25) == 0.25
    assert work.closes(closing) == 0.0
    assert work.opens(closing) == 12 * 3600
    assert work.opens(at("2026-12-11T20:00")) == 60 * 3600  # over the weekend


def test_over_midnight_it_belongs_to_the_day_on_which_it_starts() -> None:
    night = berlin("22:00-07:00", "fri")
    assert not night.inside(at("2026-12-04T06:59"))  # Friday's early morning is Thursday's night
    assert night.inside(at("2026-12-04T22:00"))
    assert night.inside(at("2026-12-05T06:59"))
    assert not night.inside(at("2026-12-05T22:00"))
    assert night.closes(at("2026-12-04T23:00")) == 8 * 3600


def test_all_day_every_day_never_closes() -> None:
    always = Hours.parse("00:00-24:00", "", "Europe/Berlin")
    assert always.closes(at("2026-12-04T06:59")) == math.inf
    assert always.opens(at("2026-12-04T06:59")) == 0.0


# -- when the clock is changed: in Berlin 2026-03-29 has no 02:00 to 03:00, and 2026-10-25 has it twice


def test_what_begins_in_the_hour_that_is_left_out_begins_after_it() -> None:
    early = berlin("02:30-06:00")
    assert early.opens(at("2026-03-29T01:59")) == 60.0
    assert early.inside(at("2026-03-29T03:00"))
    assert early.closes(at("2026-03-29T03:00")) == 3 * 3600


def test_what_lies_in_the_hour_that_is_left_out_does_not_take_place() -> None:
    gone = berlin("02:15-02:45", "sun")
    assert gone.change(at("2026-03-29T01:00")) == at("2026-04-05T02:15")
    assert berlin("02:15-02:45").change(at("2026-03-29T01:00")) == at("2026-03-30T02:15")


def test_what_ends_in_the_hour_that_is_left_out_ends_as_it_begins() -> None:
    night = berlin("22:00-02:30")
    assert night.change(at("2026-03-28T23:00")) == at("2026-03-29T03:00")
    assert night.closes(at("2026-03-28T23:00")) == 3 * 3600


def test_an_hour_that_comes_twice_counts_twice() -> None:
    short = berlin("02:00-02:30")
    begins = at("2026-10-25T02:00")
    assert short.closes(begins) == 1800
    assert short.opens(begins + 1800) == 1800
    assert short.closes(begins + 3600) == 1800
    assert short.change(begins + 5400) == at("2026-10-26T02:00")


def test_a_day_that_a_country_left_out() -> None:
    # Samoa went from Thursday, 2011-12-29, to Saturday: what is open on Fridays waits for the next one.
    friday = Hours.parse("", "fri", "Pacific/Apia")
    assert friday.change(at("2011-12-29T12:00", "Pacific/Apia")) == at("2012-01-06T00:00", "Pacific/Apia")


# -- against a model that looks at every minute


@lru_cache(maxsize=200_000)
def shown(minute: int, zone: str) -> tuple[int, int]:
    """(weekday, minutes after midnight) that the clock shows."""
    local = datetime.fromtimestamp(minute * MINUTE, ZoneInfo(zone))
    return local.weekday(), local.hour * 60 + local.minute


def is_open(hours: Hours, minute: int) -> bool:
    day, clock = shown(minute, hours.timezone)
    spans = {
        (d * 1440 + hours.start, d * 1440 + hours.end + (1440 if hours.end <= hours.start else 0)) for d in hours.days
    }
    here = day * 1440 + clock
    return any(a <= x < b for a, b in spans for x in (here, here + 7 * 1440))


def slow_waits(window: Hours | None, quiet: Hours | None, now: int) -> float:
    for minute in range(now // MINUTE, now // MINUTE + 15 * 1440):
        if (window is None or is_open(window, minute)) and (quiet is None or not is_open(quiet, minute)):
            return max(0, minute * MINUTE - now)
    return math.inf


ZONE = st.sampled_from(ZONES)
# Around the days on which these zones change their clocks, and any others.
EDGES = [
    *("2026-03-28", "2026-10-24", "2026-03-07", "2026-10-31", "2026-04-04", "2026-10-03", "2011-12-29", "2018-02-17"),
    *("2018-11-03", "2026-02-14", "2026-03-21", "2027-12-31"),
]
DAYS_OF_USE = st.one_of(
    st.sampled_from([datetime.fromisoformat(d).replace(tzinfo=UTC) for d in EDGES]),
    st.datetimes(datetime(2005, 1, 1), datetime(2037, 1, 1)).map(lambda d: d.replace(tzinfo=UTC)),
)
MOMENT = st.builds(lambda day, s: int((day + timedelta(seconds=s)).timestamp()), DAYS_OF_USE, st.integers(0, 3 * DAY))
CLOCK = st.one_of(st.sampled_from([0, 60, 90, 120, 135, 150, 180, 1380, 1439]), st.integers(0, 1439))
HOURS = st.builds(
    lambda start, end, days, zone: Hours("x", start, end, frozenset(days), zone),
    *(CLOCK, st.one_of(CLOCK, st.just(1440)), st.sets(st.integers(0, 6), min_size=1), ZONE),
)


@settings(max_examples=150, deadline=None)
@given(HOURS, MOMENT)
@example(Hours("x", 135, 165, frozenset({6}), "Europe/Berlin"), int(at("2026-03-29T01:00")))
def test_the_next_change_is_that_of_the_model(hours: Hours, now: int) -> None:
    first = now // MINUTE
    was = is_open(hours, first)
    found = hours.change(now)
    assert hours.inside(now) is was
    assert found > now
    last = first + 15 * 1440 if found == math.inf else int(found) // MINUTE
    assert found == math.inf or found % MINUTE == 0
    assert all(is_open(hours, minute) is was for minute in range(first, last))
    assert found == math.inf or is_open(hours, last) is not was


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.none(), HOURS), st.one_of(st.none(), HOURS), MOMENT)
def test_mail_waits_as_the_model_says(window: Hours | None, quiet: Hours | None, now: int) -> None:
    expected = slow_waits(window, quiet, now)
    found, why = waits(window, quiet, now)
    if expected == math.inf:  # the model looks two weeks ahead
        assert found > 14 * DAY
    else:
        assert found == expected
    assert bool(why) is (found > 0)


@settings(max_examples=60, deadline=None)
@given(HOURS, HOURS, MOMENT, st.lists(st.one_of(st.integers(-2 * DAY, 2 * DAY), st.just(0)), min_size=2, max_size=8))
def test_what_is_remembered_is_what_would_be_found(window: Hours, quiet: Hours, now: int, steps: list[int]) -> None:
    """Asked at any times, backwards too."""
    work = Clockwork(window, quiet)
    for step in steps:
        now += step
        assert work.waits(now)[0] == waits(window, quiet, now)[0]
        assert work.until > now


@settings(max_examples=60, deadline=None)
@given(HOURS, MOMENT, st.floats(0, 0.999_999))
def test_within_a_second_nothing_is_before_now(hours: Hours, now: int, part: float) -> None:
    assert hours.change(now + part) > now + part
    assert hours.change(now + part) == hours.change(now)


# -- the reasons


def test_the_reason_names_the_hours_and_the_end() -> None:
    work, night = berlin("08:00-20:00", "mon-fri"), berlin("22:00-07:00")
    assert waits(work, None, at("2026-12-05T12:00")) == (
        44 * 3600,
        "outside its hours mon-fri 08:00-20:00 Europe/Berlin, until Mon 08:00 CET",
    )
    assert waits(None, night, at("2026-07-06T23:00")) == (
        8 * 3600,
        "in its quiet hours 22:00-07:00 Europe/Berlin, until Tue 07:00 CEST",
    )
    assert waits(work, night, at("2026-12-07T12:00")) == (0.0, "")
    assert waits(None, None, 0.0) == (0.0, "")


def test_both_reasons_where_one_follows_the_other() -> None:
    early, late = berlin("08:00-20:00"), Hours.parse("06:30-09:30", "mon", "Europe/London")
    assert waits(early, late, at("2026-12-07T07:00")) == (
        3.5 * 3600,
        "outside its hours 08:00-20:00 Europe/Berlin, then in its quiet hours mon 06:30-09:30 Europe/London, "
        "until Mon 09:30 GMT",
    )


def test_beyond_six_days_the_date_is_told() -> None:
    monday = berlin("08:00-09:00", "mon")
    assert waits(monday, None, at("2026-12-07T09:00"))[1].endswith("until 2026-12-14 08:00 CET")


def test_hours_that_leave_no_time_are_told() -> None:
    seconds, why = waits(berlin("09:00-10:00"), berlin("08:00-12:00"), at("2026-12-07T07:00"))
    assert seconds == math.inf
    assert why.endswith(": there is no time between them")


def test_a_gate_that_asks_each_pass_pays_little() -> None:
    work = Clockwork(berlin("08:00-20:00", "mon-fri"), berlin("22:00-07:00"))
    for now in (at("2026-12-05T12:00"), at("2026-12-07T12:00")):
        # 0.15 µs on an idle machine; a look-up takes a hundred times that.
        took = [timeit(lambda: work.waits(now), timer=process_time, number=10_000) for _ in range(5)]  # noqa: B023
        assert min(took) / 10_000 < 3e-6
