"""Accept a message, written as its steps. Owns what happens between the final dot and our 250.

Promises: `accept` returns when the message is durable; what it refuses it refuses with one BadMessage; what it cannot do
now it says with SpoolError. Memory is bounded for each message and over all of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from relay import clock, metrics
from relay.envelope import LONG_LINES, UTF8, domain_of, queue_id
from relay.incoming import Budget, Incoming
from relay.maillog import INFO, WARNING, MailLog
from relay.outgoing.octets import long_line
from relay.policy.classes import TrafficClass, choose_class
from relay.policy.limits import Meter
from relay.policy.routing import Action, Answers, Facts, Undecided, matches_any
from relay.policy.suppression import Why
from relay.policy.suppression import refusal as suppressed_reply
from relay.quotas import Charge, Known, Quotas
from relay.recipient import READY, State
from relay.repair import Fault, Outcome
from relay.routed import begin, refusal, suppress
from relay.settings import Config, Listen, User
from relay.spool import NewMessage, NewRecipient, Notify, Spool
from relay.submission import BadMessage, Head, Options, authors, faults, read_head, read_options
from relay.suppressions import SUPPRESSED, Suppressions
from relay.trace import prefix

BREATH = 50  # recipients between two turns of the loop
MAX_TOLD = 10  # options of one message that are logged, each on a line

ENDED = metrics.Counter(
    "relay_recipients_ended_at_intake_total", "Recipients that a rule held or ended at once", ["result"]
)
ACCEPTED = metrics.Counter("relay_messages_accepted_total", "Messages that were answered 250", ["listener"])
REFUSED = metrics.Counter("relay_messages_refused_total", "Messages that were refused after DATA", ["code"])
REPAIRED = metrics.Counter(
    "relay_messages_repaired_total", "Messages whose header block was put right, by what was wrong", ["what"]
)
REPEATED = metrics.Counter(
    "relay_messages_repeated_total", "Submissions answered with an earlier queue id by their idempotency key"
)


@dataclass(slots=True)
class Envelope:
    """What the session knows of one message before its content."""

    listen: Listen
    client: str
    helo: str = ""
    protocol: str = "ESMTP"
    sender: str = ""
    smtputf8: bool = False
    user: User | None = None  # who logged in
    recipients: list[str] = field(default_factory=list)
    allowances: tuple[Any, ...] = ()  # the listener's: what this message is counted against
    ret: str = ""  # RFC 3461, as is `asked`: recipient -> (bits of Notify, ORCPT)
    envid: str = ""
    asked: dict[str, tuple[int, str]] = field(default_factory=dict)
    # For the quotas: each recipient, and how he would leave.
    wanted: list[tuple[Facts, str]] = field(default_factory=list)
    charge: Charge | None = None
    counted: dict[Meter, int] = field(default_factory=dict)  # recipients that were taken at RCPT
    # What was asked beside the message and not in it, as HTTP does: it wins.
    options: Options | None = None
    metadata: str = ""  # JSON
    digest: str = ""  # of all that was submitted, to know a repetition from another message with the same key


class Intake:
    """The steps. `config` returns the generation in force."""

    def __init__(
        self,
        spool: Spool,
        config: Callable[[], Config],
        log: MailLog,
        quotas: Quotas,
        known: Known | None = None,
        suppressions: Suppressions | None = None,
    ) -> None:
        self.quotas, self.known = quotas, known
        self.suppressions = Suppressions(spool, config, log) if suppressions is None else suppressions
        self.spool, self.config, self._log = spool, config, log
        self.budget = Budget()

    @property
    def reports(self) -> bool:
        """Whether senders are told what became of their mail."""
        return self.config().dsn.to != "none"

    def refuse_now(self) -> str:
        """Why no mail can be accepted at the moment; empty: it can."""
        return self.spool.refusal

    def refuse_sender(self, envelope: Envelope) -> BadMessage | None:
        """What can be said at MAIL time: whether the user may send as this."""
        user = envelope.user
        if user is None or matches_any(user.senders, envelope.sender):
            return None
        return BadMessage(553, "5.7.1", f"user {user.name} may not send as <{envelope.sender}>")

    def refuse_recipient(self, envelope: Envelope, recipient: str) -> BadMessage | None:
        """What can be said at RCPT time: only where no fact of the content could change it."""
        user = envelope.user
        if user is not None and not matches_any(user.recipients, recipient):
            return BadMessage(550, "5.7.1", f"user {user.name} may not send to <{recipient}>")
        name = user.name if user else ""
        if (why := self.suppressions.at_rcpt(recipient, name, envelope.sender)) is not None:
            return _refused(recipient, why)
        facts = Facts(envelope.sender, recipient, envelope.listen.name, envelope.client, user=name)
        table = self.config().table
        route = table.pick_for(facts)
        refused = None if isinstance(route, Undecided) else refusal(table, route, facts)
        if refused is None and not self.quotas.none:
            refused = self.quotas.check(facts, envelope.counted, clock.now())
        return refused

    async def accept(self, envelope: Envelope, incoming: Incoming, *, needs: int) -> tuple[int, bool]:
        """(id, is it new) once the message is durable. Raises BadMessage, SpoolError."""
        _, number, fresh = await self.take(envelope, incoming, needs=needs)
        return number, fresh

    async def take(self, envelope: Envelope, incoming: Incoming, *, needs: int) -> tuple[NewMessage, int, bool]:
        """As `accept`, with the message as it is kept."""
        message, fresh = None, False
        try:
            message = await self._message(envelope, incoming, needs)
            number, fresh = await self.spool.accept(message)
        except BadMessage as error:
            REFUSED.inc(1, str(error.code))
            raise
        except asyncio.CancelledError:
            if message is not None:  # the spool stores it, whoever waits: it counts, and its file is not ours to delete
                fresh = True
                incoming.keep()
            raise
        finally:
            if envelope.charge is not None and not fresh:
                envelope.charge.give_back()
        if fresh and not isinstance(message.body, bytes):
            incoming.keep()
        self.tell(envelope, message, number, fresh)
        return message, number, fresh

    async def _message(self, envelope: Envelope, incoming: Incoming, needs: int) -> NewMessage:
        config, now = self.config(), clock.now()
        raw, body = await incoming.finish()
        head = read_head(raw)
        user = envelope.user
        if head.faults or not head.from_ or not raw.endswith(b"\r\n\r\n"):
            found = faults(head, raw, body != b"")
            if found and envelope.listen.headers == "reject":
                raise BadMessage(554, "5.6.0", found[0].text)
            self.put_right(config, envelope, incoming.id, head, found)
        _check_authors(user, head)
        allowed = user.classes if user else ()
        options = self._options(config, envelope, incoming.id, head, now)
        facts = self.facts(config, envelope, head, options, incoming.size)
        class_ = choose_class(config.classes, options.class_, facts, allowed)
        start = max(now, options.send_at or 0.0)
        kept = _traced(config, envelope, incoming.id, head, now)
        if head.faults and long_line(kept):
            needs |= LONG_LINES  # by what was put right: a name that is longer now, a comma
        if envelope.smtputf8 and self._needs_utf8(envelope, kept):
            needs |= UTF8
        own = None if options.priority in (None, int(class_.priority)) else options.priority
        recipients = await self.recipients(config, envelope, facts, class_, options.route, start, incoming.id, own)
        size = len(body) if isinstance(body, bytes) else body.size
        if envelope.wanted:
            envelope.charge = self.quotas.take(envelope.wanted, len(kept) + size, now)
        if config.spool.keep_bodies != "all" and all(r.egress == Action.DISCARD for r in recipients):
            body = b""
        return NewMessage(
            id=incoming.id,
            sender=envelope.sender,
            header_from=head.from_,
            user=facts.user,
            class_=class_.name,
            tag=options.tag,
            listener=envelope.listen.name,
            client=envelope.client,
            priority=int(class_.priority if options.priority is None else options.priority),
            accepted_at=now,
            head=kept,
            body=body if isinstance(body, bytes) else body.path,
            body_size=size,
            smtp=needs,
            recipients=recipients,
            idempotency_key=options.idempotency_key,
            digest=envelope.digest if options.idempotency_key else "",
            metadata=envelope.metadata,
            send_at=options.send_at or 0.0,
            envid=envelope.envid,
            ret=envelope.ret,
            spent=envelope.charge.rows() if envelope.charge else (),
        )

    def _options(self, config: Config, envelope: Envelope, number: int, head: Head, now: float) -> Options:
        """What the application asked for; tells what of it does not count. Raises BadMessage."""
        user = envelope.user
        options, ignored = read_options(head, envelope.listen.honour | (user.honour if user else frozenset()), now)
        options = options.under(envelope.options) if envelope.options else options
        allowed = user.classes if user else ()
        if options.class_ and options.class_ not in config.classes:
            ignored.append(f"x-relay-class: no class {options.class_!r} in the configuration")
        elif options.class_ and allowed and options.class_ not in allowed:
            ignored.append(f"x-relay-class: class {options.class_!r} is none of this user's")
        if len(ignored) > MAX_TOLD:
            ignored[MAX_TOLD:] = [f"and {len(ignored) - MAX_TOLD} more"]
        for text in ignored:
            self._log.warning("option_ignored", id=queue_id(number), listener=envelope.listen.name, option=text)
        return options

    def put_right(self, config: Config, envelope: Envelope, number: int, head: Head, found: list[Fault]) -> None:
        """Tells what was repaired, and names an author where none is. Raises BadMessage for what can't be repaired."""
        for fault in found:
            if fault.outcome is Outcome.REFUSED:
                raise BadMessage(554, "5.6.0", fault.text)
        if not head.has_from:
            head.add_from(envelope.sender or f"MAILER-DAEMON@{config.hostname}")
        for fault in found:  # one of a kind
            if fault.outcome is Outcome.REPAIRED:
                REPAIRED.inc(1, fault.what)
            self._log.warning(
                "repaired" if fault.outcome is Outcome.REPAIRED else "odd_header",
                id=queue_id(number),
                sender=envelope.sender,
                listener=envelope.listen.name,
                what=fault.what,
                count=fault.count,
                why=fault.text,
            )

    @staticmethod
    def _needs_utf8(envelope: Envelope, head: bytes) -> bool:
        return not (head.isascii() and envelope.sender.isascii() and all(r.isascii() for r in envelope.recipients))

    def facts(self, config: Config, envelope: Envelope, head: Head, options: Options, size: int) -> Facts:
        return Facts(
            sender=envelope.sender,
            recipient="",
            listener=envelope.listen.name,
            client=envelope.client,
            user=envelope.user.name if envelope.user else "",
            from_=head.from_,
            tag=options.tag,
            size=size,
            headers=head.headers() if config.asks_headers else None,
            reputation=self.known.score(envelope.sender) if self.known and config.asks_reputation else None,
        )

    async def recipients(
        self,
        config: Config,
        envelope: Envelope,
        facts: Facts,
        class_: TrafficClass,
        asked_route: str,
        start: float,
        number: int,
        priority: int | None = None,
    ) -> list[NewRecipient]:
        """One for each recipient and each copy, routed. Raises BadMessage where no recipient may pass.

        Who is suppressed fails at once; where `at_rcpt: accept` says so, that is no reason to refuse the message.
        """
        named = config.table.named(asked_route, lambda q: q.ask(facts))
        overrides: dict[str, str | bool] = {"route": asked_route} if named else {}
        made: dict[str, NewRecipient] = {}
        refusals: list[BadMessage] = []
        accepted = False  # somebody who is suppressed
        todo = deque(zip(envelope.recipients, repeat(True)))
        ask: Answers | None = None
        while todo:
            address, original = todo.popleft()
            if address in made:
                continue
            if len(made) % BREATH == BREATH - 1:
                await asyncio.sleep(0)  # a thousand recipients under many rules must not hold up everybody else
            mine = facts.of(address, class_.name)
            ask = Answers(mine, ask)
            route = config.table.unless_captured(named, ask) if named else config.table.pick(ask)
            assert not isinstance(route, Undecided)  # every fact is known now
            refused = refusal(config.table, route, mine)
            why = None if refused else self.suppressions.find(address, class_.name, facts.user, facts.sender)
            passes = route and not refused and why is None and original
            if refused:
                refusals.append(refused)
            if refused and not original:
                continue  # a copy that no route takes is not the sender's fault
            if route and passes:
                todo.extend((copy, False) for copy in route.copy)
            if route and passes and not self.quotas.none:
                envelope.wanted.append((mine, next(iter(config.table.egresses(route, ask)), "")))
            made[address] = found = begin(
                config.table, route, refused, mine, ask, class_, start, overrides, number, priority
            )
            # Who sent the message knows nothing of a copy: no report may tell of it.
            found.notify, found.orcpt = envelope.asked.get(address, (0, "")) if original else (int(Notify.NEVER), "")
            if why is not None:
                suppress(found, why)
                SUPPRESSED.inc(1, "accept")
                refusals.append(_refused(address, why))
                accepted |= config.suppression.at_rcpt == "accept"
        if refusals and not accepted and all(r.state is State.FAILED for r in made.values()):
            raise refusals[0]
        return list(made.values())

    def tell(self, envelope: Envelope, message: NewMessage, number: int, fresh: bool) -> None:
        if not fresh:
            REPEATED.inc()
            self._log.event(
                "repeated",
                id=queue_id(number),
                sender=message.sender,
                recipients=len(message.recipients),
                recipient=message.recipients[0].address if len(message.recipients) == 1 else None,
                listener=envelope.listen.name,
                key=message.idempotency_key,
            )
            return
        ACCEPTED.inc(1, envelope.listen.name)
        self._log.event(
            "accepted",
            id=queue_id(number),
            sender=message.sender,
            recipients=len(message.recipients),
            recipient=message.recipients[0].address if len(message.recipients) == 1 else None,
            domain=domain_of(message.recipients[0].address),
            size=len(message.head) + message.body_size,
            listener=envelope.listen.name,
            client=envelope.client,
            user=message.user,
            tag=message.tag,
            class_=message.class_,
        )
        for r in message.recipients:
            if r.state not in READY:
                self._tell_ended(message, r)

    def _tell_ended(self, message: NewMessage, r: NewRecipient) -> None:
        """A rule ended or holds this recipient at once."""
        ended = r.egress + "ed" if r.egress == Action.DISCARD else "captured" if r.egress else r.state.label
        kind = r.kind or ended
        ENDED.inc(1, kind)
        self._log.event(
            kind,
            WARNING if r.state is State.FAILED else INFO,
            id=queue_id(message.id),
            sender=message.sender,
            recipient=r.address,
            why=r.why,
            tag=message.tag,
            class_=message.class_,
        )


def _refused(recipient: str, why: Why) -> BadMessage:
    no = suppressed_reply(recipient, why)
    return BadMessage(no.code, no.enhanced, no.text)


def _traced(config: Config, envelope: Envelope, number: int, head: Head, now: float) -> bytes:
    """The header block as it is kept: behind our trace fields."""
    trace = prefix(
        head,
        queue_id=queue_id(number),
        hostname=config.hostname,
        helo=envelope.helo,
        client=envelope.client,
        protocol=envelope.protocol,
        now=now,
    )
    return trace + head.kept


def _check_authors(user: User | None, head: Head) -> None:
    """Whom the message names as its authors (RFC 6409 §6.1). Raises BadMessage."""
    if user is None or "*" in user.senders:
        return
    for author in authors(head):
        # Who may send as nobody may so in the envelope alone: an author is always somebody.
        if not author or not matches_any(user.senders, author):
            text = f"user {user.name} may not send as {author}" if author else "From or Sender cannot be read"
            raise BadMessage(550, "5.7.1", text)
