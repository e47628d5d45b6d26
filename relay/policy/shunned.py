"""Who gets nothing more, for a rule of `shaping` said so. Pure: time is an argument.

The domain of an address has no case, its local part has (RFC 5321 §2.4): one who was refused as Ann@ is not ann@.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from relay.reply import Reply

MOST = 100_000


@dataclass(frozen=True, slots=True)
class Suppression:
    address: str
    why: str  # the reply, and the rule
    at: float  # epoch seconds
    until: float

    @property
    def refusal(self) -> Reply:
        """What a client hears at RCPT. The mailbox may be well, it is we who do not deliver to it: RFC 3463 §3.8, X.7.1."""
        return Reply(550, f"this recipient is suppressed: {self.why}", "5.7.1")


class Suppressed:
    """By address; of too many the one that was added first is forgotten."""

    def __init__(self) -> None:
        self._by: dict[str, Suppression] = {}
        self._state = ""  # as long as nothing changes: it may be megabytes

    def __len__(self) -> int:
        return len(self._by)

    def add(self, address: str, why: str, at: float, until: float) -> Suppression:
        """One who is suppressed already stays so until the later of both ends."""
        key = _key(address)
        known = self._by.pop(key, None)
        made = Suppression(key, why, at, max(until, known.until if known else 0.0))
        while len(self._by) >= MOST:
            del self._by[next(iter(self._by))]
        self._by[key], self._state = made, ""
        return made

    def find(self, address: str, now: float) -> Suppression | None:
        """None: mail for it may leave."""
        found = self._by.get(_key(address)) if self._by else None
        return found if found is not None and found.until > now else None

    def remove(self, address: str) -> bool:
        """By hand. Whether it was there."""
        self._state = ""
        return self._by.pop(_key(address), None) is not None

    def over(self, now: float) -> list[Suppression]:
        """Those that have come to their end, and are forgotten now."""
        gone = [found for found in self._by.values() if found.until <= now]
        for found in gone:
            del self._by[found.address]
            self._state = ""
        return gone

    def rows(self, now: float) -> list[dict[str, Any]]:
        """For operators, the latest first."""
        return [asdict(found) for found in reversed(self._by.values()) if found.until > now]

    def state(self) -> str:
        """JSON, for `load`."""
        if not self._state:
            made = [{"address": s.address, "why": s.why, "at": s.at, "until": s.until} for s in self._by.values()]
            self._state = json.dumps(made, separators=(",", ":"))
        return self._state

    def load(self, text: str) -> None:
        """What `state` made, in the place of what is known. Raises ValueError where it is something else."""
        try:
            found = [Suppression(**row) for row in json.loads(text)]
        except TypeError as error:
            raise ValueError(f"not what was remembered of suppressions: {error}") from None
        self._state = ""
        self._by = {made.address: made for made in found[-MOST:]}


def _key(address: str) -> str:
    local, at, domain = address.rpartition("@")
    return f"{local}{at}{domain.lower()}"
