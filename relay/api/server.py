"""The servers: everything on the UNIX socket, whose file mode is its guard; on TCP `/v1` for who has a token, and health.

`operations` is the whole of `/v1`. Health, metrics and the OpenAPI document want no token on loopback, and one beyond it. No cookie
is set or read and no other origin is let in (CORS): a browser can do nothing here that its user did not type.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from relay import metrics
from relay.api.openapi import document
from relay.api.operations import operations
from relay.api.problem import Problem
from relay.api.rooms import Rooms
from relay.api.route import ID, MAX_BODY
from relay.api.serve import Endpoint, Who, by_socket, by_token, telling
from relay.api.site import BOUNDS, OPTIONS, Bounds, TcpSite
from relay.api.sse import CLOSING
from relay.listener.tls import Certificate
from relay.policy.networks import is_loopback, parse
from relay.settings import Address, ServerTls

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::[0-9]*)?")  # RFC 3986 §3.2.2, §3.2.3
May = Callable[
    [web.Request, bool], None
]  # whether what is no operation may be seen; the second: it is of the whole relay


class Admin:
    """The servers. `open_socket`, `open_tcp`, then `close`."""

    def __init__(self, rooms: Rooms) -> None:
        self.rooms, self.service, self.stream = rooms, rooms.service, rooms.stream
        self.operations = operations(rooms)
        self._runners: list[web.AppRunner] = []
        self._sites: list[TcpSite] = []
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
        runner = await self._runner(self._app(by_socket, _anybody))
        before = os.umask(0o177)
        try:
            await web.UnixSite(runner, str(path)).start()
        finally:
            os.umask(before)
        self._socket = path

    async def open_tcp(self, address: Address, tls: ServerTls | None = None, bounds: Bounds = BOUNDS) -> int:
        """The API for who has a token; returns the port. Raises OSError."""
        near = is_loopback(address.host)
        app = self._app(by_token, self._local if near else self._reader)
        certificate = Certificate("admin", tls, self.rooms.log) if tls else None
        return await self._open(TcpSite(await self._runner(app), address, certificate, bounds))

    async def open_probes(self, address: Address) -> int:
        """Health and metrics alone, for who can reach it; returns the port. Raises OSError."""
        app = self._empty(by_token)
        app.add_routes(self._plain(_anybody))
        return await self._open(TcpSite(await self._runner(app), address, None, BOUNDS))

    async def _open(self, site: TcpSite) -> int:
        await site.start()
        self._sites.append(site)
        return site.bound

    async def refresh(self) -> None:
        """Take a renewed certificate, if there is one."""
        for site in self._sites:
            await site.refresh()

    async def close(self) -> None:
        for runner in self._runners:
            await runner.cleanup()
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)

    async def _runner(self, app: web.Application) -> web.AppRunner:
        runner = web.AppRunner(app, shutdown_timeout=1.0, **OPTIONS)
        await runner.setup()
        self._runners.append(runner)
        return runner

    def _empty(self, who: Who) -> web.Application:
        app = web.Application(middlewares=[telling(self.rooms, who)], client_max_size=MAX_BODY)
        app.on_response_prepare.append(_identified)
        app[CLOSING] = asyncio.Event()
        app.on_shutdown.append(_closing)
        return app

    def _app(self, who: Who, may: May) -> web.Application:
        """`may` guards what is no operation."""
        app = self._empty(who)
        app.add_routes([*self._plain(may), web.get("/openapi.json", _guarded(self._openapi, may, whole=False))])
        for operation in self.operations:
            endpoint = Endpoint(operation, self.rooms, who)
            app.router.add_route(operation.method, operation.path, endpoint.handle, expect_handler=endpoint.expected)
        return app

    def _plain(self, may: May) -> list[web.RouteDef]:
        return [
            web.get(path, _guarded(handler, may, whole=True))
            for path, handler in (
                ("/metrics", self._metrics), ("/healthz", self._healthz), ("/readyz", self._readyz)
            )
        ]  # fmt: skip

    # -- who may see what is no operation

    def _reader(self, request: web.Request, whole: bool) -> None:
        """Raises Problem."""
        principal = by_token(request, self.rooms)
        if not principal.may("read") or (whole and not principal.whole):
            raise Problem(403, f"{request.path} wants the scope read{', of the whole relay' if whole else ''}")

    def _local(self, request: web.Request, whole: bool) -> None:
        """Whoever is on this machine; but no page whose name was made to lead here (DNS rebinding). Raises Problem."""
        if not names_this_machine(request.headers.get("Host", ""), self.rooms.config.hostname):
            self._reader(request, whole)

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


def _anybody(request: web.Request, whole: bool) -> None:
    """Who could connect may see it."""


def _guarded(handler: Handler, may: May, *, whole: bool) -> Handler:
    async def guarded(request: web.Request) -> web.StreamResponse:
        may(request, whole)
        return await handler(request)

    return guarded


def names_this_machine(host: str, hostname: str) -> bool:
    """Whether a Host header (RFC 9110 §7.2) is an address, `localhost` or our own name: none of them can be made to lead here
    by another's DNS. Empty: it is no browser's."""
    if not host:
        return True
    written = _HOST.fullmatch(host)
    name = (written[1] or written[2]).lower() if written else ""
    return name in ("localhost", hostname.lower()) or parse(name) is not None


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


async def _identified(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.popall("Server", None)  # what we are made of is no stranger's business
    if ID in request:  # not where no request could be read
        response.headers["X-Request-Id"] = request[ID]


async def _closing(app: web.Application) -> None:
    """Streams end by themselves, with their last line whole."""
    app[CLOSING].set()
