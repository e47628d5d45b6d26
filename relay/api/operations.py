"""All operations, in one table. A module of this room makes those of one matter."""

from __future__ import annotations

from relay.api import access, lanes, messages, overview, queue, status
from relay.api.rooms import Rooms
from relay.api.route import Operation


def operations(rooms: Rooms) -> list[Operation]:
    return [
        operation
        for module in (status, messages, queue, lanes, overview, access)
        for operation in module.operations(rooms)
    ]
