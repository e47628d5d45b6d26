"""A breaker for each egress: do not dial what has just failed five times. Pure.

Closed: dial. Open: wait until `until`. Half-open: one probe, whose end closes it or opens it for longer. A failed login
opens it at once, for the account's whole queue would fail the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

FAILURES = 5
COOL_DOWN = 60.0
MAX_COOL_DOWN = 1800.0


@dataclass(slots=True)
class Breaker:
    failures: int = 0  # in a row
    opened: int = 0  # times in a row
    until: float = 0.0
    why: str = ""
    auth_failed: bool = False
    probing: bool = False

    def wait(self, now: float) -> float:
        """Seconds before the next dial may start; 0 where it may start now."""
        if self.opened and self.probing:
            # The probe's end wakes the lane; this is only how long to wait for that word.
            return max(1.0, self.until - now)
        return max(0.0, self.until - now) if self.opened else 0.0

    @property
    def is_open(self) -> bool:
        return self.opened > 0

    def start(self) -> None:
        """A dial starts; while open it is the one probe."""
        if self.opened:
            self.probing = True

    def succeeded(self) -> None:
        # A session that was logged in before says nothing about a login that failed since: the pause stays.
        if self.auth_failed and not self.probing:
            return
        self.failures, self.opened, self.until, self.why, self.auth_failed, self.probing = 0, 0, 0.0, "", False, False

    def ask_again(self, now: float) -> None:
        """An operator may have mended what made it rest: the next probe may start now."""
        self.until = min(self.until, now)

    def returned(self) -> None:
        """The probe ended without a word about the next hop (we stopped it): as before it."""
        self.probing = False

    def failed(self, now: float, why: str, chance: float, *, auth: bool = False) -> None:
        """A next-hop failure, or with `auth` a refused login. `chance` in [0, 1) spreads the end of the pause."""
        self.failures += 1
        # Within a pause for a login that failed, another session's end is no news about the login.
        self.auth_failed = auth or (self.auth_failed and now < self.until)
        self.why = why
        # Sessions that were under way fail with it: only the first of them makes the pause longer.
        if (self.probing or auth or self.failures >= FAILURES) and now >= self.until:
            self.opened += 1
            cool_down = min(MAX_COOL_DOWN, COOL_DOWN * 2.0 ** min(self.opened - 1, 10))
            self.until = now + cool_down * (0.8 + 0.2 * chance)
        self.probing = False
