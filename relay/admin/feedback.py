"""What became of mail after it left, in figures: from the stream of events, by egress, class, sender and destination."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from relay import clock
from relay.admin.ports import Usage
from relay.envelope import ascii_domain, domain_of
from relay.events import Row
from relay.policy.bounces import classify
from relay.policy.reputation import Share, wilson
from relay.reply import Stage
from relay.spool import Spool

PAGE = 500
MOST_KEYS = 2000  # of one kind: strangers choose destinations, so the rest is one row
MOST_ROWS = 200  # of one kind that are told, those with the most bounces and complaints first
REASONS = 5
WEEK = 7 * 86400.0
OTHERS = "(others)"
_COUNTED = {"complained": "complained", "unsubscribed": "unsubscribed", "auto_replied": "auto_replied"}


@dataclass(slots=True)
class Figures:
    """Of one key. `sent`: recipients that a next hop took or refused for good, each once."""

    sent: int = 0
    hard: int = 0
    soft: int = 0
    complained: int = 0
    unsubscribed: int = 0
    auto_replied: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def row(self) -> dict[str, Any]:
        found: dict[str, Any] = {"sent": self.sent}
        for name, count in (("bounced_hard", self.hard), ("bounced_soft", self.soft), ("complained", self.complained),
                            ("unsubscribed", self.unsubscribed), ("auto_replied", self.auto_replied)):  # fmt: skip
            # What came back about mail of before tells no share of this.
            share: Share = wilson(count, self.sent) if count <= self.sent else wilson(0, 0)
            found |= {name: count, f"{name}_rate": share.rate, f"{name}_low": share.low, f"{name}_high": share.high}
        return found | {"reasons": [{"reason": r, "count": n} for r, n in self.reasons.most_common(REASONS)]}


class Count:
    """Rows of the stream, summed by key."""

    def __init__(self) -> None:
        self.by: dict[tuple[str, str], Figures] = {}
        self._keys: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        data = row.data or {}
        for key in self._named(row, data):
            figures = self._of(key)
            match row.kind:
                case "delivered":
                    figures.sent += 1
                case "failed" if row.egress and row.code:  # a next hop said so
                    figures.sent += 1
                    self._bounce(figures, *_refused(row.code, data))
                case "bounced":
                    self._bounce(figures, str(data.get("class")), str(data.get("reason") or "unknown"))
                case kind if name := _COUNTED.get(kind):
                    setattr(figures, name, getattr(figures, name) + 1)

    @staticmethod
    def _bounce(figures: Figures, class_: str, reason: str) -> None:
        if class_ == "hard":
            figures.hard += 1
        else:
            figures.soft += 1
        figures.reasons[reason] += 1

    def _named(self, row: Row, data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """All that a row counts for; what is not known does not count."""
        recipient = row.recipient or str(data.get("recipient", ""))
        yield "all", ""
        for what, name in (
            ("egress", row.egress),
            ("class", (row.class_ or "default") if row.message else ""),
            ("sender", ascii_domain(domain_of(row.sender)) if row.sender else ""),
            ("destination", ascii_domain(domain_of(recipient)) if recipient else ""),
        ):
            if name:
                yield what, name

    def _of(self, key: tuple[str, str]) -> Figures:
        found = self.by.get(key)
        if found is None:
            what = key[0]
            if self._keys[what] >= MOST_KEYS:
                key = (what, OTHERS)
            self._keys[what] += key not in self.by
            found = self.by.setdefault(key, Figures())
        return found


def _refused(code: int, data: Mapping[str, Any]) -> tuple[str, str]:
    """(class, reason) of a next hop's refusal, by its words."""
    reply = str(data.get("last_reply", ""))
    try:
        stage = Stage(str(data.get("stage", "")))
    except ValueError:
        stage = None
    verdict = classify("", code, reply, stage=stage)
    return verdict.class_, str(verdict.reason)


async def stats(spool: Spool, usage: Usage, since: float) -> dict[str, Any]:
    """`rows`: flat figures by `what` and `name`, with rates between 0 and 1, their bounds at 95 % confidence, and the score of the
    last day where there is one. Raises SpoolError."""
    count, cursor = Count(), await spool.event_at(since)
    last = await spool.last_event()
    while rows := await spool.events(cursor, PAGE, last):
        cursor = rows[-1].id
        for row in rows:
            count.add(row)
        await asyncio.sleep(0)  # a week may be a million rows
    now = clock.now()
    scores = {(row["what"], row["name"]): row["score"] for row in usage.reputation(now)}
    found: list[dict[str, Any]] = []
    for what in ("all", "egress", "class", "sender", "destination"):
        of_kind = [(figures, name) for (kind, name), figures in count.by.items() if kind == what]
        of_kind.sort(key=lambda one: (-(one[0].hard + one[0].soft + one[0].complained), -one[0].sent, one[1]))
        found += [
            {"what": what, "name": name, **figures.row(), "score": scores.get((what, name))}
            for figures, name in of_kind[:MOST_ROWS]
        ]
    return {"since": since, "until": now, "rows": found}
