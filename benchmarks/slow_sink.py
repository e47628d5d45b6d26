#!/usr/bin/env python3
"""An upstream far away, in a process of its own: STARTTLS, PIPELINING, and whatever arrives is read a round trip late.

    python -m benchmarks.slow_sink PORT CERTIFICATE ROUNDTRIP     prints `mesgs=N` as smtp-sink does

The delay is below TLS, so the handshake has its round trips too. Its messages are counted and dropped.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections import deque
from typing import cast

SHOW_EVERY = 0.02  # seconds
_OFFERS = (b"PIPELINING", b"8BITMIME", b"SIZE 50000000", b"ENHANCEDSTATUSCODES")


class Counter:
    messages = 0


class Session(asyncio.Protocol):
    def __init__(self, context: ssl.SSLContext, delay: float, counter: Counter) -> None:
        self._context, self._delay, self._counter = context, delay, counter
        self._late: deque[bytes] = deque()
        self._buffer = bytearray()
        self._inside = False  # between 354 and the final dot
        self._tls: ssl.SSLObject | None = None
        self._greeted = False  # the handshake has ended
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by descent
        asyncio.get_running_loop().call_later(self._delay, self._say, b"220 upstream ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        # A queue: two timers of one moment might fire in any order.
        self._late.append(data)
        asyncio.get_running_loop().call_later(self._delay, self._arrived)

    def _arrived(self) -> None:
        data = self._late.popleft()
        if self._transport.is_closing():
            return
        try:
            self._buffer += self._decrypted(data) if self._tls else data
        except ssl.SSLError:
            self._transport.abort()
            return
        if replies := b"".join(self._replies()):
            self._say(replies)

    def _decrypted(self, data: bytes) -> bytes:
        assert self._tls is not None
        self._in.write(data)
        plain = b""
        try:
            if not self._greeted:
                self._tls.do_handshake()
                self._greeted = True
            while part := self._tls.read(1 << 16):
                plain += part
        except ssl.SSLWantReadError:
            return plain
        finally:
            self._flush()
        return plain  # the client has closed its side

    def _flush(self) -> None:
        if out := self._out.read():
            self._transport.write(out)

    def _say(self, data: bytes) -> None:
        if self._tls is None:
            self._transport.write(data)
        else:
            self._tls.write(data)
            self._flush()

    def _replies(self) -> list[bytes]:
        """To everything that has arrived."""
        said: list[bytes] = []
        while True:
            end = self._buffer.find(b"\r\n.\r\n" if self._inside else b"\r\n")
            if end < 0:
                return said
            if self._inside:
                del self._buffer[: end + 5]
                self._inside = False
                self._counter.messages += 1
                said.append(b"250 2.0.0 kept\r\n")
                continue
            verb = bytes(self._buffer[:4]).upper()
            del self._buffer[: end + 2]
            if verb == b"STAR":
                self._say(b"220 2.0.0 go on\r\n")
                self._tls = self._context.wrap_bio(self._in, self._out, server_side=True)
                self._buffer.clear()
                return said
            said.append(self._reply(verb))

    def _reply(self, verb: bytes) -> bytes:
        match verb:
            case b"EHLO":
                offers = _OFFERS if self._tls else (*_OFFERS, b"STARTTLS")
                return b"".join(b"250-%s\r\n" % o for o in (b"upstream", *offers)) + b"250 HELP\r\n"
            case b"DATA":
                self._inside = True
                return b"354 go on\r\n"
            case b"QUIT":
                asyncio.get_running_loop().call_soon(self._transport.close)
                return b"221 2.0.0 bye\r\n"
            case _:
                return b"250 2.0.0 ok\r\n"


async def main(port: int, certificate: str, delay: float) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    counter, shown = Counter(), 0
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Session(context, delay, counter), "127.0.0.1", port, backlog=512)
    while True:
        await asyncio.sleep(SHOW_EVERY)
        if counter.messages != shown:
            shown = counter.messages
            sys.stdout.write(f"mesgs={shown}\r")
            sys.stdout.flush()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
