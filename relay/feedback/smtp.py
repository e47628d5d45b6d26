"""The SMTP door of the bounce domain: mail servers of the whole world bring here what they could not deliver.

Promises: only mail to a return path that our key made, or to an unsubscription of it, is taken; all else is refused at RCPT, so
that nothing is relayed, caught for somebody else, or answered by mail. 250 is said once what was understood is durable; memory
is bounded whatever arrives. Refuses: logins. VRFY tells nothing.

Postmaster (RFC 5321 §4.5.1) is refused too: here is no mailbox that anybody reads, and to take such mail and drop it would be
worse. An operator who wants it lets his own mail server take the domain and hand on what begins with `bounce+`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast

from relay.feedback.heard import HEARD, REFUSED, UNSUBSCRIBE, Finding, Heard, Source
from relay.incoming import Budget, Incoming
from relay.intake import Envelope
from relay.listener.front import Door
from relay.listener.guard import Guard
from relay.listener.session import Session
from relay.maillog import MailLog
from relay.returned import Kind
from relay.returned.bounded import Unavailable
from relay.settings import FeedbackDoor, Listen
from relay.spool import Spool, SpoolError, Staging
from relay.submission import BadMessage

NAME = "feedback"
MAX_SIZE = 10_000_000  # bytes of a message: a report may hold the whole of what it is about
MAX_READ = 512 << 10  # of which so many are read: what happened stands in front
MAX_RECIPIENTS = 100
AT_ONCE = 4  # messages that are read at once: the rest wait, and mail is not held up
EVERYBODY = ("0.0.0.0/0", "::/0")


@dataclass(slots=True)
class Kept:
    """In the place of a staged file: as much of a body as is read; the rest goes nowhere."""

    content: bytearray = field(default_factory=bytearray)

    async def write(self, *parts: bytes) -> None:
        for part in parts:
            self.content += part[: max(0, MAX_READ - len(self.content))]

    async def finish(self) -> None:
        """It is in memory, and complete."""

    def abandon(self) -> None:
        self.content.clear()


class Shelf:
    """Stands where the spool does, for content that arrives."""

    def __init__(self, spool: Spool) -> None:
        self._spool, self._numbers = spool, count(1)
        self.max_message_size = MAX_SIZE

    @property
    def refusal(self) -> str:
        return self._spool.refusal

    def next_id(self) -> int:
        return next(self._numbers)  # of nothing that is kept

    def stage(self, message: int) -> Staging:
        return cast(Staging, Kept())


class Decider:
    """Stands where intake does: whom mail may be for, and what becomes of it."""

    reports = False  # whoever brings a report wants none on it

    def __init__(self, heard: Heard, log: MailLog) -> None:
        self._heard, self._log = heard, log
        self.spool, self.budget = Shelf(heard.spool), Budget()
        self._reading = asyncio.Semaphore(AT_ONCE)

    def refuse_now(self) -> str:
        return self.spool.refusal

    def refuse_sender(self, envelope: Envelope) -> BadMessage | None:
        return None

    def refuse_recipient(self, envelope: Envelope, recipient: str) -> BadMessage | None:
        prefix, token = self._heard.own(recipient)
        if not token:
            REFUSED.inc(1, "not_ours")
            return BadMessage(550, "5.1.1", "no such address: only what we sent may come back here")
        if self._heard.genuine(token) is None:
            REFUSED.inc(1, "forged")
            return BadMessage(550, "5.1.1", "no such address: this return path is none of ours")
        if prefix == UNSUBSCRIBE and not envelope.sender:
            REFUSED.inc(1, "unsubscribed_by_none")
            return BadMessage(550, "5.7.1", "a report is no unsubscription")
        return None

    async def accept(self, envelope: Envelope, incoming: Incoming, *, needs: int) -> tuple[int, bool]:
        """Durable when it returns. Raises BadMessage."""
        head, body = await incoming.finish()
        content = body if isinstance(body, bytes) else bytes(cast(Kept, body).content)
        try:
            await self._hear(envelope, (head + content)[:MAX_READ])
        except SpoolError as error:
            self._log.error("spool_refused", client=envelope.client, error=str(error))
            raise BadMessage(451, "4.3.0", "this cannot be stored now, try again later") from None
        except Unavailable as error:
            self._log.error("report_unread", client=envelope.client, error=str(error))
            raise BadMessage(451, "4.3.0", "this cannot be read now, try again later") from None
        return incoming.id, True

    async def _hear(self, envelope: Envelope, raw: bytes) -> None:
        findings: list[Finding] | None = None
        for prefix, token in dict.fromkeys(self._heard.own(recipient) for recipient in envelope.recipients):
            if prefix == UNSUBSCRIBE:
                if await self._heard.unsubscribe(Source(UNSUBSCRIBE, token=token)) is None:
                    self._log.event("unsubscribe_unknown", client=envelope.client, sender=envelope.sender)
                continue
            if findings is None:
                async with self._reading:
                    findings = await self._heard.understand(raw)
            await self._heard.report(findings, Source("bounce", token=token))
            if all(finding.kind is Kind.OTHER for finding in findings):
                self._log.event("nothing_understood", source="bounce", client=envelope.client, sender=envelope.sender)
                HEARD.inc(float(not findings), "bounce", "other")


class FeedbackSession(Session):
    def is_served(self) -> bool:
        return True  # whoever comes; whom mail may be for is what is looked at

    def taken(self, number: int) -> bytes:
        return b"250 2.0.0 Ok: noted\r\n"


class FeedbackListener(Door):
    """The door; `open`, `sweep`, `stop` and `drain` as any other."""

    def __init__(self, settings: FeedbackDoor, heard: Heard, log: MailLog, hostname: str) -> None:
        listen = Listen(
            NAME,
            settings.address,
            honour=frozenset(),
            max_recipients=MAX_RECIPIENTS,
            max_connections_total=settings.max_connections_total,
            max_connections_client=settings.max_connections_client,
            tls=settings.tls,
            clients=EVERYBODY,
            client_rate=settings.client_rate,
            transaction_timeout=600.0,
        )
        guard = Guard(log, room=settings.max_connections_total, backlog=min(128, settings.max_connections_total))
        super().__init__(listen, cast(Any, Decider(heard, log)), log, hostname, guard)
        self.settings = settings

    def session(self, client: str | None = None) -> Session:
        return FeedbackSession(self, client)
