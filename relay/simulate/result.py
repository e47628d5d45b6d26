"""What a simulation came to: by egress and class, by rule, and over time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from relay.envelope import queue_id
from relay.simulate.run import Left
from relay.simulate.shelf import PLANNED

HOUR = 3600.0
COLUMNS = (*("time", "due", "queue_id", "count", "size", "class", "route", "egress", "destination", "waited", "why"),)


@dataclass(slots=True)
class Part:
    """Of one egress and class. Times in epoch seconds, waiting in seconds."""

    egress: str
    class_: str
    messages: int = 0
    first: float = 0.0
    last: float = 0.0
    peak: int = 0  # messages in an hour
    longest: float = 0.0
    held: Counter[str] = field(default_factory=Counter)  # seconds of all messages together, by rule
    _hour: deque[float] = field(default_factory=deque)

    def add(self, left: Left) -> None:
        self.first = left.at if not self.messages else self.first
        self.messages, self.last = self.messages + 1, left.at
        self._hour.append(left.at)
        while self._hour[0] <= left.at - HOUR:
            self._hour.popleft()
        self.peak = max(self.peak, len(self._hour))
        self.longest = max(self.longest, left.at - left.due_at)
        self.held.update(left.held)

    @property
    def bound(self) -> str:
        """The rule that held it longest; empty: none did."""
        return max(self.held, key=lambda rule: self.held[rule], default="")


@dataclass(slots=True)
class Result:
    """`left`: all, in order."""

    left: list[Left] = field(default_factory=list)
    parts: dict[tuple[str, str], Part] = field(default_factory=dict)
    rules: Counter[str] = field(default_factory=Counter)  # messages that each held
    held: Counter[str] = field(default_factory=Counter)  # seconds, all together

    def add(self, left: Left) -> None:
        self.left.append(left)
        part = self.parts.get((left.egress, left.class_))
        if part is None:
            part = self.parts[left.egress, left.class_] = Part(left.egress, left.class_)
        part.add(left)
        self.rules.update(left.held.keys())
        self.held.update(left.held)


def row(left: Left) -> dict[str, Any]:
    """A flat object. `time` and `due` in epoch seconds, `waited` in seconds; `why`: the rule that held it longest."""
    return {
        "time": round(left.at, 3),
        "due": round(left.due_at, 3),
        "queue_id": queue_id(left.message) if left.message < PLANNED else "",
        "count": left.recipients,
        "size": left.size,
        "class": left.class_,
        "route": left.route,
        "egress": left.egress,
        "destination": left.site,
        "waited": round(left.at - left.due_at, 3),
        "why": max(left.held, key=lambda rule: left.held[rule], default=""),
    }


def written(found: Mapping[str, Any]) -> list[Any]:
    """A row for people who read CSV: times as ISO 8601, in local time."""
    made = dict(found)
    for name in ("time", "due"):
        made[name] = datetime.fromtimestamp(found[name]).astimezone().isoformat(timespec="milliseconds")
    return [made[name] for name in COLUMNS]


@dataclass(slots=True)
class Series:
    """Over time, in steps: what left, by egress, and how much waited at the end of each step."""

    start: float
    step: float
    left: dict[str, list[int]]
    waiting: list[int]


_STEPS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, HOUR, 2 * HOUR, 6 * HOUR, 24 * HOUR)


def series(left: Iterable[Left], start: float, end: float, still: Iterable[float] = (), most: int = 150) -> Series:
    """In at most so many steps, of a length that people count in. `still`: since when what has not left is due."""
    span = max(1.0, end - start)
    step = next((s for s in _STEPS if span / s <= most), span / most)
    count = int(span // step) + 1

    def place(at: float) -> int:
        return min(count - 1, max(0, int((at - start) // step)))

    made: dict[str, list[int]] = {}
    change = [0] * count
    for one in left:
        made.setdefault(one.egress, [0] * count)[place(one.at)] += 1
        change[place(one.due_at)] += 1
        change[place(one.at)] -= 1
    for due_at in still:
        if due_at <= end:
            change[place(due_at)] += 1
    waiting, now = [], 0
    for more in change:
        now += more
        waiting.append(now)
    return Series(start, step, made, waiting)
