"""What a configuration means: the frozen values that the rooms work with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from relay.outgoing.rewrite import Rewrite
from relay.policy.breaker import Health
from relay.policy.classes import TrafficClass
from relay.policy.limits import Limit, facts_kept, questions
from relay.policy.rate import Rate
from relay.policy.replies import ReplyRule
from relay.policy.routing import Match, Question, Table
from relay.policy.shaping import ShapingRule
from relay.policy.suppression import SuppressionRule
from relay.policy.warmup import WarmUp
from relay.secrets import Reference
from relay.settings.attachments import Attachments
from relay.settings.base import Activated, Address, OAuth2, ServerTls, Tls, TlsMode, is_loopback
from relay.settings.drop import Drop
from relay.settings.feedback import Endpoint, Feedback, FeedbackDoor, FeedbackHttp, Mailbox, Provider
from relay.signing.key import SigningKey
from relay.signing.rules import Rules

__all__ = [  # beside what is defined here
    "Activated",
    "Address",
    "Attachments",
    "Drop",
    "Endpoint",
    "Feedback",
    "FeedbackDoor",
    "FeedbackHttp",
    "Mailbox",
    "OAuth2",
    "Provider",
    "ServerTls",
    "Tls",
    "TlsMode",
    "is_loopback",
]

HONOURABLE = ("class", "priority", "send_at", "tag", "idempotency_key", "route")
DEFAULT_HONOUR = frozenset(HONOURABLE) - {"route"}


@dataclass(frozen=True, slots=True)
class Listen:
    name: str
    address: Address | Activated
    honour: frozenset[str] = DEFAULT_HONOUR
    line_endings: Literal["normalise", "reject"] = "normalise"
    max_recipients: int = 1000
    max_connections_total: int = 500
    max_connections_client: int = 500  # loopback: every application has the same address
    optional: bool = False  # a default listener whose address family may be missing: that only warns
    tls: ServerTls | None = None
    auth: Literal["none", "optional", "required"] = "none"
    clients: tuple[
        str, ...
    ] = ()  # networks that may send without a login (with `required`: and nobody else may log in)
    proxy: tuple[str, ...] = ()  # networks whose PROXY header tells the client's address
    client_rate: Rate | None = None  # messages of one client
    user_rate: Rate | None = None  # messages of one user
    idle_timeout: float = 300.0  # seconds; RFC 5321 §4.5.3.2.7
    transaction_timeout: float = 1800.0  # seconds from MAIL to the final dot, our own time not counted
    min_rate: int = 500  # bytes a second of DATA, on average after the first half minute
    headers: Literal["repair", "reject"] = "repair"  # a header block that others could read in another way


API = Listen("api", Address("", 0))  # by which mail comes over HTTP; its address is `admin`'s


@dataclass(frozen=True, slots=True)
class User:
    """An application that logs in, and what it may do."""

    name: str
    password: Reference | None = None  # at most one of the two; with neither he comes by token alone
    password_hash: str = field(default="", repr=False)  # argon2, PHC format
    senders: tuple[str, ...] = ("*",)  # MAIL FROM and From, globs
    recipients: tuple[str, ...] = ("*",)
    classes: tuple[str, ...] = ()  # allowed, the first is the default; none: any
    honour: frozenset[str] = frozenset()  # beside the listener's
    tenant: str = ""

    @property
    def logs_in(self) -> bool:
        return self.password is not None or bool(self.password_hash)


@dataclass(frozen=True, slots=True)
class Source:
    """Where mail leaves from that is delivered by MX. With one address of the two only that family is used; with none the
    kernel chooses."""

    v4: str = ""
    v6: str = ""
    hostname: str = ""  # EHLO; empty: the relay's


@dataclass(frozen=True, slots=True)
class Account:
    """A way out: an upstream that we log in to, or with a `source` the recipients' own servers, by MX."""

    name: str
    host: Reference
    port: int
    tls: Tls
    username: Reference | None = None
    password: Reference | None = None
    senders: tuple[str, ...] = ("*",)  # may send as, globs on MAIL FROM; fail-over skips it otherwise
    signs: bool = False  # it signs itself: we don't
    connections: int = 10
    messages_per_connection: int = 100
    recipients_per_message: int = 100
    limits: tuple[Rate, ...] = ()  # how fast it may send
    replies: tuple[ReplyRule, ...] = ()  # what it means by its words; the first that fits decides
    shaping: tuple[ShapingRule, ...] = ()  # its preset's; asked after the user's
    preset: str = ""  # where what is not said above came from
    idle: float = 30.0  # seconds a session is kept without work
    oauth2: OAuth2 | None = None  # instead of `password`
    source: Source | None = None  # by MX from here: `connections` is over all destinations, `host` means nothing
    warm_up: WarmUp | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """Egresses that share mail by weight; a message keeps to the one that it drew, and goes by another where that rests."""

    name: str
    members: tuple[tuple[str, int], ...]  # (egress, weight)


Per = Literal["egress", "relay", "mx", "domain"]


@dataclass(frozen=True, slots=True)
class Destination:
    """How mail to some domains is delivered by MX; the first whose `match` holds. The defaults are everybody else's."""

    name: str = ""
    match: Match = field(default_factory=Match)  # over `mx` and `recipient`
    # What is one lane, with connections and limits of its own: all of it at each egress, all of it at all of them, or at each
    # egress the domains of the same MX hosts, or each domain.
    per: Per = "egress"
    connections: int = 20  # at once, in a lane
    messages_per_connection: int = 100
    recipients_per_message: int = 100
    limits: tuple[Rate, ...] = ()
    tls: Tls | None = None  # None: DANE, else MTA-STS, else opportunistic
    port: int = 25
    allow_private: bool = False  # addresses that are not of the public network
    warm_up: WarmUp | None = None  # of each egress, for what goes there
    origin: str = field(default="", compare=False)  # file:line: the same rule on another line is no other one


ANYWHERE = Destination(per="mx")


@dataclass(frozen=True, slots=True)
class Spool:
    path: Path
    max_message_size: int = 25_000_000
    reserve: int = 256_000_000
    max_queued: int = 1_000_000
    keep: float = 7 * 86400.0
    keep_bodies: Literal["none", "failed", "all"] = "failed"


@dataclass(frozen=True, slots=True)
class Dsn:
    """Whom we tell what became of a message (RFC 3461)."""

    to: str = "sender"  # or an address for all of them, or `none`
    via: str = ""  # the account by which they leave; empty: `routes` decides
    delay_after: float | None = 4 * 3600.0  # None: nobody is told of a delay
    postmaster: str = ""  # who hears where a message without a sender failed; empty: nobody


@dataclass(frozen=True, slots=True)
class Arc:
    """How we seal what we forward (RFC 8617)."""

    domain: str
    selector: str
    key: SigningKey
    routes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Dns:
    servers: tuple[str, ...] = ()  # IP address, or with a port; none: the system's
    timeout: float = 5.0  # seconds for one question
    trust_ad: bool = (
        False  # `servers` validate (DNSSEC), and nobody is between them and us: DANE may rely on their AD bit
    )


@dataclass(frozen=True, slots=True)
class Admin:
    socket: Path
    address: Address | None
    tls: ServerTls | None = None  # beyond loopback always
    audit: float = 365 * 86400.0  # seconds that an entry of the audit is kept


@dataclass(frozen=True, slots=True)
class Log:
    format: Literal["logfmt", "json"] = "logfmt"
    redact: bool = False


@dataclass(frozen=True)
class Config:
    """One generation of the configuration. Compared by identity; a reload swaps it whole."""

    source: Path | None  # None: the built-in demonstration, no file
    hostname: str
    listen: tuple[Listen, ...]
    spool: Spool
    admin: Admin
    routes: Table
    accounts: Mapping[str, Account] = field(default_factory=dict)  # all ways out but pools, which are made of them
    pools: Mapping[str, Pool] = field(default_factory=dict)
    destinations: tuple[Destination, ...] = ()
    classes: Mapping[str, TrafficClass] = field(default_factory=dict)
    users: Mapping[str, User] = field(default_factory=dict)
    # Of `limits`, users, tenants and classes; those of egresses and destinations are theirs.
    limits: tuple[Limit, ...] = ()
    breaker: Health = field(default_factory=Health)
    shaping: tuple[ShapingRule, ...] = ()  # the user's; those of presets are their accounts'
    dsn: Dsn = Dsn()
    rewrites: Mapping[str, Rewrite] = field(default_factory=dict)  # by route
    signing: Rules = field(default_factory=Rules)
    arc: Arc | None = None
    feedback: Feedback = field(default_factory=Feedback)
    suppression: SuppressionRule = field(default_factory=SuppressionRule)
    webhooks: Mapping[str, Endpoint] = field(default_factory=dict)
    attachments: Attachments = field(default_factory=Attachments)
    drop: Mapping[str, Drop] = field(default_factory=dict)
    dns: Dns = Dns()
    log: Log = Log()
    probes: Address | None = None
    stop_timeout: float = 25.0
    files: tuple[Path, ...] = ()  # every file that was read, for `check` and errors
    warnings: tuple[str, ...] = ()
    sections: Mapping[str, str] = field(default_factory=dict)  # of the file, by name: a digest of what stands there
    tree: Any = field(
        default=None, repr=False
    )  # its file as it was read: what is changed at run time is laid over that
    suspended: tuple[Question, ...] = ()  # what lanes must answer for what is suspended by hand
    tenants: Mapping[str, frozenset[str]] = field(default_factory=dict)  # tenant -> its users

    @cached_property
    def table(self) -> Table:
        """`routes`, with the egresses that they name."""
        limited = {a.name: Question("sender", a.senders) for a in self.accounts.values() if "*" not in a.senders}
        direct = frozenset(a.name for a in self.accounts.values() if a.source is not None)
        asked = [q for d in self.destinations for q in (*d.match.all_of, *d.match.none_of) if q.fact != "mx"]
        return replace(
            self.routes,
            senders=limited,
            ways=frozenset((*self.accounts, *self.pools)),
            direct=direct,
            pools={pool.name: pool.members for pool in self.pools.values()},
            asked=(*(asked if direct else ()), *questions(self.limits), *self.suspended),
            kept=facts_kept(self.limits),
            overflow={a.name: a.warm_up.overflow for a in self.accounts.values() if a.warm_up and a.warm_up.overflow},
        )

    @cached_property
    def tenant_of(self) -> Mapping[str, str]:
        """User -> tenant, of those who have one."""
        return {user: tenant for tenant, users in self.tenants.items() for user in users}

    @cached_property
    def asks_reputation(self) -> bool:
        """Whether any rule looks at how a sender's mail fares."""
        classes = [c.match for c in self.classes.values() if c.match]
        asked = [*self.table.questions, *(q for m in classes for q in (*m.all_of, *m.none_of))]
        return any(q.fact == "reputation" for q in asked)

    @cached_property
    def asks_headers(self) -> bool:
        """Whether any rule looks at a header: if none does, none is decoded."""
        matches = [c.match for c in self.classes.values() if c.match] + [limit.match for limit in self.limits]
        asked = [q for m in matches for q in (*m.all_of, *m.none_of)]
        return self.table.asks_headers or any(q.fact == "header" for q in asked)
