"""What the DNS said, for as long as it may be believed. Bounded; the oldest goes first."""

from __future__ import annotations

from dataclasses import dataclass

from relay import clock
from relay.resolver.answers import Found

ROOM = 20_000  # answers, of the usual size
_SHARE = 512  # characters of records; who sends more takes the room of several


@dataclass(frozen=True, slots=True)
class Failed:
    """Nobody could tell."""

    text: str
    expires: float  # by clock.monotonic()


class Memory:
    """By name and kind."""

    def __init__(self, room: int = ROOM) -> None:
        self._room, self._taken = room, 0
        self._kept: dict[tuple[str, str], tuple[Found | Failed, int]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, name: str, kind: str) -> Found | Failed | None:
        kept = self._kept.get((name, kind))
        return kept[0] if kept is not None and kept[0].expires > clock.monotonic() else None

    def put(self, name: str, kind: str, answer: Found | Failed) -> None:
        self._drop((name, kind))
        if answer.expires <= clock.monotonic():
            return
        cost = 1 + (sum(len(str(record)) for record in answer.records) // _SHARE if isinstance(answer, Found) else 0)
        self._kept[name, kind] = answer, cost
        self._taken += cost
        while self._taken > self._room:
            self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        self._kept.clear()
        self._taken = 0

    def _drop(self, key: tuple[str, str]) -> None:
        if key in self._kept:
            self._taken -= self._kept.pop(key)[1]
