"""How much may pass: token buckets, and places for so many at once. Pure: time is an argument.

Promises: in no span of any length does a bucket give more than burst + rate x length; what is refused takes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_EXACT = 1e-9  # tokens: what sums of floats may lack


@dataclass(slots=True)
class Bucket:
    """Full at first; `rate` tokens a second flow in continuously, up to `burst`."""

    rate: float
    burst: int
    level: float = field(init=False)
    took: int = 0
    refused: int = 0
    first: float | None = None  # when something was taken for the first time, and for the last
    last: float | None = None
    _at: float = -math.inf  # when `level` was right

    def __post_init__(self) -> None:
        self.level = float(self.burst)

    def wait(self, count: int, now: float) -> float:
        """Seconds until `count` fit; 0: now. Infinite where they never will."""
        if count > self.burst:
            return math.inf
        lacks = count - self._level(now)
        return 0.0 if lacks <= _EXACT else lacks / self.rate

    def take(self, count: int, now: float) -> None:
        """What `wait` said fits now."""
        self.level, self._at = max(0.0, self._level(now) - count), max(now, self._at)
        self.took += count
        self.first = now if self.first is None else self.first
        self.last = now

    def _level(self, now: float) -> float:
        if self._at == -math.inf:
            return self.level
        return min(float(self.burst), self.level + max(0.0, now - self._at) * self.rate)

    @property
    def minimum(self) -> float:
        """The least seconds in which what it gave can be taken."""
        return max(0.0, (self.took - self.burst) / self.rate)

    @property
    def seconds(self) -> float:
        """From the first token taken to the last."""
        return 0.0 if self.first is None or self.last is None else self.last - self.first


@dataclass(slots=True)
class Places:
    """For so many at once."""

    most: int
    inside: set[object] = field(default_factory=set)
    highest: int = 0
    refused: int = 0

    def room(self, who: object) -> bool:
        return who in self.inside or len(self.inside) < self.most

    def take(self, who: object) -> None:
        self.inside.add(who)
        self.highest = max(self.highest, len(self.inside))

    def leave(self, who: object) -> None:
        self.inside.discard(who)
