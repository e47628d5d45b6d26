"""A provider as we know it: facts, each with its source, and what it means by its replies. Pure.

The data lie in policy/presets/NAME.yaml, read by config.presets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from relay.policy.rate import Rate
from relay.policy.replies import ReplyRule
from relay.policy.shaping import ShapingRule


@dataclass(frozen=True, slots=True)
class Source:
    """A public page. Dates are ISO 8601; `published` empty: the page does not tell."""

    url: str
    seen: str
    published: str = ""


@dataclass(frozen=True, slots=True)
class Fact:
    value: Any
    source: Source
    note: str = ""


@dataclass(frozen=True)
class Preset:
    """One provider. What is not known of it is None."""

    name: str
    title: str
    about: str
    facts: Mapping[str, Fact]  # all of them, for people; the fields below are what of them counts
    replies: tuple[ReplyRule, ...] = ()
    sources: tuple[Source, ...] = ()  # of `replies`, one each
    shaping: tuple[ShapingRule, ...] = ()
    shaping_sources: tuple[Source, ...] = ()  # of `shaping`, one each
    host: str = ""  # with {region} where it differs by region
    regions: Mapping[str, str] = field(default_factory=dict)  # region -> host
    region: str = ""
    port: int | None = None
    tls: Literal["starttls", "implicit"] | None = None
    username: str = ""
    connections: int | None = None
    messages_per_connection: int | None = None
    recipients_per_message: int | None = None
    limits: tuple[Rate, ...] = ()
    signs: bool | None = None
    rewrites_message_id: bool | None = None
    null_sender: bool | None = None
    oauth2: Mapping[str, Any] = field(default_factory=dict)
