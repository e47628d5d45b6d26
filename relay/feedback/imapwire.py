"""One session with an IMAP server (RFC 3501), by aioimaplib, within bounds. Imported late: only who reads mailboxes has the library.

The library's parser calls itself for each line of a segment, joins lines that have not ended with each that comes, and takes a
literal of any size; it tells nobody who waits that the connection has gone. So it is fed here line by line and piece by piece,
and what one command may bring is bounded in bytes, lines and seconds, whatever the server says.
"""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from aioimaplib.aioimaplib import AUTH, NONAUTH, AioImapException, Command, IMAP4ClientProtocol, Response, quoted

from relay.reply import clean

T = TypeVar("T")

TIMEOUT = 30.0  # seconds for one command
FETCH_TIMEOUT = 120.0  # for one message
MOST_LINE = 4 << 20  # bytes: the answer to a search is one line, of a folder with half a million messages
MOST_LINES = 2000  # of one command
FETCH_LINES = 200  # of a fetch, of which the library looks at all lines with each that comes
MOST_BYTES = 256 << 10  # of one command that brings nothing large
MOST_UIDS = 500_000
MAX_UID = 2**32 - 1

_LITERAL = re.compile(rb"\{(\d{1,12})\+?\}\r\n\Z")
_NUMBERS = re.compile(rb"[0-9 ]*")


class ImapError(Exception):
    """What went wrong; the text says what, and holds no secret."""


class Stumbled(ImapError):
    """About one message: the session is over, and another message may do."""


class Wire(IMAP4ClientProtocol):  # type: ignore[misc]
    """The library's protocol, fed within bounds. `lost` has the reason once the session is over."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop)
        self.lost: asyncio.Future[str] = loop.create_future()
        self._waiting = bytearray()
        self._looked = 0  # so much of it holds no end of a line
        self._literal = 0  # bytes of one that are still to come
        self.broke = False  # it was we who ended it, for what the server said
        self.sealed = False  # what comes now must come within TLS
        self.allow(MOST_BYTES)

    def allow(self, size: int, lines: int = MOST_LINES) -> None:
        """So much the server may say from now on."""
        self._bytes, self._lines = size, lines

    def data_received(self, data: bytes) -> None:
        if self.lost.done():
            return
        self._bytes -= len(data)
        self._waiting += data
        try:
            self._check(self._bytes >= 0, "it says more than was asked for")
            while self._waiting and (piece := self._next()):
                # What came in clear must not be taken for what comes within TLS, in the segment of the OK or behind it.
                done = self.sealed and self.pending_sync_command is None
                self._check(not done, "it goes on in clear after STARTTLS")
                super().data_received(piece)
        except (
            AioImapException,
            ImapError,
            ValueError,
            LookupError,
            AttributeError,
            TypeError,
            RecursionError,
        ) as error:
            self.broke = True
            self.over(f"it does not speak IMAP: {clean(str(error)) or type(error).__name__}")

    def _next(self) -> bytes:
        """A whole line, or what there is of a literal; empty: wait."""
        if self._literal:
            piece = bytes(self._waiting[: self._literal])
            self._literal -= len(piece)
        else:
            end = self._waiting.find(b"\r\n", self._looked)
            if end < 0:
                self._check(len(self._waiting) <= MOST_LINE, "a line does not end")
                self._looked = max(0, len(self._waiting) - 1)
                return b""
            piece = bytes(self._waiting[: end + 2])
            self._looked = 0
            self._lines -= 1
            self._check(self._lines >= 0, "it says more lines than were asked for")
            if found := _LITERAL.search(piece[-20:]):
                self._literal = int(found[1])
                self._check(self._literal <= self._bytes + len(self._waiting), "a literal is larger than was asked for")
        del self._waiting[: len(piece)]
        return piece

    @staticmethod
    def _check(good: bool, what: str) -> None:
        if not good:
            raise ImapError(what)

    async def welcome(self, command: bytes) -> None:
        """The library runs it as a task that nobody awaits."""
        try:
            await super().welcome(command)
        except (AioImapException, ValueError, LookupError) as error:
            self.over(f"its greeting is no good: {clean(str(error))}")

    def _continuation(self, line: bytes) -> None:
        if self.pending_sync_command is not None and self.pending_sync_command.name == "AUTHENTICATE":
            self.transport.write(b"\r\n")  # what it says of a token that it refuses; the refusal comes after our answer
        else:
            super()._continuation(line)

    def connection_lost(self, error: Exception | None) -> None:
        self.over(str(error) if error else "it closed the connection")

    def over(self, why: str) -> None:
        """The first reason stays. Who waits for an answer has it: the library would let him wait, and hold its lock."""
        if not self.lost.done():
            self.lost.set_result(why)
        library: Any = self
        waiting = [library.pending_sync_command, *library.pending_async_commands.values()]
        library.pending_sync_command, library.pending_async_commands = None, {}
        for command in filter(None, waiting):
            command.close(why.encode(), "KO")
        if self.transport is not None:
            self.transport.abort()


class Session:
    """`open`, `login`, `select`, then the rest; `close` in any case. Raises ImapError, OSError, TimeoutError."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    @classmethod
    async def open(cls, host: str, port: int, mode: str, context: ssl.SSLContext | None) -> Session:
        """`mode`: implicit, starttls, none."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(TIMEOUT):
            implicit = context if mode == "implicit" else None
            transport, wire = await loop.create_connection(Wire, host, port, ssl=implicit)
        made = cls(wire)
        try:
            await made._ask(wire.wait(f"{AUTH}|{NONAUTH}"))
            if mode == "starttls":
                await made._start_tls(transport, context, host)
        except BaseException:
            made.close()
            raise
        return made

    async def _start_tls(self, transport: Any, context: ssl.SSLContext | None, host: str) -> None:
        wire = self.wire
        if wire.state != NONAUTH:  # RFC 9051 §7.1.4: PREAUTH in clear would take STARTTLS from us
            raise ImapError("it greets with PREAUTH, which leaves no room for STARTTLS")
        if "STARTTLS" not in wire.capabilities:
            raise ImapError("it does not offer STARTTLS")
        assert context is not None
        command = Command("STARTTLS", wire.new_tag(), loop=wire.loop)
        wire.sealed = True
        await self._ask(wire.execute(command), "STARTTLS")
        loop = asyncio.get_running_loop()
        made = await loop.start_tls(
            transport, wire, context, server_hostname=host, ssl_handshake_timeout=TIMEOUT, ssl_shutdown_timeout=5.0
        )
        if made is None:
            raise ImapError("it closed the connection in the handshake")
        wire.transport, wire.sealed = made, False
        await self._ask(wire.capability())

    async def login(self, username: str, password: str) -> None:
        if "LOGINDISABLED" in self.wire.capabilities:
            raise ImapError("it takes no login by password here (LOGINDISABLED)")
        await self._ask(self.wire.login(quoted(username), password), "LOGIN")
        await self._ask(self.wire.capability())

    async def bearer(self, username: str, token: str) -> None:
        """XOAUTH2."""
        if "AUTH=XOAUTH2" not in self.wire.capabilities:
            raise ImapError("it does not offer XOAUTH2")
        await self._ask(self.wire.xoauth2(username, token), "AUTHENTICATE")
        await self._ask(self.wire.capability())

    async def select(self, folder: str) -> int:
        """Its UIDVALIDITY."""
        response = await self._ask(self.wire.select(_name(folder)), f"SELECT {folder}")
        for line in response.lines:
            if found := re.search(rb"\[UIDVALIDITY (\d{1,10})\]", bytes(line)):
                return int(found[1])
        raise ImapError(f"it tells no UIDVALIDITY of {folder}")

    async def after(self, uid: int) -> list[int]:
        """The UIDs behind this one, in order."""
        search = self.wire.search(f"UID {uid + 1}:*", charset=None, by_uid=True)
        response = await self._ask(search, "SEARCH", size=MOST_LINE)
        words: list[bytes] = []
        for line in response.lines[:-1]:
            if _NUMBERS.fullmatch(bytes(line)):
                words += bytes(line).split()
        if len(words) > MOST_UIDS:
            raise ImapError(f"the folder has more than {MOST_UIDS} messages that were not looked at; move some away")
        # `*` is the last one there is, even if it is before what was asked for (RFC 3501 §6.4.8).
        return sorted({n for word in words if len(word) <= 10 and uid < (n := int(word)) <= MAX_UID})

    async def fetch(self, uid: int, most: int) -> bytes | None:
        """The first `most` bytes of a message; None: it is gone. It stays unread (PEEK). Raises Stumbled."""
        try:
            asked = self.wire.uid("FETCH", str(uid), f"(UID BODY.PEEK[]<0.{most}>)", timeout=FETCH_TIMEOUT)
            response = await self._ask(asked, size=most + MOST_BYTES, lines=FETCH_LINES, timeout=FETCH_TIMEOUT)
        except ImapError as error:
            if self.wire.broke:
                raise Stumbled(str(error)) from None
            raise
        if response.result != "OK":
            raise Stumbled(f"FETCH: {response.result} {clean(_text(response))[:300]}")
        return next((bytes(line)[:most] for line in response.lines if isinstance(line, bytearray)), None)

    async def remove(self, uids: Sequence[int]) -> bool:
        """False: they are marked as deleted only, for the server can't expunge some alone (UIDPLUS, RFC 4315)."""
        said = ",".join(map(str, uids))
        await self._ask(self.wire.uid("STORE", said, "+FLAGS.SILENT", r"(\Deleted)"), "STORE")
        if "UIDPLUS" not in self.wire.capabilities:
            return False
        await self._ask(self.wire.uid("EXPUNGE", said), "EXPUNGE")
        return True

    async def move(self, uids: Sequence[int], folder: str) -> bool:
        """As `remove`, once they are there too; the folder is made where it is missing."""
        said, name = ",".join(map(str, uids)), _name(folder)
        moves = "MOVE" in self.wire.capabilities  # RFC 6851
        try:
            await self._put(moves, said, name)
        except ImapError as error:
            if "TRYCREATE" not in str(error):  # RFC 3501 §7.1
                raise
            await self._ask(self.wire.simple_command("CREATE", name), f"CREATE {folder}")
            await self._put(moves, said, name)
        return moves or await self.remove(uids)

    async def _put(self, moves: bool, uids: str, name: str) -> None:
        verb = self.wire.move if moves else self.wire.copy
        await self._ask(verb(uids, name, by_uid=True), "MOVE" if moves else "COPY")

    async def logout(self) -> None:
        await self._ask(self.wire.logout())

    def close(self) -> None:
        self.wire.over("closed")

    async def _ask(
        self,
        work: Coroutine[Any, Any, T],
        what: str = "",
        *,
        size: int = MOST_BYTES,
        lines: int = MOST_LINES,
        timeout: float | None = None,
    ) -> T:
        """Its answer, unless the session ends before. `what`: a command that must be answered OK."""
        self.wire.allow(size, lines)
        task = asyncio.ensure_future(work)
        lost: asyncio.Future[Any] = self.wire.lost
        try:
            timeout = TIMEOUT if timeout is None else timeout
            await asyncio.wait((task, lost), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not lost.done() and not task.done():
                self.wire.over(f"no answer within {timeout:.0f} s")
            if lost.done():
                raise ImapError(lost.result())
            found = task.result()
        except (AioImapException, ValueError, LookupError) as error:
            raise ImapError(clean(str(error)) or type(error).__name__) from None
        finally:
            if not task.done():
                self.wire.over("nobody waits for its answer")
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if what and isinstance(found, Response) and found.result != "OK":
            raise ImapError(f"{what}: {found.result} {clean(_text(found))[:300]}")
        return found


def _text(response: Response) -> str:
    return bytes(response.lines[-1]).decode("utf-8", "replace") if response.lines else ""


def _name(folder: str) -> str:
    """A folder's name as it goes over the wire: quoted, in modified UTF-7 (RFC 3501 §5.1.3)."""
    out: list[str] = []
    for run in re.findall(r"[ -~]+|[^ -~]+", folder):
        if run.isascii():
            out.append(run.replace("&", "&-"))
        else:
            packed = base64.b64encode(run.encode("utf-16-be")).decode("ascii").rstrip("=").replace("/", ",")
            out.append(f"&{packed}-")
    return str(quoted("".join(out)))
