"""A recipient's states, the one table of how it moves between them, and what its sender may be told. Pure.

A message has no state: it is done when its recipients are. `docs/states.md` is generated from TRANSITIONS.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class State(IntEnum):
    """Stored as these numbers; never renumber."""

    QUEUED = 0  # waits for its first attempt, or was returned before anything was said upstream
    DEFERRED = 1  # an attempt ended without a final answer; `due_at` says when the next one may start
    ACTIVE = 2  # claimed by the running process; in flight
    HELD = 3  # waits for an operator's release
    DELIVERED = 4  # the next hop answered 250 to the final dot; final
    FAILED = 5  # will not be tried again; final; `why` says rejected, expired, cancelled or suppressed

    @property
    def label(self) -> str:
        return self.name.lower()


WAITING = (State.QUEUED, State.DEFERRED, State.HELD)
READY = (State.QUEUED, State.DEFERRED)
FINAL = (State.DELIVERED, State.FAILED)


class News(StrEnum):
    """What a sender may be told of a recipient: the actions of RFC 3464 §2.3.3 that a relay knows."""

    FAILED = "failed"
    DELAYED = "delayed"
    RELAYED = "relayed"  # handed to a next hop that makes no promise to report


class Verb(StrEnum):
    CLAIM = "claim"
    ACCEPTED = "accepted"
    HARD = "hard"
    SOFT = "soft"
    PARK = "park"
    RECOVER = "recover"
    RETURN = "return"
    HOLD = "hold"
    RELEASE = "release"
    RETRY = "retry"
    EXPIRE = "expire"
    CANCEL = "cancel"
    SUPPRESS = "suppress"
    ABSORB = "absorb"


class IllegalTransition(Exception):
    """A verb that this state does not know. Nothing was changed."""


_WAITING_TO_FAILED = (Verb.EXPIRE, Verb.CANCEL)

TRANSITIONS: dict[tuple[State, Verb], State] = {
    (State.QUEUED, Verb.CLAIM): State.ACTIVE,
    (State.DEFERRED, Verb.CLAIM): State.ACTIVE,
    (State.ACTIVE, Verb.ACCEPTED): State.DELIVERED,
    (State.ACTIVE, Verb.HARD): State.FAILED,
    (State.ACTIVE, Verb.SOFT): State.DEFERRED,
    (State.ACTIVE, Verb.RECOVER): State.DEFERRED,
    (State.ACTIVE, Verb.PARK): State.HELD,  # in doubt with `in_doubt: hold`, a `hold` route since a reload, or poison
    (State.ACTIVE, Verb.EXPIRE): State.FAILED,  # looked at when it settles
    (State.ACTIVE, Verb.RETURN): State.QUEUED,  # nothing was said upstream: no attempt is counted
    (State.QUEUED, Verb.HOLD): State.HELD,
    (State.DEFERRED, Verb.HOLD): State.HELD,
    (State.HELD, Verb.RELEASE): State.QUEUED,
    (State.QUEUED, Verb.RETRY): State.QUEUED,
    (State.DEFERRED, Verb.RETRY): State.DEFERRED,
    **{(s, v): State.FAILED for s in WAITING for v in _WAITING_TO_FAILED},
    (State.ACTIVE, Verb.SUPPRESS): State.FAILED,  # found before anything was said upstream
    (State.QUEUED, Verb.SUPPRESS): State.FAILED,
    (State.DEFERRED, Verb.SUPPRESS): State.FAILED,
    (State.QUEUED, Verb.ABSORB): State.DELIVERED,  # a `discard` route or `capture`: done without a next hop
}


def move(state: State, verb: Verb) -> State:
    """The state after `verb`; raises IllegalTransition and changes nothing."""
    try:
        return TRANSITIONS[state, verb]
    except KeyError:
        raise IllegalTransition(f"a recipient that is {state.label} cannot {verb.value}") from None


def states_before(verb: Verb) -> tuple[State, ...]:
    """The states that know `verb`."""
    return tuple(s for s, v in TRANSITIONS if v is verb)


def diagram() -> str:
    """The table as a Mermaid state diagram, for docs/states.md."""
    lines = ["stateDiagram-v2", "    [*] --> queued", "    [*] --> held: hold route"]
    merged: dict[tuple[State, State], list[str]] = {}
    for (before, verb), after in TRANSITIONS.items():
        merged.setdefault((before, after), []).append(verb.value)
    lines += [f"    {a.label} --> {b.label}: {', '.join(v)}" for (a, b), v in merged.items()]
    lines += [f"    {s.label} --> [*]" for s in FINAL]
    return "\n".join(lines)
