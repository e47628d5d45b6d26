"""The spool in SQLite: WAL, synchronous=FULL, one writing connection with group commit, one that reads.

Before 3.51.3 SQLite can corrupt a WAL that two connections write or checkpoint: so one writes and checkpoints, the other
is read-only, and the command line never opens the file. `flock` on spool.lock is held for life.
"""

from __future__ import annotations

import itertools
import os
from asyncio import Future
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from relay import metrics
from relay.policy.classes import InDoubt
from relay.recipient import FINAL, READY, State
from relay.spool import (
    Ask,
    Claim,
    Head,
    NewMessage,
    Place,
    Reporter,
    Settlement,
    SpoolFull,
    Taker,
    counts,
    hot,
    keep,
    opening,
    queries,
    recent,
    reports,
)
from relay.spool.content import Content, Staged
from relay.spool.feed import Heard
from relay.spool.records import Records
from relay.spool.slices import Slices
from relay.spool.writer import ACCEPT, ACT, CLAIM, RECORD, Connection, Writer, connect, each

T = TypeVar("T")

_UNFINISHED = tuple(state for state in State if state not in FINAL)


class SqliteSpool(Records):
    """One spool file and its folder. Made by `open`."""

    def __init__(self, path: Path, writer: Writer, reader: Connection, opened: opening.Opened, now: float) -> None:
        self.path = path
        self.content = Content(path.parent / "content")
        self.counts = dict.fromkeys(State, 0)
        self.refusal = ""
        self.max_queued, self.reserve, self.max_message_size = 1_000_000, 256_000_000, 25_000_000
        self.keep, self.keep_bodies = 7 * 86400.0, "failed"
        self.opened = opened
        self.run = opened.run
        self._spare: Connection | None = None  # that nobody reads over at the moment
        self._closed = False
        self._writer, self._reader, self._lanes = writer, reader, opened.lanes
        self.reporter: Reporter | None = None
        self.taker: Taker | None = None
        self.on_suppressed: Heard | None = None
        # Of reports on the writing thread, of what arrives on the loop: one count, whose `next` is atomic.
        self._ids = itertools.count(opened.next_id + 1)
        self._news, self._hot = recent.News(), recent.Bodies()
        self._room = 0
        self._oldest = self._moving = self._late = 0  # no older message waits; none is on its way; the oldest that came
        self._expiry, self._delay = recent.Bound(), recent.Bound()  # of the first that expires, or is to be told of
        self._commits = 0  # that a waiter was told of
        self._walked = 0  # no event up to this one goes with no message
        self._slices: defaultdict[str, Slices] = defaultdict(Slices)
        self._write = partial(reports.write, self._lanes, lambda: self.reporter)
        self._accept = partial(counts.accept, partial(hot.accept, self.run, self._lanes, self._write))
        self._claim = partial(hot.claim, self.run)
        self._record = partial(hot.record, lambda: self.keep_bodies, self._write)
        self._accept_usual = partial(hot.accept_usual, self.run, self._lanes)
        self._record_usual = partial(hot.record_usual, lambda: self.keep_bodies)

    @classmethod
    async def open(cls, path: Path, now: float) -> SqliteSpool:
        """Locks, migrates, checks. Raises SpoolBusy, SpoolNewer, SpoolCorrupt, SpoolError."""
        lock = opening.prepare(path)
        connection, reader = connect(str(path)), connect(str(path), read_only=True)
        try:
            # First by the one that only reads: what is damaged is left as it is, to the byte.
            await reader.open()
            strays = await reader.call(opening.check, path)
            await connection.open()
            opened = await connection.call(opening.open_on_thread, path, now)
            opened.strays = strays
            spool = cls(path, Writer(connection), reader, opened, now)
            spool.content.open()
        except BaseException as error:  # noqa: BLE001 - the lock is given back whatever it was
            for opened_one in (reader, connection):
                if opened_one._connection is not None:
                    await opened_one.close()
            os.close(lock)
            raise opening.explained(path, error) from None
        spool._lock = lock
        spool.counts.update(opened.counts)
        metrics_of(spool)
        return spool

    _lock: int

    async def close(self) -> None:
        """Whoever closes it calls `probe` before, so that the next start knows until when we ran."""
        self._closed = True
        await self._writer.close()
        await self._reader.close()
        if self._spare is not None:
            await self._spare.close()
        self.content.close()
        os.close(self._lock)

    # -- the hot path

    def next_id(self) -> int:
        return next(self._ids)

    def stage(self, message: int) -> Staged:
        """Where a body above INLINE_LIMIT is written while it arrives."""
        return self.content.stage(message)

    async def accept(self, message: NewMessage) -> tuple[int, bool]:
        """Durable when it returns: (id, is it new). Raises SpoolFull."""
        if self.refusal:
            raise SpoolFull(self.refusal)
        lane = hot.lane_of(self._lanes, message)
        if self.taker is not None and lane and not self._news.of(lane):
            message.lane = lane if self.taker.grant(message.id, lane, len(message.recipients)) else 0
        size = len(message.head) + (len(message.body) if isinstance(message.body, bytes) else 0)
        number, fresh, _, _ = await self._writer.submit(
            self._accept, message, ACCEPT, size, partial(self._accepted, message), self._accept_usual
        )
        return number, fresh

    def _accepted(self, message: NewMessage, result: Any) -> None:
        """Its transaction has ended, whether or not the client still waits for that."""
        fresh = False
        if not isinstance(result, BaseException):
            _, fresh, lanes, told = result
            if fresh:
                self._arrived(message, lanes)
            if told.reports:
                self._reported(told)
        if message.lane and self.taker is not None:
            if fresh:
                self.taker.take(hot.claimed_at_once(message))
            else:
                self.taker.give_up(message.id)

    def _arrived(self, message: NewMessage, lanes: dict[str, int]) -> None:
        """A new message is durable: count and announce it."""
        number = message.id
        self._lanes.learn(lanes)
        if number >= self._lanes.reserved:
            self._lanes.reserved = number + hot.ID_BLOCK
        # Ids are given when content starts to arrive.
        self._oldest, self._moving = min(self._oldest, number), min(self._moving, number)
        self._late = min(self._late, number)
        self._delay.lower(max(message.accepted_at, message.send_at))
        for r in message.recipients:
            if r.state not in FINAL:
                self._expiry.lower(r.expires_at)
        self._room -= len(message.head) + message.body_size
        if self._room < 0:
            self.check_room()
        if message.lane:
            self.counts[State.ACTIVE] += len(message.recipients)
        else:
            if isinstance(message.body, bytes) and any(r.state in READY for r in message.recipients):
                self._hot.remember(number, message.body, message.accepted_at)
            for r in message.recipients:
                self.counts[r.state] += 1
                self._news.announce(lanes[r.facts], r.facts, r.due_at if r.state in READY else None)
        if self.queued >= self.max_queued:
            self.refusal = f"{self.queued} recipients are queued and max_queued is {self.max_queued}"

    def _reported(self, told: hot.Written) -> None:
        """Reports are durable: what is made is mail like other mail."""
        for report in told.reports:
            if report.message is not None:
                self._arrived(report.message, told.lanes)
        if told.reports and self.reporter is not None:
            self.reporter.tell(told.reports)

    async def heads(self) -> list[Head]:
        """Every lane with when it is due next. Once at start; afterwards `wait` tells what changed."""
        return await self._writer.submit(each(hot.heads), None, CLAIM)

    async def claim(self, asks: Sequence[Ask]) -> tuple[list[Claim], dict[int, float | None]]:
        """Durably ACTIVE when it returns; with when each asked lane is due next."""
        claims, due = await self._writer.submit(self._claim, asks, CLAIM)
        for claim in claims:
            claim.body = self._hot.get(claim.message)
            self.counts[State.ACTIVE] += len(claim.recipients)
            for r in claim.recipients:
                self.counts[r.was] -= 1
        return claims, due

    async def read(self, message: int, place: int) -> bytes | Path:
        """The body, or the file that it is in. Raises SpoolError where it was dropped."""
        if place == Place.FILE:
            return self.content.path(message)
        found = self._hot.get(message)
        if found is None:
            found = await self._ask(queries.body, message)
        return found

    def record(self, settlements: Sequence[Settlement]) -> Future[Any]:
        """One transaction for all of them. A future and no coroutine: who waits for it needs no task to shield it."""
        return self._writer.submit(
            self._record, settlements, RECORD, then=partial(self._recorded, settlements), at_once=self._record_usual
        )

    def _recorded(self, settlements: Sequence[Settlement], result: Any) -> None:
        """Before whoever waits goes on, and if nobody does: what others commit later may lift a suppression again."""
        if isinstance(result, BaseException):
            return
        files, told = result
        if told.suppressed:
            self._listed(told.suppressed)
        self.content.drop(files)
        self._reported(told)
        for settlement in settlements:
            for change in settlement.changes:
                self.counts[State.ACTIVE] -= 1
                self.counts[change.state] += 1
                self._hot.forget(change.message)
                if change.state in READY:
                    self._news.announce(change.lane, "", change.due_at)

    async def spend(self, rows: Sequence[tuple[str, float, int]]) -> None:
        """(key, until, count): so much is used up of that key, as of now, until then; 0: nothing. Durable when it returns.

        Of what is spent and accepted at once, what was asked for last stays. Raises SpoolError.
        """
        if rows:
            await self._writer.submit(self._accept, tuple(rows), ACCEPT)

    async def recover(self, in_doubt: Mapping[str, InDoubt], now: float, chance: float) -> tuple[int, list[int]]:
        """What a dead process had in flight: deferred and in doubt, held where that happened too often, or as its class says.

        Returns how many they were, and the messages that are held as poison.
        """
        work = each(partial(keep.recover, dict(in_doubt), now, chance, self._write))
        count, held, told = await self._writer.submit(work, None, ACT)
        self._reported(told)
        if count:
            await self.recount()
        return count, held

    async def wait(self, timeout: float | None) -> list[Head]:
        """The lanes that got something since the last call; waits up to `timeout` seconds for one."""
        return await self._news.wait(timeout)

    def wake(self) -> None:
        self._news.wake()

    # -- for operators and housekeeping

    @property
    def queued(self) -> int:
        return sum(map(self.counts.__getitem__, _UNFINISHED))

    @property
    def alive_at(self) -> float:
        return self._writer.beat

    @property
    def lanes(self) -> dict[str, int]:
        return self._lanes.by_facts

    async def probe(self, now: float) -> None:
        """One small transaction: raises what the disk says, is the pulse of the writing thread, and remembers that we live."""
        await self._writer.submit(each(partial(keep.touch, now)), None, ACT)

    def check_room(self) -> None:
        """Sets `refusal`: below the reserve, too many queued, or a disk that refused its last write."""
        try:
            status = os.statvfs(self.path.parent)
        except OSError as error:
            self.refusal = f"the disk of the spool cannot be asked for its room: {error.strerror}"
            return
        free = status.f_bavail * status.f_frsize
        self._room = max(0, free - self.reserve) // 4  # bytes until it is looked at again, before its time
        if self._writer.broken:
            self.refusal = self._writer.broken
        elif free < self.reserve:
            self.refusal = f"{free // 1_000_000} MB free on the disk of the spool and the reserve is {self.reserve // 1_000_000} MB"
        elif self.queued >= self.max_queued:
            self.refusal = f"{self.queued} recipients are queued and max_queued is {self.max_queued}"
        else:
            self.refusal = ""


QUEUED = metrics.Gauge("relay_queue_recipients", "Recipients in the spool by state", ["state"])
ACCEPTING = metrics.Gauge("relay_spool_accepting", "1 while mail can be accepted durably")


def metrics_of(spool: SqliteSpool) -> None:
    QUEUED.source = lambda: [((s.label,), float(n)) for s, n in spool.counts.items()]
    ACCEPTING.source = lambda: [((), float(not spool.refusal))]
