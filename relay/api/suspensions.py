"""Suspend and resume. A tenant's or user's token does so with its own users alone, by their names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from relay.admin.ports import NotFound
from relay.api.problem import Problem
from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Model, Operation
from relay.policy.suspend import MAX_REASON, MAX_VALUE, Kind

TEN_YEARS = 10 * 366 * 86400
Value = Annotated[str, Field(max_length=MAX_VALUE, description="A name, or a glob; of a lane its number.")]


class Suspend(Model):
    kind: Kind = Field(description="What `value` names.")
    value: Value
    for_: float | None = Field(
        None, alias="for", strict=True, allow_inf_nan=False, description="Seconds; without: until it is resumed.",
        json_schema_extra={"exclusiveMinimum": 0, "maximum": TEN_YEARS},
    )  # fmt: skip
    reason: str = Field("", description=f"Told wherever somebody asks why mail waits; {MAX_REASON} characters of it.")


class Resume(Model):
    """`kind` and `value`, or `all`."""

    kind: Kind | None = Field(None, description="What `value` names.")
    value: Value | None = Field(None, description="As it was suspended: a name or a glob.")
    all: bool = Field(False, description="All that this token may resume.")


class Suspended(Answer):
    kind: Kind = Field(description="What `value` names.")
    value: str = Field(description="A name or a glob; of a lane its number.")
    until: float | None = Field(description="Epoch seconds; null: until it is resumed.")


class SuspensionRow(Suspended):
    left: float | None = Field(description="Seconds.")
    reason: str = Field(description="What was said when it was made.")
    at: float = Field(description="Since when; epoch seconds.")
    owner: str = Field(description="The tenant, or `user:NAME`, whose token did it; empty: an operator of the relay.")
    why: str = Field(description="As it is told of what waits for it.")


class SuspensionRows(Answer):
    suspensions: list[SuspensionRow] = Field(description="In the order in which they were made.")


class Stopped(Suspended):
    notes: list[str] = Field(description="What it stops.")


class Resumed(Answer):
    resumed: int = Field(description="How many were in force.")
    asked_again: list[str] = Field(description="Egresses that rested, and are dialled again now.")


def operations(rooms: Rooms) -> list[Operation]:
    def visible(call: Call) -> list[dict[str, Any]]:
        rows = rooms.pausing.list()
        if call.users is None:
            return rows
        return [row for row in rows if row["kind"] == "user" and _own(row["value"], call, rooms)]

    def must_be_own(call: Call, kind: str | None, value: str | None) -> None:
        """Raises Problem, NotFound."""
        if call.users is None or kind is None:
            return
        if kind != "user":
            raise Problem(403, f"to suspend by {kind} is about the whole relay; this token may name users of its own")
        if not _own(value or "", call, rooms):
            raise NotFound(f"no user {value!r}")

    async def every(call: Call) -> dict[str, Any]:
        return {"suspensions": visible(call)}

    async def suspend(call: Call) -> dict[str, Any]:
        must_be_own(call, call.body.kind, call.body.value)
        with _allowed():
            return await rooms.pausing.suspend(call.body.model_dump(by_alias=True), call.principal.owner)

    async def resume(call: Call) -> dict[str, Any]:
        asked, owner = call.body, call.principal.owner
        if call.users is None:
            return await rooms.pausing.resume(asked.model_dump())
        rows = visible(call)
        if not asked.all:
            must_be_own(call, asked.kind, asked.value)
            try:
                with _allowed():
                    return await rooms.pausing.resume(asked.model_dump(), owner)
            except NotFound:  # its words name those that are in force, which are others'
                raise NotFound(f"no suspension of user {asked.value} is in force") from None
        mine = [row for row in rows if row["owner"] and (call.principal.tenant or row["owner"] == owner)]
        found = [await rooms.pausing.pauses.resume(row["kind"], row["value"], owner) for row in mine]
        return {"resumed": sum(found), "asked_again": []}

    example = {"kind": "class", "value": "default", "for": 3600, "reason": "maintenance"}
    return [
        Operation("GET", "/v1/suspensions", "read", "What is suspended", every, SuspensionRows),
        Operation(
            "POST", "/v1/suspend", "operate", "Stop mail from leaving", suspend, Stopped, body=Suspend,
            examples={"body": example},
        ),
        Operation(
            "POST", "/v1/resume", "operate", "Let go what was suspended", resume, Resumed, body=Resume,
            examples={"body": {"all": True}},
        ),
    ]  # fmt: skip


@contextlib.contextmanager
def _allowed() -> Iterator[None]:
    """What an operator stopped no tenant lets go."""
    try:
        yield
    except PermissionError as error:
        raise Problem(403, str(error)) from None


def _own(value: str, call: Call, rooms: Rooms) -> bool:
    """It binds users of the caller's, and nobody else: a suspension is a glob without case."""
    named = {name for name in rooms.config.users if name.lower() == value.lower()}
    return bool(named) and named <= (call.users or frozenset()) and not set(value) & set("*?")
