"""An egress that was slowed: never more than a share of what it sent when the upstream said so. Pure: time is an argument."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW = 60.0  # seconds over which it is counted how much the upstream takes
STEP = 5.0  # seconds that are forgotten at once
SLOWEST = 1 / 60  # messages a second
AHEAD = 0.25  # seconds of the rate that may be claimed ahead


@dataclass(slots=True)
class Throttle:
    """Counts what the upstream takes; while it is in force one message follows another at even distances."""

    rate: float = 0.0  # messages a second, while in force
    until: float = 0.0
    why: str = ""
    _next: float = 0.0
    _counts: deque[tuple[int, int]] = field(default_factory=deque)  # (number of the step, messages), the oldest first

    def taken(self, now: float) -> None:
        """The upstream took a message."""
        if self.until and self.until <= now:
            self.until = 0.0
        step = int(now // STEP)
        if self._counts and self._counts[-1][0] >= step:  # a clock that was set back adds to the last one
            last, count = self._counts[-1]
            self._counts[-1] = (last, count + 1)
        else:
            self._counts.append((step, 1))
            self._forget(now)

    def measured(self, now: float) -> float:
        """Messages a second that the upstream took, over the last minute: a burst of ten seconds is told as a sixth of it."""
        self._forget(now)
        return sum(count for _, count in self._counts) / WINDOW

    def _forget(self, now: float) -> None:
        gone = int((now - WINDOW) // STEP)
        while self._counts and self._counts[0][0] <= gone:
            self._counts.popleft()

    def slow(self, rate: float, until: float, why: str, now: float) -> None:
        """At most `rate` messages a second until then, and one a minute at least. 0 as `until`: as it likes."""
        if not self.binds(now):
            self._next = now + 1 / max(SLOWEST, rate)
        self.rate, self.until, self.why = max(SLOWEST, rate), until, why
        self._next = min(self._next, now + 1 / self.rate)

    def binds(self, now: float) -> bool:
        return self.until > now

    def wait(self, now: float) -> tuple[float, str]:
        """(seconds until one message may leave, why); 0: now."""
        if self.until <= now or self._next <= now:
            return 0.0, ""
        return min(self._next, self.until) - now, f"it is slowed to {self.shown}: {self.why}"

    def room(self, now: float) -> int | None:
        """Messages that may leave about now; None: any."""
        if self.until <= now:
            return None
        return 0 if self._next - now > AHEAD else 1 + int(self.rate * AHEAD)

    def take(self, now: float) -> None:
        """A message leaves."""
        if self.until > now:
            self._next = max(now, self._next) + 1 / self.rate

    @property
    def shown(self) -> str:
        """The rate for people."""
        return f"{self.rate:.1f}/s" if self.rate >= 1 else f"{self.rate * 60:.1f}/min"
