"""The queue of a running relay, as its admin side tells it (`admin.simulation`), put on the shelf of a simulation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from relay.policy.lanefacts import LaneFacts, facts_anew
from relay.policy.routing import Answers, Facts, Route
from relay.settings import Config
from relay.simulate.run import Simulation
from relay.simulate.shelf import Entry, Letter


@dataclass(slots=True)
class Snapshot:
    """`spent`, `documents` and `hosts`: see `Simulation`. `recipients` as they come, `lanes` their facts by number."""

    now: float
    spent: dict[str, list[tuple[float, int]]]
    documents: dict[str, str]
    hosts: dict[str, list[str]]
    lanes: dict[int, str] = field(default_factory=dict)
    recipients: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, pages: Iterable[Mapping[str, Any]]) -> Snapshot:
        """From its pages, the first of which has all but recipients."""
        made: Snapshot | None = None
        for page in pages:
            if made is None:
                spent = {key: [(until, count) for until, count in rows] for key, rows in page["spent"].items()}
                made = cls(page["now"], spent, dict(page["documents"]), dict(page["hosts"]))
            made.lanes.update((int(number), facts) for number, facts in page["lanes"].items())
            made.recipients += page["recipients"]
        assert made is not None  # there is a first page always
        return made

    def put(self, simulation: Simulation) -> None:
        """All of it waits there. What the configuration would route anew is routed by what is known of it: not by its header."""
        config, facts_of = simulation.config, {n: LaneFacts.parse(text) for n, text in self.lanes.items()}
        letters: dict[int, Letter] = {}
        fits = {n: _fits(config, facts) for n, facts in facts_of.items()}
        for row in self.recipients:
            number, n = row["message"], row["n"]
            letter = letters.get(number)
            if letter is None:
                letter = letters[number] = Letter(
                    number, row["sender"], row["class"], row["user"], row["tag"], row["size"], row["priority"]
                )
            text = self.lanes[row["lane"]] if fits[row["lane"]] else _anew(config, row, facts_of[row["lane"]])
            lane, expires_at = simulation.lane(text), row["expires_at"]
            simulation.add(Entry(row["due_at"], number, n, lane, row["recipient"], letter, expires_at))


def _fits(config: Config, facts: LaneFacts) -> bool:
    route = facts.route_in(config.table) if facts.covers(config.table.questions) else None
    return facts.holds(config.table) and isinstance(route, Route) and facts.fits(config.table, route)


def _anew(config: Config, row: Mapping[str, Any], before: LaneFacts) -> str:
    facts = Facts(
        row["sender"], row["recipient"], row["listener"], row["client"], row["user"], row["from"], row["class"],
        row["tag"], row["size"], {},
    )  # fmt: skip
    return facts_anew(config.table, facts, Answers(facts), row["message"], before)
