"""Accounts and direct entries: how each fares, what binds it, and what of that is changed at run time."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from relay import clock
from relay.admin.ports import BadRequest, NotFound
from relay.api.changes import BACK, ChangeRow, Limits, change, rows
from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Model, Operation


class AccountLimit(Answer):
    limit: str = Field(description="As it is written, such as `14/s`.")
    unit: str = Field(description="What it counts: recipients, messages, bytes or connections.")
    spent: int = Field(description="Of its window, so far.")
    count: int = Field(description="How many its window allows.")
    share: float = Field(description="`spent` of `count`, from 0 to 1.")
    wait: float = Field(description="Seconds until one message more may leave.")


class Account(Answer):
    name: str = Field(description="As routes name it.")
    kind: Literal["account", "direct"] = Field(description="`direct`: it delivers by MX.")
    host: str = Field(description="Where it dials; of a direct entry `MX`, and from which addresses.")
    state: str = Field(description="`ready`, or what keeps it from sending.")
    why: str = Field(description="Why it waits, or rests.")
    wait: float = Field(description="Seconds until it is asked again, or its pace lets one go.")
    down: bool = Field(description="Nothing leaves by it.")
    destinations: int | None = Field(description="Of a direct entry, those that it has to do with; null: an account.")
    resting: int | None = Field(description="Of a direct entry, destinations that rest; null: an account.")
    sessions: int = Field(description="Connections that are open.")
    in_flight: int = Field(description="Messages on their way.")
    connections: int = Field(description="How many it may have.")
    messages_per_connection: int = Field(description="How many go in one session.")
    recipients_per_message: int = Field(description="How many go in one transaction.")
    limits: list[AccountLimit] = Field(description="All bind.")
    changes: list[ChangeRow] = Field(description="Keys that are changed at run time.")
    notes: list[str] = Field([], description="What to know of what was changed.")


class Accounts(Answer):
    accounts: list[Account] = Field(description="In the order of the configuration.")


class Wanted(Model):
    limits: Limits | None = Field(None, description=BACK)
    connections: int | None = Field(None, description=f"At once. {BACK}")
    messages_per_connection: int | None = Field(None, description=f"Not of a direct entry. {BACK}")
    recipients_per_message: int | None = Field(None, description=f"Not of a direct entry. {BACK}")


def operations(rooms: Rooms) -> list[Operation]:
    def told(row: dict[str, Any], now: float) -> dict[str, Any]:
        name = row["egress"]
        account = rooms.config.accounts[name]
        return {
            "name": name,
            "kind": "direct" if account.source is not None else "account",
            **{key: value for key, value in row.items() if key not in ("egress", "destination")},
            "connections": account.connections,
            "messages_per_connection": account.messages_per_connection,
            "recipients_per_message": account.recipients_per_message,
            "limits": [_without(limit, "whose") for limit in rooms.usage.of_egress(name, now)],
            "changes": rows(rooms, _section(rooms, name), name),
        }

    def one(name: str) -> dict[str, Any]:
        """Raises NotFound."""
        for row in rooms.outlook.egress_rows():
            if row["egress"] == name:
                return told(row, clock.now())
        raise NotFound("no such account or direct entry; `relay accounts` names them")

    async def every(call: Call) -> dict[str, Any]:
        now = clock.now()
        return {"accounts": [told(row, now) for row in rooms.outlook.egress_rows()]}

    async def look(call: Call) -> dict[str, Any]:
        return one(call.path("name"))

    async def set_(call: Call) -> dict[str, Any]:
        name = call.path("name")
        one(name)
        wanted = {key: getattr(call.body, key) for key in Wanted.model_fields if key in call.body.model_fields_set}
        if not wanted:
            raise BadRequest(f"change what? Say one of {', '.join(Wanted.model_fields)}")
        notes = await change(rooms, call, _section(rooms, name), name, wanted)
        return one(name) | {"notes": notes}

    named = "/v1/accounts/{name}"
    return [
        Operation("GET", "/v1/accounts", "read", "Accounts and direct entries", every, Accounts, whole=True),
        Operation("GET", named, "read", "One of them", look, Account, whole=True),
        Operation("PATCH", named, "admin", "Change its limits", set_, Account, body=Wanted, whole=True),
    ]


def _section(rooms: Rooms, name: str) -> str:
    return "direct" if rooms.config.accounts[name].source is not None else "accounts"


def _without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}
