"""What a client's commands mean: one dialogue of SMTP (RFC 5321).

Promises: one clear reply for one command; a reply never holds the text of an exception, nor a secret; no mail from
somebody whom the listener does not serve. Commands are synchronous; what needs an await is a task, and until it has ended
no command is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from relay import clock
from relay.envelope import queue_id
from relay.incoming import Incoming
from relay.intake import Envelope
from relay.listener.command import BadCommand, parse_mail, parse_rcpt
from relay.listener.data import DataReader
from relay.listener.front import Door
from relay.listener.identity import Identity
from relay.listener.limits import Full
from relay.spool import SpoolError
from relay.submission import BadMessage

MAX_IDLE_COMMANDS = 100  # in a row that bring no mail on its way: NOOP, RSET, VRFY, EHLO …
HTTP = frozenset((b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE", b"PRI"))
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # all of ASCII's but the tab


class Session(Identity):
    """One client."""

    def __init__(self, door: Door, client: str | None = None) -> None:
        super().__init__(door, client)
        self.intake = door.intake  # whom it asks, and hands its messages to
        self._idle_commands = 0
        self._told_throttled = False
        self._mail: Envelope | None = None
        self._reader: DataReader | None = None  # type: ignore[assignment]
        self._incoming: Incoming | None = None
        self._taken_at = 0.0  # when the message that is arriving was counted

    def taken(self, number: int) -> bytes:
        """What is said to the final dot of a message that is durable."""
        return f"250 2.0.0 Ok: queued as {queue_id(number)}\r\n".encode()

    # -- for the wire

    def in_data(self) -> bool:
        return self._reader is not None

    @property
    def unfinished(self) -> bool:
        """A message is arriving or being stored: let it finish."""
        return self._reader is not None or self._task is not None

    def in_transaction(self) -> bool:
        return self._mail is not None

    def lost(self) -> None:
        # A message whose dot has arrived is finished all the same: its sender may have to guess, we do not.
        if self._task is None and self._incoming is not None:
            self._incoming.release()
            self._incoming = None
            assert self._mail is not None
            self._give_back(self._mail)

    def command(self, line: bytes) -> None:
        logging_in = self.exchange is not None
        try:
            if logging_in:
                self.answered(self._text(line))
            else:
                word, _, argument = self._text(line).partition(" ")
                self._obey(word.upper(), argument.strip(" \t"))
        except BadCommand as error:
            if not logging_in and _verb(line) in HTTP:
                return self._refuse_http()
            self.exchange = None
            self.refuse(error.code, error.enhanced, error.text)
        except Exception as error:  # noqa: BLE001 - the client is told that it is our fault, the operator what it was
            said = "AUTH" if logging_in else _verb(line).decode("latin-1")  # a password is no verb
            self.door.log.error("session_error", client=self.client, verb=said, error=repr(error))
            self.reply(451, "4.3.0", "internal trouble, try again later")

    def overlong(self, line: bytes) -> None:
        self.exchange = None
        if _verb(line) in HTTP:
            return self._refuse_http()
        self.refuse(500, "5.5.2", "command line is too long")

    def _text(self, line: bytes) -> str:
        if not line.endswith(b"\r\n") and self.door.listen.line_endings == "reject":
            raise BadCommand(500, "5.5.2", "command does not end with CRLF")
        try:
            text = line.rstrip(b"\r\n").decode("utf-8")
        except UnicodeDecodeError:
            raise BadCommand(500, "5.5.2", "command is not UTF-8") from None
        if not text.isprintable() and _CONTROL.search(text):
            raise BadCommand(500, "5.5.2", "command has a control character")
        return text.strip(" \t")

    def _refuse_http(self) -> None:
        """A browser or a server that was tricked into talking to us; its body may hold commands of SMTP."""
        self.door.log.warning("http_refused", listener=self.door.listen.name, client=self.client)
        self.close_with(421, "4.7.0", "this is a mail server, it speaks SMTP only")

    def _obey(self, verb: str, argument: str) -> None:
        handler = _HANDLERS.get(verb)
        if handler is None:
            raise BadCommand(500, "5.5.1", "command is not known")
        if verb in _IDLE:
            self._idle_commands += 1
            if self._idle_commands > MAX_IDLE_COMMANDS:
                return self.close_with(421, "4.7.0", "too many commands without mail, closing connection")
        handler(self, argument)

    # -- commands

    def forget_mail(self) -> None:
        self._mail = None
        self.transaction_ended()

    def _mail_from(self, argument: str) -> None:
        if not self.helo:
            raise BadCommand(503, "5.5.1", "say EHLO or HELO first")
        if self._mail is not None:
            raise BadCommand(503, "5.5.1", "MAIL was said already; RSET starts anew")
        user = self.user()
        auth = self.door.listen.auth
        if user is None and (auth == "required" or (auth == "optional" and not self.is_served())):
            # RFC 4954 §6
            raise BadCommand(530, "5.7.0", "log in first" if self._may_log_in() else "say STARTTLS and log in first")
        mail = parse_mail(argument, self.dsn)
        if mail.size > self.intake.spool.max_message_size:
            raise BadCommand(552, "5.3.4", f"message is larger than {self.intake.spool.max_message_size} bytes")
        refusal = self.intake.refuse_now() or self.door.stopping
        if refusal:
            self.door.log.warning("refused", client=self.client, why=refusal)
            raise BadCommand(452, "4.3.1", "the spool takes no mail now, try again later")
        envelope = Envelope(
            self.door.listen, self.client, self.helo, self._protocol(mail.smtputf8), mail.sender, mail.smtputf8, user
        )
        self._say_no(envelope, "", self.intake.refuse_sender(envelope))
        envelope.ret, envelope.envid = mail.ret, mail.envid
        envelope.allowances = self.door.allowances(user, self.client)
        self._check_allowance(envelope, 1)
        self._mail = envelope
        self.transaction_began()
        self.say(b"250 2.1.0 Ok\r\n")

    def _protocol(self, smtputf8: bool) -> str:
        """For Received: RFC 3848, RFC 6531 §4.3."""
        name = "UTF8SMTP" if smtputf8 else "ESMTP" if self.extended else "SMTP"
        if not self.extended and not smtputf8:
            return name
        return name + ("S" if self.encrypted else "") + ("A" if self.user_name else "")

    def _check_allowance(self, envelope: Envelope, recipients: int) -> None:
        if envelope.allowances:
            try:
                self.door.guard.allowances.check(envelope.allowances, recipients, clock.now())
            except Full as error:
                self._throttled(envelope, error)

    def _give_back(self, mail: Envelope) -> None:
        self.door.guard.allowances.give_back(mail.allowances, len(mail.recipients), self._taken_at)

    def _throttled(self, envelope: Envelope, full: Full) -> None:
        if not self._told_throttled:  # once until it has sent something again
            self._told_throttled = True
            self.door.log.warning(
                "throttled", listener=self.door.listen.name, client=self.client, sender=envelope.sender, why=str(full)
            )
        self.door.count_throttled()
        self.count_error()
        raise BadCommand(450, "4.7.1", str(full))

    def _say_no(self, envelope: Envelope, recipient: str, refusal: BadMessage | None) -> None:
        if refusal is None:
            return
        self.door.log.event(
            "refused",
            client=self.client,
            user=self.user_name,
            sender=envelope.sender,
            recipient=recipient,
            code=refusal.code,
            why=refusal.text,
        )
        raise BadCommand(refusal.code, refusal.enhanced, refusal.text)

    def _rcpt_to(self, argument: str) -> None:
        mail = self._mail
        if mail is None:
            raise BadCommand(503, "5.5.1", "say MAIL FROM first")
        rcpt = parse_rcpt(argument, mail.smtputf8, self.dsn)
        recipient = rcpt.address
        if len(mail.recipients) >= self.door.listen.max_recipients:
            # RFC 5321 §4.5.3.1.10
            raise BadCommand(452, "4.5.3", f"too many recipients, {self.door.listen.max_recipients} are allowed")
        if mail.user is None and not self.is_served():
            # Here and not earlier, so that the log tells who wanted to send what to whom.
            no = BadMessage(550, "5.7.1", f"no mail is taken from {self.client or 'here'}: this is no open relay")
            self._say_no(mail, recipient, no)
        self._say_no(mail, recipient, self.intake.refuse_recipient(mail, recipient))
        self._check_allowance(mail, len(mail.recipients) + 1)
        mail.recipients.append(recipient)
        mail.asked.setdefault(recipient, (rcpt.notify, rcpt.orcpt))
        self.say(b"250 2.1.5 Ok\r\n")

    def _data(self, argument: str) -> None:
        if argument:
            raise BadCommand(501, "5.5.4", "DATA takes no argument")
        if self._mail is None:
            raise BadCommand(503, "5.5.1", "say MAIL FROM first")
        if not self._mail.recipients:
            raise BadCommand(554, "5.5.1", "no valid recipients")
        try:
            self._taken_at = clock.now()
            self.door.guard.allowances.take(self._mail.allowances, len(self._mail.recipients), self._taken_at)
        except Full as error:
            self._throttled(self._mail, error)
        self._reader = DataReader()
        self.data_began()
        self._incoming = Incoming(self.intake.spool, self.intake.budget)
        self.say(b"354 end data with <CR><LF>.<CR><LF>\r\n")

    def _rset(self, argument: str) -> None:
        self.forget_mail()
        self.reply(250, "2.0.0", "Ok")

    def _noop(self, argument: str) -> None:
        self.reply(250, "2.0.0", "Ok")

    def _quit(self, argument: str) -> None:
        self.say(b"221 2.0.0 Bye\r\n")
        self.close()

    def _vrfy(self, argument: str) -> None:
        self.reply(252, "2.5.2", "cannot verify, but will take the message and try")  # RFC 5321 §3.5.3

    def _help(self, argument: str) -> None:
        self.reply(214, "2.0.0", "HELO EHLO STARTTLS AUTH MAIL RCPT DATA RSET NOOP QUIT VRFY; see RFC 5321")

    def _not_built(self, argument: str) -> None:
        raise BadCommand(502, "5.5.1", "command is not offered here")

    # -- DATA

    def read_data(self, data: bytes | bytearray) -> int:
        reader, incoming = self._reader, self._incoming
        assert reader is not None and incoming is not None
        clean, used = reader.feed(data)
        spill = incoming.feed(clean) if clean else False
        if reader.nul and self.door.listen.line_endings == "reject":
            incoming.refuse(
                BadMessage(554, "5.6.0", "message has a NUL byte; send it as base64 (RFC 5321 section 2.3.8)")
            )
        if reader.bare and self.door.listen.line_endings == "reject":
            incoming.refuse(
                BadMessage(554, "5.6.0", "message has a bare CR or LF; lines end with CRLF (RFC 5321 section 2.3.8)")
            )
        reader.dropped = incoming.refusal is not None
        if reader.done:
            self._reader = None
            self.data_ended()
            self.run(self._end_of_data(incoming, reader.needs))
        elif spill:
            self.run(self._spill(incoming))
        return used

    async def _spill(self, incoming: Incoming) -> None:
        try:
            await incoming.spill()
        except Exception as error:  # noqa: BLE001 - part of it is lost: whatever it was, the rest must not be accepted
            self.door.log.error("spool_refused", client=self.client, error=str(error) or repr(error))
            incoming.refuse(BadMessage(452, "4.3.1", "the spool cannot store this now, try again later"))

    async def _end_of_data(self, incoming: Incoming, needs: int) -> None:
        mail, self._mail = self._mail, None
        assert mail is not None
        accepted = False
        try:
            number, _ = await self.intake.accept(mail, incoming, needs=needs)
            accepted = True
            self._idle_commands, self._told_throttled = 0, False
            self.say(self.taken(number))
        except BadMessage as error:
            self.door.log.event("refused", client=self.client, sender=mail.sender, code=error.code, why=error.text)
            self.refuse(error.code, error.enhanced, error.text)
        except (SpoolError, OSError) as error:
            self.door.log.error("spool_refused", client=self.client, error=str(error))
            self.reply(452, "4.3.1", "the spool cannot store this now, try again later")
        except Exception as error:  # noqa: BLE001 - the client is told that it is our fault, the operator what it was
            self.door.log.error("session_error", client=self.client, verb="DATA", error=repr(error))
            self.reply(451, "4.3.0", "internal trouble, try again later")
        finally:
            if not accepted:
                self._give_back(mail)
            incoming.release()
            self._incoming = None
            self.transaction_ended()
            self._flush()


def _verb(line: bytes) -> bytes:
    return line[:10].partition(b" ")[0].strip().upper()


_HANDLERS: dict[str, Callable[[Session, str], None]] = {
    "HELO": Session.say_helo,
    "EHLO": Session.say_ehlo,
    "STARTTLS": Session.say_starttls,
    "AUTH": Session.say_auth,
    "MAIL": Session._mail_from,
    "RCPT": Session._rcpt_to,
    "DATA": Session._data,
    "RSET": Session._rset,
    "NOOP": Session._noop,
    "QUIT": Session._quit,
    "VRFY": Session._vrfy,
    "HELP": Session._help,
    **dict.fromkeys(("BDAT", "EXPN", "ETRN", "TURN"), Session._not_built),
}
_IDLE = frozenset(("HELO", "EHLO", "RSET", "NOOP", "VRFY", "HELP"))
