"""The stream of events: from any cursor or time on, by any filter, and with `wait` until something comes.

An answer is `{"events": [...], "next": CURSOR, "more": ...}`: who asks again with `after=CURSOR` misses nothing and gets nothing
twice, over restarts too. `more`: there is more already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from relay import clock
from relay.events import Row, Wanted, told
from relay.spool import Spool

MOST = 1000  # events of an answer
PAGE = 500
SCANNED = 20_000  # rows that one request looks through at most: what a filter leaves out costs time too
LONGEST = 55.0  # seconds that a request may wait
END = -1  # as a cursor: what comes from now on


@dataclass(frozen=True)
class Asked:
    wanted: Wanted
    after: int | None  # None: from `since` on
    since: float = 0.0
    limit: int = 100
    wait: float = 0.0


class Stream:
    """`tenants`: user -> tenant, of the configuration in force."""

    def __init__(self, spool: Spool, tenants: Callable[[], Mapping[str, str]]) -> None:
        self.spool, self.tenants = spool, tenants

    async def read(self, asked: Asked) -> dict[str, Any]:
        """Waits where there is nothing. Raises SpoolError."""
        cursor = asked.after
        if cursor is None:
            cursor = await self.spool.event_at(asked.since)
        elif cursor == END:
            cursor = await self.spool.last_event()
        deadline, scanned, tenants = clock.monotonic() + asked.wait, 0, self.tenants()
        found: list[dict[str, Any]] = []
        while True:
            rows, upto, looked = await self._page(asked.wanted, cursor)
            for row in rows:
                cursor = row.id
                if asked.wanted.takes(row, tenants):
                    found.append(told(row, tenants))
                    if len(found) == asked.limit:
                        return {"events": found, "next": cursor, "more": True}
            cursor, scanned = max(cursor, upto), scanned + looked
            if looked and scanned < SCANNED:
                continue
            left = deadline - clock.monotonic()
            if looked or found or left <= 0:
                return {"events": found, "next": cursor, "more": bool(looked)}
            await self.spool.stirred(left, cursor)

    async def _page(self, wanted: Wanted, after: int) -> tuple[list[Row], int, int]:
        """(rows, the cursor behind them, how many were looked at; none only where none is left)."""
        last = await self.spool.last_event()  # before the rows: what comes between the two is met the next time
        if wanted.message:
            story = [row for row in await self.spool.story(wanted.message) if after < row.id <= last]
            return story, last, len(story)
        if (
            wanted.users is not None
        ):  # what others' mail does is left out where it lies: a tenant has a small part of it
            return await self.spool.events_of(wanted.users, after, PAGE, last)
        rows = await self.spool.events(after, PAGE, last)
        return rows, rows[-1].id if rows else last, len(rows)
