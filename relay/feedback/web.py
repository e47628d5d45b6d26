"""A small HTTP server for strangers: aiohttp's protocol with bounds around it, and nothing told of who we are.

One request a connection; connections, headers, bodies and the time of each are bounded. Answers are made by `Answer`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestHandler
from yarl import URL

from relay.listener.crowd import Crowd, peer
from relay.listener.tls import Certificate
from relay.maillog import MailLog
from relay.policy.networks import in_networks
from relay.settings import FeedbackHttp

MOST_CONNECTIONS = 200
MOST_OF_CLIENT = 20  # beyond loopback and the proxies
MOST_LINE = 4096  # bytes of a request line, and of a header field
MOST_FIELDS = 64
HANDSHAKE = 10.0  # seconds
LIFE = 30.0  # seconds of a connection, whatever is done on it
BODY = 10.0  # seconds of a body
HOPS = 20  # of X-Forwarded-For that are looked at

Handle = Callable[[web.BaseRequest, "Site"], Awaitable["Answer"]]


class Answer(web.Response):
    """A status, and what is to be said beside it. `result`: what it counts as."""

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        result: str = "",
    ) -> None:
        super().__init__(status=status, body=body, headers=headers)
        self.result = result
        self.force_close()

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall(hdrs.SERVER, None)
        if not self.body:
            self.headers.popall(hdrs.CONTENT_TYPE, None)


class Cut(Exception):
    """A body that is not read on; with the status that says so."""

    def __init__(self, status: int, result: str) -> None:
        super().__init__(result)
        self.status, self.result = status, result


async def body_of(request: web.BaseRequest, most: int) -> bytes:
    """Raises Cut: 413 too long, 415 packed, 408 too slow."""
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower() not in ("", "identity"):
        raise Cut(415, "unreadable")
    if (request.content_length or 0) > most:
        raise Cut(413, "too_large")
    found = bytearray()
    try:
        async with asyncio.timeout(BODY):
            async for part in request.content.iter_any():
                found += part
                if len(found) > most:
                    raise Cut(413, "too_large")
    except TimeoutError:
        raise Cut(408, "slow") from None
    except (web.RequestPayloadError, ValueError):  # chunks that are none
        raise Cut(400, "unreadable") from None
    return bytes(found)


class _Protocol(RequestHandler):
    """As aiohttp's, with a bound to its life, and no words for what can't be read."""

    __slots__ = ("_end", "_from", "_site")

    def __init__(self, site: Site, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._site, self._from = site, ""
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._end = asyncio.get_running_loop().call_later(LIFE, self._over)
        self._from = peer(transport)
        if not self._site.crowd.enter(self._from):
            self._over()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._end is not None:
            self._end.cancel()
            self._site.crowd.leave(self._from)
            self._end = None
        super().connection_lost(exc)

    def _over(self) -> None:
        if self.transport is not None:
            self.transport.abort()  # uvloop's is one by what it does, not by its class

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status == 500 and exc is not None:
            self.log_exception("%s %s", request.method, request.rel_url.path[:20], exc_info=exc)
        if request.writer is not None and request.writer.output_size > 0:
            raise ConnectionError("an answer was under way")
        return Answer(status)


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    """Of a target with the name of a host (RFC 9112 §3.2.2) that is none only `/` is left: aiohttp would ask for the name, stumble
    where nobody answers, and leave the connection as it is."""
    try:
        return web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())
    except ValueError:
        bare = message._replace(url=URL("/"))
        return web.BaseRequest(bare, payload, protocol, writer, task, asyncio.get_running_loop())


class _Server(web.Server):
    def __init__(self, site: Site, handler: Any, **options: Any) -> None:
        super().__init__(handler, request_factory=_request, **options)
        self._site = site

    def __call__(self) -> RequestHandler:
        return _Protocol(self._site, self, loop=asyncio.get_running_loop(), **self._kwargs)


class Site:
    """One address. `open`, `refresh` now and then, `close`."""

    def __init__(self, settings: FeedbackHttp, handle: Handle, log: MailLog) -> None:
        self.settings, self._handle = settings, handle
        self.port = settings.address.port
        self.certificate = Certificate("feedback.http", settings.tls, log) if settings.tls else None
        self.crowd = Crowd(MOST_CONNECTIONS, MOST_OF_CLIENT, settings.proxy)
        self._web: _Server | None = None
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Raises OSError."""
        context = None
        if self.certificate is not None:
            context = await self.certificate.renewing()
        self._web = _Server(
            self,
            self._answer,
            access_log=None,
            keepalive_timeout=LIFE,
            lingering_time=1.0,
            max_line_size=MOST_LINE,
            max_field_size=MOST_LINE,
            max_headers=MOST_FIELDS,
            auto_decompress=False,
        )
        address = self.settings.address
        self._server = await asyncio.get_running_loop().create_server(
            self._web,
            address.host,
            address.port,
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE if context else None,
            reuse_address=True,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _answer(self, request: web.BaseRequest) -> Answer:
        return await self._handle(request, self)

    async def refresh(self) -> None:
        if self.certificate is not None:
            await self.certificate.refresh()

    def stop(self) -> None:
        """Nobody new; who is asking may get an answer."""
        if self._server is not None:
            self._server.close()

    async def close(self, timeout: float = 1.0) -> None:
        self.stop()
        if self._web is not None:
            self._web.pre_shutdown()
            await self._web.shutdown(timeout)
        if self._server is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._server.wait_closed()

    # -- who is there

    def client(self, request: web.BaseRequest) -> str:
        """Its address: the last one that a proxy of ours did not add to X-Forwarded-For itself."""
        direct = peer(request.transport)
        proxies = self.settings.proxy
        if not proxies or not in_networks(direct, proxies):
            return direct
        told = [one.strip() for line in request.headers.getall("X-Forwarded-For", []) for one in line.split(",")]
        for one in reversed(told[-HOPS:]):
            plain = one.strip("[]")
            if not in_networks(plain, ("0.0.0.0/0", "::/0")):
                return direct
            if not in_networks(plain, proxies):
                return plain
        return direct
