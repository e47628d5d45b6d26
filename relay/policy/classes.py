"""Traffic classes: priority, retry profile, and what to do in doubt. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from relay.policy.backoff import Retry
from relay.policy.hours import Hours
from relay.policy.routing import Facts, Match


class Priority(IntEnum):
    IMMEDIATE = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3


class InDoubt(StrEnum):
    """The dot was sent and no reply came. RFC 5321 §4.5.3.2.6 and RFC 1047 favour the duplicate."""

    RETRY = "retry"
    HOLD = "hold"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class TrafficClass:
    name: str
    match: Match | None = None  # None: chosen by name only
    priority: Priority = Priority.NORMAL
    in_doubt: InDoubt = InDoubt.RETRY
    retry: Retry = field(default_factory=Retry)
    window: Hours | None = None  # it leaves only then
    quiet: Hours | None = None  # and not then


DEFAULT_CLASS = TrafficClass("default")


def choose_class(
    classes: Mapping[str, TrafficClass], asked_for: str, facts: Facts, allowed: Sequence[str] = ()
) -> TrafficClass:
    """By the header where honoured, then the user's first, then the first `match`, then `default`.

    A name that no class has, or that the user may not use, chooses nothing: the rules decide, and intake logs it.
    """
    if asked_for in classes and (not allowed or asked_for in allowed):
        return classes[asked_for]
    for name in allowed:
        if name in classes:
            return classes[name]
    for candidate in classes.values():
        if candidate.match is not None and candidate.match.test(lambda q: q.ask(facts)):
            return candidate
    return classes.get("default", DEFAULT_CLASS)
