"""Simulated MX hosts in one process: at 127.0.1.1, 127.0.1.2, … , all at one port, of which some are slow or dead.

    python -m benchmarks.mx_hosts PORT KIND...     a kind for each host: live, slow, refuses, silent or blackhole

Prints `ready`, then a line of JSON for each message that arrived, with the time by CLOCK_MONOTONIC, which is the same for all
processes; and at the end (SIGTERM) one for each host with its connections. Nothing is kept: `relay sink`, which keeps each message
as a file, is busier with one than the relay, and would be what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Sequence
from typing import cast

from tests.ports import blackhole

QUICKEST, SLOWEST = 0.020, 0.050  # seconds that a live host takes at the final dot: each its own, evenly spread
SLUGGISH = 2.0  # of a slow one, there and before its greeting
KINDS = ("live", "slow", "refuses", "silent", "blackhole")
SHOW_EVERY = 0.02  # seconds
_END = b"\r\n.\r\n"


def address(number: int) -> str:
    """Of host 1, 2, …"""
    return f"127.0.1.{number}"


class Host:
    """What is known of one; `said` are the lines that are to be printed, of all of them."""

    def __init__(self, number: int, kind: str, count: int, said: list[str]) -> None:
        self.number, self.kind, self._said = number, kind, said
        self.name = f"mx{number:02}.lab.example".encode()
        self.pause = SLUGGISH if kind == "slow" else QUICKEST + (SLOWEST - QUICKEST) * number / count
        self.connections = self.open = self.most = 0

    def came(self) -> None:
        self.connections += 1
        self.open += 1
        self.most = max(self.most, self.open)

    def tell(self, **fields: object) -> None:
        self._said.append(json.dumps({"host": self.number, **fields}))


class Session(asyncio.Protocol):
    """The least of SMTP with PIPELINING; what comes while it waits at a dot, waits too."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._buffer = bytearray()
        self._recipients: list[str] = []
        self._inside = False  # between 354 and the final dot
        self._waits = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by descent
        self._host.came()
        if self._host.kind != "silent":
            self._say_later(
                self._host.pause if self._host.kind == "slow" else 0.0, b"220 " + self._host.name + b" ESMTP"
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._host.open -= 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._work()

    def _say_later(self, seconds: float, line: bytes) -> None:
        self._waits = True
        asyncio.get_running_loop().call_later(seconds, self._go_on, line)

    def _go_on(self, line: bytes) -> None:
        """A message whose client has gone meanwhile has arrived all the same: it was taken."""
        if self._inside:
            self._inside = False
            self._host.tell(at=time.monotonic(), recipients=self._recipients)
        self._waits = False
        if not self._transport.is_closing():
            self._transport.write(line + b"\r\n")
            self._work()

    def _work(self) -> None:
        """Answers all that has come, in one write."""
        said: list[bytes] = []
        while not self._waits:
            end = self._buffer.find(_END if self._inside else b"\r\n")
            if end < 0:
                break
            if self._inside:
                del self._buffer[: end + len(_END)]
                self._say_later(self._host.pause, b"250 2.0.0 taken")
            else:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 2]
                said.append(self._reply(line))
        if said:
            self._transport.write(b"".join(said))

    def _reply(self, line: bytes) -> bytes:
        match line[:4].upper():
            case b"EHLO":
                return b"250-%s\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n" % self._host.name
            case b"MAIL":
                self._recipients = []
            case b"RCPT":
                self._recipients.append(line.partition(b"<")[2].partition(b">")[0].decode())
            case b"DATA":
                self._inside = True
                return b"354 go on\r\n"
            case b"QUIT":
                asyncio.get_running_loop().call_soon(self._transport.close)
                return b"221 2.0.0 bye\r\n"
        return b"250 2.0.0 ok\r\n"


async def serve(port: int, kinds: Sequence[str]) -> None:
    said: list[str] = ["ready"]
    hosts = [Host(number, kind, len(kinds), said) for number, kind in enumerate(kinds, 1)]
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    with contextlib.ExitStack() as holes:
        for host in hosts:
            if host.kind == "blackhole":
                holes.enter_context(blackhole(address(host.number), port))
            elif host.kind != "refuses":
                await loop.create_server(lambda host=host: Session(host), address(host.number), port, backlog=512)
        while not ended.is_set():
            _show(said)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), SHOW_EVERY)
    for host in hosts:
        host.tell(connections=host.connections, most=host.most)
    _show(said)


def _show(said: list[str]) -> None:
    if said:
        print(*said, sep="\n", flush=True)
        said.clear()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(int(sys.argv[1]), sys.argv[2:]))
