"""What deliveries came to, made durable: in batches, and never forgotten.

What could not be recorded is kept and tried again; `unrecorded` tells how much that is, so that nothing is claimed
meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from itertools import accumulate

from relay import clock, metrics
from relay.envelope import domain_of, queue_id
from relay.maillog import ERROR, INFO, WARNING, MailLog
from relay.policy import poison
from relay.policy.classes import DEFAULT_CLASS, TrafficClass
from relay.recipient import State
from relay.reply import Result
from relay.settings import Config
from relay.settle import SUPPRESSED, Outcome, learn, settle
from relay.spool import Claim, Claimed, Settlement, Spool, SpoolError

SLICE = 200  # settlements a transaction: 2,000 refused at once, each quoted in a report, took 180 MB and held up the loop 0.4 s

TELLING = 20  # of them with news for their sender: each report takes 0.4 ms, and others wait to commit

_LOGGED = {State.DELIVERED: "delivered", State.DEFERRED: "deferred", State.FAILED: "failed", State.HELD: "held"}

_UNTRIED = (Result.RETURNED, Result.LATER)

DELIVERIES = metrics.Counter("relay_deliveries_total", "Ends of attempts, by recipient", ["egress", "result"])
DELAY = metrics.Histogram("relay_delivery_delay_seconds", "From acceptance until the next hop's 250")


class Recorder:
    """Takes settlements from carriers and dispatch; `run` is its loop."""

    def __init__(self, spool: Spool, config: Config, log: MailLog, nudge: Callable[[], None]) -> None:
        """`nudge`: something is recorded."""
        self.spool, self.config, self.log, self._nudge = spool, config, log, nudge
        self.last_delivery = 0.0
        self.heard: Callable[[Claim, Sequence[tuple[Claimed, Outcome]]], None] = lambda claim, outcomes: None
        self._settled: list[Settlement] = []
        self._have_settled = asyncio.Event()

    def class_of(self, name: str) -> TrafficClass:
        return self.config.classes.get(name) or self.config.classes.get("default", DEFAULT_CLASS)

    def settle(self, claim: Claim, outcomes: list[tuple[Claimed, Outcome]]) -> None:
        now = clock.now()
        if not outcomes:
            return
        try:
            dsn = self.config.dsn
            delay_after = dsn.delay_after if dsn.to != "none" else None
            settlement = settle(claim, outcomes, self.class_of(claim.class_), now, random.random(), delay_after)
            learn(settlement, claim, outcomes, self.config.suppression, self.config.tenant_of.get(claim.user, ""), now)
        except Exception as error:  # noqa: BLE001 - what is in flight must come to an end, else only a restart finds it
            self.log.error("settle_error", id=queue_id(claim.message), error=repr(error))
            settlement = settle(claim, outcomes, DEFAULT_CLASS, now, random.random())
        for event in settlement.events:
            if event.kind == "dsn_refused":
                self.log.error(
                    "dsn_refused",
                    id=queue_id(claim.message),
                    egress=event.egress,
                    code=event.code,
                    hint=event.data["why"],
                )
        self.heard(claim, outcomes)
        self._settled.append(settlement)
        self._have_settled.set()
        for change, (recipient, outcome) in zip(settlement.changes, outcomes, strict=True):
            if outcome.result not in _UNTRIED:
                self._tell(claim, recipient, outcome, change.state, change.due_at - now, change.note)
                if change.state is State.DELIVERED:
                    DELAY.observe(now - claim.accepted_at)
                    self.last_delivery = now

    def _tell(self, claim: Claim, r: Claimed, outcome: Outcome, state: State, wait: float, note: str) -> None:
        kind = "in_doubt" if outcome.result is Result.DOUBT else _LOGGED[state]
        kind = "suppressed" if outcome.rule == SUPPRESSED else kind
        DELIVERIES.inc(1, outcome.egress, kind)
        self.log.event(
            kind,
            INFO if state is State.DELIVERED else ERROR if outcome.crashed and state is State.HELD else WARNING,
            id=queue_id(claim.message),
            sender=claim.sender,
            recipient=r.address,
            domain=domain_of(r.address),
            egress=outcome.egress,
            stage=outcome.stage.value if outcome.egress and state is not State.DELIVERED else None,
            host=outcome.remote or None,
            tls=outcome.security or None,
            reply=str(outcome.reply),
            attempt=r.attempts + 1 if outcome.egress else None,
            next_in=round(wait, 1) if state is State.DEFERRED else None,
            seconds=outcome.seconds,
            signed=sum(line.startswith("signed by") for line in outcome.prepared) if outcome.prepared else None,
            tag=claim.tag,
            class_=claim.class_,
            hint=poison.WHAT_TO_DO if outcome.crashed and state is State.HELD else None,
        )

    async def run(self) -> None:
        """The loop. What it could not record it keeps: a delivery that happened must not be forgotten."""
        while True:
            await self._have_settled.wait()
            self._have_settled.clear()
            while self._settled:
                batch = self._next()
                self._settled = self._settled[len(batch) :]
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
                self._nudge()

    def _next(self) -> list[Settlement]:
        """What goes into the next transaction, the oldest first."""
        told = accumulate(bool(settlement.tells) for settlement in self._settled[:SLICE])
        return self._settled[: sum(count <= TELLING for count in told)]

    @property
    def unrecorded(self) -> int:
        return len(self._settled)

    async def finish(self) -> None:
        """The last record, once no loop runs any more."""
        batch, self._settled = self._settled, []
        if batch:
            try:
                await self.spool.record(batch)
            except SpoolError as error:
                self.log.error("record_failed", settlements=len(batch), error=str(error), hint="they will be in doubt")
