"""A queue of mail through the sink's profiles, as processes, with the preset of each: nothing lost, nothing doubled.

How long it takes is measured by `python -m benchmarks.providers`, with 2,000 messages and by the real clock.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.providers import faster, run
from relay.policy.rate import Rate


@pytest.mark.parametrize(
    ("profile", "count", "speed"),
    [("microsoft365", 150, 60), ("gmail", 150, 60), ("ses", 120, 4)],
)
def test_all_arrives_once(tmp_path: Path, profile: str, count: int, speed: float) -> None:
    found = run(profile, count, speed, False, tmp_path)
    assert (found.lost, found.doubled, found.failed) == (0, 0, 0)
    assert found.seconds >= 0.9 * found.least > 0  # the limit was real
    if profile == "microsoft365":  # its limits are published, so there is nothing to complain of
        assert found.complaints == 0 and found.most_attempts == 1


def test_a_limit_by_a_faster_clock() -> None:
    assert faster(Rate.parse("30 messages/min"), 60) == "30 messages/s"
    assert faster(Rate.parse("10000/d"), 60) == "600000/d"
    assert faster(Rate.parse("14/s"), 4) == "56/s"
