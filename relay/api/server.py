"""The servers: everything on the UNIX socket, whose file mode is its guard; on TCP `/v1` for who has a token, and health.

`operations` is the whole of `/v1`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from relay import metrics
from relay.admin import events, feedback, limits, suppress, webhooks
from relay.admin.pauses import Pausing
from relay.admin.ports import BadRequest
from relay.api.openapi import document
from relay.api.operations import operations
from relay.api.rooms import Rooms
from relay.api.route import ID, MAX_BODY
from relay.api.serve import Endpoint, Who, by_socket, by_token, telling
from relay.settings import Address

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Admin:
    """The servers. `open_socket`, `open_tcp`, then `close`."""

    def __init__(self, rooms: Rooms) -> None:
        self.rooms, self.service, self.stream = rooms, rooms.service, rooms.stream
        self.pausing, self.usage = rooms.pausing, rooms.usage
        self.hooks, self.suppressing = rooms.hooks, rooms.suppressing
        self.operations = operations(rooms)
        self._runners: list[web.AppRunner] = []
        self._socket: Path | None = None

    async def open_socket(self, path: Path) -> None:
        """Raises OSError, also where another relay answers there."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _answers(path):
            raise OSError(errno.EADDRINUSE, "another relay answers there")
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise OSError(errno.EEXIST, "a file that is no socket is there")
            path.unlink()  # left by one that was killed
        runner = await self._runner(self._everything())
        before = os.umask(0o177)
        try:
            await web.UnixSite(runner, str(path)).start()
        finally:
            os.umask(before)
        self._socket = path

    async def open_tcp(self, address: Address) -> int:
        """Health and metrics; returns the port. Raises OSError."""
        runner = await self._runner(self._app(by_token))
        site = web.TCPSite(runner, address.host, address.port, reuse_address=True)
        await site.start()
        port: int = runner.addresses[-1][1]
        return port

    async def close(self) -> None:
        for runner in self._runners:
            await runner.cleanup()
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)

    async def _runner(self, app: web.Application) -> web.AppRunner:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        self._runners.append(runner)
        return runner

    def _app(self, who: Who) -> web.Application:
        app = web.Application(middlewares=[telling(self.rooms, who)], client_max_size=MAX_BODY)
        app.on_response_prepare.append(_identified)
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/openapi.json", self._openapi),
            ]
        )
        for operation in self.operations:
            app.router.add_route(operation.method, operation.path, Endpoint(operation, self.rooms, who).handle)
        return app

    def _everything(self) -> web.Application:
        app = self._app(by_socket)
        app.add_routes(
            [
                web.post("/v1/reload", self._reload),
                web.post("/v1/spool/check", self._check),
                web.post("/v1/spool/backup", self._backup),
            ]
        )
        app.add_routes(_pauses(self.pausing))
        app.add_routes(limits.routes(self.usage))
        app.add_routes(events.routes(self.stream))
        app.add_routes(feedback.routes(self.service.spool, self.usage))
        app.add_routes(webhooks.routes(self.hooks, _object))
        app.add_routes(suppress.routes(self.suppressing, _object))
        return app

    # -- health

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _healthz(self, request: web.Request) -> web.Response:
        """Are we alive: do the loops run and does the writing thread answer?"""
        health = self.service.control.health()
        return web.json_response(health, status=200 if health["alive"] else 503)

    async def _readyz(self, request: web.Request) -> web.Response:
        """Can mail be accepted durably? Whether it is leaving is in the body only: an upstream's outage is no reason to unplug us."""
        health = self.service.control.health()
        return web.json_response(health, status=200 if health["accepting"] else 503)

    async def _openapi(self, request: web.Request) -> web.Response:
        return web.json_response(document(self.operations))

    # -- what has no model yet

    async def _reload(self, request: web.Request) -> web.Response:
        taken, lines = self.service.control.reload()
        return web.json_response({"taken": taken, "notes": lines}, status=200 if taken else 422)

    async def _check(self, request: web.Request) -> web.Response:
        return web.json_response(await self.service.check())

    async def _backup(self, request: web.Request) -> web.Response:
        return web.json_response(await self.service.backup(str((await _object(request)).get("folder") or "")))


def _pauses(pausing: Pausing) -> list[web.RouteDef]:
    async def every(_: web.Request) -> web.Response:
        return web.json_response({"suspensions": pausing.list()})

    async def suspend(request: web.Request) -> web.Response:
        return web.json_response(await pausing.suspend(await _object(request)))

    async def resume(request: web.Request) -> web.Response:
        return web.json_response(await pausing.resume(await _object(request)))

    return [
        web.get("/v1/suspensions", every),
        web.post("/v1/suspend", suspend),
        web.post("/v1/resume", resume),
    ]


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


async def _object(request: web.Request) -> dict[str, Any]:
    if not request.can_read_body:
        return {}
    try:
        found = await request.json()
    except ValueError:
        raise BadRequest("the body is not JSON") from None
    if not isinstance(found, dict):
        raise BadRequest("the body is not a JSON object")
    return found


async def _identified(request: web.Request, response: web.StreamResponse) -> None:
    if ID in request:  # not where no request could be read
        response.headers["X-Request-Id"] = request[ID]
