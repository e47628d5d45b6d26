"""How many sessions at once a destination takes, learnt from what it says. Pure: time is an argument.

As TCP finds its share of a link (RFC 5681 §3.1): from a few, doubled in each round of good replies until something is
refused; then halved, and grown by one a round. What grows by one and is cut by half settles, and many senders who do so
share fairly. Postfix's queue manager does the same with sessions (its SCHEDULER_README, "Concurrency feedback"): one good
reply is 1/size of the evidence, so that a round counts as one, and refusals of one cohort count once.

A link forgets, a limit does not: a server that takes five sessions refuses the sixth each time. So what was refused is
not asked again for a while, and for twice as long each time that the answer was the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

START = 2.0  # sessions, to who is not known
COLD = 600.0  # seconds without a good reply: not known any more
PATIENCE, LONGEST = 60.0, 1800.0  # seconds before what was refused is tried again


@dataclass(slots=True)
class Window:
    """Of one lane. `most` is the configured number of connections; all times are of one clock, in seconds."""

    most: int
    size: float = START
    why: str = ""  # the refusal that it is small for; empty: it is not
    since: float = 0.0  # when that was
    _threshold: float = math.inf  # below this it doubles (RFC 5681: ssthresh)
    _shrunk: float = -math.inf
    _good: float = math.inf  # the last good reply; none yet: nothing has cooled down
    _refused: int = 0  # so many at once were too many
    _until: float = -math.inf  # and are not tried again before
    _patience: float = 0.0

    def limit(self, now: float) -> int:
        """Sessions that may be open at once; at least 1."""
        return max(1, min(self.most, int(self._warm(now))))

    def good(self, now: float, busy: int | None = None) -> None:
        """A transaction went well, or was refused for its own sake alone. `busy`: sessions in use with it; None: all.

        What is not in use proves nothing: with less than half of it the window stays (RFC 7661 §4.3).
        """
        limit = self.limit(now)
        self.size, self._good = self._warm(now), now
        if busy is not None and 2 * busy < limit:
            return
        if self.size < self._threshold:
            self.size = min(self.size + 1.0, self._threshold)
        else:
            self.size += 1 / self.size
        if now < self._until:
            self.size = max(1.0, min(self.size, self._refused - 0.5))
        self.size = min(self.size, max(1.0, self.most))
        if self.size >= self.most:
            self.why = ""

    def bad(self, now: float, began: float, why: str = "") -> bool:
        """It was too much: 421, a 4xx about us, a timeout. Whether that is news.

        What `began` (a session's dial, or a transaction) before the window last shrank is of the same cohort, and tells
        nothing more.
        """
        if began <= self._shrunk:
            return False
        refused = self.limit(now)
        again = abs(refused - self._refused) <= 1
        self._patience = min(LONGEST, 2 * self._patience) if again else PATIENCE
        self._refused, self._until = refused, now + self._patience
        self.size = self._threshold = max(1.0, min(self._warm(now), self.most) / 2)
        self._shrunk, self.why, self.since = now, why, now
        return True

    def keep(self, old: Window) -> None:
        """What was learnt before a reload. `most` is the new one's."""
        self.size = min(old.size, max(1.0, self.most))
        self.why, self.since, self._threshold = old.why, old.since, old._threshold
        self._shrunk, self._good, self._refused = old._shrunk, old._good, old._refused
        self._until, self._patience = old._until, old._patience

    def _warm(self, now: float) -> float:
        """After a long silence it starts anew (RFC 5681 §4.1), up to what was good before in doubled steps."""
        return min(self.size, START) if now - self._good > COLD else self.size
