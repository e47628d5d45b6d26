"""What an operator has suspended: in force at once, kept over a restart, and told.

Promises: what was said to be suspended is on the disk before it is said. Who lets mail go asks `in_force`, which is another
object after each change; `changed` is called then, for lanes may have to answer other questions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

from relay import clock
from relay.deliver.pool import Egress, name_of
from relay.maillog import MailLog
from relay.policy.routing import glob
from relay.policy.suspend import Suspension, Suspensions
from relay.scheduler.journal import made
from relay.scheduler.lanes import Lane
from relay.scheduler.memory import NOT_OURS
from relay.scheduler.work import Work
from relay.spool import Event

DOCUMENT = "suspensions"  # its key in the spool
PART = 500  # lanes that are looked at in one go

# Documents as the spool remembers them, and the events that tell of them: in one transaction. Raises SpoolError.
Remember = Callable[[Mapping[str, str | None], Sequence[Event]], Awaitable[None]]


def halted(egress: Egress[Work], work: Work) -> str:
    """Why what is claimed may not begin by this egress; empty: it may."""
    if egress.stopped is not None and egress.stopped[0] > egress.now():
        return egress.stopped[1]
    return work.lane.suspended if work.lane is not None else ""


def told(kind: Literal["paused", "resumed"], about: Suspension, **data: Any) -> Event:
    return made(kind, about.value if about.kind == "egress" else "", what=about.kind, name=about.value, **data)


class Pauses:
    def __init__(
        self,
        lanes: Mapping[int, Lane],
        egresses: Mapping[str, Egress[Work]],
        log: MailLog,
        remember: Remember,
        changed: Callable[[], None],
    ) -> None:
        self.in_force = Suspensions()
        self._lanes, self._egresses, self._log = lanes, egresses, log
        self._remember, self._changed = remember, changed
        self._changing = asyncio.Lock()

    def load(self, documents: Mapping[str, str]) -> None:
        """What the spool remembers, at the start."""
        try:
            self.in_force = Suspensions.load(documents.get(DOCUMENT, "[]"))
        except NOT_OURS as error:
            self._log.error("suspensions_lost", error=repr(error), hint="nothing is suspended: see relay suspend")
        if self.in_force:
            self._changed()

    # -- by hand

    async def suspend(self, kind: str, value: str, until: float | None, reason: str, owner: str = "") -> list[str]:
        """Returns what it stops, a line each. Raises ValueError in words, SpoolError, and PermissionError as `resume` does."""
        async with self._changing:
            mine = Suspension.of(kind, value, until, reason, clock.now(), owner)
            self._must_own(kind, value, owner)
            wanted = Suspensions(self.in_force.all())
            wanted.add(mine)
            await self._take(wanted, [told("paused", mine, by="hand", until=mine.until, why=mine.reason)])
        self._log.warning(
            "suspended", filter=f"{kind}={value}", until=until, reason=mine.reason, by="hand", why=mine.why
        )
        return await self._stopped(mine)

    def _must_own(self, kind: str, value: str, owner: str) -> None:
        there = self.in_force.find(kind, value)
        if there is not None and not there.yields_to(owner):
            raise PermissionError(
                f"{kind} {value} was suspended by an operator, or its tenant, who alone may change that"
            )

    async def resume(self, kind: str, value: str, owner: str = "") -> int:
        """How many suspensions were ended: 1, or 0 where there was none of these words.

        Raises SpoolError, and PermissionError where it does not yield to `owner`.
        """
        async with self._changing:
            self._must_own(kind, value, owner)
            wanted = Suspensions(self.in_force.all())
            gone = wanted.remove(kind, value)
            if gone is None:
                return 0
            await self._take(wanted, [told("resumed", gone, by="hand")])
        self._log.event("resumed", filter=f"{kind}={value}", by="hand")
        return 1

    def ask_again(self, egress: str) -> list[str]:
        """Those of this name, a glob, that rest are dialled now. Returns their keys."""
        now, fits = clock.now(), glob(egress)
        resting = [e for e in self._egresses.values() if e.breaker.is_open and (fits(e.key) or fits(name_of(e.key)))]
        for found in resting:
            found.breaker.ask_again(now)
        if resting:
            self._log.event("asked_again", egress=egress, resting=len(resting), by="hand")
            self._changed()
        return [e.key for e in resting]

    def suspensions(self) -> list[dict[str, Any]]:
        """A flat row for each; `left` in seconds, None without an end, as `until`."""
        now = clock.now()
        return [
            {"kind": s.kind, "value": s.value, "until": s.until, "left": None if s.until is None else s.left(now)}
            | {"reason": s.reason, "at": s.at, "why": s.why, "owner": s.owner}
            for s in self.in_force.all()
        ]

    # -- by the clock

    async def tidy(self, now: float) -> None:
        """Ends those whose time is over; they stop nothing since then. To be called at `in_force.next_end()`. Raises SpoolError."""
        async with self._changing:
            over = self.in_force.over(now)
            if not over:
                return
            events = [told("resumed", ended, by="its time is over") for ended in over]
            await self._take(Suspensions(s for s in self.in_force.all() if s not in over), events)
        for ended in over:
            self._log.event("resumed", filter=f"{ended.kind}={ended.value}", by="its time is over")

    def recall(self, put_back: Callable[[Work, str], None]) -> None:
        """What was claimed and has not begun goes back where it may not leave any more."""
        for egress in self._egresses.values():
            for _ in range(len(egress.backlog)):
                work = egress.backlog.popleft()
                if why := halted(egress, work):
                    put_back(work, why)
                else:
                    egress.backlog.append(work)

    async def _take(self, wanted: Suspensions, events: Sequence[Event]) -> None:
        """On the disk, then in force."""
        await self._remember({DOCUMENT: wanted.state() if wanted else None}, events)
        self.in_force = wanted
        self._changed()

    # -- what it stops

    async def _stopped(self, made: Suspension) -> list[str]:
        alone = Suspensions([made])
        stopped = others = unknown = 0
        for i, lane in enumerate(list(self._lanes.values())):
            if i % PART == PART - 1:
                await asyncio.sleep(0)
            if lane.due_at is None and not lane.asked:
                continue
            if made.kind == "egress":
                bound = [alone.blocks("egress", key, made.at) is not None for key in lane.egresses]
                stopped += bool(bound) and all(bound)
                others += any(bound) and not all(bound)
            elif alone.lane(lane.facts, lane.id, made.at, (lane.site,)):
                stopped += 1
            elif not lane.facts.covers(alone.questions()):
                unknown += 1
        told = [f"it stops {_lanes(stopped)} with mail waiting"]
        if others:
            told.append(f"{_lanes(others)} with mail waiting may leave by the next egress of the route")
        if unknown:
            told.append(f"{_lanes(unknown)} with mail waiting {'is' if unknown == 1 else 'are'} looked through for it")
        return told


def _lanes(count: int) -> str:
    return f"{count or 'no'} {'lane' if count == 1 else 'lanes'}"
