"""Limits that bind mail by what it is: who sends it, its class, where it goes. Pure: time is an argument.

Those of an account, a direct entry or a destination are `policy.pace`'s: they bind what leaves there, whatever it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakValueDictionary

from relay.policy.held import FREE, Held
from relay.policy.rate import Rate, Spent, Unit
from relay.policy.routing import Match, Question

Per = Literal["sender", "from", "user", "tenant", "class", "destination", "egress"]
Row = tuple[str, float, int]  # (key, until, count): a part of what was spent, as it is kept
MANY = 10_000  # meters, before those that count nothing are thrown away
ANY = 1 << 30
SOON = 0.02  # seconds: a claim under way may leave some of what is reserved for it


@dataclass(frozen=True, slots=True)
class Limit:
    """One rule. `per`: each value, or each combination of values, has a count of its own; empty: all that match share one.

    `sender` is the reverse-path, `from` the domain of the From header, `destination` the recipient's domain.
    """

    name: str
    rate: Rate
    match: Match = field(default_factory=Match)
    per: tuple[Per, ...] = ()
    whose: str = ""  # for people, such as `user shop`; empty: its name
    origin: str = ""  # file:line

    @property
    def at_the_door(self) -> bool:
        """It is counted as mail is accepted, and refuses; any other is counted as mail leaves."""
        return self.rate.when_full == "reject"


@dataclass(slots=True, eq=False, weakref_slot=True)
class Meter:
    """What was spent of one limit by one of those whom it is for."""

    limit: Limit
    key: str  # names it in the spool
    whose: str  # and for people
    spent: Spent = field(default_factory=Spent)
    counting: dict[Meter, None] = field(default_factory=dict, repr=False)  # those that are not to be forgotten
    reserved: int = 0  # that a claim under way may come to
    rate: Rate = field(init=False, repr=False)
    unit: Unit = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.rate, self.unit = self.limit.rate, self.limit.rate.unit  # the gate asks for them for each lane

    def count(self, recipients: int, size: int) -> int:
        match self.unit:
            case "recipients":
                return recipients
            case "bytes":
                return size
        return 1

    def wait(self, now: float, recipients: int = 1, size: int = 1) -> Held:
        """For one message to so many recipients. More than the whole limit leaves when nothing else was spent."""
        rate, need = self.rate, self.count(recipients, size)
        seconds = self.spent.wait(rate, min(rate.count, need), now)
        if seconds <= 0 and self.reserved and self.spent.left(rate, now) < need + self.reserved:
            seconds = SOON
        if seconds <= 0:
            return FREE
        return Held(seconds, f"{self.rule} is used up", rate.when_full == "next")

    @property
    def rule(self) -> str:
        """For people: `user shop's limit of 5000/d`, `limit each-sender (a@b.example) of 5/min`."""
        return f"{self.whose}{' limit' if self.limit.whose else ''} of {self.limit.rate}"

    def room(self, now: float, size: int = 1) -> int:
        """Messages to one recipient each that may leave now. Of bytes: one of that size, for nobody knows the next one's."""
        if self.unit == "bytes":
            return 0 if self.reserved or self.wait(now, 1, size).seconds else 1
        return self.spent.left(self.rate, now) - self.reserved

    def take(self, now: float, recipients: int, size: int) -> None:
        self.counting[self] = None
        self.spent.add(self.limit.rate, self.count(recipients, size), now)

    def take_back(self, when: float, recipients: int, size: int, messages: int = 1) -> None:
        """What was taken at `when`, and not used."""
        count = messages if self.unit == "messages" else self.count(recipients, size)
        if count:
            self.spent.take_back(self.limit.rate, count, when)

    def move(self, when: float, now: float, recipients: int, size: int, messages: int = 1) -> None:
        """What was taken at `when` is said only now."""
        count = messages if self.unit == "messages" else self.count(recipients, size)
        if count:
            self.spent.move(self.limit.rate, count, when, now)

    def rows(self) -> list[Row]:
        """What changed since it was last asked, to be kept."""
        return [(self.key, until, count) for until, count in self.spent.changed()]


class Meters:
    """Those of all limits. One that counts nothing and that nobody holds is forgotten: it is made anew as it was.

    Of one key there is never a second one: two lanes would each have the whole limit.
    """

    def __init__(self, limits: Sequence[Limit], kept: Callable[[str], Sequence[tuple[float, int]]]) -> None:
        """`kept`: the parts of a key, as the spool has them."""
        self.limits, self._kept = tuple(limits), kept
        self._by_key: WeakValueDictionary[str, Meter] = WeakValueDictionary()
        self._counting: dict[Meter, None] = {}
        self._gone: dict[str, Spent] = {}  # of limits that a reload took away: they may come back
        self._most = MANY  # before it is asked which of those still count

    def reload(self, limits: Sequence[Limit]) -> None:
        """What was spent stays, where a limit of that name counts the same things."""
        self.limits = tuple(limits)
        known = {limit.name: limit for limit in limits}
        before = list(self._by_key.values())
        self._by_key.clear()
        self._counting = {}
        for meter in before:
            limit = known.get(meter.limit.name)
            if limit and limit.per == meter.limit.per and limit.rate.key == meter.limit.rate.key:
                made = Meter(limit, meter.key, meter.whose, meter.spent, self._counting)
                self._by_key[meter.key] = made
                self._counting[made] = None
            elif meter.spent.parts:
                self._gone[meter.key] = meter.spent

    def of(
        self,
        ask: Callable[[Question], bool | None],
        values: Mapping[Per, str | None],
        now: float,
        *,
        door: bool = False,
    ) -> tuple[Meter, ...]:
        """Those that bind mail of these facts. `values`: what `per` may ask for, None where it is not known. `door`: those that
        are counted there."""
        found = []
        for limit in self.limits:
            if limit.at_the_door is door and limit.match.test(ask):
                mine = [value for per in limit.per if (value := values[per]) is not None]
                if len(mine) == len(limit.per):
                    found.append(self._meter(limit, mine, now))
        return tuple(found)

    def _meter(self, limit: Limit, values: Sequence[str], now: float) -> Meter:
        key = f"limit {limit.name} {limit.rate.key} {' '.join(values)}"
        meter = self._by_key.get(key)
        if meter is None:
            if len(self._counting) >= self._most:
                for other in [one for one in self._counting if not one.reserved and one.spent.empty(now)]:
                    del self._counting[other]
                self._most = max(MANY, 2 * len(self._counting))
            whose = f"{limit.whose}'s" if limit.whose else f"limit {limit.name}"
            whose += f" ({', '.join(v or 'nobody' for v in values)})" if values else ""
            spent = self._gone.pop(key, None) or Spent.restored(limit.rate, self._kept(key), now)
            meter = self._by_key[key] = Meter(limit, key, whose, spent, self._counting)
            if spent.parts:
                self._counting[meter] = None
        return meter

    def all(self) -> Iterable[Meter]:
        return list(self._by_key.values())


def facts_kept(limits: Iterable[Limit]) -> frozenset[str]:
    """What lanes must hold as values for these limits, beside class and user."""
    return frozenset(per for limit in limits for per in limit.per) & {"sender", "from", "destination"}


def questions(limits: Iterable[Limit]) -> tuple[Question, ...]:
    return tuple(q for limit in limits for q in (*limit.match.all_of, *limit.match.none_of))
