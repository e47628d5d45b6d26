"""How long something takes on a core of its own, whatever else the machine does.

Processor time doubles and trebles where others share the cores and their caches. A known piece of work, done right before
and after, tells by how much; what took too long is measured again so, and told in seconds of a quiet core.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

Found = TypeVar("Found")

QUIET = (
    0.018  # seconds that the yardstick takes where nothing else runs, on the machine that the documents' figures are of
)
TRIES = 3
TICK = 0.005  # seconds


def _yardstick() -> None:
    """A mixture: dictionaries, small texts, an expression, JSON, bytes."""
    for _ in range(400):
        things = {f"n{i}": i for i in range(50)}
        line = " ".join(f"{name}={value}" for name, value in things.items())
        found = re.findall(r"n(\d+)=(\d+)", line)
        assert len(json.dumps(dict(found)).encode().split(b",")) == 50


def yardsticks() -> float:
    """How many times longer than on a quiet core things take just now."""
    _, spent = _spent(_yardstick)
    return spent / QUIET


class Jerks:
    """What the machine took from a loop: `lost` seconds in all, in `count` jerks, the worst of them `worst` seconds."""

    def __init__(self) -> None:
        self.lost = self.worst = 0.0
        self.count = 0

    async def feel(self) -> None:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(TICK)
            late = time.monotonic() - begun - TICK
            self.worst = max(self.worst, late)
            if late > TICK:
                self.lost += late
                self.count += 1


@contextlib.asynccontextmanager
async def jerks() -> AsyncIterator[Jerks]:
    """For who measures by the clock what goes on between two ends of a connection on one loop."""
    made = Jerks()
    feeling = asyncio.ensure_future(made.feel())
    try:
        yield made
    finally:
        feeling.cancel()
        await asyncio.gather(feeling, return_exceptions=True)


def _spent(work: Callable[[], Found]) -> tuple[Found, float]:
    begun = time.process_time()
    found = work()
    return found, time.process_time() - begun


def _quiet(work: Callable[[], Found]) -> tuple[Found, float]:
    """With the seconds of a quiet core that it took."""
    before = yardsticks()
    found, spent = _spent(work)
    return found, spent * 2 / (before + yardsticks())


def within(seconds: float, work: Callable[[], Found], what: object = "it") -> Found:
    """What `work` returns, which must not have taken longer. It may be called again."""
    found, spent = _spent(work)
    if spent < seconds:
        return found
    gc.collect()
    gc.freeze()  # what other tests have left is no part of it
    try:
        tries = [_quiet(work) for _ in range(TRIES)]
    finally:
        gc.unfreeze()
    best = min(spent for _, spent in tries)
    assert best < seconds, f"{what} took {best:.2f} s of a quiet core at best, wanted are {seconds}"
    return tries[0][0]
