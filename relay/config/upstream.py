"""The shape of an account: what users write below `accounts`, as pydantic models. See shape.py."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field

from relay.config.pacing import EgressLimit, WarmUpSection
from relay.config.replies import ReplyEntry
from relay.config.types import (
    AddressPattern,
    Count,
    FilePath,
    Given,
    Host,
    Instant,
    ListOf,
    Name,
    OneOrMany,
    OrAlone,
    Pin,
    Scope,
    Secret,
    Section,
    Tenant,
    TokenUrl,
    Username,
    Written,
)
from relay.settings import TlsMode

AnyPort = Annotated[int, Field(ge=1, le=65535)]


def mode_alone(value: object) -> object:
    return {"mode": value} if isinstance(value, str) else value


def version_alone(value: object) -> object:
    # Unquoted, 1.2 is a number to YAML, and everyone writes it so.
    return str(value) if value in (1.2, 1.3) else value


TlsVersion = Annotated[Literal["1.2", "1.3"], BeforeValidator(version_alone)]


class TlsSection(Section):
    mode: Given[TlsMode] = Field(None, description="When TLS begins. The default depends on the port, see below.")
    verify: Given[bool] = Field(
        None, description="Check the certificate and its name; default true, for `opportunistic` false."
    )
    ca: Given[FilePath] = Field(None, description="PEM file of the authorities to trust instead of the system's.")
    pin: Given[OneOrMany[Pin]] = Field(None, description="Public keys (SPKI) of which the server must have one.")
    certificate: Given[FilePath] = Field(None, description="PEM file of our client certificate.")
    key: Given[Secret] = Field(None, description="Its private key, if it is not in the same file.")
    minimum: TlsVersion = Field("1.2", description="The oldest TLS version to speak.")


class ListenTlsSection(Section):
    mode: Literal["starttls", "implicit"] = Field(description="After STARTTLS, or from the first byte.")
    certificate: FilePath = Field(description="PEM file of our certificate and its chain; taken anew when it changes.")
    key: Given[Secret] = Field(None, description="Its private key, if it is not in the same file.")
    minimum: TlsVersion = Field("1.2", description="The oldest TLS version to speak.")


Tls = Annotated[
    TlsSection, BeforeValidator(mode_alone), OrAlone({"enum": list(get_args(TlsMode))}), Written("mode, or a map")
]


class OAuth2Section(Section):
    grant: Literal["refresh_token", "client_credentials", "service_account"] = Field(
        description="By what a token is got: a person's login, the application's own, or Google's key of a service account."
    )
    provider: Given[Literal["google", "microsoft"]] = Field(
        None, description="Whose addresses and scope; without: `token_url` says where."
    )
    tenant: Given[Tenant] = Field(None, description="The directory at Microsoft.")
    client_id: Given[Username] = Field(None, description="Which application asks, as it is registered there.")
    client_secret: Given[Secret] = Field(None, description="Its secret, read anew for each request.")
    refresh_token: Given[Secret] = Field(
        None, description="What `relay oauth login` got; a file may be missing until then."
    )
    key: Given[Secret] = Field(None, description="Of a service account: the JSON file that Google made.")
    token_url: Given[TokenUrl] = Field(None, description="Where tokens are asked for; default: the provider's.")
    device_url: Given[TokenUrl] = Field(
        None, description="Where `relay oauth login` gets a code to show (RFC 8628); default: the provider's."
    )
    authorize_url: Given[TokenUrl] = Field(
        None, description="What `relay oauth login` shows where there is no `device_url`; default: the provider's."
    )
    scope: Given[Scope] = Field(
        None, description="What the token is to be good for; default: the provider's, for mail."
    )
    mechanism: Given[Literal["xoauth2", "oauthbearer"]] = Field(
        None, description="How it is shown; default: what the server offers, `xoauth2` before the other."
    )
    ca: Given[FilePath] = Field(None, description="PEM file of the authorities that vouch for `token_url`.")
    expires: Given[Instant] = Field(
        None, description="When the client secret ends: the log warns from two weeks before, and a metric tells it."
    )


class AccountEntry(Section):
    preset: Given[Name] = Field(
        None, description="The provider; what is not said here is as it asks for. `relay presets` lists them."
    )
    region: Given[Name] = Field(None, description="Where the preset has several hosts.")
    host: Given[Host] = Field(None, description="The server to log in to; a preset has its own.")
    port: Given[AnyPort] = Field(None, description="Default: 465 for `implicit`, else 587 with a login, else 25.")
    tls: Tls = Field(TlsSection(), description="`none`, `opportunistic`, `starttls`, `implicit`, or a map, see below.")
    username: Given[Username] = Field(None, description="What to log in with; needs `password` or `oauth2`.")
    password: Given[Secret] = Field(None, description="Its secret, read anew for each login; needs `username`.")
    oauth2: Given[OAuth2Section] = Field(
        None, description="Log in with a token instead, see below and oauth2.md; needs `username`, the mailbox."
    )
    senders: OneOrMany[AddressPattern] = Field(
        ("*",), description="Reverse-paths that it may send as; fail-over passes it by for others."
    )
    signs: Given[bool] = Field(
        None,
        description="It signs itself (DKIM): what leaves by it is not signed here. Default: the preset's, or false.",
    )
    connections: Given[Count] = Field(None, description="Sessions at once; default the preset's, or 10.")
    messages_per_connection: Given[Count] = Field(
        None, description="Messages in one session; default the preset's, or 100."
    )
    recipients_per_message: Given[Count] = Field(
        None, description="Recipients in one transaction; default the preset's, or 100."
    )
    limits: Given[ListOf[EgressLimit]] = Field(
        None,
        description="How fast it may send; all bind. Default the preset's; `[]`: none.",
    )
    warm_up: Given[WarmUpSection] = Field(
        None, description="How much more it may send from day to day, while it is new, see below."
    )
    replies: ListOf[ReplyEntry] = Field(
        (), description="What it means by its replies, see below; asked before the preset's dictionary."
    )
