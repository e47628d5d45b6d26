"""How often each client may ask, in bounded memory: of more clients than there is room for the longest silent is forgotten."""

from __future__ import annotations

from collections import OrderedDict

MOST = 10_000  # clients


class Buckets:
    """A bucket for each client: it holds `size`, and `rate` flow in each second."""

    def __init__(self, rate: float, size: float, most: int = MOST) -> None:
        self._rate, self._size, self._most = rate, size, most
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> (what was left, when)

    def left(self, client: str, now: float) -> float:
        left, at = self._left.get(client, (self._size, now))
        return min(self._size, left + (now - at) * self._rate)

    def take(self, client: str, now: float) -> bool:
        """Whether there was one left; `now` of any clock that does not run backwards."""
        left = self.left(client, now)
        taken = left >= 1.0
        self._left[client] = (left - taken, now)
        self._left.move_to_end(client)
        if len(self._left) > self._most:
            self._left.popitem(last=False)
        return taken
