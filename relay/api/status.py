"""How the relay fares as a whole."""

from __future__ import annotations

from typing import Any

from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Operation


class Status(Answer):
    version: str
    health: dict[str, Any]


def operations(rooms: Rooms) -> list[Operation]:
    async def status(call: Call) -> dict[str, Any]:
        return rooms.service.status() | {"webhooks": rooms.hooks.rows()}

    return [Operation("GET", "/v1/status", "read", "How the relay fares", status, Status, whole=True)]
