"""What all lanes of one direct entry share: its limits, and how many sessions it has at once.

A lane that has sessions keeps them while it has mail and nobody else wants their places. Who has none waits in line, and then
those that others have had for a while are given up: so each comes to its turn, however much mail one of them has.

A host that is gone keeps a place for as long as a dial may take. So lanes that nobody is known to answer for dial in half of all
places at most: the others are for those that were reached the last time, however many dead ones there are.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from relay import clock
from relay.policy.pace import Pace
from relay.policy.warmup import Ramp
from relay.settings import Account

TURN = 3.0  # seconds that a lane has a place at least, while others wait for one
UNPROVEN = " to new hosts"  # the second line of an entry; no name of one holds a blank


class Lane(Protocol):
    """Who has sessions."""

    def spare(self) -> bool:
        """Closes one that nobody uses; whether there was one."""
        ...


class Turn(Protocol):
    """What somebody waits for: an asyncio.Future, or what stands for one on another clock."""

    def done(self) -> bool: ...
    def set_result(self, result: None, /) -> None: ...


@dataclass(slots=True, eq=False)
class _Waits:
    turn: Turn
    proven: bool
    spared: bool = False  # a place is made for it


class Trunk:
    """`freed`: called when there is room for work of one more lane."""

    def __init__(self, account: Account, freed: Callable[[], None] = lambda: None) -> None:
        self.account, self.freed = account, freed
        self.pace = self._pace(account)
        self.sessions = 0
        self.dialling = 0  # of those, whose host may not answer
        self._waiting: deque[_Waits] = deque()
        self._idle: dict[Lane, None] = {}  # lanes that may have an idle session, the longest first

    def apply(self, account: Account) -> None:
        """Under another configuration: what is open and what was spent count on."""
        if account == self.account:
            return
        pace = self._pace(account)
        pace.keep(self.pace)
        self.account, self.pace = account, pace
        self._next()
        for _ in range(self.sessions - account.connections):
            if not self._spare():
                break

    @staticmethod
    def _pace(account: Account) -> Pace:
        ramp = Ramp(account.warm_up, account.name) if account.warm_up is not None else None
        return Pace(account.limits, whose=f"{account.name}'s", prefix=f"egress {account.name}", ramp=ramp)

    @property
    def full(self) -> bool:
        return self.sessions >= self.account.connections

    @property
    def _most_dialling(self) -> int:
        return max(1, self.account.connections // 2)

    def line(self, proven: bool) -> str:
        """Its name."""
        return self.account.name if proven else self.account.name + UNPROVEN

    def places(self, proven: bool) -> int:
        """How many lanes without a session may be given work: for what is free, and a few that stand in line.

        Who is claimed and waits here overtakes what has a higher priority; without a line a place would be empty for as long
        as the next claim takes.
        """
        most = self.account.connections
        free = most - self.sessions
        if not proven:
            free = min(free, self._most_dialling - self.dialling)
        return free + max(1, most // 4) - sum(waits.proven is proven for waits in self._waiting)

    @property
    def wanted(self) -> bool:
        """Somebody waits for the place of a session, or there are more than there may be."""
        return self.sessions > self.account.connections or next(self._may(), None) is not None

    def had_its_turn(self, since: float) -> bool:
        """Whether a place that a lane has had `since` (clock.monotonic()) goes to another one."""
        return clock.monotonic() - since >= TURN and self.wanted

    def idles(self, lane: Lane) -> None:
        """It has a session that nobody uses."""
        self._idle.setdefault(lane)

    async def enter(self, proven: bool) -> None:
        """A place for one session more, in turn. `leave` gives it back; `reached` where it is not `proven`, after the dial."""
        turn = asyncio.get_running_loop().create_future()
        waits = self.line_up(turn, proven)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                if not proven:
                    self.dialling -= 1
                self.leave()  # it was handed the place in the same moment
            elif waits in self._waiting:
                self._waiting.remove(waits)
            raise

    def line_up(self, turn: Turn, proven: bool) -> _Waits:
        """`turn` is told when it comes, which may be at once."""
        waits = _Waits(turn, proven)
        self._waiting.append(waits)
        self._next()
        return waits

    def reached(self) -> None:
        """The dial of who was not proven has come to its end."""
        self.dialling -= 1
        self._next()
        self.freed()

    def leave(self) -> None:
        self.sessions -= 1
        self._next()
        self.freed()

    def _may(self) -> Iterator[_Waits]:
        """Who may have a place, in turn; one that was given up is none."""
        dials = self._most_dialling - self.dialling
        for waits in self._waiting:
            if waits.turn.done():
                continue
            if waits.proven or dials > 0:
                dials -= not waits.proven
                yield waits

    def _next(self) -> None:
        """Places to who waits for them; where there are none, one that nobody uses is made free for each."""
        for waits in list(self._may()):
            if self.full:
                waits.spared = waits.spared or self._spare()
            else:
                self._waiting.remove(waits)
                self.sessions += 1
                self.dialling += not waits.proven
                waits.turn.set_result(None)

    def _spare(self) -> bool:
        """Closes the session that nobody has used for longest, or nearly so."""
        while self._idle:
            lane = next(iter(self._idle))
            del self._idle[lane]
            if lane.spare():
                return True
        return False
