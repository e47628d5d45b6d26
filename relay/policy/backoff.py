"""When to try again, and when to give up. Pure."""

from __future__ import annotations

from dataclasses import dataclass

DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Retry:
    """A retry profile. Durations in seconds.

    Exponential with full jitter: before try n+1 a uniform share of min(cap, first·factor^(n-1)), so that what failed
    together does not come back together (RFC 5321 §4.5.4.1 asks for patience, not for a rhythm). Or a fixed
    `schedule`, whose last entry repeats. `give_up` counts from acceptance; `attempts` 0 means: only `give_up` ends it.
    """

    first: float = 60.0
    factor: float = 2.0
    cap: float = 3600.0
    give_up: float = 5 * DAY  # RFC 5321 §4.5.4.1: at least 4–5 days
    attempts: int = 0
    schedule: tuple[float, ...] = ()

    def ceiling(self, attempts: int) -> float:
        """The longest wait after `attempts` tries (1 or more)."""
        if self.schedule:
            return self.schedule[min(attempts, len(self.schedule)) - 1]
        if self.factor <= 1:
            return min(self.cap, self.first)
        try:
            return min(self.cap, self.first * self.factor ** (attempts - 1))
        except OverflowError:
            return self.cap

    def delay(self, attempts: int, chance: float) -> float:
        """Seconds to wait after `attempts` tries; `chance` is uniform in [0, 1). A schedule is exact."""
        ceiling = self.ceiling(attempts)
        return ceiling if self.schedule else max(1.0, ceiling * chance)

    def spent(self, attempts: int) -> bool:
        """Whether `attempts` tries were all that the profile allows."""
        return bool(self.attempts) and attempts >= self.attempts
