"""Somebody who receives webhooks: HTTP on loopback, which behaves as a test tells it, and knows what it took."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from tests.ports import free_port

Events = list[dict[str, Any]]
Behaviour = Callable[[Events], Awaitable[web.StreamResponse | int] | web.StreamResponse | int | None]


def signed(secret: str, timestamp: str, body: bytes) -> str:
    """By another library than the relay's."""
    mac = HMAC(secret.encode(), SHA256())
    mac.update(timestamp.encode() + b"." + body)
    return "v1=" + mac.finalize().hex()


@dataclass
class Call:
    headers: dict[str, str]
    body: bytes
    events: Events


@dataclass
class Receiver:
    """`behave`: what is answered; None or 2xx: its events are taken. May be changed at any time."""

    behave: Behaviour = lambda events: None
    taken: Events = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    port: int = 0
    _runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def ids(self) -> list[int]:
        """Each event once, in the order in which it was taken first."""
        return list(dict.fromkeys(event["id"] for event in self.taken))

    def of(self, queue_id: str) -> list[int]:
        """As `ids`, of one message."""
        return list(dict.fromkeys(event["id"] for event in self.taken if event.get("queue_id") == queue_id))

    async def __aenter__(self) -> Receiver:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """At the same port, if it has had one: nobody is given that while it is stopped."""
        self.port = self.port or free_port()
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        events = json.loads(body)
        self.calls.append(Call(dict(request.headers), body, events))
        said = self.behave(events)
        if asyncio.iscoroutine(said):
            said = await said
        if isinstance(said, web.StreamResponse):
            if 200 <= said.status < 300:
                self.taken += events
            return said
        if said == 0:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        status = 204 if said is None else int(said)  # type: ignore[call-overload]
        if 200 <= status < 300:
            self.taken += events
        return web.Response(status=status)
