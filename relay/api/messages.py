"""Messages: their list, one with all that is known of it, its bytes, its story, and once more."""

from __future__ import annotations

from typing import Literal

from aiohttp import web
from pydantic import Field

from relay.admin.trace import trace
from relay.api.problem import Problem
from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Model, Operation
from relay.api.rows import NEXT, NUMBER, Json, Limit, MessageRow, OneMessage, Selection, Traced, own_evidence


class MessagesQuery(Selection):
    order: Literal["oldest", "newest"] = Field("oldest", description="Which comes first.")
    after: str = Field(
        "", max_length=11, description="The `next` of the page before.", json_schema_extra={"pattern": f"^({NUMBER})?$"}
    )
    limit: Limit = 100


class MessageRows(Answer):
    messages: list[MessageRow] = Field(description="In the `order` that was asked for.")
    next: str | None = Field(description=NEXT)


class Resend(Model):
    recipients: list[str] = Field([], max_length=10_000, description="Some of its recipients; without: all.")


class Resent(Answer):
    queue_id: str = Field(description="Of the new message.")
    resent: str = Field(description="Of the old one.")
    recipients: int = Field(description="To how many.")


class Story(Answer):
    message: Traced | None = Field(description="Null: only events are left of it.")
    events: list[Json] = Field(description="As the stream of events has them.")


def operations(rooms: Rooms) -> list[Operation]:
    service = rooms.service

    async def listed(call: Call) -> Json:
        asked = call.query
        wanted = service.parse_filter(asked.words(), call.users)
        rows, following = await service.messages(wanted, asked.after, asked.limit, newest=asked.order == "newest")
        return {"messages": rows, "next": following}

    async def one(call: Call) -> Json:
        return await service.message(call.path("id"), call.users)

    async def raw(call: Call) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "message/rfc822"})
        async for data in service.export(call.path("id"), call.users):
            if not response.prepared:
                await response.prepare(call.request)
            await response.write(data)
        await response.write_eof()
        return response

    async def story(call: Call) -> Json:
        found = await trace(service, rooms.config.tenant_of, call.path("id"), call.users)
        for row in found["message"]["recipients"] if found["message"] else ():
            own_evidence(row["suppressed"], call)
        return found

    async def resend(call: Call) -> Json:
        try:
            made = await service.resend(call.path("id"), call.body.recipients, call.users, call.principal.owner)
        except PermissionError as error:
            raise Problem(403, str(error)) from None
        call.noted["queue_id"] = made["queue_id"]
        return made

    one_of = "/v1/messages/{id}"
    return [
        Operation("GET", "/v1/messages", "read", "Messages", listed, MessageRows, query=MessagesQuery),
        Operation("GET", one_of, "read", "One message, its recipients and its events", one, OneMessage),
        Operation("GET", f"{one_of}/raw", "read", "The message as it leaves", raw, produces="message/rfc822"),
        Operation("GET", f"{one_of}/trace", "read", "Its story, and what holds it now", story, Story),
        Operation("POST", f"{one_of}/resend", "operate", "The same message once more, as a new one", resend, Resent, body=Resend),
    ]  # fmt: skip
