"""One connection: bytes in, replies out. Owns buffering, back-pressure, deadlines and the change to TLS.

aiosmtpd gives the protocol class, the session and envelope values and the rules of a dialogue; replaced is what was
measured to be slow or wrong (docs/adr/0004-listener.md). What commands mean is `session`'s.

Promises: bounded memory whatever arrives; one reply for one command, in order; nothing that was read before the TLS
handshake is used after it (RFC 3207 §4.2).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, cast

from aiosmtpd.smtp import SMTP

from relay import clock
from relay.listener.command import MAX_LINE
from relay.listener.tls import HANDSHAKE_TIMEOUT, SHUTDOWN_TIMEOUT, why

if TYPE_CHECKING:
    from relay.listener.front import Door

MAX_PENDING = 256 * 1024  # bytes read ahead while we are busy, before the client is made to wait
MAX_TURNS = 100  # commands that one session may have answered before the others have a turn
MAX_ERRORS = 100  # refused commands in one session, before it is cut
MAX_CODE_TEXT = 400
MAX_REPLIES = 100  # collected before they are written
SLOW_GRACE = 30.0  # seconds of DATA before its rate is looked at
_PRINTABLE = bytes(c if 32 <= c < 127 else 32 for c in range(256))


class Wire(SMTP):
    """Made for each connection; `client` where it is known beforehand who it is (`reception`)."""

    max_line = MAX_LINE

    def __init__(self, door: Door, client: str | None = None) -> None:
        # Not SMTP.__init__: it inspects every member of the class for each connection, and makes a stream reader that
        # would hold what we must bound. What its remaining methods need is set here.
        self.loop = asyncio.get_running_loop()
        self.door = door
        self.hostname = door.hostname
        self.transport: asyncio.Transport | None = None
        self.introduced = client is not None
        self.client = client or ""
        self.encrypted = False
        self.shaking = False  # within a handshake
        self._buffer = bytearray()
        self._replies: list[bytes] = []
        self._task: asyncio.Task[None] | None = None
        self._write_paused = self._read_paused = self._closing = self._eof = False
        self._skipping = False  # the rest of a command line that was too long
        self._errors = 0
        # Deadlines, all in monotonic seconds: the last whole command or piece of a message, when the transaction and
        # its DATA began, and how long we ourselves have held it up since.
        self._heard = clock.monotonic()
        self._mail_at = self._data_at = 0.0
        self._data_bytes = 0
        self._busy_at = self._ours = 0.0

    # -- what a session gives

    def in_data(self) -> bool:
        """A message is arriving or being stored."""
        raise NotImplementedError

    def read_data(self, data: bytes | bytearray) -> int:
        """A piece of a message; how much of it belongs to it."""
        raise NotImplementedError

    def command(self, line: bytes) -> None:
        raise NotImplementedError

    def overlong(self, line: bytes) -> None:
        """A command that is longer than `max_line`, or how it begins."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget all that the client has said: TLS begins (RFC 3207 §4.2)."""
        raise NotImplementedError

    def lost(self) -> None:
        """The connection is gone."""
        raise NotImplementedError

    # -- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self.transport = cast(asyncio.Transport, transport)
        if not self.introduced:
            peer = transport.get_extra_info("peername")
            if peer is None:
                # Reset already, and uvloop cannot tell by whom: what it said must not pass for said on this machine.
                self._closing = True
                return self.transport.abort()
            self.client = peer[0] if isinstance(peer, tuple) else ""
        if self.door.implicit_tls:
            self.encrypted, refusal = True, b""  # and admitted
        else:
            refusal = self.door.admit(self)
        self.greet(refusal)
        if refusal:
            self._closing = True
            self.transport.close()

    def greet(self, refusal: bytes) -> None:
        """The first words: the greeting, or the reply that turns the client away."""
        assert self.transport is not None
        self.transport.write(refusal or self.door.greeting)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._closing = True
        self.door.leave(self)
        self._buffer.clear()
        self.lost()

    def eof_received(self) -> bool:
        """A client that says no more may still listen (`printf … | nc -N`): it gets the replies to what it said."""
        self._eof = True
        self._process()
        return not self._closing and not self.encrypted  # TLS knows no half-closed connection

    def pause_writing(self) -> None:
        self._write_paused = True
        self._pause_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._process()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self.in_data():
            self._heard = clock.monotonic()
            self._data_bytes += len(data)
            if not self._buffer and self._task is None and not self._write_paused:
                data = data[
                    self.read_data(data) :
                ]  # not by way of the buffer: most of a large message is not copied there
        self._buffer += data
        self._process()

    # -- deadlines, looked at once a second by the door: one timer each would cost 7 µs a command

    def overdue(self, now: float, idle_timeout: float) -> str:
        """Why this client is to be cut; empty while it may stay. Time that we took is not held against it."""
        if self._task is not None:
            return ""
        if now - self._heard > idle_timeout:
            return "idle for too long"
        listen = self.door.listen
        if self._mail_at and now - self._mail_at - self._ours > listen.transaction_timeout:
            return "the transaction takes too long"
        if self._data_at and not self._closing:
            seconds = now - self._data_at - self._ours - SLOW_GRACE
            if seconds > 0 and self._data_bytes < seconds * listen.min_rate:
                return f"the message comes with less than {listen.min_rate} bytes a second"
        return ""

    @property
    def leaving(self) -> bool:
        """It has been told to go."""
        return self._closing

    def cut(self, reason: str) -> None:
        """RFC 5321 §4.5.3.2.7. One that was told to go and does not read: what waits for it would be kept for ever."""
        if self._closing:
            if self.transport is not None:
                self.transport.abort()
        else:
            self.close_with(421, "4.4.2", f"{reason}, closing connection")
            self._heard = clock.monotonic()

    def transaction_began(self) -> None:
        self._mail_at, self._ours = clock.monotonic(), 0.0

    def data_began(self) -> None:
        self._data_at, self._data_bytes = clock.monotonic(), len(self._buffer)

    def data_ended(self) -> None:
        self._data_at = 0.0

    def transaction_ended(self) -> None:
        self._mail_at = self._data_at = 0.0

    # -- the loop over what has arrived

    def _process(self) -> None:
        turns = 0
        while self._buffer and self._task is None and not self._closing and not self._write_paused:
            turns += 1
            if turns > MAX_TURNS:
                # Others wait too: on with it in the loop's next turn.
                self._flush()
                self._pause_reading()
                self.loop.call_soon(self._process)
                return
            if self.in_data():
                del self._buffer[: self.read_data(self._buffer)]
            elif not self._read_command():
                break
            if len(self._replies) > MAX_REPLIES:
                self._flush()  # tells us, by pausing, when the client does not read them
        self._flush()
        if self._eof and self._task is None and not self._write_paused:
            if not self._closing:
                self.close()
        elif self._task is not None or self._write_paused:
            # Of a large message no more is read while a piece of it is written: uvloop would go on to read from this one
            # client, up to 32 times in one step, and everybody else wait. The kernel holds what comes meanwhile.
            if len(self._buffer) > MAX_PENDING or self.in_data():
                self._pause_reading()
        elif self._read_paused and self.transport is not None and not self._closing:
            self._read_paused = False
            self.transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self._read_paused and self.transport is not None and not self._closing:
            self._read_paused = True
            self.transport.pause_reading()

    def _read_command(self) -> bool:
        """One command off the buffer; False where it is not complete."""
        end = self._buffer.find(b"\n")
        if end < 0:
            if len(self._buffer) > self.max_line:
                start = bytes(self._buffer)
                self._buffer.clear()
                if not self._skipping:
                    self._skipping = True
                    self.overlong(start)
            return False
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        self._heard = clock.monotonic()
        if self._skipping:
            self._skipping = False
        elif len(line) > self.max_line:
            self.overlong(line)
        else:
            self.command(line)
        return True

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """What needs an await; until it has ended no command is read."""
        self._busy_at = clock.monotonic()
        self._task = self.loop.create_task(work)
        self._task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._heard = clock.monotonic()
        self._ours += self._heard - self._busy_at
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.door.log.error("session_error", client=self.client, verb="", error=repr(error))
            self.reply(451, "4.3.0", "internal trouble, try again later")
            self.close()
        if self.transport is None:
            return self.lost()
        if self.door.stopping and not self.in_data():
            self.close_with(421, "4.3.2", "shutting down")
        self._process()

    # -- replies

    def say(self, reply: bytes) -> None:
        """One of ours that is always the same, as it goes over the wire."""
        self._replies.append(reply)

    def reply(self, code: int, enhanced: str, text: str) -> None:
        enhanced = enhanced + " " if enhanced else ""
        safe = text[:MAX_CODE_TEXT].encode("ascii", "replace").translate(_PRINTABLE)
        self.say(b"%d %s%s\r\n" % (code, enhanced.encode(), safe))

    def refuse(self, code: int, enhanced: str, text: str) -> None:
        self.reply(code, enhanced, text)
        if code >= 500:
            self.count_error()
        if self._errors > MAX_ERRORS:
            self.close_with(421, "4.7.0", "too many errors, closing connection")

    def count_error(self) -> None:
        self._errors += 1

    def close_with(self, code: int, enhanced: str, text: str) -> None:
        if not self._closing and self.transport is not None:
            self.reply(code, enhanced, text)
            self.close()

    def close(self) -> None:
        """Write what is to be said, and hang up."""
        self._flush()
        self._closing = True
        if self.transport is not None:
            self.transport.close()

    def _flush(self) -> None:
        if self._replies:
            replies, self._replies = self._replies, []
            if self.transport is not None and not self.transport.is_closing():
                self.transport.write(b"".join(replies))

    def hang_up(self) -> None:
        """At once, whatever is under way."""
        if self.transport is None:
            return
        self.transport.abort()
        if self.shaking and self._task is not None:
            self._task.cancel()  # uvloop tells the handshake nothing of the connection's end before its time is over
            self.connection_lost(None)

    # -- TLS

    async def start_tls(self) -> None:
        """The handshake, and a session that knows nothing yet. One that fails ends the connection.

        Reading was paused before: what is in the buffer afterwards came through TLS, in the segment that ended the
        handshake.
        """
        transport, context = self.transport, self.door.tls_context
        assert transport is not None and not self._buffer
        self.shaking = True
        try:
            if context is None:
                raise ssl.SSLError("there is no certificate")
            made = await self.loop.start_tls(
                transport,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT,
            )
            if made is None:
                raise ConnectionAbortedError("connection was closed")
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            self.door.log.warning("tls_failed", listener=self.door.listen.name, client=self.client, why=why(error))
            transport.abort()
            if self.transport is not None:  # asyncio tells nobody of a connection that ends in its handshake
                self.connection_lost(error)
            return
        self.shaking = False
        if self._closing:
            made.abort()
            return
        self.transport = made
        self.encrypted = True
        self._read_paused = False
        self.reset()
