"""Dispatch, carry, record.

Dispatch asks the gate for each lane that has something due, in fair turns, and claims for all that may go in one
transaction. Carriers, one for each upstream session, take claimed work off an egress' backlog. Record makes what they
settled durable, in batches; what could not be recorded is kept and tried again, and nothing is claimed meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path

from relay import clock, metrics
from relay.deliver.content import Content, ContentError
from relay.deliver.pool import BREAKER, PAUSED, SESSIONS, Egress
from relay.deliver.smtp import Answer, Failure, Parcel, Upstream
from relay.envelope import domain_of, queue_id
from relay.maillog import MailLog
from relay.policy.classes import DEFAULT_CLASS, TrafficClass
from relay.policy.gate import FOREVER, EgressView, Go, admit
from relay.policy.routing import Action, LaneFacts, Route
from relay.recipient import State
from relay.reply import Reply, Result, Scope, Stage, classify
from relay.scheduler.lanes import Lane, Lanes
from relay.settings import Config
from relay.settle import Outcome, settle
from relay.spool import Ask, Claim, Claimed, Settlement, Spool, SpoolError

MAX_UNRECORDED = 2000  # settlements; beyond it nothing is claimed
_LOGGED = {State.DELIVERED: "delivered", State.DEFERRED: "deferred", State.FAILED: "failed", State.HELD: "held"}

DELIVERIES = metrics.Counter("relay_deliveries_total", "Ends of attempts, by recipient", ["egress", "result"])
DELAY = metrics.Histogram("relay_delivery_delay_seconds", "From acceptance until the next hop's 250")
IN_FLIGHT = metrics.Gauge("relay_deliveries_in_flight", "Transactions claimed or running", ["egress"])
LANES = metrics.Gauge("relay_lanes", "Lanes in memory")


@dataclass(slots=True)
class Work:
    """One transaction: a claim, or the share of its recipients that fits one."""

    claim: Claim
    recipients: list[Claimed]
    route: Route
    egresses: tuple[str, ...]  # still to be tried, the current one first
    tried: list[tuple[str, str]] = field(default_factory=list)


class Scheduler:
    """The loops share one event loop and this object; no lock is needed between its awaits."""

    def __init__(self, spool: Spool, config: Config, log: MailLog) -> None:
        self.spool, self.config, self.log = spool, config, log
        self.lanes = Lanes(config)
        self.egresses: dict[str, Egress[Work]] = {}
        self.last_progress = clock.monotonic()  # the watchdog's pulse: dispatch came round
        self.last_delivery = 0.0
        self.stopping = False
        self._settled: list[Settlement] = []
        self._have_settled = asyncio.Event()
        self._carriers: dict[asyncio.Task[None], Upstream | None] = {}
        self._retired: list[Egress[Work]] = []
        self.apply(config)
        self._publish()

    def apply(self, config: Config) -> None:
        """A new configuration: queued mail is routed anew, sessions of unchanged accounts are kept."""
        self.config = config
        for name, account in config.accounts.items():
            current = self.egresses.get(name)
            if current is None or current.account != account or current.hostname != config.hostname:
                if current is not None:
                    self._retire(current)
                self.egresses[name] = Egress(account, config.hostname)
        for name in [n for n in self.egresses if n not in config.accounts]:
            self._retire(self.egresses.pop(name))
        self.lanes.reload(config)
        self.spool.wake()

    def _retire(self, egress: Egress[Work]) -> None:
        """Its running work ends as it is; what has not begun goes back to be routed anew."""
        egress.retired = True
        self._retired.append(egress)
        while egress.backlog:
            self._return(egress.backlog.popleft(), "its account changed")

    # -- dispatch

    async def dispatch(self) -> None:
        """The loop. Ends only by cancellation."""
        self.lanes.update(await self.spool.heads())
        while True:
            now = clock.now()
            try:
                moved = await self._pass(now) if not self.stopping else False
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
                due = self.lanes.next_due(now)
                timeout = 5.0 if due is None else min(5.0, max(0.01, due - now))
            self.lanes.update(await self.spool.wait(timeout))

    async def _pass(self, now: float) -> bool:
        """One round over the lanes that have something due; whether anything was claimed."""
        if len(self._settled) > MAX_UNRECORDED:
            return False
        asks, goes = self._plan(now)
        if not asks:
            return False
        claims, due = await self._claim(asks)
        for ask in asks:
            self.lanes.by_id[ask.lane].due_at = due[ask.lane]
        for claim in claims:
            try:
                self._assign(claim, goes)
            except Exception as error:  # noqa: BLE001 - what is claimed has an owner, or goes back
                self.log.error("dispatch_error", id=queue_id(claim.message), error=repr(error))
                self._give_back(claim, "internal trouble")
        return bool(claims)

    async def _claim(self, asks: list[Ask]) -> tuple[list[Claim], dict[int, float | None]]:
        """Cancelled in the middle it gives back what was claimed: else it would be in doubt at the next start."""
        claiming = asyncio.ensure_future(self.spool.claim(asks))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            for claim in (await claiming)[0]:
                self._give_back(claim, "the relay was stopped before it was sent")
            raise

    def _give_back(self, claim: Claim, why: str) -> None:
        self._return(Work(claim, claim.recipients, Route("", Action.HOLD), ()), why)

    def _plan(self, now: float) -> tuple[list[Ask], dict[int, str]]:
        """What to claim: for each lane that may go, how many and by which egress. The gate is asked, nothing is written."""
        asks: list[Ask] = []
        goes: dict[int, str] = {}
        reserved: dict[str, int] = {}
        lanes = [lane for lane in self.lanes.due(now) if lane.movable]
        share = max(1, len(lanes))
        for lane in lanes:
            assert lane.route is not None
            if lane.route.action is not Action.VIA:
                asks.append(Ask(lane.id, 50, now))
                continue
            views = [self.egresses[name].view(now) for name in lane.egresses]
            decision = admit(views, now)
            if not isinstance(decision, Go):
                lane.wait_until, lane.why = decision.until, decision.why
                continue
            lane.wait_until, lane.why = 0.0, ""
            room = decision.count - reserved.get(decision.egress, 0)
            if room <= 0:
                continue
            # Fair turns: no lane takes all the room while others have something due.
            count = max(1, min(room, -(-decision.count // share)))
            reserved[decision.egress] = reserved.get(decision.egress, 0) + count
            goes[lane.id] = decision.egress
            asks.append(Ask(lane.id, count, now))
        return asks, goes

    def _assign(self, claim: Claim, goes: dict[int, str]) -> None:
        """Hand a claim's recipients to their egress, in transactions of a size that it takes."""
        by_lane: dict[int, list[Claimed]] = {}
        for recipient in claim.recipients:
            by_lane.setdefault(recipient.lane, []).append(recipient)
        for lane_id, recipients in by_lane.items():
            lane = self.lanes.by_id[lane_id]
            if lane.route is None or lane.stale:
                self._return(Work(claim, recipients, Route("", Action.HOLD), ()), "the configuration changed")
                continue
            if lane.route.action is not Action.VIA:
                self._end_by_rule(claim, recipients, lane)
                continue
            order = _from_first(lane.egresses, goes.get(lane_id, ""))
            size = self.egresses[order[0]].account.recipients_per_message if order and order[0] in self.egresses else 1
            for start in range(0, len(recipients), size):
                self._push(Work(claim, recipients[start : start + size], lane.route, order))

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
        text = f"{route.text or route.action.value} (route {route.name} {route.origin})".strip()
        reply = Reply(550 if result is Result.HARD else 0, text)
        self._settle(claim, [(r, Outcome(result, egress, Stage.RESOLVE, reply)) for r in recipients])

    def _push(self, work: Work) -> None:
        egress = self.egresses.get(work.egresses[0]) if work.egresses else None
        if egress is None or self.stopping:
            return self._return(
                work, "its egress is gone" if egress is None else "the relay was stopped before it was sent"
            )
        if egress.breaker.wait(clock.now()) > 0:
            # It began to rest while this was being claimed.
            return self._return(work, f"{egress.name} rests: {egress.breaker.why}")
        egress.backlog.append(work)
        self._hire(egress, 1)

    def _hire(self, egress: Egress[Work], count: int) -> None:
        """Up to so many more carriers, as far as the egress takes them."""
        for _ in range(min(count, egress.staff - egress.carriers)):
            egress.carriers += 1
            task = asyncio.get_running_loop().create_task(self._carry(egress), name=f"carrier-{egress.name}")
            self._carriers[task] = None
            task.add_done_callback(lambda done: self._carried(done, egress))

    def _return(self, work: Work, why: str) -> None:
        """Nothing was said upstream: no attempt is counted."""
        outcome = Outcome(Result.RETURNED, "", Stage.CONNECT, Reply(0, why))
        self._settle(work.claim, [(r, outcome) for r in work.recipients])

    # -- carry

    async def _carry(self, egress: Egress[Work]) -> None:
        """One carrier: takes work off the backlog as long as there is some, on one session where it can."""
        task = asyncio.current_task()
        assert task is not None
        session: Upstream | None = None
        try:
            while egress.backlog and not self.stopping:
                work = egress.backlog.popleft()
                session = await self._attempt(egress, work, session, task)
        finally:
            egress.carriers -= 1
            if session is not None:
                if self.stopping:
                    egress.drop(session)
                else:
                    egress.give(session)
            self.spool.wake()

    def _carried(self, task: asyncio.Task[None], egress: Egress[Work]) -> None:
        self._carriers.pop(task, None)
        if not task.cancelled() and (error := task.exception()):
            self.log.error("carrier_died", error=repr(error))
            self._hire(egress, len(egress.backlog))

    async def _attempt(
        self, egress: Egress[Work], work: Work, session: Upstream | None, task: asyncio.Task[None]
    ) -> Upstream | None:
        """One transaction, to its end in a settlement or a hand-over; returns the session if it is still good."""
        started = clock.monotonic()
        egress.breaker.start()
        try:
            content = Content(work.claim.head, await self._body(work.claim))
            parcel = Parcel(
                work.claim.sender,
                tuple(r.address for r in work.recipients),
                content,
                work.claim.size,
                work.claim.smtp,
            )
            session, answers = await self._deliver(egress, parcel, session, task)
        except Failure as failure:
            session = self._carriers[task]
            self._fail(egress, work, session, failure, clock.monotonic() - started)
        except asyncio.CancelledError:
            session = self._carriers[task]
            egress.breaker.returned()
            self._cut(egress, work, session)
            raise
        except Exception as error:  # noqa: BLE001 - an unknown exception is soft: the message is kept and tried again
            session = self._carriers[task]
            if session is not None:
                session.close()
            egress.breaker.returned()
            self.log.error("delivery_error", id=queue_id(work.claim.message), egress=egress.name, error=repr(error))
            text = str(error) if isinstance(error, SpoolError | ContentError) else type(error).__name__
            self._defer(work, egress.name, Stage.MAIL, Reply(0, f"internal trouble: {text}"), started)
        else:
            egress.breaker.succeeded()
            self._answered(egress, work, answers, clock.monotonic() - started)
        self._hire(egress, len(egress.backlog))  # this attempt may have shown that more may try
        if session is not None and not session.usable:
            self._carriers[task] = None
            egress.give(session)
            return None
        return session

    async def _deliver(
        self, egress: Egress[Work], parcel: Parcel, session: Upstream | None, task: asyncio.Task[None]
    ) -> tuple[Upstream, list[Answer]]:
        """On a kept session or a new one. One that the upstream closed while it was idle costs nobody an attempt."""
        if session is None:
            session = await egress.take()
            self._hire(egress, len(egress.backlog))
        self._carriers[task] = session
        kept = session.transactions > 0
        try:
            return session, await session.deliver(parcel)
        except Failure as failure:
            if not (kept and failure.stage is Stage.MAIL and failure.reply.code in (0, 421)):
                raise
        self._carriers[task] = None
        egress.drop(session)
        session = await egress.take(fresh=True)
        self._carriers[task] = session
        return session, await session.deliver(parcel)

    async def _body(self, claim: Claim) -> bytes | Path:
        return claim.body if claim.body is not None else await self.spool.read(claim.message, claim.place)

    def _answered(self, egress: Egress[Work], work: Work, answers: list[Answer], seconds: float) -> None:
        outcomes = []
        for recipient, answer in zip(work.recipients, answers, strict=True):
            result = Result.DELIVERED if answer.accepted else classify(answer.stage, answer.reply.code).result
            outcomes.append(
                (recipient, Outcome(result, egress.name, answer.stage, answer.reply, seconds, tuple(work.tried)))
            )
        self._settle(work.claim, outcomes)

    def _apart(self, egress: Egress[Work], work: Work, session: Upstream | None, seconds: float) -> None:
        """Who was refused at RCPT has had an answer of his own: what becomes of the others is not about him."""
        if session is None or not any(session.answers):
            return
        answered = [(r, a) for r, a in zip(work.recipients, session.answers, strict=False) if a]
        outcomes = []
        for recipient, answer in answered:
            result = classify(answer.stage, answer.reply.code).result
            outcomes.append(
                (recipient, Outcome(result, egress.name, answer.stage, answer.reply, seconds, tuple(work.tried)))
            )
        done = {recipient.n for recipient, _ in answered}
        work.recipients = [r for r in work.recipients if r.n not in done]
        self._settle(work.claim, outcomes)

    def _fail(
        self, egress: Egress[Work], work: Work, session: Upstream | None, failure: Failure, seconds: float
    ) -> None:
        """The transaction failed as a whole: who suffers?"""
        self._apart(egress, work, session, seconds)
        if not work.recipients:
            return
        trouble = classify(failure.stage, failure.reply.code)
        if trouble.scope in (Scope.NEXT_HOP, Scope.EGRESS):
            self._trip(egress, failure, auth=trouble.scope is Scope.EGRESS)
            if self._fail_over(egress, work, failure):
                return
        elif failure.stage is Stage.DOT and failure.reply.code == 0:
            egress.breaker.failed(clock.now(), f"{failure.stage.value}: {failure.reply}", random.random())
        else:
            egress.breaker.succeeded()  # the next hop is well; it is this message that it does not want
        outcome = Outcome(trouble.result, egress.name, failure.stage, failure.reply, seconds, tuple(work.tried))
        self._settle(work.claim, [(r, outcome) for r in work.recipients])

    def _trip(self, egress: Egress[Work], failure: Failure, *, auth: bool) -> None:
        breaker, before = egress.breaker, egress.breaker.opened
        breaker.failed(clock.now(), str(failure), random.random(), auth=auth)
        if auth:
            egress.refused()
        if breaker.opened > before:
            wait = round(breaker.until - clock.now(), 1)
            kind = "account_paused" if auth else "egress_resting"
            self.log.error(kind, egress=egress.name, stage=failure.stage.value, reply=str(failure.reply), seconds=wait)
            # What has not begun waits for the probe, or goes another way; it has not been tried.
            while egress.backlog:
                work = egress.backlog.popleft()
                if not self._fail_over(egress, work, failure):
                    self._return(work, f"{egress.name} rests: {failure}")

    def _fail_over(self, egress: Egress[Work], work: Work, failure: Failure) -> bool:
        """To the route's next egress, if there is one that may be dialled. Never after the dot: that would be a copy."""
        if failure.stage is Stage.DOT:
            return False
        now = clock.now()
        work.tried.append((egress.name, str(failure)))
        for i, name in enumerate(work.egresses[1:], 1):
            other = self.egresses.get(name)
            if other is not None and other.breaker.wait(now) <= 0 and not (other.breaker.is_open and other.busy):
                work.egresses = work.egresses[i:]
                self.log.warning(
                    "failed_over", id=queue_id(work.claim.message), egress=egress.name, to=name, why=str(failure)
                )
                self._push(work)
                return True
        work.tried.pop()
        return False

    def _cut(self, egress: Egress[Work], work: Work, session: Upstream | None) -> None:
        """We are stopping: before the dot nothing happened, after it nobody knows."""
        self._apart(egress, work, session, 0.0)
        if session is not None and session.stage is Stage.DOT:
            outcome = Outcome(Result.DOUBT, egress.name, Stage.DOT, Reply(0, "the relay was stopped"))
            self._settle(work.claim, [(r, outcome) for r in work.recipients])
        else:
            self._return(work, "the relay was stopped before it was sent")

    def _defer(self, work: Work, egress: str, stage: Stage, reply: Reply, started: float) -> None:
        outcome = Outcome(Result.SOFT, egress, stage, reply, clock.monotonic() - started)
        self._settle(work.claim, [(r, outcome) for r in work.recipients])

    # -- settle and record

    def class_of(self, name: str) -> TrafficClass:
        return self.config.classes.get(name) or self.config.classes.get("default", DEFAULT_CLASS)

    def _settle(self, claim: Claim, outcomes: list[tuple[Claimed, Outcome]]) -> None:
        now = clock.now()
        if not outcomes:
            return
        try:
            settlement = settle(claim, outcomes, self.class_of(claim.class_), now, random.random())
        except Exception as error:  # noqa: BLE001 - what is in flight must come to an end, else only a restart finds it
            self.log.error("settle_error", id=queue_id(claim.message), error=repr(error))
            settlement = settle(claim, outcomes, DEFAULT_CLASS, now, random.random())
        self._settled.append(settlement)
        self._have_settled.set()
        for change, (recipient, outcome) in zip(settlement.changes, outcomes, strict=True):
            if outcome.result is not Result.RETURNED:
                self._tell(claim, recipient, outcome, change.state, change.due_at - now, change.note)
                if change.state is State.DELIVERED:
                    DELAY.observe(now - claim.accepted_at)
                    self.last_delivery = now

    def _tell(self, claim: Claim, r: Claimed, outcome: Outcome, state: State, wait: float, note: str) -> None:
        kind = "in_doubt" if outcome.result is Result.DOUBT else _LOGGED[state]
        DELIVERIES.inc(1, outcome.egress, kind)
        self.log.event(
            kind,
            6 if state is State.DELIVERED else 4,
            id=queue_id(claim.message),
            sender=claim.sender,
            recipient=r.address,
            domain=domain_of(r.address),
            egress=outcome.egress,
            stage=outcome.stage.value if outcome.egress and state is not State.DELIVERED else None,
            reply=str(outcome.reply),
            attempt=r.attempts + 1 if outcome.egress else None,
            next_in=round(wait, 1) if state is State.DEFERRED else None,
            seconds=outcome.seconds,
            tag=claim.tag,
            class_=claim.class_,
        )

    async def record(self) -> None:
        """The loop. What it could not record it keeps: a delivery that happened must not be forgotten."""
        while True:
            await self._have_settled.wait()
            self._have_settled.clear()
            while self._settled:
                batch, self._settled = self._settled, []
                # Shielded: a transaction that has begun ends, and must not be written a second time by `finish`.
                writing = asyncio.ensure_future(self.spool.record(batch))
                try:
                    await asyncio.shield(writing)
                except (SpoolError, OSError) as error:
                    self._settled = batch + self._settled
                    self.log.error("record_failed", settlements=len(batch), error=str(error))
                    await asyncio.sleep(1.0)
                except asyncio.CancelledError:
                    await asyncio.wait([writing])
                    if writing.exception():
                        self._settled = batch + self._settled
                    raise
                except BaseException:
                    self._settled = batch + self._settled
                    self._have_settled.set()  # this loop will be started again: it must not wait for more
                    raise
                self.spool.wake()

    @property
    def unrecorded(self) -> int:
        return len(self._settled)

    # -- stop

    async def stop(self, timeout: float) -> None:
        """No new work; what is before the dot is dropped, what is after it is awaited until `timeout`."""
        self.stopping = True
        for egress in [*self.egresses.values(), *self._retired]:
            while egress.backlog:
                self._return(egress.backlog.popleft(), "the relay was stopped before it was sent")
        waiting = set(self._carriers)
        for task in waiting:
            session = self._carriers.get(task)
            if session is None or session.stage is not Stage.DOT:
                task.cancel()
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=max(0.05, timeout))
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1.0)
        await asyncio.gather(*(egress.close() for egress in [*self.egresses.values(), *self._retired]))

    async def finish(self) -> None:
        """The last record, once no loop runs any more."""
        batch, self._settled = self._settled, []
        if batch:
            try:
                await self.spool.record(batch)
            except SpoolError as error:
                self.log.error("record_failed", settlements=len(batch), error=str(error), hint="they will be in doubt")

    async def sweep(self) -> None:
        """Sessions that were idle for too long."""
        await asyncio.gather(*(egress.sweep() for egress in [*self.egresses.values(), *self._retired]))
        self._retired = [e for e in self._retired if e.busy or e.sessions]

    def _publish(self) -> None:
        SESSIONS.source = lambda: [((n,), float(e.sessions)) for n, e in self.egresses.items()]
        BREAKER.source = lambda: [((n,), float(e.breaker.is_open)) for n, e in self.egresses.items()]
        PAUSED.source = lambda: [((n,), float(e.breaker.auth_failed)) for n, e in self.egresses.items()]
        IN_FLIGHT.source = lambda: [((n,), float(e.busy)) for n, e in self.egresses.items()]
        LANES.source = lambda: [((), float(len(self.lanes.by_id)))]

    def forecast(self, lane_id: int, now: float) -> tuple[str, float | None, tuple[str, ...]]:
        """(why what is due in this lane waits, until when, its egresses); an empty why: nothing holds it up."""
        lane = self.lanes.by_id.get(lane_id)
        if lane is None:
            return "", now, ()  # it has just come in
        if lane.movable and lane.egresses:
            decision = admit([self.egresses[name].view(now) for name in lane.egresses], now)
            if not isinstance(decision, Go):
                return decision.why, None if decision.until == FOREVER else decision.until, lane.egresses
            return "", now, lane.egresses
        if lane.movable and lane.route is not None and lane.route.action is Action.VIA:
            return f"no account of route {lane.route.name} may send as its sender", None, ()
        return lane.why, None, lane.egresses

    # -- what the operator is told

    def route_name(self, lane_id: int) -> str:
        lane = self.lanes.by_id.get(lane_id)
        return lane.route.name if lane and lane.route else ""

    def lanes_of_route(self, name: str) -> tuple[int, ...]:
        return tuple(i for i in self.lanes.by_id if self.route_name(i) == name)

    def lane_facts_of(self, lane_id: int) -> LaneFacts | None:
        lane = self.lanes.by_id.get(lane_id)
        return lane.facts if lane else None

    def view(self, egress: str) -> EgressView | None:
        found = self.egresses.get(egress)
        return found.view(clock.now()) if found else None

    def egress_rows(self) -> list[dict[str, object]]:
        """Each egress: what it does, and why it rests if it does."""
        now = clock.now()
        return [
            {
                "egress": name,
                "host": f"{e.account.host}:{e.account.port}",
                "sessions": e.sessions,
                "in_flight": e.busy,
                "state": "paused: login refused"
                if e.breaker.auth_failed
                else "resting"
                if e.breaker.is_open
                else "open",
                "wait": round(e.breaker.wait(now), 1),
                "why": e.breaker.why,
            }
            for name, e in self.egresses.items()
        ]


def _from_first(egresses: tuple[str, ...], first: str) -> tuple[str, ...]:
    """The egresses from the chosen one on: those before it rest."""
    return egresses[egresses.index(first) :] if first in egresses else egresses
