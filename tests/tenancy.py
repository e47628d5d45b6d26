"""Two tenants at one relay: what each submits, and a token of each, for tests of who sees what."""

from __future__ import annotations

import asyncio
import contextlib
import json
import smtplib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rig import Rig, free_port, running, write_config

from relay import clock
from relay.policy.access import Scope, Token

USERS = """tenants: {red: {}, blue: {}}
users:
  ann: {password: {env: PASSWORD_OF_ALL}, tenant: red}
  abe: {password: {env: PASSWORD_OF_ALL}, tenant: red}
  bob: {password: {env: PASSWORD_OF_ALL}, tenant: blue}
"""
ROUTES = """  - {name: kept, match: {sender: "held@*"}, hold: true}
  - {name: spare, match: {sender: "spare@*"}, via: [other]}
  - {name: all, via: [main]}"""
SLOW = "  default: {retry: {schedule: [1h], give_up: 1d}}\n  news: {retry: {schedule: [1h], give_up: 1d}}"
HEAD = "From: {sender}\r\nX-Relay-Class: {class_}\r\nSubject: hi\r\n\r\nhello\r\n"


@dataclass
class Tenancy:
    rig: Rig
    tcp: str
    tokens: dict[str, str] = field(default_factory=dict)

    async def send(
        self, user: str, *to: str, sender: str = "held@example.com", tag: str = "", class_: str = "default"
    ) -> str:
        """A message that waits; its queue id."""
        more = f"X-Relay-Tag: {tag}\r\n" if tag else ""
        text = (more + HEAD.format(sender=sender, class_=class_)).encode()
        return await asyncio.to_thread(submit, self.rig.port, user, sender, to or ("you@example.net",), text)

    async def token(self, name: str, *scopes: Scope, user: str = "", tenant: str = "") -> None:
        token = Token("", "", name, scopes, user, tenant, clock.now(), "a test")
        _, self.tokens[name] = await self.rig.app.tokens.add(token)

    async def ask(self, who: str, path: str, method: str = "GET", body: Any = None, **query: Any) -> tuple[int, Any]:
        """The status, and the answer: JSON, or text."""
        headers = {"Authorization": f"Bearer {self.tokens[who]}"}
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, f"http://{self.tcp}{path}", params=query, json=body, headers=headers) as answer,
        ):
            text = await answer.text()
            return answer.status, json.loads(text) if "json" in answer.content_type else text

    async def get(self, who: str, path: str, **query: Any) -> Any:
        status, found = await self.ask(who, path, **query)
        assert status == 200, found
        return found


def submit(port: int, user: str, sender: str, to: tuple[str, ...], text: bytes) -> str:
    """By SMTP, logged in where there is a user."""
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo()
        if user:
            client.login(user, "right", initial_response_ok=True)
        client.mail(sender)
        for recipient in to:
            assert client.rcpt(recipient)[0] == 250
        code, said = client.data(text)
        assert code == 250, said
        return said.decode().split()[-1]


@contextlib.asynccontextmanager
async def tenancy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tenancy]:
    """Nothing leaves: what is not held finds nobody. Tokens: `all`, `red` and `blue`, and `ann`, each of scope operate."""
    monkeypatch.setenv("PASSWORD_OF_ALL", "right")
    dead = f"port: {free_port()}, tls: none"
    file = write_config(folder, {"main": dead, "other": dead}, routes=ROUTES, classes=SLOW, extra=USERS)
    text = file.read_text().replace("address: null", f'address: "127.0.0.1:{free_port()}"')
    file.write_text(text.replace("[{name: local, ", "[{name: local, auth: optional, honour: [class, tag], ", 1))
    async with running(file) as rig:
        made = Tenancy(rig, str(rig.app.config.admin.address))
        await made.token("all", "operate")
        await made.token("red", "operate", tenant="red")
        await made.token("blue", "operate", tenant="blue")
        await made.token("ann", "operate", user="ann")
        yield made
