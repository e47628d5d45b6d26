"""Where events go, over HTTP: how far each endpoint has come, its dead letters, and once more."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from pydantic import Field, model_validator

from relay.admin.ports import NotFound
from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Model, Operation
from relay.api.rows import NEXT, Cursor
from relay.spool.feed import Parcel

PAGE = 1000


class DeadQuery(Model):
    after: Cursor = Field(0, description="The `next` of the page before.")
    limit: int = Field(100, ge=1, description=f"At most {PAGE}.")


class Replay(Model):
    """Exactly one of `dead`, `since` and `after`."""

    dead: bool = Field(False, description="Its dead letters.")
    since: float | None = Field(
        None, strict=True, allow_inf_nan=False, description="All of the stream since this time, epoch seconds."
    )
    after: int | None = Field(None, strict=True, ge=0, lt=1 << 62, description="All of the stream after this event.")
    dry_run: bool = Field(False, description="Only count.")

    @model_validator(mode="after")
    def _one(self) -> Replay:
        if sum((self.dead, self.since is not None, self.after is not None)) != 1:
            raise ValueError("replay wants one of dead, since and after")
        return self


class Dry(Model):
    dry_run: bool = Field(False, description="Only count.")


class Webhook(Answer):
    endpoint: str = Field(description="Its name.")
    kind: str = Field(description="`url`, `command` or `file`.")
    state: str = Field(description="`well`, `failing` or `gone`.")
    cursor: int = Field(description="The event that it has come to.")
    lag: int = Field(description="Events behind the newest.")
    lag_seconds: float = Field(description="How old the first is that it has not.")
    waiting: int = Field(description="Events that are tried again.")
    dead: int = Field(description="Events that were given up.")
    error: str = Field(description="What went wrong last; empty: nothing.")


class Webhooks(Answer):
    webhooks: list[Webhook] = Field(description="In the order of the configuration.")


class DeadLetter(Answer):
    event: dict[str, Any] = Field(description="As it was to be sent.")
    attempts: int = Field(description="How often it was tried.")
    first_at: float = Field(description="When first; epoch seconds.")
    why: str = Field(description="What was said last.")


class DeadLetters(Answer):
    dead: list[DeadLetter] = Field(description="The oldest first.")
    next: int | None = Field(description=NEXT)


class Counted(Answer):
    events: int = Field(description="How many are sent again; with `dry_run`: would be.")
    dry_run: bool = Field(description="Nothing was changed.")


class Tested(Answer):
    endpoint: str = Field(description="Its name.")
    taken: bool = Field(description="It answered as it should.")
    why: str = Field(description="What it answered, where not.")
    seconds: float = Field(description="That it took.")


def operations(rooms: Rooms) -> list[Operation]:
    hooks = rooms.hooks

    async def every(call: Call) -> dict[str, Any]:
        return {"webhooks": hooks.rows()}

    async def dead(call: Call) -> dict[str, Any]:
        limit = min(PAGE, call.query.limit)
        with _named():
            found = await hooks.dead(call.path("name"), call.query.after, limit)
        return {"dead": [_told(one) for one in found], "next": found[-1].event if len(found) == limit else None}

    async def replay(call: Call) -> dict[str, Any]:
        asked: Replay = call.body
        with _named():
            count = await hooks.replay(
                call.path("name"), dead=asked.dead, since=asked.since, after=asked.after or 0, dry_run=asked.dry_run
            )
        call.noted["events"] = count
        return {"events": count, "dry_run": asked.dry_run}

    async def drop(call: Call) -> dict[str, Any]:
        with _named():
            count = await hooks.drop(call.path("name"), dry_run=call.body.dry_run)
        call.noted["events"] = count
        return {"events": count, "dry_run": call.body.dry_run}

    async def test(call: Call) -> dict[str, Any]:
        with _named():
            return await hooks.test(call.path("name"))

    where = "/v1/webhooks/{name}"
    return [
        Operation("GET", "/v1/webhooks", "read", "Endpoints of events", every, Webhooks, whole=True),
        Operation("GET", f"{where}/dead", "read", "Dead letters", dead, DeadLetters, query=DeadQuery, whole=True),
        Operation(
            "POST", f"{where}/replay", "operate", "Hand over once more", replay, Counted, body=Replay, whole=True,
            examples={"body": {"dead": True, "dry_run": True}},
        ),
        Operation("POST", f"{where}/drop", "operate", "Forget dead letters", drop, Counted, body=Dry, whole=True),
        Operation("POST", f"{where}/test", "operate", "Send a test event now", test, Tested, whole=True),
    ]  # fmt: skip


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """No such endpoint is a 404."""
    try:
        yield
    except LookupError as error:
        raise NotFound(str(error)) from None


def _told(one: Parcel) -> dict[str, Any]:
    """The event as it was to be sent, and beside it what became of it."""
    return {"event": json.loads(one.body), "attempts": one.attempts, "first_at": one.first_at, "why": one.why}
