"""The shape of `feedback.http` and `feedback.providers`: the public side, and who calls it. See shape.py, providers.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainValidator

from relay.config.types import (
    FilePath,
    Given,
    HostPort,
    ListOf,
    Name,
    Network,
    OneOrMany,
    PublicKey,
    Secret,
    Section,
    Username,
    Written,
    text_schema,
)
from relay.config.upstream import TlsVersion
from relay.config.values import describe
from relay.settings.feedback import SNS_TOPIC

ProviderKind = Literal["ses", "sendgrid", "mailgun", "postmark", "brevo", "mailjet", "sparkpost"]


def parse_topic(value: object) -> str:
    """The ARN of an SNS topic."""
    if not isinstance(value, str) or not SNS_TOPIC.fullmatch(value):
        wanted = "expected an ARN of SNS such as arn:aws:sns:eu-central-1:123456789012:ses-feedback"
        raise ValueError(f"{wanted}, found {describe(value)}")
    return value


Topic = Annotated[str, PlainValidator(parse_topic), text_schema("^arn:aws"), Written("ARN of an SNS topic")]


class HttpTlsSection(Section):
    certificate: FilePath = Field(description="PEM file of our certificate and its chain; taken anew when it changes.")
    key: Given[Secret] = Field(None, description="Its private key, if it is not in the same file.")
    minimum: TlsVersion = Field("1.2", description="The oldest TLS version to speak.")


class FeedbackHttpSection(Section):
    address: HostPort = Field(description="Where it listens. Nothing of the admin API is there.")
    tls: Given[HttpTlsSection] = Field(
        None, description="Its certificate; without, a proxy with TLS must stand before it."
    )
    proxy: ListOf[Network] = Field(
        (), description="Networks of proxies, whose `X-Forwarded-For` tells the client's address."
    )


class ProviderEntry(Section):
    kind: Given[ProviderKind] = Field(None, description="Whose webhook it is; default: as the entry is called.")
    topics: OneOrMany[Topic] = Field((), description="Of `ses`: the SNS topics that it reports to, by their ARN.")
    public_key: Given[PublicKey] = Field(
        None, description="Of `sendgrid`: the verification key of its signed event webhook, base64 or PEM."
    )
    signing_key: Given[Secret] = Field(None, description="Of `mailgun`: the HTTP webhook signing key.")
    username: Given[Username] = Field(
        None, description="Of `postmark`, `brevo`, `mailjet`, `sparkpost`: with what they log in, as their URL says."
    )
    password: Given[Secret] = Field(None, description="And its secret.")
    token: Given[Secret] = Field(None, description="Of `brevo`, instead of a login: the bearer token.")
    clients: ListOf[Network] = Field((), description="Networks that it calls from; without: any.")
    egress: Given[Name] = Field(
        None, description="The account whose reputation it tells, where the message is not known any more."
    )
