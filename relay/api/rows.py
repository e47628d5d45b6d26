"""What answers about mail consist of, and how they are asked for: pages, filters, recipients, messages."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from relay.admin.ports import BadRequest
from relay.api.route import Answer, Call, Model

_STATE = "(queued|deferred|active|held|delivered|failed)"
NUMBER = "[0-9A-HJKMNP-TV-Z]{11}"  # a queue id
_GLOB = "; a glob, in whatever case"
MOST = 1000  # rows of a page
Json = dict[str, Any]

Glob = Annotated[str, Field(max_length=1000)]
NEXT = "What the next page is asked for by; null: this was the last one."
# A cursor that is a number; empty: from the beginning.
Cursor = Annotated[int, Field(ge=0, lt=1 << 62), BeforeValidator(lambda value: value or 0)]
Limit = Annotated[int, Field(ge=1, lt=1 << 62, description="Rows of the page; more than 1000 count as 1000.")]


class Selection(Model):
    """All that is said has to hold; what is empty holds for all."""

    id: str = Field(
        "",
        description="Queue ids, with commas between.",
        json_schema_extra={"pattern": f"^({NUMBER}(,{NUMBER})*)?$"},
    )
    key: str = Field("", max_length=1000, description="The application's own id: its idempotency key, exactly.")
    sender: Glob = Field("", description="The reverse-path" + _GLOB)
    recipient: Glob = Field("", description="A recipient" + _GLOB)
    domain: Glob = Field("", description="A recipient's domain" + _GLOB)
    egress: Glob = Field("", description="Tried last by this egress, or would leave by it" + _GLOB)
    route: str = Field("", max_length=200, description="In lanes of this route.")
    class_: Glob = Field("", alias="class", description="The traffic class" + _GLOB)
    tag: Glob = Field("", description="The tag" + _GLOB)
    user: Glob = Field("", description="Who submitted it" + _GLOB)
    state: str = Field(
        "",
        max_length=200,
        description="States of a recipient, with commas between.",
        json_schema_extra={"pattern": f"^({_STATE}(,{_STATE})*)?$"},
    )
    error: str = Field("", max_length=1000, description="Words in why it waits or failed, or in the last reply.")
    older_than: float | None = Field(None, allow_inf_nan=False, description="Accepted so many seconds ago, or more.")

    def words(self) -> dict[str, str]:
        """As `admin.selection` takes them."""
        said = self.model_dump(by_alias=True, include=set(Selection.model_fields), exclude_none=True)
        return {name: str(value) for name, value in said.items() if value != ""}


def pair(after: str) -> tuple[int, int] | None:
    """Where the next page of recipients begins. Raises BadRequest."""
    try:
        first, _, second = after.partition(".")
        cursor = (int(first), int(second)) if after else None
        if cursor and not all(0 <= part < 1 << 63 for part in cursor):
            raise ValueError
    except ValueError:
        raise BadRequest("after wants a cursor that an earlier answer gave") from None
    return cursor


def own_evidence(rows: list[Json], call: Call) -> None:
    """Of suppressions: what another tenant's mail taught is told a tenant as a fact, and not how it came about."""
    if call.users is None:
        return
    for row in rows:
        if row["scope"] != f"tenant:{call.principal.tenant}":
            row |= {name: "" for name in ("evidence", "source", "queue_id") if name in row}


class RecipientRow(Answer):
    queue_id: str = Field(description="Of its message.")
    n: int = Field(description="Which recipient of the message it is, from 0.")
    recipient: str = Field(description="The address.")
    state: str = Field(description="queued, deferred, active, held, delivered or failed.")
    why: str = Field(description="Why it waits, or failed; for people.")
    next_at: float | None = Field(description="When it moves next, in epoch seconds; null: nobody knows.")
    last_reply: str = Field(description="The next hop's last answer.")
    attempts: int = Field(description="How often it was tried.")
    in_doubt: bool = Field(description="An attempt ended without an answer: it may have arrived.")
    egress: str = Field(description="The account or direct entry that tried it last, or would take it.")
    lane: str = Field(description="`class/route`, and its destination where it leaves by MX.")
    lane_id: int = Field(description="What suspensions and `queue stats` know the lane by.")
    route: str = Field(description="The route that took it.")
    destination: str = Field(description="Its domain, where it leaves by MX.")
    priority: int = Field(description="0 is the most urgent.")
    due_at: float = Field(description="When it may be tried next, in epoch seconds.")
    expires_at: float = Field(description="When it is given up.")
    settled_at: float | None = Field(description="When it was delivered or failed.")
    held_by: str = Field(
        description="Of one that is held: the tenant, or `user:NAME`, whose token did it; empty: a rule, or an operator of the relay."
    )
    remote_id: str = Field(description="What the next hop calls it.")
    remote: str = Field(description="By MX: the host that it was said to.")
    tls: str = Field(description="Its TLS.")
    notify: str = Field(description="NOTIFY of RFC 3461.")
    orcpt: str = Field(description="ORCPT of RFC 3461.")
    sender: str = Field(description="The reverse-path; empty: the null one.")
    from_: str = Field(alias="from", description="The author in the header.")
    user: str = Field(description="Who submitted it; empty: nobody in particular.")
    class_: str = Field(alias="class", description="The traffic class.")
    tag: str = Field(description="What the application calls it.")
    listener: str = Field(description="By which it came in; `api` for HTTP.")
    client: str = Field(description="The address of who handed it in.")
    accepted_at: float = Field(description="Epoch seconds.")
    size: int = Field(description="Bytes.")
    report: int = Field(description="0: mail; 1: a report that the relay wrote; 2: one about a report.")


class OneRecipient(RecipientRow):
    eta: float | None = Field(description="When it leaves, about.")
    rule: str = Field(description="What it waits for longest.")
    before: int = Field(description="How many of its lane go before it.")


class Facts(Answer):
    queue_id: str = Field(description="What the relay calls it.")
    sender: str = Field(description="The reverse-path; empty: the null one.")
    user: str = Field(description="Who submitted it; empty: nobody in particular.")
    tenant: str = Field(description="That user's; empty: none.")
    class_: str = Field(alias="class", description="The traffic class.")
    tag: str = Field(description="What the application calls it.")
    listener: str = Field(description="By which it came in; `api` for HTTP.")
    client: str = Field(description="The address of who handed it in.")
    priority: int = Field(description="0 is the most urgent, 3 the least.")
    send_at: float = Field(description="Not before this; 0: at once.")
    accepted_at: float = Field(description="Epoch seconds.")
    size: int = Field(description="Bytes.")
    report: int = Field(description="0: mail; 1: a report that the relay wrote; 2: one about a report.")
    key: str = Field(description="Its idempotency key; empty: it has none.")
    metadata: Json = Field(description="What the application said of it.")


class MessageRow(Facts):
    from_: str = Field(alias="from", description="The author in the header.")
    recipients: int = Field(description="How many.")
    states: dict[str, int] = Field(description="How many recipients are in each state.")


class Whole(Facts):
    header_from: str = Field(description="The author in the header.")
    body: str = Field(description="kept or dropped.")
    envid: str = Field(description="ENVID of RFC 3461.")
    ret: str = Field(description="RET of RFC 3461.")
    smtp: int = Field(description="Bits of what SMTP said: 8BITMIME, SMTPUTF8, …")
    recipients: list[OneRecipient] = Field(description="All of them.")


class OneMessage(Whole):
    head: str = Field(description="Its header block.")
    events: list[Json] = Field(description="What happened to it, the oldest first.")


class Told(OneRecipient):
    suppressed: list[Json] = Field(description="What suppresses it now.")


class Traced(Whole):
    recipients: list[Told] = Field(description="All of them.")  # type: ignore[assignment]
