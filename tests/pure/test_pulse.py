"""The pulse tells how long the loop was held: all of it, and the worst of a minute."""

from __future__ import annotations

import asyncio
import time

import pytest
from conftest import until

from relay.pulse import BEAT, LAG, MINUTE, Pulse

BOTH_LOOPS = True


@pytest.fixture(autouse=True)
def counted() -> list[int]:
    """What was counted before: the histogram is the process's."""
    return list(LAG.counts)


def beats(before: list[int]) -> list[int]:
    return [now - then for now, then in zip(LAG.counts, before, strict=True)]


def above(seconds: float, before: list[int]) -> int:
    return sum(beats(before)[LAG.buckets.index(seconds) + 1 :])


def test_a_beat_in_time(counted: list[int]) -> None:
    assert Pulse().beat(100.0, 100.0002) == pytest.approx(100.0 + BEAT)
    assert beats(counted)[0] == sum(beats(counted)) == 1


def test_a_timer_that_rings_too_early_counts_once(counted: list[int]) -> None:
    pulse = Pulse()
    due = pulse.beat(100.0, 99.9995)
    assert due == pytest.approx(100.0 + BEAT)
    assert pulse.beat(due, due - 0.02) == due
    assert sum(beats(counted)) == 1


def test_every_beat_that_a_hold_swallowed_was_late(counted: list[int]) -> None:
    pulse = Pulse()
    assert pulse.beat(100.0, 101.01) == pytest.approx(101.05)
    assert sum(beats(counted)) == 21  # 100.00, 100.05 … 101.00
    assert above(0.5, counted) == 11
    assert pulse.worst(101.01) == pytest.approx(1.01)


def test_one_that_was_stopped_for_a_day_does_not_count_the_day(counted: list[int]) -> None:
    pulse = Pulse()
    due = pulse.beat(100.0, 100.0 + 86400.0)
    assert due > 100.0 + 86400.0
    assert 1200 <= sum(beats(counted)) <= 1202
    assert pulse.worst(due) == 86400.0


def test_the_worst_of_a_minute(counted: list[int]) -> None:
    pulse = Pulse()
    for due, late in ((100.0, 0.3), (110.0, 0.2), (111.0, 0.01), (120.0, 0.1)):
        pulse.beat(due, due + late)
    for now, worst in ((120.0, 0.3), (101.0 + MINUTE, 0.2), (112.0 + MINUTE, 0.1), (130.0 + MINUTE, 0.0)):
        assert pulse.worst(now) == pytest.approx(worst)


async def test_a_loop_that_is_held_tells(counted: list[int]) -> None:
    task = asyncio.ensure_future(Pulse().run())
    try:
        await until(lambda: sum(beats(counted)) >= 1)
        before = list(LAG.counts)
        time.sleep(0.4)  # noqa: ASYNC251 - the fault that is to be told
        await until(lambda: above(0.25, before) >= 1)
        assert above(0.1, before) >= 4
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
