"""The public side of a running relay, as providers and readers meet it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from relay.envelope import parse_queue_id
from relay.outgoing import verp
from relay.policy.suppression import Suppression
from tests import webhooks
from tests.rig import Rig, running, write_config

KEY = "k" * 32
HTTP = '{address: "127.0.0.1:0"}'
PROVIDERS = """
    ses: {topics: [%s]}
    sendgrid: {public_key: "%s", egress: main}
    mailgun: {signing_key: {file: mailgun}}
    postmark: {username: relay, password: {file: password}}
    brevo: {token: {file: password}}
    mailjet: {username: relay, password: {file: password}}
    sparkpost: {username: relay, password: {file: password}}
    pm-near: {kind: postmark, username: relay, password: {file: password}, clients: [192.0.2.0/24]}
"""
SUPPRESSION = "suppression: {on: [hard_bounce, complaint, unsubscribe]}\n"


@dataclass
class Answered:
    status: int
    headers: Any
    body: bytes


class Bench:
    def __init__(self, rig: Rig) -> None:
        self.rig, self.spool = rig, rig.app.spool
        self.base = f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        return self.rig.app.feedback.public.port

    async def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answered:
        """`_` in names of headers stands for `-`."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        async with (
            aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.request(
                method, URL(self.base + path, encoded=True), data=body, headers=given, allow_redirects=False
            ) as response,
        ):
            return Answered(response.status, response.headers, await response.read())

    async def post(self, name: str, body: Any, **headers: str) -> Answered:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.ask("POST", f"/feedback/{name}", raw, **({"Content_Type": "application/json"} | headers))

    async def events(self, *kinds: str) -> list[Any]:
        return [row for row in await self.spool.events(0, 10_000) if row.kind in kinds]

    async def suppressed(self, address: str) -> list[Suppression]:
        return await self.spool.suppressed(address)

    def token(self, number: str, n: int = 0) -> str:
        return verp.make(KEY.encode(), parse_queue_id(number), n)


def configured(folder: Path, http: str = HTTP, more: str = "", extra: str = SUPPRESSION, providers: str = "") -> Path:
    """Whose mail is kept and goes nowhere: what comes back is about messages that are there."""
    for name, secret in (("token", KEY), ("mailgun", "signing-key"), ("password", "secret")):
        (folder / name).write_text(secret)
        (folder / name).chmod(0o640)
    made = providers or PROVIDERS % (webhooks.TOPIC, webhooks.verification_key())
    feedback = f"feedback:\n  token_key: {{file: token}}\n  domain: bounces.example.com\n  http: {http}\n{more}"
    return write_config(
        folder,
        {"main": "port: 9, tls: none"},
        routes='  - {match: {recipient: "*@x.example"}, via: main}\n  - {hold: true}',
        extra=f"{feedback}  providers:{made}{extra}",
    )


@contextlib.asynccontextmanager
async def public(folder: Path, **given: str) -> AsyncIterator[Bench]:
    async with running(configured(folder, **given)) as rig:
        yield Bench(rig)


async def raw(port: int, data: bytes, seconds: float = 60.0) -> bytes:
    """All that comes back until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        await writer.drain()
        return await asyncio.wait_for(reader.read(), seconds)
    except ConnectionError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
