"""What is changed at run time: all of it, what limits mail beside accounts, and the reload that may take it back.

An entry of `limits` or `destinations` is known by its `name`; one without can't be changed so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from relay.admin.ports import BadRequest, NotFound
from relay.api.problem import FieldError, Problem
from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Model, Operation
from relay.config.changeable import BESIDE, KEYS
from relay.config.load import overlaid
from relay.config.overlay import of_file, place_of
from relay.config.problems import ConfigError
from relay.config.problems import Problem as ConfigProblem

Limits = Annotated[
    list[str | dict[str, JsonValue]],
    Field(max_length=50, description="As in the configuration: `14/s`, or a map. An empty list: no limit."),
]
BACK = "Null takes a change back."


class ChangeRow(Answer):
    path: str = Field(description="Where it would stand in the file: `accounts.ses.limits`.")
    section: str = Field(description="Of the configuration: `accounts`, `users`, …")
    name: str = Field(description="The entry's.")
    key: str = Field(description="Of the entry: `limits`, `connections`, …")
    value: Any = Field(description="What is in force.")
    file: Any = Field(description="What the file says there; null: nothing, so a preset's or the default would hold.")
    who: str = Field(description="Who changed it, as the audit says it.")
    at: float = Field(description="When; epoch seconds.")


class ChangeRows(Answer):
    changes: list[ChangeRow] = Field(description="In the order in which they were made.")


class LimitsOf(Answer):
    section: str = Field(description="Of the configuration.")
    name: str = Field(description="The entry's.")
    limits: list[Any] = Field(description="What is in force, as it is written; of an entry of `limits` its rate.")
    values: dict[str, Any] = Field(description="Each key that may be changed; null: not written, so the default holds.")
    changes: list[ChangeRow] = Field(description="Those of its keys that are changed at run time.")
    notes: list[str] = Field([], description="What to know of what was changed.")


class NewLimits(Model):
    """At least one, of those that such an entry has."""

    limits: Limits | None = Field(None, description=f"Not of an entry of `limits`. {BACK}")
    rate: str | None = Field(None, max_length=100, description=f"Of an entry of `limits`. {BACK}")
    burst: int | str | None = Field(None, description=f"Of an entry of `limits`: how many, or bytes (`10MB`). {BACK}")
    connections: int | None = Field(None, description=f"Of a destination, at once. {BACK}")
    messages_per_connection: int | None = Field(None, description=f"Of a destination. {BACK}")
    recipients_per_message: int | None = Field(None, description=f"Of a destination. {BACK}")


class Reload(Model):
    reset: bool = Field(False, description="Take all back that was changed at run time.")


class Reloaded(Answer):
    taken: Literal[True] = Field(description="The new configuration is in force.")
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
        raise _refused(error, _wrong_without(rooms), f"{section}.{name}.") from None


def _wrong_without(rooms: Rooms) -> tuple[ConfigProblem, ...]:
    """What is wrong by now with what is in force: a file that it names is gone, say."""
    try:
        overlaid(rooms.config, rooms.changing.changes)
    except ConfigError as error:
        return error.problems
    return ()


def _refused(error: ConfigError, before: Collection[ConfigProblem], owner: str) -> Problem:
    """What the change makes wrong, wherever that shows, is a 400; what was wrong without it is in the way."""
    made = [p for p in error.problems if p not in before]
    fields = [FieldError(field=p.path.removeprefix(owner), message=p.text) for p in made]
    if not fields:
        return Problem(409, f"the configuration in force can't be built again: {error}; mend that and reload")
    more = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
    return Problem(400, f"{fields[0].field}: {fields[0].message}{more}", fields)


def operations(rooms: Rooms) -> list[Operation]:
    def told(section: str, name: str) -> dict[str, Any]:
        tree = rooms.config.tree
        if tree is None or section not in BESIDE or place_of(tree, (section, name)) is None:
            there = f"there are {', '.join(BESIDE)}, and of destinations and limits those that have a `name`"
            raise NotFound(f"no {section}.{name} in the configuration; {there}")
        changes = rows(rooms, section, name)
        values = {key: of_file(tree, (section, name, key)) for key in KEYS[section]}
        values |= {change["key"]: change["value"] for change in changes}
        limits = [values["rate"]] if section == "limits" else values["limits"] or []
        return {"section": section, "name": name, "limits": limits, "values": values, "changes": changes}

    async def of(call: Call) -> dict[str, Any]:
        return told(call.path("section"), call.path("name"))

    async def set_(call: Call) -> dict[str, Any]:
        section, name = call.path("section"), call.path("name")
        told(section, name)
        wanted = {k: getattr(call.body, k) for k in NewLimits.model_fields if k in call.body.model_fields_set}
        there = f"of {section} there is {', '.join(KEYS[section])}"
        if not wanted:
            raise BadRequest(f"change what? {there}")
        if wrong := [FieldError(field=key, message=there) for key in wanted if key not in KEYS[section]]:
            raise Problem(400, f"{wrong[0].field}: {there}", wrong)
        notes = await change(rooms, call, section, name, wanted)
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
        Operation(
            "GET",
            of_one,
            "read",
            "What limits a user, tenant, class, destination or some mail",
            of,
            LimitsOf,
            whole=True,
        ),
        Operation("PATCH", of_one, "admin", "Change them", set_, LimitsOf, body=NewLimits, whole=True),
        Operation(
            "POST", "/v1/reload", "admin", "Read the configuration again", reload, Reloaded, body=Reload, whole=True
        ),
    ]
