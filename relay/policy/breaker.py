"""A breaker for each egress: do not dial what has just failed five times. Pure.

Closed: dial. Open: wait until `until`. Half-open: one probe, whose end closes it or opens it for longer. A failed login
opens it at once, for the account's whole queue would fail the same way; so does a word of the upstream about the account
itself, such as a quota that is used up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FAILURES = 5
COOL_DOWN = 60.0
MAX_COOL_DOWN = 1800.0
LONGEST = 2 * 86400.0  # seconds that anything may ask for


@dataclass(frozen=True, slots=True)
class Health:
    """When an egress that fails is left alone, and for how long. Times in seconds."""

    failures: int = FAILURES  # in a row
    cool_down: float = COOL_DOWN  # doubled each time that the probe fails
    longest: float = MAX_COOL_DOWN


@dataclass(slots=True)
class Breaker:
    health: Health = field(default_factory=Health)
    failures: int = 0  # in a row
    opened: int = 0  # times in a row
    until: float = 0.0
    why: str = ""
    auth_failed: bool = False
    told: bool = False  # the upstream said that it is about the account: no other session's end says more
    passes: bool = True  # while it rests the route's next egress may take over
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
        if (self.auth_failed or self.told) and not self.probing:
            return
        self.failures, self.opened, self.until, self.why = 0, 0, 0.0, ""
        self.auth_failed, self.told, self.passes, self.probing = False, False, True, False

    def ask_again(self, now: float) -> None:
        """An operator may have mended what made it rest: the next probe may start now. If it fails, the pause is a short
        one again: four reloads in a row while somebody mends it must not end in a quarter of an hour of rest."""
        self.until, self.opened = min(self.until, now), min(self.opened, 1)

    def returned(self) -> None:
        """The probe ended without a word about the next hop (we stopped it): as before it."""
        self.probing = False

    def rest(self, now: float, seconds: float, why: str, *, passes: bool) -> bool:
        """The upstream asks for a pause of the account. Whether that is news: sessions under way are told the same."""
        news = not (self.told and now < self.until)
        self.opened, self.told, self.probing = max(1, self.opened), True, False
        if news:
            self.why, self.passes, self.until = why, passes, max(self.until, now + seconds)
        return news

    def failed(self, now: float, why: str, chance: float, *, auth: bool = False) -> None:
        """A next-hop failure, or with `auth` a refused login. `chance` in [0, 1) spreads the end of the pause."""
        self.failures += 1
        if self.told and now < self.until:
            self.probing = False
            return  # the pause that was asked for stays as it is
        self.told, self.passes = False, True
        # Within a pause for a login that failed, another session's end is no news about the login.
        self.auth_failed = auth or (self.auth_failed and now < self.until)
        self.why = why
        # Sessions that were under way fail with it: only the first of them makes the pause longer.
        if (self.probing or auth or self.failures >= self.health.failures) and now >= self.until:
            self.opened += 1
            cool_down = min(self.health.longest, self.health.cool_down * 2.0 ** min(self.opened - 1, 10))
            self.until = now + cool_down * (0.8 + 0.2 * chance)
        self.probing = False

    def state(self) -> dict[str, Any]:
        """What outlives a restart, as JSON has it; empty: there is nothing to remember. Times are epoch seconds."""
        if not self.opened and not self.failures:
            return {}
        return {name: getattr(self, name) for name in _KEPT}

    def load(self, state: Mapping[str, Any], now: float) -> None:
        """What `state` gave. A rest that would end later than any can was written by another clock."""
        for name in _KEPT:
            if type(value := state.get(name)) is type(getattr(self, name)):
                setattr(self, name, value)
        self.until = min(self.until, now + LONGEST)


_KEPT = ("failures", "opened", "until", "why", "auth_failed", "told", "passes")
