"""The cells of a fault matrix: a row is a stage of an upstream session, a column a kind of fault, a cell an account of one
relay with an upstream of its own; and what is expected in each.

That is derived here from docs/flow.md, section 5, without asking the code that is tested.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import trustme
import uvloop
from fakes import DEAF, DROP, RESET, Also, Early, Endless, Upstream
from rig import write_config

SLOW = "  default: {retry: {schedule: [1h], give_up: 1d}}"
FLOOD = 128 << 20  # bytes, of which the relay keeps next to nothing

# -- the rule: docs/flow.md, section 5


class Who(Enum):
    """Who suffers."""

    NOBODY = "nobody"
    RECIPIENT = "recipient"
    MESSAGE = "message"
    HOP = "next hop"
    ACCOUNT = "account"
    DOUBT = "nobody knows"


ROWS = {
    "connect": Who.HOP, "banner": Who.HOP, "ehlo": Who.HOP, "starttls": Who.HOP, "handshake": Who.HOP,
    "auth": Who.ACCOUNT,
    "mail": Who.MESSAGE, "rcpt": Who.RECIPIENT, "data": Who.MESSAGE, "body": Who.MESSAGE, "dot": Who.MESSAGE,
    "rset": Who.NOBODY, "quit": Who.NOBODY,
}  # fmt: skip
ORDER = list(ROWS)


def suffers(stage: str, kind: Kind) -> Who:
    if ROWS[stage] is Who.NOBODY:
        return Who.NOBODY
    if kind.name == "two replies" and stage in ("starttls", "dot"):
        return (
            Who.NOBODY
        )  # the reply is good; what follows 220 is dropped (RFC 3207 §6), after the dot the session ends
    if not kind.code:
        return Who.DOUBT if stage == "dot" else Who.HOP
    if ROWS[stage] in (Who.MESSAGE, Who.RECIPIENT):
        return {421: Who.HOP, 530: Who.ACCOUNT}.get(kind.code, ROWS[stage])
    return ROWS[stage]


@dataclass(frozen=True)
class Kind:
    """A column. `code` 0: whatever it says is no reply. `says`: what an operator reads of it."""

    name: str
    action: Any
    code: int = 0
    says: str = ""
    elsewhere: tuple[tuple[str, str], ...] = ()  # (stage, what it says there instead)
    stages: tuple[str, ...] = tuple(s for s in ORDER if s not in ("connect", "handshake"))


NO_REPLY = tuple(s for s in ORDER if s != "connect")
KINDS = [
    # Of a reply only its code counts; its text is a stranger's.
    Kind("4xx", b"451 4.3.0 later\x00\x1b[2J\xff\xed\xa0\x80\r\n", 451, "451 4.3.0 later"),
    Kind("5xx", b"554-5.7.1 never\r\n554 5.7.1 ever\r\n", 554, "554 5.7.1 never ever"),
    Kind("421", "421 4.3.2 closing", 421, "421 4.3.2 closing"),
    Kind("530", "530 5.7.0 log in first", 530, "530 5.7.0 log in first"),
    Kind("no code", b"what?\r\n", 0, "malformed reply", (("handshake", "TLS failed"),), NO_REPLY),
    Kind("NUL", b"\x00\x00\x00 \x00\r\n", 0, "malformed reply"),
    Kind("UTF-8", "２５０ ｏｋ".encode() + b"\r\n", 0, "malformed reply"),
    Kind("no such code", b"999 what\r\n", 0, "malformed reply"),
    Kind("code zero", b"000 what\r\n", 0, "malformed reply"),
    Kind("endless line", Endless(b"x" * 1024, FLOOD, b"250 "), 0, "too long"),
    Kind("endless lines", Endless(b"250-x\r\n", FLOOD), 0, "too long"),
    Kind("two replies", Also(b"554 5.0.0 whose is this?\r\n"), 0, "more than one reply", (("body", "in the middle"),)),
    Kind("hang", DEAF, 0, "timed out", (), tuple(ORDER)),
    Kind("drop", DROP, 0, "", (), tuple(ORDER)),
    Kind("reset", RESET, 0, "", (), tuple(ORDER)),
    Kind("refused", None, 0, "Connection refused", (), ("connect",)),
]  # fmt: skip

# -- the recipients: what an upstream that is well says to each, by the beginning of the name; "hit" meets a fault at RCPT

GOOD, BUSY, FULL, NOBODY = "250 2.1.5 ok", "450 4.2.1 busy", "552 5.5.3 too many", "550 5.1.1 nobody"
SAID = {"ok": GOOD, "busy": BUSY, "full": FULL, "no": NOBODY}
MESSAGES = {
    "first": ("ok-1", "no-2", "ok-3"),
    "second": ("no-1", "busy-2-hit", "full-3"),
    "third": ("ok-1", "ok-2-hit", "busy-3"),
}


@dataclass(frozen=True)
class Fate:
    """What is expected of a recipient while the fault lasts."""

    state: str
    says: str
    attempts: int = 1
    in_doubt: bool = False
    hop: bool = False


def fates(stage: str, kind: Kind, message: str, tripped: bool, pipelining: bool) -> list[Fate]:
    """Of each recipient of a message, in order. `tripped`: the account rests already."""
    who, said = suffers(stage, kind), [SAID[name.partition("-")[0]] for name in MESSAGES[message]]
    if tripped:
        return [Fate("queued", "", 0)] * 3
    own = [Fate("delivered", "250") if s == GOOD else Fate("failed" if s == NOBODY else "deferred", s) for s in said]
    if who is Who.NOBODY or message == "first" or (ORDER.index(stage) > ORDER.index("rcpt") and GOOD not in said):
        return own
    hard = who in (Who.MESSAGE, Who.RECIPIENT) and kind.code >= 500
    says = dict(kind.elsewhere).get(stage, kind.says)
    fate = Fate("failed" if hard else "deferred", says, 1, who is Who.DOUBT, who in (Who.HOP, Who.DOUBT))
    if ORDER.index(stage) < ORDER.index("rcpt"):
        return [fate] * 3
    if stage == "rcpt":
        if who is Who.RECIPIENT:
            return [own[0], fate, own[2]]
        if kind.name == "two replies" and pipelining:
            return [fate] * 3  # nobody knows which of the replies was one too many
        return [own[0] if said[0] != GOOD else fate, fate, fate]
    return [fate if s == GOOD else o for s, o in zip(said, own, strict=True)]


# -- a cell


class BlackHole:
    """A port where connecting hangs: nobody accepts, and the queue of those who wait is full."""

    def __init__(self, port: int = 0) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", port))
        self._listener.listen(0)
        self.port = self._listener.getsockname()[1]
        self._waiting = [socket.socket() for _ in range(4)]
        for sock in self._waiting:
            sock.setblocking(False)
            sock.connect_ex(self._listener.getsockname())

    def close(self) -> None:
        for sock in (*self._waiting, self._listener):
            sock.close()


@dataclass
class Cell:
    """One account with its upstream."""

    stage: str
    kind: Kind
    up: Upstream
    pipelining: bool
    hole: BlackHole | None = None

    @property
    def name(self) -> str:
        return f"{self.kind.name.lower().replace(' ', '-')}-{self.stage}"

    @property
    def expected(self) -> dict[str, Fate]:
        """What becomes of every recipient while the fault lasts."""
        found: dict[str, Fate] = {}
        tripped = False
        for message in MESSAGES:
            fate = fates(self.stage, self.kind, message, tripped, self.pipelining)
            found |= dict(zip(self.recipients(message), fate, strict=True))
            met = message != "first" and any(f.says not in SAID.values() for f in fate)
            tripped = tripped or (met and suffers(self.stage, self.kind) is Who.ACCOUNT)
        return found

    def recipients(self, message: str) -> tuple[str, ...]:
        return tuple(f"{name}.{message}@{self.name}.example" for name in MESSAGES[message])

    async def fall_ill(self) -> None:
        """The fault begins."""
        action, script = self.kind.action, self.up.script
        if self.stage == "connect" and self.kind.name in ("refused", "hang"):
            await self.up.stop()
            if self.kind.name == "hang":
                self.hole = BlackHole(self.up.port)
            return
        if self.stage == "rcpt":
            script["RCPT"] = lambda r: action if "hit" in r else answer(r)
        elif self.stage == "body":
            script["BODY"] = Early(50_000, b"250 ok\r\n554 5.0.0 two\r\n" if isinstance(action, Also) else action)
        elif self.stage == "ehlo":
            script["EHLO"] = script["HELO"] = action
        else:
            script["BANNER" if self.stage == "connect" else self.stage.upper()] = action
        if ORDER.index(self.stage) < ORDER.index("mail"):
            self.up.cut()  # so that a new session is opened

    async def recover(self) -> None:
        """The upstream is well again, and takes everybody."""
        self.up.script = {}
        self.close()
        if self.stage == "connect" and self.kind.name in ("refused", "hang"):
            await self.up.start()

    def close(self) -> None:
        if self.hole is not None:
            self.hole.close()


def answer(recipient: str) -> str:
    """To RCPT, of an upstream that is well."""
    return SAID[recipient.partition("-")[0]]


def mails(cells: Iterable[Cell], *messages: str) -> list[tuple[str, tuple[str, ...], bytes]]:
    """To all cells. What is to fail in the middle of a body is larger than the buffers on its way."""

    def text(cell: Cell, message: str) -> bytes:
        lines = 110_000 if (cell.stage, message) == ("body", "third") else 10
        return b"Subject: t\r\n\r\n" + (b"." + b"y" * 70 + b"\r\n") * lines

    return [("app@example.com", c.recipients(m), text(c, m)) for c in cells for m in messages]


# -- the grounds: each cell is run on both event loops, in clear and over TLS with a login, with and without PIPELINING


@dataclass(frozen=True)
class Ground:
    name: str
    loop: Callable[[], asyncio.AbstractEventLoop]
    secure: bool
    pipelining: bool


GROUNDS = [
    Ground("asyncio-clear-pipelining", asyncio.new_event_loop, False, True),
    Ground("asyncio-tls", asyncio.new_event_loop, True, False),
    Ground("uvloop-clear", uvloop.new_event_loop, False, False),
    Ground("uvloop-tls-pipelining", uvloop.new_event_loop, True, True),
]
EXTENSIONS = ("SIZE 100000000", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")


@contextlib.asynccontextmanager
async def cells_of(
    kinds: Iterable[Kind], ground: Ground, folder: Path, classes: str = SLOW
) -> AsyncIterator[tuple[Path, list[Cell]]]:
    """An upstream for each stage that the faults can meet, all well, and the configuration of a relay before them."""
    context, rest = None, "connections: 1, messages_per_connection: 3, tls: none"
    if ground.secure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority().issue_cert("127.0.0.1").configure_cert(context)
        authority().cert_pem.write_to_path(folder / "ca.pem")
        (folder / "pw").write_text("secret")
        tls = f"{{mode: starttls, ca: {folder}/ca.pem}}"
        rest = rest.replace("none", f"{tls}, username: user, password: {{file: {folder}/pw}}")
    async with contextlib.AsyncExitStack() as stack:
        cells = []
        for kind in kinds:
            for stage in kind.stages:
                if not ground.secure and stage in ("starttls", "handshake", "auth"):
                    continue
                up = Upstream(
                    {"RCPT": answer}, tls=context, login=("user", "secret") if ground.secure else None,
                    extensions=(*EXTENSIONS, "PIPELINING") if ground.pipelining else EXTENSIONS,
                    small_window=stage == "body",
                )  # fmt: skip
                cells.append(Cell(stage, kind, await stack.enter_async_context(up), ground.pipelining))
                stack.callback(cells[-1].close)
        accounts = {c.name: f"port: {c.up.port}, {rest}" for c in cells}
        routes = "\n".join(f'  - {{match: {{recipient: "*@{c.name}.example"}}, via: {c.name}}}' for c in cells)
        yield write_config(folder, accounts, routes=routes, classes=classes), cells


@cache
def authority() -> trustme.CA:
    """Its keys take a while to make."""
    return trustme.CA()
