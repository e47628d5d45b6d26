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
    name: str = Field(description="Which one; of `all` empty.")
    sent: int = Field(description="Recipients that were delivered or refused for good.")
    bounced_hard: int = Field(description="Recipients that are not there, or refuse for good.")
    bounced_soft: int = Field(description="Recipients that could not be reached for a time.")
    complained: int = Field(description="Who called it spam.")
    unsubscribed: int = Field(description="Who wants no more of it.")
    auto_replied: int = Field(description="Who has a machine answer.")
    reasons: list[dict[str, Any]] = Field(description="Why they bounced, the most frequent first.")
    score: float | None = Field(description="Its reputation, 0 to 1; null: too little is known.")


class FeedbackStats(Answer):
    since: float = Field(description="From when on; epoch seconds.")
    until: float = Field(description="Up to when; epoch seconds.")
    rows: list[StatsRow] = Field(description="One for each `what` and `name`.")


def operations(rooms: Rooms) -> list[Operation]:
    async def figures(call: Call) -> dict[str, Any]:
        return await stats(rooms.spool, rooms.usage, clock.now() - call.query.seconds)

    return [
        Operation(
            "GET", "/v1/feedback/stats", "read", "What came back, in figures", figures, FeedbackStats, query=StatsQuery,
            whole=True,
        )
    ]  # fmt: skip
