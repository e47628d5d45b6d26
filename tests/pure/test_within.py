"""The measure of time that other tests use: it must fail where something takes too long."""

from __future__ import annotations

import time

import pytest

from tests.pace import within


def busy(seconds: float) -> str:
    end = time.process_time() + seconds
    while time.process_time() < end:
        hash("x" * 100)
    return "done"


def test_what_is_quick_is_returned() -> None:
    calls: list[int] = []
    assert within(5.0, lambda: calls.append(1) or "done") == "done"
    assert calls == [1], "what is in time at once is not called again"


def test_what_is_slow_is_told() -> None:
    with pytest.raises(
        AssertionError, match=r"^the reader took \d+\.\d\d s of a quiet core at best, wanted are 0\.01$"
    ):
        within(0.01, lambda: busy(0.4), "the reader")
