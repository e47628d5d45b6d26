"""The table of operations as OpenAPI 3.1: whose schemas are JSON Schema 2020-12, as pydantic writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from relay import __version__
from relay.api.problem import ProblemBody
from relay.api.route import Nothing, Operation

_REF = "#/components/schemas/{model}"
# What any operation may answer beside its success, and when.
_ALWAYS = {
    400: "what was said makes no sense; `errors` names the fields",
    401: "no token, or none that is valid",
    403: "the token has not the scope, or not the reach",
    503: "not now; `Retry-After` says when",
}
_PARAMETERS: Mapping[str, dict[str, Any]] = {
    "id": {"type": "string", "pattern": "^[0-9A-Za-z]{11}$", "description": "A queue id."},
    "consumer": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$", "description": "A consumer's name."},
}
_ABOUT = """Hand mail to the relay, see where it is, and move it. docs/http-api.md tells how, with examples.

- Over TCP each request has `Authorization: Bearer TOKEN`. A token has scopes: `submit`; `read`; `operate`, which is `read` and more; \
`admin`, which is all. One of a user or a tenant sees its own alone: what is another's is answered 404.
- Errors are `application/problem+json` (RFC 9457); `errors` names each field that is wrong. `request_id` is what the log has.
- A 503, or no answer: the same again, with the same `Idempotency-Key` where it is mail. Anything else from 400 on: not the same again.
- Lists come in pages: `next` is what the next question says, and null at the end. Times are epoch seconds.
- Answers may get more fields; what a request says has to be known."""
_TAGS = {
    "messages": "Hand mail in; a message, its story, and what is done to it.",
    "queue": "Recipients, and what is done to a selection of them.",
    "reports": "What became of mail, for a program that acknowledges.",
    "events": "What happens, as it happens.",
    "suppressions": "Who gets nothing more, and why.",
    "suspensions": "Mail that is stopped by hand.",
    "lanes": "What waits, by where it goes and what holds it.",
    "stats": "All mail in figures.",
    "explain": "What would become of a message.",
    "limits": "What is spent of limits, and what may be changed of those beside accounts.",
    "accounts": "Accounts and direct entries: how they fare, and their limits.",
    "changes": "What is changed at run time.",
    "shaping": "What is done for a time because of replies.",
    "alarms": "What somebody should look at.",
    "reputation": "How mail fared of late.",
    "feedback": "What came back.",
    "webhooks": "Where events are pushed.",
    "simulation": "What `relay simulate` asks.",
    "tokens": "Who may ask.",
    "audit": "Who changed what.",
    "status": "How the relay fares.",
    "reload": "The configuration, read again.",
    "spool": "Check and copy.",
}
_WITH = {
    "suspend": "suspensions",
    "resume": "suspensions",
    "simulate": "simulation",
    "idempotency": "messages",
}  # paths that stand beside the noun that they are about


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """Of all of them."""
    schemas, refs = _schemas(operations)
    used = {_tag(operation) for operation in operations}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _told(operation, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "relay",
            "version": __version__,
            "description": _ABOUT,
        },
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items() if name in used],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "`relay token add` makes one."}
            },
        },
        "security": [{"token": []}],
    }


def _schemas(operations: Sequence[Operation]) -> tuple[dict[str, Any], Mapping[tuple[type[BaseModel], str], Any]]:
    takes = {(o.body, "validation") for o in operations if o.body} | {(o.query, "validation") for o in operations}
    gives = {(o.answer, "serialization") for o in operations if o.answer} | {(ProblemBody, "serialization")}
    ordered: list[Any] = sorted(takes | gives, key=lambda one: (one[0].__name__, one[1]))
    refs, schema = models_json_schema(ordered, ref_template=_REF, schema_generator=GenerateJsonSchema)
    return schema.get("$defs", {}), refs  # type: ignore[return-value]


def _told(operation: Operation, refs: Mapping[Any, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": _description(operation),
        "tags": [_tag(operation)],
        "parameters": [*_in_path(operation), *_in_query(operation), *_in_headers(operation)],
        "responses": _answers(operation, refs),
    }
    content: dict[str, Any] = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in operation.consumes}
    if operation.body:
        content["application/json"] = {"schema": refs[operation.body, "validation"]}
        if "body" in operation.examples:
            content["application/json"]["example"] = operation.examples["body"]
    if content:
        told["requestBody"] = {"content": content, "required": operation.body is None or _required(operation.body)}
    return told


def _description(operation: Operation) -> str:
    reach = "For tokens of the whole relay." if operation.whole else ""
    return " ".join(filter(None, [operation.about, f"Scope: `{operation.scope}`.", reach]))


def _tag(operation: Operation) -> str:
    first: str = re.findall(r"[a-z]+", operation.path.removeprefix("/v1"))[0]
    return _WITH.get(first, first)


def _required(model: type[BaseModel]) -> bool:
    return any(field.is_required() for field in model.model_fields.values())


def _in_path(operation: Operation) -> list[dict[str, Any]]:
    found = []
    for name in re.findall(r"{(\w+)", operation.path):
        schema = dict(_PARAMETERS.get(name, {"type": "string", "minLength": 1, "maxLength": 200}))
        told = {"name": name, "in": "path", "required": True, "schema": schema}
        if name in operation.examples:
            told["example"] = operation.examples[name]
        found.append(told)
    return found


def _in_query(operation: Operation) -> list[dict[str, Any]]:
    if operation.query is Nothing:
        return []
    schema = operation.query.model_json_schema(ref_template=_REF)
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": found}
        for name, found in schema.get("properties", {}).items()
    ]


def _in_headers(operation: Operation) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "header",
            "required": False,
            "schema": {"type": "string", "maxLength": 200},
            "description": text,
        }
        for name, text in operation.headers.items()
    ]


def _answers(operation: Operation, refs: Mapping[Any, Any]) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": refs[ProblemBody, "serialization"]}}
    good: dict[str, Any] = {"description": operation.summary}
    if operation.answer is not None:
        said = {"schema": refs[operation.answer, "serialization"]}
        if "answer" in operation.examples:
            said["example"] = operation.examples["answer"]
        good["content"] = {operation.produces: said}
    elif operation.status != 204:
        good["content"] = {operation.produces: {"schema": {"type": "string"}}}
    header = {
        "X-Request-Id": {
            "schema": {"type": "string"},
            "description": "What the relay's log and audit call this request.",
        }
    }
    return {str(operation.status): good | {"headers": header}} | {
        str(status): {"description": text, "content": problem}
        for status, text in {**_ALWAYS, **_also(operation)}.items()
    }


def _also(operation: Operation) -> dict[int, str]:
    also = {}
    if "{" in operation.path:
        also[404] = "there is none, or it is somebody else's"
    if operation.body or operation.consumes:
        also |= {408: "the body took too long", 413: "the body is too large", 415: "the body is of another type"}
    if operation.method != "GET":
        also |= {409: "its state, or another's request, is in the way", 422: "understood, and refused"}
    if operation.produces == "text/event-stream":
        also[429] = "there are too many streams; `Retry-After` says when"
    return also
