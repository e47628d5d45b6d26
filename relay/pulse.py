"""How late the event loop comes round: what anybody who wants something of it just then has to wait.

Promises: a hold is told in full. A beat is due each 50 ms whatever became of the one before, so that a loop that was held
for a second was late for twenty beats; a timer that is set anew when it has rung would count that second once.
"""

from __future__ import annotations

import asyncio
from collections import deque

from relay import clock, metrics

BEAT = 0.05  # seconds between two beats
EARLY = 0.001  # seconds: a loop's timers are no finer
MINUTE = 60.0

LAG = metrics.Histogram(
    "relay_loop_lag_seconds",
    "How late the event loop came to a beat that is due each 50 ms",
    (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
)
WORST = metrics.Gauge("relay_loop_lag_worst_seconds", "The latest beat of the last minute")


class Pulse:
    """`run` is the loop; `worst` the latest beat of the last minute, in seconds."""

    def __init__(self) -> None:
        # (when, how late): the worst since then, each with less behind it.
        self._late: deque[tuple[float, float]] = deque()
        WORST.source = lambda: [((), self.worst(clock.monotonic()))]

    async def run(self) -> None:
        """Ends only by cancellation."""
        due = clock.monotonic() + BEAT
        while True:
            await asyncio.sleep(due - clock.monotonic())
            due = self.beat(due, clock.monotonic())

    def beat(self, due: float, now: float) -> float:
        """Counts every beat that has become due; returns the next one."""
        if now + EARLY >= due:
            self._keep(now, max(0.0, now - due))
        due = max(due, now - MINUTE)  # one that was stopped by a signal for hours has not to catch up with all of them
        while due <= now + EARLY:
            LAG.observe(max(0.0, now - due))
            due += BEAT
        return due

    def _keep(self, now: float, late: float) -> None:
        while self._late and self._late[-1][1] <= late:
            self._late.pop()
        self._late.append((now, late))
        self.worst(now)

    def worst(self, now: float) -> float:
        while self._late and self._late[0][0] < now - MINUTE:
            self._late.popleft()
        return self._late[0][1] if self._late else 0.0
