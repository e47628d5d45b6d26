"""What binds mail now: limits, shaping, alarms, rates. A tenant's or user's token sees the limits that stand with its own names."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from relay import clock
from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Operation


class LimitRow(Answer):
    whose: str = Field(description="`user shop`, `account main`, `limit NAME`, …")
    limit: str = Field(description="As it is written, such as `14/s`.")
    unit: str = Field(description="What it counts.")
    spent: float = Field(description="Of its window, so far.")
    count: float = Field(description="How many its window allows.")
    share: float = Field(description="Of `count`, from 0 to 1.")
    wait: float = Field(description="Seconds until one message more may leave.")


class LimitRows(Answer):
    limits: list[LimitRow] = Field(description="Those of which something is spent.")


class ShapingRow(Answer):
    egress: str = Field(description="At which account or direct entry.")
    destination: str = Field(description="Towards which; empty: all of it.")
    what: str = Field(description="What is done.")
    until: float = Field(description="Epoch seconds.")
    why: str = Field(description="The rule, and what was said.")


class ShapingRows(Answer):
    shaping: list[ShapingRow] = Field(description="Those in force.")


class AlarmRow(Answer):
    what: str = Field(description="What kind of alarm.")
    egress: str = Field(description="What it is about, mostly an account or direct entry.")
    since: float = Field(description="Epoch seconds.")
    why: str = Field(description="What to look at.")


class AlarmRows(Answer):
    alarms: list[AlarmRow] = Field(description="Those that stand.")


class ReputationRow(Answer):
    what: str = Field(description="What `name` is: an egress, a destination, a sender, a class, …")
    name: str = Field(description="Which one.")
    tried: float = Field(description="Recipients in the last 24 hours.")
    score: float = Field(description="0 to 1; 1 is the best.")


class ReputationRows(Answer):
    reputation: list[ReputationRow] = Field(description="Of the last 24 hours, the lowest score first.")


def operations(rooms: Rooms) -> list[Operation]:
    usage = rooms.usage

    async def limits(call: Call) -> dict[str, Any]:
        return {"limits": usage.limits(clock.now(), _named(call))}

    async def shaping(call: Call) -> dict[str, Any]:
        return {"shaping": usage.shaping(clock.now())}

    async def alarms(call: Call) -> dict[str, Any]:
        return {"alarms": usage.alarms()}

    async def reputation(call: Call) -> dict[str, Any]:
        return {"reputation": usage.reputation(clock.now())}

    return [
        Operation("GET", "/v1/limits", "read", "How much of each limit is spent", limits, LimitRows),
        Operation("GET", "/v1/shaping", "read", "What upstreams' words made us do", shaping, ShapingRows, whole=True),
        Operation("GET", "/v1/alarms", "read", "What somebody should look at", alarms, AlarmRows, whole=True),
        Operation("GET", "/v1/reputation", "read", "How mail fared of late", reputation, ReputationRows, whole=True),
    ]


def _named(call: Call) -> frozenset[str] | None:
    """Whose limits it sees, in the words of their rows; None: all."""
    if call.users is None:
        return None
    tenant = call.principal.tenant
    return frozenset({f"user {user}" for user in call.users} | ({f"tenant {tenant}"} if tenant else set()))
