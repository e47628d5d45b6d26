"""What happens seldom: routing anew after a reload, expiry, room on the disk, forgetting what is old, idle sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from relay import clock, metrics
from relay.maillog import MailLog
from relay.policy.lanefacts import LaneFacts, facts_anew
from relay.policy.routing import Answers, Facts
from relay.recipient import State, Verb
from relay.scheduler.lanes import Lane
from relay.scheduler.loop import Scheduler
from relay.spool import Head, Spool, SpoolError
from relay.spool.downtime import PULSE
from relay.submission import BadMessage, read_head
from relay.suppressions import Suppressions

TICK = 1.0
REMEMBER_EVERY = 5.0
EXPIRE_EVERY = 30.0
OVER_EVERY = 60.0  # suppressions that have come to their end
PURGE_EVERY = 300.0
FORGET_EVERY = 3600.0  # lanes, for which all rows are looked at
DRIFT_ALARM = 60.0  # seconds that the wall clock may leave our time before someone is told
SLICE = 200
DELAYS_A_TICK = 2  # slices of 200 recipients; a report costs 0.4 ms

OLDEST = metrics.Gauge("relay_queue_oldest_age_seconds", "Age of the oldest message that waits")
LEAVING = metrics.Gauge(
    "relay_last_delivery_seconds", "Seconds since a next hop took a message; absent before the first"
)
DRIFT = metrics.Gauge("relay_clock_drift_seconds", "How far the wall clock has left the time that the relay goes by")


class Housekeeper:
    """Three loops: `tick` and `forget` (each second), and `relane` (when a reload left lanes without answers)."""

    def __init__(self, spool: Spool, scheduler: Scheduler, log: MailLog, suppressions: Suppressions) -> None:
        self.spool, self.scheduler, self.log, self.suppressions = spool, scheduler, log, suppressions
        self.oldest: float | None = None
        self._drifted = False
        self._refused = ""
        self._untold: tuple[int, int] | None = None  # who heard of a delay last, where more are to
        self._probed = clock.monotonic()
        self._wake = asyncio.Event()
        OLDEST.source = lambda: [((), self.oldest_age(clock.now()))]
        LEAVING.source = lambda: (
            [((), clock.now() - scheduler.recorder.last_delivery)] if scheduler.recorder.last_delivery else []
        )
        DRIFT.source = lambda: [((), clock.drift())]

    def oldest_age(self, now: float) -> float:
        return max(0.0, now - self.oldest) if self.oldest is not None else 0.0

    def reloaded(self) -> None:
        self._wake.set()

    async def tick(self) -> None:
        """The loop of what is short and must come round. Ends only by cancellation."""
        remembered = clock.monotonic()
        while True:
            await asyncio.sleep(TICK)
            self._watch_clock()
            await self._room()
            await self.scheduler.carriers.sweep()
            self.scheduler.standing.look(clock.now())
            await self._resume()
            if clock.monotonic() - remembered > REMEMBER_EVERY:
                remembered = clock.monotonic()
                await self.scheduler.remember()
            try:
                self.oldest = await self.spool.oldest() if self.spool.queued else None
            except (SpoolError, OSError) as error:
                self.log.error("housekeeping_failed", error=str(error))
            if any(lane.due_at is not None for lane in self.scheduler.lanes.stale()):
                self._wake.set()

    async def _resume(self) -> None:
        """What was suspended for so long leaves again."""
        pauses, now = self.scheduler.pauses, clock.now()
        if now >= pauses.in_force.next_end():
            try:
                await pauses.tidy(now)
            except SpoolError as error:
                self.log.error("not_remembered", error=str(error))

    async def forget(self) -> None:
        """The loop of what may take minutes where a million rows are concerned: expiry, delays, retention."""
        expire_at = purge_at = delays_at = over_at = 0.0
        lanes_at = clock.now() + PURGE_EVERY
        while True:
            await asyncio.sleep(TICK)
            now = clock.now()
            try:
                if now >= expire_at:
                    expire_at = now + EXPIRE_EVERY
                    await self._expire(now)
                if now >= delays_at:
                    delays_at = now + await self._tell_delays(now)
                if now >= over_at:
                    over_at = now + OVER_EVERY
                    await self.suppressions.over(now)
                if now >= purge_at:
                    purge_at = now + PURGE_EVERY
                    await self.spool.purge(now - self.spool.keep)
                    await self.spool.forget_spent(now)
                    await self.spool.forget_feed(now)
                    await self.spool.forget_audits(now - self.scheduler.config.admin.audit)
                    self.scheduler.egresses.forget()
                if now >= lanes_at:
                    lanes_at = now + FORGET_EVERY
                    await self.scheduler.forget()
            except (SpoolError, OSError) as error:
                self.log.error("housekeeping_failed", error=str(error))

    async def _room(self) -> None:
        """Refuse or accept by free space and queue; a disk that refused is asked again."""
        now = clock.monotonic()
        if self.spool.refusal or now - self.spool.alive_at > TICK or now - self._probed > PULSE:
            self._probed = now
            try:
                await self.spool.probe(clock.now())
            except SpoolError as error:
                self.log.error("spool_refused", error=str(error))
        self.spool.check_room()
        if self.spool.refusal != self._refused:
            if self.spool.refusal and not self._refused:
                self.log.error("not_accepting", why=self.spool.refusal)
            elif not self.spool.refusal:
                self.log.event("accepting_again")
            self._refused = self.spool.refusal

    def _watch_clock(self) -> None:
        drift = clock.drift()
        if abs(drift) > DRIFT_ALARM and not self._drifted:
            self.log.error(
                "clock_jumped",
                seconds=round(drift, 1),
                hint="times go on from the start; restart to take the new clock",
            )
        self._drifted = abs(drift) > DRIFT_ALARM

    async def _expire(self, now: float) -> None:
        # The last try falls on the end of its time (settle): it is left a while to be made and to say why it failed.
        after: tuple[int, int] | None = None
        while keys := await self.spool.expired(now - EXPIRE_EVERY, after):
            after = keys[-1]
            if count := await self.spool.change(keys, Verb.EXPIRE, now, "expired: its time to be delivered is over"):
                self.log.warning("expired", recipients=count)

    async def _tell_delays(self, now: float) -> float:
        """Senders hear of what only waits; what is tried and deferred is told as it settles. Returns when to look again."""
        dsn = self.scheduler.config.dsn
        if dsn.to == "none" or dsn.delay_after is None or not self.spool.queued:
            return EXPIRE_EVERY
        for _ in range(DELAYS_A_TICK):  # after an outage of hours a million may wait to be told: other work goes on
            self._untold = await self.spool.tell_delays(now - dsn.delay_after, now, self._untold)
            if self._untold is None:
                return min(EXPIRE_EVERY, dsn.delay_after / 10)
        return 0.0

    async def relane(self) -> None:
        """The loop: recipients of lanes that don't answer a new question are looked at again, in slices."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            stale = self.scheduler.lanes.stale()
            for lane in stale:
                moved = await self._relane(lane)
                # What is announced meanwhile must not be overwritten, nor forgotten if the spool does not answer.
                due_at, lane.due_at = lane.due_at, None
                try:
                    due_at = await self.spool.due(lane.id)
                finally:
                    self.scheduler.lanes.update([Head(lane.id, "", due_at)])
                if moved:
                    self.log.event("routed_anew", lane=lane.id, recipients=moved)
            if stale and self.spool.counts[State.HELD]:
                await self._relane_held(stale)

    async def _relane(self, lane: Lane) -> int:
        """Those of a lane that wait for their turn; they leave it, so that the next page is at its head again."""
        moved, config = 0, self.scheduler.config
        while rows := await self.spool.stale(lane.id, SLICE):
            moved += await self._route_anew(rows, {lane.id: lane})
            if config is not self.scheduler.config:
                self._wake.set()
                break
        return moved

    async def _relane_held(self, lanes: Sequence[Lane]) -> None:
        """Those of all these lanes that are held: in one walk, for it has to look at everybody that is."""
        by_id, config = {lane.id: lane for lane in lanes}, self.scheduler.config
        after: tuple[int, int] | None = None
        while rows := await self.spool.stale_held(list(by_id), after, SLICE):
            after = (rows[-1]["message"], rows[-1]["n"])
            moved = await self._route_anew(rows, by_id)
            self.log.event("routed_anew", held=True, recipients=moved)
            if config is not self.scheduler.config:
                self._wake.set()
                break

    async def _route_anew(self, rows: Sequence[dict[str, Any]], lanes: Mapping[int, Lane]) -> int:
        """Move them to the lanes of their answers under the configuration in force; returns how many they are."""
        config = self.scheduler.config
        moves = []
        answers: dict[tuple[int, int], Answers] = {}  # a message's header is read once for all its recipients of a lane
        for row in rows:
            number, lane = row["message"], lanes[row["lane"]]
            known = answers.get((number, lane.id))
            if config.asks_headers and known is None:
                await asyncio.sleep(0)  # a header block of thousands of fields takes 6 ms to read
            facts = facts_of(row, lane.facts, config.asks_headers and known is None)
            if config.asks_reputation:
                facts.reputation = self.scheduler.score(facts.sender)
            answers[number, lane.id] = ask = Answers(facts, known)
            text = facts_anew(config.table, facts, ask, number, lane.facts)
            moves.append((number, row["n"], lane.id, text))
        await self.spool.relane(moves)
        return len(moves)


def facts_of(row: dict[str, object], lane: LaneFacts, with_headers: bool) -> Facts:
    """A stored recipient's facts: what intake knew, read back."""
    headers = None
    if with_headers:
        try:
            headers = read_head(bytes(row["head"])).headers()  # type: ignore[call-overload]
        except BadMessage:
            headers = {}
    return Facts(
        sender=str(row["sender"]),
        recipient=str(row["address"]),
        listener=str(row["listener"]),
        client=str(row["client"]),
        user=str(row["user"]),
        from_=str(row["header_from"]),
        class_=lane.class_,
        tag=str(row["tag"]),
        size=int(row["size"]),  # type: ignore[call-overload]
        headers=headers,
    )
