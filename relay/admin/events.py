"""The stream of events over HTTP: from any cursor or time on, by any filter, and with `wait` until something comes.

An answer is `{"events": [...], "next": CURSOR, "more": ...}`: who asks again with `after=CURSOR` misses nothing and gets nothing
twice, over restarts too. `more`: there is more already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from typing import Any

from aiohttp import web

from relay import clock
from relay.admin.ports import BadRequest
from relay.envelope import parse_queue_id
from relay.events import KINDS, Row, Wanted, told
from relay.spool import Spool

MOST = 1000  # events of an answer
PAGE = 500
SCANNED = 20_000  # rows that one request looks through at most: what a filter leaves out costs time too
LONGEST = 55.0  # seconds that a request may wait
_GLOBS = {"tag": "tag", "class": "class_", "user": "user", "tenant": "tenant", "sender": "sender",
          "recipient": "recipient", "domain": "domain", "egress": "egress"}  # fmt: skip
_KNOWN = ("after", "since", "limit", "wait", "kind", "message", *_GLOBS)


@dataclass(frozen=True)
class Asked:
    wanted: Wanted
    after: int | None  # None: from `since` on
    since: float
    limit: int
    wait: float


def parse(query: Mapping[str, str]) -> Asked:
    """Raises BadRequest naming the key."""
    for key in query.keys() - set(_KNOWN):
        raise BadRequest(f"unknown {key!r}; known are {', '.join(_KNOWN)}")
    kinds = frozenset(_words(query.get("kind", "")))
    for kind in kinds - KINDS.keys():
        raise BadRequest(f"unknown kind {kind!r}; there are {', '.join(KINDS)}")
    globs: dict[str, Any] = {field: tuple(_words(query[key])) for key, field in _GLOBS.items() if query.get(key)}
    try:
        message = parse_queue_id(query["message"]) if query.get("message") else 0
    except ValueError as error:
        raise BadRequest(str(error)) from None
    if query.get("after") and query.get("since"):
        raise BadRequest("after or since, not both")
    after = query.get("after", "")
    if after not in ("", "end") and not (after.isascii() and after.isdecimal() and len(after) < 19):
        raise BadRequest("after wants the id of an event, or `end`: what comes from now on")
    cursor = None if query.get("since") else -1 if after == "end" else int(after or 0)
    wait = max(0.0, min(_number(query, "wait", 0.0), LONGEST))
    limit = max(1, min(int(_number(query, "limit", 100)), MOST))
    return Asked(Wanted(kinds, **globs, message=message), cursor, _time(query.get("since", "")), limit, wait)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _number(query: Mapping[str, str], key: str, default: float) -> float:
    try:
        found = float(query.get(key) or default)
    except ValueError:
        found = float("nan")
    if not isfinite(found):
        raise BadRequest(f"{key} wants a number")
    return found


def _time(text: str) -> float:
    """Epoch seconds, or a time of RFC 3339."""
    if not text:
        return 0.0
    try:
        found = float(text)
    except ValueError:
        try:
            found = datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError, OSError):
            found = float("nan")
    if not isfinite(found):
        raise BadRequest("since wants a time: epoch seconds, or such as 2026-12-01T08:00:00Z")
    return found


class Stream:
    """`tenants`: user -> tenant, of the configuration in force."""

    def __init__(self, spool: Spool, tenants: Callable[[], Mapping[str, str]]) -> None:
        self.spool, self.tenants = spool, tenants

    async def read(self, asked: Asked) -> dict[str, Any]:
        """Waits where there is nothing. Raises SpoolError."""
        cursor = asked.after
        if cursor is None:
            cursor = await self.spool.event_at(asked.since)
        elif cursor < 0:
            cursor = await self.spool.last_event()
        deadline, scanned, tenants = clock.monotonic() + asked.wait, 0, self.tenants()
        found: list[dict[str, Any]] = []
        while True:
            rows, upto = await self._page(asked.wanted, cursor)
            for row in rows:
                cursor = row.id
                if asked.wanted.takes(row, tenants):
                    found.append(told(row, tenants))
                    if len(found) == asked.limit:
                        return {"events": found, "next": cursor, "more": True}
            cursor, scanned = max(cursor, upto), scanned + len(rows)
            if rows and scanned < SCANNED:
                continue
            left = deadline - clock.monotonic()
            if rows or found or left <= 0:
                return {"events": found, "next": cursor, "more": bool(rows)}
            await self.spool.stirred(left, cursor)

    async def _page(self, wanted: Wanted, after: int) -> tuple[list[Row], int]:
        """(rows, the cursor behind them where none is left)."""
        last = await self.spool.last_event()  # before the rows: what comes between the two is met the next time
        if wanted.message:
            return [row for row in await self.spool.story(wanted.message) if after < row.id <= last], last
        rows = await self.spool.events(after, PAGE, last)
        return rows, rows[-1].id if rows else last


def routes(stream: Stream) -> list[web.RouteDef]:
    async def events(request: web.Request) -> web.Response:
        return web.json_response(await stream.read(parse(request.query)))

    return [web.get("/v1/events", events)]
