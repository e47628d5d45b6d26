"""Carriers: one for each upstream session at work. They take claimed work off an egress' backlog and bring it to an end.

Promises: whatever is pushed ends in a settlement, in another egress' backlog, or goes back unsaid. Who suffers from a
failure is `scheduler.blame`'s to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from relay import clock
from relay.deliver.content import ContentError
from relay.deliver.network import Network
from relay.deliver.pool import Egress
from relay.deliver.smtp import Answer, Failure, TooSoon, Upstream
from relay.envelope import EIGHT_BIT, queue_id
from relay.maillog import MailLog
from relay.oauth.keeper import Keeper
from relay.policy.routing import Action, Route
from relay.policy.turn import NOT_LONG, turn
from relay.prepare.message import Plan
from relay.prepare.preparer import UNSIGNED, Preparer
from relay.reply import Reply, Result, Stage
from relay.scheduler.alarms import Alarms
from relay.scheduler.blame import Blame
from relay.scheduler.bounds import Bounds
from relay.scheduler.charges import Charges
from relay.scheduler.egresses import Egresses
from relay.scheduler.journal import Journal
from relay.scheduler.ledger import Ledger
from relay.scheduler.memory import Memory
from relay.scheduler.pauses import halted
from relay.scheduler.record import Recorder
from relay.scheduler.shape import Shaping
from relay.scheduler.sites import Sites
from relay.scheduler.work import Work
from relay.settings import Config
from relay.settle import Outcome
from relay.spool import Claim, Claimed, Spool, SpoolError
from relay.suppressions import Suppressions

STOPPED = "the relay was stopped before it was sent"

BEFORE_MAIL = (Stage.RESOLVE, Stage.CONNECT, Stage.BANNER, Stage.EHLO, Stage.STARTTLS, Stage.AUTH, Stage.PREPARE)


class Carriers:
    """All egresses and those who work for them."""

    def __init__(
        self,
        spool: Spool,
        config: Config,
        network: Network,
        sites: Sites,
        recorder: Recorder,
        preparer: Preparer,
        log: MailLog,
        nudge: Callable[[], None],
        bounds: Bounds,
        ledger: Ledger,
        memory: Memory,
        journal: Journal,
        suppressions: Suppressions,
    ) -> None:
        """`nudge`: there is room for more."""
        self.bounds, self.charges = bounds, Charges(bounds, ledger)
        self.spool, self.recorder, self.preparer, self.log, self.nudge = spool, recorder, preparer, log, nudge
        self.keeper = Keeper(log, self._token_back)
        self.egresses = Egresses(config, network, sites, self.keeper, ledger, memory, nudge)
        self.retired: list[Egress[Work]] = []
        self.at_work: dict[asyncio.Task[None], Upstream | None] = {}
        alarms = Alarms(log)
        self.journal = journal
        shaping = Shaping(sites, log, memory, alarms, journal)
        self.blame = Blame(self, recorder, shaping, alarms, journal, log, suppressions)
        self.egresses.made = self.blame.shaping.resume
        self.stopping = False
        self.egresses.measure()

    def apply(self, config: Config) -> None:
        """A new configuration: sessions of unchanged accounts are kept, and one that rests is asked again at once."""
        self.keeper.apply(config)
        for egress in self.egresses.apply(config):
            self._retire(egress)
        self.blame.shaping.apply(config)
        self.blame.resume(self.egresses.values())

    def _token_back(self, name: str) -> None:
        """An account that rests for want of a token need not wait for its cool-down."""
        egress = self.egresses.get(name)
        if egress is not None and egress.breaker.auth_failed:
            egress.breaker.ask_again(clock.now())

    def _retire(self, egress: Egress[Work]) -> None:
        """Its running work ends as it is; what has not begun goes back to be routed anew."""
        egress.retired = True
        if egress.breaker.is_open:
            self.journal.note("resumed", egress.key, what="egress", why="its account changed")
        self.retired.append(egress)
        while egress.backlog:
            self.put_back(egress.backlog.popleft(), "its account changed")

    def egress(self, key: str) -> Egress[Work] | None:
        """None: its account is gone, or its site."""
        return self.egresses.at(key)

    def push(self, work: Work) -> None:
        egress = self.egress(work.egresses[0]) if work.egresses else None
        if egress is None or self.stopping:
            return self.put_back(work, "its egress is gone" if egress is None else STOPPED)
        egress.used = clock.monotonic()
        if egress.breaker.wait(clock.now()) > 0:
            # It began to rest while this was being claimed.
            return self.put_back(work, f"{egress.key} rests: {egress.breaker.why}")
        if why := halted(egress, work):
            return self.put_back(work, why)
        if self.blame.resting.rests and not self.blame.awake(egress, work):
            return
        if not self.blame.suppressions.none and not self.blame.wanted(work):
            return
        if (work.charged or not self.bounds.none) and (held := self.charges.charge(egress, work)).seconds > 0:
            return self.put_back(work, held.why)
        self._plan(egress, work, self.preparer.plan(work.route.name, egress.account))
        egress.backlog.append(work)
        self._hire(egress, 1)

    def _plan(self, egress: Egress[Work], work: Work, plan: Plan) -> None:
        """What is done to it on its way by this egress; begun where its content is at hand, so that no session waits for it."""
        if work.plan is not None:
            work.drop()
        claim = work.claim
        work.plan, work.kept = plan, plan.keeps(claim.smtp, egress.seven_bit)
        if not work.kept and claim.body is not None:
            work.begin(self.preparer, egress.account, claim.body, egress.seven_bit)
        elif work.kept and plan.tells:
            self.preparer.tell(claim.message, claim.sender, egress.account, UNSIGNED)

    def _hire(self, egress: Egress[Work], count: int) -> None:
        """Up to so many more carriers, as far as the egress takes them."""
        for _ in range(min(count, egress.staff - egress.carriers)):
            egress.carriers += 1
            task = asyncio.get_running_loop().create_task(self._carry(egress), name=f"carrier-{egress.name}")
            self.at_work[task] = None
            task.add_done_callback(lambda done: self._carried(done, egress))

    def put_back(self, work: Work, why: str) -> None:
        """Nothing was said upstream: no attempt is counted."""
        work.drop()
        self.charges.refund(work)
        outcome = Outcome(Result.RETURNED, "", Stage.CONNECT, Reply(0, why))
        self.recorder.settle(work.claim, [(r, outcome) for r in work.recipients])

    def give_back(self, claim: Claim, recipients: list[Claimed], why: str) -> None:
        """Recipients that were claimed and can't be pushed."""
        self.put_back(Work(claim, recipients, Route("", Action.HOLD), ()), why)

    async def _carry(self, egress: Egress[Work]) -> None:
        """One carrier: takes work off the backlog as long as there is some, on one session where it can."""
        task = asyncio.current_task()
        assert task is not None
        whole = False
        try:
            while egress.backlog and not self.stopping and egress.carriers <= egress.connections:
                session = self.at_work[task]
                if egress.surplus if session is None else egress.had_its_turn(session):
                    break
                await self._attempt(egress, egress.backlog.popleft(), task)
            whole = not self.stopping
        finally:
            egress.carriers -= 1
            if (session := self.at_work[task]) is not None:
                # Cut in the middle of a transaction, it waits for a reply that would be taken for the next one's.
                (egress.give if whole else egress.drop)(session)
            self.nudge()

    def _carried(self, task: asyncio.Task[None], egress: Egress[Work]) -> None:
        self.at_work.pop(task, None)
        if not task.cancelled() and (error := task.exception()):
            self.log.error("carrier_died", error=repr(error))
        if egress.backlog and not self.stopping:
            self._hire(egress, len(egress.backlog))

    def _took(self, egress: Egress[Work], seconds: float) -> None:
        if egress.took(seconds):
            self.journal.note("resumed", egress.key, what="connections", why="it may have all of them again")

    async def _attempt(self, egress: Egress[Work], work: Work, task: asyncio.Task[None]) -> None:
        """One transaction, to its end in a settlement or a hand-over; keeps the session in `at_work` if it is still good."""
        if work.plan is None or work.plan.config is not self.preparer.config:  # a reload since it was pushed
            plan = self.preparer.plan(work.route.name, egress.account)
            if plan.apart and len(work.recipients) > 1:
                return self.put_back(work, "its route has a message for each recipient now")
            self._plan(egress, work, plan)
        started, work.began = clock.monotonic(), clock.now()
        work.remote = work.security = ""  # nobody has said anything in this attempt
        work.asks, work.ends = len(work.recipients), False
        egress.asking += work.asks
        egress.breaker.start()
        if (kept := self.at_work[task]) is not None:
            kept.answers = []  # they were about the message before
        try:
            claim = work.claim
            body = claim.body if claim.body is not None else await self.spool.read(claim.message, claim.place)
            if not work.kept:
                await self._make_ready(egress, work, body)
            answers = await self._deliver(egress, work, body, task)
        except TooSoon as error:
            egress.breaker.returned()
            self._too_soon(egress, work, error)
        except Failure as failure:
            if failure.stage in BEFORE_MAIL:
                self.charges.unsaid(egress, work)
            self.blame.failed(egress, work, self.at_work[task], failure, clock.monotonic() - started)
        except asyncio.CancelledError:
            egress.breaker.returned()
            self._cut(egress, work, self.at_work[task])
            raise
        except Exception as error:  # noqa: BLE001 - an unknown exception is soft: the message is kept and tried again
            if (session := self.at_work[task]) is not None:
                session.close()
            egress.breaker.returned()
            self.blame.apart(egress, work, session, clock.monotonic() - started)
            self.log.error("delivery_error", id=queue_id(work.claim.message), egress=egress.name, error=repr(error))
            text = str(error) if isinstance(error, SpoolError | ContentError) else type(error).__name__
            # Trouble of the machine, such as a disk that can't be read just now, is not the message's.
            passing = isinstance(error, SpoolError | OSError) or (isinstance(error, ContentError) and not error.gone)
            self._defer(work, egress.name, Reply(0, f"internal trouble: {text}"), started, crashed=not passing)
        else:
            session = self.at_work[task]
            passed_on = session is not None and session.passes_on
            seconds = clock.monotonic() - started
            self._took(egress, seconds)
            self.blame.answered(egress, work, answers, seconds, passed_on)
        finally:
            if work.ready is not None:
                work.ready.done()
            egress.asking, work.asks = egress.asking - work.asks, 0
            if work.paced:
                egress.sending, work.paced = egress.sending - 1, False
        if egress.backlog:
            self._hire(egress, len(egress.backlog))  # this attempt may have shown that more may try
        if (session := self.at_work[task]) is not None:
            session.ends |= work.ends
            if not session.usable:
                self.at_work[task] = None
                egress.give(session)

    async def _make_ready(self, egress: Egress[Work], work: Work, body: bytes | Path) -> None:
        """For what its last EHLO said; where it can't be made that, the next EHLO is asked before the message fails."""
        if work.begun is None:
            work.begin(self.preparer, egress.account, body, egress.seven_bit)
        try:
            await work.made()
        except Failure as failure:
            if not work.seven_bit or failure.reply.code < 500:
                raise
            work.begin(self.preparer, egress.account, body, False)
            await work.made()

    async def _deliver(
        self, egress: Egress[Work], work: Work, body: bytes | Path, task: asyncio.Task[None]
    ) -> list[Answer]:
        """On a kept session or a new one. One that the upstream closed while it was idle costs nobody an attempt."""
        session, domain = self.at_work[task], work.domain if egress.direct else ""
        if session is not None and egress.direct and not await egress.direct.serves(session, domain):
            egress.give(session)
            self.at_work[task] = session = None
        if session is None:
            # What was claimed before is no reason to dial one that asked for a pause.
            if egress.pace.until > clock.now():
                raise TooSoon(f"{egress.key} waits: {egress.pace.why}")
            session = self.at_work[task] = await egress.take(domain)
            if egress.backlog:
                self._hire(egress, len(egress.backlog))
        kept = session.transactions > 0
        work.remote, work.security = session.remote, session.security
        if not egress.pace.free:
            await self._in_turn(egress, work)
        if work.charged or work.paced:
            await self.charges.saved(egress, work)
        try:
            if work.needs & EIGHT_BIT and not session.eight_bit:
                await self._seven_bit(egress, work, body)
            work.began = clock.now()
            return await session.deliver(work.parcel(body))
        except Failure as failure:
            lost = kept and failure.stage is Stage.MAIL and failure.reply.code in (0, 421)
            if not lost or self.blame.understood(egress, work, failure.stage, failure.reply):
                raise
        self.at_work[task] = None
        egress.drop(session)
        session = self.at_work[task] = await egress.take(domain, fresh=True)
        work.remote, work.security = session.remote, session.security
        if work.needs & EIGHT_BIT and not session.eight_bit:
            await self._seven_bit(egress, work, body)
        return await session.deliver(work.parcel(body))

    async def _in_turn(self, egress: Egress[Work], work: Work) -> None:
        """Waits for its turn by the pace of the account (`policy.turn`). Raises TooSoon where that is later than it waits."""
        end = clock.now() + NOT_LONG
        while True:
            now, size = clock.now(), work.claim.size
            found = turn(egress.pace, now, len(work.recipients), size, end)
            if not found.fit:
                raise TooSoon(f"{egress.key} waits: {found.why}", found.alone)
            if found.fit < len(work.recipients):
                self.put_back(work.share(work.recipients[found.fit :]), f"{egress.key} waits: {found.why}")
                work.recipients = work.recipients[: found.fit]
            elif found.wait:
                await asyncio.sleep(found.wait)
            else:
                self.charges.turn(egress, work, now)
                egress.sending += 1
                egress.asking, work.asks = egress.asking - work.asks, 0
                return

    def _too_soon(self, egress: Egress[Work], work: Work, error: TooSoon) -> None:
        """Back to wait for its turn, with all that waits for this egress; or alone, where the others have sessions that are
        none for it: it would only be claimed again, and again be too soon."""
        self.charges.unsaid(egress, work)
        if not (error.wait and egress.sessions):
            return self.put_back(work, str(error))
        work.drop()
        outcome = Outcome(Result.LATER, "", Stage.CONNECT, Reply(0, str(error)), wait=error.wait)
        self.recorder.settle(work.claim, [(r, outcome) for r in work.recipients])

    async def _seven_bit(self, egress: Egress[Work], work: Work, body: bytes | Path) -> None:
        """By its EHLO the session takes no other, which the next messages are made ready for."""
        work.begin(self.preparer, egress.account, body, True)
        await work.made()

    def _cut(self, egress: Egress[Work], work: Work, session: Upstream | None) -> None:
        """We are stopping: before the dot nothing happened, after it nobody knows."""
        self.blame.apart(egress, work, session, 0.0)
        if session is not None and session.stage is Stage.DOT:
            outcome = Outcome(Result.DOUBT, egress.name, Stage.DOT, Reply(0, "the relay was stopped"))
            self.recorder.settle(work.claim, [(r, outcome) for r in work.recipients])
        else:
            self.charges.unsaid(egress, work)
            self.put_back(work, STOPPED)

    def _defer(self, work: Work, egress: str, reply: Reply, started: float, *, crashed: bool) -> None:
        """After trouble of our own: too often in a row, and it is held (policy.poison)."""
        outcome = Outcome(Result.SOFT, egress, Stage.MAIL, reply, clock.monotonic() - started, crashed=crashed)
        self.recorder.settle(work.claim, [(r, outcome) for r in work.recipients])

    async def stop(self, timeout: float) -> None:
        """No new work; what is before the dot is dropped, what is after it is awaited until `timeout`."""
        self.stopping = True
        for egress in [*self.egresses.values(), *self.retired]:
            while egress.backlog:
                self.put_back(egress.backlog.popleft(), STOPPED)
        waiting = set(self.at_work)
        for task in waiting:
            session = self.at_work.get(task)
            if session is None or session.stage is not Stage.DOT:
                task.cancel()
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=max(0.05, timeout))
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1.0)
        await asyncio.gather(*(egress.close() for egress in [*self.egresses.values(), *self.retired]))

    async def sweep(self) -> None:
        """Sessions that were idle for too long, and what shaping has put in force for so long."""
        self.blame.shaping.sweep()
        self.blame.resting.over(clock.now())
        idle = [egress for egress in [*self.egresses.values(), *self.retired] if egress.idle]
        await asyncio.gather(*(egress.sweep() for egress in idle))
        self.retired = [e for e in self.retired if e.busy or e.sessions]
