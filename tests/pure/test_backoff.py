"""Retry profiles: whole schedules, the bounds of jitter, and when it is over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.policy.backoff import DAY, Retry


def test_the_default_schedule_whole() -> None:
    assert [Retry().ceiling(n) for n in range(1, 9)] == [60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_a_fixed_schedule_is_exact_and_its_last_entry_repeats() -> None:
    retry = Retry(schedule=(300.0, 1800.0, 7200.0), attempts=5)
    assert [retry.delay(n, 0.3) for n in range(1, 7)] == [300, 1800, 7200, 7200, 7200, 7200]
    assert [retry.spent(n) for n in range(1, 7)] == [False, False, False, False, True, True]


def test_by_default_only_time_ends_it() -> None:
    assert not any(Retry().spent(n) for n in range(0, 10_000, 97))
    assert Retry().give_up == 5 * DAY


def test_a_day_of_attempts_with_even_luck() -> None:
    """Half the ceiling each time: what an upstream that is down for a day sees of one message."""
    retry, now, tries = Retry(), 0.0, 0
    while now < DAY:
        tries += 1
        now += retry.delay(tries, 0.5)
    assert tries == 53


PROFILES = st.builds(
    Retry,
    first=st.floats(1, 7200),
    factor=st.floats(1, 10),
    cap=st.floats(1, DAY),
    attempts=st.integers(0, 20),
)
CHANCE = st.floats(0, 1, exclude_max=True)


@given(PROFILES, st.integers(1, 100_000), CHANCE)
def test_full_jitter_stays_within_the_ceiling(retry: Retry, attempts: int, chance: float) -> None:
    ceiling = retry.ceiling(attempts)
    assert ceiling <= retry.cap
    assert 1.0 <= retry.delay(attempts, chance) <= max(1.0, ceiling)
    assert retry.delay(attempts, chance) == pytest.approx(max(1.0, ceiling * chance))


@given(PROFILES, st.integers(1, 2000))
def test_the_ceiling_never_falls(retry: Retry, attempts: int) -> None:
    assert retry.ceiling(attempts) <= retry.ceiling(attempts + 1)
