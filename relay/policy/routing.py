"""Which way out: rules over facts, first match wins. Pure.

A rule asks questions ("is From like *@corp.example?"). A lane stores the answers to the questions that its recipients
were asked, so that a route can be derived again after a reload without reading a message: see `lane_facts`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, lru_cache
from operator import ge, gt, le, lt
from types import MappingProxyType
from typing import Any

from relay.policy.draw import order
from relay.policy.networks import in_networks

# What the lane stores as a value, because every recipient has it and limits are named by it.
VALUE_FACTS = ("class", "user")
ADDRESS_FACTS = ("sender", "from", "recipient")
TEXT_FACTS = ("class", "user", "tag", "listener")


@dataclass(slots=True)  # not frozen, which costs four times as much to make; nobody changes one
class Facts:
    """What rules may ask of one recipient of one message. None: not known (yet), as header facts are at RCPT time."""

    sender: str
    recipient: str
    listener: str = ""
    client: str = ""
    user: str = ""
    from_: str | None = None
    class_: str | None = None
    tag: str | None = None
    size: int | None = None
    headers: Mapping[str, tuple[str, ...]] | None = None  # lower-case name -> values
    reputation: float | None = None  # 0 to 1: the score of MAIL FROM's domain as the message is accepted

    def of(self, recipient: str, class_: str) -> Facts:
        """Those of one recipient; dataclasses.replace costs ten times as much."""
        return Facts(
            *(self.sender, recipient, self.listener, self.client, self.user, self.from_, class_, self.tag, self.size),
            *(self.headers, self.reputation),
        )


@lru_cache(maxsize=4096)
def glob(pattern: str) -> Callable[[str], bool]:
    """A case-insensitive glob: `*` and `?`; every other character means itself."""
    # fnmatch knows [sets]; an address literal such as x@[192.0.2.1] is none. Not casefold, which makes ss of ß: those are
    # two mailboxes.
    compiled = re.compile(fnmatch.translate(pattern.lower().replace("[", "[[]")))
    return lambda text: compiled.match(text.lower()) is not None


def matches_any(patterns: Iterable[str], value: str) -> bool:
    return any(glob(p)(value) for p in patterns)


@dataclass(frozen=True)
class Question:
    """One key of a `match`: the fact it asks for, and any of what it accepts.

    For `header` a pattern is `Name: glob`; for `client` a network. For `size` and `reputation` it is compared with `bounds`:
    `>10MB` is (operator, bytes), `< 0.7` (operator, score).
    """

    fact: str
    patterns: tuple[str, ...]
    bounds: tuple[tuple[str, float], ...] = ()

    @cached_property
    def key(self) -> str:
        """Names the question in a lane's facts; the same words are the same question under another configuration."""
        return f"{self.fact} {' | '.join(self.patterns)}"

    def ask(self, facts: Facts) -> bool | None:
        """Yes, no, or None where the fact is not known yet."""
        match self.fact:
            case "header":
                return None if facts.headers is None else self._header(facts.headers)
            case "size":
                return None if facts.size is None else self._within(facts.size)
            case "reputation":
                return None if facts.reputation is None else self._within(facts.reputation)
            case "client":
                return in_networks(facts.client, self.patterns)
            case "from":
                value = facts.from_
            case "class":
                value = facts.class_
            case other:
                value = getattr(facts, other)
        return None if value is None else self.matches(value)

    def matches(self, value: str) -> bool:
        return matches_any(self.patterns, value)

    def _within(self, value: float) -> bool:
        return any(_OPERATORS[operator](value, bound) for operator, bound in self.bounds)

    def _header(self, headers: Mapping[str, tuple[str, ...]]) -> bool:
        for pattern in self.patterns:
            name, _, value = pattern.partition(": ")
            if any(glob(value)(v) for v in headers.get(name.casefold(), ())):
                return True
        return False


_OPERATORS: dict[str, Callable[[float, float], bool]] = {">": gt, ">=": ge, "<": lt, "<=": le}


@dataclass(frozen=True, slots=True)
class Match:
    """All questions hold, and no question of `none_of` does."""

    all_of: tuple[Question, ...] = ()
    none_of: tuple[Question, ...] = ()

    def test(self, ask: Callable[[Question], bool | None]) -> bool | None:
        """Three-valued: None where an unknown fact could still decide it. Stops at the first No."""
        unknown = False
        for wanted, questions in ((True, self.all_of), (False, self.none_of)):
            for question in questions:
                answer = ask(question)
                if answer is None:
                    unknown = True
                elif answer is not wanted:
                    return False
        return None if unknown else True

    def first_no(self, facts: Facts) -> str:
        """Why it does not hold for `facts`, for `explain`; empty where it holds."""
        for wanted, questions in ((True, self.all_of), (False, self.none_of)):
            for q in questions:
                if q.ask(facts) is not wanted:
                    named = ", ".join(p or "the null sender" if q.fact == "sender" else p for p in q.patterns)
                    return f"{'' if wanted else 'not '}{q.fact}: {named}"
        return ""


class Action(StrEnum):
    VIA = "via"
    REJECT = "reject"
    HOLD = "hold"
    DISCARD = "discard"
    CAPTURE = "capture"


@dataclass(frozen=True, slots=True)
class Route:
    """One rule of `routes`. `via` is the ordered egresses; `text` is what `reject` says."""

    name: str
    action: Action
    match: Match = Match()
    via: tuple[str, ...] = ()
    text: str = ""
    copy: tuple[str, ...] = ()
    origin: str = ""  # file:line
    closed: tuple[tuple[str, Question], ...] = ()  # (tenant, its users): passed over for their mail

    def closed_to(self, ask: Callable[[Question], bool | None]) -> str:
        """The tenant whose mail may not take it; empty: it may."""
        return next((tenant for tenant, users in self.closed if ask(users)), "") if self.closed else ""


Members = tuple[tuple[str, int], ...]  # (egress, weight)
NOTHING_DRAWN: Mapping[str, str] = MappingProxyType({})
CAPTURED = Route("capture", Action.CAPTURE, text="kept for staging by `capture`, not dialled")
# For recipients that a `reroute` sent to an egress by name.
OVERRIDE = "override"


@dataclass(frozen=True)
class Table:
    """`routes` and `capture`, whole."""

    routes: tuple[Route, ...]
    capture: Question | None = None  # the recipients that are let through; None: no capture at all
    senders: Mapping[str, Question] = field(default_factory=dict)  # egress -> whom it may send as, where not anybody
    ways: frozenset[str] = frozenset()  # the egresses that there are, pools among them
    direct: frozenset[str] = frozenset()  # the egresses that deliver by MX
    pools: Mapping[str, Members] = field(default_factory=dict)
    asked: tuple[Question, ...] = ()  # beside those of routes: by destinations, limits, and what is suspended by hand
    kept: frozenset[str] = frozenset()  # what lanes hold as values for limits: sender, from, destination
    overflow: Mapping[str, str] = field(default_factory=dict)  # egress -> what takes the excess of its warm-up

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """Every question that some rule asks and that a lane does not answer by value, each once."""
        seen = {q.key: q for r in self.routes for q in (*r.match.all_of, *r.match.none_of) if q.fact not in VALUE_FACTS}
        if self.capture:
            seen[self.capture.key] = self.capture
        seen |= {q.key: q for q in (*self.senders.values(), *self.asked) if q.fact not in VALUE_FACTS}
        return tuple(seen.values())

    @cached_property
    def lanes(self) -> dict[tuple[Any, ...], str]:
        """What `lane_facts` said before."""
        return {}

    @cached_property
    def by_name(self) -> dict[str, Route]:
        return {r.name: r for r in self.routes}

    def captured(self, ask: Callable[[Question], bool | None]) -> bool | None:
        """Whether `capture` keeps it on this machine."""
        if self.capture is None:
            return False
        allowed = ask(self.capture)
        return None if allowed is None else not allowed

    def pick(self, ask: Callable[[Question], bool | None], *, released: bool = False) -> Route | Undecided | None:
        """The first route that matches. Undecided where an unknown fact could change it; None where nothing matches.

        `released`: an operator let this out of a `hold` route, which therefore does not hold it again.
        """
        for route in self.routes:
            if (released and route.action is Action.HOLD) or route.closed_to(ask):
                continue
            answer = route.match.test(ask)
            if answer is None:
                return UNDECIDED
            if answer:
                return self.unless_captured(route, ask)
        return None

    def named(self, name: str, ask: Callable[[Question], bool | None]) -> Route | None:
        """The route that a message or an operator asked for; None: there is none, or it is not for this tenant."""
        route = self.by_name.get(name)
        return None if route is None or route.closed_to(ask) else route

    def open_to(self, users: Iterable[str]) -> list[str]:
        """The routes that mail of each of these users may take."""

        def takes(route: Route, user: str) -> bool:
            facts = Facts(sender="", recipient="", user=user)
            return not route.closed_to(lambda q: q.ask(facts))

        return [route.name for route in self.routes if all(takes(route, user) for user in users)]

    def unless_captured(self, route: Route, ask: Callable[[Question], bool | None]) -> Route | Undecided:
        """In staging the rules decide as they do elsewhere; only what would be dialled is kept back."""
        if self.capture is None or route.action is not Action.VIA:
            return route
        captured = self.captured(ask)
        return UNDECIDED if captured is None else CAPTURED if captured else route

    @cached_property
    def asks_headers(self) -> bool:
        return any(q.fact == "header" for q in self.questions)

    def egresses(
        self, route: Route, ask: Callable[[Question], bool | None], drawn: Mapping[str, str] = NOTHING_DRAWN
    ) -> tuple[str, ...]:
        """Those of a route that may send as this sender, in order; a pool's members from the one that was drawn, and what
        takes an egress' excess behind it."""
        if not self.senders and not self.pools and not self.overflow:
            return route.via
        names: dict[str, None] = {}
        for name in route.via:
            members = self.pools.get(name)
            names |= dict.fromkeys((name,) if members is None else order(members, drawn.get(name, members[0][0])))
        if self.overflow:
            # One that the route names itself keeps its place.
            names = dict.fromkeys(e for n in names for e in (n, *(b for b in self.behind(n) if b not in names)))
        return tuple(e for e in names if e not in self.senders or ask(self.senders[e]) is not False)

    def behind(self, egress: str) -> Iterator[str]:
        """What takes its excess, and the excess of that."""
        seen = {egress}
        while (egress := self.overflow.get(egress, "")) and egress not in seen:
            seen.add(egress)
            yield egress

    def pools_of(self, route: Route) -> tuple[str, ...]:
        return tuple(name for name in route.via if name in self.pools) if self.pools else ()

    def by_mx(self, route: Route) -> bool:
        """Whether something of it may leave by MX: then each destination is a lane of its own."""
        if not self.direct or route.action is not Action.VIA:
            return False
        members = (m for name in route.via for m in (name, *(member for member, _ in self.pools.get(name, ()))))
        return any(m in self.direct or any(b in self.direct for b in self.behind(m)) for m in members)

    def pick_for(self, facts: Facts) -> Route | Undecided | None:
        return self.pick(lambda q: q.ask(facts))


class Undecided:
    """A fact that is not known yet could change the route."""


UNDECIDED = Undecided()


class Answers:
    """Asks for the recipients of one message; what does not hang on the recipient is asked once."""

    __slots__ = ("_facts", "_known")

    def __init__(self, facts: Facts, before: Answers | None = None) -> None:
        self._facts = facts
        self._known: dict[str, bool | None] = before._known if before else {}

    def __call__(self, question: Question) -> bool | None:
        if question.fact == "recipient":
            return question.ask(self._facts)
        key = question.key
        if key not in self._known:
            self._known[key] = question.ask(self._facts)
        return self._known[key]
