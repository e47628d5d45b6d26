"""A server of MTA-STS policies (RFC 8461 §3.3) for many domains: HTTPS on loopback, by the name that the client asks for.

    async with StsServer(certs) as sts:
        sts.policies["example.com"] = Policy(text("enforce", "mx.example.com"))

A certificate that is right is made for each domain, unless its policy brings another one.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field

from aiohttp import web
from certificates import Certs, Identity

from tests.ports import free_port


def text(mode: str, *mx: str, max_age: int = 86400) -> str:
    """A policy as RFC 8461 §3.2 writes it."""
    return "".join(
        f"{line}\r\n" for line in ("version: STSv1", f"mode: {mode}", *(f"mx: {m}" for m in mx), f"max_age: {max_age}")
    )


@dataclass
class Policy:
    """What is answered for one domain; `body` is `text(…)` or anything else. May be changed at any time."""

    body: str | bytes = ""
    status: int = 200
    content_type: str = "text/plain"
    headers: dict[str, str] = field(default_factory=dict)  # `Location` of a redirect
    delay: float = 0.0  # seconds before the answer
    until: asyncio.Event | None = None  # and not before this
    pause: float = 0.0  # seconds in the middle of the body
    down: bool = False  # the connection is cut without an answer
    identity: Identity | None = None
    asked: int = 0


class StsServer:
    """`policies`: domain -> Policy; any other is a 404. `asked`: (Host, path) of every request, in order."""

    def __init__(self, certs: Certs, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host, self.port = host, port
        self.policies: dict[str, Policy] = {}
        self.asked: list[tuple[str, str]] = []
        self._certs = certs
        self._contexts: dict[tuple[str, int], ssl.SSLContext] = {}
        self._runner: web.ServerRunner | None = None

    async def __aenter__(self) -> StsServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """At the same port, if it has had one."""
        context = self._certs.right("mta-sts.unknown.example").context
        context.sni_callback = self._choose
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port or free_port(self.host), ssl_context=context)
        await site.start()
        assert site._server is not None
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

    async def stop(self) -> None:
        """From then on connections are refused."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _choose(self, tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        name = name or ""
        policy = self.policies.get(name.removeprefix("mta-sts."))
        identity = policy.identity if policy else None
        key = (name, id(identity))
        if key not in self._contexts and name:
            self._contexts[key] = (identity or self._certs.right(name)).context
        tls.context = self._contexts.get(key, context)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        host = request.host.partition(":")[0]
        self.asked.append((host, request.path))
        policy = self.policies.get(host.removeprefix("mta-sts."))
        if policy is None or request.path != "/.well-known/mta-sts.txt" or not host.startswith("mta-sts."):
            return web.Response(status=404, text="not here")
        policy.asked += 1
        await asyncio.sleep(policy.delay)
        if policy.until is not None:
            await policy.until.wait()
        if policy.down:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        body = policy.body.encode() if isinstance(policy.body, str) else policy.body
        headers = {"Content-Type": policy.content_type, "Content-Length": str(len(body)), **policy.headers}
        response = web.StreamResponse(status=policy.status, headers=headers)
        await response.prepare(request)
        half = len(body) // 2
        await response.write(body[:half])
        await asyncio.sleep(policy.pause)
        await response.write(body[half:])
        await response.write_eof()
        return response
