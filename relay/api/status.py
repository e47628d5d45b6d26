"""How the relay fares as a whole."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Operation


class Loop(Answer):
    up: bool = Field(description="It runs.")
    restarts: int = Field(description="How often it died and was started again.")


class Status(Answer):
    version: str = Field(description="Of the relay.")
    config: str | None = Field(description="The file; null: the built-in demonstration.")
    hostname: str = Field(description="What it calls itself.")
    listen: list[str] = Field(description="The addresses that are really listened on.")
    capture: list[str] | None = Field(description="Whom alone mail reaches; null: everybody.")
    alive: bool = Field(description="Its loops run.")
    accepting: bool = Field(description="Mail can be accepted durably.")
    leaving: bool = Field(description="No egress rests.")
    why: str = Field(description="Why it is not alive, or accepts nothing.")
    stopping: bool = Field(description="It was told to stop.")
    resting: list[str] = Field(description="The egresses that rest.")
    alarms: int = Field(description="How many stand (`/v1/alarms`).")
    suspended: int = Field(description="How many suspensions are in force.")
    queued: int = Field(description="Recipients that are not done.")
    waiting: int = Field(description="Recipients that want to leave.")
    held: int = Field(description="Recipients that wait for a release.")
    oldest_age: float = Field(description="Seconds that the oldest waits that wants to leave.")
    loops: dict[str, Loop] = Field(description="By name.")
    config_error: str = Field(description="Why the last reload was refused.")
    webhooks: list[dict[str, Any]] = Field(description="Where events are pushed, and how that fares.")
    changes: int = Field(description="Keys of the configuration that are changed at run time (`/v1/changes`).")


def operations(rooms: Rooms) -> list[Operation]:
    async def status(call: Call) -> dict[str, Any]:
        own = {"webhooks": rooms.hooks.rows(), "drop": rooms.drops.standing(), "changes": len(rooms.changing.changes)}
        return rooms.service.status() | own

    return [Operation("GET", "/v1/status", "read", "How the relay fares", status, Status, whole=True)]
