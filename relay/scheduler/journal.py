"""Events that are about no message, on their way into the spool: what is throttled, rests, is suspended, is configured anew.

Noted where they happen, written a moment later by one loop, so that no delivery waits for it. Each beginning is one event,
however many messages meet what began. Bounded: where the disk is sick the newest are lost, and that is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from relay import clock
from relay.deliver.pool import name_of
from relay.events import Kind
from relay.maillog import MailLog
from relay.policy.suppression import Suppression
from relay.spool import Event, SpoolError
from relay.spool.feed import Learnt

MOST = 1000  # that wait at once
AGAIN = 1.0  # seconds


class Kept(Protocol):
    """What of the spool is asked."""

    async def learn(self, learnt: Learnt) -> list[Suppression] | None: ...


def made(kind: Kind, egress: str = "", code: int = 0, **data: Any) -> Event:
    """One of now. `egress`: its key; a site of a direct entry is told apart. What is empty is left out."""
    if (name := name_of(egress)) != egress:
        data["site"] = egress.partition(" to ")[2]
    known = {key: value for key, value in data.items() if value not in (None, "")}
    return Event(clock.now(), 0, None, kind, name, code, known)


class Journal:
    """`note` from anywhere on the loop; `run` is its loop."""

    def __init__(self, spool: Kept, log: MailLog) -> None:
        self.spool, self.log = spool, log
        self._events: list[Event] = []
        self._documents: dict[str, str | None] = {}
        self._news = asyncio.Event()
        self._lost = 0

    def note(self, kind: Kind, egress: str = "", code: int = 0, **data: Any) -> None:
        """As `made`."""
        self.keep(made(kind, egress, code, **data))

    def keep(self, event: Event, documents: Mapping[str, str | None] | None = None) -> None:
        """`documents`: written with it, as `remember` takes them."""
        if len(self._events) >= MOST:
            self._lost += 1
            return
        self._events.append(event)
        self._documents |= documents or {}
        self._news.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._events:
                try:
                    await self._write()
                except (SpoolError, OSError) as error:
                    self.log.error("not_noted", events=len(self._events), error=str(error))
                    await asyncio.sleep(AGAIN)

    async def finish(self) -> None:
        """The last ones, once no loop runs any more."""
        if self._events:
            try:
                await self._write()
            except SpoolError as error:
                self.log.error("not_noted", events=len(self._events), error=str(error), hint="they are lost")

    async def _write(self) -> None:
        """All that wait, in one transaction. Shielded: one that has begun ends, and is not written a second time by `finish`."""
        count, documents = len(self._events), self._documents
        self._documents = {}
        writing = asyncio.ensure_future(self.spool.learn(Learnt(self._events[:count], documents=documents)))
        try:
            await asyncio.wait([writing])
        finally:
            if not writing.done():  # cancelled
                await asyncio.wait([writing])
            if writing.cancelled() or writing.exception() is not None:
                self._documents = documents | self._documents
            else:
                del self._events[:count]
        writing.result()
        if self._lost:
            self.log.error("events_lost", events=self._lost, hint="the spool took none for too long")
            self._lost = 0
