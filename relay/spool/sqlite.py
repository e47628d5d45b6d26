"""The spool in SQLite: WAL, synchronous=FULL, one writing connection with group commit, one that reads.

Before 3.51.3 SQLite can corrupt a WAL that two connections write or checkpoint: so one writes and checkpoints, the other
is read-only, and the command line never opens the file. `flock` on spool.lock is held for life.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from relay import metrics
from relay.policy.classes import InDoubt
from relay.recipient import FINAL, READY, State, Verb
from relay.spool import (
    Ask,
    Claim,
    Filter,
    Head,
    NewMessage,
    Place,
    Reporter,
    Settlement,
    SpoolFull,
    Taker,
    hot,
    keep,
    opening,
    queries,
    recent,
    reports,
)
from relay.spool.content import Content, Staged
from relay.spool.slices import Slices
from relay.spool.writer import PAGE, Connection, Writer, connect, translate

T = TypeVar("T")

_NEVER = 1 << 62  # above every id
RECORD, ACCEPT, ACT, CLAIM = range(4)  # the order inside a transaction: a claim sees what was just accepted


class SqliteSpool:
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
        self._writer, self._reader, self._lanes = writer, reader, opened.lanes
        self.reporter: Reporter | None = None
        self.taker: Taker | None = None
        # Of reports on the writing thread, of what arrives on the loop: one count, whose `next` is atomic.
        self._ids = itertools.count(opened.next_id + 1)
        self._news, self._hot = recent.News(), recent.Bodies()
        self._room = 0
        self._oldest = self._moving = self._late = 0  # no older message waits; none is on its way; the oldest that came
        self._expiry, self._delay = recent.Bound(), recent.Bound()  # of the first that expires, or is to be told of
        self._slices: defaultdict[str, Slices] = defaultdict(Slices)
        self._write = partial(reports.write, self._lanes, lambda: self.reporter)
        self._accept = partial(hot.accept, self.run, self._lanes, self._write)
        self._claim = partial(hot.claim, self.run)
        self._record = partial(hot.record, lambda: self.keep_bodies, self._write)

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
        await self._writer.close()
        await self._reader.close()
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
        if self.taker is not None and (lane := hot.lane_of(self._lanes, message)):
            message.lane = lane if self.taker.grant(message.id, lane, len(message.recipients)) else 0
        size = len(message.head) + (len(message.body) if isinstance(message.body, bytes) else 0)
        number, fresh, _, _ = await self._writer.submit(
            self._accept, message, ACCEPT, size, partial(self._accepted, message)
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
                self._hot.remember(number, message.body)
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
        return await self._writer.submit(_each(hot.heads), None, CLAIM)

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

    async def record(self, settlements: Sequence[Settlement]) -> None:
        """One transaction for all of them."""
        files, told = await self._writer.submit(self._record, settlements, RECORD)
        self.content.drop(files)
        self._reported(told)
        for settlement in settlements:
            for change in settlement.changes:
                self.counts[State.ACTIVE] -= 1
                self.counts[change.state] += 1
                if change.state in FINAL:
                    self._hot.forget(change.message)
                elif change.state in READY:
                    self._news.announce(change.lane, "", change.due_at)

    async def recover(self, in_doubt: Mapping[str, InDoubt], now: float, chance: float) -> tuple[int, list[int]]:
        """What a dead process had in flight: deferred and in doubt, held where that happened too often, or as its class says.

        Returns how many they were, and the messages that are held as poison.
        """
        work = _each(partial(keep.recover, dict(in_doubt), now, chance, self._write))
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
        return sum(self.counts[s] for s in State if s not in FINAL)

    @property
    def alive_at(self) -> float:
        return self._writer.beat

    @property
    def lanes(self) -> dict[str, int]:
        return self._lanes.by_facts

    async def probe(self, now: float) -> None:
        """One small transaction: raises what the disk says, is the pulse of the writing thread, and remembers that we live."""
        await self._writer.submit(_each(partial(keep.touch, now)), None, ACT)

    def check_room(self) -> None:
        """Sets `refusal`: below the reserve, too many queued, or a disk that refused its last write."""
        status = os.statvfs(self.path.parent)
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

    async def find(
        self, wanted: Filter, after: tuple[int, int] | None = None, limit: int = 500
    ) -> AsyncIterator[dict[str, Any]]:
        """Recipients with their message, in order of acceptance, read in pages."""
        while True:
            rows = await self._aside(queries.page, wanted, after, limit)
            for row in rows:
                yield row
            if len(rows) < limit:
                return
            after = (rows[-1]["message"], rows[-1]["n"])

    async def message(self, number: int) -> dict[str, Any] | None:
        """One message with head, recipients and events."""
        return await self._ask(queries.message, number)

    async def stats(self) -> list[dict[str, Any]]:
        return await self._aside(queries.stats)

    async def oldest(self) -> float | None:
        """When the oldest message that still waits was accepted."""
        self._late = _NEVER
        found = await self._aside(queries.oldest, self._oldest, self._moving)
        if found is None:
            return None
        # An older one may have been accepted or released meanwhile.
        self._oldest, self._moving = min(found[0], self._late), min(found[1], self._late)
        return found[2]

    async def change(
        self, keys: Sequence[tuple[int, int]], verb: Verb, now: float, why: str, facts: Mapping[int, str] | None = None
    ) -> int:
        """An operator's verb on recipients that know it; `facts` moves a lane's recipients into another lane.

        In slices, so that no commit waits long. Returns how many changed.
        """
        count, slices = 0, self._slices[verb.value]
        for part in slices.cut(keys):
            work = keep.Action(part, verb, now, why, dict(facts or {}))
            done = await self._writer.submit(
                slices.timed(partial(keep.act, self._lanes, self.keep_bodies, self._write)), work, ACT
            )
            self._lanes.learn(done.lanes)
            self.content.drop(done.files)
            for before, after in done.changed:
                self.counts[before] -= 1
                self.counts[after] += 1
            if any(before is State.HELD and after in READY for before, after in done.changed):
                self._moving = self._late = 0  # what was passed over may be on its way again
                self._delay.forget()
            for head in done.heads:
                self._news.announce(head.lane, head.facts, head.due_at)
            self._reported(done.told)
            count += len(done.changed)
        return count

    async def tell_delays(
        self, before: float, now: float, after: tuple[int, int] | None = None
    ) -> tuple[int, int] | None:
        """Tell senders once of what has waited since before that time: a page of them.

        Returns what the next page comes after; None: that was the last one.
        """
        if after is None and before < self._delay.at:
            return None
        keys = await self._aside(queries.untold, before, after or (self._oldest, -1), keep.PAGE)
        if not keys and after is None:
            await self._delay.learn(lambda: self._aside(queries.first_untold, self._oldest))
        slices = self._slices["tell_delays"]
        for part in slices.cut(keys):
            told = await self._writer.submit(slices.timed(partial(keep.tell_delays, self._write, now)), part, ACT)
            self._reported(told)
        return keys[-1] if len(keys) == keep.PAGE else None

    async def stale(self, lane: int, limit: int) -> list[dict[str, Any]]:
        """Recipients of a lane that wait for their turn, with what their facts are made of, for routing them anew."""
        return await self._ask(queries.stale, lane, limit)

    async def stale_held(self, lanes: Sequence[int], after: tuple[int, int] | None, limit: int) -> list[dict[str, Any]]:
        """The same of those that are held, of all these lanes, in pages."""
        return await self._aside(queries.stale_held, lanes, after or (self._oldest, -1), limit)

    async def relane(self, moves: Sequence[tuple[int, int, int, str]]) -> None:
        """(message, n, lane it was in, new facts): where it still waits in that lane, it moves."""
        slices = self._slices["relane"]
        for part in slices.cut(moves):
            work = slices.timed(partial(keep.relane, self._lanes))
            # A lane's rows lie far from each other: each is a page of its own to the checkpoint.
            lanes, announced = await self._writer.submit(work, part, ACT, len(part) * PAGE)
            self._lanes.learn(lanes)
            for lane, facts, due_at in announced:
                self._news.announce(lane, facts, due_at)

    async def due(self, lane: int) -> float | None:
        """When the lane's next recipient is due."""
        found: float | None = await self._ask(hot.due, lane)
        return found

    async def expired(
        self, now: float, after: tuple[int, int] | None = None, limit: int = 1000
    ) -> list[tuple[int, int]]:
        """Waiting recipients whose time is up, after that one."""
        if after is None and now < self._expiry.at:
            return []
        found = await self._aside(queries.expired, now, after or (self._oldest, -1), limit)
        if not found and after is None:
            await self._expiry.learn(lambda: self._aside(queries.first_expiry, self._oldest))
        return found

    async def purge(self, before: float) -> int:
        """Forget what was done before that time, in slices; returns how many messages."""
        count, after, slices = 0, 0, self._slices["purge"]
        while True:
            scanned, done = await self._aside(queries.purgeable, before, after, 10 * keep.PAGE)
            for part in slices.cut(done, lambda found: found[1]):
                ids = [message for message, _ in part]
                files, states = await self._writer.submit(slices.timed(keep.purge), ids, ACT)
                self.content.drop(files)
                for state in states:
                    self.counts[state] -= 1
                count += len(ids)
            if not scanned:
                return count
            after = scanned

    async def recount(self) -> None:
        """The counters from the rows: after what changes many at once."""
        counts = await self._writer.submit(_each(keep.counts), None, CLAIM)
        self.counts.update(dict.fromkeys(State, 0) | counts)

    async def sweep(self) -> list[int]:
        """Removes body files without a row and returns the messages whose file is missing. Only at start."""
        files = self.content.ids()
        known = await self._ask(queries.file_bodies)
        self.content.drop(set(files) - known)
        return sorted(known - set(files))

    async def check(self) -> list[str]:
        """Every problem that is found in the file, in words; empty if none."""
        problems = await self._aside(queries.integrity)
        missing = await self._ask(queries.file_bodies) - set(self.content.ids())
        return problems + [f"body file {self.content.path(m)} is missing" for m in sorted(missing)]

    async def backup(self, folder: Path) -> dict[str, Any]:
        """A consistent copy into a new folder, while running. Raises SpoolError."""
        return await self._aside(keep.backup, folder, self.content.folder)

    # -- inside

    async def _ask(self, function: Callable[..., T], *arguments: Any, connection: Connection | None = None) -> T:
        """What only reads. Raises SpoolError; a damaged page that it meets ends the acceptance of mail."""
        try:
            return await (connection or self._reader).call(function, *arguments)
        except (sqlite3.Error, ValueError, TypeError) as error:  # the latter: of a value that we never wrote
            self._writer.note(told := translate(error))
            raise told from None

    async def _aside(self, function: Callable[..., T], *arguments: Any) -> T:
        """What takes long reads over a connection of its own: deliveries read their bodies over the other one."""
        connection = connect(str(self.path), read_only=True)
        await connection.open()
        try:
            return await self._ask(function, *arguments, connection=connection)
        finally:
            await connection.close()


def _each(function: Callable[..., Any]) -> Callable[..., list[Any]]:
    """A job without work of its own."""
    return lambda connection, jobs: [function(connection) for _ in jobs]


def _each_of(function: Callable[..., Any]) -> Callable[..., list[Any]]:
    return lambda connection, jobs: [function(connection, work) for work in jobs]


QUEUED = metrics.Gauge("relay_queue_recipients", "Recipients in the spool by state", ["state"])
ACCEPTING = metrics.Gauge("relay_spool_accepting", "1 while mail can be accepted durably")


def metrics_of(spool: SqliteSpool) -> None:
    QUEUED.source = lambda: [((s.label,), float(n)) for s, n in spool.counts.items()]
    ACCEPTING.source = lambda: [((), float(not spool.refusal))]
