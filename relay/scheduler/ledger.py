"""What was spent of limits, made durable before anything is sent by it: no restart, and no crash, gives it back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from relay.policy.limits import Row


class Counting(Protocol):
    """Somebody who counts."""

    def rows(self) -> list[Row]:
        """What changed since it was last asked."""


class Kept(Protocol):
    """What of the spool is asked."""

    async def spend(self, rows: Sequence[Row]) -> None: ...


class Ledger:
    """`kept`: what the last run had spent, by key. Whoever counts is made later, and asks for his own."""

    def __init__(self, spool: Kept, kept: Mapping[str, Sequence[tuple[float, int]]]) -> None:
        self.spool, self._kept = spool, dict(kept)
        self._changed: dict[Counting, None] = {}
        self._rows: dict[tuple[str, float], int] = {}  # that the spool has not confirmed
        self._saving: asyncio.Task[None] | None = None

    def kept(self, key: str) -> Sequence[tuple[float, int]]:
        return self._kept.get(key, ())

    def note(self, who: Counting) -> None:
        """It has spent something."""
        self._changed[who] = None

    async def save(self) -> None:
        """Durable when it returns, with what others have spent. Raises SpoolError."""
        while self._saving is not None:  # it may have begun before what is to be saved was spent
            await asyncio.wait([self._saving])
        for who in self._changed:
            self._rows.update(((key, until), count) for key, until, count in who.rows())
        self._changed.clear()
        if self._rows:
            self._saving = asyncio.get_running_loop().create_task(self._write(), name="ledger")
            await asyncio.shield(self._saving)

    async def _write(self) -> None:
        rows = dict(self._rows)
        try:
            await self.spool.spend([(key, until, count) for (key, until), count in rows.items()])
            self._rows = {place: count for place, count in self._rows.items() if rows.get(place) != count}
        finally:
            self._saving = None

    @property
    def unsaved(self) -> bool:
        return bool(self._changed or self._rows) or self._saving is not None
