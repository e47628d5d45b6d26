"""What the spool keeps in memory beside its file: bodies that were just accepted, which lanes have got something, and
before which time a search would find nothing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from relay.spool import Head

HOT_BYTES = 4 << 20
HOT_SECONDS = 10.0


class Bodies:
    """Of messages that wait for their first claim, so that it reads nothing; bounded in bytes.

    Who came first is claimed first: where it is full a newer one is not kept, unless the oldest do not move.
    """

    def __init__(self) -> None:
        self._bodies: OrderedDict[int, tuple[bytes, float]] = OrderedDict()
        self.bytes = 0

    def get(self, message: int) -> bytes | None:
        found = self._bodies.get(message)
        return found[0] if found else None

    def remember(self, message: int, body: bytes, now: float) -> None:
        """`now` in epoch seconds."""
        while self._bodies and self.bytes + len(body) > HOT_BYTES:
            oldest, (_, since) = next(iter(self._bodies.items()))
            if now - since < HOT_SECONDS:
                return
            self.forget(oldest)
        if len(body) <= HOT_BYTES:
            self._bodies[message] = body, now
            self.bytes += len(body)

    def forget(self, message: int) -> None:
        found = self._bodies.pop(message, None)
        if found is not None:
            self.bytes -= len(found[0])


class Bound:
    """A time before which a search over all that waits finds nothing, so that it is made only where it will; 0: not known."""

    def __init__(self) -> None:
        self.at = 0.0

    def lower(self, at: float) -> None:
        self.at = min(self.at, at)

    def forget(self) -> None:
        self.at = 0.0

    async def learn(self, first: Callable[[], Awaitable[float | None]]) -> None:
        """Ask the rows; None: nothing waits. What arrives meanwhile lowers it too."""
        self.at = float("inf")
        try:
            found = await first()
        except BaseException:
            self.forget()
            raise
        if found is not None:
            self.lower(found)


class News:
    """The lanes that got something since the scheduler looked last."""

    def __init__(self) -> None:
        self._changed: dict[int, Head] = {}
        self._wake = asyncio.Event()

    def announce(self, lane: int, facts: str, due_at: float | None) -> None:
        """`due_at` None: nothing is due in it, but it exists."""
        known = self._changed.get(lane)
        if known is not None:
            known.facts = known.facts or facts
        if known is None:
            self._changed[lane] = Head(lane, facts, due_at)
            self._wake.set()
        elif due_at is not None and (known.due_at is None or due_at < known.due_at):
            known.due_at = due_at

    def of(self, lane: int) -> bool:
        """Whether it has got something that nobody has looked at."""
        return lane in self._changed

    def wake(self) -> None:
        self._wake.set()

    async def wait(self, timeout: float | None) -> list[Head]:
        if not self._changed:
            try:
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
            except TimeoutError:
                return []
        self._wake.clear()
        changed, self._changed = self._changed, {}
        return list(changed.values())
