"""What comes back, and where events go."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from relay.events import Wanted
from relay.policy.rate import Rate
from relay.secrets import Reference
from relay.settings.base import Activated, Address, OAuth2, ServerTls, Tls

# Of a topic of SNS: its partition, region, account and name.
SNS_TOPIC = re.compile(
    r"arn:(aws|aws-cn|aws-us-gov):sns:([a-z]{2}(?:-[a-z]+)+-[0-9]{1,2}):([0-9]{12}):([A-Za-z0-9_-]{1,256}(?:\.fifo)?)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class FeedbackDoor:
    """An SMTP listener for the bounce domain."""

    address: Address | Activated
    tls: ServerTls | None = None
    max_connections_total: int = 100
    max_connections_client: int = 10
    client_rate: Rate | None = None  # messages of one client


@dataclass(frozen=True, slots=True)
class FeedbackHttp:
    """The public side: provider webhooks and one-click unsubscription. Beyond loopback with TLS, or behind a proxy that has it."""

    address: Address
    tls: ServerTls | None = None
    proxy: tuple[str, ...] = ()  # networks whose X-Forwarded-For tells the client's address


@dataclass(frozen=True, slots=True)
class Mailbox:
    """An IMAP folder that is looked at for what came back."""

    name: str
    host: Reference
    port: int
    tls: Tls
    username: Reference
    password: Reference | None = None
    oauth2: OAuth2 | None = None
    folder: str = "INBOX"
    every: float = 60.0  # seconds
    then: str = "keep"  # what happens to a message that was understood: keep, delete, or the folder that it is moved to
    max_message_size: int = 1_000_000

    @property
    def login(self) -> str:
        """By what `relay oauth` and the log know it; no account has such a name."""
        return f"imap:{self.name}"


@dataclass(frozen=True, slots=True)
class Provider:
    """Who may call our webhook `/feedback/NAME`, and how that is verified; which of these it wants says its kind."""

    name: str
    kind: str  # ses, sendgrid, mailgun, postmark, brevo, mailjet, sparkpost
    topics: tuple[str, ...] = ()  # ses: ARNs of SNS topics
    public_key: Reference | None = None  # sendgrid: of its signed event webhook, base64 or PEM
    signing_key: Reference | None = None  # mailgun
    username: Reference | None = None  # postmark, brevo, mailjet, sparkpost: HTTP basic
    password: Reference | None = None
    token: Reference | None = None  # brevo: bearer
    egress: str = ""  # whose reputation it tells; empty: that of the message's last egress
    clients: tuple[str, ...] = ()  # networks that it calls from; empty: any


@dataclass(frozen=True, slots=True)
class Feedback:
    """Where what comes back is sent to, and the doors by which it comes in."""

    domain: str = ""
    token_key: bytes = field(default=b"", repr=False)
    smtp: FeedbackDoor | None = None
    http: FeedbackHttp | None = None
    imap: Mapping[str, Mailbox] = field(default_factory=dict)
    providers: Mapping[str, Provider] = field(default_factory=dict)
    one_click: bool = True  # POST /unsubscribe/TOKEN on `http`


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where events go: one of `url`, `file`, `command`."""

    name: str
    url: Reference | None = None
    file: Path | None = None  # JSON lines, appended
    command: tuple[str, ...] = ()  # JSON lines on its standard input; exit code 0: taken
    secret: Reference | None = None  # of `url`: HMAC-SHA-256
    wanted: Wanted = field(default_factory=Wanted)
    allow_private: bool = False
    ca: Path | None = None
    headers: Mapping[str, Reference] = field(default_factory=dict)
    batch: int = 100  # events of one request at most
    wait: float = 0.0  # seconds that events wait for company
    timeout: float = 10.0
    give_up: float = 3 * 86400.0  # seconds after which an event becomes a dead letter
    cap: float = 3600.0  # longest wait between two tries
