"""`match`: its shape, and the questions that a rule asks by it. Pure."""

from __future__ import annotations

from pydantic import Field

from relay.config.mx import HopMatch, HopNot
from relay.config.types import (
    AddressPattern,
    Given,
    HeaderName,
    Network,
    OneOrMany,
    Pattern,
    ReputationBound,
    Section,
    SizeBound,
)
from relay.policy.routing import Match, Question


class NotSection(Section):
    """The keys of a `match`. All must hold; of a list, any."""

    planned = frozenset({"mx", "destination"})

    sender: Given[OneOrMany[AddressPattern]] = Field(None, description='MAIL FROM; `""` is the null sender.')
    from_: Given[OneOrMany[AddressPattern]] = Field(None, alias="from", description="The address in the From header.")
    recipient: Given[OneOrMany[AddressPattern]] = Field(None, description="RCPT TO.")
    class_: Given[OneOrMany[Pattern]] = Field(None, alias="class", description="The traffic class.")
    user: Given[OneOrMany[Pattern]] = Field(None, description="Who logged in; empty without a login.")
    listener: Given[OneOrMany[Pattern]] = Field(None, description="The listener that took the message.")
    client: Given[OneOrMany[Network]] = Field(None, description="Where the client connected from.")
    header: Given[dict[HeaderName, OneOrMany[Pattern]]] = Field(
        None, description="Header fields by name, each with a glob or a list of them."
    )
    size: Given[OneOrMany[SizeBound]] = Field(None, description="The message's size, with `>`, `>=`, `<` or `<=`.")
    reputation: Given[OneOrMany[ReputationBound]] = Field(
        None,
        description="How mail of the reverse-path's domain fared in the last 24 hours, from 0 (badly) to 1, with `>`, `>=`, `<` or "
        "`<=`; as it was when the message was accepted.",
    )
    tag: Given[OneOrMany[Pattern]] = Field(None, description="What X-Relay-Tag said.")


class MatchSection(NotSection):
    not_: Given[NotSection] = Field(None, alias="not", description="The same keys; none of them may hold.")


def build_match(section: MatchSection) -> Match:
    """All keys hold, a list is any-of, and nothing of `not` holds."""
    return Match(_questions(section), () if section.not_ is None else _questions(section.not_))


def build_hop_match(section: HopMatch) -> Match:
    """The same, of a destination: over the facts `mx` and `recipient`."""
    return Match(_of_hops(section), () if section.not_ is None else _of_hops(section.not_))


def _of_hops(section: HopNot) -> tuple[Question, ...]:
    texts = {"mx": section.mx, "recipient": section.recipient}
    return tuple(Question(fact, patterns) for fact, patterns in texts.items() if patterns is not None)


def _questions(section: NotSection) -> tuple[Question, ...]:
    texts = {
        "sender": section.sender,
        "from": section.from_,
        "recipient": section.recipient,
        "class": section.class_,
        "user": section.user,
        "listener": section.listener,
        "client": section.client,
        "tag": section.tag,
    }
    questions = [Question(fact, patterns) for fact, patterns in texts.items() if patterns is not None]
    for name, patterns in (section.header or {}).items():
        questions.append(Question("header", tuple(f"{name}: {pattern}" for pattern in patterns)))
    if section.size is not None:
        written = tuple(bound[0] for bound in section.size)
        questions.append(Question("size", written, tuple(bound[1:] for bound in section.size)))
    if section.reputation is not None:
        written = tuple(bound[0] for bound in section.reputation)
        questions.append(Question("reputation", written, tuple(bound[1:] for bound in section.reputation)))
    return tuple(questions)
