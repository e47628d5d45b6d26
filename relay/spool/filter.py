"""What an operator selects recipients by."""

from __future__ import annotations

from dataclasses import dataclass

from relay.recipient import State


@dataclass(slots=True)
class Filter:
    """What an operator selects recipients by; empty fields select all. Globs are case-insensitive."""

    ids: tuple[int, ...] = ()
    sender: str = ""
    recipient: str = ""
    domain: str = ""
    egress: str = ""  # that was tried last; or of `ahead`, where none was and it still waits
    ahead: tuple[int, ...] = ()  # lanes whose mail would leave by such an egress
    lanes: tuple[int, ...] | None = None
    class_: str = ""
    tag: str = ""
    user: str = ""
    states: tuple[State, ...] = ()
    error: str = ""
    accepted_before: float | None = None
    users: frozenset[str] | None = None  # exactly these; None: all
    key: str = ""  # the application's own id: its idempotency key, exactly
