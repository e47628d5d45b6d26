"""IMAP servers that lie, flood, hang or hang up: bounded in memory and time, and nobody else waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from relay.config.load import default_config
from relay.feedback import imapwire
from relay.feedback.heard import Finding, Heard
from relay.feedback.imap import Poller
from relay.maillog import MailLog
from relay.returned import Kind
from relay.secrets import Reference
from relay.settings import Feedback, Mailbox, Tls
from tests.conftest import Spools

Lines = list[bytes]
Play = Callable[[str, bytes, asyncio.StreamWriter], Awaitable[bool]]  # verb, tag; whether it has answered
CAPABLE = b"* CAPABILITY IMAP4rev1 UIDPLUS MOVE STARTTLS AUTH=XOAUTH2 SASL-IR\r\n"


@contextlib.asynccontextmanager
async def server(play: Play, greeting: bytes = b"* OK ready\r\n") -> AsyncIterator[int]:
    """A usual server with one message, but for what `play` does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            writer.write(greeting)
            while line := await reader.readline():
                tag, _, rest = line.partition(b" ")
                words = rest.decode().split()
                verb = " ".join(words[:2]).upper() if words and words[0].upper() == "UID" else words[0].upper()
                if not await play(verb, tag, writer):
                    writer.write(USUAL.get(verb, b"") + tag + b" OK done\r\n")
                await writer.drain()
        writer.close()

    made = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield made.sockets[0].getsockname()[1]
    finally:
        made.close()


USUAL = {
    "CAPABILITY": CAPABLE,
    "SELECT": b"* 1 EXISTS\r\n* OK [UIDVALIDITY 7] ok\r\n* OK [UIDNEXT 6] ok\r\n",
    "UID SEARCH": b"* SEARCH 5\r\n",
    "UID FETCH": b"* 1 FETCH (UID 5 BODY[]<0> {6}\r\nhello!)\r\n",
}


async def flood(writer: asyncio.StreamWriter, piece: bytes, total: int) -> None:
    with contextlib.suppress(OSError):
        for _ in range(total // len(piece)):
            writer.write(piece)
            await writer.drain()


def at(verb: str, first: bytes = b"", piece: bytes = b"", total: int = 0, then: str = "") -> Play:
    """At one command: `first`, then so much of `piece`, then the usual end, nothing (`silent`), or a hang-up (`close`)."""

    async def play(said: str, tag: bytes, writer: asyncio.StreamWriter) -> bool:
        if said != verb:
            return False
        writer.write(first.replace(b"TAG", tag))
        if piece:
            await flood(writer, piece, total)
        if then == "close":
            writer.close()
        elif then == "":
            writer.write(tag + b" OK done\r\n")
        return True

    return play


class Looker:
    def __init__(self, poller: Poller, seen: list[bytes], events: list[tuple[str, dict[str, Any]]]) -> None:
        self.poller, self.seen, self.events = poller, seen, events

    @property
    def why(self) -> list[str]:
        return [fields["why"] for kind, fields in self.events if kind == "imap_failing"]


@pytest.fixture
async def looker(spools: Spools) -> Callable[..., Looker]:
    spool = await spools.open()

    def make(port: int, **change: Any) -> Looker:
        seen: list[bytes] = []
        events: list[tuple[str, dict[str, Any]]] = []
        log = MailLog(None)
        log.listeners.append(lambda kind, fields: events.append((kind, dict(fields))))
        config = replace(default_config({}), feedback=Feedback("b.example", b"k" * 16))

        async def read(raw: bytes) -> list[Finding]:
            seen.append(raw)
            return [Finding(Kind.AUTO_REPLY)]

        heard = Heard(spool, lambda: config, read, log, lambda *_: None)
        plain = Reference("plain", "u"), Reference("plain", "p")
        box = Mailbox(
            "box", Reference("plain", "127.0.0.1"), port, Tls("none"), *plain, every=5.0, max_message_size=20_000
        )
        return Looker(Poller(replace(box, **change), heard, log), seen, events)

    return make


async def test_a_usual_server(looker: Callable[..., Looker]) -> None:
    async with server(at("NOTHING")) as port:
        one = looker(port, then="delete")
        assert await one.poller.once() == 5.0
        assert one.seen == [b"hello!"] and one.why == []


MB = 1 << 20
HOSTILE = {
    "an endless line": at("SELECT", piece=b"x" * 65536, total=64 * MB),
    "an endless line of digits": at("UID SEARCH", b"* SEARCH ", b"1 " * 32768, 64 * MB),
    "endless lines": at("SELECT", piece=b"* 1 EXISTS\r\n" * 5000, total=64 * MB),
    "endless lines of a message": at("UID FETCH", b"* 1 FETCH (UID 5\r\n", b"x\r\n" * 20_000, 64 * MB),
    "endless empty lines": at("UID FETCH", b"* 1 FETCH (UID 5\r\n", b"\r\n" * 30_000, 64 * MB),
    "a literal that is huge": at("UID FETCH", b"* 1 FETCH (UID 5 BODY[]<0> {4000000000}\r\n", b"x" * 65536, 64 * MB),
    "a literal beyond all numbers": at("UID FETCH", b"* 1 FETCH (UID 5 BODY[] {" + b"9" * 12 + b"}\r\n", b"x", 1),
    "a number without end": at("UID FETCH", b"* 1 FETCH (UID 5 BODY[] {" + b"9" * 5000 + b"}\r\n", b"x", 1),
    "a literal that does not end": at("UID FETCH", b"* 1 FETCH (UID 5 BODY[]<0> {100}\r\nhal", then="silent"),
    "a literal where a login is": at("LOGIN", b"* OK {200000000}\r\n", b"x" * 65536, 64 * MB),
    "a literal in a capability": at("CAPABILITY", b"* CAPABILITY {99999999}\r\n", b"x" * 65536, 64 * MB),
    "nothing at all": at("LOGIN", then="silent"),
    "a hang-up": at("UID SEARCH", then="close"),
    "a tag that was never given": at("LOGIN", b"ZZZZ99 OK welcome\r\n", then="silent"),
    "no UIDVALIDITY": at("SELECT"),
    "octets of no language": at("SELECT", bytes(range(256)) * 20 + b"\r\n"),
    "a refusal": at("LOGIN", b"TAG NO [AUTHENTICATIONFAILED] no\r\n", then="silent"),
    "a farewell": at("SELECT", b"* BYE I am tired\r\n", then="close"),
}


@pytest.mark.parametrize("play", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_server_costs_little(
    looker: Callable[..., Looker], play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imapwire, "TIMEOUT", 1.0)
    monkeypatch.setattr(imapwire, "FETCH_TIMEOUT", 1.0)
    async with server(play) as port:
        one = looker(port)
        worst, stop = 0.0, asyncio.Event()

        async def beat() -> None:
            nonlocal worst
            while not stop.is_set():
                began = time.thread_time()
                await asyncio.sleep(0.01)
                worst = max(worst, time.thread_time() - began)

        beating = asyncio.create_task(beat())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.monotonic()
        assert await one.poller.once() >= 5.0
        took = time.monotonic() - began
        stop.set()
        await beating
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert len(one.why) == 1 and one.why[0], one.events
        assert one.seen == []
        assert took < 25 and worst < 0.5 and grown < 64 << 10, (took, worst, grown)


async def test_a_server_whose_numbers_are_wrong(looker: Callable[..., Looker]) -> None:
    """UIDs that are none, or not there: no message comes, and none is taken for another."""
    search = b"* SEARCH 5 5 0 99999999999 4294967296 7 junk 3\r\n* SEARCH 6\r\nTAG OK done\r\n"
    fetch = b"* 1 FETCH (UID 9 FLAGS ())\r\nTAG OK done\r\n"
    plays = [at("UID SEARCH", search, then="silent"), at("UID FETCH", fetch, then="silent")]

    async def play(said: str, tag: bytes, writer: asyncio.StreamWriter) -> bool:
        return any([await one(said, tag, writer) for one in plays])

    async with server(play) as port:
        one = looker(port)
        assert await one.poller.once() == 5.0
        assert one.seen == [] and one.why == []


async def test_one_message_at_which_a_server_lies_is_passed_over(looker: Callable[..., Looker]) -> None:
    async with server(HOSTILE["a literal that is huge"]) as port:
        one = looker(port)
        for _ in range(3):
            await one.poller.once()
        assert await one.poller.once() == 5.0
        assert [kind for kind, _ in one.events].count("imap_passed_over") == 1


async def test_one_message_at_which_a_server_goes_is_tried_again(looker: Callable[..., Looker]) -> None:
    """A connection that ends is nobody's fault: a report is not lost for it."""
    async with server(at("UID FETCH", then="close")) as port:
        one = looker(port)
        for _ in range(6):
            assert await one.poller.once() > 4
        assert "imap_passed_over" not in [kind for kind, _ in one.events]


@pytest.mark.parametrize(
    ("greeting", "play"),
    [
        (b"* PREAUTH welcome\r\n", at("NOTHING")),
        (b"* OK ready\r\n", at("CAPABILITY", b"* CAPABILITY IMAP4rev1\r\nTAG OK done\r\n", then="silent")),
        (b"* OK ready\r\n", at("STARTTLS", b"TAG OK go on\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n", then="silent")),
        (b"* OK ready\r\n", at("STARTTLS", b"TAG NO not today\r\n", then="silent")),
    ],
)
async def test_starttls_cannot_be_taken_away(looker: Callable[..., Looker], greeting: bytes, play: Play) -> None:
    logins: list[str] = []

    async def watched(said: str, tag: bytes, writer: asyncio.StreamWriter) -> bool:
        if said in ("LOGIN", "AUTHENTICATE"):
            logins.append(said)
        return await play(said, tag, writer)

    async with server(watched, greeting) as port:
        one = looker(port, tls=Tls("starttls"))
        await one.poller.once()
        assert logins == [] and len(one.why) == 1
        assert "no answer" not in one.why[0], one.why


async def test_a_token_that_is_refused(looker: Callable[..., Looker]) -> None:
    """The server says why by a challenge, which wants an answer before it refuses; the token is told to nobody."""

    class Fixed:
        async def tend(self) -> float:
            return 60.0

        async def token(self) -> str:
            return "the-token-itself-0123456789"

        async def after_refusal(self, token: str) -> bool:
            return False

        async def finish(self, timeout: float) -> None: ...

    pending: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"* OK ready\r\n")
        while line := await reader.readline():
            tag, _, rest = line.partition(b" ")
            if rest.startswith(b"CAPABILITY"):
                writer.write(CAPABLE + tag + b" OK done\r\n")
            elif rest.startswith(b"AUTHENTICATE"):
                writer.write(b"+ eyJzdGF0dXMiOiI0MDAifQ==\r\n")
                pending.append(tag)
            elif line == b"\r\n" and pending:
                writer.write(pending.pop() + b" NO the-token-itself-0123456789 is bad\r\n")
        writer.close()

    made = await asyncio.start_server(serve, "127.0.0.1", 0)
    one = looker(made.sockets[0].getsockname()[1])
    one.poller._tokens = Fixed()  # type: ignore[assignment]
    await one.poller.once()
    made.close()
    assert one.why == ["AUTHENTICATE: NO *** is bad"]


async def test_a_folder_that_is_another_one_each_time_is_not_read_without_a_pause(
    looker: Callable[..., Looker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.feedback.imap.ROUND", 3)
    uidvalidity = 0

    async def play(verb: str, tag: bytes, writer: asyncio.StreamWriter) -> bool:
        nonlocal uidvalidity
        if verb == "SELECT":
            uidvalidity += 1
            writer.write(b"* OK [UIDVALIDITY %d] ok\r\n%s OK done\r\n" % (uidvalidity, tag))
        elif verb == "UID SEARCH":
            writer.write(b"* SEARCH 1 2 3 4 5 6 7 8\r\n%s OK done\r\n" % tag)
        return verb in ("SELECT", "UID SEARCH")

    async with server(play) as port:
        made = looker(port, then="keep")
        pauses = [await made.poller.once() for _ in range(4)]
    assert pauses == [0.0, 5.0, 5.0, 5.0] and len(made.seen) == 12
