"""One transaction on an open session.

Promises: a reply for each recipient; whether the final dot left us is known exactly. Refuses to guess: any failure is a
`Failure` with its stage. `connect` opens sessions. Where the upstream offers PIPELINING (RFC 2920), MAIL, RCPT and DATA go
out together; what their replies mean is the same, and whose they are is made sure of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from relay.deliver.content import END, Content, slices, stuffed
from relay.deliver.dialogue import LOST, TOO_MANY, Dialogue, Said
from relay.envelope import EIGHT_BIT, UTF8, xtext
from relay.reply import Reply, Stage
from relay.settings import Account

if TYPE_CHECKING:
    from relay.nexthop.policy import Requirement

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
_GRACE = 1.0  # for a reply that should not come
_RSET, _DATA = b"RSET\r\n", b"DATA\r\n"
_ENDS_ALL = (421, 530)  # to one recipient they are said as well, but they are not about him


class Failure(Exception):
    """The session or the transaction failed as a whole at `stage`; `reply.code` 0: no reply came."""

    def __init__(self, stage: Stage, reply: Reply) -> None:
        super().__init__(f"{stage.value}: {reply}")
        self.stage, self.reply = stage, reply


class TooSoon(Exception):
    """A limit does not let it go yet; nothing was said to anybody. `wait`: seconds until a session may be opened, where one
    was needed, or until a message that is large may go, where smaller ones may at once; 0: it was about neither."""

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait


@dataclass(slots=True)
class Answer:
    """What the upstream said about one recipient, and where."""

    stage: Stage
    reply: Reply

    @property
    def accepted(self) -> bool:
        return self.stage is Stage.DOT and 200 <= self.reply.code < 300


@dataclass(slots=True)
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


class Upstream:
    """An open session. Made by `connect`; `extensions` are what EHLO offered, in lower case, with their arguments."""

    def __init__(self, account: Account, talk: Dialogue, extensions: Mapping[str, str]) -> None:
        self.account, self._talk, self._offers = account, talk, extensions
        self._pipelining = "pipelining" in extensions
        self.transactions = 0
        self.ends = False  # nothing more is said on it but QUIT
        self.idle_since = 0.0
        self.taken_at = 0.0  # by who works with it; clock.monotonic()
        self.passes_on = False  # the transaction under way asks for reports, of an upstream that makes them
        self.stage = Stage.MAIL  # how far the transaction is; from DOT on it may have been delivered
        self._dirty = False  # a transaction ended in the middle: RSET before the next
        self._ended = False  # the final dot was handed to the transport
        # Of the transaction under way: what was refused at RCPT keeps its own answer whatever becomes of the rest.
        self.answers: list[Answer | None] = []
        # By MX: for whose domain it was opened, the host, its address with it, what was required of the session, and what its
        # TLS is, for operators.
        self.domain = self.host = self.remote = self.security = ""
        self.requirement: Requirement | None = None
        self.served: dict[str, float] = {}  # domain -> until when it is known to be good for it (clock.monotonic())

    @property
    def tls_version(self) -> str:
        """`TLSv1.3`; empty: clear text."""
        found = self._talk.transport.get_extra_info("ssl_object")
        return str(found.version() or "") if found is not None else ""

    @property
    def eight_bit(self) -> bool:
        """Whether it takes content of eight bits (RFC 6152)."""
        return "8bitmime" in self._offers

    @property
    def usable(self) -> bool:
        return self.connected and not self.ends and self.transactions < self.account.messages_per_connection

    @property
    def connected(self) -> bool:
        return self._talk.ended is None

    async def deliver(self, parcel: Parcel) -> list[Answer]:
        """One answer a recipient, in order. Raises Failure where the transaction failed as a whole."""
        self.transactions += 1
        self.stage, self._ended = Stage.MAIL, False
        answers: list[Answer | None] = []
        self.answers = answers
        self._check(parcel)
        self.passes_on = "dsn" in self._offers
        await (self._ahead(parcel) if self._pipelining else self._step_by_step(parcel))
        if None in answers:
            final = await self._content(parcel.content)
            # After a refusal a RSET comes first: an upstream that refused early and again at the dot has a second reply for us.
            self._dirty = not final.accepted
            return [a or final for a in answers]
        return [a for a in answers if a]

    async def quit(self, timeout: float = _PROMPT) -> None:
        """Politely, but not for long."""
        self._talk.say(b"QUIT\r\n", replies=1)
        await self._talk.reply(timeout)
        self.close()

    def close(self) -> None:
        """At once."""
        self._talk.end()

    # -- the envelope

    def _check(self, parcel: Parcel) -> None:
        """What this upstream can't take is known before a byte is sent."""
        if parcel.needs & UTF8 and "smtputf8" not in self._offers:
            raise Failure(
                Stage.MAIL, Reply(553, "upstream does not offer SMTPUTF8, which an address or header needs", "5.6.7")
            )
        limit = self._offers.get("size", "")
        if limit.isdecimal() and 0 < int(limit) < parcel.size:
            raise Failure(
                Stage.MAIL, Reply(552, f"message has {parcel.size} bytes and the upstream takes {limit}", "5.3.4")
            )

    def _mail(self, parcel: Parcel) -> bytes:
        command = b"MAIL FROM:<" + parcel.sender.encode() + b">"
        if "size" in self._offers:
            command += b" SIZE=%d" % parcel.size
        if parcel.needs & EIGHT_BIT and "8bitmime" in self._offers:
            command += b" BODY=8BITMIME"
        if parcel.needs & UTF8:
            command += b" SMTPUTF8"
        if self.passes_on:
            # RFC 3461 §5.2.1: what was said is passed on, and nothing that was not.
            if parcel.ret:
                command += b" RET=" + parcel.ret.encode()
            if parcel.envid:
                command += b" ENVID=" + xtext(parcel.envid).encode()
        return command + b"\r\n"

    def _rcpt(self, parcel: Parcel, number: int) -> bytes:
        command = b"RCPT TO:<" + parcel.recipients[number].encode() + b">"
        if self.passes_on and parcel.asked:
            notify, orcpt = parcel.asked[number]
            if notify:
                command += b" NOTIFY=" + notify.encode()
            if orcpt:
                command += b" ORCPT=" + orcpt.encode()
        return command + b"\r\n"

    async def _step_by_step(self, parcel: Parcel) -> None:
        """A command, its reply, the next command; up to the 354, or to the last recipient where none is taken."""
        if self._dirty:
            self._cleaned(await self._ask(Stage.MAIL, _RSET, min(_PROMPT, TIMEOUTS[Stage.MAIL])))
        self._dirty = True
        self._sender_taken(await self._ask(Stage.MAIL, self._mail(parcel)))
        for number in range(len(parcel.recipients)):
            self._answered(await self._ask(Stage.RCPT, self._rcpt(parcel, number)))
        if None in self.answers:
            self._go_ahead(await self._ask(Stage.DATA, _DATA))

    async def _ask(self, stage: Stage, command: bytes, timeout: float | None = None) -> Said:
        self._in_step(stage)
        self._talk.say(command, replies=1)
        return await self._talk.reply(timeout or TIMEOUTS[stage])

    async def _ahead(self, parcel: Parcel) -> None:
        """All commands at once, and then their replies (RFC 2920); up to the 354, or an end without it."""
        dirty, self._dirty = self._dirty, True
        commands = [_RSET, self._mail(parcel)] if dirty else [self._mail(parcel)]
        commands += [self._rcpt(parcel, number) for number in range(len(parcel.recipients))]
        commands.append(_DATA)
        self._in_step(Stage.MAIL)
        talk = self._talk
        talk.say(b"".join(commands), replies=len(commands))
        try:
            if dirty:
                self._cleaned(await talk.reply(min(_PROMPT, TIMEOUTS[Stage.MAIL])))
                self._dirty = True
            self._sender_taken(await talk.reply(TIMEOUTS[Stage.MAIL]))
            for _ in parcel.recipients:
                self._answered(await talk.reply(TIMEOUTS[Stage.RCPT]))
            go = await talk.reply(TIMEOUTS[Stage.DATA])
            if None in self.answers:
                return self._go_ahead(go)
        except Failure as failure:
            if not self.connected and self._talk.ended is not TOO_MANY:
                raise
            if failure.reply.code in _ENDS_ALL:
                self.close()  # DATA may have been answered 354: what comes next would be the message
                raise
            go, taken = (Said(0, b""), False) if failure.stage is Stage.DATA else await self._rest()
            await self._end_without(go, taken)
            raise
        await self._end_without(go)

    async def _rest(self) -> tuple[Said, bool]:
        """The last of the replies that are still to come, that to DATA; and whether one before it took somebody."""
        taken = None in self.answers
        while True:
            said = await self._talk.reply(TIMEOUTS[Stage.RCPT])
            if not (self._talk.owed and said.code):
                return said, taken
            taken = taken or said.positive

    async def _end_without(self, go: Said, taken: bool = False) -> None:
        """No message follows: out of the transaction again, and in step. `go`: what DATA was answered, if not told before.

        `taken`: it may have somebody whom it would bring the message.
        """
        if go.code == 354 and taken:
            return self.close()
        if go.code == 354:
            # RFC 2920 §3.1: it takes a message for nobody, so it gets one.
            self._talk.say(END, replies=1)
            if not (await self._talk.reply(TIMEOUTS[Stage.DOT])).code:
                self.close()
            return
        await self._confirm()

    async def _confirm(self) -> None:
        """That no reply was taken for another's. Raises Failure where one was.

        Had the upstream said one too many, 354 could not have come in DATA's place. Where no 354 came, RSET is answered: by
        the reply that is left over, and then by its own.
        """
        out_of_step = self._talk.ended is TOO_MANY
        if not out_of_step:
            self._talk.say(_RSET, replies=1)
            said = await self._talk.reply(min(_PROMPT, TIMEOUTS[Stage.MAIL]))
            if said.positive:
                self._dirty = False
                return
            out_of_step = said.code == 354
            if said.code and not out_of_step:
                self._talk.say(replies=1)
                out_of_step = (await self._talk.reply(_GRACE)).code > 0
        self.close()
        if out_of_step:
            self.answers.clear()
            raise Failure(Stage.DATA, TOO_MANY)

    # -- what a reply to the envelope means

    def _in_step(self, stage: Stage) -> None:
        """What was said beyond the last reply would be taken for the answer to what we say next: then we don't."""
        if self._talk.ended is not None:
            raise Failure(stage, self._talk.ended)

    def _came(self, stage: Stage, said: Said) -> None:
        """A reply."""
        if not said.code:
            self.close()
            raise Failure(stage, said.reply)

    def _cleaned(self, said: Said) -> None:
        self._came(Stage.MAIL, said)
        if not said.positive:
            raise Failure(Stage.MAIL, Reply(0, f"upstream refused RSET: {said.reply}"))
        self._dirty = False

    def _sender_taken(self, said: Said) -> None:
        self._came(Stage.MAIL, said)
        if not said.positive:
            raise Failure(Stage.MAIL, said.reply)

    def _answered(self, said: Said) -> None:
        self._came(Stage.RCPT, said)
        if said.code in _ENDS_ALL:
            raise Failure(Stage.RCPT, said.reply)
        # RFC 5321 §4.2.5: 250 and 251 take responsibility.
        self.answers.append(None if said.positive else Answer(Stage.RCPT, said.reply))

    def _go_ahead(self, said: Said) -> None:
        self._came(Stage.DATA, said)
        if said.code != 354:
            if said.code < 400:
                self.close()  # out of step: nobody knows what its next reply would answer
                if self._pipelining:
                    self.answers.clear()  # nor what those before it did
            # RFC 5321 §4.3.2: 503 or 554 here refuse the message.
            raise Failure(Stage.DATA, said.reply)

    # -- the message

    async def _content(self, content: Content) -> Answer:
        self._in_step(Stage.BODY)
        self.stage = Stage.BODY
        await self._send(content)
        said = await self._talk.reply(TIMEOUTS[Stage.DOT])
        if said.code:
            self.stage = Stage.MAIL  # no doubt is left
        if said.code in (0, 421):
            self.close()
        if said.code in (0, *_ENDS_ALL):
            raise Failure(Stage.DOT, said.reply)
        return Answer(Stage.DOT, said.reply)

    async def _send(self, content: Content) -> None:
        """Returns at stage DOT, when the kernel has taken all including the final dot; until then a failure is no doubt."""
        talk = self._talk
        talk.say(replies=1)  # an upstream may refuse in the middle of the body: that reply is wanted too
        try:
            if isinstance(content.body, Path):
                async for data in slices(content):
                    await self._write(data)
                    if talk.heard:
                        self._give_up(LOST)
                self._ended = True
                await self._write(END)
            else:
                self._ended = True
                await self._write(*stuffed(content.head, content.body), END)
            self.stage = Stage.DOT
        except asyncio.CancelledError:
            # Cancelled in the moment between the buffer's last byte and our waking up: then the dot has left.
            if self._ended and not talk.transport.get_write_buffer_size():
                self.stage = Stage.DOT
            self.close()
            raise

    async def _write(self, *data: bytes) -> None:
        self._talk.say(*data, replies=0)
        if self._talk.paused or not self.connected:
            why = await self._talk.drained(TIMEOUTS[Stage.BODY])
            if why or self._talk.paused:
                self._give_up(why or LOST)

    def _give_up(self, why: Reply) -> NoReturn:
        """In the middle of the body. What the upstream said to it counts, unless it sounds as if all were well."""
        early = self._talk.heard
        self.close()
        if early:
            why = early.reply if early.code >= 400 else Reply(0, "upstream answered in the middle of the message")
        raise Failure(Stage.BODY, why)
