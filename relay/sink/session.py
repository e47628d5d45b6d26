"""The front door of a sink: the relay's own, with a profile that is asked before each command is obeyed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from relay import clock
from relay.incoming import Budget, Incoming
from relay.intake import Envelope
from relay.listener.command import BadCommand
from relay.listener.front import Door
from relay.listener.sasl import Credentials, Exchange
from relay.listener.session import Session
from relay.maillog import MailLog
from relay.policy.networks import client_key
from relay.settings import Listen, User
from relay.sink.keep import Folder, Keeper, Kept, read
from relay.sink.login import Logins, Token, TokenExchange, challenge, exchange_of
from relay.sink.play import Facts, Player, Verdict
from relay.sink.profile import Profile, Reply, Stage
from relay.sink.tally import Tally
from relay.submission import BadMessage

MAX_AUTH_LINE = 12288  # RFC 4954 §4: tokens are long
Told = Callable[[str, dict[str, Any]], None]


class Asked(Exception):
    """The profile has something to say to a command."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.kind)
        self.verdict = verdict


class SinkDoor(Door):
    """Offers what the profile offers. `arrived` hears of each message that is kept, `told` of everything."""

    def __init__(
        self,
        listen: Listen,
        keeper: Keeper,
        profile: Profile,
        *,
        seed: int,
        logins: Logins,
        arrived: Callable[[Kept], None],
        told: Told,
    ) -> None:
        self.profile, self.logins, self.keeper = profile, logins, keeper
        self.player = Player(profile, seed)
        self.tally = Tally(self.player)
        self.arrived, self.told = arrived, told
        self.mechanisms = profile.login.mechanisms
        super().__init__(listen, keeper, MailLog(), profile.hostname)  # type: ignore[arg-type]
        self._sessions_made = 0

    def extensions(self) -> list[str]:
        return [f"SIZE {self.profile.max_message_size}", *self.profile.offers]

    def session(self, client: str | None = None) -> Session:
        self._sessions_made += 1
        return SinkSession(self, client, self._sessions_made)


class Decider:
    """Stands where intake does for one session: what intake decides there, the profile decides here."""

    def __init__(self, session: SinkSession, keeper: Keeper) -> None:
        self._session, self._keeper = session, keeper

    @property
    def spool(self) -> Folder:
        return self._keeper.spool

    @property
    def budget(self) -> Budget:
        return self._keeper.budget

    def refuse_now(self) -> str:
        return ""

    def refuse_sender(self, envelope: Envelope) -> BadMessage | None:
        if envelope.smtputf8 and "SMTPUTF8" not in self._session.profile.offers:
            return BadMessage(555, "5.5.4", "MAIL parameter SMTPUTF8 is not supported")
        self._session.ask("mail", envelope)
        return None

    def refuse_recipient(self, envelope: Envelope, recipient: str) -> BadMessage | None:
        self._session.ask("rcpt", envelope, recipient)
        return None

    async def accept(self, envelope: Envelope, incoming: Incoming, *, needs: int) -> tuple[int, bool]:
        await self._session.end_message(envelope, incoming)
        return incoming.id, True


class SinkSession(Session):
    """One client, and what the profile does to it."""

    max_line = MAX_AUTH_LINE

    def __init__(self, door: SinkDoor, client: str | None, number: int) -> None:
        super().__init__(door, client)
        self.sink, self.profile = door, door.profile
        self.intake = cast(Any, Decider(self, door.keeper))
        self._name = f"{number:08x}"
        self._gone = asyncio.Event()
        self._free = False  # the profile was asked already
        self._hang_up = False  # after the reply to the final dot
        self._content: Verdict | None = None  # what happens once content comes
        self._mute = False  # cut, or never to be answered again
        self._token_refused = False
        self._said: tuple[str, Reply] | None = None  # (kind, reply) of the script, which is on its way
        self._facts = Facts()  # of the last question

    # -- asking

    def ask(self, stage: Stage, envelope: Envelope | None = None, recipient: str = "") -> None:
        """Raises Asked where the profile has something to say."""
        if not self._free and (verdict := self._verdict(stage, envelope, recipient)):
            raise Asked(verdict)

    def _verdict(
        self, stage: Stage, envelope: Envelope | None = None, recipient: str = "", head: bytes = b"", account: str = ""
    ) -> Verdict | None:
        named = (
            (*envelope.recipients, recipient)
            if envelope and recipient
            else tuple(envelope.recipients if envelope else ())
        )
        found = read(head) if head and self.sink.player.asks_header else None
        self._facts = Facts(
            client_key(self.client) or "local",
            account or self.user_name,
            envelope.sender if envelope else "",
            named,
            found.headers() if found else {},
        )
        return self.sink.player.ask(stage, self, self._facts, clock.monotonic())

    def _obey(self, verb: str, argument: str) -> None:
        try:
            if verb in ("EHLO", "HELO"):
                self.ask("ehlo")
            elif verb == "MAIL" and self.helo and not self.user_name and self.profile.login.required:
                return self._refuse_with(self.profile.login.required)
            elif verb == "DATA" and self._mail is not None and self._mail.recipients and not argument:
                self.ask("data", self._mail)
            self._go_on(verb, argument)
        except Asked as asked:
            self.run(self._play(asked.verdict, verb, argument))

    def _go_on(self, verb: str, argument: str) -> None:
        super()._obey(verb, argument)
        if verb == "DATA" and self._reader is not None:
            self._content = self._verdict("content", self._mail)

    async def _play(self, verdict: Verdict, verb: str, argument: str) -> None:
        await self._begin(verdict)
        if verdict.then != "go":
            return await self._end(verdict)
        self._free = True
        try:
            self._go_on(verb, argument)
        except BadCommand as error:
            self.refuse(error.code, error.enhanced, error.text)
        finally:
            self._free = False

    async def _begin(self, verdict: Verdict) -> None:
        if verdict.delay:
            await asyncio.sleep(verdict.delay)

    async def _end(self, verdict: Verdict) -> None:
        """What a verdict other than `go` comes to."""
        if verdict.reply is not None:
            self._refuse_with(verdict.reply, verdict)
            if verdict.then == "close":
                self.close()
        else:
            await self._fall_silent(verdict)

    async def _fall_silent(self, verdict: Verdict) -> None:
        self._cut_off(verdict)
        if verdict.then == "stall":
            await self._gone.wait()

    def _cut_off(self, verdict: Verdict) -> None:
        """Told and counted; the connection goes, or hangs until the client does."""
        self._mute = True
        self.sink.tally.dropped += 1
        self._tell(verdict.kind, "", verdict.kept)
        if verdict.then == "drop":
            self._closing = True
            if self.transport is not None:
                self.transport.abort()

    # -- replies

    def _refuse_with(self, reply: Reply, verdict: Verdict | None = None) -> None:
        self._said = verdict.kind if verdict else "refused", reply
        self.refuse(reply.code, reply.enhanced, self._filled(reply.text, verdict))

    def _filled(self, text: str, verdict: Verdict | None = None) -> str:
        asked = self._facts
        values = {
            "id": self._name,
            "seconds": verdict.seconds if verdict else "",
            "client": self.client,
            "account": asked.account,
            "sender": asked.sender,
            "recipient": asked.recipients[-1] if asked.recipients else "",
        }
        return Reply(0, "", text).filled(values)

    def reply(self, code: int, enhanced: str, text: str) -> None:
        """Also of several lines; each refusal is counted and told as the script has it."""
        said, self._said = self._said, None
        gone = self.transport is None or self.transport.is_closing() or self.door.stopping
        if code >= 400 and not gone:
            kind, written = (said[0], str(said[1])) if said else ("refused", f"{code} {enhanced} {text}")
            self.sink.tally.refuse(clock.monotonic(), written)
            self._tell(kind, written)
        *lines, last = text.split("\n")
        for line in lines:
            self.say(f"{code}-{enhanced}{' ' if enhanced else ''}{line}\r\n".encode("ascii", "replace"))
        super().reply(code, enhanced, last)

    def _tell(self, kind: str, reply: str, kept: bool = False) -> None:
        asked = self._facts
        fields = {
            "client": self.client,
            "account": asked.account,
            "sender": asked.sender,
            "recipients": asked.recipients,
        }
        self.sink.told(kind, fields | {"reply": reply, "kept": kept})

    # -- the stages that are no command

    def greet(self, refusal: bytes) -> None:
        if refusal:
            return super().greet(refusal)
        self.sink.tally.connected(clock.monotonic(), len(self.sink.sessions))
        verdict = self._verdict("connect")
        if verdict is None:
            self._welcome()
        else:
            self.run(self._greeted(verdict))

    def _welcome(self) -> None:
        text = self._filled(self.profile.greeting) if self.profile.greeting else f"{self.hostname} ESMTP relay"
        self.say(f"220 {text}\r\n".encode("ascii", "replace"))
        self._flush()

    async def _greeted(self, verdict: Verdict) -> None:
        await self._begin(verdict)
        if verdict.then == "go":
            self._welcome()
        else:
            await self._end(verdict)

    def read_data(self, data: bytes | bytearray) -> int:
        verdict, self._content = self._content, None
        if verdict is None:
            return len(data) if self._mute else super().read_data(data)
        if verdict.then == "go":
            self.run(self._begin(verdict))
            return 0
        self._cut_off(verdict)
        return len(data)

    async def end_message(self, envelope: Envelope, incoming: Incoming) -> None:
        """After the final dot. Raises BadMessage where the profile refuses the message."""
        head, body = await incoming.finish()
        verdict = self._verdict("dot", envelope, head=head)
        if verdict is None or verdict.then == "go" or verdict.kept:
            kept = await self.sink.keeper.keep(incoming.id, envelope, head, body)
            self.sink.tally.keep(clock.monotonic(), kept)
            self.sink.arrived(kept)
        if verdict is None:
            return
        await self._begin(verdict)
        if verdict.then == "go":
            return
        if verdict.reply is None:
            await self._fall_silent(verdict)
            raise BadMessage(451, "4.3.0", "nobody hears this")
        self._hang_up, self._said = verdict.then == "close", (verdict.kind, verdict.reply)
        raise BadMessage(verdict.reply.code, verdict.reply.enhanced, self._filled(verdict.reply.text, verdict))

    async def _end_of_data(self, incoming: Incoming, needs: int) -> None:
        await super()._end_of_data(incoming, needs)
        if self._hang_up:
            self.close()

    def eof_received(self) -> bool:
        return not self._mute and super().eof_received()  # who has gone waits for no answer

    def lost(self) -> None:
        super().lost()
        self._gone.set()
        self.sink.player.leave(self)

    # -- logins

    def exchange_of(self, mechanism: str) -> Exchange:
        return exchange_of(mechanism, self.profile.login.mechanisms)

    def answered(self, response: str | None) -> None:
        if self._token_refused:
            # RFC 7628 §3.2.3: whatever the client says to the challenge that refuses its token, the login has failed.
            self._token_refused, self.exchange = False, None
            return self._refuse_with(self.profile.login.refused)
        super().answered(response)

    async def _log_in(self, given: Credentials) -> None:
        verdict = self._verdict("auth", account=given.user)
        if verdict is not None:
            await self._begin(verdict)
            if verdict.then != "go":
                return await self._end(verdict)
        if await self.sink.logins.accept(given):
            self.user_name, self._logged_in = given.user or "oauth", User(given.user or "oauth")
            accepted = self.profile.login.accepted
            return self.reply(accepted.code, accepted.enhanced, self._filled(accepted.text))
        self._facts = Facts(account=given.user)
        if isinstance(given, Token):
            self._token_refused, self.exchange = True, TokenExchange(given.mechanism)
            return self.reply(334, "", challenge(self.profile.login.scope))
        self._refuse_with(self.profile.login.refused)

    def user(self) -> User | None:
        return self._logged_in if self.user_name else None
