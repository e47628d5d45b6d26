"""How many sessions an upstream bears at once, by what it says where one is too many. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

CROWDED = 10.0  # seconds of rest where a single session is one too many; doubled each time, up to REGROW
REGROW = 900.0  # seconds without a complaint until one session more is tried


@dataclass(slots=True)
class Crowd:
    """`limit`: of the configuration; `most`: of those that it is known to bear."""

    limit: int
    most: int = field(init=False)
    why: str = ""  # what it said
    _since: float = 0.0  # when it said so last
    _alone: int = 0  # times in a row that a single one was too many

    def __post_init__(self) -> None:
        self.most = self.limit

    def complained(self, now: float, connections: int, wait: float | None, why: str) -> tuple[bool, float]:
        """(whether that is news, seconds for which none is opened). `connections`: as many as it may have; `wait`: seconds, if it
        said."""
        news = self.most == self.limit and not self._alone
        self._since, self.why = now, why
        if connections > 1:
            self.most = connections - 1  # each session that is refused is one too many
            return news, 0.0
        # Others use the same account, or it was dialled too often: each time it waits for longer.
        rest = wait or min(REGROW, CROWDED * 2.0 ** min(self._alone, 10))
        self._alone += 1
        return news, rest

    def took(self, now: float) -> bool:
        """A transaction came to its end: it may bear one more. Whether it bears all again."""
        self._alone = 0
        if self.most < self.limit and now - self._since > REGROW:
            self.most, self._since = self.most + 1, now
            return self.most == self.limit
        return False
