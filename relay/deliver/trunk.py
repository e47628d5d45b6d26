"""What all lanes of one direct entry share: its limits, and how many sessions it has at once.

A lane that has sessions keeps them while it has mail and nobody else wants their places. Who has none waits in line, and then
those that others have had for a while are given up: so each comes to its turn, however much mail one of them has.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from relay import clock
from relay.policy.pace import Pace
from relay.settings import Account

TURN = 3.0  # seconds that a lane has a place at least, while others wait for one


class Lane(Protocol):
    """Who has sessions."""

    def spare(self) -> bool:
        """Closes one that nobody uses; whether there was one."""
        ...


class Trunk:
    """`freed`: called when there is room for work of one more lane."""

    def __init__(self, account: Account, freed: Callable[[], None] = lambda: None) -> None:
        self.account, self.freed = account, freed
        self.pace = Pace(account.limits)
        self.sessions = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._idle: dict[Lane, None] = {}  # lanes that may have an idle session, the longest first

    def apply(self, account: Account) -> None:
        """Under another configuration: what is open and what was spent count on."""
        if account == self.account:
            return
        pace = Pace(account.limits)
        pace.keep(self.pace)
        self.account, self.pace = account, pace
        self._next()
        for _ in range(self.sessions - account.connections):
            if not self._spare():
                break

    @property
    def full(self) -> bool:
        return self.sessions >= self.account.connections

    @property
    def places(self) -> int:
        """How many lanes without a session may be given work: for what is free, and a few that stand in line.

        Who is claimed and waits here overtakes what has a higher priority; without a line a place would be empty for as long
        as the next claim takes.
        """
        most = self.account.connections
        return most - self.sessions + max(1, most // 4) - len(self._waiting)

    @property
    def wanted(self) -> bool:
        """Somebody waits for the place of a session, or there are more than there may be."""
        return bool(self._waiting) or self.sessions > self.account.connections

    def had_its_turn(self, since: float) -> bool:
        """Whether a place that a lane has had `since` (clock.monotonic()) goes to another one."""
        return self.wanted and clock.monotonic() - since >= TURN

    def idles(self, lane: Lane) -> None:
        """It has a session that nobody uses."""
        self._idle.setdefault(lane)

    async def enter(self) -> None:
        """A place for one session more, in turn. `leave` gives it back."""
        if not self.full and not self._waiting:
            self.sessions += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._spare()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # it was handed the place in the same moment
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def leave(self) -> None:
        self.sessions -= 1
        self._next()
        self.freed()

    def _next(self) -> None:
        while self._waiting and not self.full:
            turn = self._waiting.popleft()
            if not turn.done():
                self.sessions += 1
                turn.set_result(None)

    def _spare(self) -> bool:
        """Closes the session that nobody has used for longest, or nearly so."""
        while self._idle:
            lane = next(iter(self._idle))
            del self._idle[lane]
            if lane.spare():
                return True
        return False
