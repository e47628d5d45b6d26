"""Buckets never give more than they may, and say so exactly."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.sink.bucket import Bucket, Places

TRIES = st.lists(st.tuples(st.floats(0, 30, allow_subnormal=False), st.integers(1, 5)), max_size=60)


@given(rate=st.floats(0.01, 100), burst=st.integers(1, 20), tries=TRIES)
def test_no_window_ever_exceeds_burst_and_rate(rate: float, burst: int, tries: list[tuple[float, int]]) -> None:
    bucket, now = Bucket(rate, burst), 1000.0
    taken: list[tuple[float, int]] = []
    for pause, count in tries:
        now += pause
        if bucket.wait(count, now) == 0:
            bucket.take(count, now)
            taken.append((now, count))
    for first, (begin, _) in enumerate(taken):
        inside = 0
        for end, count in taken[first:]:
            inside += count
            assert inside <= burst + rate * (end - begin) + 1e-6
    assert bucket.took == sum(count for _, count in taken)
    assert bucket.minimum <= bucket.seconds + 1e-6


@given(rate=st.floats(0.01, 100), burst=st.integers(1, 20), tries=TRIES)
def test_the_wait_is_as_long_as_it_must_be(rate: float, burst: int, tries: list[tuple[float, int]]) -> None:
    bucket, now = Bucket(rate, burst), 0.0
    for pause, count in tries:
        now += pause
        wait = bucket.wait(count, now)
        if count > burst:
            assert wait == math.inf
            continue
        if wait > 1e-6:
            assert bucket.wait(count, now + wait * 0.99) > 0
        now += wait
        assert bucket.wait(count, now + 1e-6) == 0
        bucket.take(count, now + 1e-6)
        now += 1e-6


def test_it_is_full_at_first_and_refills_without_a_step() -> None:
    bucket = Bucket(0.5, 30)
    for _ in range(30):
        assert bucket.wait(1, 10.0) == 0
        bucket.take(1, 10.0)
    assert bucket.wait(1, 10.0) == pytest.approx(2.0)
    assert bucket.wait(1, 11.0) == pytest.approx(1.0)
    assert bucket.wait(1, 12.0) == 0
    assert bucket.wait(30, 70.0) == 0
    assert (bucket.took, bucket.minimum) == (30, 0.0)


def test_what_is_refused_takes_nothing() -> None:
    bucket = Bucket(1.0, 1)
    bucket.take(1, 0.0)
    for moment in range(9):
        assert bucket.wait(1, moment / 10) > 0
    assert bucket.wait(1, 1.0) == 0


def test_the_minimum_is_what_the_bucket_allows() -> None:
    bucket = Bucket(14.0, 14)
    now = 0.0
    for _ in range(2000):
        now += bucket.wait(1, now)
        bucket.take(1, now)
    assert bucket.minimum == pytest.approx((2000 - 14) / 14)
    assert bucket.seconds == pytest.approx(bucket.minimum)


def test_places_are_held_until_somebody_leaves() -> None:
    places = Places(2)
    for who in "ab":
        assert places.room(who)
        places.take(who)
    assert places.room("a")
    assert not places.room("c")
    places.leave("a")
    places.leave("never")
    assert places.room("c")
    assert places.highest == 2
