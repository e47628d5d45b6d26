"""How often something may happen, and how much of that is spent. Pure: time is an argument."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

PERIODS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
UNITS = ("messages", "recipients", "connections", "bytes")
_STEPS = 60  # parts of a period that are forgotten one by one
_WRITTEN = re.compile(r"([0-9]{1,12})(?: ([a-z]+))?/([a-z]+)")

Unit = Literal["messages", "recipients", "connections", "bytes"]
WhenFull = Literal["defer", "reject", "next"]


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` in each `period` (seconds). Sliding: in any span of that length. Calendar: in each one by the clock."""

    count: int
    period: float
    unit: Unit
    text: str  # as it was written
    calendar: bool = False
    timezone: str = "UTC"
    burst: int = 0  # so many at once, the others at even distances; 0: the whole count may go at once
    when_full: WhenFull = "defer"  # wait, be refused when it is handed in, or go by the route's next egress

    @classmethod
    def parse(cls, text: object, unit: Unit = "recipients") -> Rate:
        """`14/s`, `50000/d`, `30 messages/min`; a bare rate counts `unit`. Raises ValueError."""
        found = _WRITTEN.fullmatch(text) if isinstance(text, str) else None
        if not found or found[3] not in PERIODS or int(found[1]) < 1:
            raise ValueError(
                f"expected a rate such as 100/min, 14/s or 5000/d; a period is one of {', '.join(PERIODS)}"
            )
        if found[2] not in (None, *UNITS):
            raise ValueError(f"a rate counts {', '.join(UNITS[:-1])} or {UNITS[-1]}, such as 30 messages/min")
        counted = next((name for name in get_args(Unit) if name == found[2]), unit)
        return cls(int(found[1]), PERIODS[found[3]], counted, found[0])

    def __str__(self) -> str:
        return f"{self.text} by the calendar of {self.timezone}" if self.calendar else self.text


def known_timezone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


@dataclass(slots=True)
class Spent:
    """What was used of one rate. Memory: up to 62 numbers."""

    parts: deque[tuple[float, int]] = field(default_factory=deque)  # (when it is forgotten, count), in order

    def wait(self, rate: Rate, count: int, now: float) -> float:
        """Seconds until `count` more fit; 0: now. More than the whole rate never fits, and waits a whole period."""
        self._forget(now)
        over = sum(n for _, n in self.parts) + count - rate.count
        if over <= 0:
            return 0.0
        for until, n in self.parts:
            over -= n
            if over <= 0:
                return until - now
        return rate.period

    def left(self, rate: Rate, now: float) -> int:
        """How much more fits now."""
        self._forget(now)
        return max(0, rate.count - sum(n for _, n in self.parts))

    def add(self, rate: Rate, count: int, now: float) -> None:
        self._forget(now)
        until = _until(rate, now)
        if self.parts and self.parts[-1][0] >= until:
            self.parts[-1] = (self.parts[-1][0], self.parts[-1][1] + count)
        else:
            self.parts.append((until, count))

    def take_back(self, rate: Rate, count: int, when: float) -> None:
        """What was added at `when` was spent in vain. What was added since stays as it is, or it would end too soon."""
        until = _until(rate, when)
        for place, (end, n) in enumerate(self.parts):
            if end >= until:
                self.parts[place] = (end, max(0, n - count))
                return

    def empty(self, now: float) -> bool:
        self._forget(now)
        return not self.parts

    def _forget(self, now: float) -> None:
        while self.parts and self.parts[0][0] <= now:
            self.parts.popleft()


def _until(rate: Rate, now: float) -> float:
    """When what is spent now is forgotten."""
    return _end_of(rate, now) if rate.calendar else _step_after(rate, now) + rate.period


def _step_after(rate: Rate, now: float) -> float:
    """The end of the part that `now` lies in: forgotten a little late, so that no span ever holds more than `count`."""
    step = rate.period / _STEPS
    return (now // step + 1) * step


def _end_of(rate: Rate, now: float) -> float:
    """When the clock's second, minute, hour or day ends, in the rate's time zone."""
    if rate.period < PERIODS["d"]:
        # Every zone in use differs from UTC by whole quarters of an hour, and an hour by the clock is one anywhere.
        zone = datetime.fromtimestamp(now, ZoneInfo(rate.timezone)).utcoffset() or timedelta()
        shift = zone.total_seconds() % rate.period
        return ((now + shift) // rate.period + 1) * rate.period - shift
    local = datetime.fromtimestamp(now, ZoneInfo(rate.timezone))
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0) + timedelta(days=1)
    return midnight.astimezone(UTC).timestamp()
