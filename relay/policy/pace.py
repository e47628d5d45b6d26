"""How fast an account may send: by the limits that are known, and by what it is heard to take. Pure: time is an argument.

Known limits are sliding windows or the calendar's, spaced or not (policy.rate). Where the account complains all the same, its rate is
learnt: between two complaints the upstream took exactly what it takes. Then one message follows another at even distances,
a little slower than that, and slowly faster while nobody complains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from relay.policy.gate import ANY
from relay.policy.held import FREE, Held
from relay.policy.rate import Rate, Spent
from relay.policy.throttle import Throttle
from relay.policy.warmup import Ramp

PATIENCE = 64.0  # seconds: the longest rest after a complaint that names no time
BELOW = 0.97  # of what it was heard to take
CLOSE = 120.0  # seconds: two complaints so near to each other tell a rate
SLOWEST, FASTEST = 1 / 300, 1000.0  # messages a second: faster is not worth an even distance
START = 2.0  # messages a second after the first complaint
LEAST = 1.5  # seconds between two steps
STEP = 1.15  # faster at once, below where it complained
CAUTIOUS = 100  # messages between two steps beyond
GROWTH, MOST_GROWTH = 0.02, 0.5  # of those
AHEAD = 0.25  # seconds of what is spaced, or of a learnt rate, that may be claimed ahead

WARM_UP = "warm-up"  # what a ramp counted is kept under this name
# What is learnt, as `state` names it.
LEARNT = ("rate", "until", "why", "complaints", "next", "ceiling", "grown", "complained", "growth")
_NONE = dict.fromkeys(("rate", "ceiling", "complained"), (type(None),))  # what may be unknown
_OWN = {"next": "_next", "ceiling": "_ceiling", "grown": "_grown", "complained": "_complained", "growth": "_growth"}


@dataclass(slots=True)
class _Count:
    """A limit, what was spent of it, and the name under which that is kept."""

    rate: Rate
    spent: Spent
    name: str

    def of(self, recipients: int, size: int) -> int:
        """What a message counts."""
        match self.rate.unit:
            case "recipients":
                return recipients
            case "bytes":
                return size
            case _:
                return 1


def _counts(limits: Sequence[Rate]) -> list[_Count]:
    """Two that differ in numbers only, such as one that defers and one that passes on, are told apart by their order."""
    made: list[_Count] = []
    for rate in limits:
        before = sum(other.rate.key == rate.key for other in made)
        made.append(_Count(rate, Spent(), f"{rate.key} #{before + 1}" if before else rate.key))
    return made


@dataclass(slots=True, eq=False)
class Pace:
    """Of one account, or of one lane of direct delivery. `began` of a transaction is the time that `take` was told."""

    limits: Sequence[Rate] = ()
    also: Sequence[Pace] = ()  # others' limits that bind as well: the direct entry's, over all its lanes
    rate: float | None = None  # messages a second, learnt; None: nobody complained
    until: float = 0.0  # it was told to wait so long
    why: str = ""  # of `until`, and of `rate`
    complaints: int = 0  # in a row, with nothing taken between them
    throttle: Throttle = field(default_factory=Throttle)  # a rule of `shaping` slows it
    whose: str = "its"  # its limits are, where one that has this Pace beside its own is told of them
    ramp: Ramp | None = None  # a limit that changes from day to day
    prefix: str = ""  # under which what was spent is kept
    _mail: list[_Count] = field(default_factory=list)  # limits of messages, recipients and bytes
    _dials: list[_Count] = field(default_factory=list)  # and of connections
    _next: float = 0.0  # at the learnt rate nothing before this
    _ceiling: float | None = None  # the learnt rate at which it complained
    _growth: float = GROWTH
    _grown: float = 0.0  # when the rate last changed
    _complained: float | None = None
    _taken: int = 0  # messages that the upstream took since it complained
    _steady: int = 0  # and since the rate last changed

    def __post_init__(self) -> None:
        for count in _counts(self.limits):
            (self._dials if count.rate.unit == "connections" else self._mail).append(count)

    @property
    def free(self) -> bool:
        """Nothing binds."""
        mine = (
            not self.limits and self.rate is None and not self.until and self.ramp is None and not self.throttle.until
        )
        return mine and (not self.also or all(other.free for other in self.also))

    def keep(self, old: Pace) -> None:
        """What was spent and learnt before a reload; of a limit that changed its numbers the count stays.

        Who is still at work by the old one counts here too.
        """
        known = {count.name: count.spent for count in old._every()}
        for count in self._every():
            if count.name in known:
                count.spent = known[count.name]
            elif count.rate.key in known:
                count.spent = deepcopy(known[count.rate.key])
        for name in LEARNT:
            setattr(self, _OWN.get(name, name), getattr(old, _OWN.get(name, name)))
        self.throttle = old.throttle
        if self.ramp is not None and old.ramp is not None and self.ramp is not old.ramp:
            self.ramp.keep(old.ramp)

    def _every(self) -> list[_Count]:
        return self._mail + self._dials

    def counts(self) -> list[tuple[Rate, Spent]]:
        """Its limits of mail, with what was spent of each."""
        return [(count.rate, count.spent) for count in self._mail]

    def ask_again(self, now: float) -> None:
        """An operator may have mended what it waits for: one message may leave now."""
        self.until, self._next = min(self.until, now), min(self._next, now)

    def unspent(self, now: float) -> bool:
        """There is nothing to remember of it."""
        quiet = self.until <= now and not self.throttle.binds(now) and (self.ramp is None or self.ramp.fresh(now))
        return quiet and all(count.spent.empty(now) for count in self._every())

    @property
    def spent(self) -> list[tuple[Rate, Spent]]:
        """Its own limits with what was spent of them."""
        return [(count.rate, count.spent) for count in self._every()]

    # -- made durable

    def rows(self) -> list[tuple[str, float, int]]:
        """(key, until, count) of what was spent since the last call; see `Spent.changed`. Of its own limits only."""
        found = [(c.name, until, spent) for c in self._every() for until, spent in c.spent.changed()]
        if self.ramp is not None:
            found += [(WARM_UP, until, count) for until, count in self.ramp.changed()]
        return [(f"{self.prefix} {name}", until, count) for name, until, count in found]

    def restore(self, kept: Callable[[str], Sequence[tuple[float, int]]], now: float) -> None:
        """What was spent before a restart. `kept`: the parts of a key of `rows`."""
        for count in self._every():
            found = kept(f"{self.prefix} {count.name}") or kept(f"{self.prefix} {count.rate.key}")
            if found:
                count.spent = Spent.restored(count.rate, found, now)
        if self.ramp is not None:
            self.ramp.restore(kept(f"{self.prefix} {WARM_UP}"), now)

    def state(self) -> dict[str, Any]:
        """What was learnt, for JSON; times are epoch seconds. Empty: nothing."""
        found: dict[str, Any] = {}
        if self.rate is not None or self.until:
            found = {name: getattr(self, _OWN.get(name, name)) for name in LEARNT}
        if self.ramp is not None:
            found[WARM_UP] = self.ramp.state()
        return found

    def load(self, state: Mapping[str, Any], now: float) -> None:
        """What `state` gave. What is over by now is not taken up. Raises ValueError, and what a ramp does, for anything else."""
        if self.ramp is not None and WARM_UP in state:
            self.ramp.load(state[WARM_UP], now)
        if "until" not in state or (state["rate"] is None and state["until"] <= now):
            return
        for name in LEARNT:
            value = state.get(name)
            if type(value) not in (str,) if name == "why" else type(value) not in (int, float, *_NONE.get(name, ())):
                raise ValueError(f"{name} is {value!r}")
        for name in LEARNT:
            setattr(self, _OWN.get(name, name), state[name])

    # -- before

    def wait(self, now: float, recipients: int = 1, size: int = 0) -> Held:
        """How long one message of so many bytes to so many recipients is held."""
        longest, why, passes = 0.0, "", False
        if self.until > now:
            longest, why = self.until - now, self.why
        if self.rate is not None and self._next - now > longest:
            longest, why = self._next - now, f"it takes about {self.shown}: {self.why}"
        slowed = self.throttle.wait(now)
        if slowed[0] > longest:
            longest, why = slowed
        for other in self.also:
            theirs = other.wait(now, recipients, size)
            if theirs.seconds > longest:
                longest, why, passes = theirs
        if self.ramp is not None:
            ramped = self.ramp.wait(now, self._ramped(recipients))
            if ramped.seconds > longest:
                longest, why, passes = ramped
        for count in self._mail:
            rate = count.rate
            # More than the whole limit leaves when nothing else was spent. Of no size: whether any byte is left.
            need = (
                1
                if rate.unit == "messages"
                else min(rate.count, recipients if rate.unit == "recipients" else size or 1)
            )
            wait = count.spent.wait(rate, need, now)
            if wait > longest:
                longest, why, passes = wait, self._used_up(rate), rate.when_full == "next"
        return Held(longest, why, passes) if longest else FREE

    def refuses(self, now: float, recipients: int) -> Held:
        """As `wait`, by those limits alone that refuse what is handed in while they are used up."""
        held = FREE
        for count in self._mail:
            if count.rate.when_full == "reject":
                seconds = count.spent.wait(count.rate, min(count.rate.count, count.of(recipients, 1)), now)
                held = max(held, Held(seconds, self._used_up(count.rate)), key=lambda one: one.seconds)
        return held

    def _used_up(self, rate: Rate) -> str:
        return f"{self.whose} limit of {rate} is used up"

    def _ramped(self, recipients: int) -> int:
        return recipients if self.ramp is not None and self.ramp.unit == "recipients" else 1

    def room(self, now: float) -> int:
        """Messages to one recipient each that may leave about now."""
        if self.until > now:
            return 0
        room = ANY
        if self.rate is not None:
            late = now - self._next
            room = 0 if late < -AHEAD else 1 + int(self.rate * AHEAD)
        if (slowed := self.throttle.room(now)) is not None:
            room = min(room, slowed)
        if self.ramp is not None:
            room = min(room, self.ramp.left(now))
        for count in self._mail:
            if count.rate.unit != "bytes":
                room = min(room, count.spent.ready(count.rate, now, AHEAD))
            elif count.spent.left(count.rate, now) <= 0:
                return 0
        for other in self.also:
            room = min(room, other.room(now))
        return max(0, room)

    def recipients(self, now: float) -> int:
        """To how many one message may leave now."""
        if self.wait(now).seconds > 0:
            return 0
        most = ANY
        if self.ramp is not None and self.ramp.unit == "recipients":
            most = self.ramp.left(now)
        for count in self._mail:
            if count.rate.unit == "recipients":
                most = min(most, count.spent.left(count.rate, now))
        for other in self.also:
            most = min(most, other.recipients(now))
        return most

    def take(self, now: float, recipients: int, size: int = 0) -> None:
        """A message leaves."""
        for other in self.also:
            other.take(now, recipients, size)
        if self.ramp is not None:
            self.ramp.take(now, self._ramped(recipients))
        for count in self._mail:
            count.spent.add(count.rate, count.of(recipients, size), now)
        self.throttle.take(now)
        if self.rate is not None:
            self._next = max(now, self._next) + 1 / self.rate

    def untake(self, when: float, recipients: int, size: int = 0) -> None:
        """What was taken at `when` did not leave: nothing was said upstream."""
        for other in self.also:
            other.untake(when, recipients, size)
        if self.ramp is not None:
            self.ramp.take_back(self._ramped(recipients), when)
        for count in self._mail:
            count.spent.take_back(count.rate, count.of(recipients, size), when)
        if self.rate is not None and self._next > when:
            self._next -= 1 / self.rate

    def move(self, when: float, now: float, recipients: int, size: int = 0) -> None:
        """What was taken at `when` is said only now."""
        for other in self.also:
            other.move(when, now, recipients, size)
        for count in self._mail:
            count.spent.move(count.rate, count.of(recipients, size), when, now)

    def dial_wait(self, now: float) -> Held:
        """As `wait`, for one session more."""
        held = FREE
        for count in self._dials:
            seconds = count.spent.wait(count.rate, 1, now)
            if seconds > held.seconds:
                held = Held(seconds, self._used_up(count.rate), count.rate.when_full == "next")
        return max([held, *(other.dial_wait(now) for other in self.also)], key=lambda one: one.seconds)

    def dials(self, now: float) -> int:
        """Sessions that may be opened now."""
        left = [count.spent.left(count.rate, now) for count in self._dials]
        return min([*left, *(other.dials(now) for other in self.also)], default=ANY)

    def dialled(self, now: float) -> None:
        """A session is opened."""
        for other in self.also:
            other.dialled(now)
        for count in self._dials:
            count.spent.add(count.rate, 1, now)

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
