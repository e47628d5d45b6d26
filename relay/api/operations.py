"""All operations, in one table. A module of this room makes those of one matter."""

from __future__ import annotations

from relay.api import (
    access,
    accounts,
    changes,
    events,
    feedback,
    lanes,
    messages,
    overview,
    queue,
    reports,
    service,
    simulate,
    status,
    submit,
    suppressions,
    suspensions,
    usage,
    webhooks,
)
from relay.api.rooms import Rooms
from relay.api.route import Operation

_MODULES = (
    *(
        status,
        submit,
        messages,
        queue,
        lanes,
        overview,
        simulate,
        events,
        reports,
        suspensions,
        suppressions,
        accounts,
        changes,
    ),
    *(usage, webhooks, feedback, access, service),
)


def operations(rooms: Rooms) -> list[Operation]:
    return [operation for module in _MODULES for operation in module.operations(rooms)]
