"""The queue as a simulation wants it: what waits, page by page, with all that its turn hangs on.

Pages are short, so that a hundred thousand recipients hold nobody up. What moves meanwhile is told where it was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from relay import clock
from relay.admin.ports import Outlook
from relay.recipient import State
from relay.spool import Filter, Spool

PAGE = 1000
NAMES = (
    *(
        "message",
        "n",
        "lane",
        "priority",
        "due_at",
        "expires_at",
        "recipient",
        "sender",
        "from",
        "user",
        "class",
        "tag",
    ),
    *("listener", "client", "size"),
)


class Keeping(Protocol):
    """What the scheduler offers for it."""

    async def remember(self) -> None: ...
    def hosts(self) -> Mapping[str, tuple[str, ...]]: ...


class Simulated:
    def __init__(self, spool: Spool, keeping: Keeping, outlook: Outlook) -> None:
        self.spool, self.keeping, self.outlook = spool, keeping, outlook

    async def page(self, after: tuple[int, int] | None) -> dict[str, Any]:
        """The recipients behind a cursor; the first page has what was spent and learnt as well."""
        rows: list[dict[str, Any]] = []
        wanted = Filter(states=(State.QUEUED, State.DEFERRED))
        async for row in self.spool.find(wanted, after, PAGE + 1):
            rows.append({name: row[name] for name in NAMES})
            if len(rows) > PAGE:
                break
        more, rows = len(rows) > PAGE, rows[:PAGE]
        facts = ((number, self.outlook.lane_facts_of(number)) for number in {row["lane"] for row in rows})
        lanes = {str(number): found.with_overrides({}) for number, found in facts if found is not None}
        rows = [row for row in rows if str(row["lane"]) in lanes]
        last = rows[-1] if rows else {}
        page = {"recipients": rows, "lanes": lanes, "next": f"{last['message']}.{last['n']}" if more and last else ""}
        return page if after else page | await self._state()

    async def _state(self) -> dict[str, Any]:
        await self.keeping.remember()  # what was spent since the last look is durable, and told
        return {
            "now": clock.now(),
            "spent": await self.spool.spent(),
            "documents": await self.spool.remembered(),
            "hosts": self.keeping.hosts(),
        }
