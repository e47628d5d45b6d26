"""What the relay has learnt, over restarts: documents by key, written when they have changed.

Counts that must not be lost are not here (scheduler.ledger): what is written every few seconds may be older than a crash.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

Document = Mapping[str, Any]
Source = Callable[[], Iterable[tuple[str, Document]]]


class Kept(Protocol):
    """What of the spool is asked."""

    async def remember(self, documents: Mapping[str, str | None]) -> None: ...


class Memory:
    """`save` from time to time, and at a stop."""

    def __init__(self, spool: Kept, documents: Mapping[str, str]) -> None:
        """`documents`: as the spool has them."""
        self.spool = spool
        self._known: dict[str, str] = dict(documents)
        self._untaken = set(documents)
        self.sources: list[Source] = []  # (key, document) of what is worth to be remembered; an empty one is not

    def take(self, key: str) -> Document:
        """What the last run knew; empty: nothing. Asked for once: what is learnt since counts."""
        if key not in self._untaken:
            return {}
        self._untaken.discard(key)
        try:
            found = json.loads(self._known[key])
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    async def save(self) -> None:
        """Raises SpoolError."""
        now = {key: json.dumps(found) for source in self.sources for key, found in source() if found}
        changed: dict[str, str | None] = {key: text for key, text in now.items() if self._known.get(key) != text}
        gone = self._known.keys() - now.keys() - self._untaken
        changed.update(dict.fromkeys(gone))
        if changed:
            await self.spool.remember(changed)
            self._known = now | {key: self._known[key] for key in self._untaken}
