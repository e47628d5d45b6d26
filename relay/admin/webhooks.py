"""Where events go, over HTTP: how far each endpoint has come, its dead letters, and once more."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from aiohttp import web

from relay.admin.ports import BadRequest, Hooks, NotFound
from relay.spool.feed import Parcel

PAGE = 1000
Body = Callable[[web.Request], Awaitable[dict[str, Any]]]


def routes(hooks: Hooks, body: Body) -> list[web.RouteDef]:
    """`body`: the JSON object of a request."""

    async def list_(_: web.Request) -> web.Response:
        return web.json_response({"webhooks": hooks.rows()})

    async def dead(request: web.Request) -> web.Response:
        after = _number(request.query.get("after", "0"), "after")
        limit = min(PAGE, _number(request.query.get("limit", "100"), "limit"))
        with _named():
            found = await hooks.dead(request.match_info["name"], after, limit)
        following = found[-1].event if found and len(found) == limit else None
        return web.json_response({"dead": [_told(one) for one in found], "next": following})

    async def replay(request: web.Request) -> web.Response:
        asked = await body(request)
        with _named():
            count = await hooks.replay(request.match_info["name"], **_what(asked), dry_run=bool(asked.get("dry_run")))
        return web.json_response({"events": count, "dry_run": bool(asked.get("dry_run"))})

    async def drop(request: web.Request) -> web.Response:
        dry_run = bool((await body(request)).get("dry_run"))
        with _named():
            count = await hooks.drop(request.match_info["name"], dry_run=dry_run)
        return web.json_response({"events": count, "dry_run": dry_run})

    async def test(request: web.Request) -> web.Response:
        with _named():
            return web.json_response(await hooks.test(request.match_info["name"]))

    return [
        web.get("/v1/webhooks", list_),
        web.get("/v1/webhooks/{name}/dead", dead),
        web.post("/v1/webhooks/{name}/replay", replay),
        web.post("/v1/webhooks/{name}/drop", drop),
        web.post("/v1/webhooks/{name}/test", test),
    ]


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """No such endpoint is a 404."""
    try:
        yield
    except LookupError as error:
        raise NotFound(str(error)) from None


def _told(one: Parcel) -> dict[str, Any]:
    """The event as it was to be sent, and beside it what became of it."""
    return {"event": json.loads(one.body), "attempts": one.attempts, "first_at": one.first_at, "why": one.why}


def _what(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Exactly one of `dead`, `since` (epoch seconds) and `after` (an event's id). Raises BadRequest."""
    since, after = asked.get("since"), asked.get("after")
    if sum((bool(asked.get("dead")), since is not None, after is not None)) != 1:
        raise BadRequest("replay wants one of dead, since and after")
    if since is not None and (isinstance(since, bool) or not isinstance(since, int | float)):
        raise BadRequest("since wants a time in seconds")
    if after is not None and (isinstance(after, bool) or not isinstance(after, int) or not 0 <= after < 1 << 63):
        raise BadRequest("after wants the id of an event")
    return {"dead": bool(asked.get("dead")), "since": since, "after": after or 0}


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise BadRequest(f"{name} wants a number")
    return int(text)
