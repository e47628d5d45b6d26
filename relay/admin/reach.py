"""What `explain` adds where a message would leave by MX: its domain's servers, and whether its lane may move now."""

from __future__ import annotations

from typing import Any

from relay import clock
from relay.admin.explain import when
from relay.admin.ports import Outlook
from relay.admin.words import clock_time
from relay.deliver.pool import key_of


def by_mx(found: dict[str, Any]) -> list[str]:
    """The direct entries that it may leave by; none where `capture` keeps it."""
    if found["before_capture"]:
        return []
    return [row["egress"] for row in found["egresses"] if row["mx"] and not row["skipped"]]


def told_of(found: dict[str, Any], survey: dict[str, Any], outlook: Outlook | None) -> None:
    """`survey` (`deliver.survey`) becomes `destination`; and what is known of its lane counts in place of the entry's own state."""
    found["destination"] = survey
    for row in found["egresses"]:
        if not row["mx"] or row["skipped"]:
            continue
        if survey["refusal"]:
            row |= {"when": f"not dialled: {survey['refusal']}", "wait": None}
        elif outlook is not None:
            now = clock.now()
            until, why = outlook.rest(row["egress"], survey["domain"])
            if until:
                row |= {"when": f"waits until {clock_time(until, now)}: {why}", "wait": round(until - now, 1)}
            else:
                row |= when(outlook.view(key_of(row["egress"], survey["lane"])))
