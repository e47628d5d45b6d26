"""The simulation: time goes from one event to the next, and at each the relay's planner says what may leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import heappop, heappush
from typing import NamedTuple

from relay.deliver.network import Network
from relay.deliver.pool import Egress, name_of
from relay.maillog import MailLog
from relay.oauth.tokens import Tokens
from relay.policy.gate import FOREVER, Go, admit
from relay.policy.held import FREE, Held
from relay.policy.limits import Row
from relay.policy.routing import Action
from relay.policy.suspend import Suspensions
from relay.scheduler.bounds import Bounds, Post
from relay.scheduler.egresses import Egresses
from relay.scheduler.lanes import NOT_SUSPENDED, Lane, Lanes, Way
from relay.scheduler.ledger import Ledger
from relay.scheduler.memory import Memory
from relay.scheduler.plan import Planner
from relay.scheduler.work import Work
from relay.settings import Account, Config
from relay.simulate.crew import Crew
from relay.simulate.shelf import Entry, Shelf
from relay.simulate.sites import Guessed
from relay.simulate.waits import Waits, rule_of
from relay.spool import Claim, Claimed, Head

SECONDS = 0.1  # that a message takes on its session, where nobody says otherwise
SOON = 0.01  # seconds: the relay's dispatch waits no shorter, and what goes back is there again no sooner
REST = 3600.0  # seconds after which a way that rests is looked at again: here nobody mends anything meanwhile
LONGEST = (
    40 * 86400.0
)  # seconds in which nothing moves, after which nothing will: no rule counts over more than a month
SUSPENSIONS = "suspensions"  # the key of what was suspended by hand, in what the relay remembers


class Left(NamedTuple):
    """A message that left, at `at`, with so many of its recipients. `held`: seconds that it was held back, by rule."""

    at: float
    due_at: float
    message: int
    recipients: int
    size: int
    lane: int
    route: str
    class_: str
    egress: str  # its name
    site: str  # where it left to, by MX
    held: Mapping[str, float]


class _Nobody:
    """Who would keep what is spent and learnt; and has no tokens, for nobody logs in."""

    async def spend(self, rows: Sequence[Row]) -> None:
        """A simulation leaves nothing behind."""

    async def remember(self, documents: Mapping[str, str | None]) -> None:
        """The same."""

    def of(self, account: Account) -> Tokens | None:
        return None


class _Lanes(Lanes):
    """Tells who was looked at, and who was parked."""

    looked: list[Way]
    parked: list[tuple[Lane, Post]]

    def ways(self, now: float) -> list[Way]:
        self.looked, self.parked = super().ways(now), []
        return self.looked

    def park(self, lane: Lane, post: Post, until: float, now: float) -> None:
        self.parked.append((lane, post))
        super().park(lane, post, until, now)


@dataclass
class Simulation:
    """`start`: epoch seconds; `seconds`: that each message takes. Of a running relay: `kept` is what it has spent of its limits,
    `documents` what it has learnt, `hosts` the MX hosts of domains."""

    config: Config
    start: float
    seconds: float = SECONDS
    kept: Mapping[str, Sequence[tuple[float, int]]] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)
    hosts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    now: float = field(init=False)
    ended: int = field(init=False, default=0)  # recipients that a rule ended: it holds, rejects, captures or discards

    def __post_init__(self) -> None:
        self.now = self.start
        nobody, network = _Nobody(), Network(self.config, MailLog(None), keep=False)
        documents = dict(self.documents)
        self._paused = Suspensions.load(documents.pop(SUSPENSIONS, "[]"))
        self.config = replace(self.config, suspended=self._paused.questions())
        self._sites = Guessed(network.mx, self.config, self.hosts)
        self.ledger = Ledger(nobody, self.kept)
        self.bounds = Bounds(self.config, self.ledger.kept)
        self.lanes = _Lanes(self.config, self._sites, self.bounds)
        self.lanes.again = REST
        self.lanes.suspended = self._suspended
        memory = Memory(nobody, documents)
        self.egresses = Egresses(self.config, network, self._sites, nobody, self.ledger, memory, now=lambda: self.now)
        self.egresses.stopped = self._stopped
        self.egresses.apply(self.config)
        self.planner = Planner(self.lanes, self.egresses, self.egresses.trunks)
        self.shelf = Shelf()
        self._crews: dict[str, Crew] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._claimed = self.start
        self._left: list[Left] = []
        self._waits: dict[int, Waits] = {}
        self._rules: dict[int, str] = {}  # by which a lane was held last
        self._why: dict[Way, str] = {}
        self._by_facts: dict[str, int] = {}
        if self._paused and self._paused.next_end() < FOREVER:
            self.after(max(0.0, self._paused.next_end() - self.now), self._resumed)

    # -- what is suspended by hand

    def _suspended(self, lane: Lane) -> tuple[str, float]:
        rule = self._sites.by_name[lane.site].rule.name if lane.site in self._sites.by_name else ""
        found = self._paused.lane(lane.facts, lane.id, self.now, (lane.site, rule))
        return (found[1], self.now + found[0]) if found else NOT_SUSPENDED

    def _stopped(self, egress: str) -> tuple[float, str] | None:
        found = self._paused.blocks("egress", egress, self.now)
        return (self.now + found[0], found[1]) if found else None

    def _resumed(self) -> None:
        """The time of one of them is over."""
        for lane in self.lanes.by_id.values():
            if lane.due_at is not None and lane.due_at < self.now:
                if lane.suspended:
                    self._rules[lane.id] = rule_of(lane.suspended)
                self._held(lane, self.now)
        for over in self._paused.over(self.now):
            self._paused.remove(over.kind, over.value)
        self.egresses.look_again()
        self.lanes.reload(self.config)
        if self._paused.next_end() < FOREVER:
            self.after(max(SOON, self._paused.next_end() - self.now), self._resumed)

    # -- what comes in

    def lane(self, facts: str, number: int = 0) -> int:
        """The lane of these facts (policy.lanefacts). `number`: as the spool calls it."""
        known = self._by_facts.get(facts)
        if known is None:
            known = self._by_facts[facts] = number or 1 + max(self._by_facts.values(), default=0)
            self.lanes.update([Head(known, facts, None)])
        return known

    def add(self, entry: Entry) -> None:
        """One recipient waits."""
        self.shelf.add(entry)
        self.lanes.update([Head(entry.lane, "", entry.due_at)])

    def full(self, name: str, recipients: int, now: float) -> Held:
        """As `Scheduler.full`."""
        trunk, egress = self.egresses.trunks.get(name), self.egresses.get(name)
        pace = trunk.pace if trunk is not None else egress.pace if egress is not None else None
        return FREE if pace is None else pace.refuses(now, recipients)

    # -- time

    def after(self, seconds: float, then: Callable[[], None]) -> None:
        self._number += 1
        heappush(self._events, (self.now + seconds, self._number, then))

    def run(self, arrivals: Iterable[tuple[float, Callable[[], None]]] = (), until: float = FOREVER) -> Iterator[Left]:
        """What leaves, in order, as it leaves; it ends with the last message, or at `until`.

        `arrivals`: (when, what adds it), in their order in time.
        """
        coming = iter(arrivals)
        following = next(coming, None)
        while True:
            while following is not None and following[0] <= self.now:
                following[1]()
                following = next(coming, None)
            while self._events and self._events[0][0] <= self.now:
                heappop(self._events)[2]()
            moved = self._pass()
            yield from self._left
            self._left.clear()
            if moved:
                continue
            then = min(self.lanes.next_due() or FOREVER, self.planner.look_at)
            then = max(then, self.now + SOON)
            then = min(then, self._events[0][0] if self._events else FOREVER, following[0] if following else FOREVER)
            if then > until or then == FOREVER or (following is None and not self._busy):
                return
            if not self._events and following is None and then > self._claimed + LONGEST:
                return  # what is suspended without an end is looked at again and again
            self.now = max(self.now, then)

    @property
    def _busy(self) -> bool:
        """Something waits that can move some day, or is on its way."""
        return bool(self.shelf.waiting) or any(crew.egress.busy for crew in self._crews.values())

    def _pass(self) -> bool:
        """As `Scheduler._pass`: one round over the lanes that have something due; whether it has to be looked at again."""
        now = self.now
        plan = self.planner.plan(now)
        if plan.asks or self.lanes.looked:
            self._note(now)
        if not plan.asks:
            return plan.again
        lanes = [self.lanes.by_id[ask.lane] for ask in plan.asks]
        for lane in lanes:
            self._held(lane, now)
        claims, due = self.shelf.claim(plan.asks)
        served: dict[int, int] = {}
        for recipient in (r for claim in claims for r in claim.recipients):
            served[recipient.lane] = served.get(recipient.lane, 0) + 1
        self.planner.end(plan)
        for lane in lanes:
            self.lanes.found(lane, due[lane.id])
            self.lanes.order.served(lane, plan.goes.get(lane.id, ""), served.get(lane.id, 0))
        for claim in claims:
            self._assign(claim, plan.goes)
        if claims:
            self._claimed = now
        return bool(claims) or plan.again

    def _assign(self, claim: Claim, goes: Mapping[int, str]) -> None:
        """As `Scheduler._assign`."""
        by_lane: dict[int, list[Claimed]] = {}
        for recipient in claim.recipients:
            by_lane.setdefault(recipient.lane, []).append(recipient)
        for number, recipients in by_lane.items():
            lane = self.lanes.by_id[number]
            if lane.route is None or lane.route.action is not Action.VIA:
                self.ended += len(self.shelf.sent(claim, recipients))
                continue
            first, size = goes.get(number, ""), 1
            order = lane.egresses[lane.egresses.index(first) :] if first in lane.egresses else lane.egresses
            rewrite = self.config.rewrites.get(lane.route.name)
            if rewrite is None or not rewrite.per_recipient:
                size = self.egresses[order[0]].account.recipients_per_message
            for start in range(0, len(recipients), size):
                self._push(Work(claim, recipients[start : start + size], lane.route, order, lane=lane))

    def _push(self, work: Work) -> None:
        """As `Carriers.push`."""
        egress = self.egresses[work.egresses[0]]
        assert work.lane is not None
        if egress.breaker.wait(self.now) > 0:
            return self.put_back(work)
        if not self.bounds.none:
            held = self.bounds.charge(work.lane, egress.key, work, self.now, lambda meter: None)
            if held.seconds > 0:
                return self.put_back(work)
        crew = self._crews.get(egress.key)
        if crew is None:
            crew = self._crews[egress.key] = Crew(egress, self)
        crew.push(work)

    # -- what becomes of it

    def put_back(self, work: Work, seconds: float = 0.0) -> None:
        """Nothing was said of it: it waits again."""
        work.refund()
        self.after(SOON, partial(self._again, work.claim, work.recipients, self.now + seconds if seconds else 0.0))

    def _again(self, claim: Claim, recipients: list[Claimed], due_at: float) -> None:
        self.shelf.put_back(claim, recipients, due_at)
        self.lanes.update(Head(n, "", self.shelf.due(n)) for n in dict.fromkeys(r.lane for r in recipients))

    def left(self, work: Work, egress: Egress[Work]) -> None:
        entries, lane = self.shelf.sent(work.claim, work.recipients), work.lane
        assert lane is not None
        due_at = min(entry.due_at for entry in entries)
        waits = self._held(lane, self.now, due_at)
        self._left.append(
            Left(
                self.now, due_at, work.claim.message, len(entries), work.claim.size, lane.id, work.route.name,
                work.claim.class_, name_of(egress.key), lane.site, waits.between(due_at, self.now),
            )
        )  # fmt: skip

    # -- what it came to

    @property
    def guesses(self) -> bool:
        """Some of it leaves by MX, to hosts that nobody has looked up."""
        return bool(self._sites.guessed)

    def stuck(self) -> Counter[str]:
        """Why what still waits does so: recipients by reason."""
        found: Counter[str] = Counter()
        for number, count in self.shelf.counts().items():
            lane = self.lanes.by_id[number]
            way = self._why.get(lane.way, "") if lane.way is not None else ""
            held = rule_of(lane.post.wait(self.now, lane.size).why) if lane.post is not None else ""
            found[lane.why or held or way or "its time has not come"] += count
        return found

    # -- why it waited

    def waited(self, work: Work, why: str) -> None:
        """It is on its session, and waits for its turn."""
        assert work.lane is not None
        self._rules[work.lane.id] = rule_of(why)

    def _note(self, now: float) -> None:
        """What holds those that have not gone in this round."""
        for lane, post in self.lanes.parked:
            rule = rule_of(post.wait(now, lane.size).why)
            if self._rules.get(lane.id, rule) != rule:
                self._held(lane, now)  # by the one before, up to now
            self._rules[lane.id] = rule
        for way in self.lanes.looked:
            if way.turns and way.egresses:
                decision = admit([self.egresses[name].view(now) for name in way.egresses], now)
                if not isinstance(decision, Go):
                    self._why[way] = rule_of(decision.why)

    def _held(self, lane: Lane, now: float, since: float | None = None) -> Waits:
        """Up to now it was held by the rule that is known of it, or of its way."""
        waits = self._waits.get(lane.id)
        if waits is None:
            waits = self._waits[lane.id] = Waits()
        rule = self._rules.pop(lane.id, "") or (self._why.get(lane.way, "") if lane.way is not None else "")
        due_at = lane.due_at if since is None else since
        if due_at is not None and rule:
            waits.add(due_at, now, rule)
        return waits
