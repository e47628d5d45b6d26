"""A relay of two tenants whose mail is discarded at once, and the API as each of their tokens sees it; server-sent events, read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import smtplib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rig import Rig, free_port, running, write_config

from relay import clock
from relay.policy.access import Scope, Token

USERS = """tenants: {red: {limits: [{rate: 1000/d, when_full: reject}]}, blue: {limits: [{rate: 1000/d, when_full: reject}]}}
users:
  ann: {password: {env: PASSWORD_OF_ALL}, tenant: red, limits: [{rate: 500/d, when_full: reject}]}
  bob: {password: {env: PASSWORD_OF_ALL}, tenant: blue}
  eve: {password: {env: PASSWORD_OF_ALL}}
"""
ROUTES = '  - {name: kept, match: {recipient: "*@hold.example"}, hold: true}\n  - {name: gone, discard: true}'


@dataclass
class Apart:
    rig: Rig
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def base(self) -> str:
        return f"http://{self.rig.app.config.admin.address}"

    async def token(self, name: str, *scopes: Scope, user: str = "", tenant: str = "", expires: float = 0.0) -> Token:
        wanted = Token("", "", name, scopes or ("operate",), user, tenant, clock.now(), "a test", expires)
        made, self.tokens[name] = await self.rig.app.tokens.add(wanted)
        return made

    def headers(self, who: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[who]}"}

    async def ask(
        self, who: str, path: str, body: Any = None, method: str = "", query: Mapping[str, Any] | None = None
    ) -> tuple[int, Any]:
        """A POST where there is a body."""
        how = method or ("GET" if body is None else "POST")
        async with (
            aiohttp.ClientSession() as session,
            session.request(how, self.base + path, json=body, params=query, headers=self.headers(who)) as answer,
        ):
            text = await answer.text()
            return answer.status, json.loads(text) if text else None

    async def good(
        self, who: str, path: str, body: Any = None, method: str = "", query: Mapping[str, Any] | None = None
    ) -> Any:
        status, found = await self.ask(who, path, body, method, query)
        assert status < 300, found
        return found

    async def send(self, user: str = "", *to: str, tag: str = "") -> str:
        """One message, submitted by SMTP; its queue id."""
        return await asyncio.to_thread(_submit, self.rig.port, user, to or ("you@example.net",), tag)


def _submit(port: int, user: str, to: tuple[str, ...], tag: str) -> str:
    text = (f"X-Relay-Tag: {tag}\r\n" if tag else "") + "From: app@example.com\r\nSubject: t\r\n\r\nhello\r\n"
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo()
        if user:
            client.login(user, "right", initial_response_ok=True)
        client.mail("app@example.com")
        for recipient in to:
            assert client.rcpt(recipient)[0] == 250
        code, said = client.data(text.encode())
        assert code == 250, said
        return said.decode().split()[-1]


def configured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PASSWORD_OF_ALL", "right")
    file = write_config(folder, {}, routes=ROUTES, extra=USERS)
    text = file.read_text().replace("address: null", f'address: "127.0.0.1:{free_port()}"')
    file.write_text(text.replace("[{name: local, ", "[{name: local, auth: optional, honour: [tag], ", 1))
    return file


@contextlib.asynccontextmanager
async def apart(file: Path) -> AsyncIterator[Apart]:
    """With tokens of the scope `operate`: `all`, of the tenants `red` and `blue`, of the users `ann` (red) and `eve`."""
    async with running(file) as rig:
        made = Apart(rig)
        await made.token("all")
        await made.token("red", tenant="red")
        await made.token("blue", tenant="blue")
        await made.token("ann", user="ann")
        await made.token("eve", user="eve")
        yield made


# -- server-sent events, as WHATWG HTML §9.2.6 has them read


class Sse:
    """One stream. `last`: what a browser would send as Last-Event-ID."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer, self.last, self.comments = answer, "", list[str]()

    async def next(self, deadline: float = 20.0) -> dict[str, Any] | None:
        """The next event; None: the stream has ended, whole."""
        kind = data = ""
        async with asyncio.timeout(deadline):
            while line := (await self.answer.content.readline()).decode():
                assert line.endswith("\n")
                name, _, value = line.rstrip("\n").partition(": ")
                if not name and not value and data:
                    event: dict[str, Any] = json.loads(data)
                    assert event["event"] == kind and str(event["id"]) == self.last
                    return event
                match name:
                    case "id":
                        self.last = value
                    case "event":
                        kind = value
                    case "data":
                        data += value
                    case "" if value:
                        self.comments.append(value)
        return None


@contextlib.asynccontextmanager
async def followed(at: Apart, who: str, last: str = "", **query: Any) -> AsyncIterator[Sse]:
    headers = at.headers(who) | ({"Last-Event-ID": last} if last else {})
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60), read_bufsize=1 << 20) as session,
        session.get(f"{at.base}/v1/events/stream", params=query, headers=headers) as answer,
    ):
        assert answer.status == 200, await answer.text()
        yield Sse(answer)
