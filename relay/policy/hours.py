"""Hours of the day and days of the week, by the clock of a zone. Pure: time is an argument.

A moment is inside where the clock on the wall, read in that zone, shows a time of the window. So an hour that the clock
shows twice when summer ends counts twice, and what begins in the hour that it leaves out when summer begins, begins with
the first minute that it shows; what lies in that hour alone does not take place on that day.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf
from zoneinfo import ZoneInfo

from relay.policy.rate import known_timezone

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = 86400
# Longer than any way of hours and days takes to come round, were it to miss its turn to a change of the clock twice.
_HORIZON = 22 * _DAY
_WRITTEN = re.compile(r"([0-9]{1,2}):([0-9]{2})\s*-\s*([0-9]{1,2}):([0-9]{2})")


@dataclass(frozen=True, slots=True)
class Hours:
    """From `start` up to `end` on `days`. An `end` at or before `start` lies on the next day."""

    text: str  # as it was written, for people
    start: int = 0  # minutes after midnight
    end: int = 1440
    days: frozenset[int] = frozenset(range(7))  # on which it starts; 0: Monday
    timezone: str = "UTC"

    @classmethod
    def parse(cls, hours: str = "", days: str = "", timezone: str = "UTC") -> Hours:
        """`22:00-07:00`, `mon-fri` or `mon,wed,fri`; an empty one is the whole day, or every day. Raises ValueError."""
        if not hours and not days:
            raise ValueError("expected hours such as 08:00-20:00, days such as mon-fri, or both")
        if not known_timezone(timezone):
            raise ValueError(f"no time zone {timezone!r}; expected a name such as Europe/Berlin or UTC")
        start, end = _minutes(hours) if hours else (0, 1440)
        text = " ".join(filter(None, (days, hours, timezone)))
        return cls(text, start, end, _days(days) if days else frozenset(range(7)), timezone)

    def __str__(self) -> str:
        return self.text

    def inside(self, now: float) -> bool:
        local = datetime.fromtimestamp(now // 1, ZoneInfo(self.timezone))
        day, minute = local.weekday(), local.hour * 60 + local.minute
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        return (minute >= self.start and day in self.days) or (minute < self.end and (day - 1) % 7 in self.days)

    def opens(self, now: float) -> float:
        """Seconds until it is inside; 0: it is. inf: never."""
        return 0.0 if self.inside(now) else self.change(now) - now

    def closes(self, now: float) -> float:
        """Seconds until it is outside; 0: it is. inf: never."""
        return self.change(now) - now if self.inside(now) else 0.0

    def change(self, now: float) -> float:
        """The first moment after `now` at which it is not what it is now, epoch seconds; inf: there is none."""
        zone, was = ZoneInfo(self.timezone), self.inside(now)
        # In whole seconds, in which every zone counts: no rounding steps over an edge.
        first = at = int(now // 1)
        while at - first < _HORIZON:
            offset = _offset(zone, at)
            wall = at + offset
            midnight = wall - wall % _DAY
            edges = (midnight + minute * 60 for minute in (self.start, self.end % 1440))
            edge = min(e if e > wall else e + _DAY for e in edges) - offset
            # The clock is changed at most once in a day: no zone has done it twice within two since 1970.
            at = edge if _offset(zone, edge) == offset else _clock_change(zone, at, edge)
            if self.inside(at) is not was:
                return float(at)
        return inf


def _offset(zone: ZoneInfo, at: int) -> int:
    """Seconds that the zone's clock is ahead of UTC."""
    return int((datetime.fromtimestamp(at, zone).utcoffset() or timedelta()).total_seconds())


def _clock_change(zone: ZoneInfo, before: int, after: int) -> int:
    """The first second of another offset than at `before`, where `after` has one."""
    offset = _offset(zone, before)
    while after - before > 1:
        middle = (before + after) // 2
        before, after = (middle, after) if _offset(zone, middle) == offset else (before, middle)
    return after


def _minutes(hours: str) -> tuple[int, int]:
    """(start, end) after midnight."""
    found = _WRITTEN.fullmatch(hours.strip()) if hours.isascii() else None
    if found is None:
        raise ValueError(f"expected hours such as 08:00-20:00, found {hours!r}")
    start, end = int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4])
    if int(found[2]) > 59 or int(found[4]) > 59 or start >= 1440 or end > 1440:
        raise ValueError(f"{hours}: a day's times are 00:00 to 24:00")
    if start == end % 1440 and (start, end) != (0, 1440):
        raise ValueError(f"{hours}: is that no time at all, or a whole day? All day is 00:00-24:00")
    return start, end


def _days(days: str) -> frozenset[int]:
    """`mon-fri`, `mon,wed,fri`, `fri-mon` (over the weekend), or several of them with commas."""
    found: set[int] = set()
    for part in days.lower().split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        for word in (first, last) if dash else (first,):
            if word not in DAYS:
                raise ValueError(f"no day {word!r}; expected days such as mon-fri or mon,wed,sat: {', '.join(DAYS)}")
        start = DAYS.index(first)
        found |= {(start + n) % 7 for n in range((DAYS.index(last) - start) % 7 + 1 if dash else 1)}
    return frozenset(found)


def waits(window: Hours | None, quiet: Hours | None, now: float) -> tuple[float, str]:
    """(seconds until mail may leave, why not now): inside its window and outside its quiet hours. (0, ""): now; inf: never."""
    at, why = _leaves(window, quiet, now)
    return at - now, why


def _leaves(window: Hours | None, quiet: Hours | None, now: float) -> tuple[float, str]:
    """As `waits`, with the moment itself, epoch seconds."""
    at, zone, reasons = now, "UTC", dict[str, None]()
    while at - now < _HORIZON:
        if window is not None and not window.inside(at):
            at, zone, reason = window.change(at), window.timezone, f"outside its hours {window}"
        elif quiet is not None and quiet.inside(at):
            at, zone, reason = quiet.change(at), quiet.timezone, f"in its quiet hours {quiet}"
        else:
            return at, f"{', then '.join(reasons)}, until {_told(at, now, zone)}" if reasons else ""
        reasons[reason] = None
    return inf, f"{', then '.join(reasons)}: there is no time between them"


def _told(at: float, now: float, timezone: str) -> str:
    """`Mon 08:00 CET`; beyond six days, which would name a day that is not the next one of its name, the date."""
    local = datetime.fromtimestamp(at, ZoneInfo(timezone))
    day = DAYS[local.weekday()].title() if at - now < 6 * _DAY else local.date().isoformat()
    return f"{day} {local:%H:%M %Z}"


class Clockwork:
    """`waits`, looked up again only once it changes: a gate asks it at each pass."""

    __slots__ = ("_since", "_why", "quiet", "until", "window")

    def __init__(self, window: Hours | None, quiet: Hours | None) -> None:
        self.window, self.quiet = window, quiet
        self.until = -inf  # what was said last holds up to then, epoch seconds
        self._since = inf
        self._why = ""

    def waits(self, now: float) -> tuple[float, str]:
        if not self._since <= now < self.until:  # a clock that was set back makes it look again as well
            self._look(now)
        return (self.until - now, self._why) if self._why else _NOW

    def _look(self, now: float) -> None:
        self._since = now
        self.until, self._why = _leaves(self.window, self.quiet, now)
        if not self._why:
            self.until = min((h.change(now) for h in (self.window, self.quiet) if h is not None), default=inf)


_NOW = (0.0, "")
