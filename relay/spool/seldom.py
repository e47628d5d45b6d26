"""What is asked of the spool seldom: by operators, by housekeeping, at a start. The hot path is `sqlite`'s.

What goes over many rows goes in slices (`slices`): nobody waits for all of it.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from relay.events import Kind
from relay.recipient import READY, State, Verb
from relay.spool import Filter, Position, counts, hot, keep, listing, queries, recent
from relay.spool.content import Content
from relay.spool.lanes import Lanes
from relay.spool.slices import Slices
from relay.spool.writer import ACT, CLAIM, PAGE, Connection, Writer, connect, each, each_of, translate

T = TypeVar("T")

LANES = 500  # that are forgotten in one transaction
_NEVER = 1 << 62  # above every id


class Seldom:
    """The rows as people and clocks ask for them. What it works on is SqliteSpool's."""

    path: Path
    content: Content
    counts: dict[State, int]
    keep_bodies: str
    _writer: Writer
    _reader: Connection
    _spare: Connection | None
    _closed: bool
    _lanes: Lanes
    _news: recent.News
    _write: hot.Write
    _oldest: int
    _moving: int
    _late: int
    _expiry: recent.Bound
    _delay: recent.Bound
    _slices: defaultdict[str, Slices]

    def _reported(self, told: hot.Written) -> None:
        raise NotImplementedError

    async def find(
        self, wanted: Filter, after: tuple[int, int] | None = None, limit: int = 500
    ) -> AsyncIterator[dict[str, Any]]:
        """Recipients with their message, in order of acceptance, read in pages."""
        while True:
            rows = await self._aside(listing.page, wanted, after, limit)
            for row in rows:
                yield row
            if len(rows) < limit:
                return
            after = (rows[-1]["message"], rows[-1]["n"])

    async def message(self, number: int) -> dict[str, Any] | None:
        """One message with head, recipients and events."""
        return await self._ask(queries.message, number)

    async def messages(
        self, wanted: Filter, after: int | None = None, limit: int = 100, *, newest: bool = False
    ) -> list[dict[str, Any]]:
        """One row a message, in order of acceptance or the other way round, after that one."""
        return await self._aside(listing.messages, wanted, after, limit, newest)

    async def stats(self, users: frozenset[str] | None = None) -> list[dict[str, Any]]:
        """A row for each lane: counts by state, the oldest, when it is due; of mail of these users alone."""
        return await self._aside(queries.stats, users)

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
        self,
        keys: Sequence[tuple[int, int]],
        verb: Verb,
        now: float,
        why: str,
        facts: Mapping[int, str] | None = None,
        kind: Kind | None = None,
        owner: str = "",
    ) -> int:
        """An operator's verb on recipients that know it; `facts` moves a lane's recipients into another lane.

        `kind`: of the event, where it is not the verb's own; `owner`: whose token asked.
        In slices, so that no commit waits long. Returns how many changed.
        """
        count, slices = 0, self._slices[verb.value]
        for part in slices.cut(keys):
            work = keep.Action(part, verb, now, why, dict(facts or {}), kind, owner)
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

    async def before(self, place: Position, lanes: Sequence[int], now: float) -> tuple[int, dict[int, int]]:
        """How many are claimed before a recipient in its lane, and how many are due in each of these."""
        return await self._aside(queries.before, place, lanes, now)

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

    async def forget_lanes(self) -> list[int]:
        """Forget the lanes that no recipient is of any more, in slices; returns which. Their numbers are never given again.

        What is accepted meanwhile may be of one of them. So every row that is written from the beginning on tells its lane;
        a lane leaves the dictionary before it leaves the table, and who needs it then finds it there, or makes it anew.
        """
        gone: list[int] = []
        await self._writer.submit(each(partial(keep.watch_lanes, self._lanes)), None, CLAIM)
        try:
            used, known = await self._aside(queries.used_lanes), self._lanes.by_facts
            used.add(max(known.values(), default=0))  # it stays in any case
            unused = [(number, facts) for facts, number in known.items() if number not in used]
            for start in range(0, len(unused), LANES):
                part = unused[start : start + LANES]
                for _, facts in part:
                    known.pop(facts, None)
                work = each_of(partial(keep.forget_lanes, self._lanes))
                # After what is accepted in the same transaction: that was told.
                gone += await self._writer.submit(work, [number for number, _ in part], CLAIM)
        finally:
            self._lanes.used = None
        return gone

    async def spent(self) -> dict[str, list[tuple[float, int]]]:
        """(until, count) of every key that `spend` has written, in order of `until`. Once at start."""
        return await self._aside(counts.spent)

    async def forget_spent(self, before: float) -> None:
        """Forget what was spent until then or sooner, in slices."""
        slices = self._slices["forget_spent"]
        for part in slices.cut(await self._aside(counts.ended, before)):
            await self._writer.submit(slices.timed(partial(counts.forget, before)), part, ACT)

    async def remember(self, documents: Mapping[str, str | None]) -> None:
        """Small documents by key; None: there is no such one any more. Durable when it returns. Raises SpoolError."""
        if documents:
            size = sum(len(text) for text in documents.values() if text)
            await self._writer.submit(counts.remember, dict(documents), ACT, size)

    async def remembered(self) -> dict[str, str]:
        """All that is remembered. Once at start."""
        return await self._aside(counts.remembered)

    async def recount(self) -> None:
        """The counters from the rows: after what changes many at once."""
        counts = await self._writer.submit(each(keep.counts), None, CLAIM)
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
        """What takes long reads over a connection of its own: deliveries read their bodies over the other one.

        One is kept for whoever comes next: to make one is a thread, and to read the schema takes a millisecond. Where the
        reading failed, or nobody waits for its end, it is closed.
        """
        connection, self._spare = self._spare, None
        if connection is None:
            connection = connect(str(self.path), read_only=True)
            await connection.open()
        try:
            found = await self._ask(function, *arguments, connection=connection)
        except BaseException:
            await connection.close()
            raise
        if self._spare is None and not self._closed:
            self._spare = connection
        else:
            await connection.close()
        return found
