"""The process holds its limits as a sink counts them, uses them up, and forgets nothing when it is stopped or killed.

Short forms of benchmarks.limits and benchmarks.priority, which measure the same for minutes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import limits, priority


@pytest.mark.parametrize("where", ["account", "rule"])
def test_by_the_second(tmp_path: Path, where: str) -> None:
    held = limits.steady(tmp_path, "20/s", where, 20, 1.0, 5.0, patience=20.0)
    assert held.most <= 21, held
    assert held.used >= limits.USED, held


def test_by_the_minute_nothing_goes_before_the_next(tmp_path: Path) -> None:
    held = limits.steady(tmp_path, "40/min", "account", 40, 60.0, 4.0, 40, patience=40.0)
    assert (held.most, held.came) == (40, 40), held


@pytest.mark.parametrize("where", ["account", "rule"])
def test_by_the_day_over_two_restarts(tmp_path: Path, where: str) -> None:
    """What was counted for those in flight at the SIGKILL is not sent for: at most one a connection."""
    held = limits.restarted(tmp_path, 200, where)
    assert held.came <= 200, held
    assert held.lost <= limits.CONNECTIONS, held


def test_a_reset_does_not_wait_for_a_campaign(tmp_path: Path) -> None:
    """By the order at the sink, which is the same however fast the machine is: 13 of the campaign go there in a second."""
    seen = priority.measure(tmp_path / "beside", "high", 5000, 10, 0.5)
    assert seen.at_best > 5, seen  # the campaign goes on
    assert seen.overtaken <= 13, seen
