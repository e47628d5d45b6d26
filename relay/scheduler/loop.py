"""Dispatch: asks the gate for each lane that has something due, in fair turns, and claims for all that may go in one
transaction. What is claimed goes to the carriers; what they came to goes to the recorder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from relay import clock, metrics
from relay.deliver.network import Network
from relay.deliver.pool import Egress
from relay.envelope import queue_id
from relay.maillog import MailLog
from relay.policy.gate import FOREVER, Go, admit
from relay.policy.routing import Action
from relay.prepare.preparer import Preparer
from relay.reply import Reply, Result, Stage
from relay.scheduler.carry import STOPPED, Carriers
from relay.scheduler.egresses import Egresses
from relay.scheduler.lanes import Lane, Lanes, Way
from relay.scheduler.outlook import Outlook
from relay.scheduler.record import Recorder
from relay.scheduler.sites import Sites
from relay.scheduler.work import Work
from relay.settings import Config
from relay.settle import Outcome
from relay.spool import SIBLINGS, Ask, Claim, Claimed, Spool, SpoolError

MAX_ASKED = 200  # lanes in one claim: others wait for its transaction
MAX_ENDED = 10  # lanes that a rule ends, in one claim
MAX_UNRECORDED = 2000  # settlements; beyond it nothing is claimed

LANES = metrics.Gauge("relay_lanes", "Lanes in memory")


@dataclass(slots=True)
class Going:
    """What a pass has let go so far."""

    places: dict[str, int]  # for who has no session, by line
    open: dict[str, tuple[Go, list[Way]]] = field(default_factory=dict)  # by egress


class Scheduler:
    """Lanes, carriers, recorder and the loop between them; they share one event loop, so no lock is needed between awaits."""

    def __init__(self, spool: Spool, config: Config, preparer: Preparer, network: Network, log: MailLog) -> None:
        self.spool, self.config, self.network, self.log = spool, config, network, log
        self.sites = Sites(network.mx, config, log)
        self.sites.found = self._sited
        self.lanes = Lanes(config, self.sites)
        self.recorder = Recorder(spool, config, log, self._nudge)
        self.preparer = preparer
        self.carriers = Carriers(spool, config, network, self.sites, self.recorder, preparer, log, self._nudge)
        self.outlook = Outlook(self.lanes, self.carriers, network)
        self.last_progress = clock.monotonic()  # the watchdog's pulse: dispatch came round
        self._granted: dict[int, Egress[Work]] = {}
        self._look_at = FOREVER  # a way that is not at rest may go then, whether or not anybody ends before
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

    async def forget(self) -> None:
        """Lanes that nobody is in any more. Raises SpoolError."""
        self.lanes.forget(await self.spool.forget_lanes())

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
        if not found.idle(clock.now()) or self.lanes.waits_for(egress.key):
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
                due = min(self.lanes.next_due() or FOREVER, self._look_at)
                timeout = min(5.0, max(0.01, due - now))
            self.lanes.update(await self.spool.wait(timeout))

    async def _pass(self, now: float) -> bool:
        """One round over the lanes that have something due; whether anything was claimed."""
        self._look_at = FOREVER
        if self.recorder.unrecorded > MAX_UNRECORDED:
            return False
        asks, goes = self._plan(now)
        if not asks:
            return False
        lanes = [self.lanes.by_id[ask.lane] for ask in asks]
        due = {lane.id: lane.due_at for lane in lanes}
        try:
            claims, due = await self._claim(asks)
        finally:
            for lane in lanes:
                self.lanes.found(lane, due[lane.id])
        self._assign_all(claims, goes)
        return bool(claims)

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

    def _plan(self, now: float) -> tuple[list[Ask], dict[int, str]]:
        """What to claim: for each lane that may go, how many and by which egress. The gate is asked, nothing is written."""
        asks: list[Ask] = []
        goes: dict[int, str] = {}
        trunks = self.carriers.egresses.trunks.values()
        going = Going({trunk.line(proven): trunk.places(proven) for trunk in trunks for proven in (True, False)})
        lines = self.lanes.lines()
        for way in self.lanes.ways(now):
            if not way.egresses:
                asks += [Ask(lane.id, 50, now) for lane in self.lanes.take([way], MAX_ENDED)]
            elif len(going.open) < MAX_ASKED:  # the others are the first ones of the next pass
                self._ask(way, now, going, lines)
        for line, count in lines.items():
            for _ in range(count):
                if going.places.get(line, 1) <= 0 or len(going.open) >= MAX_ASKED:
                    break
                if (first := self.lanes.first(line)) is not None:
                    self._ask(first, now, going, {})
        for egress, (go, ways) in going.open.items():
            # Fair turns: no lane takes all the room while others have something due.
            room, turns = go.count, sum(len(way.turns) for way in ways)
            share, siblings = -(-room // turns), min(SIBLINGS, -(-go.recipients // turns))
            for lane in self.lanes.take(ways, min(room, MAX_ASKED - len(asks))):
                goes[lane.id] = egress
                count = min(share, room)
                asks.append(Ask(lane.id, count, now, max(0, siblings - count)))
                room -= share
                if room <= 0:
                    break
        return asks, goes

    def _ask(self, way: Way, now: float, going: Going, lines: Mapping[str, int]) -> None:
        """Whether a way may go now; else it rests, or stands in line behind those that do already."""
        decision = admit([self.egresses[name].view(now) for name in way.egresses], now)
        if isinstance(decision, Go):
            line, new = decision.behind, decision.egress not in going.open
            if line and (line in lines or (new and going.places[line] <= 0)):
                return self.lanes.stand(way, line)
            if line and new:
                going.places[line] -= 1
            going.open.setdefault(decision.egress, (decision, []))[1].append(way)
        elif decision.behind:
            self.lanes.stand(way, decision.behind)
        elif any(self.egresses[name].busy for name in way.egresses):
            self._look_at = min(self._look_at, decision.until)
        else:
            self.lanes.rest(way, decision.until, now)

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
            size = 1
            if len(recipients) > 1 and order and order[0] in self.egresses:
                account = self.egresses[order[0]].account
                if not self.preparer.plan(lane.route.name, account).apart:
                    size = account.recipients_per_message
            for start in range(0, len(recipients), size):
                self.carriers.push(Work(claim, recipients[start : start + size], lane.route, order))

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
