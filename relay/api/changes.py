"""What is changed at run time: all of it, the limits of users, tenants and classes, and the reload that may take it back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from relay.admin.ports import NotFound
from relay.api.problem import FieldError, Problem
from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Model, Operation
from relay.config.overlay import PLACE
from relay.config.problems import ConfigError

Limits = Annotated[
    list[str | dict[str, JsonValue]],
    Field(max_length=50, description="As in the configuration: `14/s`, or a map. An empty list: no limit."),
]
BACK = "Null takes a change back."


class ChangeRow(Answer):
    path: str = Field(description="Where it would stand in the file: `accounts.ses.limits`.")
    section: str
    name: str
    key: str
    value: Any = Field(description="What is in force.")
    file: Any = Field(description="What the file says there; null: nothing, so a preset's or the default would hold.")
    who: str
    at: float


class ChangeRows(Answer):
    changes: list[ChangeRow]


class LimitsOf(Answer):
    section: str
    name: str
    limits: list[Any] = Field(description="What is in force, as it is written.")
    changes: list[ChangeRow]
    notes: list[str] = Field([], description="What to know of what was changed.")


class NewLimits(Model):
    limits: Limits | None = Field(description=BACK)


class Reload(Model):
    reset: bool = Field(False, description="Take all back that was changed at run time.")


class Reloaded(Answer):
    taken: Literal[True]
    notes: list[str] = Field(description="What to know, and which changes were dropped.")


def rows(rooms: Rooms, section: str = "", name: str = "") -> list[dict[str, Any]]:
    """Of all that is changed, or of one entry."""
    found = rooms.changing.changes.values()
    return [change.row() for change in found if not section or (change.section, change.name) == (section, name)]


async def change(rooms: Rooms, call: Call, section: str, name: str, wanted: Mapping[str, Any]) -> list[str]:
    """What to know of it. Raises NotFound, and Problem in the configuration's own words."""
    try:
        return await rooms.changing.change(section, name, wanted, call.principal.who)
    except LookupError as error:
        raise NotFound(str(error.args[0])) from None
    except ConfigError as error:
        raise _refused(error, f"{section}.{name}.") from None


def _refused(error: ConfigError, owner: str) -> Problem:
    """Of what was asked, a 400; anything else that is wrong with the configuration by now is in the way."""
    asked = [p for p in error.problems if p.file == PLACE.file or p.path.startswith(owner)]
    fields = [FieldError(field=p.path.removeprefix(owner), message=p.text) for p in asked]
    if not fields:
        return Problem(409, f"the configuration in force can't be built again: {error}; mend that and reload")
    more = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
    return Problem(400, f"{fields[0].field}: {fields[0].message}{more}", fields)


def operations(rooms: Rooms) -> list[Operation]:
    def told(section: str, name: str) -> dict[str, Any]:
        tree = rooms.config.tree
        entry = tree.find((section, name)) if tree is not None and section in _HAVE_LIMITS else None
        if entry is None:
            raise NotFound(f"no {section}.{name} in the configuration; there are users, tenants and classes")
        changes = rows(rooms, section, name)
        node = entry.child("limits")
        limits = changes[0]["value"] if changes else node.plain() if node is not None else []
        return {"section": section, "name": name, "limits": limits, "changes": changes}

    async def of(call: Call) -> dict[str, Any]:
        return told(call.path("section"), call.path("name"))

    async def set_(call: Call) -> dict[str, Any]:
        section, name = call.path("section"), call.path("name")
        told(section, name)
        notes = await change(rooms, call, section, name, {"limits": call.body.limits})
        return told(section, name) | {"notes": notes}

    async def every(call: Call) -> dict[str, Any]:
        return {"changes": rows(rooms)}

    async def reload(call: Call) -> dict[str, Any]:
        who = call.principal.who
        taken, notes = await rooms.changing.reset(who) if call.body.reset else rooms.control.reload()
        call.noted["notes"] = notes
        if not taken:
            raise Problem(422, "; ".join(notes), taken=False, notes=notes)
        return {"taken": True, "notes": notes}

    of_one = "/v1/limits/{section}/{name}"
    return [
        Operation("GET", "/v1/changes", "read", "What is changed at run time", every, ChangeRows, whole=True),
        Operation("GET", of_one, "read", "Limits of a user, tenant or class", of, LimitsOf, whole=True),
        Operation("PATCH", of_one, "admin", "Change them", set_, LimitsOf, body=NewLimits, whole=True),
        Operation(
            "POST", "/v1/reload", "admin", "Read the configuration again", reload, Reloaded, body=Reload, whole=True
        ),
    ]


_HAVE_LIMITS = ("users", "tenants", "classes")
