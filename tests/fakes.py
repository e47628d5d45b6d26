"""A scripted SMTP upstream over real sockets: it answers what a test wants at each command, and keeps what it got.

A script is `{command: action or list of actions}`; the last action of a list repeats. Commands are BANNER, EHLO, HELO,
STARTTLS, HANDSHAKE (instead of TLS, after the 220), AUTH, MAIL, RCPT, DATA, EMPTY (DATA without a recipient), BODY (while the body
arrives), DOT, RSET,
QUIT. An action is the text of a reply, bytes to be sent as they are, DROP, RESET, SILENT, DEAF, one of the classes below,
or a function of the argument that returns one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import ssl
import stat
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.ports import free_port

# SILENT reads and says nothing; DEAF does not even read, as a peer whose machine is gone.
DROP, RESET, SILENT, DEAF = object(), object(), object(), object()


@dataclass(frozen=True)
class Later:
    """An action when `until` is set, after a pause."""

    seconds: float
    action: Any
    until: asyncio.Event | None = None


@dataclass(frozen=True)
class Early:
    """For BODY: once so many bytes of it came, an action; then the rest is still read where `keep_reading`."""

    after: int
    action: Any
    keep_reading: bool = True


@dataclass(frozen=True)
class Also:
    """The usual reply, and more in the same segment."""

    more: bytes


@dataclass(frozen=True)
class Pieces:
    """A reply in segments; without any, the usual one, byte by byte."""

    parts: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Endless:
    """So many bytes of the same, as long as the peer takes them; then the session ends."""

    piece: bytes
    size: int
    first: bytes = b""


@dataclass
class Transaction:
    """One MAIL and what followed; `wire` is what came between 354 and the final dot, dots still stuffed."""

    session: int
    sender: str
    mail: str
    recipients: list[str] = field(default_factory=list)  # all that were named
    accepted: list[str] = field(default_factory=list)
    wire: bytes = b""
    ended: bool = False  # the final dot came
    answered: str = ""
    answered_at: float = 0.0  # time.monotonic()

    @property
    def message(self) -> bytes:
        """As a receiver keeps it (RFC 5321 §4.5.2)."""
        return b"".join(line[1:] if line.startswith(b".") else line for line in self.wire.splitlines(keepends=True))

    @property
    def done(self) -> bool:
        return self.ended and self.answered.startswith("250")


class _Gone(Exception):
    """The session is over; what was said last."""


class Upstream:
    """One listening fake. `async with Upstream(...) as up: ... up.port`."""

    def __init__(
        self,
        script: dict[str, Any] | None = None,
        *,
        extensions: tuple[str, ...] = ("PIPELINING", "SIZE 100000000", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"),
        tls: ssl.SSLContext | None = None,
        implicit: bool = False,
        login: tuple[str, str] | None = None,
        mechanisms: str = "PLAIN LOGIN",
        bearer: Callable[[str, str], bool] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        small_window: bool = False,
        name: str = "fake.example",
    ) -> None:
        """`bearer`: whether a user's token is good; asked for XOAUTH2 and OAUTHBEARER."""
        self.script = dict(script or {})
        self.name = name
        self.bearer = bearer
        self.extensions, self.tls, self.implicit = extensions, tls, implicit
        self.login, self.mechanisms = login, mechanisms
        self.host, self.port, self._small = host, port, small_window
        self.transactions: list[Transaction] = []
        self.sessions: list[list[str]] = []  # the command lines of each
        self.logins: list[tuple[str, str]] = []
        self.peer_certificates: list[dict[str, Any]] = []
        self.tls_versions: list[str] = []
        self.open = 0
        self.most_open = 0
        self.most_held = 0
        self.floods = 0  # times that something endless was begun
        self.unread = 0  # bytes that had come when the last command was read
        self._counts: dict[str, int] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writers: list[asyncio.StreamWriter] = []  # of every session, also of those that have ended

    async def __aenter__(self) -> Upstream:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        # With the protocol named, asyncio sets TCP_NODELAY: what is sent in pieces arrives in pieces.
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        # One of the tests' own: one that the kernel gives would be given to others while nobody listens here.
        sock.bind((self.host, self.port or free_port(self.host)))
        self.port = sock.getsockname()[1]
        context = self.tls if self.implicit else None
        limit = 4096 if self._small else 1 << 16
        self._server = await asyncio.start_server(self._session, sock=sock, ssl=context, limit=limit)

    async def stop(self) -> None:
        """Nobody listens any more, and every session is cut."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if closing := [asyncio.ensure_future(writer.wait_closed()) for writer in self._writers]:
            _, never = await asyncio.wait(closing, timeout=0.5)  # one cut in its TLS handshake is told of no end
            for task in never:
                task.cancel()
            await asyncio.gather(*closing, return_exceptions=True)
        self._writers.clear()

    def cut(self) -> None:
        """Every open session ends, as after an idle time-out of the upstream."""
        for writer in self._writers:
            writer.transport.abort()

    @property
    def held(self) -> int:
        """The connections to us that this process has open, and so the relay in it, whether or not we still know them."""
        count = 0
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(int(fd)).st_mode):
                    with socket.socket(fileno=os.dup(int(fd))) as sock:
                        count += sock.getpeername()[:2] == (self.host, self.port)
        return count

    @property
    def done(self) -> list[Transaction]:
        """Those that got 250 to the final dot."""
        return [t for t in self.transactions if t.done]

    def delivered(self) -> list[str]:
        """Every recipient of every message that was taken, once for each time."""
        return [r for t in self.done for r in t.accepted]

    def commands(self, verb: str) -> list[str]:
        return [line for session in self.sessions for line in session if line.upper().startswith(verb)]

    # -- one session

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.append(writer)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        self.most_held = max(self.most_held, self.held)
        number = len(self.sessions)
        self.sessions.append([])
        if self.implicit:
            self._saw_tls(writer)
        try:
            await _Talk(self, reader, writer, number).run()
        except (_Gone, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass
        except asyncio.CancelledError:
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            if not writer.is_closing():  # a second time, it would not hear of `cut` any more (asyncio's TLS)
                writer.close()

    def _saw_tls(self, writer: asyncio.StreamWriter) -> None:
        found = writer.get_extra_info("ssl_object")
        self.tls_versions.append(found.version())
        self.peer_certificates.append(found.getpeercert() or {})

    def action(self, command: str, argument: str, otherwise: Any) -> Any:
        wanted = self.script.get(command, otherwise)
        if isinstance(wanted, list):
            index = self._counts.get(command, 0)
            self._counts[command] = index + 1
            wanted = wanted[min(index, len(wanted) - 1)]
        while callable(wanted):
            wanted = wanted(argument)
        return otherwise if wanted is None else wanted


class _Talk:
    def __init__(self, up: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.up, self.reader, self.writer, self.number = up, reader, writer, number
        self.encrypted = up.implicit
        self.transaction: Transaction | None = None

    async def run(self) -> None:
        await self.say("BANNER", "", f"220 {self.up.name} ESMTP")
        handlers: dict[str, Callable[[str], Any]] = {
            "EHLO": self.ehlo, "HELO": self.helo, "STARTTLS": self.starttls, "AUTH": self.auth, "MAIL": self.mail,
            "RCPT": self.rcpt, "DATA": self.data, "RSET": self.rset, "QUIT": self.quit,
        }  # fmt: skip
        while True:
            line = (await self.reader.readuntil(b"\r\n")).decode("utf-8", "replace").rstrip("\r\n")
            self.up.unread = len(self.reader._buffer)  # type: ignore[attr-defined]
            self.up.sessions[self.number].append(line)
            verb, _, argument = line.partition(" ")
            handler = handlers.get(verb.upper())
            if handler is None:
                await self.send("502 5.5.2 what?")
            else:
                await handler(argument)

    async def say(self, command: str, argument: str, otherwise: Any) -> str:
        """What the script says; returns the text of the reply."""
        action = self.up.action(command, argument, otherwise)
        if isinstance(action, Also):
            action = otherwise.encode() + b"\r\n" + action.more
        if isinstance(action, Pieces):
            parts = action.parts or tuple(bytes([byte]) for byte in otherwise.encode() + b"\r\n")
            for part in parts[:-1]:
                await self.send(part)
                await asyncio.sleep(0.001)  # so that it leaves alone, and is read alone
            await self.send(parts[-1])
            return b"".join(parts).decode("latin-1")
        return await self.do(action)

    async def do(self, action: Any) -> str:
        if isinstance(action, Later):
            if action.until is not None:
                await action.until.wait()
            await asyncio.sleep(action.seconds)
            return await self.do(action.action)
        if action is DROP:
            await self.writer.drain()
            self.writer.close()
            raise _Gone
        if action is RESET:
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
            raise _Gone
        if action is SILENT:
            await self.reader.read()
            raise _Gone
        if action is DEAF:
            self.writer.transport.pause_reading()
            await asyncio.Event().wait()
        if isinstance(action, Endless):
            self.up.floods += 1
            await self.send(action.first)
            piece = action.piece * max(1, 65536 // len(action.piece))
            for _ in range(action.size // len(piece)):
                await self.send(piece)
            await self.do(DROP)
        await self.send(action)
        text = action if isinstance(action, str) else action.decode("latin-1")
        if text.startswith("421"):
            self.writer.close()
            raise _Gone(text)
        return text

    async def send(self, text: str | bytes) -> None:
        self.writer.write(text if isinstance(text, bytes) else text.encode() + b"\r\n")
        await self.writer.drain()

    async def ehlo(self, argument: str) -> None:
        lines = [self.up.name, *self.up.extensions]
        if self.up.tls is not None and not self.encrypted:
            lines.append("STARTTLS")
        if self.up.login is not None or self.up.bearer is not None:
            lines.append(f"AUTH {self.up.mechanisms}")
        text = "\r\n".join(f"250{' ' if i == len(lines) - 1 else '-'}{line}" for i, line in enumerate(lines))
        await self.say("EHLO", argument, text)

    async def helo(self, argument: str) -> None:
        await self.say("HELO", argument, f"250 {self.up.name}")

    async def starttls(self, argument: str) -> None:
        if (await self.say("STARTTLS", argument, "220 2.0.0 go ahead")).startswith("220"):
            assert self.up.tls is not None
            if (instead := self.up.action("HANDSHAKE", argument, None)) is not None:
                await self.reader.read(1)  # the client has begun: what comes before that it drops (RFC 3207 §6)
                await self.do(instead)
                await self.do(SILENT)
            await self.writer.start_tls(self.up.tls)
            self.encrypted = True
            self.up._saw_tls(self.writer)

    async def auth(self, argument: str) -> None:
        mechanism, _, initial = argument.partition(" ")
        if mechanism.upper() in ("XOAUTH2", "OAUTHBEARER"):
            return await self._auth_bearer(mechanism.upper(), initial)
        if mechanism.upper() == "PLAIN":
            if not initial:
                await self.send("334 ")
                initial = (await self.reader.readline()).decode().strip()
            _, user, password = base64.b64decode(initial).decode().split("\0")
        else:
            user, password = await self._auth_login(initial)
        self.up.logins.append((user, password))
        good = (user, password) == self.up.login
        await self.say("AUTH", argument, "235 2.7.0 welcome" if good else "535 5.7.8 no such login")

    async def _auth_bearer(self, mechanism: str, initial: str) -> None:
        """RFC 7628 §3, and Google's, which differs by its beginning and by the answer to an error."""
        said = base64.b64decode(initial).decode()
        assert said.endswith("\x01\x01")
        fields = said[:-2].split("\x01")
        if mechanism == "XOAUTH2":
            user = fields[0].removeprefix("user=")
        else:
            flag, name, rest = fields[0].split(",")
            assert flag == "n" and rest == "" and [f.split("=")[0] for f in fields[1:]] == ["host", "port", "auth"]
            user = name.removeprefix("a=").replace("=2C", ",").replace("=3D", "=")
        token = fields[-1].removeprefix("auth=Bearer ")
        self.up.logins.append((user, token))
        assert self.up.bearer is not None
        good = self.up.bearer(user, token)
        if not good:
            await self.send("334 " + base64.b64encode(b'{"status":"401","schemes":"bearer","scope":"mail"}').decode())
            answer = (await self.reader.readline()).decode().strip()
            assert answer == ("" if mechanism == "XOAUTH2" else "AQ==")
        await self.say("AUTH", mechanism, "235 2.7.0 welcome" if good else "535 5.7.8 no such token")

    async def _auth_login(self, initial: str) -> tuple[str, str]:
        if not initial:
            await self.send("334 VXNlcm5hbWU6")
            initial = (await self.reader.readline()).decode().strip()
        await self.send("334 UGFzc3dvcmQ6")
        secret = (await self.reader.readline()).decode().strip()
        return base64.b64decode(initial).decode(), base64.b64decode(secret).decode()

    async def mail(self, argument: str) -> None:
        text = await self.say("MAIL", argument, "250 2.1.0 ok")
        if text.startswith("250"):
            sender = argument.partition("<")[2].partition(">")[0]
            self.transaction = Transaction(self.number, sender, argument)
            self.up.transactions.append(self.transaction)

    async def rcpt(self, argument: str) -> None:
        if self.transaction is None:
            return await self.send("503 5.5.1 MAIL first")
        recipient = argument.partition("<")[2].partition(">")[0]
        self.transaction.recipients.append(recipient)
        text = await self.say("RCPT", recipient, "250 2.1.5 ok")
        if text.startswith("25"):
            self.transaction.accepted.append(recipient)

    async def data(self, argument: str) -> None:
        if self.transaction is None or not self.transaction.accepted:
            said = self.up.action("EMPTY", argument, "503 5.5.1 RCPT first")  # only who pipelines says DATA then
            await self.send(said)
            if self.transaction is not None and said.startswith("354"):
                self.transaction.wire = (await self.reader.readuntil(b".\r\n"))[:-3]
                self.transaction = None
                await self.send("554 5.5.1 no valid recipients")
            return
        transaction, self.transaction = self.transaction, None
        if not (await self.say("DATA", argument, "354 go on")).startswith("354"):
            return
        early: Early | None = self.up.action("BODY", transaction.sender, None)
        parts, size, tail = [], 0, b"\r\n"
        while True:
            if early is not None and size >= early.after:
                transaction.wire = b"".join(parts)
                transaction.answered = await self.do(early.action)
                if not early.keep_reading:
                    await asyncio.sleep(3600)
                swallow, early = True, None
            else:
                swallow = False
            data = await self.reader.read(4096 if early is not None else 1 << 16)
            if not data:
                transaction.wire = b"".join(parts)
                raise _Gone
            parts.append(data)
            size += len(data)
            tail = (tail + data)[-5:]
            if tail.endswith(b"\r\n.\r\n"):
                break
        transaction.wire, transaction.ended = b"".join(parts)[:-3], True
        if swallow or transaction.answered:
            return
        number = len(self.up.transactions)
        try:
            transaction.answered = await self.say("DOT", transaction.sender, f"250 2.0.0 Ok: queued as FAKE{number:05}")
            transaction.answered_at = time.monotonic()
        except _Gone as gone:
            transaction.answered = str(gone)
            raise

    async def rset(self, argument: str) -> None:
        self.transaction = None
        await self.say("RSET", argument, "250 2.0.0 ok")

    async def quit(self, argument: str) -> None:
        await self.say("QUIT", argument, "221 2.0.0 bye")
        await self.do(DROP)
