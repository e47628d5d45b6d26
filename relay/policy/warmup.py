"""How much a new address may send from day to day, until it is known. Pure: time is an argument.

`WarmUp` is the plan, `Ramp` where one egress (or an egress towards one destination) stands in it. Two rules are those of
Google's guidelines for senders (support.google.com/mail/answer/81126, "Increase sending volume slowly"):

- It warns of "immediately doubling previously sent volumes". So a day is earned: the plan moves on after a day on which at
  least half of its allowance left, and stays where it is after any other. However long nothing was sent, a day then allows
  no more than twice of what a day before has shown, and the plan's one step.
- "If messages start bouncing or start being deferred, reduce the sending volume until the SMTP error rate decreases. Then,
  increase slowly again." So `hold_above` holds the ramp or halves it, and it goes on after a whole day without such.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

from relay.policy.gate import ANY
from relay.policy.held import FREE, Held
from relay.policy.reputation import Rates, Share

HOUR, DAY = 3600.0, 86400.0
KINDS = ("bounces", "complaints", "deferrals")
FEW = 20  # of fewer that were tried nothing is held: one wrong address among the first would halve a ramp
MOST = 10**12  # a plan that grows for ever grows to this


@dataclass(frozen=True, slots=True)
class HoldAbove:
    """Shares, 0 to 1, of what was tried; None: not looked at."""

    bounces: float | None = None
    complaints: float | None = None
    deferrals: float | None = None


@dataclass(frozen=True, slots=True)
class WarmUp:
    """The plan. A day is the clock's in `timezone`. On its first day it may send `first`, on each day that it has earned
    (see above) `growth` more, by `max_step` at most, up to `until`, after which it has no limit by this; or what `table`
    says of the day. Nothing leaves before `start`."""

    start: date
    first: int = 0
    growth: float = 0.2  # 0.2: a fifth more each day
    max_step: int = 0  # 0: as much as `growth` gives
    until: int = 0
    table: tuple[int, ...] = ()  # instead of the four; after its last day it has no limit by this
    unit: Literal["messages", "recipients"] = "recipients"
    spread: Literal["hourly", "none"] = "hourly"
    timezone: str = "UTC"
    overflow: str = ""  # the egress that takes what is in excess; empty: it waits
    hold_above: HoldAbove = HoldAbove()

    def allowance(self, level: int) -> int | None:
        """Of the day after `level` (0 or more) that were earned; None where the plan has ended."""
        if self.table:
            return self.table[level] if level < len(self.table) else None
        amount = float(self.first)
        for _ in range(level):
            if (self.until and amount >= self.until) or amount >= MOST:
                return None if self.until else MOST
            step = amount * self.growth
            amount += min(step, self.max_step) if self.max_step else step
        return min(round(amount), self.until or MOST)

    def nearest(self, amount: int, most: int) -> int:
        """The level, of those up to `most`, whose allowance is nearest to `amount`; of two the lower."""
        best, distance = 0, -1
        for level in range(most + 1):
            allowed = self.allowance(level)
            if allowed is None:
                break
            if distance < 0 or abs(allowed - amount) < distance:
                best, distance = level, abs(allowed - amount)
        return best


class _Day(NamedTuple):
    """The day that is counted: its first moment and its end, when its count is forgotten, and what may leave on it."""

    start: float
    end: float
    until: float
    hours: int  # 23 to 25
    allowed: int | None


@dataclass(slots=True)
class Ramp:
    """Where one warm-up stands. Times in epoch seconds; `n` counts in the plan's unit. Memory: a few numbers.

    With `spread: hourly` at most (h + 1) / hours of the day's allowance, rounded up, has left by the end of its hour h: what
    is left over in one hour may leave in the next. A clock that runs backwards by less than two days stays in the day that
    was counted, so that no day is had twice; one that was further ahead was wrong, and the count goes on in today's.
    """

    plan: WarmUp
    name: str  # the egress', for people
    level: int = 0  # days earned
    count: int = 0  # that left today
    held: str = ""  # why it does not grow; empty: it does
    cap: int | None = None  # what it was halved to
    _day: date | None = None  # that `count` is of
    _bad: date | None = None  # the last day on which a rate was too high
    _halved: float = -DAY  # when
    _rows: dict[float, int] = field(default_factory=dict)  # counts that are not durable yet, by when they are forgotten
    _known: _Day | None = None
    _heir: Ramp | None = None  # the one that a reload has put in its place

    @property
    def unit(self) -> Literal["messages", "recipients"]:
        return self.plan.unit

    # -- before

    def wait(self, now: float, n: int = 1) -> Held:
        """How long `n` more have to wait. More than a whole day's allowance are asked for as one of those; see `left`."""
        if self._heir is not None:
            return self._last().wait(now, n)
        today = self._today(now)
        if self._early:
            start = _midnight(self.plan.start, self.plan.timezone)
            return self._held(start - now, f"warm-up of {self.name} starts on {self.plan.start.isoformat()}")
        if today.allowed is None:
            return FREE
        need = self.count + max(1, min(n, today.allowed))
        if need <= self._may(today, now):
            return FREE
        at = today.end
        if need <= today.allowed:  # in the first hour whose share has room: the inverse of `_may`
            at = today.start + HOUR * ((need - 1) * today.hours // today.allowed)
        clock = datetime.fromtimestamp(at, ZoneInfo(self.plan.timezone)).strftime("%H:%M %Z")
        return self._held(at - now, f"{self.told(now)}; next at {clock}")

    def left(self, now: float) -> int:
        """How many more may leave now."""
        if self._heir is not None:
            return self._last().left(now)
        today = self._today(now)
        if self._early:
            return 0
        return ANY if today.allowed is None else max(0, self._may(today, now) - self.count)

    def fresh(self, now: float) -> bool:
        """A new one would be the same: it has earned nothing, and nothing left today."""
        self._today(now)
        return not (self.level or self.count or self.held)

    def told(self, now: float) -> str:
        """Where it stands, for people."""
        allowed = self._today(now).allowed
        if allowed is None:
            return f"warm-up of {self.name} has ended"
        held = f", {'halved' if self.cap is not None else 'held'}: {self.held}" if self.held else ""
        return f"warm-up of {self.name}: day {self.level + 1}, {self.count} of {allowed} {self.unit} today{held}"

    @property
    def over(self) -> bool:
        """The plan has ended."""
        return self.plan.allowance(self.level) is None

    @property
    def _early(self) -> bool:
        return self._day is None or self._day < self.plan.start

    def _held(self, seconds: float, why: str) -> Held:
        return Held(max(0.001, seconds), why, bool(self.plan.overflow))

    def _may(self, today: _Day, now: float) -> int:
        """What may have left by the end of this hour."""
        assert today.allowed is not None
        if self.plan.spread == "none":
            return today.allowed
        hour = min(today.hours - 1, max(0, int((now - today.start) // HOUR)))
        return -(-today.allowed * (hour + 1) // today.hours)

    # -- the day

    def _today(self, now: float) -> _Day:
        if self._known and self._known.start <= now < self._known.end:
            return self._known
        local = _date(now, self.plan.timezone)
        if self._day is None or local > self._day:
            self._advance(local)
        elif (self._day - local).days > 1:
            self._day, self._halved = local, min(self._halved, now)
            self._bad = self._bad and min(self._bad, local)
        self._known = None
        return self._counted()

    def _counted(self) -> _Day:
        """The day of `count`, which need not be today's yet."""
        if self._known is None:
            assert self._day is not None
            zone = self.plan.timezone
            # The count outlives its day by one: a restart after midnight still has to know whether the day was earned.
            start, end, until = (_midnight(self._day + timedelta(days), zone) for days in (0, 1, 2))
            self._known = _Day(start, end, until, max(1, math.ceil((end - start) / HOUR)), self._allowed())
        return self._known

    def _allowed(self) -> int | None:
        """What its level allows, or less where it was halved."""
        planned = self.plan.allowance(self.level)
        return planned if planned is None or self.cap is None else min(planned, self.cap)

    def _advance(self, day: date) -> None:
        """To a later day. The one that was counted is earned if it was not held and half of it was used."""
        allowed = self._allowed()
        if not self._early and not self.held and allowed is not None and 2 * self.count >= allowed:
            self.level += 1
        self._day, self.count = day, 0

    # -- counting

    def take(self, now: float, n: int) -> None:
        """`n` leave."""
        ramp = self._last()
        today = ramp._today(now)
        if today.allowed is not None:
            ramp.count += n
            ramp._rows[today.until] = ramp.count

    def take_back(self, n: int, when: float) -> None:
        """`n` that were taken at `when` did not leave. Of a day that is over nothing comes back."""
        ramp = self._last()
        if ramp._day is None:
            return
        day = ramp._counted()
        if day.start <= when < day.end and day.allowed is not None:
            ramp.count = max(0, ramp.count - n)
            ramp._rows[day.until] = ramp.count

    def _last(self) -> Ramp:
        """Who is still at work by the one before a reload counts in the one after it."""
        ramp = self
        while ramp._heir is not None:
            ramp = ramp._heir
        return ramp

    def changed(self) -> list[tuple[float, int]]:
        """(when it is forgotten, the day's count) of each day whose count changed since this was asked. One row a day, and
        its time is its key: another row of the same time takes its place."""
        rows, self._rows = list(self._rows.items()), {}
        return rows

    def restore(self, rows: Sequence[tuple[float, int]], now: float) -> None:
        """What `changed` gave, read back, in any order. After `load`: the rows are the newer ones."""
        for until, count in sorted(rows):
            # Half a day on, for the configured time zone may be another one by now.
            day = _date(until + DAY / 2, self.plan.timezone) - timedelta(days=2)
            if self._day is None or day > self._day:
                self._advance(day)
            if day == self._day:
                self.count = count
        self._known = None
        self._today(now)

    # -- what happened to its mail

    def judge(self, now: float, rates: Rates) -> str:
        """Look at the rates of the last day. What changed, for the log: `held: ...`, `halved: ...`, `resumed: ...` or empty.

        Held where a rate is above its threshold beyond doubt: the lower bound is. Halved where it is above twice of that,
        once in 24 hours, for the same bounces would halve it again. It goes on when each rate was below its threshold for a
        whole day by the clock.
        """
        today = self._today(now)
        if today.allowed is None or self._early or self._day is None:
            return ""
        high: list[tuple[bool, str]] = []
        for kind in KINDS:
            threshold: float | None = getattr(self.plan.hold_above, kind)
            share: Share = getattr(rates, kind)
            if threshold is None or share.rate < threshold:
                continue
            self._bad = self._day
            if share.low > threshold and rates.total >= FEW:
                high.append((share.low > 2 * threshold, _words(kind, share, threshold)))
        if high:
            far, why = max(high, key=lambda one: one[0])
            return self._slower(now, why, far and today.allowed > 1, today.allowed)
        if self.held and (self._bad is None or (self._day - self._bad).days >= 2):
            self._resume()
            return f"resumed: {self._allowed()} {self.unit} a day, after a day below its thresholds"
        return ""

    def _slower(self, now: float, why: str, far: bool, allowed: int) -> str:
        news, self.held = not self.held, why
        if far and now - self._halved >= DAY:
            self._halved, self.cap, self._known = now, allowed // 2, None
            return f"halved: {allowed // 2} {self.unit} a day; {why}"
        return f"held: at {allowed} {self.unit} a day; {why}" if news else ""

    def _resume(self) -> None:
        if self.cap is not None:
            self.level = self.plan.nearest(self.cap, self.level)
        self.held, self.cap, self._bad, self._known = "", None, None, None

    # -- over a reload, and over a restart

    def keep(self, old: Ramp) -> None:
        """Where the one before a reload stood. What was earned is an amount: where the plan has other numbers by now, it
        goes on at the level whose allowance is nearest to what it had."""
        old = old._last()
        self.level = self._place(old.level, old.plan.allowance(old.level))
        self.count, self.held, self.cap, self._day = old.count, old.held, old.cap, old._day
        self._bad, self._halved, self._rows, self._known = old._bad, old._halved, old._rows, None
        old._heir = self
        if self.held and self.plan.hold_above == HoldAbove():
            self._resume()

    def _place(self, level: int, allowed: int | None) -> int:
        mine = self.plan.allowance(level)
        if mine == allowed or allowed is None:
            return level
        # Beyond its own level only as far as its amount: a plan that grows slower needs more days for the same.
        most = level
        while (more := self.plan.allowance(most)) is not None and more < allowed and most < level + 365:
            most += 1
        return self.plan.nearest(allowed, most)

    def state(self) -> dict[str, Any]:
        """What `load` reads, for JSON. The count of today is here too, but `changed` has it to the message."""
        return {
            "level": self.level,
            "allowance": self.plan.allowance(self.level),
            "day": self._day.isoformat() if self._day else "",
            "count": self.count,
            "held": self.held,
            "bad": self._bad.isoformat() if self._bad else "",
            "cap": self.cap,
            "halved": self._halved,
        }

    def load(self, state: dict[str, Any], now: float) -> None:
        """Go on where `state` says. Raises KeyError, TypeError or ValueError where `state` did not write it."""
        self.level = self._place(int(state["level"]), state["allowance"])
        self.count, self.held, self.cap = int(state["count"]), str(state["held"]), state["cap"]
        self._day = date.fromisoformat(state["day"]) if state["day"] else None
        self._bad = date.fromisoformat(state["bad"]) if state["bad"] else None
        self._halved = min(float(state["halved"]), now)
        self._known = None


def _words(kind: str, share: Share, threshold: float) -> str:
    return f"{kind} {share.rate:.2%} (at least {share.low:.2%}), above {threshold:.2%}"


def _date(now: float, timezone: str) -> date:
    return datetime.fromtimestamp(now, ZoneInfo(timezone)).date()


def _midnight(day: date, timezone: str) -> float:
    """The first moment of the day; where the clock jumps over midnight, the moment of the jump."""
    return datetime.combine(day, time(), ZoneInfo(timezone)).astimezone(UTC).timestamp()
