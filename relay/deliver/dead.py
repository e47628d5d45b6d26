"""Hosts that could not be reached: for a while they are tried after the others. Bounded; time is an argument."""

from __future__ import annotations

from collections import OrderedDict

FIRST, LONGEST = 60.0, 1800.0  # seconds
MOST = 10_000


class Dead:
    """By host, by address, and by address family."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (until, for how long)

    def note(self, what: str, now: float, longest: float = LONGEST) -> None:
        until, seconds = self._until.pop(what, (0.0, 0.0))
        if now >= until:  # what was under way at the same time tells nothing more
            seconds = min(longest, max(FIRST, 2 * seconds))
            until = now + seconds
        self._until[what] = (until, seconds)
        while len(self._until) > MOST:
            self._until.popitem(last=False)

    def until(self, what: str, now: float) -> float:
        """0: it may be tried in its turn."""
        until, _ = self._until.get(what, (0.0, 0.0))
        return until if until > now else 0.0

    def forget(self, *what: str) -> None:
        """They answer."""
        for one in what:
            self._until.pop(one, None)

    def __len__(self) -> int:
        return len(self._until)
