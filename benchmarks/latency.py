"""How long one message takes at a low, steady rate: until the application has its 250, and from there until the upstream
has the final dot."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Sequence

from benchmarks.loads import RECIPIENT, SENDER, Stuck
from benchmarks.smtp import Client, Refused, message

RATE = 100.0  # messages a second, a new connection each
SIZE = 4096
PATIENCE = 30.0  # seconds for the last ones to arrive


class Upstream:
    """An SMTP server in this process that notes when it has read a message's final dot."""

    def __init__(self) -> None:
        self.arrived: dict[int, float] = {}

    async def session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            writer.write(b"220 upstream ESMTP\r\n")
            while line := await reader.readline():
                match line[:4].upper():
                    case b"EHLO":
                        writer.write(b"250-upstream\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
                    case b"DATA":
                        writer.write(b"354 go on\r\n")
                        content = await reader.readuntil(b"\r\n.\r\n")
                        if found := re.search(rb"X-Bench-Id: (\d+)", content):
                            self.arrived.setdefault(int(found[1]), time.monotonic())
                        writer.write(b"250 2.0.0 kept\r\n")
                    case b"QUIT":
                        writer.write(b"221 2.0.0 bye\r\n")
                        break
                    case _:
                        writer.write(b"250 2.0.0 ok\r\n")
                await writer.drain()
        writer.close()


async def _send(port: int, number: int) -> tuple[float, float]:
    """(seconds from before the connection until the 250 that ends DATA, when that was)."""
    begin = time.monotonic()
    async with Client(port) as client:
        await client.send(SENDER, RECIPIENT, message(SENDER, SIZE, number))
        accepted = time.monotonic()
    return accepted - begin, accepted


async def _steadily(port: int, numbers: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Each at its time, whether those before it have ended or not. Raises Stuck where one is refused."""
    begin, tasks = time.monotonic(), []
    for i, number in enumerate(numbers):
        await asyncio.sleep(max(0.0, begin + i / RATE - time.monotonic()))
        tasks.append(asyncio.create_task(_send(port, number)))
    try:
        return dict(zip(numbers, await asyncio.gather(*tasks), strict=True))
    except (Refused, OSError) as error:
        raise Stuck(f"at {RATE:g} messages a second: {error}") from None


async def measure(port: int, upstream: Upstream, count: int) -> tuple[list[float], list[float]]:
    """Seconds (from connecting until 250, from 250 until the upstream has it) of each of `count` messages. Raises Stuck."""
    warm = range(count, count + max(1, count // 10))
    await _steadily(port, warm)
    sent = await _steadily(port, range(count))
    end = time.monotonic() + PATIENCE
    while missing := sent.keys() - upstream.arrived.keys():
        if time.monotonic() > end:
            raise Stuck(f"{len(missing)} of {count} messages did not arrive within {PATIENCE:g} s")
        await asyncio.sleep(0.02)
    return [took for took, _ in sent.values()], [upstream.arrived[n] - at for n, (_, at) in sent.items()]
