"""The queue of a simulation: what waits, lane by lane, claimed in the order in which the spool claims it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

from relay.recipient import State
from relay.spool import Ask, Claim, Claimed, Place

LEVELS = range(4)  # of priority
PLANNED = 1 << 62  # ids from here on are of messages that are planned, and have no name yet


@dataclass(frozen=True, slots=True)
class Letter:
    """One message. `size` in bytes."""

    id: int
    sender: str
    class_: str = "default"
    user: str = ""
    tag: str = ""
    size: int = 0
    priority: int = 2


class Entry(NamedTuple):
    """One recipient. Sorts as the spool does: (due_at, message, n)."""

    due_at: float
    message: int
    n: int
    lane: int
    address: str
    letter: Letter
    expires_at: float = math.inf


class Shelf:
    """`claim` as `Spool.claim`; what was claimed is on its way until it is `sent` or `put_back`."""

    def __init__(self) -> None:
        self._lanes: dict[int, tuple[list[Entry], ...]] = {}
        self._away: dict[tuple[int, int], Entry] = {}
        self.waiting = 0
        self.expired = 0  # recipients whose time to be delivered was over when their turn came

    def add(self, entry: Entry) -> None:
        lane = self._lanes.get(entry.lane)
        if lane is None:
            lane = self._lanes[entry.lane] = tuple([] for _ in LEVELS)
        heappush(lane[entry.letter.priority], entry)
        self.waiting += 1

    def due(self, lane: int) -> float | None:
        """When its next recipient is due; None: nothing waits in it."""
        heaps = self._lanes.get(lane, ())
        return min((heap[0].due_at for heap in heaps if heap), default=None)

    def claim(self, asks: Sequence[Ask]) -> tuple[list[Claim], dict[int, float | None]]:
        """The claims, and when each asked lane is due next."""
        taken: dict[int, list[Entry]] = {}
        for ask in asks:
            left = ask.limit
            for heap in self._lanes.get(ask.lane, ()):
                last: Entry | None = None
                while left > 0 and heap and heap[0].due_at <= ask.now:
                    last = heappop(heap)
                    if last.expires_at <= ask.now:
                        self.expired, self.waiting = self.expired + 1, self.waiting - 1
                        continue
                    taken.setdefault(last.message, []).append(last)
                    left -= 1
                if left > 0:
                    continue
                # The rest of the last message: it travels once for all its recipients.
                more = ask.siblings
                while (
                    last
                    and last.message in taken
                    and more > 0
                    and heap
                    and heap[0].due_at <= ask.now
                    and heap[0].message == last.message
                ):
                    taken[last.message].append(heappop(heap))
                    more -= 1
                break
        for entries in taken.values():
            self._away.update(((e.message, e.n), e) for e in entries)
            self.waiting -= len(entries)
        return [_claim(entries) for entries in taken.values()], {ask.lane: self.due(ask.lane) for ask in asks}

    def dues(self) -> list[float]:
        """Since when what waits is due, or will be."""
        return [entry.due_at for heaps in self._lanes.values() for heap in heaps for entry in heap]

    def counts(self) -> dict[int, int]:
        """Recipients that wait, by lane."""
        return {lane: n for lane, heaps in self._lanes.items() if (n := sum(map(len, heaps)))}

    def put_back(self, claim: Claim, recipients: Sequence[Claimed], due_at: float = 0.0) -> None:
        """They wait again, from `due_at` on if that is later than before."""
        for recipient in recipients:
            entry = self._away.pop((claim.message, recipient.n))
            self.add(entry._replace(due_at=max(entry.due_at, due_at)))

    def sent(self, claim: Claim, recipients: Sequence[Claimed]) -> list[Entry]:
        """They have left; as they waited."""
        return [self._away.pop((claim.message, recipient.n)) for recipient in recipients]


def _claim(entries: Sequence[Entry]) -> Claim:
    letter = entries[0].letter
    recipients = [Claimed(e.n, e.address, State.QUEUED, 0, 0.0, e.lane, False) for e in entries]
    return Claim(
        letter.id, letter.sender, letter.class_, letter.user, letter.tag, entries[0].due_at, letter.size, 0, b"",
        int(Place.TABLE), recipients,
    )  # fmt: skip
