"""Drives the real session, intake and spool with byte strings, over a transport in memory, and judges what it says.

The judge knows nothing of how the session is built: it reads input and output side by side, one reply for one command.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from certificates import Authority
from front import Front, config

from relay import clock
from relay.listener import auth
from relay.listener.session import Session
from relay.listener.wire import MAX_LINE, MAX_PENDING
from relay.secrets import Reference
from relay.settings import Address, Listen, User
from relay.spool.sqlite import SqliteSpool

RENEW = 20_000  # inputs, before the spool is made anew
HERE = Address("127.0.0.1", 0)
REPLY = re.compile(rb"(?:(\d{3})-[ -~]*\r\n)*(\d{3}) [ -~]*\r\n")
READY = b"220 2.0.0 ready to start TLS\r\n"
TELLTALES = re.compile(rb"Traceback|Exception|Error\(|object at|\.py|<class|None,")


class Memory(asyncio.Transport):
    """What asyncio's loops give a protocol, without a socket."""

    _start_tls_compatible = True  # asks asyncio's `start_tls`

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.loop, self.out = loop, bytearray()
        self.reading, self.closing, self.lost = True, False, False
        self.protocol: Any = None

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        found: asyncio.BaseProtocol = self.protocol
        return found

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: Any) -> None:
        assert not self.lost
        if not self.closing:
            self.out += data

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.loop.call_soon(self._lose)

    abort = close

    def _force_close(self, error: Exception | None) -> None:  # for asyncio's SSLProtocol
        self.close()

    def _lose(self) -> None:
        self.lost = True
        self.protocol.connection_lost(None)

    def feed(self, data: bytes) -> None:
        if isinstance(self.protocol, asyncio.BufferedProtocol):
            while data and not self.closing:
                buffer = self.protocol.get_buffer(len(data))
                count = min(len(buffer), len(data))
                buffer[:count] = data[:count]
                data = data[count:]
                self.protocol.buffer_updated(count)
        else:
            self.protocol.data_received(data)


class Harness:
    """One event loop, one front, as many sessions as are asked for."""

    def __init__(self) -> None:
        self.before = auth.FAILED_AFTER, auth.PASSES, auth.KIB
        auth.FAILED_AFTER, auth.PASSES, auth.KIB = 1e-6, 1, 8
        memory = Path("/dev/shm")  # an fsync there costs nothing
        self.folder = Path(tempfile.mkdtemp(prefix="relay-fuzz-", dir=memory if memory.is_dir() else None))
        self.authority = Authority(self.folder)
        self.runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.done = 0
        self.accepted = 0
        self._front: Front | None = None

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.run(self._close())
        self.runner.close()
        shutil.rmtree(self.folder)
        auth.FAILED_AFTER, auth.PASSES, auth.KIB = self.before  # other tests of this process have the real ones

    def check(self, chunks: Sequence[bytes]) -> bytes:
        """One session; what it said. Raises AssertionError."""
        return self.runner.run(self.talk(chunks))

    def many(self, inputs: Callable[[], Sequence[bytes] | None]) -> int:
        """Until there is no more input; how many."""

        async def go() -> int:
            count = 0
            while (chunks := inputs()) is not None:
                try:
                    await self.talk(chunks)
                except AssertionError as error:
                    raise AssertionError(f"input {list(chunks)!r}: {error}") from error
                count += 1
            return count

        return self.runner.run(go())

    async def front(self) -> Front:
        if self._front is not None and self.done % RENEW == 0:
            await self._close()
        if self._front is None:
            spool = await SqliteSpool.open(self.folder / "spool" / "spool.db", clock.now())
            spool.reserve, spool.max_message_size = 0, 20_000
            users = {"shop": User("shop", Reference("plain", "right"), senders=("*@shop.example",))}
            tls = self.authority.tls()
            kinds = (("normalise", "repair"), ("reject", "reject"))
            listen = [Listen(a, HERE, line_endings=a, headers=b, tls=tls, auth="optional") for a, b in kinds]  # type: ignore[arg-type]
            self._front = Front(config(self.folder, *listen, users=users), spool)
            for door in self._front.doors:
                assert door.certificate is not None
                await door.certificate.refresh()
        return self._front

    async def _close(self) -> None:
        if self._front is not None:
            await self._front.spool.close()
            shutil.rmtree(self.folder / "spool")
            self._front = None

    async def talk(self, chunks: Sequence[bytes]) -> bytes:
        relay = await self.front()
        self.done += 1
        loop = asyncio.get_running_loop()
        transport, session = Memory(loop), Session(relay.doors[self.done % 2])
        transport.protocol = session
        session.connection_made(transport)
        whole = b"".join(chunks)
        for chunk in chunks:
            await self._until(lambda: transport.reading or transport.closing)
            if transport.closing:
                break
            transport.feed(chunk)
            assert len(session._buffer) <= MAX_PENDING + len(chunk)
        await self._until(lambda: transport.reading or transport.closing)
        if not transport.closing and not transport.protocol.eof_received():
            transport.close()
        await self._until(lambda: transport.lost and session._task is None)
        out = bytes(transport.out)
        judge(whole, out, relay.doors[self.done % 2].greeting)
        assert not relay.told("session_error"), relay.told("session_error")
        self.accepted += sum(kind == "accepted" for kind, _ in relay.events)
        relay.events.clear()
        relay.guard.logins._failures.clear()
        assert relay.nothing_left() and not session._buffer and session._incoming is None
        return out

    async def _until(self, condition: Callable[[], bool]) -> None:
        for _ in range(50):
            if condition():
                return
            await asyncio.sleep(0)
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, "it hangs"
            await asyncio.sleep(0.0002)


def judge(said: bytes, out: bytes, greeting: bytes) -> None:
    """One well-formed reply for each command, in order, whatever was said and however it was cut."""
    assert out.startswith(greeting), out[:100]
    out = out[len(greeting) :]
    secure = out.find(READY)
    if secure >= 0:
        out = out[: secure + len(READY)]  # what follows are TLS records
    assert not TELLTALES.search(out), out
    codes, place = [], 0
    while place < len(out):
        found = REPLY.match(out, place)
        assert found, f"no reply: {out[place : place + 80]!r}"
        lines = found[0].split(b"\r\n")[:-1]
        assert len({line[:3] for line in lines}) == 1 and all(len(line) <= 510 for line in lines), found[0]
        assert found[2][:1] in b"2345", found[0]
        codes.append(int(found[2]))
        place = found.end()
    _in_order(said, codes, secure >= 0)


def _in_order(said: bytes, codes: list[int], secure: bool) -> None:
    replies, place, in_data = iter(codes), 0, False
    code = 0
    while True:
        if in_data:
            end = (b"\r\n" + said[place:]).find(b"\r\n.\r\n")
            if end < 0:
                break
            place, in_data = place + end + 3, False
        else:
            end = said.find(b"\n", place)
            if end < 0 and len(said) - place <= MAX_LINE:
                break
            place = end + 1 if end >= 0 else len(said)
        code = next(replies, 0)
        assert code, f"no reply to what ends at {place}"
        in_data = code == 354
        if code in (221, 421) or (secure and code == 220):
            break
    rest = list(replies)
    assert rest in ([], [421]), f"replies that nobody asked for: {rest}"
