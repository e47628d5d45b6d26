"""Recipients, and what an operator does with a selection of them, or with one message."""

from __future__ import annotations

from pydantic import Field

from relay.admin.service import VERBS
from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Handler, Model, Operation
from relay.api.rows import NEXT, Json, Limit, RecipientRow, Selection, pair

_SUMMARY = {
    "retry": "Try now, not later",
    "hold": "Keep until it is released",
    "release": "Let go what is held",
    "cancel": "End it: it stays visible as failed",
    "reroute": "Send it another way, and try now",
}


class QueueQuery(Selection):
    after: str = Field(
        "", max_length=40, description="The `next` of the page before.", json_schema_extra={"pattern": r"^([0-9]{1,18}\.[0-9]{1,18})?$"}
    )  # fmt: skip
    limit: Limit = 100


class RecipientRows(Answer):
    recipients: list[RecipientRow] = Field(description="By message, and by number within it.")
    next: str | None = Field(description=NEXT)


class ActOnOne(Model):
    to: str = Field(
        "",
        max_length=200,
        description="Of reroute: the route, or for the whole relay also the account, direct entry or pool; empty: by the rules.",
    )
    dry_run: bool = Field(False, description="Say what would be done, change nothing.")


class Act(ActOnOne):
    filter: Selection = Field(description="Which recipients. An empty one selects nothing.")


class Acted(Answer):
    verb: str = Field(description="What was done.")
    recipients: int = Field(description="How many it is done to; with `dry_run`: would be.")
    dry_run: bool = Field(description="Nothing was changed.")
    sample: list[str] = Field(description="Queue id and recipient of the first ones.")
    skipped: list[str] = Field(
        description="Why nothing was done to messages that were named, or that are not this token's to let go."
    )
    notes: list[str] = Field(description="What goes on keeping it from leaving.")


def operations(rooms: Rooms) -> list[Operation]:
    service = rooms.service

    async def listed(call: Call) -> Json:
        asked = call.query
        wanted = service.parse_filter(asked.words(), call.users)
        rows, following = await service.rows(wanted, pair(asked.after), asked.limit)
        return {"recipients": rows, "next": following}

    async def act(call: Call, verb: str, words: dict[str, str]) -> Json:
        wanted = service.parse_filter(words, call.users)
        found = await service.act(verb, wanted, call.body.to, dry_run=call.body.dry_run, owner=call.principal.owner)
        call.noted.update(recipients=found["recipients"])
        return found

    def on_many(verb: str) -> Handler:
        async def handle(call: Call) -> Json:
            return await act(call, verb, call.body.filter.words())

        return handle

    def on_one(verb: str) -> Handler:
        async def handle(call: Call) -> Json:
            await service.must_be(call.path("id"), call.users)
            return await act(call, verb, {"id": call.path("id")})

        return handle

    made = [Operation("GET", "/v1/queue", "read", "Recipients", listed, RecipientRows, query=QueueQuery)]
    for verb in VERBS:
        summary = _SUMMARY[verb]
        made += [
            Operation("POST", f"/v1/queue/{verb}", "operate", summary, on_many(verb), Acted, body=Act),
            Operation("POST", f"/v1/messages/{{id}}/{verb}", "operate", summary, on_one(verb), Acted, body=ActOnOne),
        ]
    return made
