"""Who goes first of those that leave by the same egress.

Strictly what is `immediate`; below, the levels share by weight, and within a level all users of all classes share alike,
and so do the lanes of one. Start-time fair queueing (Goyal, Vin and Cheng 1996): who comes back gets a tag behind what he was
served, never before what is being served now; the smallest tag goes first. So nobody starves, and who was away saves
nothing up.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.scheduler.lanes import Lane

WEIGHTS = (0.0, 16.0, 4.0, 1.0)  # of the levels; the first has no share, it has everything
LEVELS = range(4)
MANY = 10_000  # flows, or egresses, that are remembered

Flow = tuple[int, str, str]  # level, class, user


@dataclass(slots=True)
class Clock:
    """The tags of those that would leave by the same egress first: what one of them got at another one is nobody's debt here."""

    now: list[float] = field(default_factory=lambda: [0.0] * 4)  # tag that was served last, by level
    next: dict[Flow, float] = field(default_factory=dict)  # tag of what a flow brings next
    most: int = MANY  # of them, before those that say nothing any more are thrown away
    served: int = 0  # when one of them was, in turns of all

    def tag(self, flow: Flow) -> float:
        """For one lane more of a flow."""
        tag = max(self.now[flow[0]], self.next.get(flow, 0.0))
        if len(self.next) >= self.most:
            self.next = {f: t for f, t in self.next.items() if t > self.now[f[0]]}
            self.most = max(MANY, 2 * len(self.next))
        self.next[flow] = tag + 1.0
        return tag


@dataclass(slots=True)
class Turns:
    """The lanes of one way that are due."""

    clock: Clock = field(default_factory=Clock)
    heaps: tuple[list[tuple[float, int, Lane]], ...] = field(default_factory=lambda: ([], [], [], []))
    sizes: list[int] = field(default_factory=lambda: [0, 0, 0, 0])

    def __len__(self) -> int:
        return sum(self.sizes)

    def __bool__(self) -> bool:
        return any(self.sizes)

    def __iter__(self) -> Iterator[Lane]:
        """In no order."""
        return (lane for heap in self.heaps for _, turn, lane in heap if lane.turn == turn)

    def leave(self, lane: Lane) -> None:
        """What is left of it in the heap is passed over."""
        lane.turn = 0
        self.sizes[lane.level] -= 1
        if not self.sizes[lane.level]:
            self.heaps[lane.level].clear()

    def tag(self, level: int) -> float:
        """Of the first one of a level that has some."""
        heap = self.heaps[level]
        while heap[0][2].turn != heap[0][1]:
            heappop(heap)
        return heap[0][0]


class Order:
    """The order in which lanes get their turns, over all ways."""

    def __init__(self) -> None:
        self._turn = 0
        self._clocks: dict[str, Clock] = {}  # by the first egress
        # The tags of levels that share an egress; the first is the one that was served last.
        self._levels: dict[str, list[float]] = {}

    def turns(self, egresses: tuple[str, ...]) -> Turns:
        """For a new way by these."""
        return Turns(self._clocks.setdefault(egresses[0] if egresses else "", Clock()))

    def keep(self, egresses: Collection[str]) -> None:
        """Forgets all others: nobody would leave by them first."""
        self._clocks = {name: clock for name, clock in self._clocks.items() if name in egresses}

    def enter(self, turns: Turns, lane: Lane) -> None:
        """At the end of what its flow has waiting."""
        self._turn += 1
        lane.turn, lane.clock = self._turn, turns.clock
        heappush(turns.heaps[lane.level], (turns.clock.tag(lane.flow), self._turn, lane))
        turns.sizes[lane.level] += 1

    def first(self, waiting: Sequence[Turns], egress: str) -> tuple[Turns, Lane]:
        """Takes the next one out of these, of which each has some."""
        level = self._level(waiting, egress)
        found = [turns for turns in waiting if turns.sizes[level]]
        # Whoever came here from another egress, which rests, has tags by another clock: they take turns with the others.
        turns = found[0] if len(found) == 1 else min(found, key=lambda t: (t.clock.served, t.tag(level)))
        clock = turns.clock
        tag = clock.now[level] = max(clock.now[level], turns.tag(level))
        lane = heappop(turns.heaps[level])[2]
        clock.next[lane.flow] = max(clock.next.get(lane.flow, 0.0), tag)
        self._turn += 1
        clock.served = self._turn
        turns.leave(lane)
        return turns, lane

    def served(self, lane: Lane, egress: str, count: int) -> None:
        """It was given so many, 0 where it was held; one of them is counted already."""
        if count != 1 and (clock := lane.clock) is not None:
            clock.next[lane.flow] = clock.next.get(lane.flow, 0.0) + count - 1
            if (shares := self._levels.get(egress)) is not None and lane.level:
                shares[lane.level] += (count - 1) / WEIGHTS[lane.level]

    def _level(self, waiting: Sequence[Turns], egress: str) -> int:
        present = [level for level in LEVELS if any(turns.sizes[level] for turns in waiting)]
        if not present[0]:
            return 0
        if len(present) == 1:  # it takes what nobody else wants: with the next one all begin anew
            self._levels.pop(egress, None)
            return present[0]
        if len(self._levels) >= MANY:
            self._levels.clear()
        shares = self._levels.setdefault(egress, [0.0] * 4)
        for level in present:
            shares[level] = max(shares[level], shares[0])
        level = min(present, key=lambda one: shares[one])
        shares[0] = shares[level]
        shares[level] += 1.0 / WEIGHTS[level]
        return level


def share(waiting: Sequence[Turns], lane: Lane, room: int) -> int:
    """How much of the room this one, just taken, gets in one claim, so that others of its level and below get theirs."""
    if lane.level == 0:
        return room
    sizes = [sum(turns.sizes[level] for turns in waiting) for level in LEVELS]
    sizes[lane.level] += 1
    weights = sum(WEIGHTS[level] for level in LEVELS if sizes[level])
    return max(1, math.ceil(room * WEIGHTS[lane.level] / weights / sizes[lane.level]))
