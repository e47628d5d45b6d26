"""An upstream that notes when it accepted each MAIL and each message, and how many fell into any span of time."""

from __future__ import annotations

import asyncio
import contextlib
import smtplib
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .support import met, until


@dataclass
class Counting:
    """On loopback, in a thread. `delay`: seconds before it answers the final dot. Times are monotonic."""

    delay: float = 0.0
    mails: list[float] = field(default_factory=list)  # MAIL accepted
    taken: list[float] = field(default_factory=list)  # the final dot answered
    when: dict[str, float] = field(default_factory=dict)  # the same by recipient
    since: list[float] = field(default_factory=list)  # of each MAIL: it did not come before
    place: dict[str, int] = field(default_factory=dict)  # by recipient: how many MAILs were accepted before his
    held: bool = False  # no final dot is answered before `release`
    twice: int = 0
    port: int = 0

    def __enter__(self) -> Counting:
        self._loop, self._tasks = asyncio.new_event_loop(), set[asyncio.Task[None]]()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=256))
        self.port = self._server.sockets[0].getsockname()[1]
        self._released = asyncio.Event()
        if not self.held:
            self._released.set()
        self._tasks.add(self._loop.create_task(self._beat()))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        async def close() -> None:
            self._server.close()
            await met()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    async def _beat(self) -> None:
        """What is read had not come three beats ago, or it would have been read then: so we know of our own standing still."""
        self._beats: deque[float] = deque([0.0], 3)
        while True:
            self._beats.append(time.monotonic())
            await asyncio.sleep(0.005)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                await self._session(reader, writer)
        finally:
            writer.close()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to, place = "", 0
        writer.write(b"220 counting\r\n")
        while line := await reader.readline():
            match line[:4].upper():
                case b"MAIL":
                    place = len(self.mails)
                    self.since.append(self._beats[0])
                    self.mails.append(time.monotonic())
                case b"RCPT":
                    to = line.decode().partition("<")[2].partition(">")[0]
                    self.place[to] = place
                case b"DATA":
                    writer.write(b"354 go on\r\n")
                    while (await reader.readuntil(b"\r\n")) != b".\r\n":
                        continue
                    await self._released.wait()
                    if self.delay:
                        await asyncio.sleep(self.delay)
                    self.taken.append(time.monotonic())
                    self.twice += to in self.when
                    self.when[to] = self.taken[-1]
                case b"QUIT":
                    writer.write(b"221 bye\r\n")
                    return
            writer.write(b"250 ok\r\n")
            await writer.drain()

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._released.set)

    def most(self, period: float) -> int:
        """Of the MAILs that came in any span of that length for certain: what was read late may have come earlier."""
        mails = list(self.mails)
        earliest = self.since[: len(mails)]
        return max((bisect_left(mails, at + period) - i for i, at in enumerate(earliest)), default=0)

    def wait(self, count: int, timeout: float) -> None:
        until(lambda: len(self.taken) >= count, timeout, f"{count} messages at the sink")

    def quiet(self, seconds: float, timeout: float) -> None:
        """Until nothing has come for so long."""
        until(lambda: time.monotonic() - max(self.mails, default=0.0) > seconds, timeout, "quiet")


def most(times: Sequence[float], period: float) -> int:
    """In any span of that length."""
    known = sorted(times)
    return max((bisect_left(known, at + period) - i for i, at in enumerate(known)), default=0)


def hand_in(port: int, recipients: Sequence[str], sender: str = "app@example.com") -> None:
    """A small message to each, over one session."""
    with smtplib.SMTP("127.0.0.1", port, timeout=120) as client:
        for recipient in recipients:
            client.sendmail(sender, [recipient], f"Subject: t\r\nFrom: {sender}\r\n\r\nhello\r\n")


def numbered(count: int, first: int = 0, domain: str = "example.net") -> Iterator[str]:
    return (f"user{n}@{domain}" for n in range(first, first + count))
