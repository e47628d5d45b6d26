"""Counts for operators: by lane, by egress, and whether mail leaves. Bounded, and in breaths: there may be thousands of lanes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from relay import clock
from relay.admin.ports import Outlook
from relay.deliver.pool import name_of
from relay.policy.lanefacts import LaneFacts
from relay.recipient import State
from relay.spool import Spool

MOST_DESTINATIONS = 20  # of a direct entry that are told one by one


async def breathe(count: int) -> None:
    """Of a thousand lanes each takes a moment: mail goes on after every few."""
    if not count % 20:
        await asyncio.sleep(0)


def lane_name(outlook: Outlook, lane: int, class_: str) -> str:
    """`class/route`, and where it leaves by MX `class/route/destination`."""
    site = outlook.destination(lane)
    return f"{class_}/{outlook.route_name(lane) or '?'}{f'/{site}' if site else ''}"


async def stats(spool: Spool, outlook: Outlook, users: frozenset[str] | None = None) -> dict[str, Any]:
    """`states`, `lanes`, and `egresses`: a row for each, and behind that of a direct entry those of its destinations.

    Of some users: their mail alone, and no word of the egresses, which are everybody's.
    """
    found = await lanes(spool, outlook, users)
    for i, lane in enumerate(found):
        await breathe(i)
        foreseen(outlook, lane, clock.now())
        del lane["due_at"]
        lane["facts"] = json.loads(lane["facts"])
    if users is not None:
        states = {s.label: sum(lane.get(s.label, 0) for lane in found) for s in State}
        return {"states": states, "lanes": found, "egresses": []}
    egresses = []
    for row in outlook.egress_rows():
        egresses.append(row)
        if row["destinations"]:
            egresses += await outlook.destination_rows(row["egress"], MOST_DESTINATIONS)
    return {"states": {s.label: n for s, n in spool.counts.items()}, "lanes": found, "egresses": egresses}


async def lanes(spool: Spool, outlook: Outlook, users: frozenset[str] | None) -> list[dict[str, Any]]:
    """A row for each lane that has something, by number: recipients by state; `due_at`: of the first that waits for its turn."""
    now = clock.now()
    found = list[dict[str, Any]]()
    for i, row in enumerate(await spool.stats(users)):
        await breathe(i)
        number = row["lane"]
        name = lane_name(outlook, number, LaneFacts.parse(row["facts"]).class_)
        lane = {"lane": name, "lane_id": number, "facts": row["facts"], "due_at": row["due_at"]}
        lane |= {"destination": outlook.destination(number), **row["states"]}
        if row["oldest"] is not None:
            lane["oldest_age"] = max(0.0, now - row["oldest"])
        found.append(lane)
    return found


def foreseen(outlook: Outlook, lane: dict[str, Any], now: float) -> None:
    """Adds why what is due in it waits, and until when."""
    why, until, egresses = outlook.forecast(lane["lane_id"], now)
    following: float | None = None
    if any(lane.get(state) for state in ("queued", "deferred", "active")):
        due = lane["due_at"]
        following = max(due, until or 0.0) if due is not None and due > now else until  # as a list has it
    elif lane.get("held"):
        why = "held until an operator releases it"
    lane |= {"why": why, "next_at": following, "egresses": list(map(name_of, egresses))}


def leaving(outlook: Outlook) -> dict[str, Any]:
    """What of the ways out is down, until when and why. A direct entry is, where all its destinations are."""
    now, rows = clock.now(), outlook.egress_rows()
    return {
        "accounts": sum(row["destinations"] is None for row in rows),
        "direct": [
            {name: row[name] for name in ("egress", "destinations", "resting")}
            for row in rows
            if row["destinations"] is not None
        ],
        "tokens": [{"egress": row["egress"], **row["token"]} for row in rows if "token" in row],
        "resting_until": [
            {"egress": row["egress"], "until": now + row["wait"], "why": row["why"]} for row in rows if row["down"]
        ],
    }
