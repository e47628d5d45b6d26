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


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """Of all of them."""
    schemas, refs = _schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _told(operation, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "relay",
            "version": __version__,
            "description": "Hand mail to the relay, see where it is, and move it. docs/http-api.md tells how.",
        },
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
        "description": f"Scope: `{operation.scope}`." + (" For tokens of the whole relay." if operation.whole else ""),
        "tags": [re.findall(r"[a-z]+", operation.path.removeprefix("/v1"))[0]],
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
    good: dict[str, Any] = {"description": "done"}
    if operation.answer is not None:
        good["content"] = {operation.produces: {"schema": refs[operation.answer, "serialization"]}}
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
    return also
