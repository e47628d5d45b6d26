"""`match` -> the questions that a rule asks. Pure."""

from __future__ import annotations

from relay.config.mx import HopMatch, HopNot
from relay.config.shape import MatchSection, NotSection
from relay.policy.routing import Match, Question


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
    return tuple(questions)
