"""Messages for the spool, and the shortest way to do to them what the scheduler does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from relay.recipient import State
from relay.spool import Ask, Change, Claim, Event, Filter, NewMessage, NewRecipient, Settlement
from relay.spool.sqlite import SqliteSpool

NOW = 1_800_000_000.0
DAY = 86400.0
HEAD = b"Subject: hello\r\n\r\n"


def lane(name: str = "default", user: str = "") -> str:
    """The facts of a lane of that class and user, as `policy.lanefacts.lane_facts` writes them."""
    return f'{{"class":"{name}","user":"{user}"}}'


def message(
    spool: SqliteSpool,
    *to: str,
    body: bytes = b"Hello\r\n",
    key: str = "",
    user: str = "",
    priority: int = 2,
    at: float = NOW,
    due: float | None = None,
    expires: float = NOW + 5 * DAY,
    facts: str = "",
    class_: str = "default",
    state: State = State.QUEUED,
    tag: str = "",
    sender: str = "app@example.com",
    metadata: str = "",
) -> NewMessage:
    due = at if due is None else due
    recipients = [
        NewRecipient(a, facts or lane(class_), state, due, expires, why="" if state is State.QUEUED else "as asked")
        for a in (to or ("rcpt@example.net",))
    ]
    return NewMessage(
        id=spool.next_id(),
        sender=sender,
        header_from=sender,
        user=user,
        class_=class_,
        tag=tag,
        listener="local",
        client="127.0.0.1",
        priority=priority,
        accepted_at=at,
        head=HEAD,
        body=body,
        body_size=len(body),
        smtp=0,
        recipients=recipients,
        idempotency_key=key,
        metadata=metadata,
    )


async def put(spool: SqliteSpool, *to: str, **more: Any) -> int:
    """Accept one message; its id."""
    number, fresh = await spool.accept(message(spool, *to, **more))
    assert fresh
    return number


async def claim(spool: SqliteSpool, limit: int = 100, now: float = NOW) -> list[Claim]:
    """What is due, out of every lane."""
    claims, _ = await spool.claim([Ask(head.lane, limit, now) for head in await spool.heads()])
    return claims


def settled(
    claims: Iterable[Claim], state: State, now: float = NOW, *, due: float = 0.0, why: str = "said so"
) -> list[Settlement]:
    """What settle would make of them: each recipient with this state."""
    found = []
    for c in claims:
        changes = [
            Change(c.message, r.n, r.lane, state, due or now, r.attempts + 1, False, "up", f'{{"why":"{why}"}}')
            for r in c.recipients
        ]
        events = [Event(now, c.message, r.n, state.label, "up", 250, {"why": why}) for r in c.recipients]
        found.append(Settlement(changes, events))
    return found


async def rows(spool: SqliteSpool, wanted: Filter | None = None) -> list[dict[str, Any]]:
    return [row async for row in spool.find(wanted or Filter())]


async def states(spool: SqliteSpool) -> list[str]:
    return [row["state"] for row in await rows(spool)]


def keys(found: Iterable[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(row["message"], row["n"]) for row in found]


async def assert_counts(spool: SqliteSpool) -> None:
    """The counters that metrics and limits go by are what the rows say."""
    counted = dict.fromkeys(State, 0)
    for row in await rows(spool):
        counted[State[row["state"].upper()]] += 1
    assert spool.counts == counted
