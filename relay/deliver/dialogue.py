"""The wire of an open session: what we say goes out, what the upstream says comes back as whole replies, in order.

aiosmtplib opens a session (`connect`); from then on this is its transport's protocol, because a reply for which a task, a
lock and a timer are made costs as much as the message. Promises: bounded memory whatever comes; a reply that nobody waits for
ends the session, for it would be taken for the answer to what is said next; one timer a session, moved and not made anew.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from typing import NamedTuple

from relay.reply import Reply, clean

MAX_LINE = 8192  # bytes of a reply's line; RFC 5321 §4.5.3.1.5 asks for 512
MAX_REPLY = 4 * MAX_LINE

_REPLY = re.compile(rb"([2-5][0-9][0-9]) ([!-~](?:[ -~]*[!-~])?)\r\n")

LOST = Reply(0, "connection lost")
SILENT = Reply(0, "timed out")
TOO_LONG = Reply(0, "reply is too long")
TOO_MANY = Reply(0, "upstream said more than one reply")


class Said(NamedTuple):
    """A reply as it came: its code, 0 where none came or it is no reply; and its lines, without code and line end."""

    code: int
    text: bytes
    trouble: Reply | None = None  # what is wrong, where the code is 0

    @property
    def positive(self) -> bool:
        return 200 <= self.code < 300

    @property
    def reply(self) -> Reply:
        return self.trouble or Reply.of(self.code, self.text.decode("utf-8", "surrogateescape"))


class Dialogue(asyncio.Protocol):
    """One session's wire. Takes over `transport`, in which nothing may be under way."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.ended: Reply | None = None  # why nothing will be said any more
        self.paused = False  # the kernel does not take what we write
        self._loop = asyncio.get_running_loop()
        self._part = b""  # of a line
        self._lines: list[bytes] = []  # of a reply that is not whole
        self._size = 0  # bytes of it
        self._owed = 0  # replies to what was said
        self._replies: deque[Said] = deque()
        self._heard: asyncio.Future[None] | None = None  # whoever waits for a reply
        self._drained: asyncio.Future[None] | None = None  # whoever waits for the kernel
        self._deadline = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._rings_at = 0.0  # when it does; uvloop makes no timer of what is due at once, and that cannot say
        # Woken when the transport's buffer is empty, not when it is merely lower: so "drained" means "the dot has left".
        # Over TLS the same figure asks for another thing (a pause although nothing is left, and no end of it), and what the
        # layer below still has is not told: there a dot that is on its way counts as sent, which errs towards doubt.
        transport.set_write_buffer_limits(high=1 if transport.get_extra_info("sslcontext") else 0, low=0)
        transport.set_protocol(self)

    # -- saying

    def say(self, *data: bytes, replies: int) -> None:
        """Write; the upstream owes us so many replies more for it."""
        self._owed += replies
        if self.ended is None and data:
            if len(data) == 1:
                self.transport.write(data[0])
            else:
                self.transport.writelines(data)

    async def drained(self, timeout: float) -> Reply | None:
        """When the kernel has taken all that was written, or the upstream refuses before; or why it did not take it."""
        while self.paused and self.ended is None and not self.refused:
            self._drained = self._loop.create_future()
            try:
                if not await self._within(self._drained, timeout):
                    return SILENT
            finally:
                self._drained = None
        return self.ended

    # -- hearing

    @property
    def owed(self) -> int:
        """Replies that are still to be taken."""
        return self._owed + len(self._replies)

    @property
    def heard(self) -> Said | None:
        """A reply that has come already, and stays to be taken."""
        return self._replies[0] if self._replies else None

    @property
    def refused(self) -> bool:
        """A reply has come already, and it is a refusal."""
        return bool(self._replies) and self._replies[0].code >= 400

    async def reply(self, timeout: float) -> Said:
        """The next one; with code 0 where none came within `timeout` seconds, or will come any more."""
        while not self._replies:
            if self.ended is not None:
                return Said(0, b"", self.ended)
            self._heard = self._loop.create_future()
            try:
                if not await self._within(self._heard, timeout):
                    return Said(0, b"", SILENT)
            finally:
                self._heard = None
        return self._replies.popleft()

    async def _within(self, future: asyncio.Future[None], timeout: float) -> bool:
        """False where it is too late. The timer of an earlier wait is left to run, and looks again when it rings."""
        self._deadline = self._loop.time() + timeout
        if self._alarm is None or self._rings_at > self._deadline:
            self._set_alarm()
        await future
        on_time, self._deadline = self._deadline > 0.0, 0.0
        return on_time

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._rings_at = self._deadline
        self._alarm = self._loop.call_at(self._rings_at, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        waiting = self._heard or self._drained
        if waiting is None or self._deadline <= 0.0:
            return
        if self._loop.time() < self._deadline:
            self._set_alarm()
        elif not waiting.done():
            self._deadline = -1.0
            waiting.set_result(None)

    def end(self, why: Reply = LOST) -> None:
        """At once: a transport that is merely closed would still send what it has buffered, the final dot with it; over TLS
        it would wait half a minute for the peer's goodbye, as one session more than `connections` allows."""
        if self.ended is None:
            self.ended = why
        self._part, self._lines = b"", []
        self.transport.abort()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._wake(self._heard)
        self._wake(self._drained)

    @staticmethod
    def _wake(waiting: asyncio.Future[None] | None) -> None:
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    # -- the transport's side

    def data_received(self, data: bytes) -> None:
        if self.ended is not None:
            return
        data = self._part + data if self._part else data
        if not self._lines and len(data) < MAX_LINE:
            data = self._usual(data)
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            if end - start > MAX_LINE:
                return self.end(TOO_LONG)
            self._line(data[start:end])
            if self.ended is not None:
                return
            start = end + 1
        self._part = data[start:] if start else data
        if len(self._part) > MAX_LINE:
            self.end(TOO_LONG)

    def _usual(self, data: bytes) -> bytes:
        """Takes the replies of one line off its beginning, those that are owed; returns what is left."""
        while self._owed and (found := _REPLY.match(data)):
            self._owed -= 1
            self._replies.append(Said(int(found[1]), found[2]))
            data = data[found.end() :]
        self._wake(self._heard if self._replies else None)
        self._wake(self._drained if self.refused else None)
        return data

    def _line(self, line: bytes) -> None:
        code, text = line[:3], line[4:].strip(b" \t\r")
        if line[3:4] == b"-" and code.isdigit():
            self._lines.append(text)
            self._size += len(line)
            if self._size > MAX_REPLY:
                self.end(TOO_LONG)
            return
        if self._lines:
            text = b"\n".join([*self._lines, text])
            self._lines, self._size = [], 0
        # RFC 5321 §4.2.1: the first digit is 2 to 5. Anything else is no reply.
        if not (code.isdigit() and 200 <= int(code) < 600):
            said = line.strip().decode("utf-8", "surrogateescape")
            return self.end(Reply(0, clean(f"malformed reply: {said}")))
        if not self._owed:
            return self.end(TOO_MANY)
        self._owed -= 1
        self._replies.append(Said(int(code), text))
        self._wake(self._heard)
        self._wake(self._drained if self.refused else None)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._wake(self._drained)

    def eof_received(self) -> bool:
        self.end()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.end(Reply.of(0, str(error)) if error and str(error) else LOST)
