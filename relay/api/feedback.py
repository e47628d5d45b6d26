"""What came back, in figures."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from relay import clock
from relay.admin.feedback import WEEK, stats
from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Model, Operation


class StatsQuery(Model):
    seconds: float = Field(WEEK, gt=0, lt=1e9, allow_inf_nan=False, description="How far back the figures go.")


class StatsRow(Answer):
    """Counts, and each as a share of `sent`: `…_rate`, and the bounds `…_low` and `…_high` (Wilson, 95 %)."""

    what: str = Field(description="`all`, `egress`, `class`, `sender` or `destination`.")
    name: str
    sent: int
    bounced_hard: int
    bounced_soft: int
    complained: int
    unsubscribed: int
    auto_replied: int
    reasons: list[dict[str, Any]]
    score: float | None


class FeedbackStats(Answer):
    since: float
    until: float
    rows: list[StatsRow]


def operations(rooms: Rooms) -> list[Operation]:
    async def figures(call: Call) -> dict[str, Any]:
        return await stats(rooms.spool, rooms.usage, clock.now() - call.query.seconds)

    return [
        Operation(
            "GET", "/v1/feedback/stats", "read", "What came back, in figures", figures, FeedbackStats, query=StatsQuery,
            whole=True,
        )
    ]  # fmt: skip
