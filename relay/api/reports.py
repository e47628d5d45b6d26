"""Delivery reports by pull: each consumer has a cursor of its own, which moves when it acknowledges.

Promises: what is not acknowledged is answered again, over restarts of either side (at least once, in order); only what is about
messages of the caller's. `cursor` of an answer is how far was looked, so what a filter leaves out is acknowledged with the rest.
"""

from __future__ import annotations

import asyncio
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal
from weakref import WeakValueDictionary

from pydantic import Field

from relay import clock
from relay.admin.events import LONGEST, MOST, Asked
from relay.admin.ports import BadRequest, NotFound
from relay.api.events import EventFilter, EventRow
from relay.api.problem import Problem
from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Model, Operation
from relay.spool.access import Consumer

CONSUMERS = 100  # of one owner
COUNTED = 20_000  # of the newest events of all, those that a tenant's `behind` is counted among
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class ReportsQuery(EventFilter):
    limit: int = Field(100, ge=1, description=f"At most {MOST}.")
    wait: float = Field(
        0.0, ge=0, allow_inf_nan=False, description=f"Seconds until there is something to tell; at most {LONGEST:.0f}."
    )
    from_: Literal["oldest", "now"] = Field(
        "oldest", alias="from", description="Where a new consumer begins; of a known one it changes nothing."
    )


class Acknowledge(Model):
    acknowledged: int = Field(
        strict=True, ge=0, lt=1 << 62, description="The `cursor` of an answer, or the id of the last event dealt with."
    )


class ConsumerRow(Answer):
    name: str = Field(description="Its own.")
    cursor: int = Field(description="All up to this event is acknowledged.")
    at: float = Field(description="When that was, or when it began; epoch seconds.")
    behind: int = Field(
        description="Events after it that its owner sees, before any filter; of a tenant or user those among the newest "
        f"{COUNTED} of the whole relay."
    )


class Consumers(Answer):
    consumers: list[ConsumerRow] = Field(description="By name.")


class Reports(Answer):
    reports: list[EventRow] = Field(description="The oldest first.")
    cursor: int = Field(description="To be acknowledged when all of them are dealt with.")
    more: bool = Field(description="There is more already.")


class Places:
    """Where the consumers of an owner stand; those of one owner are changed one after the other."""

    def __init__(self, rooms: Rooms) -> None:
        self.spool = rooms.spool
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def _changing(self, owner: str) -> asyncio.Lock:
        """Its own: a thousand tenants who acknowledge at once share a commit."""
        lock = self._locks.get(owner)
        if lock is None:
            lock = self._locks[owner] = asyncio.Lock()
        return lock

    async def rows(self, consumers: Iterable[Consumer], users: frozenset[str] | None) -> list[dict[str, Any]]:
        """As they are told: a tenant hears nothing of how much there is of others'."""
        known, last = list(consumers), await self.spool.last_event()
        if users is None or not known:
            return [_row(one, max(0, last - one.cursor)) for one in known]
        own = await self.spool.newest_of(users, min(one.cursor for one in known), COUNTED)
        return [_row(one, len(own) - bisect_right(own, one.cursor)) for one in known]

    async def of(self, owner: str) -> dict[str, Consumer]:
        return {one.name: one for one in await self.spool.consumers(owner)}

    async def begun(self, owner: str, name: str, start: Literal["oldest", "now"]) -> Consumer:
        """As it is, or new. Raises Problem."""
        async with self._changing(owner):
            there = await self.of(owner)
            if name in there:
                return there[name]
            if len(there) >= CONSUMERS:
                raise Problem(409, f"{CONSUMERS} consumers are the most; DELETE one that nobody uses any more")
            cursor = await self.spool.last_event() if start == "now" else 0
            made = Consumer(owner, name, cursor, clock.now())
            return replace(made, cursor=await self.spool.acknowledge(made))

    async def acknowledge(self, owner: str, name: str, upto: int) -> Consumer:
        """Raises NotFound, BadRequest."""
        async with self._changing(owner):
            consumer, last = await self._known(owner, name), await self.spool.last_event()
            if upto > max(last, consumer.cursor):
                raise BadRequest(
                    f"acknowledged: {upto} is beyond the last event, {last}; say the `cursor` of an answer"
                )
            consumer = replace(consumer, cursor=upto, at=clock.now())
            return replace(consumer, cursor=await self.spool.acknowledge(consumer))

    async def forget(self, owner: str, name: str) -> None:
        """Raises NotFound."""
        async with self._changing(owner):
            await self._known(owner, name)
            await self.spool.forget_consumer(owner, name)

    async def _known(self, owner: str, name: str) -> Consumer:
        found = (await self.of(owner)).get(name)
        if found is None:
            raise NotFound(f"no consumer {name!r}; the first GET of /v1/reports/{name} makes it")
        return found


def operations(rooms: Rooms) -> list[Operation]:
    places = Places(rooms)

    async def every(call: Call) -> dict[str, Any]:
        there = await places.of(call.principal.owner)
        return {"consumers": await places.rows(there.values(), call.users)}

    async def fetch(call: Call) -> dict[str, Any]:
        asked: ReportsQuery = call.query
        consumer = await places.begun(call.principal.owner, _name(call), asked.from_)
        wanted = asked.wanted(call.users, mail=True)
        limit, wait = min(asked.limit, MOST), min(asked.wait, LONGEST)
        page = await rooms.stream.read(Asked(wanted, consumer.cursor, limit=limit, wait=wait))
        return {"reports": page["events"], "cursor": page["next"], "more": page["more"]}

    async def acknowledge(call: Call) -> dict[str, Any]:
        consumer = await places.acknowledge(call.principal.owner, _name(call), call.body.acknowledged)
        return (await places.rows([consumer], call.users))[0]

    async def forget(call: Call) -> None:
        await places.forget(call.principal.owner, _name(call))

    where = "/v1/reports/{consumer}"
    return [
        Operation("GET", "/v1/reports", "read", "Who fetches reports, and how far they are", every, Consumers),
        Operation("GET", where, "read", "Reports not acknowledged yet", fetch, Reports, query=ReportsQuery),
        # Part of reading: the token needs no other scope for it, and the audit would say nothing.
        Operation(
            "POST", where, "read", "These are dealt with", acknowledge, ConsumerRow, body=Acknowledge, audited=False,
            examples={"body": {"acknowledged": 0}},
        ),
        Operation("DELETE", where, "read", "Forget a consumer", forget, status=204),
    ]  # fmt: skip


def _name(call: Call) -> str:
    """Raises BadRequest."""
    name = call.path("consumer")
    if not _NAME.fullmatch(name):
        raise BadRequest("a consumer's name has 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    return name


def _row(consumer: Consumer, behind: int) -> dict[str, Any]:
    return {"name": consumer.name, "cursor": consumer.cursor, "at": round(consumer.at, 3), "behind": behind}
