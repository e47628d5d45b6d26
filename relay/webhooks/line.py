"""One endpoint: how far it has come in the stream, what of it waits, and when it is asked again.

Owns: that an event is taken at least once or is a dead letter, and that those of one message keep their order. The cursor is
durable behind what was taken; an event that is refused alone becomes a parcel, and what follows of its message goes behind it.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from relay import clock, metrics
from relay.events import Row, Wanted, told
from relay.maillog import MailLog
from relay.settings import Endpoint
from relay.spool.feed import Feed, Parcel, Progress
from relay.webhooks.sinks import sink
from relay.webhooks.turn import Turn, take_turn
from relay.webhooks.words import Batch, Item, Said, Verdict, delay

PAGE = 500  # events that are read at once
GATHER = 0.02  # seconds that pass between two looks at the stream
LOOK = 1.0  # seconds between two looks at what waits
UNSAVED = 5000  # events that nobody wanted, after which the cursor is written
PATIENCE = 3  # failures in a row after which one event is looked for that may be their cause, or events are given up
CREDIT = 3  # events that may be refused in a row before the endpoint is thought to refuse all
MOST_DEAD = 100_000  # dead letters of one endpoint; the oldest go first
MOST_WAITING = 10_000  # parcels that wait; further ones are dead letters at once

EVENTS = metrics.Counter("relay_webhook_events_total", "Events by what became of them", ["endpoint", "result"])
REQUESTS = metrics.Counter("relay_webhook_requests_total", "Batches that were handed over", ["endpoint", "result"])


class Line:
    """`run` until `end`. What operators do to it waits for the turn under way."""

    def __init__(self, endpoint: Endpoint, spool: Feed, log: MailLog, tenants: Callable[[], Mapping[str, str]]) -> None:
        self.endpoint, self.spool, self.log, self.tenants = endpoint, spool, log, tenants
        self.name = endpoint.name
        self.cursor = 0
        self.head_at = 0.0  # of the first event that is not taken yet; 0: there is none that is known
        self.failures, self.failing_since, self.until = 0, 0.0, 0.0
        self.why = ""  # of the last failure
        self.gone = False  # 410: what comes is a dead letter
        self.waiting, self.dead = 0, 0  # parcels; counted anew from time to time
        self._next = endpoint
        self._sink = sink(endpoint)
        self._size = endpoint.batch
        self._credit = CREDIT
        self._behind: set[int] = set()
        self._look_at = 0.0
        self._unsaved = 0
        self._replayed_at, self._replayed_to = 0.0, 0
        self._wake, self._turn, self.ending = asyncio.Event(), asyncio.Lock(), False

    # -- from outside

    def change(self, endpoint: Endpoint) -> None:
        """From the next turn on; what rests is tried at once, for an operator may have mended it."""
        self._next, self.gone = endpoint, False
        self.wake()

    def wake(self) -> None:
        self.until = 0.0
        self._wake.set()

    def end(self) -> None:
        """After the turn under way."""
        self.ending = True
        self._wake.set()

    async def rewind(self, cursor: int) -> None:
        """The stream once more, from there; where it is behind that, from where it is: nothing is passed over."""
        async with self._turn:
            self._replayed_at, self._replayed_to = clock.now(), max(self.cursor, self._replayed_to)
            await self._save(min(cursor, self.cursor))
            self.gone = False
        self.wake()

    async def revive(self) -> int:
        """Dead letters become parcels that are due; how many."""
        count, after, now = 0, 0, clock.now()
        async with self._turn:
            while page := await self.spool.parcels(self.name, dead=True, after=after, limit=PAGE):
                made = [replace(one, dead=False, attempts=0, due_at=now, first_at=now) for one in page]
                await self._save(self.cursor, made)
                count, after = count + len(page), page[-1].event
            self.gone = False
            self.dead, self.waiting = self.dead - count, self.waiting + count
            self._behind, self._look_at = await self.spool.waiting_messages(self.name), 0.0
        self.wake()
        return count

    async def drop(self) -> int:
        """Dead letters are forgotten; how many."""
        count = 0
        async with self._turn:
            while page := await self.spool.parcels(self.name, dead=True, limit=PAGE):
                await self._save(self.cursor, taken=[one.event for one in page])
                count += len(page)
            self.dead -= count
        EVENTS.inc(count, self.name, "dropped")
        return count

    async def test(self) -> Said:
        """One event of its own kind, now."""
        now = clock.now()
        body = json.dumps({"id": 0, "at": round(now, 3), "event": "test", "endpoint": self.name})
        async with self._turn:
            self._adopt()
            said = await self._sink.send(Batch(self.name, [Item(0, 0, now, body)]))
            if said.verdict is Verdict.TAKEN:
                self.gone = False
        if said.verdict is Verdict.TAKEN:
            self.wake()
        return said

    # -- its loop

    async def run(self) -> None:
        """Raises SpoolError; to be started again then."""
        self.cursor = (await self.spool.cursors())[self.name]
        self._behind = await self.spool.waiting_messages(self.name)
        self.waiting, self.dead, _ = (await self.spool.parcel_counts()).get(self.name, (0, 0, None))
        try:
            while not self.ending:
                if (wait := self.until - clock.now()) > 0:
                    await self._first_of(wait)
                    continue
                async with self._turn:
                    busy = await self._round()
                if not busy and not self.ending:
                    # While something waits, it is looked after too.
                    timeout = LOOK if self.waiting else None
                    await self._first_of(timeout, self.spool.stirred(None, self.cursor))
                    await asyncio.sleep(GATHER)
            if self._unsaved:
                await self._save(self.cursor)
        finally:
            self._sink.close()

    async def _first_of(self, timeout: float | None, *also: Coroutine[Any, Any, Any]) -> None:
        """Until somebody wakes it, or one of these has happened."""
        tasks = [asyncio.ensure_future(one) for one in (self._wake.wait(), *also)]
        try:
            await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        self._wake.clear()
        for said in ended:
            if isinstance(said, Exception):
                raise said

    def _adopt(self) -> None:
        if self._next != self.endpoint:
            self._sink.close()
            self.endpoint, self._size = self._next, self._next.batch
            self._sink = sink(self.endpoint)

    async def _round(self) -> bool:
        """Whether there was anything to do."""
        self._adopt()
        busy = False
        if self.waiting and clock.now() >= self._look_at:
            busy = await self._parcels()
        return (await self._stream() or busy) if self.until <= clock.now() else busy

    # -- the stream

    async def _stream(self) -> bool:
        all_wanted = self.endpoint.wanted == Wanted() and not self.gone
        rows = await self.spool.events(self.cursor, self._size + 1 if all_wanted else PAGE)
        if not rows:
            self.head_at = 0.0
            return False
        items, upto, all_ = self._chosen(rows, PAGE if self.gone else self._size)
        self.head_at = items[0].at if items else 0.0
        if not items:
            self.cursor, self._unsaved = upto, self._unsaved + len(rows)
            if self._unsaved >= UNSAVED:
                await self._save(self.cursor)
            return True
        if self.gone:
            await self._save(upto, self._dead([(item, self.why) for item in items]))
            await self._bound()
            return True
        company = items[0].at + self.endpoint.wait - clock.now()
        if all_ and len(items) < self._size and 0 < company <= self.endpoint.wait:
            await self._settled(company)
            return True
        free = [item for item in items if item.message not in self._behind]
        turn = Turn()
        if free:
            turn = await take_turn(free, self._send, doubt=self.failures >= PATIENCE, credit=self._credit)
        await self._record(turn, [item for item in items if item.message in self._behind], upto)
        return True

    async def _settled(self, seconds: float) -> None:
        """Company is waited for without holding up who wants a turn."""
        self._turn.release()
        try:
            await self._first_of(seconds)
        finally:
            await self._turn.acquire()

    def _chosen(self, rows: Sequence[Row], most: int) -> tuple[list[Item], int, bool]:
        """(what it wants, the cursor behind that, whether these are all of the rows)."""
        items: list[Item] = []
        upto = self.cursor
        tenants, wanted = self.tenants(), self.endpoint.wanted
        for row in rows:
            if wanted.takes(row, tenants):
                if len(items) == most:
                    return items, upto, False
                items.append(Item(row.id, row.message, row.at, json.dumps(told(row, tenants))))
            upto = row.id
        return items, upto, True

    async def _send(self, items: Sequence[Item]) -> Said:
        said = await self._sink.send(Batch(self.name, items))
        REQUESTS.inc(1, self.name, said.verdict.value)
        if said.verdict is Verdict.TAKEN:
            EVENTS.inc(len(items), self.name, "taken")
            self._well()
        return said

    async def _record(self, turn: Turn, behind: Sequence[Item], upto: int) -> None:
        """Durable: what is taken, and what waits. What is left is of the next turn."""
        now = clock.now()
        waits = min((item.event for item in turn.left), default=0)
        cursor = waits - 1 if waits else upto
        refused = self._parked(turn.refused, now)
        first_due = max((one.due_at for one in refused), default=now)
        kept = [item for item in (*turn.behind, *behind) if item.event <= cursor]
        later = [Parcel(self.name, i.event, i.message, i.body, 0, first_due, now, "behind another one") for i in kept]
        parcels = [*refused, *later]
        taken = [item.event for item in turn.taken] if self.cursor < self._replayed_to else []
        await self._save(cursor, parcels, taken)
        self._behind |= {one.message for one in parcels if not one.dead} - {0}
        self.waiting += sum(not one.dead for one in parcels)
        if turn.taken:
            self._credit = CREDIT
            self._size = max(1, turn.largest) if turn.split else min(self.endpoint.batch, self._size + 1)
        else:
            self._credit -= len(turn.refused)
        self.head_at = turn.left[0].at if turn.left else 0.0
        if turn.said is not None:
            await self._failed(turn.said)
        await self._bound()

    def _parked(self, refused: Sequence[tuple[Item, str]], now: float) -> list[Parcel]:
        if not refused:
            return []
        if self.waiting >= MOST_WAITING:
            return self._dead(refused)
        EVENTS.inc(len(refused), self.name, "parked")
        due = now + delay(1, self.endpoint.cap, random.random())
        for item, why in refused:
            self.log.warning("webhook_refused", endpoint=self.name, event_id=item.event, why=why)
        return [Parcel(self.name, i.event, i.message, i.body, 1, due, now, why) for i, why in refused]

    # -- what waits by itself

    async def _parcels(self) -> bool:
        """Those that are due and were not refused yet together; one that was refused, alone."""
        now = clock.now()
        due = await self.spool.parcels_due(self.name, now, self._size)
        if not due:
            self._look_at = now + LOOK
            return False
        fresh = next((n for n, one in enumerate(due) if one.attempts), len(due))
        part = due[: max(1, fresh)]
        said = Said(Verdict.GONE, self.why)
        if not self.gone:
            said = await self._send([Item(one.event, one.message, one.first_at, one.body) for one in part])
        changed: list[Parcel] = []
        match said.verdict:
            case Verdict.TAKEN:
                await self._save(self.cursor, taken=[one.event for one in part])
                self.waiting -= len(part)
            case Verdict.REST:
                await self._failed(said)
                old = [one for one in part if now - one.first_at >= self.endpoint.give_up]
                if self.failures >= PATIENCE:
                    changed = self._dead([(Item(p.event, p.message, 0.0, p.body), said.why) for p in old], old)
            case Verdict.GONE:
                await self._failed(said)
                changed = self._dead([(Item(p.event, p.message, 0.0, p.body), said.why) for p in part], part)
            case _:
                changed = self._again(part, said)
        if changed:
            await self._save(self.cursor, changed)
            self.waiting -= sum(one.dead for one in changed)
        self._behind = await self.spool.waiting_messages(self.name)
        await self._bound()
        return True

    def _again(self, part: Sequence[Parcel], said: Said) -> list[Parcel]:
        """Of several each alone from now on; one alone later, or never."""
        now, endpoint = clock.now(), self.endpoint
        if len(part) > 1:
            return [replace(one, attempts=1, why=said.why) for one in part]
        one = part[0]
        if now - one.first_at >= endpoint.give_up:
            return self._dead([(Item(one.event, one.message, 0.0, one.body), said.why)], part)
        due = now + delay(one.attempts + 1, endpoint.cap, random.random(), said.wait)
        return [replace(one, attempts=one.attempts + 1, due_at=due, why=said.why)]

    # -- how it fares

    def _well(self) -> None:
        if self.failures:
            self.log.event("webhook_well", endpoint=self.name, failed=self.failures, since=self.failing_since)
        self.failures, self.failing_since, self.why, self.until = 0, 0.0, "", 0.0

    async def _failed(self, said: Said) -> None:
        """It rests; and what is too old by now is given up."""
        now = clock.now()
        self.why = said.why
        if said.verdict is Verdict.GONE:
            if not self.gone:
                hint = (
                    "events for it are dead letters from now on; remove it, or mend its URL and `relay webhooks replay`"
                )
                self.log.error("webhook_gone", endpoint=self.name, why=said.why, hint=hint)
            self.gone = True
            return
        self.failures += 1
        if self.failures == 1:
            self.failing_since = now
            self.log.warning("webhook_failing", endpoint=self.name, why=said.why)
        self.until = now + delay(self.failures, self.endpoint.cap, random.random(), said.wait)
        if self.failures >= PATIENCE:
            await self._give_up(now - self.endpoint.give_up)

    async def _give_up(self, before: float) -> None:
        """What of the stream is older than that; what was wanted once more is not, before its time."""
        if self._replayed_at > before and self.cursor < self._replayed_to:
            return
        while rows := await self.spool.events(self.cursor, PAGE):
            old = [row for row in rows if row.at < before]
            if len(old) < len(rows):
                old = old[: next(n for n, row in enumerate(rows) if row.at >= before)]
            if not old:
                return
            items, upto, _ = self._chosen(old, PAGE)
            await self._save(upto, self._dead([(item, self.why) for item in items]))
            await self._bound()

    def _dead(self, given: Sequence[tuple[Item, str]], were: Sequence[Parcel] = ()) -> list[Parcel]:
        """Dead letters, counted and told."""
        now = clock.now()
        if not given:
            return []
        EVENTS.inc(len(given), self.name, "dead")
        hint = f"relay webhooks dead {self.name}"
        self.log.warning("webhook_dead", endpoint=self.name, events=len(given), why=given[0][1], hint=hint)
        if were:
            return [replace(one, dead=True, why=why) for one, (_, why) in zip(were, given, strict=True)]
        return [Parcel(self.name, i.event, i.message, i.body, 0, now, now, why, dead=True) for i, why in given]

    async def _bound(self) -> None:
        """The oldest dead letters go where there are too many."""
        while (excess := self.dead - MOST_DEAD) > 0:
            oldest = await self.spool.parcels(self.name, dead=True, limit=min(PAGE, excess))
            if not oldest:
                return
            await self._save(self.cursor, taken=[one.event for one in oldest])
            self.dead -= len(oldest)
            EVENTS.inc(len(oldest), self.name, "dropped")
            self.log.error(
                "webhook_dropped", endpoint=self.name, events=len(oldest), hint="there are too many dead letters"
            )

    async def _save(self, cursor: int, parcels: Sequence[Parcel] = (), taken: Sequence[int] = ()) -> None:
        """Durable when it returns. Raises SpoolError."""
        await self.spool.progress(Progress(self.name, cursor, parcels, taken))
        self.cursor, self._unsaved = cursor, 0
        self.dead += sum(one.dead for one in parcels)
