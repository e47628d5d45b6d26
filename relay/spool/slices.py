"""Much work in small transactions: whoever else has something to write waits for one slice, never for all of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from relay import clock

T = TypeVar("T")
W = TypeVar("W")
R = TypeVar("R", bound=tuple[Any, ...])

TARGET = 0.005  # seconds that a slice may take on the writing thread
# Rows; few sizes, so that few statements are prepared. 100,000 in one blocked for 2.6 s.
SIZES = (5, 10, 20, 50, 100, 200, 500, 1000)
TOGETHER = 200  # recipients of one message


class Slices:
    """How many rows of one kind of work go into a transaction. Learnt from how long they take.

    Rows cost very different times: one that is held takes 0.02 ms, one that expires and is told its sender 0.4 ms, and
    both ten times as much where the disk is slow or the machine busy.
    """

    def __init__(self) -> None:
        self._step = 2

    @property
    def size(self) -> int:
        return SIZES[self._step]

    def cut(self, rows: Sequence[R], weigh: Callable[[R], int] = lambda _: 1) -> Iterator[Sequence[R]]:
        """All of them in slices, each as large as is right once it is asked for.

        A row begins with its message, and a message is not cut in two where it can be avoided: its recipients share a
        report, and its row is written once. `weigh`: how many rows one stands for.
        """
        start = 0
        while start < len(rows):
            end, room = start, self.size
            while end < len(rows) and (room > 0 or (rows[end][0] == rows[end - 1][0] and end - start < TOGETHER)):
                room -= weigh(rows[end])
                end += 1
            yield rows[start:end]
            start = end

    def timed(
        self, function: Callable[[sqlite3.Connection, W], T]
    ) -> Callable[[sqlite3.Connection, Sequence[W]], list[T]]:
        """As the writer runs it: each job of `function` is one slice, and is timed."""

        def run(connection: sqlite3.Connection, jobs: Sequence[W]) -> list[T]:
            return [self._timed(function, connection, job) for job in jobs]

        return run

    def _timed(self, function: Callable[[sqlite3.Connection, W], T], connection: sqlite3.Connection, job: W) -> T:
        started = clock.monotonic()
        try:
            return function(connection, job)
        finally:
            self.took(clock.monotonic() - started)

    def took(self, seconds: float) -> None:
        """What the last slice cost, without its commit."""
        if seconds > TARGET:
            self._step = max(0, self._step - (2 if seconds > 3 * TARGET else 1))
        elif seconds < TARGET / 3:
            self._step = min(len(SIZES) - 1, self._step + 1)
