"""Mail handed in over HTTP: one message, or many with a result for each. Answered once it is durable."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import Field, ValidationError

from relay import clock, compose
from relay.api.handing import From, Handing
from relay.api.problem import FieldError, Problem, invalid, problem_of
from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Operation
from relay.api.serve import once
from relay.api.submission import LONGEST_BATCH_KEY, LONGEST_KEY, Accepted, Batch, Beside, Results, Submission, key

BREATH = 8  # messages of a batch between two turns of the loop
LONGEST_BATCH = 40_000_000  # bytes
_KEY = {"Idempotency-Key": "The same again is the same message."}
_KEYS = {"Idempotency-Key": f"KEY/0 is the first one's; so it has at most {LONGEST_BATCH_KEY} characters."}
_EXAMPLE = {
    "from": "Shop <shop@example.com>",
    "to": "ann@example.net",
    "subject": "Your order",
    "text": "It is on its way.",
}
_ACCEPTED = {
    "status": 202,
    "queue_id": "1PGWBZ00001",
    "message_id": "<1pgwbz00001@relay.example.com>",
    "repeated": False,
    "recipients": [{"recipient": "ann@example.net", "state": "queued", "why": ""}],
}


class Idempotency(Answer):
    keep: float = Field(description="Seconds that a key is known after its message's end (`spool.keep`).")


def operations(rooms: Rooms) -> list[Operation]:
    handing = Handing(rooms)

    async def submit(call: Call) -> dict[str, Any]:
        return await handing.take(_with_key(_asked(call), _key(call)), _from(call))

    async def batch(call: Call) -> dict[str, Any]:
        first, source = _key(call, LONGEST_BATCH_KEY), _from(call)
        if call.query.model_fields_set:
            raise Problem(400, "of a batch each message says its own; the query is for a message/rfc822")
        items, tasks = call.body.messages, list[asyncio.Task[dict[str, Any]]]()
        async with asyncio.TaskGroup() as group:
            for number, item in enumerate(items):
                own = f"{first}/{number}" if first else ""
                tasks.append(group.create_task(_result(handing, item, own, source)))
                if number % BREATH == BREATH - 1:
                    await asyncio.sleep(0)  # a thousand messages must not hold up everybody else
        results = [task.result() for task in tasks]
        accepted = sum(result["status"] == 202 for result in results)
        return {"accepted": accepted, "refused": len(results) - accepted, "results": results}

    async def keys(call: Call) -> dict[str, Any]:
        return {"keep": rooms.config.spool.keep}

    def most() -> int:
        """Base64 makes three bytes four, with a line end after 76; the rest is for all else that is said."""
        return rooms.config.spool.max_message_size * 3 // 2 + (1 << 20)

    return [
        Operation(
            *("POST", "/v1/messages", "submit", "Send a message", submit, Accepted, Beside, Submission),
            consumes=("message/rfc822",),
            headers=_KEY,
            status=202,
            audited=False,  # its story is that of the message
            most=most,
            examples={"body": _EXAMPLE, "answer": _ACCEPTED},
            about="As JSON, or whole as `message/rfc822`: then the envelope and the rest stand in the query, which JSON has not. "
            "202 is said once the message is on the disk. Without an answer, say it again with the same Idempotency-Key.",
        ),
        Operation(
            *("POST", "/v1/messages/batch", "submit", "Send up to a thousand messages", batch, Results),
            body=Batch,
            headers=_KEYS,
            status=202,
            audited=False,
            most=lambda: max(most(), LONGEST_BATCH),
            examples={
                "body": {"messages": [_EXAMPLE]},
                "answer": {"accepted": 1, "refused": 0, "results": [_ACCEPTED]},
            },
            about="202 says that each was looked at: what became of it stands in `results`, by its own `status`.",
        ),
        Operation("GET", "/v1/idempotency", "submit", "For how long keys are known", keys, Idempotency),
    ]


async def _result(handing: Handing, item: Any, own: str, source: From) -> dict[str, Any]:
    """As one alone would be answered; never raises."""
    try:
        return await handing.take(_with_key(_read(item), own, over=False), source)
    except Exception as error:  # noqa: BLE001 - it is told in the result: one bad message must not fail the others
        found = problem_of(error, "POST /v1/messages/batch")
        told = {"status": found.status, "detail": found.detail, **found.extra}
        return told | ({"errors": [e.model_dump() for e in found.errors]} if found.errors else {})


def _from(call: Call) -> From:
    return From(call.principal, call.users, call.request.remote or "", clock.monotonic())


def _key(call: Call, most: int = LONGEST_KEY) -> str:
    """Raises Problem."""
    said = once(call.request, "Idempotency-Key").strip()
    try:
        return key(said, most) if said else ""
    except compose.Uncomposable as error:
        raise Problem(400, str(error), [FieldError(field="Idempotency-Key", message=str(error))]) from None


def _with_key(asked: Submission, said: str, *, over: bool = True) -> Submission:
    """`over`: what the header says must not differ from the field; else the field counts. Raises Problem."""
    if said and not asked.idempotency_key:
        asked.idempotency_key = said
    elif said and over and said != asked.idempotency_key:
        raise Problem(400, "`idempotency_key` and the header Idempotency-Key differ; say one of them")
    return asked


def _asked(call: Call) -> Submission:
    """Raises Problem."""
    if isinstance(call.body, bytes):
        if not call.body:
            raise Problem(400, "the body is empty; it is the message")
        return _read(call.query.fields() | {"raw": call.body})
    if call.query.model_fields_set:
        raise Problem(400, "say it in the body; the query is for a message/rfc822")
    asked: Submission = call.body
    return asked


def _read(fields: Any) -> Submission:
    """Raises Problem."""
    try:
        return Submission.model_validate(fields)
    except ValidationError as error:
        raise invalid(error, "message", Submission) from None
