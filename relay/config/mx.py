"""The shape of delivery by MX: what users write below `direct`, `pools` and `destinations`. See shape.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from relay.config.pacing import EgressLimit, WarmUpSection
from relay.config.replies import ReplyEntry
from relay.config.types import (
    AddressPattern,
    Count,
    FilePath,
    Given,
    HopPattern,
    Hostname,
    ListOf,
    Name,
    OneOrMany,
    OrAlone,
    Pin,
    Section,
    SourceAddress,
    Written,
)
from relay.config.upstream import AnyPort, TlsVersion, mode_alone
from relay.config.values import describe
from relay.settings import Per

HOP_MODES = ("none", "opportunistic", "starttls")
Weight = Annotated[int, Field(ge=1, le=1000)]


class DirectEntry(Section):
    source: Given[OneOrMany[SourceAddress]] = Field(
        None, description="Its own address, or one IPv4 and one IPv6; without: the kernel chooses."
    )
    hostname: Given[Hostname] = Field(
        None, description="What it says in EHLO, as the address' PTR does; default: the relay's."
    )
    senders: OneOrMany[AddressPattern] = Field(
        ("*",), description="Reverse-paths that it may send as; fail-over passes it by for others."
    )
    connections: Count = Field(200, description="Sessions at once, over all destinations.")
    limits: ListOf[EgressLimit] = Field(
        (), description="How fast it may send, over all destinations, as of an account; all bind."
    )
    warm_up: Given[WarmUpSection] = Field(
        None, description="How much more it may send from day to day, while its address is new; as of an account."
    )
    replies: ListOf[ReplyEntry] = Field(
        (), description="What receivers mean by their replies, as of an account; asked before the general dictionary."
    )


def members_alone(value: object) -> object:
    """A list of names is a map of names with the same weight."""
    if isinstance(value, list):
        if not all(isinstance(name, str) for name in value):
            raise ValueError("expected a list of names; weights stand in a map, such as {mx-1: 3, mx-2: 1}")
        twice = next((name for number, name in enumerate(value) if name in value[:number]), None)
        if twice is not None:
            raise ValueError(f"'{twice}' is named twice; for a larger share write {{{twice}: 2}}")
        value = dict.fromkeys(value, 1)
    if not isinstance(value, dict):
        raise ValueError(f"expected a map of names to weights, or a list of names, found {describe(value)}")
    if not value:
        raise ValueError("a pool without members; name at least one account or direct entry")
    return value


class PoolEntry(Section):
    members: Annotated[
        dict[Name, Weight],
        BeforeValidator(members_alone),
        OrAlone({"type": "array", "items": {"type": "string"}, "minItems": 1}),
        Written("map: name to weight (1 to 1000), or list of names"),
    ] = Field(description="Accounts and direct entries, each with its share; in a list all have the same.")
    sticky: Literal["message"] = Field("message", description="What keeps to the member that it drew.")


class HopNot(Section):
    """The keys of a destination's `match`. All must hold; of a list, any."""

    mx: Given[OneOrMany[HopPattern]] = Field(None, description="A host of the domain's MX.")
    recipient: Given[OneOrMany[AddressPattern]] = Field(None, description="RCPT TO.")


class HopMatch(HopNot):
    not_: Given[HopNot] = Field(None, alias="not", description="The same keys; none of them may hold.")


def hop_mode(value: object) -> object:
    if value == "implicit":
        raise ValueError(f"port 25 has no TLS from the first byte (RFC 3207); use one of {', '.join(HOP_MODES)}")
    return value


HopMode = Annotated[Literal["none", "opportunistic", "starttls"], BeforeValidator(hop_mode)]


class HopTlsSection(Section):
    mode: Given[HopMode] = Field(None, description="What is wanted of STARTTLS; default `starttls`.")
    verify: Given[bool] = Field(
        None, description="Check the certificate and the MX host's name; default true, for `opportunistic` false."
    )
    ca: Given[FilePath] = Field(None, description="PEM file of the authorities to trust instead of the system's.")
    pin: Given[OneOrMany[Pin]] = Field(None, description="Public keys (SPKI) of which the server must have one.")
    minimum: TlsVersion = Field("1.2", description="The oldest TLS version to speak.")


HopTls = Annotated[
    HopTlsSection, BeforeValidator(mode_alone), OrAlone({"enum": list(HOP_MODES)}), Written("mode, or a map")
]


class DestinationEntry(Section):
    name: Given[Name] = Field(None, description="Its name in logs and metrics; default `destination-N`.")
    match: Given[HopMatch] = Field(None, description="Which mail it is about; without: all that leaves by MX.")
    per: Per = Field(
        "egress",
        description="What has connections and limits of its own: all of it at each `egress`, all of it (`relay`), or at "
        "each egress the domains of the same `mx`, or each `domain`.",
    )
    connections: Count = Field(20, description="Sessions at once; fewer while replies are bad.")
    messages_per_connection: Count = Field(100, description="Messages in one session.")
    recipients_per_message: Count = Field(100, description="Recipients in one transaction.")
    limits: ListOf[EgressLimit] = Field((), description="How fast it takes mail, as of an account; all bind.")
    warm_up: Given[WarmUpSection] = Field(
        None,
        description="How much more each egress may send there from day to day; as of an account, but no `overflow`.",
    )
    tls: Given[HopTls] = Field(None, description="Instead of DANE, MTA-STS and opportunistic TLS, see below.")
    port: AnyPort = Field(25, description="Where its servers listen.")
    allow_private: bool = Field(False, description="Its servers may have addresses that are not of the public network.")
