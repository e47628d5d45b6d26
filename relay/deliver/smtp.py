"""One transaction on an open session. aiosmtplib speaks; we decide what its errors mean.

Promises: a reply for each recipient; whether the final dot left us is known exactly. Refuses to guess: any failure is a
`Failure` with its stage. `connect` opens sessions.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiosmtplib
from aiosmtplib.errors import (
    SMTPException,
    SMTPResponseException,
    SMTPServerDisconnected,
    SMTPTimeoutError,
)
from aiosmtplib.protocol import SMTPProtocol
from aiosmtplib.response import SMTPResponse

from relay.deliver.content import END, Content, slices, stuffed
from relay.envelope import EIGHT_BIT, UTF8, xtext
from relay.reply import Reply, Stage, clean
from relay.settings import Account

# Seconds; RFC 5321 §4.5.3.2. Connecting has no figure there: Postfix waits 30.
TIMEOUTS = {
    Stage.RESOLVE: 30.0,
    Stage.CONNECT: 30.0,
    Stage.BANNER: 300.0,
    Stage.EHLO: 300.0,
    Stage.STARTTLS: 120.0,
    Stage.AUTH: 120.0,
    Stage.MAIL: 300.0,
    Stage.RCPT: 300.0,
    Stage.DATA: 120.0,
    Stage.BODY: 180.0,
    Stage.DOT: 600.0,
}
_PROMPT = 5.0  # for QUIT and RSET: nothing depends on them
_ENDS_ALL = (421, 530)  # to one recipient they are said as well, but they are not about him


class Failure(Exception):
    """The session or the transaction failed as a whole at `stage`; `reply.code` 0: no reply came."""

    def __init__(self, stage: Stage, reply: Reply) -> None:
        super().__init__(f"{stage.value}: {reply}")
        self.stage, self.reply = stage, reply


@dataclass(frozen=True, slots=True)
class Answer:
    """What the upstream said about one recipient, and where."""

    stage: Stage
    reply: Reply

    @property
    def accepted(self) -> bool:
        return self.stage is Stage.DOT and 200 <= self.reply.code < 300


@dataclass(frozen=True, slots=True)
class Parcel:
    """One transaction's worth."""

    sender: str
    recipients: tuple[str, ...]
    content: Content
    size: int
    needs: int  # EIGHT_BIT | UTF8
    envid: str = ""  # RFC 3461, as are the next two
    ret: str = ""
    asked: tuple[tuple[str, str], ...] = ()  # (NOTIFY, ORCPT) of each recipient; empty: none said anything


class Client(aiosmtplib.SMTP):
    """aiosmtplib's, kept in step with its upstream, and ended at once."""

    async def execute_command(self, *args: bytes, **limit: Any) -> SMTPResponse:
        self.in_step()
        return await super().execute_command(*args, **limit)

    def in_step(self) -> None:
        """What was said beyond the last reply would be taken for the answer to what we say next: then we don't."""
        if self.protocol is not None and self.protocol._buffer:
            self.close()
            raise SMTPServerDisconnected("upstream said more than one reply")

    def close(self) -> None:
        """A transport that is merely closed would still send what it has buffered, the final dot with it; over TLS it would
        wait half a minute for the peer's goodbye, as one session more than `connections` allows."""
        if self.transport is not None:
            cast(asyncio.WriteTransport, self.transport).abort()
        super().close()


class Upstream:
    """An open session. Made by `connect`."""

    def __init__(self, account: Account, client: Client) -> None:
        self.account, self._client = account, client
        self.transactions = 0
        self.idle_since = 0.0
        self.passes_on = False  # the transaction under way asks for reports, of an upstream that makes them
        self.stage = Stage.MAIL  # how far the transaction is; from DOT on it may have been delivered
        self._dirty = False  # a transaction ended in the middle: RSET before the next
        self._ended = False  # the final dot was handed to the transport
        # Of the transaction under way: what was refused at RCPT keeps its own answer whatever becomes of the rest.
        self.answers: list[Answer | None] = []

    @property
    def usable(self) -> bool:
        return self._client.is_connected and self.transactions < self.account.messages_per_connection

    @property
    def connected(self) -> bool:
        return self._client.is_connected

    async def deliver(self, parcel: Parcel) -> list[Answer]:
        """One answer a recipient, in order. Raises Failure where the transaction failed as a whole."""
        self.transactions += 1
        self.stage, self._ended = Stage.MAIL, False
        self.answers = answers = []
        self._check(parcel)
        if self._dirty:
            await self._reset()
        self._dirty = True
        self.passes_on = self._client.supports_extension("dsn")
        reply = await self._say(Stage.MAIL, b"MAIL", *self._mail_arguments(parcel))
        if not _positive(reply):
            raise Failure(Stage.MAIL, reply)
        for number, recipient in enumerate(parcel.recipients):
            asked = _asked(*parcel.asked[number]) if self.passes_on and parcel.asked else []
            reply = await self._say(Stage.RCPT, b"RCPT", b"TO:<" + recipient.encode() + b">", *asked)
            if reply.code in _ENDS_ALL:
                raise Failure(Stage.RCPT, reply)
            # RFC 5321 §4.2.5: 250 and 251 take responsibility.
            answers.append(None if _positive(reply) else Answer(Stage.RCPT, reply))
        if None in answers:
            final = await self._data(parcel.content)
            # After a refusal a RSET comes first: an upstream that refused early and again at the dot has a second reply for us.
            self._dirty = not final.accepted
            return [a or final for a in answers]
        return [a for a in answers if a]

    async def quit(self, timeout: float = _PROMPT) -> None:
        """Politely, but not for long."""
        with contextlib.suppress(SMTPException, OSError, TimeoutError):
            await self._client.execute_command(b"QUIT", timeout=timeout)
        self.close()

    def close(self) -> None:
        """At once."""
        self._client.close()

    def _check(self, parcel: Parcel) -> None:
        """What this upstream can't take is known before a byte is sent."""
        if parcel.needs & UTF8 and not self._client.supports_extension("smtputf8"):
            raise Failure(
                Stage.MAIL, Reply(553, "upstream does not offer SMTPUTF8, which an address or header needs", "5.6.7")
            )
        limit = self._client.esmtp_extensions.get("size", "")
        if limit.isdecimal() and 0 < int(limit) < parcel.size:
            raise Failure(
                Stage.MAIL, Reply(552, f"message has {parcel.size} bytes and the upstream takes {limit}", "5.3.4")
            )

    def _mail_arguments(self, parcel: Parcel) -> list[bytes]:
        arguments = [b"FROM:<" + parcel.sender.encode() + b">"]
        if self._client.supports_extension("size"):
            arguments.append(b"SIZE=%d" % parcel.size)
        if parcel.needs & EIGHT_BIT and self._client.supports_extension("8bitmime"):
            arguments.append(b"BODY=8BITMIME")
        if parcel.needs & UTF8:
            arguments.append(b"SMTPUTF8")
        if self.passes_on:
            # RFC 3461 §5.2.1: what was said is passed on, and nothing that was not.
            if parcel.ret:
                arguments.append(b"RET=" + parcel.ret.encode())
            if parcel.envid:
                arguments.append(b"ENVID=" + xtext(parcel.envid).encode())
        return arguments

    async def _reset(self) -> None:
        reply = await self._say(Stage.MAIL, b"RSET", timeout=min(_PROMPT, TIMEOUTS[Stage.MAIL]))
        if not _positive(reply):
            raise Failure(Stage.MAIL, Reply(0, f"upstream refused RSET: {reply}"))
        self._dirty = False

    async def _say(self, stage: Stage, *command: bytes, timeout: float | None = None) -> Reply:
        try:
            response = await self._client.execute_command(*command, timeout=timeout or TIMEOUTS[stage])
        except (SMTPException, OSError, ValueError) as error:
            self.close()
            raise Failure(stage, of_error(error)) from None
        reply = _reply(response.code, response.message)
        if not reply.code:
            self.close()
            raise Failure(stage, reply)
        return reply

    async def _data(self, content: Content) -> Answer:
        reply = await self._say(Stage.DATA, b"DATA")
        if reply.code != 354:
            if reply.code < 400:
                self.close()  # out of step: nobody knows what its next reply would answer
            # RFC 5321 §4.3.2: 503 or 554 here refuse the message.
            raise Failure(Stage.DATA, reply)
        protocol = self._client.protocol
        if protocol is None:
            raise Failure(Stage.BODY, Reply(0, "connection lost"))
        try:
            self._client.in_step()
        except SMTPException as error:
            raise Failure(Stage.BODY, of_error(error)) from None
        self.stage = Stage.BODY
        await self._send_body(protocol, content)
        try:
            response = await protocol.read_response(timeout=TIMEOUTS[Stage.DOT])
        except (SMTPException, OSError) as error:
            self.close()
            raise Failure(Stage.DOT, of_error(error)) from None
        reply = _reply(response.code, response.message)
        if reply.code:
            self.stage = Stage.MAIL  # no doubt is left
        if reply.code in (0, 421):
            self.close()
        if reply.code in (0, *_ENDS_ALL):
            raise Failure(Stage.DOT, reply)
        return Answer(Stage.DOT, reply)

    async def _send_body(self, protocol: SMTPProtocol, content: Content) -> None:
        """Returns at stage DOT, when the kernel has taken all including the final dot; until then a failure is no doubt."""
        transport = cast(asyncio.WriteTransport, protocol.transport)
        # Woken when the transport's buffer is empty, not when it is merely lower: so "drained" means "the dot has left".
        # Over TLS the same figure asks for another thing (a pause although nothing is left, and no end of it), and what the
        # layer below still has is not told: there a dot that is on its way counts as sent, which errs towards doubt.
        transport.set_write_buffer_limits(high=1 if transport.get_extra_info("sslcontext") else 0, low=0)
        # An upstream may refuse in the middle of the body: that reply is wanted, not dropped as unsolicited.
        protocol._response_pending = True
        try:
            if isinstance(content.body, Path):
                async for data in slices(content):
                    await self._write(protocol, data)
                    if _answered(protocol):
                        raise ConnectionResetError("upstream answered in the middle of the message")
                self._ended = True
                await self._write(protocol, END)
            else:
                self._ended = True
                await self._write(protocol, stuffed(content.head + content.body) + END)
            self.stage = Stage.DOT
        except asyncio.CancelledError:
            # Cancelled in the moment between the buffer's last byte and our waking up: then the dot has left.
            if self._ended and not transport.get_write_buffer_size():
                self.stage = Stage.DOT
            self.close()
            raise
        except (SMTPException, OSError, TimeoutError) as error:
            early = _early_reply(protocol)
            self.close()
            raise Failure(Stage.BODY, early or of_error(error)) from None

    @staticmethod
    async def _write(protocol: SMTPProtocol, data: bytes) -> None:
        if data:
            protocol.write(data)
            if protocol._paused:
                async with asyncio.timeout(TIMEOUTS[Stage.BODY]):
                    await protocol._drain_helper()
            if protocol._connection_lost:
                raise ConnectionResetError("connection lost")


def _asked(notify: str, orcpt: str) -> list[bytes]:
    """The parameters of RCPT."""
    return [f"{name}={value}".encode() for name, value in (("NOTIFY", notify), ("ORCPT", orcpt)) if value]


def _positive(reply: Reply) -> bool:
    return 200 <= reply.code < 300


def _reply(code: int, text: str) -> Reply:
    """RFC 5321 §4.2.1: the first digit is 2 to 5. Anything else is no reply; aiosmtplib says -1 where it could read no code."""
    if 200 <= code < 600:
        return Reply.of(code, text)
    return Reply(0, clean(f"malformed reply: {text if code < 0 else f'{code:03} {text}'}"))


def _answered(protocol: SMTPProtocol) -> bool:
    """A reply before the dot: what the upstream says to the dot would be taken for the answer to the next command."""
    return protocol._response_waiter is not None and protocol._response_waiter.done()


def _early_reply(protocol: SMTPProtocol) -> Reply | None:
    """What came before the body was whole, unless it sounds as if all were well."""
    waiter = protocol._response_waiter
    if waiter is None or not waiter.done() or waiter.cancelled():
        return None
    if error := waiter.exception():
        return of_error(error)
    reply = _reply(*waiter.result())
    return None if 200 <= reply.code < 400 else reply


def of_error(error: BaseException) -> Reply:
    if isinstance(error, SMTPResponseException):
        return _reply(error.code, error.message)
    if isinstance(error, SMTPTimeoutError | TimeoutError):
        return Reply(0, "timed out")
    text = str(error.__cause__ or error) or "connection lost"
    return Reply.of(0, text)
