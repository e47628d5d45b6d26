"""The API's TCP address: aiohttp's protocol with bounds around it, so that who says little or nothing holds up nobody.

Connections are bounded together and by client; the head of a request by time; its body by `serve`; an idle connection by
keep-alive. Sockets and their certificate are owned here.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from relay.api.problem import Problem
from relay.listener.crowd import Crowd, peer
from relay.listener.tls import Certificate
from relay.settings import Address

HANDSHAKE = 10.0  # seconds
# Of every server of the API. Packed bodies are refused, not unpacked: a small one may hold gigabytes. `lingering_time`: so long
# is read on, unseen, after who sends a body that nobody wants was told so; else he would see a reset and no answer.
OPTIONS: dict[str, Any] = {
    "access_log": None,
    "auto_decompress": False,
    "keepalive_timeout": 75.0,
    "lingering_time": 1.0,
    "max_headers": 64,
}


@dataclass(frozen=True, slots=True)
class Bounds:
    connections: int = 500  # at once
    of_client: int = 100  # beyond this machine
    head: float = 10.0  # seconds for the head of a request, the first byte of the first one included


BOUNDS = Bounds()


class _Protocol(RequestHandler):
    __slots__ = ("_bounds", "_crowd", "_from", "_late")

    def __init__(self, server: web.Server, crowd: Crowd, bounds: Bounds) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **OPTIONS)
        self._crowd, self._bounds, self._from = crowd, bounds, ""
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._from = peer(transport)
        self._watch()
        if not self._crowd.enter(self._from):
            self._over()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._unwatch()
        self._crowd.leave(self._from)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        incomplete = self._waiter is not None and not self._waiter.done()
        if not incomplete:
            self._unwatch()
        elif self._late is None:
            self._watch()

    def _watch(self) -> None:
        self._late = asyncio.get_running_loop().call_later(self._bounds.head, self._over)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP is answered without its own words, and fills no log; our own trouble is logged."""
        if status >= 500 and exc is not None:
            self.log_exception("%s %s", request.method, request.rel_url.path[:100], exc_info=exc)
        if request.writer is not None and request.writer.output_size > 0:
            raise ConnectionError("an answer was under way")
        detail = "internal trouble; the relay's log has it" if status >= 500 else "this is no request of HTTP"
        number = secrets.token_hex(8)
        response = Problem(status, detail, headers={"X-Request-Id": number, "Server": "relay"}).response(number)
        response.force_close()
        return response

    def _over(self) -> None:
        if self.transport is not None:
            self.transport.abort()  # uvloop's is one by what it does, not by its class


class TcpSite(web.TCPSite):
    """`start`, `refresh` now and then; the runner stops it."""

    def __init__(
        self, runner: web.AppRunner, address: Address, certificate: Certificate | None, bounds: Bounds
    ) -> None:
        super().__init__(runner, address.host, address.port)
        self._address, self._certificate, self._bounds = address, certificate, bounds
        self.crowd = Crowd(bounds.connections, bounds.of_client)

    async def start(self) -> None:
        """Raises OSError."""
        await web.BaseSite.start(self)
        context: ssl.SSLContext | None = await self._certificate.renewing() if self._certificate else None
        handler = self._runner.server
        assert handler is not None
        self._server = server = await asyncio.get_running_loop().create_server(
            lambda: _Protocol(handler, self.crowd, self._bounds),
            self._address.host,
            self._address.port,
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE if context else None,
            reuse_address=True,
        )
        self.bound: int = server.sockets[0].getsockname()[1]

    async def refresh(self) -> None:
        """Take a renewed certificate, if there is one."""
        if self._certificate is not None:
            await self._certificate.refresh()
