"""When somebody leaves who has others before him: the estimate is what draining one by one comes to."""

from __future__ import annotations

from datetime import UTC, date, datetime
from math import inf

import pytest
from conftest import NOW
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.policy.eta import by_pace, by_ramp, by_rate
from relay.policy.pace import Pace
from relay.policy.rate import Rate, Spent
from relay.policy.warmup import Ramp, WarmUp


def drained(rate: Rate, spent: Spent, count: int, now: float) -> float:
    """Seconds until the last of so many has left, each as soon as it may."""
    at = now
    for _ in range(count):
        while (wait := spent.wait(rate, 1, at)) > 0:
            at += max(wait, 1e-6)
        spent.add(rate, 1, at)
    return at - now


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["14/s", "100/min", "7/h", "3/s", "20/d"]),
    st.integers(0, 30),
    st.integers(1, 120),
    st.floats(0.0, 50.0),
)
def test_it_is_what_draining_comes_to(text: str, before: int, count: int, passed: float) -> None:
    rate = Rate.parse(text)
    one, other = Spent(), Spent()
    for spent in (one, other):
        drained(rate, spent, before, NOW)
    now = NOW + drained(rate, Spent(), before, NOW) + passed
    foreseen, real = by_rate(rate, one, count, now), drained(rate, other, count, now)
    # A part of a limit ends with the last of it: a 128th of the period later, each time round.
    late = rate.period / 64 * (2 + count // rate.count) + rate.interval
    assert foreseen == pytest.approx(real, abs=late)


def test_a_calendar_day_after_the_other() -> None:
    rate = Rate(10, 86400.0, "recipients", "10/d", calendar=True)
    noon = datetime(2026, 12, 1, 12, tzinfo=UTC).timestamp()
    assert by_rate(rate, Spent(), 10, noon) == 0
    spent = Spent()
    spent.add(rate, 10, noon)
    assert by_rate(rate, spent, 1, noon) == 43200
    assert by_rate(rate, spent, 25, noon) == 43200 + 2 * 86400


def test_a_warm_up_over_its_days() -> None:
    start = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    ramp = Ramp(WarmUp(date(2026, 12, 1), table=(10, 20, 40), spread="none"), "new")
    assert by_ramp(ramp, 10, start) == 0
    assert by_ramp(ramp, 11, start) == pytest.approx(86400)
    assert by_ramp(ramp, 31, start) == pytest.approx(2 * 86400)
    assert ramp.count == 0  # nothing was changed
    assert by_ramp(Ramp(WarmUp(date(2036, 12, 1), table=(1,)), "new"), 10**9, start) > 0
    slow = Ramp(WarmUp(date(2026, 12, 1), first=1, growth=0.0, spread="none"), "new")
    assert by_ramp(slow, 10**6, start) == inf


def test_the_last_of_several_limits_binds() -> None:
    pace = Pace((Rate.parse("10/s"), Rate.parse("100/h")))
    assert by_pace(pace, 50, 1, NOW, "ses")[1] == "ses's limit of 10/s"
    assert by_pace(pace, 101, 1, NOW, "ses") == (3600.0, "ses's limit of 100/h")
    pace.hold(NOW, 9000, "it asked for a pause")
    assert by_pace(pace, 101, 1, NOW, "ses") == (9000.0, "ses: it asked for a pause")
