"""Server-sent events (WHATWG HTML §9.2): the stream of events over a connection that stays.

Promises: an event is told once on a stream, in order, with its id, so that `Last-Event-ID` goes on where it ended; a stream ends
with its last line whole when the relay stops, when its token is over, and after its time. Who does not read is cut off after a
while, and costs a page of events until then. Streams are few: all of them, and those of one token.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from aiohttp import web

from relay import clock, metrics
from relay.admin.events import Asked
from relay.api.problem import Problem
from relay.api.rooms import Rooms
from relay.api.route import Call
from relay.spool import SpoolError

T = TypeVar("T")
MOST, EACH = 64, 8  # streams: of all, and of one token
LASTS = 3600.0  # seconds, where nothing else is asked
HEARTBEAT = 15.0  # seconds without a word before a comment says that it lives
LOOK = 1.0  # seconds between two looks whether the token and the client are still there
PACE = 0.1  # seconds between two pages: a busy spool is not asked after each commit by each stream
DRAIN = 30.0  # seconds in which a reader has to read something
PAGE = 500  # events that are held for a reader: as many as one look at the spool finds
RETRY = 3000  # milliseconds before a client comes back

CLOSING = web.AppKey("closing", asyncio.Event)  # set when the server stops
_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would keep the events until its buffer is full
}
STREAMS = metrics.Gauge("relay_http_streams", "Streams of events that are open")


class Streams:
    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms
        self._open: Counter[str] = Counter()
        STREAMS.source = lambda: [((), float(self._open.total()))]

    async def follow(self, call: Call, asked: Asked, lasts: float) -> web.StreamResponse:
        """Until it is over. Raises Problem, SpoolError before it has begun."""
        with self._place(call.principal.who):
            page = await self._read(asked, 0.0)
            response = web.StreamResponse(headers=_HEADERS)
            await response.prepare(call.request)
            # The cursor at once: who is cut off before the first event goes on from here, and so never from behind it.
            start = page["events"][0]["id"] - 1 if page["events"] else page["next"]
            await self._say(call, response, f"retry: {RETRY}\nid: {start}\n\n")
            try:
                await self._pump(call, response, asked, page, clock.monotonic() + lasts)
            except ConnectionError:
                self.rooms.log.event("stream_cut", who=call.principal.who, request=call.id)
            return response

    @contextlib.contextmanager
    def _place(self, who: str) -> Iterator[None]:
        for count, most, whose in ((self._open[who], EACH, "of yours"), (self._open.total(), MOST, "of all")):
            if count >= most:
                detail = (
                    f"{most} streams {whose} are open, which is the most; close one, or ask GET /v1/events with `wait`"
                )
                raise Problem(429, detail, headers={"Retry-After": "30"})
        self._open[who] += 1
        try:
            yield
        finally:
            self._open[who] -= 1
            self._open += Counter()  # who has none is forgotten

    async def _pump(
        self, call: Call, response: web.StreamResponse, asked: Asked, page: dict[str, Any], end: float
    ) -> None:
        """Raises ConnectionError where nobody reads any more."""
        closing, said = call.request.app[CLOSING], clock.monotonic()
        while True:
            for event in page["events"]:
                await self._say(call, response, _told(event))
                said = clock.monotonic()
            if clock.monotonic() - said >= HEARTBEAT:
                # With the cursor: what a filter leaves out is not looked through again by who comes back.
                await self._say(call, response, f": still here\nid: {page['next']}\n\n")
                said = clock.monotonic()
            asked = replace(asked, after=page["next"])
            try:
                if not page["more"]:
                    await asyncio.sleep(PACE)
                found = await _unless(closing, self._read(asked, LOOK))
                # Looked at after the wait: a token that is revoked meanwhile is told nothing more.
                principal = call.renewed()
            except SpoolError as error:
                return await self._say(call, response, f": {' '.join(str(error).split())}\n\n")
            except Problem as error:
                return await self._say(call, response, f": {error.detail}\n\n")
            if found is None or clock.monotonic() >= end:
                return await self._say(
                    call, response, f": {'the relay stops' if found is None else 'its time is over'}\n\n"
                )
            if (transport := call.request.transport) is None or transport.is_closing():
                raise ConnectionResetError("the client went away")
            asked = replace(asked, wanted=replace(asked.wanted, users=self.rooms.users(principal)))
            page = found

    async def _read(self, asked: Asked, wait: float) -> dict[str, Any]:
        return await self.rooms.stream.read(replace(asked, limit=PAGE, wait=wait))

    async def _say(self, call: Call, response: web.StreamResponse, text: str) -> None:
        """Raises ConnectionError."""
        try:
            async with asyncio.timeout(DRAIN):
                await response.write(text.encode())
        except TimeoutError:
            if (transport := call.request.transport) is not None:
                transport.abort()  # to close it would wait for what nobody reads
            raise ConnectionResetError("the client does not read") from None


def _told(event: dict[str, Any]) -> str:
    """ASCII alone, so that no line ends where a client might see an end."""
    return f"id: {event['id']}\nevent: {event['event']}\ndata: {json.dumps(event, separators=(',', ':'))}\n\n"


async def _unless(over: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What comes of it; None where `over` comes first."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(over.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
