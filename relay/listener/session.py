"""One client session: aiosmtpd's SMTP, with its own reader.

aiosmtpd gives the protocol class, the session and envelope values and the rules of a dialogue; replaced is what was
measured to be slow or wrong (docs/adr/0004-listener.md): its line-wise DATA reader keeps an endless line in memory and
passes bare CR and LF on, its address parser costs 400 µs, its errors show exception texts, its set-up inspects every
member for each connection.

Promises: bounded memory whatever arrives; one clear reply for one command, in order; a reply of ours never holds the text
of an exception. Commands are synchronous; only the end of DATA and a large body leave the loop's current turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

from aiosmtpd.smtp import SMTP

from relay import clock
from relay.envelope import queue_id
from relay.incoming import Incoming
from relay.intake import Envelope
from relay.listener.command import MAX_LINE, BadCommand, parse_mail, parse_rcpt
from relay.listener.data import DataReader
from relay.listener.front import Door
from relay.spool import SpoolError
from relay.submission import BadMessage

MAX_PENDING = 256 * 1024  # bytes read ahead while we are busy, before the client is made to wait
MAX_TURNS = 100  # commands that one session may have answered before the others have a turn
MAX_ERRORS = 100  # refused commands in one session, before it is cut
MAX_CODE_TEXT = 400
MAX_REPLIES = 100  # collected before they are written


class Session(SMTP):
    """Made by the loop for each connection."""

    def __init__(self, door: Door) -> None:
        # Not SMTP.__init__: it inspects every member of the class for each connection, and makes a stream reader that
        # would hold what we must bound. What its remaining methods need is set here.
        self.loop = asyncio.get_running_loop()
        self.door = door
        self.hostname = door.hostname
        self.transport: asyncio.Transport | None = None
        self.client = ""
        self.helo = ""
        self.extended = False
        self.deadline = 0.0
        self._buffer = bytearray()
        self._mail: Envelope | None = None
        self._reader: DataReader | None = None  # type: ignore[assignment]
        self._incoming: Incoming | None = None
        self._replies: list[bytes] = []
        self._task: asyncio.Task[None] | None = None
        self._write_paused = self._read_paused = self._closing = self._eof = False
        self._skipping = False  # the rest of a command line that was too long
        self._errors = 0

    # -- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self.transport = cast(asyncio.Transport, transport)
        transport = self.transport
        peer = transport.get_extra_info("peername")
        self.client = peer[0] if isinstance(peer, tuple) else ""
        self.touch()
        refusal = self.door.admit(self)
        if refusal:
            self._closing = True
            transport.write(refusal)
            transport.close()
            return
        transport.write(self.door.greeting)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._closing = True
        self.door.leave(self)
        # A message whose dot has arrived is finished all the same: its sender may have to guess, we do not.
        if self._task is None and self._incoming is not None:
            self._incoming.release()
            self._incoming = None
        self._buffer.clear()

    def eof_received(self) -> bool:
        """A client that says no more may still listen (`printf … | nc -N`): it gets the replies to what it said."""
        self._eof = True
        self._process()
        return not self._closing

    def pause_writing(self) -> None:
        self._write_paused = True
        self._pause_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._process()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self.touch()
        self._buffer += data
        self._process()

    def touch(self) -> None:
        self.deadline = clock.monotonic() + self.door.idle_timeout

    def time_out(self) -> None:
        """Idle for too long: RFC 5321 §4.5.3.2.7."""
        if self._closing:
            # It has been told to go and does not read: what waits to be written would be kept for ever.
            if self.transport is not None:
                self.transport.abort()
        elif self._task is None:
            self.close_with(421, "4.4.2", "idle for too long, closing connection")
            self.touch()

    def close_with(self, code: int, enhanced: str, text: str) -> None:
        if not self._closing and self.transport is not None:
            self._reply(code, enhanced, text)
            self._close()

    @property
    def in_data(self) -> bool:
        """A message is arriving or being stored: let it finish."""
        return self._reader is not None or self._task is not None

    def _close(self) -> None:
        self._flush()
        self._closing = True
        if self.transport is not None:
            self.transport.close()

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
            if self._reader is not None:
                self._read_data()
            elif not self._read_command():
                break
            if len(self._replies) > MAX_REPLIES:
                self._flush()  # tells us, by pausing, when the client does not read them
        self._flush()
        if self._eof and self._task is None and not self._write_paused:
            if not self._closing:
                self._close()
        elif self._task is not None or self._write_paused:
            if len(self._buffer) > MAX_PENDING:
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
            if len(self._buffer) > MAX_LINE:
                self._buffer.clear()
                if not self._skipping:
                    self._skipping = True
                    self._refuse(500, "5.5.2", "command line is too long")
            return False
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        if self._skipping:
            self._skipping = False
        elif len(line) > MAX_LINE:
            self._refuse(500, "5.5.2", "command line is too long")
        else:
            self._command(line)
        return True

    def _command(self, line: bytes) -> None:
        if not line.endswith(b"\r\n") and self.door.listen.line_endings == "reject":
            return self._refuse(500, "5.5.2", "command does not end with CRLF")
        try:
            text = line.rstrip(b"\r\n").decode("utf-8")
        except UnicodeDecodeError:
            return self._refuse(500, "5.5.2", "command is not UTF-8")
        if any(c < " " or c == "\x7f" for c in text if c != "\t"):
            return self._refuse(500, "5.5.2", "command has a control character")
        verb, _, argument = text.strip(" \t").partition(" ")
        handler = _HANDLERS.get(verb.upper())
        if handler is None:
            return self._refuse(500, "5.5.1", "command is not known")
        try:
            handler(self, argument.strip(" \t"))
        except BadCommand as error:
            self._refuse(error.code, error.enhanced, error.text)
        except Exception as error:  # noqa: BLE001 - the client is told that it is our fault, the operator what it was
            self.door.log.error("session_error", client=self.client, verb=verb[:10], error=repr(error))
            self._reply(451, "4.3.0", "internal trouble, try again later")

    # -- replies

    def _reply(self, code: int, enhanced: str, text: str) -> None:
        enhanced = enhanced + " " if enhanced else ""
        safe = text[:MAX_CODE_TEXT].encode("ascii", "replace").replace(b"\r", b" ").replace(b"\n", b" ")
        self._replies.append(b"%d %s%s\r\n" % (code, enhanced.encode(), safe))

    def _refuse(self, code: int, enhanced: str, text: str) -> None:
        self._reply(code, enhanced, text)
        if code >= 500:
            self._errors += 1
            if self._errors > MAX_ERRORS:
                self._reply(421, "4.7.0", "too many errors, closing connection")
                self._close()

    def _flush(self) -> None:
        if self._replies:
            replies, self._replies = self._replies, []
            if self.transport is not None and not self.transport.is_closing():
                self.transport.write(b"".join(replies))

    # -- commands

    def _helo(self, argument: str) -> None:
        self._greet(argument, "HELO")
        self.extended = False
        self._reply(250, "", self.hostname)

    def _ehlo(self, argument: str) -> None:
        self._greet(argument, "EHLO")
        self.extended = True
        self._replies.append(self.door.ehlo)

    def _greet(self, argument: str, verb: str) -> None:
        if not argument:
            raise BadCommand(501, "5.5.4", f"syntax: {verb} hostname")
        self.helo = argument
        self._mail = None  # RFC 5321 §4.1.4: as if RSET had been said

    def _mail_from(self, argument: str) -> None:
        if not self.helo:
            raise BadCommand(503, "5.5.1", "say EHLO or HELO first")
        if self._mail is not None:
            raise BadCommand(503, "5.5.1", "MAIL was said already; RSET starts anew")
        mail = parse_mail(argument)
        if mail.size > self.door.intake.spool.max_message_size:
            raise BadCommand(552, "5.3.4", f"message is larger than {self.door.intake.spool.max_message_size} bytes")
        refusal = self.door.intake.refuse_now() or self.door.stopping
        if refusal:
            self.door.log.warning("refused", client=self.client, why=refusal)
            raise BadCommand(452, "4.3.1", "the spool takes no mail now, try again later")
        protocol = "UTF8SMTP" if mail.smtputf8 else "ESMTP" if self.extended else "SMTP"
        self._mail = Envelope(self.door.listen, self.client, self.helo, protocol, mail.sender, mail.smtputf8)
        self._reply(250, "2.1.0", "Ok")

    def _rcpt_to(self, argument: str) -> None:
        mail = self._mail
        if mail is None:
            raise BadCommand(503, "5.5.1", "say MAIL FROM first")
        recipient = parse_rcpt(argument, mail.smtputf8)
        if len(mail.recipients) >= self.door.listen.max_recipients:
            # RFC 5321 §4.5.3.1.10
            raise BadCommand(452, "4.5.3", f"too many recipients, {self.door.listen.max_recipients} are allowed")
        refusal = self.door.intake.refuse_recipient(mail, recipient)
        if refusal:
            self.door.log.event(
                "refused",
                client=self.client,
                sender=mail.sender,
                recipient=recipient,
                code=refusal.code,
                why=refusal.text,
            )
            raise BadCommand(refusal.code, refusal.enhanced, refusal.text)
        mail.recipients.append(recipient)
        self._reply(250, "2.1.5", "Ok")

    def _data(self, argument: str) -> None:
        if argument:
            raise BadCommand(501, "5.5.4", "DATA takes no argument")
        if self._mail is None:
            raise BadCommand(503, "5.5.1", "say MAIL FROM first")
        if not self._mail.recipients:
            raise BadCommand(554, "5.5.1", "no valid recipients")
        self._reader = DataReader()
        self._incoming = Incoming(self.door.intake.spool, self.door.intake.budget)
        self._reply(354, "", "end data with <CR><LF>.<CR><LF>")

    def _rset(self, argument: str) -> None:
        self._mail = None
        self._reply(250, "2.0.0", "Ok")

    def _noop(self, argument: str) -> None:
        self._reply(250, "2.0.0", "Ok")

    def _quit(self, argument: str) -> None:
        self._reply(221, "2.0.0", "Bye")
        self._close()

    def _vrfy(self, argument: str) -> None:
        self._reply(252, "2.5.2", "cannot verify, but will take the message and try")  # RFC 5321 §3.5.3

    def _help(self, argument: str) -> None:
        self._reply(214, "2.0.0", "HELO EHLO MAIL RCPT DATA RSET NOOP QUIT VRFY; see RFC 5321")

    def _not_built(self, argument: str) -> None:
        raise BadCommand(502, "5.5.1", "command is not offered here")

    # -- DATA

    def _read_data(self) -> None:
        reader, incoming = self._reader, self._incoming
        assert reader is not None and incoming is not None
        clean, used = reader.feed(bytes(self._buffer))
        del self._buffer[:used]
        spill = incoming.feed(clean) if clean else False
        if reader.nul:
            incoming.refuse(
                BadMessage(554, "5.6.0", "message has a NUL byte; send it as base64 (RFC 5321 section 2.3.8)")
            )
        if reader.bare and self.door.listen.line_endings == "reject":
            incoming.refuse(
                BadMessage(554, "5.6.0", "message has a bare CR or LF; lines end with CRLF (RFC 5321 section 2.3.8)")
            )
        if reader.done:
            self._reader = None
            self._run(self._end_of_data(incoming, reader.ascii))
        elif spill:
            self._run(self._spill(incoming))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = self.loop.create_task(work)
        self._task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._task = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.door.log.error("session_error", client=self.client, verb="DATA", error=repr(error))
        if self.transport is None:
            if self._incoming is not None:
                self._incoming.release()
                self._incoming = None
            return
        self.touch()
        if self.door.stopping and self._reader is None:
            self.close_with(421, "4.3.2", "shutting down")
        self._process()

    async def _spill(self, incoming: Incoming) -> None:
        try:
            await incoming.spill()
        except Exception as error:  # noqa: BLE001 - part of it is lost: whatever it was, the rest must not be accepted
            self.door.log.error("spool_refused", client=self.client, error=str(error) or repr(error))
            incoming.refuse(BadMessage(452, "4.3.1", "the spool cannot store this now, try again later"))

    async def _end_of_data(self, incoming: Incoming, ascii_only: bool) -> None:
        mail, self._mail = self._mail, None
        assert mail is not None
        try:
            number, _ = await self.door.intake.accept(mail, incoming, ascii_only=ascii_only)
            self._reply(250, "2.0.0", f"Ok: queued as {queue_id(number)}")
        except BadMessage as error:
            self.door.log.event("refused", client=self.client, sender=mail.sender, code=error.code, why=error.text)
            self._refuse(error.code, error.enhanced, error.text)
        except (SpoolError, OSError) as error:
            self.door.log.error("spool_refused", client=self.client, error=str(error))
            self._reply(452, "4.3.1", "the spool cannot store this now, try again later")
        except Exception as error:  # noqa: BLE001 - the client is told that it is our fault, the operator what it was
            self.door.log.error("session_error", client=self.client, verb="DATA", error=repr(error))
            self._reply(451, "4.3.0", "internal trouble, try again later")
        finally:
            incoming.release()
            self._incoming = None
            self._flush()


_HANDLERS: dict[str, Callable[[Session, str], None]] = {
    "HELO": Session._helo,
    "EHLO": Session._ehlo,
    "MAIL": Session._mail_from,
    "RCPT": Session._rcpt_to,
    "DATA": Session._data,
    "RSET": Session._rset,
    "NOOP": Session._noop,
    "QUIT": Session._quit,
    "VRFY": Session._vrfy,
    "HELP": Session._help,
    **dict.fromkeys(("STARTTLS", "AUTH", "BDAT", "EXPN", "ETRN", "TURN"), Session._not_built),
}
