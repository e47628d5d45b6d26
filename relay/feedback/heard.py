"""From what a door heard to what the spool learns: an event, a suppression, a rate. One transaction for each Finding.

Believed is what proves that it is about a message of ours: a token of our key, a provider whose signature was verified, or the
Message-ID that its application gave it, beside its queue id and a recipient of it. What names the queue id alone becomes an event
and teaches nothing, for ids follow one another; all else is a line of the log and a count: anybody can write a report.
What nobody vouches for and concerns no recipient, such as DMARC's reports, comes to so many events an hour at most. A
recipient's state is never changed: delivered stays delivered, the event tells the rest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from relay import clock, metrics
from relay.envelope import domain_of, parse_queue_id, queue_id
from relay.events import Kind as EventKind
from relay.maillog import MailLog
from relay.outgoing import verp
from relay.policy.bounces import Reason, Verdict
from relay.policy.suppression import Cause, Softly, Suppression, learnt, plain
from relay.recipient import State
from relay.reply import clean
from relay.returned import Finding, Kind
from relay.returned.parts import header_fields, split
from relay.settings import Config
from relay.spool import Event, Spool
from relay.spool.feed import Known, Learnt

MAX_TEXT = 500  # characters of a stranger's words that an event keeps
MAX_SUMMARY = 16_000  # characters of JSON that an event keeps of a report about a domain
PUBLIC_REPORTS = 300  # events an hour that nobody vouches for
# A feedback type that is no complaint: the opposite (RFC 6430), or about the authentication of a message (RFC 6591).
NO_COMPLAINT = frozenset({"not-spam", "auth-failure"})
UNSUBSCRIBE = "unsubscribe"  # before the + of the address of List-Unsubscribe
MAX_HEADER, MAX_SAME = 1000, 5  # characters of a field that are looked at, and fields of one name
_SENT_TO = ("x-original-to", "delivered-to", "envelope-to", "to")
_ADDRESS = re.compile(r"[^\s<>,;:()\"@]{1,64}@[^\s<>,;:()\"@]{1,255}")
UNFAILED = frozenset({"delivered", "relayed", "expanded"})

HEARD = metrics.Counter("relay_feedback_total", "What came back, by door and by what it came to", ["source", "result"])
REFUSED = metrics.Counter("relay_feedback_refused_total", "What came in and was not believed, by why", ["why"])


@dataclass(frozen=True, slots=True)
class Source:
    """By which door something came."""

    name: str  # bounce (our SMTP door), imap:NAME, or a provider: ses, …; unsubscribe
    verified: bool = False  # a provider that signed or logged in: believed without a message of ours
    token: str = ""  # the return path that it was sent to; not verified yet
    egress: str = ""  # whose reputation it tells, where the message's is not known


def once(source: Source, what: bytes) -> str:
    """By what a report is known when it comes again."""
    return f"{source.name} {hashlib.blake2b(what, digest_size=16).hexdigest()}"


# Who reads a mail: returned.bounded.Understanding.read. Who counts: (egress, recipient's domain, sender's domain, class, kind).
Understand = Callable[[bytes], Awaitable[list[Finding]]]
Tell = Callable[[str, str, str, str, Literal["bounced", "complained"]], None]
__all__ = ["Finding", "Heard", "Source", "Tell", "Understand", "once"]


@dataclass(frozen=True, slots=True)
class _About:
    """Whom a Finding is about, and what makes us believe it."""

    proof: str  # token, provider, quoted, or claimed: which teaches nothing
    message: int = 0
    n: int | None = None
    known: Known | None = None  # None: the spool has forgotten it, or never had it
    address: str = ""  # as the report has it, where nothing is known


class Heard:
    """`config` returns the generation in force; `understand` reads a mail in bounded time."""

    def __init__(
        self, spool: Spool, config: Callable[[], Config], understand: Understand, log: MailLog, tell: Tell
    ) -> None:
        self.spool, self.config, self.understand = spool, config, understand
        self._log, self._tell = log, tell
        self._hour, self._public = 0, 0

    def genuine(self, token: str) -> tuple[int, int] | None:
        """The message and recipient of a token that our key made."""
        key = self.config().feedback.token_key
        return verp.read(key, token) if key else None

    def own(self, address: str) -> tuple[str, str]:
        """(which of our two kinds of addresses, its token, not verified); empty: neither."""
        domain = self.config().feedback.domain
        for prefix in (verp.PREFIX, UNSUBSCRIBE) if domain else ():
            if token := verp.parse_address(address, domain, prefix):
                return prefix, token
        return "", ""

    def sent_to(self, raw: bytes) -> tuple[str, str]:
        """As `own`, of the first address that a mail of a mailbox was sent to by what its header says."""
        fields = header_fields(split(raw)[0])
        for name in _SENT_TO:
            values = [value[:MAX_HEADER] for key, value in fields if key == name][:MAX_SAME]
            for address in (address for value in values for address in _ADDRESS.findall(value)):
                if (found := self.own(address))[0]:
                    return found
        return "", ""

    async def mail(self, raw: bytes, source: Source) -> list[Finding]:
        """What a mail says, learnt. Raises SpoolError; then it may come again, for what was learnt of it is known."""
        findings = await self.understand(raw)
        await self.report(findings, source)
        return findings

    async def report(self, findings: Sequence[Finding], source: Source) -> None:
        """All that one report says, learnt. Raises SpoolError."""
        for finding in await self._of_his(findings, source):
            await self.take(finding, source)

    async def take(self, finding: Finding, source: Source, once: str = "") -> bool:
        """Durable when it returns. `once`: a name that its sender gave it; without, it is known by what it says.

        False: it was heard before. Raises SpoolError.
        """
        if finding.kind is Kind.OTHER:
            return self._nothing(finding, source, "other")
        if finding.kind in (Kind.DMARC, Kind.TLSRPT):
            return await self._of_domain(finding, source, once)
        about = await self._about(finding, source)
        if about is None:
            REFUSED.inc(1, "unbelieved")
            self._log.event(
                "report_unbelieved",
                source=source.name,
                what=finding.kind.value,
                recipient=clean(finding.recipient)[:320],
            )
            return self._nothing(finding, source, "unbelieved")
        return await self._learn(finding, source, about, once)

    async def unsubscribe(self, source: Source) -> bool | None:
        """Of whom the source's token names. None: our key did not make it, or the spool has forgotten whose it is."""
        found = self.genuine(source.token)
        if found is None or await self.spool.known(*found) is None:
            return None
        return await self.take(Finding(Kind.UNSUBSCRIBE), source)

    # -- whom it is about

    async def _of_his(self, findings: Sequence[Finding], source: Source) -> Sequence[Finding]:
        """Of a report on several to whom the one behind a token was forwarded: what is said of himself, if anything is; and if
        it arrived at any of them, no failure at another says that he is gone."""
        found = next(filter(None, map(self.genuine, (source.token, *(one.token for one in findings)))), None)
        bounces = [one for one in findings if one.kind is Kind.BOUNCE]
        if len(bounces) < 2 or found is None or (known := await self.spool.known(*found)) is None:
            return findings
        if his := [
            one for one in bounces if plain(known.address) in (plain(one.recipient), plain(one.original_recipient))
        ]:
            return [one for one in findings if one not in bounces or one in his]
        if all(one.class_ and one.action != "delayed" for one in bounces):
            return findings
        return [replace(one, class_=one.class_ and "undetermined") if one in bounces else one for one in findings]

    async def _about(self, finding: Finding, source: Source) -> _About | None:
        """None: nobody vouches for it."""
        for token in filter(None, (source.token, finding.token)):
            if (found := self.genuine(token)) is not None:
                known = await self.spool.known(*found)
                return _About("token", *found, known, known.address if known else "")
        address = finding.recipient or finding.original_recipient
        known = await self._claimed(finding, source)
        if known is not None:
            proof = "provider" if source.verified else "quoted" if _quotes(finding.message_id, known) else "claimed"
            return _About(proof, known.message, known.n, known, known.address)
        return _About("provider", address=clean(address)[:320]) if source.verified and address else None

    async def _claimed(self, finding: Finding, source: Source) -> Known | None:
        """The recipient that a report names, of the message that it names."""
        try:
            message = parse_queue_id(finding.queue_id)
        except ValueError:
            return None
        for address in filter(None, (finding.recipient, finding.original_recipient)):
            known = await self.spool.known(message, address=address)
            # An id can be guessed; who has seen the message knows what it is called.
            if known is not None and (source.verified or not _another(finding.message_id, known)):
                return known
        return None

    # -- what it comes to

    async def _learn(self, finding: Finding, source: Source, about: _About, once: str) -> bool:
        kind = _event_of(finding)
        if kind is None:
            return self._nothing(finding, source, finding.action or finding.reason or "other", about)
        now = clock.now()
        learnt = self._learnt(finding, source, about, kind, now)
        # A reporter has so many words for one recipient: of each kind, class and message it is heard once.
        learnt.once = once or _once(finding, about, kind, source)
        if await self.spool.learn(learnt) is None:
            HEARD.inc(1, source.name, "repeated")
            return False
        HEARD.inc(1, source.name, kind)
        self._told(finding, source, about, kind)
        return True

    def _learnt(self, finding: Finding, source: Source, about: _About, kind: EventKind, now: float) -> Learnt:
        known = about.known
        row = known is not None
        event = Event(
            now,
            about.message if row else 0,
            about.n if row else None,
            kind,
            known.egress if known else source.egress,
            data=_data(finding, source, about),
        )
        added, softly = self._suppressions(finding, source, about, now)
        return Learnt([event], added, softly)

    def _suppressions(
        self, finding: Finding, source: Source, about: _About, now: float
    ) -> tuple[list[Suppression], list[Softly]]:
        cause = _cause(finding)
        if cause is None or not about.address or about.proof == "claimed":
            return [], []
        config, known = self.config(), about.known
        class_, tenant = (known.class_, config.tenant_of.get(known.user, "")) if known else ("", "")
        evidence = finding.diagnostic or " ".join(filter(None, (finding.status, finding.reason)))
        name = source.name
        return learnt(config.suppression, cause, about.address, class_, tenant, evidence, name, now, about.message)

    def _told(self, finding: Finding, source: Source, about: _About, kind: EventKind) -> None:
        known = about.known
        self._log.event(
            kind,
            id=queue_id(about.message) if about.message else "",
            recipient=about.address,
            source=source.name,
            class_=finding.class_,
            status=clean(finding.status)[:20],
            reason=clean(finding.reason)[:40],
        )
        # What failed here was counted when it did; what is soft or not understood says nothing of us.
        late = finding.class_ == "hard" and (known is None or known.state != State.FAILED)
        if about.proof != "claimed" and (kind == "complained" or (kind == "bounced" and late)):
            sender = domain_of(known.sender) if known else ""
            egress = (known.egress if known else "") or source.egress
            self._tell(egress, domain_of(about.address), sender, known.class_ if known else "", kind)

    def _nothing(self, finding: Finding, source: Source, result: str, about: _About | None = None) -> bool:
        """Nothing to learn: counted, and a delay is told. Always new."""
        HEARD.inc(1, source.name, result if result in _RESULTS else "other")
        if finding.action == "delayed" and about is not None:
            number = queue_id(about.message) if about.message else ""
            words = clean(finding.diagnostic)[:MAX_TEXT]
            self._log.event("delay_reported", id=number, recipient=about.address, source=source.name, reply=words)
        return True

    async def _of_domain(self, finding: Finding, source: Source, once: str) -> bool:
        """A report about a domain: nobody vouches for it, so that there is a bound to how many are told."""
        now = clock.now()
        summary = json.dumps(dict(finding.detail), ensure_ascii=False, sort_keys=True, default=str)
        digest = hashlib.blake2b(summary.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        if int(now // 3600) != self._hour:
            self._hour, self._public = int(now // 3600), 0
        if self._public >= PUBLIC_REPORTS:
            REFUSED.inc(1, "too_many")
            if self._public == PUBLIC_REPORTS:
                self._public += 1
                self._log.warning("reports_too_many", source=source.name, most=PUBLIC_REPORTS, until="the next hour")
            return self._nothing(finding, source, "too_many")
        self._public += 1
        kind: EventKind = "dmarc_report" if finding.kind is Kind.DMARC else "tls_report"
        data = dict(finding.detail) if len(summary) <= MAX_SUMMARY else {"cut": summary[:MAX_SUMMARY]}
        event = Event(now, 0, None, kind, data=data | {"source": source.name})
        if await self.spool.learn(Learnt([event], once=once or f"{kind} {digest}")) is None:
            HEARD.inc(1, source.name, "repeated")
            return False
        HEARD.inc(1, source.name, kind)
        self._log.event(kind, source=source.name, reporter=clean(finding.reporter)[:200])
        return True


_RESULTS = frozenset({"delayed", "too_many", "unbelieved", *UNFAILED, *NO_COMPLAINT})


def _event_of(finding: Finding) -> EventKind | None:
    """None: it comes to no event."""
    match finding.kind:
        case Kind.BOUNCE:
            failed = finding.class_ and finding.action != "delayed" and finding.action not in UNFAILED
            return "bounced" if failed else None
        case Kind.COMPLAINT:
            return None if finding.reason in NO_COMPLAINT else "complained"
        case Kind.AUTO_REPLY:
            return "auto_replied"
        case Kind.UNSUBSCRIBE:
            return "unsubscribed"
        case _:
            return None


def _cause(finding: Finding) -> Cause | None:
    """What would suppress, where the configuration says so."""
    match finding.kind:
        case Kind.COMPLAINT:
            return "complaint"
        case Kind.UNSUBSCRIBE:
            return "unsubscribe"
        case Kind.BOUNCE:
            verdict = _verdict(finding)
            if verdict is None:
                return None
            return "hard_bounce" if verdict.suppresses else "soft_bounce" if verdict.counts else None
        case _:
            return None


def _verdict(finding: Finding) -> Verdict | None:
    try:
        reason = Reason(finding.reason)
    except ValueError:
        return None
    match finding.class_:
        case "hard" | "soft" | "undetermined":
            return Verdict(finding.class_, reason)
        case _:
            return None


def _once(finding: Finding, about: _About, kind: str, source: Source) -> str:
    if about.message:
        return f"{about.message} {about.n} {kind} {finding.class_}"
    said = (kind, finding.class_, about.address, finding.status, finding.message_id, str(finding.at))
    return once(source, "\0".join(said).encode("utf-8", "surrogatepass"))


def _data(finding: Finding, source: Source, about: _About) -> Mapping[str, Any]:
    """What the event says beside its row: bounded, whoever wrote it."""
    known = about.known
    found: dict[str, Any] = {
        "source": source.name,
        "proof": about.proof,
        "class": finding.class_,
        "status": finding.status,
        "reason": finding.reason,
        "action": finding.action,
        "reply": finding.diagnostic,
        "remote": finding.remote,
        "reporter": finding.reporter,
    }
    if known is None:
        found |= {
            "recipient": about.address or finding.recipient,
            "queue_id": queue_id(about.message) if about.message else "",
        }
    elif finding.recipient and finding.recipient.lower() != known.address.lower():
        found["reported_recipient"] = finding.recipient  # where it was forwarded to
    kept: dict[str, Any] = {key: clean(str(value))[:MAX_TEXT] for key, value in found.items() if value}
    if known is not None and finding.kind is Kind.BOUNCE:
        kept["late"] = known.state == State.DELIVERED  # it was delivered before, as far as we were told
    return kept


def _another(message_id: str, known: Known) -> bool:
    """Whether a report is about a message that is called otherwise."""
    return bool(message_id) and _bare(message_id) != _own(known)


def _quotes(message_id: str, known: Known) -> bool:
    """Whether it names the message as its application did, which nobody guesses. Ours are made of queue ids, which follow
    one another: who got one message could name the next."""
    own = _own(known)
    ours = own.partition("@")[0].upper() == queue_id(known.message)
    return bool(own) and not ours and _bare(message_id) == own


def _own(known: Known) -> str:
    return _bare(next((value for name, value in header_fields(known.head) if name == "message-id"), ""))


def _bare(message_id: str) -> str:
    return message_id.strip().strip("<>")
