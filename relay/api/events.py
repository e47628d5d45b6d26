"""The stream of events over HTTP: asked for page by page, with a wait, or kept open (`sse`). A filter for all who read it.

A tenant's or user's token sees what is about its users' messages, and nothing else.
"""

from __future__ import annotations

from datetime import datetime
from math import isfinite
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from relay.admin.events import END, LONGEST, MOST, Asked
from relay.admin.ports import BadRequest
from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Model, Operation
from relay.api.sse import LASTS, Streams
from relay.envelope import parse_queue_id
from relay.events import KINDS, Wanted

_KIND = "|".join(KINDS)


def words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _kinds(text: str) -> str:
    for kind in words(text):
        if kind not in KINDS:
            raise ValueError(
                f"unknown kind {kind!r}; docs/events.md tells which there are, such as delivered, failed, bounced"
            )
    return text


def _message(text: str) -> str:
    if text:
        parse_queue_id(text)  # raises ValueError
    return text


def cursor(text: object) -> int:
    """Raises ValueError."""
    found = str(text)
    if found == "end":
        return END
    if found and not (found.isascii() and found.isdecimal() and len(found) < 19):
        raise ValueError("wants the id of an event, or `end`: what comes from now on")
    return int(found or 0)


def _time(text: object) -> float | None:
    """Epoch seconds, or a time of RFC 3339."""
    if text in ("", None):
        return None
    try:
        found = float(str(text))
    except ValueError:
        try:
            found = datetime.fromisoformat(str(text)).timestamp()
        except (ValueError, OverflowError, OSError):
            found = float("nan")
    if not isfinite(found):
        raise ValueError("wants a time: epoch seconds, or such as 2026-12-01T08:00:00Z")
    return found


After = Annotated[
    int,
    BeforeValidator(cursor),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0, "maximum": 10**18 - 1}, {"const": "end"}]}),
]
Time = Annotated[
    float | None,
    BeforeValidator(_time),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "format": "date-time"}]}),
]


class EventFilter(Model):
    """Of several with commas any does; all keys must hold."""

    kind: Annotated[str, AfterValidator(_kinds)] = Field(
        "",
        max_length=1000,
        description="Kinds, with commas.",
        json_schema_extra={"pattern": rf"^(({_KIND})(,({_KIND}))*)?$"},
    )
    message: Annotated[str, AfterValidator(_message)] = Field(
        "", description="The queue id of one message.", json_schema_extra={"pattern": r"^([0-9A-Za-z]{11})?$"}
    )
    tag: str = Field("", max_length=200, description="Globs on the tag.")
    class_: str = Field("", alias="class", max_length=200, description="Globs on the traffic class.")
    user: str = Field("", max_length=200, description="Globs on the user.")
    tenant: str = Field("", max_length=200, description="Globs on the tenant.")
    sender: str = Field("", max_length=200, description="Globs on MAIL FROM.")
    recipient: str = Field("", max_length=200, description="Globs on the recipient.")
    domain: str = Field("", max_length=200, description="Globs on the recipient's domain.")
    egress: str = Field("", max_length=200, description="Globs on the account or direct entry.")

    def wanted(self, users: frozenset[str] | None, *, mail: bool = False) -> Wanted:
        return Wanted(
            frozenset(words(self.kind)),
            *(words(self.tag), words(self.class_), words(self.user), words(self.tenant), words(self.sender)),
            *(words(self.recipient), words(self.domain), words(self.egress)),
            message=parse_queue_id(self.message) if self.message else 0,
            users=users,
            mail=mail,
        )


class From(EventFilter):
    """A filter, and where to begin."""

    after: After = Field(0, description="Those after the event of this id; `end`: what comes from now on.")
    since: Time = Field(None, description="In the place of `after`: from this time on, epoch seconds or RFC 3339.")

    @model_validator(mode="after")
    def _one_start(self) -> From:
        if self.since is not None and "after" in self.model_fields_set:
            raise ValueError("after or since, not both")
        return self

    def begun(self, users: frozenset[str] | None, limit: int = 100, wait: float = 0.0) -> Asked:
        return Asked(self.wanted(users), None if self.since is not None else self.after, self.since or 0.0, limit, wait)


class EventsQuery(From):
    limit: int = Field(100, ge=1, description=f"At most {MOST}.")
    wait: float = Field(
        0.0, ge=0, allow_inf_nan=False, description=f"Seconds until there is something to tell; at most {LONGEST:.0f}."
    )

    def asked(self, users: frozenset[str] | None = None) -> Asked:
        return self.begun(users, min(self.limit, MOST), min(self.wait, LONGEST))


class StreamQuery(From):
    after: After = Field(
        END, description="Those after the event of this id; `end`, the default: what comes from now on."
    )
    lasts: float = Field(LASTS, gt=0, le=86400, description="Seconds until it ends; a client comes back by itself.")


class EventRow(Answer):
    """One event, flat; docs/events.md tells its fields."""

    id: int = Field(description="The cursor.")
    at: float = Field(description="Epoch seconds.")
    event: str = Field(description="Its kind.")


class EventPage(Answer):
    events: list[EventRow] = Field(description="The oldest first.")
    next: int = Field(description="`after` of the next question.")
    more: bool = Field(description="There is more already.")


def operations(rooms: Rooms) -> list[Operation]:
    streams = Streams(rooms)

    async def events(call: Call) -> dict[str, Any]:
        return await rooms.stream.read(call.query.asked(call.users))

    async def stream(call: Call) -> Any:
        start = call.query.begun(call.users)
        if last := call.request.headers.get("Last-Event-ID"):
            try:
                start = Asked(start.wanted, cursor(last))
            except ValueError as error:
                raise BadRequest(f"Last-Event-ID {error}") from None
        return await streams.follow(call, start, call.query.lasts)

    return [
        Operation("GET", "/v1/events", "read", "What happened, from any point on", events, EventPage, query=EventsQuery),
        Operation(
            "GET", "/v1/events/stream", "read", "What happens, as server-sent events", stream, query=StreamQuery,
            produces="text/event-stream", streams=True,
            headers={"Last-Event-ID": "Where an earlier stream ended; it counts more than `after` and `since`."},
        ),
    ]  # fmt: skip
