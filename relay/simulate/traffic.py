"""What comes in: a plan of so many messages from then on, or mail of the past, as a relay would accept it.

The class, the route, the lane and the limits at the door are found as intake finds them (policy, routed, quotas).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import merge

from relay.policy.classes import choose_class
from relay.policy.routing import Answers, Facts, Undecided, matches_any
from relay.quotas import Quotas
from relay.recipient import State
from relay.routed import begin, refusal
from relay.simulate.run import Simulation
from relay.simulate.shelf import PLANNED, Entry, Letter
from relay.submission import BadMessage

SIZE = 20_000  # bytes of a message whose size nobody says


@dataclass(frozen=True, slots=True)
class Wave:
    """`count` messages of one kind to one recipient each, spread evenly over `spread` seconds from `at` on."""

    at: float
    count: int = 1
    sender: str = ""
    recipients: tuple[tuple[str, int], ...] = (("someone@example.net", 1),)  # (address, weight)
    class_: str = ""
    user: str = ""
    tag: str = ""
    size: int = SIZE
    spread: float = 0.0

    def times(self) -> Iterator[tuple[float, str, Wave]]:
        """(when, to whom, of which wave) of each; recipients take their shares evenly over the whole."""
        step = self.spread / self.count
        total, given = sum(weight for _, weight in self.recipients), [0] * len(self.recipients)
        for i in range(self.count):
            # Who is furthest behind his share.
            nth = max(range(len(given)), key=lambda k: self.recipients[k][1] * (i + 1) / total - given[k])
            given[nth] += 1
            yield self.at + i * step, self.recipients[nth][0], self


@dataclass
class Traffic:
    """Hands in what is planned. `turned_away`: recipients that were not accepted, or ended at once, by why."""

    simulation: Simulation
    turned_away: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    _number: int = PLANNED  # of messages

    def __post_init__(self) -> None:
        simulation = self.simulation
        self.quotas = Quotas(simulation.config, simulation.ledger.kept, simulation.full)

    def arrivals(self, waves: Iterable[Wave]) -> Iterator[tuple[float, Callable[[], None]]]:
        """For `Simulation.run`, in time."""
        for at, to, wave in merge(*(wave.times() for wave in waves), key=lambda one: one[0]):
            yield at, partial(self._accept, at, wave, to)

    def _accept(self, at: float, wave: Wave, recipient: str) -> None:
        config = self.simulation.config
        user = config.users.get(wave.user)
        self._number += 1
        facts = Facts(
            wave.sender, recipient, config.listen[0].name if config.listen else "", "127.0.0.1",
            wave.user, wave.sender, None, wave.tag, wave.size, {}, 1.0,
        )  # fmt: skip
        class_ = choose_class(config.classes, wave.class_, facts, user.classes if user else ())
        facts = replace(facts, class_=class_.name)
        ask = Answers(facts)
        route = config.table.pick(ask)
        assert not isinstance(route, Undecided)  # every fact is known
        refused = None
        if user is not None and not matches_any(user.senders, wave.sender):
            refused = BadMessage(553, "5.7.1", f"user {user.name} may not send as <{wave.sender}>")
        refused = refused or refusal(config.table, route, facts) or self._charged(facts, at)
        if refused is not None:
            self.turned_away[f"refused: {refused.code} {refused.text}"] += 1
            return
        made = begin(config.table, route, None, facts, ask, class_, at, {}, self._number)
        if made.state is not State.QUEUED:
            self.turned_away[made.why] += 1
            return
        self.accepted += 1
        letter = Letter(self._number, wave.sender, class_.name, wave.user, wave.tag, wave.size, int(class_.priority))
        lane = self.simulation.lane(made.facts)
        self.simulation.add(Entry(at, self._number, 0, lane, recipient, letter, made.expires_at))

    def _charged(self, facts: Facts, at: float) -> BadMessage | None:
        if self.quotas.none:
            return None
        table = self.simulation.config.table
        route = table.pick_for(facts)
        egress = (
            ""
            if route is None or isinstance(route, Undecided)
            else next(iter(table.egresses(route, lambda q: q.ask(facts))), "")
        )
        try:
            self.quotas.take([(facts, egress)], facts.size or 0, at)
        except BadMessage as error:
            # What it says of the time is another each time.
            return BadMessage(error.code, error.enhanced, error.text.partition("; try again")[0])
        return None
