"""How fast an account may send: by the limits that are known, and by what it is heard to take. Pure: time is an argument.

Known limits are sliding windows or the calendar's (policy.rate). Where the account complains all the same, its rate is
learnt: between two complaints the upstream took exactly what it takes. Then one message follows another at even distances,
a little slower than that, and slowly faster while nobody complains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from relay.policy.gate import ANY
from relay.policy.rate import Rate, Spent, Unit

PATIENCE = 64.0  # seconds: the longest rest after a complaint that names no time
BELOW = 0.97  # of what it was heard to take
CLOSE = 120.0  # seconds: two complaints so near to each other tell a rate
SLOWEST, FASTEST = 1 / 300, 1000.0  # messages a second: faster is not worth an even distance
START = 2.0  # messages a second after the first complaint
LEAST = 1.5  # seconds between two steps
STEP = 1.15  # faster at once, below where it complained
CAUTIOUS = 100  # messages between two steps beyond
GROWTH, MOST_GROWTH = 0.02, 0.5  # of those
AHEAD = 0.25  # seconds of a learnt rate that may be claimed ahead


@dataclass(slots=True)
class Pace:
    """Of one account, or of one lane of direct delivery. `began` of a transaction is the time that `take` was told."""

    limits: Sequence[Rate] = ()
    also: Sequence[Pace] = ()  # others' limits that bind as well: the direct entry's, over all its lanes
    rate: float | None = None  # messages a second, learnt; None: nobody complained
    until: float = 0.0  # it was told to wait so long
    why: str = ""  # of `until`, and of `rate`
    complaints: int = 0  # in a row, with nothing taken between them
    whose: str = "its"  # its limits are, where one that has this Pace beside its own is told of them
    _spent: list[Spent] = field(default_factory=list)
    _next: float = 0.0  # at the learnt rate nothing before this
    _ceiling: float | None = None  # the learnt rate at which it complained
    _growth: float = GROWTH
    _grown: float = 0.0  # when the rate last changed
    _complained: float | None = None
    _taken: int = 0  # messages that the upstream took since it complained
    _steady: int = 0  # and since the rate last changed

    def __post_init__(self) -> None:
        self._spent = [Spent() for _ in self.limits]

    @property
    def free(self) -> bool:
        """Nothing binds."""
        mine = not self.limits and self.rate is None and not self.until
        return mine and (not self.also or all(other.free for other in self.also))

    def keep(self, old: Pace) -> None:
        """What was spent and learnt before a reload; of a limit that changed its numbers the count stays.

        Who is still at work by the old one counts here too.
        """
        for place, rate in enumerate(self.limits):
            for before, was in zip(old._spent, old.limits, strict=True):
                if (was.period, was.unit, was.calendar, was.timezone) == (
                    rate.period, rate.unit, rate.calendar, rate.timezone,
                ):  # fmt: skip
                    self._spent[place] = before
        self.rate, self.until, self.why, self.complaints, self._next = (
            old.rate, old.until, old.why, old.complaints, old._next,
        )  # fmt: skip
        self._ceiling, self._grown, self._complained = old._ceiling, old._grown, old._complained

    def ask_again(self, now: float) -> None:
        """An operator may have mended what it waits for: one message may leave now."""
        self.until, self._next = min(self.until, now), min(self._next, now)

    def unspent(self, now: float) -> bool:
        """There is nothing to remember of it."""
        return self.until <= now and all(spent.empty(now) for spent in self._spent)

    # -- before

    def wait(self, now: float, recipients: int = 1) -> tuple[float, str]:
        """(seconds until one message to so many recipients may leave, why); 0: now."""
        longest, why = 0.0, ""
        if self.until > now:
            longest, why = self.until - now, self.why
        if self.rate is not None and self._next - now > longest:
            longest, why = self._next - now, f"it takes about {self.shown}: {self.why}"
        for other in self.also:
            theirs = other.wait(now, recipients)
            if theirs[0] > longest:
                longest, why = theirs
        for rate, spent in self._of("messages", "recipients"):
            # More than the whole limit leaves when nothing else was spent.
            count = min(rate.count, recipients if rate.unit == "recipients" else 1)
            wait = spent.wait(rate, count, now)
            if wait > longest:
                longest, why = wait, f"{self.whose} limit of {rate} is used up"
        return longest, why

    def room(self, now: float) -> int:
        """Messages to one recipient each that may leave about now."""
        if self.until > now:
            return 0
        room = ANY
        if self.rate is not None:
            late = now - self._next
            room = 0 if late < -AHEAD else 1 + int(self.rate * AHEAD)
        for rate, spent in self._of("messages", "recipients"):
            room = min(room, spent.left(rate, now))
        return max(0, min([room, *(other.room(now) for other in self.also)]))

    def recipients(self, now: float) -> int:
        """To how many one message may leave now."""
        if self.wait(now)[0] > 0:
            return 0
        left = [spent.left(rate, now) for rate, spent in self._of("recipients")]
        return min([*left, *(other.recipients(now) for other in self.also)], default=ANY)

    def take(self, now: float, recipients: int) -> None:
        """A message leaves."""
        for other in self.also:
            other.take(now, recipients)
        for rate, spent in self._of("messages", "recipients"):
            spent.add(rate, recipients if rate.unit == "recipients" else 1, now)
        if self.rate is not None:
            self._next = max(now, self._next) + 1 / self.rate

    def dial_wait(self, now: float) -> tuple[float, str]:
        """As `wait`, for one session more."""
        waits = [
            (spent.wait(rate, 1, now), f"{self.whose} limit of {rate} is used up")
            for rate, spent in self._of("connections")
        ]
        return max([(0.0, ""), *waits, *(other.dial_wait(now) for other in self.also)])

    def dials(self, now: float) -> int:
        """Sessions that may be opened now."""
        left = [spent.left(rate, now) for rate, spent in self._of("connections")]
        return min([*left, *(other.dials(now) for other in self.also)], default=ANY)

    def dialled(self, now: float) -> None:
        """A session is opened."""
        for other in self.also:
            other.dialled(now)
        for rate, spent in self._of("connections"):
            spent.add(rate, 1, now)

    def _of(self, *units: Unit) -> list[tuple[Rate, Spent]]:
        return [(r, s) for r, s in zip(self.limits, self._spent, strict=True) if r.unit in units]

    def hold(self, now: float, seconds: float, why: str) -> None:
        """Nothing leaves for so long."""
        if now + seconds > self.until:
            self.until, self.why = now + seconds, why

    # -- after

    def accepted(self, now: float) -> None:
        """The upstream took a message."""
        if self.rate is None:
            return
        self._taken += 1
        self._steady += 1
        self.complaints = 0
        if now >= self.until:
            self._faster(now)

    def _faster(self, now: float) -> None:
        """In big steps up to where it complained, from there on in small ones, which grow while it does not."""
        assert self.rate is not None
        if self._steady < 5 or now - self._grown < LEAST:
            return
        if self._ceiling is None:
            self.rate *= 2
        elif self.rate * STEP <= self._ceiling * BELOW:
            self.rate *= STEP
        elif self._steady >= CAUTIOUS and now - self._grown >= 15.0:
            self.rate *= 1 + self._growth
            self._growth = min(MOST_GROWTH, 2 * self._growth)
        else:
            return
        self._steady, self._grown = 0, now
        if self.rate > FASTEST:
            self.rate = None

    def complained(self, now: float, began: float, wait: float | None, why: str) -> bool:
        """The upstream said that it was too fast, about a transaction begun at `began`. Whether that is news.

        `wait`: for so many seconds, if it said.
        """
        if self._complained is not None and began <= self._complained:
            return False  # under way when the first complaint came: it tells nothing more
        first = self.rate is None
        rate = self._learnt(now)
        self._ceiling = None if first else self.rate
        self.rate = rate
        self.complaints += 1
        rest = wait if wait is not None else min(PATIENCE, max(1 / rate, 0.5 * 2.0**self.complaints))
        self.why = why
        self.hold(now, rest, why)
        self._next = self.until
        self._complained = self._grown = now
        self._growth, self._taken, self._steady = GROWTH, 0, 0
        return True

    def _learnt(self, now: float) -> float:
        """The rate that its complaint shows."""
        if self.rate is None:
            found = START  # what it had stored up went out in one burst: nobody knows yet what it takes
        elif self._complained is None or now - self._complained > CLOSE:
            found = self.rate * BELOW
        else:
            # Both times it had nothing left: what it took between them is what it takes.
            found = self._taken / max(now - self._complained, 0.001)
            found = min(self.rate, max(found, self.rate / 2)) * BELOW
        return min(FASTEST, max(SLOWEST, found))

    @property
    def shown(self) -> str:
        """The learnt rate for people."""
        if self.rate is None:
            return ""
        return f"{self.rate:.1f}/s" if self.rate >= 1 else f"{self.rate * 60:.1f}/min"
