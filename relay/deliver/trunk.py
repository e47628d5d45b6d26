"""What all lanes of one direct entry share: its limits, and how many sessions it has at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from relay.policy.pace import Pace
from relay.settings import Account


class Trunk:
    """`spare`: asked where a lane wants a session and there is no room; closes one that is idle, if there is one."""

    def __init__(self, account: Account, spare: Callable[[], bool]) -> None:
        self.account = account
        self.pace = Pace(account.limits)
        self.sessions = 0
        self._spare = spare
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def full(self) -> bool:
        return self.sessions >= self.account.connections

    def make_room(self) -> bool:
        """Whether there is room for a session now, or will be in a moment."""
        return not self.full or self._spare()

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
        self._spare()
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
