"""How often something may happen, and how much of that is spent. Pure: time is an argument."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, Self, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

PERIODS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
UNITS = ("messages", "recipients", "connections", "bytes")
SIZES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
PARTS = 128  # of a period that are forgotten one by one
TINY = 1e-5  # seconds, or parts of one: what arithmetic with epoch seconds loses
LATE = 0.25  # seconds that who comes late for his turn may make up for
_WRITTEN = re.compile(rf"([0-9]{{1,12}})(?: ([a-z]+)| ?({'|'.join(SIZES)}))?/([a-z]+)")

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
    burst: int = 0  # so many at once, the others at even distances; 0: see `at_once`
    when_full: WhenFull = "defer"  # wait, be refused when it is handed in, or go by the route's next egress

    @classmethod
    def parse(cls, text: object, unit: Unit = "recipients") -> Rate:
        """`14/s`, `50000/d`, `30 messages/min`, `500MB/h`; a bare rate counts `unit`. Raises ValueError."""
        found = _WRITTEN.fullmatch(text) if isinstance(text, str) else None
        if not found or found[4] not in PERIODS or int(found[1]) < 1:
            raise ValueError(
                f"expected a rate such as 100/min, 14/s or 5000/d; a period is one of {', '.join(PERIODS)}"
            )
        if found[2] not in (None, *UNITS):
            raise ValueError(
                f"a rate counts {', '.join(UNITS[:-1])} or {UNITS[-1]}, such as 30 messages/min or 500MB/h; "
                f"a size is in {', '.join(SIZES)}"
            )
        count, period = int(found[1]), PERIODS[found[4]]
        if found[3]:
            return cls(count * SIZES[found[3]], period, "bytes", found[0])
        counted = next((name for name in get_args(Unit) if name == found[2]), unit)
        return cls(count, period, counted, found[0])

    @property
    def at_once(self) -> int:
        """So many may go at once from rest; what follows is `interval` apart. `count`: nothing is spaced.

        `burst` says it. Without, messages and recipients by the second are spaced, an eighth of them at once: whoever counts
        by the second means a speed. What is counted by longer periods, connections and bytes may go all at once; so may what
        is refused when it is full, for nobody waits there for his turn.
        """
        if self.burst:
            return min(self.burst, self.count)
        if self.period == PERIODS["s"] and self.unit in ("messages", "recipients") and self.when_full != "reject":
            return max(1, self.count // 8)
        return self.count

    @property
    def interval(self) -> float:
        """Seconds from one to the next where they are spaced."""
        return self.period / self.count

    @property
    def key(self) -> str:
        """What a count is about, whatever the numbers: one is kept under the same key when they change."""
        return f"{self.unit} in {self.period:g}s" + (f" by the calendar of {self.timezone}" if self.calendar else "")

    def __str__(self) -> str:
        return f"{self.text} by the calendar of {self.timezone}" if self.calendar else self.text


def known_timezone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


@dataclass(slots=True)
class _Part:
    """What was spent in one step of a period, or in one period by the calendar."""

    until: float  # when it is forgotten: a period after the last that was spent in it
    count: int
    key: float  # the latest that `until` may become; fixed from the start


@dataclass(slots=True)
class Spent:
    """What was used of one rate: a log of a period, and where spaced the time of the next turn. Memory: up to 130 parts.

    The log makes the limit exact: what is spent counts for a whole period, or to the end of the calendar's. What falls into
    one step (a 128th of the period) is one part, forgotten with the last of it: late, never early.

    Spaced is by the virtual scheduling algorithm (GCRA) of ITU-T I.371: `_turn` is its theoretical arrival time.

    A clock that went back is held at the latest time that was seen: for so long nothing is forgotten, and nothing made up.
    One that went back by more than a period would hold it for too long: then all that counts is as if spent just now.
    """

    parts: deque[_Part] = field(default_factory=deque)  # in the order in which they are forgotten
    total: int = 0  # of the parts
    _turn: float = 0.0  # by then what was spent so far is spaced out
    _latest: float = 0.0  # time at which something was spent or forgotten
    _changed: dict[float, int] = field(default_factory=dict)  # by key, since `changed`

    def wait(self, rate: Rate, count: int, now: float) -> float:
        """Seconds until `count` more fit; 0: now. More than the whole rate never fits, and waits a whole period.

        More than may go at once, but no more than the rate, goes from rest, and what follows waits for longer.
        """
        if now < self._latest and now < self._latest - rate.period:
            self._restart(rate, now)
        if self.parts and self.parts[0].until <= now:
            self._forget(now)
        over = self.total + count - rate.count
        if over <= 0 and self._turn <= now:
            return 0.0
        wait = self._early(rate, count, now)
        if over <= 0:
            return wait
        for part in self.parts:
            over -= part.count
            if over <= 0:
                return max(wait, part.until - now)
        return rate.period

    def left(self, rate: Rate, now: float) -> int:
        """How much more fits now, all together."""
        if now < self._latest or (self.parts and self.parts[0].until <= now):
            self._left(rate, now)
        left = rate.count - self.total
        if self._turn > now and left > 0 and (once := rate.at_once) < rate.count:
            left = min(left, _whole(once - (self._turn - now) / rate.interval))
        return left if left > 0 else 0

    def ready(self, rate: Rate, now: float, ahead: float) -> int:
        """How many may go one by one, the last of them so many seconds from now."""
        left = self._left(rate, now)
        if left > 0 and (once := rate.at_once) < rate.count:
            left = min(left, _whole(once + (now + ahead - max(now, self._turn)) / rate.interval))
        return max(0, left)

    def _left(self, rate: Rate, now: float) -> int:
        if now < self._latest and now < self._latest - rate.period:
            self._restart(rate, now)
        if self.parts and self.parts[0].until <= now:
            self._forget(now)
        return rate.count - self.total

    def _early(self, rate: Rate, count: int, now: float) -> float:
        """Seconds until it is the turn of so many. More than may go at once go when all before them are spaced out."""
        once = rate.at_once
        if once >= rate.count:
            return 0.0
        early = self._turn - (once - min(count, once)) * rate.interval - now
        return early if early > TINY else 0.0

    def add(self, rate: Rate, count: int, now: float) -> None:
        """`count` are spent. Whether they fit is the caller's to ask."""
        if now < self._latest - rate.period:
            self._restart(rate, now)
        self._latest = now = max(now, self._latest)
        self._forget(now)
        self._log(rate, count, now)
        if (once := rate.at_once) < rate.count:
            # Who comes late for his turn makes up for it; who comes so late that he had nothing to send begins anew.
            if now - self._turn > min(max(rate.interval, LATE), once * rate.interval):
                self._turn = now
            self._turn = min(self._turn + count * rate.interval, now + rate.period)

    def _log(self, rate: Rate, count: int, now: float) -> None:
        part = self.parts[-1] if self.parts else None
        if part is None or (not rate.calendar and part.key < _key(rate, now)):
            key = _key(rate, now)
            part = _Part(key, 0, key)
            self.parts.append(part)
        part.until = part.key if rate.calendar else now + rate.period
        part.count += count
        self.total += count
        self._changed[part.key] = part.count

    def take_back(self, rate: Rate, count: int, when: float) -> None:
        """What was added at `when` was spent in vain. What was added since stays as it is, or it would end too soon."""
        key = _key(rate, when)
        if (key if rate.calendar else when + rate.period) <= self._latest:
            return  # it is forgotten
        for part in self.parts:
            if part.key >= key:
                back = min(part.count, count)
                part.count -= back
                self.total -= back
                self._changed[part.key] = part.count
                if part is self.parts[-1] and self._turn:
                    self._turn -= back * rate.interval
                return

    def move(self, rate: Rate, count: int, when: float, now: float) -> None:
        """What was added at `when` happens only now: it is forgotten a period after that. The turns stay as they are."""
        turn = self._turn
        self.take_back(rate, count, when)
        self._latest = now = max(now, self._latest)
        self._forget(now)
        self._log(rate, count, now)
        self._turn = turn

    def empty(self, now: float) -> bool:
        self._forget(now)
        return not self.parts

    # -- made durable

    def changed(self) -> list[tuple[float, int]]:
        """(until, count) of each part that changed since the last call: what `restored` wants, the last of each `until`.

        `until` is no more than the end of the part's step and a period. It stays what it is while the part grows, so that a
        row is written over; for that it is up to a 128th of the period later than in memory. A count of 0 is a row to forget.
        """
        if not self._changed:
            return []
        rows = list(self._changed.items())
        self._changed = {}
        return rows

    @classmethod
    def restored(cls, rate: Rate, parts: Iterable[tuple[float, int]], now: float) -> Self:
        """As it was, by rows of `changed` under the same `Rate.key`. What is spaced has no burst to begin with.

        By the calendar a row does not tell when in the period it was spent, and nothing tells of the period before: after one
        message to more than the burst, or after midnight, the first is not spaced as far as it was. The count holds all the same.
        """
        made, last, again = cls(_latest=now), _key(rate, now), 0
        for key, count in sorted(parts):
            if key <= now or count <= 0:
                continue
            if key > last:  # the clock went back meanwhile
                again += count
                made._changed[key] = 0
                continue
            made.parts.append(_Part(key, count, key))
            made.total += count
            if not rate.calendar:
                made._turn = max(made._turn, key - rate.period) + count * rate.interval
        if again:
            made._log(rate, again, now)
        if not made.parts or rate.at_once >= rate.count:
            made._turn = 0.0
        else:
            made._turn = min(max(made._turn, now + rate.at_once * rate.interval), now + rate.period)
        return made

    def _forget(self, now: float) -> None:
        parts = self.parts
        while parts and parts[0].until <= now:
            part = parts.popleft()
            self.total -= part.count
            self._changed.pop(part.key, None)
            self._latest = max(now, self._latest)
        if not parts and self._changed:
            self._changed.clear()

    def _restart(self, rate: Rate, now: float) -> None:
        """The clock went back by more than a period."""
        again = self.total
        self._turn = now + max(0.0, self._turn - self._latest)
        self._changed |= {part.key: 0 for part in self.parts}
        self.parts.clear()
        self.total, self._latest = 0, now
        if again:
            self._log(rate, again, now)


def _whole(number: float) -> int:
    """Rounded down, but for what arithmetic lost."""
    return int(number + TINY) if number > 0 else 0


def _key(rate: Rate, now: float) -> float:
    """When what is spent now is forgotten at the latest."""
    if rate.calendar:
        return _end_of(rate, now)
    step = rate.period / PARTS
    return (now // step + 1) * step + rate.period


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
