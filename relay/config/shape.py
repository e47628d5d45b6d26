"""The shape of what users write, as pydantic models: every key that this version builds, and what each may hold.

Owns: key names, types, defaults that do not depend on other keys, and the description of each key (docs/config.md is
made of them). Keys of the whole design that are not built yet are named in `planned`, so that they are refused as such.
Refuses: every other key; any value that would have to be converted (`no` is no boolean, "5" no number).
Rules between keys are not here: see build.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from relay.config.attachments import AttachmentsSection
from relay.config.drop import DropEntry
from relay.config.feedback import FeedbackSection
from relay.config.feedbackhttp import HttpTlsSection
from relay.config.leaving import ArcSection, DnsSection, RewriteSection, SigningEntry
from relay.config.matches import MatchSection
from relay.config.mx import DestinationEntry, DirectEntry, PoolEntry
from relay.config.pacing import BreakerSection, HoursSection, Limit, LimitEntry, rate_alone
from relay.config.shaping import ShapingEntry
from relay.config.suppression import SuppressionSection
from relay.config.types import (
    AddressPattern,
    Count,
    Duration,
    FilePath,
    Given,
    Hostname,
    HostPort,
    ListenAddress,
    ListOf,
    MessageRate,
    Name,
    Network,
    OneOrMany,
    OnlyTrue,
    OrAlone,
    PasswordHash,
    Recipient,
    ReplyText,
    ReportTo,
    Secret,
    Section,
    Size,
    Written,
)
from relay.config.upstream import AccountEntry, ListenTlsSection
from relay.config.webhooks import WebhookEntry
from relay.settings import DEFAULT_HONOUR, Address

Honourable = Literal["class", "priority", "send_at", "tag", "idempotency_key", "route"]


class LogSection(Section):
    format: Literal["logfmt", "json"] = Field("logfmt", description="How a line of the log is written.")
    redact: bool = Field(False, description="Log addresses as a keyed hash.")


class MaxConnections(Section):
    total: Count = Field(500, description="Connections at once on this listener.")
    client: Count = Field(500, description="Connections at once from one client address.")


class MaxMessages(Section):
    client: Given[MessageRate] = Field(None, description="Of one client address.")
    user: Given[MessageRate] = Field(None, description="Of one user.")


class ListenEntry(Section):
    name: Given[Name] = Field(None, description="Its name in logs and in `match.listener`; default `listener-N`.")
    address: ListenAddress = Field(
        description="Where it listens. Port 0: any free one. `systemd:NAME`: the socket of that FileDescriptorName."
    )
    tls: Given[ListenTlsSection] = Field(None, description="Its certificate; without, no TLS is offered.")
    auth: Literal["none", "optional", "required"] = Field(
        "none", description="Whether clients log in; beyond loopback all but `required` needs `clients`."
    )
    clients: Given[ListOf[Network]] = Field(
        None, description="Who may send without a login; with `auth: required`, who may log in."
    )
    proxy: ListOf[Network] = Field(
        (), description="Load balancers, which must say by PROXY header who their client is."
    )
    honour: ListOf[Honourable] = Field(
        tuple(h for h in ("class", "priority", "send_at", "tag", "idempotency_key") if h in DEFAULT_HONOUR),
        description="Which X-Relay-* header fields count; `route` is possible too.",
    )
    line_endings: Literal["normalise", "reject"] = Field(
        "normalise",
        description="What becomes of a bare CR or LF in a message, and of one with a NUL (which leaves as base64).",
    )
    headers: Literal["repair", "reject"] = Field(
        "repair", description="What becomes of a malformed header, or one without From; `reject`: refused (554)."
    )
    max_recipients: Count = Field(1000, description="Recipients of one message.")
    max_connections: MaxConnections = Field(MaxConnections(), description="How many connections it takes (else 421).")
    max_messages: MaxMessages = Field(MaxMessages(), description="How many messages it takes (else 450).")
    idle_timeout: Duration = Field(300.0, description="A client that says nothing for so long is cut.")
    transaction_timeout: Duration = Field(1800.0, description="So long may one message take to arrive.")
    min_rate: Size = Field(
        500, description="A message that comes with fewer bytes a second is cut; the first 30s are free."
    )


class UserEntry(Section):
    password: Given[Secret] = Field(
        None, description="The secret to log in with; or `password_hash`; with neither: by token alone."
    )
    password_hash: Given[PasswordHash] = Field(None, description="Its argon2 hash, as `relay password hash` makes one.")
    senders: OneOrMany[AddressPattern] = Field(
        ("*",), description='Whom it may name in MAIL FROM, From and Sender; `""` is the null sender.'
    )
    recipients: OneOrMany[AddressPattern] = Field(("*",), description="To whom it may send.")
    classes: ListOf[Name] = Field((), description="Which classes it may use, the first is its default; without: any.")
    tenant: Given[Name] = Field(None, description="Whom it belongs to: the tenant's limits bind it too.")
    limits: ListOf[Limit] = Field((), description="How much it may send; all of them bind.")
    honour: ListOf[Honourable] = Field((), description="Which X-Relay-* count beside those of the listener.")


class TenantEntry(Section):
    limits: ListOf[Limit] = Field((), description="How much its users may send together; all of them bind.")
    routes: Given[ListOf[Name]] = Field(
        None, description="Which routes its users' mail may take; every other is passed over for it. Without: any."
    )


class LimitRule(LimitEntry):
    name: Given[Name] = Field(None, description="Its name in logs and metrics; default `limit-N`.")
    match: Given[MatchSection] = Field(None, description="Which mail it binds, as of a route; without: all.")
    per: OneOrMany[Literal["sender", "from", "user", "tenant", "class", "destination", "egress"]] = Field(
        (), description="What has a count of its own, of several each combination; without: all that match have one."
    )


class AdminSection(Section):
    socket: Given[FilePath] = Field(
        None, description="UNIX socket of the admin API; default `admin.sock` in the runtime folder."
    )
    address: HostPort | None = Field(
        Address("127.0.0.1", 2580), description="Where the API is for who has a token; `null`: on the socket only."
    )
    tls: Given[HttpTlsSection] = Field(None, description="Its certificate; beyond loopback there must be one.")
    audit: Duration = Field(365 * 86400.0, description="How long it is kept who changed what.")


class ProbesSection(Section):
    address: HostPort | None = Field(
        None, description="Where a scraper finds /metrics, /healthz, /readyz; `null`: off."
    )


class SpoolSection(Section):
    planned = frozenset({"url"})

    path: Given[FilePath] = Field(None, description="The spool's file; default `spool.db` in the state folder.")
    max_message_size: Size = Field(25_000_000, gt=0, description="Larger messages are refused (552).")
    reserve: Size = Field(256_000_000, description="With less free disk space than this, new mail is refused (452).")
    max_queued: Count = Field(1_000_000, description="With more recipients queued, new mail is refused (452).")
    keep: Duration = Field(7 * 86400.0, description="How long the record of a finished message is kept.")
    keep_bodies: Literal["none", "failed", "all"] = Field(
        "failed", description="Which finished messages keep their content for as long."
    )


class RetrySection(Section):
    first: Given[Duration] = Field(None, description="Before the second try; default `1m`.")
    factor: Given[float] = Field(None, description="Each wait is so many times the one before; default `2`.")
    cap: Given[Duration] = Field(None, description="No wait is longer; default `1h`.")
    schedule: Given[ListOf[Duration]] = Field(
        None, description="Fixed waits instead of `first`, `factor`, `cap`; the last repeats."
    )
    attempts: Given[Count] = Field(None, description="Give up after so many tries; default: only `give_up` ends it.")
    give_up: Given[Duration] = Field(None, description="Give up so long after acceptance; default `5d`.")


def _priority(value: object) -> object:
    return value.lower() if isinstance(value, str) else str(value) if type(value) is int else value


class ClassEntry(Section):
    match: Given[MatchSection] = Field(
        None, description="Which messages are of this class, where no header chose one; without: by name only."
    )
    priority: Annotated[
        Literal["immediate", "high", "normal", "low", "0", "1", "2", "3"],
        BeforeValidator(_priority),
        WithJsonSchema({"enum": ["immediate", "high", "normal", "low", 0, 1, 2, 3]}),
        Written("`immediate`, `high`, `normal`, `low`, or 0 to 3"),
    ] = Field("normal", description="Which mail goes first.")
    in_doubt: Literal["retry", "hold", "fail"] = Field(
        "retry", description="What to do when a server took a message's end and never answered."
    )
    retry: RetrySection = Field(RetrySection(), description="When to try again and when to give up.")
    window: Given[HoursSection] = Field(None, description="It leaves only then.")
    quiet: Given[HoursSection] = Field(None, description="And not then; as `window`.")
    limits: ListOf[Limit] = Field((), description="How much of it may leave; all of them bind.")


class RouteEntry(Section):
    name: Given[Name] = Field(None, description="Its name in logs and commands; default `route-N`.")
    match: Given[MatchSection] = Field(None, description="Which recipients it takes; without: all.")
    via: Given[OneOrMany[Name]] = Field(
        None,
        description="The account, direct entry or pool, or `direct` (by MX); of several each next is a fail-over.",
    )
    reject: Given[ReplyText] = Field(None, description="Refuse with this text (550).")
    hold: Given[OnlyTrue] = Field(None, description="Keep it until an operator releases it.")
    discard: Given[OnlyTrue] = Field(None, description="Take it and throw it away.")
    copy_: Given[OneOrMany[Recipient]] = Field(None, alias="copy", description="Who gets a copy of each message.")
    rewrite: Given[RewriteSection] = Field(None, description="What is changed before it is signed, see below.")


class CaptureSection(Section):
    allow: ListOf[AddressPattern] = Field((), description="Recipients who are dialled; all others are kept and shown.")


class DsnSection(Section):
    to: ReportTo = Field(
        "sender", description="Who gets them: the sender of the message, one address for all, or nobody."
    )
    via: Given[Name] = Field(None, description="By what they leave, as a route's `via`; without: `routes` decides.")
    delay_after: Duration | None = Field(
        4 * 3600.0, description="Tell once that a message is still waiting after so long; `null`: never."
    )
    postmaster: Given[Recipient] = Field(
        None, description="Who hears when a message without a sender fails, such as a report; without: nobody."
    )


class File(Section):
    """A whole configuration, includes merged."""

    planned = frozenset({"alarms"})

    include: OneOrMany[str] = Field((), description="More files, as patterns; maps merge, lists append.")
    hostname: Given[Hostname] = Field(
        None, description="Our name in EHLO, Received and Message-ID; default: the machine's."
    )
    stop_timeout: Duration = Field(25.0, description="How long a stop waits for what is under way.")
    log: LogSection = Field(LogSection(), description="The log.")
    listen: Given[ListOf[ListenEntry]] = Field(
        None, description="Where applications connect; default 127.0.0.1:2525 and [::1]:2525."
    )
    admin: AdminSection = Field(default_factory=AdminSection, description="Where `relay` commands reach the service.")
    probes: ProbesSection = Field(ProbesSection(), description="What a scraper may see.")
    spool: SpoolSection = Field(SpoolSection(), description="Where messages are kept, and how many.")
    tenants: dict[Name, TenantEntry] = Field({}, description="Whom users belong to, by name.")
    users: dict[Name, UserEntry] = Field({}, description="Who may log in, by name.")
    accounts: dict[Name, AccountEntry] = Field({}, description="The servers that mail is handed to, by name.")
    direct: dict[Name, DirectEntry] = Field(
        {}, description="Ways out by MX, by name; `direct` is always there, with the kernel's address."
    )
    pools: dict[Name, PoolEntry] = Field({}, description="Ways out that share mail by weight, by name.")
    destinations: ListOf[DestinationEntry] = Field(
        (), description="How mail leaves by MX to some domains; the first match wins."
    )
    classes: dict[Name, ClassEntry] = Field({}, description="Traffic classes, by name; `default` is always there.")
    limits: ListOf[
        Annotated[
            LimitRule, BeforeValidator(rate_alone), OrAlone({"type": "string"}), Written("rate (`5000/d`), or a map")
        ]
    ] = Field((), description="How much mail may leave by who sends it, what it is, and where it goes; all bind.")
    breaker: BreakerSection = Field(BreakerSection(), description="When an egress that fails is left alone.")
    shaping: ListOf[ShapingEntry] = Field(
        (), description="What is done for a time when an upstream says certain words; before the presets' rules."
    )
    routes: ListOf[RouteEntry] = Field((), description="Which mail goes where; the first match wins. Required.")
    capture: Given[CaptureSection] = Field(None, description="For staging: nothing leaves but to whom it is allowed.")
    dsn: DsnSection = Field(
        DsnSection(), description="Reports to senders on what failed, waits long, or was handed on."
    )
    signing: ListOf[SigningEntry] = Field(
        (), description="DKIM keys by From domain; all entries of the most specific domain sign."
    )
    arc: Given[ArcSection] = Field(None, description="Seals mail that we forward for others (ARC, RFC 8617).")
    feedback: FeedbackSection = Field(
        FeedbackSection(), description="Where what comes back is sent to, and the doors by which it comes in."
    )
    suppression: Given[SuppressionSection] = Field(
        None, description="Who gets nothing more; without it only who unsubscribed, and whom an operator named."
    )
    webhooks: dict[Name, WebhookEntry] = Field({}, description="Where events go, by name.")
    attachments: AttachmentsSection = Field(
        AttachmentsSection(), description="What a program may name over HTTP instead of sending it."
    )
    drop: dict[Name, DropEntry] = Field({}, description="Folders whose files are mail, by name.")
    dns: DnsSection = Field(DnsSection(), description="How the DNS is asked.")
