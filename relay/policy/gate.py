"""May this lane move now, and by which egress? If not: why, and until when. Pure.

Asked for a lane before anything is claimed; waiting writes nothing and counts no attempt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FOREVER = float("inf")
ANY = 1 << 30


@dataclass(frozen=True, slots=True)
class EgressView:
    """What the gate sees of an egress."""

    name: str
    room: int  # transactions it could take on
    wait: float  # seconds before it may be dialled, 0 now
    why: str  # of `wait`
    probing: bool = False  # it may be dialled, but for one transaction only
    seven_bit: bool = False  # it takes no content of eight bits
    passes: bool = True  # while it waits, the route's next egress may take over
    recipients: int = ANY  # that its limits let go now
    behind: str = (
        ""  # without a session of its own, it needs a place among those of its direct entry: the line to stand in
    )


@dataclass(frozen=True, slots=True)
class Go:
    egress: str
    count: int
    recipients: int = ANY
    behind: str = ""  # as in EgressView


@dataclass(frozen=True, slots=True)
class Wait:
    until: float  # epoch seconds; FOREVER: for an event, not for a time
    why: str
    behind: str = ""  # as in EgressView: it waits there


def admit(egresses: Sequence[EgressView], now: float) -> Go | Wait:
    """The first egress that may be dialled; a busy one is waited for, a resting one is passed over if its rest allows it."""
    if not egresses:
        return Wait(FOREVER, "no account of its route may send as this sender")
    for egress in egresses:
        if egress.wait > 0 and not egress.passes:
            return Wait(now + egress.wait, f"{egress.name} waits: {egress.why}")
        if egress.wait > 0:
            continue
        if egress.room <= 0:
            return Wait(FOREVER, f"all connections of {egress.behind or egress.name} are busy", egress.behind)
        return Go(egress.name, 1 if egress.probing else egress.room, egress.recipients, egress.behind)
    first = min(egresses, key=lambda e: e.wait)
    return Wait(now + first.wait, "; ".join(map(_rests, egresses)))


def _rests(egress: EgressView) -> str:
    return (
        f"{egress.name}: {egress.why}" if egress.why.startswith("suspended ") else f"{egress.name} rests: {egress.why}"
    )
