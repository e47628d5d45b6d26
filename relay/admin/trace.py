"""One message's story, with all that is known about it now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relay.admin.figures import breathe
from relay.admin.ports import NotFound
from relay.admin.service import Service, Users
from relay.envelope import queue_id
from relay.events import told
from relay.policy.suppression import plain, scopes


async def trace(service: Service, tenants: Mapping[str, str], text: str, users: Users = None) -> dict[str, Any]:
    """`message`: its facts and its recipients, each with when it moves next and what suppresses it now; None where only events
    are left of it, which nobody's user says any more: who sees some users' mail alone gets NotFound. `events`: as the stream has
    them. Raises BadRequest, NotFound."""
    number = service.number(text)
    events = [told(row, tenants) for row in await service.spool.story(number)]
    try:
        message = await service.message(queue_id(number), users)
    except NotFound:
        if not events or users is not None:
            raise
        return {"message": None, "events": events}
    del message["events"], message["head"]
    binds = scopes(message["class"], message["tenant"])
    for i, row in enumerate(message["recipients"]):
        await breathe(i)
        row["suppressed"] = [
            {
                "scope": s.scope,
                "why": s.why.word,
                "evidence": s.evidence,
                "source": s.source,
                "at": s.at,
                "until": s.until,
            }
            for s in await service.spool.suppressed(plain(row["recipient"]), binds)
        ]
    return {"message": message, "events": events}
