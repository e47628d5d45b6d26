"""The shape of what users write about a message that leaves: how it is rewritten, signed and sealed. See shape.py."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from relay.config.types import (
    Domain,
    Duration,
    Given,
    HeaderName,
    Instant,
    ListOf,
    Name,
    OneOrMany,
    Pattern,
    ReversePath,
    Rewritten,
    Secret,
    Section,
    Selector,
    Server,
    SigningDomain,
    Template,
)

Canonicalisation = Literal["relaxed/relaxed", "relaxed/simple", "simple/relaxed", "simple/simple"]


class SigningEntry(Section):
    domain: SigningDomain = Field(
        description="The From domain; `*.example.com`: any below it, `*`: any, and each is its own d=."
    )
    subdomains: bool = Field(False, description="The domains below it too, signed as `domain`.")
    as_: Given[Domain] = Field(None, alias="as", description="d=, where it shall be another one.")
    selector: Selector = Field(description="s=: the record stands at SELECTOR._domainkey.DOMAIN.")
    key: Secret = Field(description="The private key, PEM; RSA or Ed25519. Read at a start and a reload.")
    users: OneOrMany[Name] = Field((), description="Only for what one of these users sent; before entries for anybody.")
    routes: OneOrMany[Name] = Field(
        (), description="Only for what leaves by one of these; before entries for any route."
    )
    canonicalisation: Canonicalisation = Field(
        "relaxed/relaxed", description="How much of header and body may be laid out anew on the way."
    )
    headers: Given[OneOrMany[HeaderName]] = Field(
        None, description="Which header fields are signed; without: those that people see or programs act on."
    )
    oversign: Given[ListOf[HeaderName]] = Field(
        None, description="Of which none can be added later; default From, To, Cc, Subject, Date, Reply-To."
    )
    expires: Given[Duration] = Field(
        None, description="x=: the signature is no longer good so long after t=, the time of acceptance."
    )
    not_before: Given[Instant] = Field(None, description="Not used before.")
    not_after: Given[Instant] = Field(
        None, description="Not used from then on, unless its successor's record has not been seen yet."
    )
    when_published: bool = Field(
        False,
        description="Used only once its DNS record has been seen; until then the key before it, or none. While no DNS "
        "server answers mail waits (451 4.7.5).",
    )


class Unsubscribe(Section):
    url: Given[Template] = Field(
        None, description="`https://…`, with `{token}`, `{recipient}` or `{id}` for one click."
    )
    mailto: Given[Template] = Field(None, description="An address, such as `unsubscribe+{token}@example.com`.")
    one_click: bool = Field(True, description="With `url`: mail programs may POST to it (RFC 8058).")


class RewriteSection(Section):
    reverse_path: Given[ReversePath] = Field(
        None, description="MAIL FROM. `verp`: an own address for each recipient, see `feedback`. Reports keep `<>`."
    )
    from_: Given[Rewritten] = Field(None, alias="from", description="The address in From; the name before it stays.")
    reply_to: Given[Template] = Field(None, description='Reply-To: an address, `"*@domain"`, or `"{from}"`.')
    sender: Given[Template] = Field(None, description='Sender: an address, `"*@domain"`, or `"{from}"`.')
    remove: OneOrMany[Pattern] = Field((), description="Header fields to take away, by name or glob.")
    add: dict[HeaderName, Template] = Field({}, description="Header fields to add, with their texts.")
    list_unsubscribe: Given[Unsubscribe] = Field(
        None, description="List-Unsubscribe, where the message has none of its own."
    )


class ArcSection(Section):
    domain: Domain = Field(description="d= of the seal: ours, who forwards.")
    selector: Selector = Field(description="s= of the seal.")
    key: Secret = Field(description="The private key, PEM, RSA.")
    routes: OneOrMany[Name] = Field(description="The routes by which we forward.")


class DnsSection(Section):
    servers: ListOf[Server] = Field((), description="Whom to ask; without: as /etc/resolv.conf says.")
    timeout: Duration = Field(5.0, description="How long one question may take.")
    trust_ad: bool = Field(
        False, description="These servers validate (DNSSEC), and nobody is between them and us; DANE needs it."
    )
