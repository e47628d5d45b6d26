"""What would leave when, of what waits and of a plan: `relay simulate`, asked over HTTP."""

from __future__ import annotations

import json
from typing import Annotated

from aiohttp import web
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from relay.admin.simulation import Unready
from relay.api.problem import RETRY_AFTER, Problem
from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Model, Operation

_MOST_PLAN = 4 << 20  # characters
_MOST_SENT = 1_000_000  # messages
Word = Annotated[str, Field(max_length=1000)]


class Simulate(Model):
    """Of `queue`, `plan` and `send` one is said, or several, which are one simulation then."""

    queue: bool = Field(False, description="What waits in the relay, with what it has spent of limits and learnt.")
    plan: str = Field(
        "", max_length=_MOST_PLAN, description="CSV with a header: `time`, `recipient`, and if wanted `count`, …"
    )
    send: int | None = Field(None, ge=1, le=_MOST_SENT, description="So many messages, of which the fields below tell:")
    sender: Word = Field("", alias="from", description="their reverse-path, and From,")
    recipient: Word = Field(
        "example.net", alias="to", description="to whom: a domain, or `gmail.com=60,outlook.com=40`,"
    )
    class_: Word = Field("", alias="class", description="of this traffic class,")
    user: Word = Field("", description="from this user,")
    tag: Word = Field("", description="with this tag,")
    size: Word = Field("", description="of this size, such as 40kB,")
    over: Word = Field("", description="handed in evenly over this time, such as 2h; else at once.")
    start: Word = Field("", description="When it begins: 2026-12-01T09:00, or +2h; else now.")
    until: Word = Field("", description="It ends then at the latest, such as +2d.")
    seconds: float = Field(
        0.1, ge=0.001, le=3600, allow_inf_nan=False, description="That each message takes on its session."
    )

    @model_validator(mode="after")
    def _something(self) -> Simulate:
        if not (self.queue or self.plan or self.send):
            raise PydanticCustomError("simulate", "simulate what? Say `queue`, `plan` or `send`")
        return self


class Leaving(Answer):
    """One message that leaves."""

    time: float = Field(description="In epoch seconds.")
    due: float = Field(description="When it was to leave; epoch seconds.")
    queue_id: str = Field(description="Empty: it is planned.")
    count: int = Field(description="Recipients that it leaves to.")
    size: int = Field(description="Bytes.")
    class_: str = Field(alias="class", description="The traffic class.")
    route: str = Field(description="The route that takes it.")
    egress: str = Field(description="By which it leaves.")
    destination: str = Field(description="Its domain, where it leaves by MX.")
    waited: float = Field(description="Seconds.")
    why: str = Field(description="The rule that held it longest.")


class Simulation(Answer):
    messages: list[Leaving] = Field(description="As they leave; the rows of `relay simulate --json`.")
    refused: dict[str, int] = Field(description="Planned messages that would not be queued, by why.")
    ended: int = Field(description="Recipients that a rule ends; they are not sent.")
    expired: int = Field(description="Recipients whose time is up before their turn.")
    waiting: int = Field(description="Recipients that still wait at the end.")
    why: dict[str, int] = Field(description="Those, by what they wait for.")
    guesses: bool = Field(description="Where some domain's mail goes was not looked up.")


def operations(rooms: Rooms) -> list[Operation]:
    async def simulate(call: Call) -> web.Response:
        asked = call.body.model_dump() | {"class": call.body.class_}
        try:
            made = await rooms.simulated.workshop.run(asked)
        except Unready as error:
            raise Problem(503, str(error), headers={"Retry-After": RETRY_AFTER}) from None
        if made.startswith(b'{"error":'):
            raise Problem(400, json.loads(made)["error"])
        return web.Response(body=made, content_type="application/json")

    return [
        Operation(
            "POST", "/v1/simulate", "read", "What would leave when, and which rule holds it", simulate, Simulation,
            body=Simulate, whole=True, audited=False,
            examples={"body": {"send": 1000, "from": "news@example.com", "to": "example.net", "over": "1h"}},
        )
    ]  # fmt: skip
