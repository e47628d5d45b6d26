"""All mail at a glance, what would become of a message, and of many."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from relay.admin.ports import BadRequest
from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Model, Operation
from relay.api.rows import NEXT, Json, own_evidence, pair

_LARGEST = 4 << 20  # characters of a message in base64: see admin.leaving.MAX_MESSAGE
# Of an egress, what a tenant learns: whether and when its own mail would leave by it. Hosts, keys and limits are the relay's.
_OF_EGRESS = ("egress", "when", "wait", "skipped")


class Stats(Answer):
    states: dict[str, int] = Field(description="Recipients by state.")
    lanes: list[Json] = Field(description="Recipients by lane and state, and why what is due waits.")
    egresses: list[Json] = Field(description="What each account and direct entry does; of a tenant: none.")


class Question(Model):
    from_: str = Field(
        "", alias="from", max_length=1000, description="From, and the reverse-path where `sender` is not said."
    )
    to: str = Field(max_length=1000, description="One recipient.")
    sender: str = Field("", max_length=1000, description="The reverse-path.")
    message: str = Field("", max_length=_LARGEST, description="A whole message, in base64.")
    headers: dict[str, str] = Field({}, max_length=100, description="Header fields by name.")
    user: str = Field("", max_length=200, description="Who submits it; a token of a tenant has to say it.")
    class_: str = Field("", alias="class", max_length=200, description="The class that it asks for.")
    tag: str = Field("", max_length=1000, description="What the application calls it.")
    listener: str = Field("", max_length=200, description="By which it comes in; default: the first.")
    client: str = Field("", max_length=100, description="Its client's address.")
    size: int | None = Field(None, ge=0, lt=1 << 40, description="Bytes.")


class Explained(Answer):
    sender: str = Field(description="The reverse-path.")
    from_: str = Field(alias="from", description="The author in the header.")
    recipient: str = Field(description="The address.")
    class_: str = Field(alias="class", description="The class that it gets.")
    tag: str = Field(description="What the application calls it.")
    notes: list[str] = Field(description="What would be put right, and what is ignored.")
    route: str | None = Field(description="Which takes it; null: none does.")
    action: str = Field(description="What the route does: `via`, `hold`, `discard`, `reject`, …")
    text: str = Field(description="What is said where it is refused.")
    rules: list[Json] = Field(
        description="Those that were asked, in order, and what each lacks; of a tenant: that take it."
    )
    egresses: list[Json] = Field(description="In the order in which they would be tried.")
    held: Json | None = Field(description="What would hold it back.")
    suppressed: list[Json] = Field(description="What would keep it from being sent.")
    retry: Json = Field(description="When it would be tried again, and until when.")


class SimulationQuery(Model):
    after: str = Field("", max_length=40, description="The `next` of the page before.")


class SimulationPage(Answer):
    """The first page has `now`, `spent`, `documents` and `hosts` as well."""

    recipients: list[Json] = Field(description="Those that wait.")
    lanes: dict[str, str] = Field(description="The facts of their lanes, by number, as the spool has them.")
    next: str | None = Field(description=NEXT)


def operations(rooms: Rooms) -> list[Operation]:
    service = rooms.service

    async def stats(call: Call) -> Json:
        return await service.stats(call.users)

    async def explain(call: Call) -> Json:
        asked = call.body.model_dump(by_alias=True, exclude_defaults=True)
        if call.users is not None and asked.get("user") not in call.users:
            raise BadRequest(f"user: say for which of yours: {', '.join(sorted(call.users)) or 'there is none'}")
        found = await service.explain(asked)
        own_evidence(found["suppressed"], call)
        return found if call.users is None else _narrow(found)

    async def simulation(call: Call) -> Json:
        return await rooms.simulated.page(pair(call.query.after))

    return [
        Operation("GET", "/v1/stats", "read", "All mail in figures", stats, Stats),
        Operation(
            "POST", "/v1/explain", "read", "Which rule would take a message, by which way", explain, Explained,
            body=Question, audited=False, examples={"body": {"from": "shop@example.com", "to": "customer@example.net"}},
        ),
        Operation(
            "GET", "/v1/simulation", "read", "The queue as a simulation wants it", simulation, SimulationPage,
            query=SimulationQuery, whole=True,
        ),
    ]  # fmt: skip


def _narrow(found: dict[str, Any]) -> Json:
    """For a tenant: its own mail's fate, and nothing of rules, hosts and keys that are others'."""
    rules = [{**rule, "origin": ""} for rule in found["rules"] if not rule["verdict"].startswith("does not match")]
    egresses = [{name: row[name] for name in _OF_EGRESS} for row in found["egresses"]]
    return found | {"origin": None, "rules": rules, "egresses": egresses, "destination": None}
