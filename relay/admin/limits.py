"""What binds mail, over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from relay import clock
from relay.admin.ports import Usage


def routes(usage: Usage) -> list[web.RouteDef]:
    def answer(name: str, rows: Callable[[], list[dict[str, Any]]]) -> web.RouteDef:
        async def handle(_: web.Request) -> web.Response:
            return web.json_response({name: rows()})

        return web.get(f"/v1/{name}", handle)

    return [
        answer("limits", lambda: usage.limits(clock.now())),
        answer("shaping", lambda: usage.shaping(clock.now())),
        answer("alarms", usage.alarms),
        answer("reputation", lambda: usage.reputation(clock.now())),
    ]
