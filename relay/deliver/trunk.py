"""What all lanes of one direct entry share: its limits, and how many sessions it has at once."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from relay.policy.pace import Pace
from relay.settings import Account


class Lane(Protocol):
    """A user of the entry's sessions."""

    def spare(self) -> bool:
        """Closes a session that is idle, for another lane; whether there was one."""


class Trunk:
    """Where a lane wants a session and there is no room, another one's that is idle is closed."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.pace = Pace(account.limits)
        self.sessions = 0
        self._idle: dict[Lane, None] = {}  # those that have idle sessions; of thousands of lanes these alone are asked
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def full(self) -> bool:
        return self.sessions >= self.account.connections

    @property
    def roomy(self) -> bool:
        """Whether there is room for a session now, or in a moment for who wants to `enter`."""
        return not self.full or bool(self._idle)

    def idles(self, lane: Lane, idle: bool) -> None:
        """Whether a lane has sessions that nobody uses."""
        if idle:
            self._idle[lane] = None
        else:
            self._idle.pop(lane, None)

    @property
    def wanted(self) -> bool:
        """Somebody waits for the place of a session."""
        return bool(self._waiting)

    async def enter(self) -> None:
        """A place for one session more, in turn. `leave` gives it back."""
        if not self.full and not self._waiting:
            self.sessions += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        for lane in self._idle:
            lane.spare()
            break
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # it was handed the place in the same moment
            else:
                self._waiting.remove(turn)
            raise

    def leave(self) -> None:
        self.sessions -= 1
        while self._waiting and not self.full:
            turn = self._waiting.popleft()
            if not turn.done():
                self.sessions += 1
                turn.set_result(None)
