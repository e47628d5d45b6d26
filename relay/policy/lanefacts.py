"""What a lane stores of its recipients: the facts that its route and its limits hang on, as text. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from relay.envelope import ascii_domain, domain_of
from relay.policy.draw import draw
from relay.policy.routing import (
    NOTHING_DRAWN,
    OVERRIDE,
    Action,
    Facts,
    Question,
    Route,
    Table,
    Undecided,
)

MAX_LANES = 10_000  # texts that are remembered
NO_OVERRIDES: Mapping[str, str | bool] = MappingProxyType({})
NOTHING: Mapping[str, str | int] = MappingProxyType({})


def lane_facts(
    table: Table,
    facts: Facts,
    ask: Callable[[Question], bool | None],
    overrides: Mapping[str, str | bool] = NO_OVERRIDES,
    number: int = 0,
    by: Route | None = None,
    priority: int | None = None,
) -> str:
    """The lane's facts as canonical JSON: values, answers, and what an operator or `X-Relay-Route` overrode.

    `by`: its route, if it has one; `number`: the message's, by which it draws the members of that route's pools. Overrides:
    `route` (a route's name), `via` (an egress' name), `released` (True). `priority`: the message's own, if it is not its class'.
    """
    asked = {q.key: bool(ask(q)) for q in table.questions}
    more, drawn = _more(table, facts, by, priority), NOTHING_DRAWN
    if by is not None and table.pools:
        drawn = {pool: draw(table.pools[pool], b"%d" % number) for pool in table.pools_of(by)}
    known = (facts.class_, facts.user, *more.items(), *drawn.values(), tuple(asked.values()), tuple(overrides.items()))
    text = table.lanes.get(known)
    if text is None:
        if len(table.lanes) >= MAX_LANES:
            table.lanes.clear()
        text = table.lanes[known] = _canonical(facts.class_ or "default", facts.user, asked, overrides, more, drawn)
    return text


def _more(table: Table, facts: Facts, by: Route | None, priority: int | None) -> Mapping[str, str | int]:
    """What some lanes hold: where mail leaves by MX, where limits count each value, where a message has its own priority."""
    if not table.direct and not table.kept and priority is None:
        return NOTHING
    more: dict[str, str | int] = {}
    if "destination" in table.kept or (by is not None and table.by_mx(by)):
        more["destination"] = ascii_domain(domain_of(facts.recipient)) or "localhost"
    if "sender" in table.kept:
        more["sender"] = facts.sender.lower()
    if "from" in table.kept:
        more["from"] = ascii_domain(domain_of(facts.from_ or ""))
    if priority is not None:
        more["priority"] = priority
    return more


def facts_anew(
    table: Table, facts: Facts, ask: Callable[[Question], bool | None], number: int, before: LaneFacts
) -> str:
    """The lane's facts of a stored recipient under another configuration; `before` has what was overridden."""
    text = lane_facts(table, facts, ask, before.overrides, priority=before.priority)
    if not table.direct and not table.pools:
        return text
    route = LaneFacts.parse(text).route_in(table)
    by = None if isinstance(route, Undecided) else route
    return lane_facts(table, facts, ask, before.overrides, number, by, before.priority)


def _canonical(
    class_: str,
    user: str,
    asked: Mapping[str, bool],
    overrides: Mapping[str, str | bool],
    more: Mapping[str, str | int],
    drawn: Mapping[str, str],
) -> str:
    record: dict[str, Any] = {"class": class_, "user": user, **{k: v for k, v in overrides.items() if v}, **more}
    if asked:
        record["asked"] = dict(asked)
    if drawn:
        record["drawn"] = dict(drawn)
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True)
class LaneFacts:
    """What `lane_facts` wrote, read back."""

    class_: str
    user: str = ""
    asked: Mapping[str, bool] = field(default_factory=dict)
    route: str = ""
    via: str = ""
    released: bool = False
    destination: str = (
        ""  # the recipients' domain, as the DNS has it, where something of it leaves by MX or a limit counts it
    )
    drawn: Mapping[str, str] = field(default_factory=dict)  # pool -> member
    sender: str | None = None  # in small letters, where a limit counts it
    from_: str | None = None  # the domain of the From header, likewise
    priority: int | None = None  # the message's own

    @classmethod
    def parse(cls, text: str) -> LaneFacts:
        record = json.loads(text)
        return cls(
            record["class"],
            record.get("user", ""),
            record.get("asked", {}),
            record.get("route", ""),
            record.get("via", ""),
            bool(record.get("released", False)),
            record.get("destination", ""),
            record.get("drawn", {}),
            record.get("sender"),
            record.get("from"),
            record.get("priority"),
        )

    @property
    def overrides(self) -> dict[str, str | bool]:
        pairs: dict[str, str | bool] = {"route": self.route, "via": self.via, "released": self.released}
        return {name: value for name, value in pairs.items() if value}

    def with_overrides(self, overrides: Mapping[str, str | bool]) -> str:
        """These facts as JSON with other overrides; an empty one is taken away."""
        more = {"destination": self.destination or None, "sender": self.sender, "from": self.from_}
        held = {k: v for k, v in {**more, "priority": self.priority}.items() if v is not None}
        return _canonical(self.class_, self.user, self.asked, {**self.overrides, **overrides}, held, self.drawn)

    def ask(self, question: Question) -> bool | None:
        if question.fact == "class":
            return question.matches(self.class_)
        if question.fact == "user":
            return question.matches(self.user)
        return self.asked.get(question.key)

    def covers(self, questions: Iterable[Question]) -> bool:
        """Whether every question has been asked; if not, the lane's rows must be looked at again."""
        return all(q.key in self.asked for q in questions)

    def holds(self, table: Table) -> bool:
        """Whether they hold what its limits count by; if not, the same."""
        kept = table.kept
        return not kept or not (
            ("sender" in kept and self.sender is None)
            or ("from" in kept and self.from_ is None)
            or ("destination" in kept and not self.destination)
        )

    def fits(self, table: Table, route: Route) -> bool:
        """Whether they hold what this route is delivered by; if not, the lane's rows must be looked at again."""
        if not self.destination and table.by_mx(route):
            return False
        return all(
            any(self.drawn.get(pool) == member for member, _ in table.pools[pool]) for pool in table.pools_of(route)
        )

    def route_in(self, table: Table) -> Route | Undecided | None:
        """The route under `table`. An override that names what is gone is ignored: the rules decide again.

        None overrides `capture`: what it keeps back is never dialled.
        """
        if self.via and self.via in table.ways:
            return table.unless_captured(Route(OVERRIDE, Action.VIA, via=(self.via,)), self.ask)
        if self.route and (named := table.named(self.route, self.ask)):
            return table.unless_captured(named, self.ask)
        return table.pick(self.ask, released=self.released)
