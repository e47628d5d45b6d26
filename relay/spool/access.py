"""What the spool keeps for programs: tokens, the audit, what is said of a message beside it, and where readers of reports are.

Values and the protocol; `Spool` has it all. Implemented in `spool/records.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from relay.policy.access import Token


@dataclass(slots=True)
class Audit:
    """A change that somebody asked for, and what came of it."""

    at: float
    who: str
    tenant: str  # whose token it was; empty: somebody's of the whole relay
    request: str
    act: str  # `POST /v1/suspend`
    asked: Mapping[str, Any] = field(default_factory=dict)  # without secrets
    status: int = 0  # of HTTP; 0: it began, and its end is not known
    result: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0


@dataclass(slots=True)
class AuditFilter:
    """Empty fields select all. Globs have no case."""

    who: str = ""  # glob
    act: str = ""  # glob
    since: float = 0.0
    tenant: str | None = None  # exactly that


@dataclass(slots=True)
class Consumer:
    """Who fetches reports, and up to which event he has them."""

    tenant: str  # empty: of the whole relay; a user's own are `user:NAME`
    name: str
    cursor: int
    at: float  # of the last acknowledgement


def owner_of_key(user: str, sender: str) -> str:
    """Two applications may both number from 1: a key is its user's, or where there is none its sender's."""
    return user or sender.lower()


class Access(Protocol):
    async def tokens(self) -> list[Token]:
        """All, revoked and expired ones too, the oldest first."""
        ...

    async def keep_token(self, token: Token) -> None:
        """New, or as it is now. Durable when it returns."""
        ...

    async def begin_audit(self, entry: Audit) -> int:
        """Its id. Durable when it returns: a change that nobody can read of does not begin."""
        ...

    async def end_audit(self, number: int, status: int, result: Mapping[str, Any]) -> None: ...

    async def audits(self, wanted: AuditFilter, before: int | None = None, limit: int = 100) -> list[Audit]:
        """The newest first; `before`: those with a smaller id."""
        ...

    async def forget_audits(self, before: float) -> None: ...

    async def metadata(self, messages: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Of those that have any."""
        ...

    async def key_of(self, owner: str, key: str) -> tuple[int, str] | None:
        """(message, digest) of an idempotency key. `owner`: see `owner_of_key`."""
        ...

    async def consumers(self, tenant: str | None = None) -> list[Consumer]: ...

    async def acknowledge(self, consumer: Consumer) -> int:
        """Where it stands now: never further back than before. A new one begins there."""
        ...

    async def forget_consumer(self, tenant: str, name: str) -> bool: ...
