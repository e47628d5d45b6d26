"""The front half as `relay.app` composes it: doors, intake and a spool in a temporary folder. And a raw client."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from relay import clock
from relay.envelope import parse_queue_id
from relay.intake import Intake
from relay.listener.front import Door
from relay.listener.guard import Guard
from relay.maillog import MailLog
from relay.policy.classes import TrafficClass
from relay.policy.held import FREE
from relay.policy.limits import Limit
from relay.policy.routing import Action, Question, Route, Table
from relay.quotas import Quotas
from relay.secrets import Reference
from relay.settings import Account, Address, Admin, Config, Listen, Spool, Tls, User
from relay.spool import Filter
from relay.spool.sqlite import SqliteSpool

REST = Route("rest", Action.VIA, via=("up",), origin="relay.yaml:9")


class Front:
    """One or more doors in front of one spool."""

    def __init__(self, config: Config, spool: SqliteSpool) -> None:
        self.config, self.spool = config, spool
        self.log = MailLog(None)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.log.listeners.append(lambda kind, fields: self.events.append((kind, fields)))
        self.intake = Intake(spool, lambda: self.config, self.log, Quotas(config, lambda key: (), lambda *_: FREE))
        self.guard = Guard(self.log, lambda: self.config.users)
        self.doors = [Door(li, self.intake, self.log, config.hostname, self.guard) for li in config.listen]

    def reload(self, **changes: Any) -> None:
        """Another configuration, as `relay.app` takes one."""
        self.config = replace(self.config, **changes)
        self.intake.quotas.apply(self.config)
        self.guard.logins.forget()

    @property
    def door(self) -> Door:
        return self.doors[0]

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [fields for k, fields in self.events if k == kind]

    async def client(
        self,
        door: int = 0,
        *,
        greet: bool = True,
        tls: ssl.SSLContext | None = None,
        source: str = "",
        first: bytes = b"",
    ) -> Client:
        """`source`: the address it comes from, one of 127.0.0.0/8. `first`: what it says before all, in clear."""
        found = self.doors[door]
        local = (source, 0) if source else None
        host = found.listen.address.host
        reader, writer = await asyncio.open_connection(
            "127.0.0.1" if host == "0.0.0.0" else host, found.port, local_addr=local
        )
        made = Client(reader, writer)
        if first:
            await made.raw(first)
        if tls:
            await made.secure(tls)
        if greet:
            assert (await made.reply())[0] == 220
            assert (await made.say("EHLO client.example"))[0] == 250
        return made

    async def send(self, content: bytes, *to: str, sender: str = "app@example.com", door: int = 0) -> int:
        """One message that must be accepted; its number."""
        async with self.session(door) as client:
            code, text = await client.mail(content, *to, sender=sender)
            assert code == 250, text
            return parse_queue_id(text.rsplit(" ", 1)[1])

    @contextlib.asynccontextmanager
    async def session(self, door: int = 0, *, greet: bool = True, **more: Any) -> AsyncIterator[Client]:
        made = await self.client(door, greet=greet, **more)
        try:
            yield made
        finally:
            await made.close()

    async def kept(self, number: int) -> bytes:
        """Head and body as the spool has them."""
        found = await self.spool.message(number)
        assert found is not None
        body = await self.spool.read(number, found["place"])
        head: bytes = found["head"]
        return head + (body if isinstance(body, bytes) else body.read_bytes())

    async def rows(self) -> list[dict[str, Any]]:
        return [row async for row in self.spool.find(Filter())]

    def nothing_left(self) -> bool:
        """No session, no client counted, no byte of the budget, no file that is not a row's."""
        counted = self.guard.inside or any(d.sessions or d._clients for d in self.doors)
        return not (counted or self.intake.budget.used or self.spool.content.ids())


class Client:
    """Says bytes and reads replies."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def reply(self) -> tuple[int, str]:
        """(code, text, its lines joined by a newline); (0, "") where the relay hung up."""
        lines = []
        while True:
            async with asyncio.timeout(60):
                try:
                    line = await self.reader.readline()
                except ConnectionError:
                    line = b""
            if not line:
                return 0, ""
            assert line.endswith(b"\r\n"), line
            lines.append(line[4:-2].decode("ascii"))
            if line[3:4] == b" ":
                return int(line[:3]), "\n".join(lines)
            assert line[3:4] == b"-", line

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(60):
            await self.writer.drain()

    async def say(self, line: str) -> tuple[int, str]:
        await self.raw(line.encode() + b"\r\n")
        return await self.reply()

    async def secure(self, context: ssl.SSLContext) -> None:
        """The handshake alone."""
        async with asyncio.timeout(60):
            await self.writer.start_tls(context, server_hostname="127.0.0.1")

    async def start_tls(self, context: ssl.SSLContext) -> tuple[int, str]:
        """STARTTLS, the handshake, and EHLO; the reply to that."""
        assert (await self.say("STARTTLS"))[0] == 220
        await self.secure(context)
        return await self.say("EHLO client.example")

    async def log_in(self, user: str, password: str) -> tuple[int, str]:
        return await self.say("AUTH PLAIN " + plain(user, password))

    async def mail(
        self, content: bytes, *to: str, sender: str = "app@example.com", options: str = ""
    ) -> tuple[int, str]:
        """One transaction; the reply to its final dot, or the first refusal. `content` is stuffed here."""
        for line in (f"MAIL FROM:<{sender}>{options}", *(f"RCPT TO:<{a}>" for a in to or ("rcpt@example.net",))):
            answer = await self.say(line)
            if answer[0] != 250:
                await self.say("RSET")
                return answer
        answer = await self.say("DATA")
        if answer[0] != 354:
            return answer
        await self.raw(stuffed(content))
        return await self.reply()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


def plain(user: str, password: str, acting: str = "") -> str:
    """The response of PLAIN (RFC 4616)."""
    return base64.b64encode(f"{acting}\0{user}\0{password}".encode()).decode()


def stuffed(content: bytes) -> bytes:
    """Content as it goes over the wire, with the final dot (RFC 5321 §4.5.2)."""
    text = content if content.endswith(b"\r\n") or not content else content + b"\r\n"
    return (b"\r\n" + text).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"


def config(
    folder: Path,
    *listen: Listen,
    routes: tuple[Route, ...] = (REST,),
    classes: Mapping[str, TrafficClass] | None = None,
    capture: Question | None = None,
    senders: tuple[str, ...] = ("*",),
    users: Mapping[str, User] | None = None,
    limits: tuple[Limit, ...] = (),
) -> Config:
    account = Account("up", Reference("plain", "127.0.0.1"), 25, Tls("none"), senders=senders)
    return Config(
        source=None,
        hostname="relay.test",
        listen=listen or (Listen("local", Address("127.0.0.1", 0)),),
        spool=Spool(folder / "spool.db"),
        admin=Admin(folder / "admin.sock", None),
        routes=Table(routes, capture),
        accounts={"up": account},
        classes=classes or {},
        users=users or {},
        limits=limits,
    )


@contextlib.asynccontextmanager
async def front(folder: Path, *listen: Listen, max_message_size: int = 25_000_000, **more: Any) -> AsyncIterator[Front]:
    spool = await SqliteSpool.open(folder / "spool" / "spool.db", clock.now())
    spool.reserve, spool.max_message_size = 0, max_message_size
    made = Front(config(folder, *listen, **more), spool)
    try:
        for door in made.doors:
            await door.open()
        yield made
    finally:
        for door in made.doors:
            door.stop()
            await door.drain(2.0)
        await spool.close()
