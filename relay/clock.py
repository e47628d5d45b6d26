"""The clock, read here and nowhere else.

`now()` is UTC epoch seconds: the wall time at start plus the monotonic time since, so that within a run time neither
jumps nor runs backwards, whatever happens to the machine's clock. `drift()` tells how far the wall clock has moved away.
"""

from __future__ import annotations

import time

_START_WALL = time.time()
_START_MONOTONIC = time.monotonic()


def now() -> float:
    return _START_WALL + time.monotonic() - _START_MONOTONIC


def drift() -> float:
    """Seconds that the wall clock is ahead of `now()`; beyond ±60 an operator should know."""
    return time.time() - now()


def monotonic() -> float:
    return time.monotonic()
