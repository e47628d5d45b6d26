"""The dispatcher of webhooks over a spool, without the rest of the relay."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from conftest import until
from receiver import Events, Receiver

from relay import clock
from relay.events import Kind
from relay.maillog import MailLog
from relay.secrets import Reference
from relay.settings import Endpoint
from relay.spool import Event
from relay.spool.sqlite import SqliteSpool
from relay.webhooks.dispatch import Webhooks

SECRET = "0123456789abcdef0123456789abcdef"


class Hooks:
    """The dispatcher over a spool, and what the log says."""

    def __init__(self, spool: SqliteSpool, endpoints: Mapping[str, Endpoint]) -> None:
        self.spool, self.events = spool, list[tuple[str, dict[str, Any]]]()
        self.log = MailLog(None)
        self.log.listeners.append(lambda kind, fields: self.events.append((kind, dict(fields))))
        self.config: Any = SimpleNamespace(webhooks=endpoints, tenant_of={"shop": "acme"})
        self.webhooks = Webhooks(spool, lambda: self.config, self.log)
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.task = asyncio.create_task(self.webhooks.run())
        await until(lambda: self.webhooks.lines.keys() == self.config.webhooks.keys())

    async def stop(self, timeout: float = 5.0) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.webhooks.stop(timeout)

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [fields for k, fields in self.events if k == kind]

    def row(self, name: str = "crm") -> dict[str, Any]:
        return next(row for row in self.webhooks.rows() if row["endpoint"] == name)

    def apply(self, **endpoints: Endpoint) -> None:
        self.config = SimpleNamespace(webhooks=endpoints, tenant_of={})
        self.webhooks.apply(self.config)


@asynccontextmanager
async def hooked(spool: SqliteSpool, *endpoints: Endpoint) -> AsyncIterator[Hooks]:
    made = Hooks(spool, {endpoint.name: endpoint for endpoint in endpoints})
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


def crm(receiver: Receiver, **given: Any) -> Endpoint:
    secret = Reference("plain", SECRET)
    made = Endpoint(
        "crm", url=Reference("plain", receiver.url), secret=secret, allow_private=True, timeout=30.0, cap=0.2
    )
    return replace(made, **given)


async def note(spool: SqliteSpool, *messages: int, kind: Kind = "delivered", at: float = 0.0) -> list[int]:
    """An event of each of these messages; returns their ids."""
    before = await spool.last_event()
    await spool.note(
        [Event(at or clock.now(), message, None, kind, data={"k": n}) for n, message in enumerate(messages)]
    )
    return [row.id for row in await spool.events(before, 5000)]


def in_order(events: Events) -> None:
    """Of each message what is taken first, is told first."""
    last: dict[str, int] = {}
    for id_, queue_id in dict.fromkeys((e["id"], e.get("queue_id", "")) for e in events):
        assert not queue_id or id_ > last.get(queue_id, 0), (id_, last[queue_id])
        last[queue_id] = id_


def lines_of(file: Path) -> list[int]:
    return [json.loads(text)["id"] for text in file.read_text().splitlines()] if file.exists() else []
