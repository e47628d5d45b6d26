"""Dispatch: asks the gate for each lane that has something due, in fair turns, and claims for all that may go in one
transaction. What is claimed goes to the carriers; what they came to goes to the recorder.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from relay import clock, metrics
from relay.deliver.network import Network
from relay.deliver.pool import Egress
from relay.envelope import queue_id
from relay.maillog import MailLog
from relay.policy.gate import FOREVER
from relay.policy.held import FREE, Held
from relay.policy.routing import Action, Question
from relay.prepare.preparer import Preparer
from relay.reply import Reply, Result, Stage
from relay.scheduler.bounds import Bounds
from relay.scheduler.carry import STOPPED, Carriers
from relay.scheduler.egresses import Egresses
from relay.scheduler.journal import Journal
from relay.scheduler.lanes import NOT_SUSPENDED, Lane, Lanes
from relay.scheduler.ledger import Ledger
from relay.scheduler.memory import Memory
from relay.scheduler.outlook import Outlook
from relay.scheduler.pauses import Pauses
from relay.scheduler.plan import Planner
from relay.scheduler.record import Recorder
from relay.scheduler.sites import Sites
from relay.scheduler.standing import Standing
from relay.scheduler.usage import Usage
from relay.scheduler.work import Work
from relay.settings import Config
from relay.settle import Outcome
from relay.spool import Ask, Claim, Claimed, Event, Spool, SpoolError
from relay.spool.feed import Learnt
from relay.suppressions import Suppressions

MAX_UNRECORDED = 2000  # settlements; beyond it nothing is claimed

LANES = metrics.Gauge("relay_lanes", "Lanes in memory")


class Scheduler:
    """Lanes, carriers, recorder and the loop between them; they share one event loop, so no lock is needed between awaits."""

    def __init__(
        self,
        spool: Spool,
        config: Config,
        preparer: Preparer,
        network: Network,
        log: MailLog,
        kept: Mapping[str, Sequence[tuple[float, int]]] = MappingProxyType({}),
        memory: Memory | None = None,
        suppressions: Suppressions | None = None,
    ) -> None:
        """`kept`: what the run before had spent of limits; `memory`: what it had learnt; `suppressions`: to whom nothing is sent."""
        self.memory = memory or Memory(spool, {})
        self.spool, self.config, self.network, self.log = spool, config, network, log
        self.journal = Journal(spool, log)
        self.sites = Sites(network.mx, config, log)
        self.sites.found = self._sited
        self.ledger = Ledger(spool, kept)
        self.bounds = Bounds(config, self.ledger.kept)
        self.lanes = Lanes(config, self.sites, self.bounds)
        self.recorder = Recorder(spool, config, log, self._nudge)
        self.preparer = preparer
        self.carriers = Carriers(
            spool,
            config,
            network,
            self.sites,
            self.recorder,
            preparer,
            log,
            self._nudge,
            self.bounds,
            self.ledger,
            self.memory,
            self.journal,
            Suppressions(spool, lambda: self.config, log) if suppressions is None else suppressions,
        )
        self.outlook = Outlook(self.lanes, self.carriers, network)
        self.last_progress = clock.monotonic()  # the watchdog's pulse: dispatch came round
        self.pauses = Pauses(self.lanes.by_id, self.egresses, log, self._keep, self._paused)
        self.ask: Callable[[tuple[Question, ...]], Config] = lambda asked: replace(self.config, suspended=asked)
        self.standing = Standing(self.memory, self.journal, log, self.egresses.ramps, clock.now())
        self.recorder.heard = self.standing.add
        self.usage = Usage(self.carriers, self.standing)
        self.lanes.suspended = self._suspended
        self.egresses.stopped = self._stopped
        self.planner = Planner(self.lanes, self.egresses, self.egresses.trunks)
        self._granted: dict[int, Egress[Work]] = {}
        LANES.source = lambda: [((), float(len(self.lanes.by_id)))]
        self.apply(config)

    @property
    def egresses(self) -> Egresses:
        return self.carriers.egresses

    def apply(self, config: Config) -> None:
        """A new configuration: queued mail is routed anew."""
        self.config = self.recorder.config = config
        self.preparer.apply(config)
        self.network.apply(config)
        self.sites.apply(config, self.network.mx)
        self.carriers.apply(config)
        self.lanes.reload(config)
        self.spool.wake()

    async def _keep(self, documents: Mapping[str, str | None], events: Sequence[Event]) -> None:
        """In one transaction. Raises SpoolError."""
        await self.spool.learn(Learnt(events, documents=documents))

    def _paused(self) -> None:
        """Something was suspended by hand, or resumed."""
        asked = self.pauses.in_force.questions()
        if asked != self.config.suspended:
            self.config = self.recorder.config = self.ask(asked)
            self.preparer.config = self.config
        self.egresses.look_again()
        self.lanes.reload(self.config)
        self.pauses.recall(self.carriers.put_back)
        self.spool.wake()

    def _suspended(self, lane: Lane) -> tuple[str, float]:
        if not self.pauses.in_force:
            return NOT_SUSPENDED
        rule = self.sites.by_name[lane.site].rule.name if lane.site in self.sites.by_name else ""
        now = clock.now()
        found = self.pauses.in_force.lane(lane.facts, lane.id, now, (lane.site, rule))
        return (found[1], now + found[0]) if found else NOT_SUSPENDED

    def _stopped(self, egress: str) -> tuple[float, str] | None:
        now = clock.now()
        found = self.pauses.in_force.blocks("egress", egress, now)
        return (now + found[0], found[1]) if found else None

    async def forget(self) -> None:
        """Lanes that nobody is in any more. Raises SpoolError."""
        self.lanes.forget(await self.spool.forget_lanes())
        self.memory.forget_sites()

    async def remember(self) -> None:
        """What was spent and learnt is written. A spool that can't is told of elsewhere too."""
        if self.carriers.stopping:
            self.standing.weigh(clock.now())
        try:
            await self.ledger.save()
            await self.memory.save()
        except SpoolError as error:
            self.log.error("not_remembered", error=str(error))

    def score(self, sender: str) -> float:
        """See quotas.Known."""
        return self.standing.score(sender)

    def hosts(self) -> Mapping[str, tuple[str, ...]]:
        """The MX hosts of domains that mail waits for."""
        return self.sites.hosts()

    def full(self, name: str, recipients: int, now: float) -> Held:
        """How long so many would wait for those limits of an account, or a direct entry, that refuse."""
        trunk, egress = self.egresses.trunks.get(name), self.egresses.get(name)
        pace = trunk.pace if trunk is not None else egress.pace if egress is not None else None
        return FREE if pace is None else pace.refuses(now, recipients)

    # -- what needs no dispatch: a message is claimed by the transaction that accepts it

    def grant(self, message: int, lane: int, recipients: int) -> bool:
        """Where its egress takes more and nobody waits for it: then it would be claimed next in any case."""
        found = self.lanes.by_id.get(lane)
        if found is None or not found.movable or not found.egresses or self.recorder.unrecorded > MAX_UNRECORDED:
            return False
        egress = self.egresses[found.egresses[0]]
        account = egress.account
        if recipients > account.recipients_per_message or not egress.open or self.carriers.stopping:
            return False
        if recipients > 1 and found.route is not None and self.preparer.plan(found.route.name, account).apart:
            return False
        now = clock.now()
        if not found.idle(now) or self.lanes.waits_for(egress.key) or self.bounds.of(found, egress.key, now):
            return False
        if found.site:
            self.sites.look(found.facts.destination)
            if self.lanes.lines() and not egress.sessions:
                return False
        egress.granted += 1
        self._granted[message] = egress
        return True

    def take(self, claim: Claim) -> None:
        egress = self._free(claim.message)
        self._assign_all([claim], {claim.recipients[0].lane: egress.key})

    def give_up(self, message: int) -> None:
        self._free(message)
        self._nudge()

    def _free(self, message: int) -> Egress[Work]:
        """The place that was kept for it."""
        egress = self._granted.pop(message)
        egress.granted -= 1
        return egress

    # -- what waits

    def _sited(self, domain: str) -> None:
        """Where its mail goes is known now."""
        self.lanes.sited(domain)
        self.spool.wake()

    def _nudge(self) -> None:
        """Something was sent, or recorded: whoever waits for that may come to his turn."""
        if self.lanes.waiting:
            self.spool.wake()

    async def dispatch(self) -> None:
        """The loop. Ends only by cancellation."""
        learnt = False
        self.lanes.reload(self.config)  # nothing is left out of its turn by what ended this loop
        while True:
            now = clock.now()
            try:
                if not learnt:
                    self.lanes.update(await self.spool.heads())
                    learnt = True
                moved = await self._pass(now) if not self.carriers.stopping else False
            except SpoolError as error:
                # A sick disk is told by the spool and refuses mail; this loop is not the one that is broken.
                self.log.error("claim_failed", error=str(error))
                await asyncio.sleep(1.0)
                moved = True  # what is due is due: look again
            self.last_progress = clock.monotonic()
            if moved:
                timeout: float | None = 0.0
                await asyncio.sleep(0)
            else:
                due = min(self.lanes.next_due() or FOREVER, self.planner.look_at)
                timeout = min(5.0, max(0.01, due - now))
            self.lanes.update(await self.spool.wait(timeout))

    async def _pass(self, now: float) -> bool:
        """One round over the lanes that have something due; whether anything was claimed, or may be at once."""
        if self.recorder.unrecorded > MAX_UNRECORDED:
            return False
        plan = self.planner.plan(now)
        if not plan.asks:
            return plan.again
        lanes = [self.lanes.by_id[ask.lane] for ask in plan.asks]
        due, served = {lane.id: lane.due_at for lane in lanes}, Counter[int]()
        try:
            claims, due = await self._claim(plan.asks)
            served.update(r.lane for claim in claims for r in claim.recipients)
        finally:
            self.planner.end(plan)
            for lane in lanes:
                self.lanes.found(lane, due[lane.id])
                self.lanes.order.served(lane, plan.goes.get(lane.id, ""), served[lane.id])
        self._assign_all(claims, plan.goes)
        return bool(claims) or plan.again

    def _assign_all(self, claims: list[Claim], goes: dict[int, str]) -> None:
        for claim in claims:
            try:
                self._assign(claim, goes)
            except Exception as error:  # noqa: BLE001 - what is claimed has an owner, or goes back
                self.log.error("dispatch_error", id=queue_id(claim.message), error=repr(error))
                self.carriers.give_back(claim, claim.recipients, "internal trouble")

    async def _claim(self, asks: list[Ask]) -> tuple[list[Claim], dict[int, float | None]]:
        """Cancelled in the middle it gives back what was claimed: else it would be in doubt at the next start."""
        claiming = asyncio.ensure_future(self.spool.claim(asks))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            claims: list[Claim] = []
            try:
                claims, _ = await claiming
            except SpoolError as error:  # it must not take the place of the cancellation, which would be lost
                self.log.error("claim_failed", error=str(error))
            for claim in claims:
                self.carriers.give_back(claim, claim.recipients, STOPPED)
            raise

    def _assign(self, claim: Claim, goes: dict[int, str]) -> None:
        """Hand a claim's recipients to their egress, in transactions of a size that it takes."""
        by_lane: dict[int, list[Claimed]] = {}
        for recipient in claim.recipients:
            by_lane.setdefault(recipient.lane, []).append(recipient)
        for lane_id, recipients in by_lane.items():
            lane = self.lanes.by_id[lane_id]
            if lane.route is None or lane.stale:
                self.carriers.give_back(claim, recipients, "the configuration changed")
                continue
            if lane.route.action is not Action.VIA:
                self._end_by_rule(claim, recipients, lane)
                continue
            order = _from_first(lane.egresses, goes.get(lane_id, ""))
            if order and order[0] != lane.egresses[0]:
                self._passed_over(lane.egresses[0], order[0])
            size = 1
            if len(recipients) > 1 and order and order[0] in self.egresses:
                account = self.egresses[order[0]].account
                if not self.preparer.plan(lane.route.name, account).apart:
                    size = account.recipients_per_message
            for start in range(0, len(recipients), size):
                self.carriers.push(Work(claim, recipients[start : start + size], lane.route, order, lane=lane))

    def _passed_over(self, first: str, other: str) -> None:
        """Another egress takes over from one that rests: that is told once. What a limit or a warm-up sends on is no alarm."""
        egress = self.egresses[first]
        if egress.breaker.is_open:
            self.carriers.blame.alarms.begin("failed_over", first, egress.breaker.why, to=other)

    def _end_by_rule(self, claim: Claim, recipients: list[Claimed], lane: Lane) -> None:
        """Since a reload its route rejects, holds, discards or captures."""
        assert lane.route is not None
        route = lane.route
        result = {
            Action.REJECT: Result.HARD,
            Action.HOLD: Result.HELD,
            Action.DISCARD: Result.DELIVERED,
            Action.CAPTURE: Result.DELIVERED,
        }[route.action]
        egress = route.action.value if result is Result.DELIVERED else ""
        text, rule = route.text or route.action.value, f"route {route.name} {route.origin}".strip()
        reply = Reply(550, text, "5.7.1") if result is Result.HARD else Reply(0, f"{text} ({rule})")
        outcome = Outcome(result, egress, Stage.RESOLVE, reply, rule=rule if result is Result.HARD else "")
        self.recorder.settle(claim, [(r, outcome) for r in recipients])


def _from_first(egresses: tuple[str, ...], first: str) -> tuple[str, ...]:
    """The egresses from the chosen one on: those before it rest."""
    return egresses[egresses.index(first) :] if first in egresses else egresses
