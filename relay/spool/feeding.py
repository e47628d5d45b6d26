"""What the spool keeps beside mail, as rooms ask for it: `Feed`, over `stream`, `suppressed` and `parcels`."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from relay.events import Row
from relay.policy.suppression import Suppression, Why
from relay.spool import Event, parcels, stream, suppressed
from relay.spool.feed import Heard, Known, Learnt, Parcel, Progress, SuppressionFilter
from relay.spool.seldom import Seldom
from relay.spool.writer import ACT, each_of, translate

R = TypeVar("R", bound=tuple[Any, ...])

PAGE = 1000  # rows that are looked for at once, to be forgotten
HEARD = 30 * 86400.0  # seconds that the key of a report is remembered, at least


class Feeding(Seldom):
    """What it works on is SqliteSpool's."""

    keep: float
    on_suppressed: Heard | None
    _commits: int
    _walked: int

    # -- events

    async def events(self, after: int, limit: int = 500, until: int | None = None) -> list[Row]:
        return await self._ask(stream.events, after, limit, until)

    async def events_of(self, users: Collection[str], after: int, limit: int, until: int) -> tuple[list[Row], int, int]:
        return await self._ask(stream.events_of, list(users), after, limit, until)

    async def newest_of(self, users: Collection[str], after: int, most: int) -> list[int]:
        return await self._aside(stream.newest_of, list(users), after, most)

    async def story(self, message: int) -> list[Row]:
        return await self._aside(stream.story, message)

    async def last_event(self) -> int:
        return await self._ask(stream.last)

    async def event_at(self, at: float) -> int:
        return await self._ask(stream.at, at)

    async def stirred(self, timeout: float | None, after: int | None = None) -> bool:
        stir = self._writer.stir()  # before it is looked at: what is committed meanwhile sets it
        found = self._writer.commits != self._commits if after is None else await self.last_event() > after
        try:
            async with asyncio.timeout(timeout):
                while not found:
                    await stir.wait()
                    stir = self._writer.stir()
                    found = after is None or await self.last_event() > after
        except TimeoutError:
            return False
        self._commits = self._writer.commits
        return True

    async def note(self, events: Sequence[Event]) -> None:
        if events:
            await self._writer.submit(stream.note, events, ACT)

    # -- what comes back

    async def learn(self, learnt: Learnt) -> list[Suppression] | None:
        size = sum(len(text) for text in learnt.documents.values() if text)
        taught: stream.Taught = await self._writer.submit(each_of(stream.learn), learnt, ACT, size, self._taught)
        return taught.changed

    def _taught(self, result: stream.Taught | BaseException) -> None:
        if not isinstance(result, BaseException):
            self._listed(result.changed or (), result.removed)

    def _listed(self, changed: Sequence[Suppression], removed: Sequence[tuple[str, str]] = ()) -> None:
        """It is durable."""
        if (changed or removed) and self.on_suppressed is not None:
            self.on_suppressed(changed, removed)

    async def known(self, message: int, n: int | None = None, address: str = "") -> Known | None:
        return await self._ask(suppressed.known, message, n, address)

    async def forget_feed(self, now: float) -> None:
        before = now - self.keep
        while True:
            last, found = await self._aside(stream.strays, before, self._walked, 10 * PAGE)
            slices = self._slices["forget_events"]
            for part in slices.cut(found):
                await self._writer.submit(slices.timed(stream.forget), part, ACT)
            if not last:
                break
            # What is left up to here goes with its message: it is not looked at again.
            self._walked = last
        heard = partial(self._ask, stream.heard_before, now - max(self.keep, HEARD), PAGE)
        await self._forget("forget_heard", heard, stream.unhear)
        await self._forget("forget_softly", partial(self._ask, suppressed.forgotten, now, PAGE), suppressed.forget)

    async def _forget(
        self,
        name: str,
        page: Callable[[], Awaitable[list[R]]],
        forget: Callable[[sqlite3.Connection, Sequence[R]], None],
    ) -> None:
        """Page after page, until there is none."""
        slices = self._slices[name]
        while rows := await page():
            for part in slices.cut(rows):
                await self._writer.submit(slices.timed(forget), part, ACT)

    # -- who is suppressed

    async def suppressed(self, address: str, scopes: Sequence[str] = ()) -> list[Suppression]:
        return await self._ask(suppressed.of_address, address, scopes)

    async def suppressions(
        self, wanted: SuppressionFilter, after: tuple[str, str] | None = None, limit: int = 500
    ) -> list[Suppression]:
        return await self._aside(suppressed.page, wanted, after, limit)

    async def suppression_index(self) -> Iterator[tuple[str, str, Why]]:
        """Read as it is asked for. Raises SpoolError, also then."""
        return self._index()

    def _index(self) -> Iterator[tuple[str, str, Why]]:
        try:
            yield from suppressed.index(self.path)
        except (sqlite3.Error, ValueError, LookupError) as error:
            raise translate(error) from None

    async def suppressions_over(self, now: float) -> list[tuple[str, str]]:
        removed: list[tuple[str, str]] = []
        slices = self._slices["suppressions_over"]
        while rows := await self._ask(suppressed.over, now, PAGE):
            for part in slices.cut(rows):
                work = slices.timed(partial(stream.over, now))
                done: list[tuple[str, str]] = await self._writer.submit(work, part, ACT, then=self._over)
                removed += done
        return removed

    def _over(self, result: list[tuple[str, str]] | BaseException) -> None:
        if not isinstance(result, BaseException):
            self._listed((), result)

    # -- endpoints

    async def cursors(self) -> dict[str, int]:
        return await self._ask(parcels.cursors)

    async def progress(self, progress: Progress) -> None:
        size = sum(len(one.body) for one in progress.parcels)
        await self._writer.submit(parcels.progress, progress, ACT, size)

    async def forget_endpoint(self, endpoint: str) -> None:
        await self._forget("forget_parcels", partial(self._ask, parcels.some, endpoint, PAGE), parcels.forget)
        await self._writer.submit(each_of(parcels.forget_endpoint), endpoint, ACT)

    async def parcels(self, endpoint: str, *, dead: bool, after: int = 0, limit: int = 500) -> list[Parcel]:
        return await self._aside(parcels.page, endpoint, dead, after, limit)

    async def parcels_due(self, endpoint: str, now: float, limit: int) -> list[Parcel]:
        return await self._ask(parcels.due, endpoint, now, limit)

    async def parcel_counts(self) -> dict[str, tuple[int, int, float | None]]:
        return await self._ask(parcels.counts)

    async def waiting_messages(self, endpoint: str) -> set[int]:
        return await self._ask(parcels.messages, endpoint)
