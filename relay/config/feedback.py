"""The shape of `feedback`: where what comes back is sent to, and by which doors it comes in. See shape.py, returning.py."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PlainValidator

from relay.config.feedbackhttp import FeedbackHttpSection, ProviderEntry
from relay.config.types import (
    Count,
    Domain,
    Duration,
    Given,
    Host,
    ListenAddress,
    MessageRate,
    Name,
    Secret,
    Section,
    Size,
    Username,
    Written,
    text_schema,
)
from relay.config.upstream import AnyPort, ListenTlsSection, OAuth2Section, Tls, TlsSection
from relay.config.values import describe
from relay.policy.rate import Rate

MAX_FOLDER = 200  # characters


def parse_folder(value: object) -> str:
    """The name of an IMAP folder, as people see it."""
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_FOLDER or not value.isprintable():
        raise ValueError(f"expected the name of a folder such as INBOX, found {describe(value)}")
    return value


Folder = Annotated[str, PlainValidator(parse_folder), text_schema(), Written("folder")]
Then = Annotated[str, PlainValidator(parse_folder), text_schema(), Written("`keep`, `delete`, or a folder")]


class FeedbackConnections(Section):
    total: Count = Field(100, description="Connections at once.")
    client: Count = Field(10, description="Connections at once from one client address.")


class FeedbackSmtpSection(Section):
    address: ListenAddress = Field(description="Where it listens: anybody's mail server comes here, on port 25.")
    tls: Given[ListenTlsSection] = Field(None, description="Its certificate; without, no TLS is offered.")
    max_connections: FeedbackConnections = Field(
        FeedbackConnections(), description="How many connections it takes (else 421)."
    )
    max_messages: MessageRate = Field(
        Rate.parse("1000/min"), description="How many messages one client address may bring (else 450)."
    )


class ImapSection(Section):
    host: Host = Field(description="The server to log in to.")
    port: Given[AnyPort] = Field(None, description="Default: 143 for `starttls` and `none`, else 993.")
    tls: Tls = Field(TlsSection(), description="`implicit` (the default), `starttls`, `none` to loopback, or a map.")
    username: Username = Field(description="What to log in with; needs `password` or `oauth2`.")
    password: Given[Secret] = Field(None, description="Its secret, read anew for each login.")
    oauth2: Given[OAuth2Section] = Field(None, description="Log in with a token instead, as accounts do.")
    folder: Folder = Field("INBOX", description="The folder that is looked into.")
    every: Duration = Field(60.0, description="How often.")
    then: Then = Field("keep", description="What becomes of a message that was understood: a folder: it goes there.")
    max_message_size: Size = Field(1_000_000, description="How much of a message is fetched.")


class FeedbackSection(Section):
    domain: Given[Domain] = Field(
        None, description="Where bounces come back to; `reverse_path: verp` and `smtp` need it."
    )
    token_key: Given[Secret] = Field(
        None,
        description="A secret of at least 16 characters, which the tokens in these addresses are made with; nobody else may read it.",
    )
    smtp: Given[FeedbackSmtpSection] = Field(
        None,
        description="A listener that takes mail to the bounce domain only: what the MX record of `domain` leads to.",
    )
    http: Given[FeedbackHttpSection] = Field(
        None, description="The public side: webhooks of providers, and one-click unsubscription."
    )
    providers: dict[Name, ProviderEntry] = Field(
        {}, description="Who reports by HTTP, at `/feedback/NAME`; a name is the kind, or has one."
    )
    one_click: bool = Field(
        True, description="With `http`: `/unsubscribe/TOKEN` unsubscribes whom the token names (RFC 8058)."
    )
    imap: dict[Name, ImapSection] = Field({}, description="Mailboxes that are looked into for what came back, by name.")
