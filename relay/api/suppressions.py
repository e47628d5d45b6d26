"""Who is suppressed: pages of the list, additions, removals.

A tenant's token sees and changes the scope of its tenant alone, and so does one of a user who belongs to a tenant.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from relay.admin.ports import NotFound
from relay.admin.suppress import MOST
from relay.api.problem import Problem
from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Model, Operation
from relay.api.rows import NEXT
from relay.policy.suppression import Why

WHYS = [why.word for why in Why]
_SCOPE = {"pattern": r"^(|all|(tenant|class):[A-Za-z0-9][A-Za-z0-9_.-]{0,63})$"}
Scope = Annotated[str, Field(description="Whose mail: `all`, `tenant:NAME` or `class:NAME`.", json_schema_extra=_SCOPE)]
Seconds = Annotated[float, Field(strict=True, allow_inf_nan=False, json_schema_extra={"minimum": 0})]


class Chosen(Model):
    address: str = Field("", max_length=320, description="A glob.")
    scope: Scope = ""
    why: str = Field("", json_schema_extra={"enum": ["", *WHYS]}, description="For this reason alone; empty: any.")
    source: str = Field("", max_length=64, description="Who said so: `hand`, `import`, `smtp`, `bounce`, a provider, …")

    def given(self) -> dict[str, str]:
        found = self.model_dump(include=set(Chosen.model_fields))
        return {key: value for key, value in found.items() if value}


class Page(Chosen):
    after: str = Field("", max_length=1000, description="The `next` of the page before.")
    limit: int = Field(500, ge=1, description=f"At most {MOST}.")


class Entry(Model):
    address: str = Field(description="Whom.")
    scope: Scope | None = Field(None, description="Whose mail; `all` where nothing is said.")
    why: str | None = Field(
        None, description="`manual` where nothing is said.", json_schema_extra={"enum": [None, *WHYS]}
    )
    evidence: str | None = Field(None, description="Told wherever somebody asks why.")
    source: str | None = Field(None, description="`hand` where nothing is said.")
    at: Seconds | None = Field(None, description="Epoch seconds; now, where nothing is said.")
    until: Seconds | None = Field(None, description="Epoch seconds; without: it has no end.")
    queue_id: str | None = Field(None, description="Of the message that it follows from.")


class Entries(Model):
    entries: Annotated[list[Entry], Field(max_length=MOST)] = Field(description="Whom to suppress.")
    any_scope: bool = Field(False, description="Tenants and classes need not be in the configuration.")
    dry_run: bool = Field(False, description="Say what would be done, change nothing.")


class Remove(Model):
    """`addresses`, or a `filter`."""

    addresses: Annotated[list[str], Field(min_length=1, max_length=MOST)] | None = Field(
        None, description="Exactly these."
    )
    filter: Chosen | None = Field(None, description="All that it selects.")
    scope: Scope | None = Field(None, description="Of `addresses`: there alone.")
    dry_run: bool = Field(False, description="Say what would be done, change nothing.")


class Suppressed(Answer):
    address: str = Field(description="In one form: it has no case.")
    scope: str = Field(description="Whose mail: `all`, `tenant:NAME` or `class:NAME`.")
    why: str = Field(description="`hard_bounce`, `complaint`, `manual`, …")
    evidence: str = Field(description="What was said or seen.")
    source: str = Field(description="Who said so.")
    at: float = Field(description="Since when; epoch seconds.")
    until: float | None = Field(description="Epoch seconds; null: without an end.")
    queue_id: str = Field(description="Of the message that it follows from; empty: none.")


class SuppressedPage(Answer):
    suppressions: list[Suppressed] = Field(description="By scope and address.")
    next: str | None = Field(description=NEXT)


class Refused(Answer):
    number: int = Field(description="Of the entry, from 0.")
    why: str = Field(description="What is wrong with it.")


class Listed(Answer):
    listed: list[Suppressed] = Field(description="New or changed.")
    kept: list[Suppressed] = Field(description="As they were: they end later, or weigh more.")
    refused: list[Refused] = Field(description="Which entries were not taken.")


class Removed(Answer):
    removed: list[Suppressed] = Field(description="Of a filter a sample.")
    count: int = Field(description="How many there were.")
    missing: list[str] = Field(description="Addresses that were not suppressed.")


def operations(rooms: Rooms) -> list[Operation]:
    suppressing = rooms.suppressing

    def own(call: Call) -> str | None:
        """The one scope that it sees; None: all of them. Raises Problem."""
        principal = call.principal
        if principal.whole:
            return None
        tenant = principal.tenant or rooms.config.tenant_of.get(principal.user, "")
        if not tenant:
            detail = "addresses are suppressed for all, for a tenant or for a class, and the user of this token has no tenant"
            raise Problem(403, detail)
        return f"tenant:{tenant}"

    async def page(call: Call) -> dict[str, Any]:
        asked: Page = call.query
        given = asked.given() | _bound(asked.scope, own(call))
        return await suppressing.page(given | {"after": asked.after, "limit": str(asked.limit)})

    async def add(call: Call) -> dict[str, Any]:
        asked, scope = call.body.model_dump(exclude_none=True), own(call)
        if scope is not None:
            asked["any_scope"] = False
            for entry in asked["entries"]:
                entry |= _bound(entry.get("scope"), scope)
        found = await suppressing.add(asked)
        call.noted |= {key: len(rows) for key, rows in found.items()}
        return found

    async def remove(call: Call) -> dict[str, Any]:
        asked, scope = call.body, own(call)
        wanted: dict[str, Any] = {"addresses": asked.addresses, "dry_run": asked.dry_run}
        wanted |= _bound(asked.scope, scope) or {"scope": asked.scope or None}
        if asked.filter is not None and (given := asked.filter.given()):
            wanted["filter"] = given | _bound(asked.filter.scope, scope)
        found = await suppressing.remove(wanted)
        call.noted["count"] = found["count"]
        return found

    one = {"entries": [{"address": "gone@example.com", "evidence": "asked by telephone"}]}
    return [
        Operation("GET", "/v1/suppressions", "read", "Who is suppressed", page, SuppressedPage, query=Page),
        Operation(
            "POST", "/v1/suppressions", "operate", "Send nothing more to these", add, Listed, body=Entries,
            examples={"body": one},
        ),
        Operation(
            "POST", "/v1/suppressions/remove", "operate", "Send to these again", remove, Removed, body=Remove,
            examples={"body": {"addresses": ["gone@example.com"]}},
        ),
    ]  # fmt: skip


def _bound(said: str | None, own: str | None) -> dict[str, Any]:
    """The scope of a token that has only one. Raises NotFound for any other."""
    if own is None:
        return {}
    if said not in ("", None, own):
        raise NotFound(f"no scope {said!r} that this token sees; it has {own}, which need not be said")
    return {"scope": own}
