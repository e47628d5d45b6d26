"""The clock, read here and nowhere else.

`now()` is UTC epoch seconds: the wall time at start plus the monotonic time since, so that within a run time neither
jumps nor runs backwards, whatever happens to the machine's clock. `drift()` tells how far the wall clock has moved away.
"""

from __future__ import annotations

import time

monotonic = time.monotonic

_EPOCH = time.time() - monotonic()  # when the monotonic clock was zero


def now() -> float:
    return _EPOCH + time.monotonic()


def drift() -> float:
    """Seconds that the wall clock is ahead of `now()`; beyond ±60 an operator should know."""
    return time.time() - now()
