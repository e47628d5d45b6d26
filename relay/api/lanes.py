"""What waits, by lane: mail that goes the same way, and is held by the same rules."""

from __future__ import annotations

from pydantic import Field

from relay import clock
from relay.admin.figures import breathe, foreseen, lanes
from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Model, Operation
from relay.api.rows import MOST, NEXT, Cursor, Json, Limit
from relay.policy.lanefacts import LaneFacts

_WAITING = ("queued", "deferred", "active", "held")


class LanesQuery(Model):
    after: Cursor = Field(0, description="The `next` of the page before.")
    limit: Limit = 100


class LaneRow(Answer):
    name: str = Field(
        description="`class/route`, and its destination where it leaves by MX. Several lanes may share it."
    )
    lane_id: int = Field(description="What suspensions know it by.")
    route: str = Field(description="The route that its mail takes.")
    class_: str = Field(alias="class", description="The traffic class of its mail.")
    user: str = Field(description="Whose mail it is; empty: nobody's in particular.")
    destination: str = Field(description="The domain, where it leaves by MX.")
    egresses: list[str] = Field(description="In the order in which they are tried.")
    recipients: dict[str, int] = Field(description="How many are in each state.")
    oldest: float | None = Field(description="When the oldest that waits was accepted, in epoch seconds.")
    why: str = Field(description="Why what is due in it waits; empty: its turn comes.")
    until: float | None = Field(description="Until when; null: nobody knows.")


class LaneRows(Answer):
    lanes: list[LaneRow] = Field(description="By number.")
    next: int | None = Field(description=NEXT)


def operations(rooms: Rooms) -> list[Operation]:
    outlook = rooms.outlook

    async def listed(call: Call) -> Json:
        asked, now = call.query, clock.now()
        limit = min(asked.limit, MOST)
        waiting = [
            lane
            for lane in await lanes(rooms.spool, outlook, call.users)
            if lane["lane_id"] > asked.after and any(lane.get(state) for state in _WAITING)
        ]
        rows = []
        for i, lane in enumerate(waiting[:limit]):
            await breathe(i)
            foreseen(outlook, lane, now)
            rows.append(_row(lane, outlook.route_name(lane["lane_id"]), now))
        return {"lanes": rows, "next": rows[-1]["lane_id"] if len(waiting) > limit else None}

    return [Operation("GET", "/v1/lanes", "read", "What waits, by lane", listed, LaneRows, query=LanesQuery)]


def _row(lane: Json, route: str, now: float) -> Json:
    facts = LaneFacts.parse(lane["facts"])
    return {
        "name": lane["lane"],
        "lane_id": lane["lane_id"],
        "route": route,
        "class": facts.class_,
        "user": facts.user,
        "destination": lane["destination"],
        "egresses": lane["egresses"],
        "recipients": {state: lane[state] for state in _WAITING if lane.get(state)},
        "oldest": now - lane["oldest_age"],
        "why": lane["why"],
        "until": lane["next_at"],
    }
