"""What a sink has seen: counted as it happens, told as a summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from relay.sink.keep import Kept
from relay.sink.play import Player

MAX_REPLIES = 1000  # different ones; what comes beyond is counted as one
MINUTE = 60


class Tally:
    """Times are seconds of a monotonic clock; those that are told begin with the first connection."""

    def __init__(self, player: Player) -> None:
        self._player = player
        self._began: float | None = None
        self._first = self._last = 0.0  # message kept
        self.kept = 0
        self.without_id = 0
        self.message_ids: Counter[str] = Counter()
        self.dropped = 0  # connections cut, or never answered, by a rule
        self.connections = 0
        self.most_connections = 0
        self._copies: Counter[tuple[str, str]] = Counter()  # (Message-ID, recipient)
        self._kept: Counter[int] = Counter()  # by second
        self._replies: Counter[tuple[int, str]] = Counter()
        self._known: set[str] = set()

    # -- what happens

    def connected(self, now: float, inside: int) -> None:
        self._began = now if self._began is None else self._began
        self.connections += 1
        self.most_connections = max(self.most_connections, inside)

    def keep(self, now: float, kept: Kept) -> None:
        self._first = self._first if self.kept else now
        self._last = now
        self.kept += 1
        self._kept[self._second(now)] += 1
        if kept.message_id:
            self.message_ids[kept.message_id] += 1
            self._copies.update((kept.message_id, recipient) for recipient in set(kept.recipients))
        else:
            self.without_id += 1

    def refuse(self, now: float, reply: str) -> None:
        """`reply`: as the script has it, so that what differs from one to the next is no reply of its own."""
        if reply not in self._known and len(self._known) >= MAX_REPLIES:
            reply = "(others)"
        self._known.add(reply)
        self._replies[self._second(now), reply] += 1

    def _second(self, now: float) -> int:
        return int(now - (now if self._began is None else self._began))

    # -- what is asked

    @property
    def doubled(self) -> dict[tuple[str, str], int]:
        """(Message-ID, recipient) -> how often, of those that arrived more than once."""
        return {key: count for key, count in self._copies.items() if count > 1}

    @property
    def seconds(self) -> float:
        """From the first message kept to the last."""
        return self._last - self._first

    def refused(self, after: float = 0.0) -> Counter[str]:
        """Refusals by reply, from so many seconds after the first connection on."""
        found: Counter[str] = Counter()
        for (second, reply), count in self._replies.items():
            if second >= after:
                found[reply] += count
        return found

    def by_minute(self) -> Counter[tuple[int, str]]:
        """Refusals by (minute since the first connection, reply)."""
        found: Counter[tuple[int, str]] = Counter()
        for (second, reply), count in self._replies.items():
            found[second // MINUTE, reply] += count
        return found

    def share(self, after: float = 0.0, reply: str | None = None) -> float:
        """Which part of all that was kept or refused was refused (with `reply`); 0 to 1."""
        refused = self.refused(after)
        tries = sum(refused.values()) + sum(count for second, count in self._kept.items() if second >= after)
        wanted = sum(refused.values()) if reply is None else refused[reply]
        return wanted / tries if tries else 0.0

    @property
    def buckets(self) -> list[dict[str, Any]]:
        """Each bucket: what it is of, rate (tokens a second), burst, took, refused, minimum and seconds."""
        return list(self._buckets())

    def _buckets(self) -> Iterator[dict[str, Any]]:
        for limit, whose, bucket in self._player.buckets():
            yield {
                "limit": limit,
                "of": whose,
                "rate": bucket.rate,
                "burst": bucket.burst,
                "took": bucket.took,
                "refused": bucket.refused,
                "minimum": bucket.minimum,
                "seconds": bucket.seconds,
            }

    @property
    def places(self) -> list[dict[str, Any]]:
        """Each limit on how many at once: what it is of, most, highest, refused."""
        return [
            {"limit": limit, "of": whose, "most": p.most, "highest": p.highest, "refused": p.refused}
            for limit, whose, p in self._player.places()
        ]

    def summary(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        later = self.refused(MINUTE)
        replies = [
            {
                "reply": reply,
                "count": count,
                "share": round(self.share(0, reply), 5),
                "after_minute": later[reply],
                "share_after_minute": round(self.share(MINUTE, reply), 5),
            }
            for reply, count in self.refused().most_common()
        ]
        doubled = [{"message_id": i, "recipient": r, "count": n} for (i, r), n in sorted(self.doubled.items())]
        return {
            "kept": self.kept,
            "message_ids": len(self.message_ids),
            "without_message_id": self.without_id,
            "doubled": doubled,
            "seconds": round(self.seconds, 3),
            "dropped": self.dropped,
            "connections": self.connections,
            "most_connections": self.most_connections,
            "replies": replies,
            "buckets": [{k: round(v, 3) if isinstance(v, float) else v for k, v in b.items()} for b in self.buckets],
            "places": self.places,
        }
