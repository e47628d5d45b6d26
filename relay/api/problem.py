"""Errors as problem+json (RFC 9457), each field that is wrong told with what was meant; never the text of an exception of ours."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from relay.admin.ports import BadRequest, NotFound
from relay.config.problems import nearest
from relay.reply import clean
from relay.spool import SpoolCorrupt, SpoolError, SpoolFull
from relay.submission import BadMessage

MAX_ERRORS = 50  # fields that are told of one request
RETRY_AFTER = "30"  # seconds


class FieldError(BaseModel):
    field: str = Field(description="Where: `to[0]`, `attachments[1].content`; empty: the whole.")
    message: str = Field(description="What was meant.")


class ProblemBody(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(extra="allow")
    type: str = Field(description="`about:blank`: `status` says it all.")
    title: str
    status: int
    detail: str = Field(description="What is wrong, and what to do.")
    request_id: str
    errors: list[FieldError] = Field([], description="The fields that are wrong.")


class Problem(Exception):
    """An answer that is no success."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors = status, detail, errors
        self.headers, self.extra = headers or {}, extra

    def body(self, request_id: str) -> dict[str, Any]:
        return {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
            **({"errors": [e.model_dump() for e in self.errors]} if self.errors else {}),
            **self.extra,
        }

    def response(self, request_id: str) -> web.Response:
        return web.json_response(
            self.body(request_id), status=self.status, content_type="application/problem+json", headers=self.headers
        )


def problem_of(error: Exception, what: str) -> Problem:
    """The answer to whatever went wrong. `what`: method and path, for the log."""
    match error:
        case Problem():
            return error
        case BadRequest():
            return Problem(400, str(error))
        case NotFound():
            return Problem(404, str(error))
        case BadMessage():
            return refused(error)
        case SpoolFull() | SpoolCorrupt():
            return Problem(503, str(error), headers={"Retry-After": RETRY_AFTER})
        case SpoolError():
            return Problem(409, str(error))
        case web.HTTPNotFound():
            return Problem(404, "there is nothing at this path; /openapi.json tells what there is")
        case web.HTTPMethodNotAllowed():
            meant = ", ".join(sorted(error.allowed_methods))
            return Problem(405, f"this path has no {clean(error.method)[:20]}; it has {meant}", headers=_allowed(error))
        case web.HTTPException():
            return Problem(error.status, error.reason, headers=_allowed(error))
        case _:
            logging.getLogger(__name__).error("%s", what, exc_info=error)
            return Problem(500, "internal trouble; the relay's log has it")


def refused(error: BadMessage) -> Problem:
    """A message that may not pass: what SMTP would have said."""
    extra: dict[str, Any] = {"code": error.code, "enhanced": error.enhanced}
    if error.code < 500:
        return Problem(503, error.text, headers={"Retry-After": RETRY_AFTER}, **extra)
    return Problem(422, error.text, **extra)


def invalid(error: ValidationError, where: str, model: type[BaseModel]) -> Problem:
    """`where`: `body` or `query`, which `model` reads."""
    told = error.errors(include_url=False)[:MAX_ERRORS]
    found = [FieldError(field=_place(_where(e)), message=_said(e, model)) for e in told]
    first = found[0]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return Problem(400, f"{first.field or 'the ' + where}: {first.message}{more}", found)


def _where(error: ErrorDetails) -> tuple[str | int, ...]:
    """A check of the whole says in its context which field it is about."""
    return (*error["loc"], *filter(None, [error.get("ctx", {}).get("field")]))


def _place(loc: Sequence[str | int]) -> str:
    """`('to', 0)` as `to[0]`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{clean(str(part))[:100]}"
    return text


_WORDS = {
    "missing": "is missing",
    "json_invalid": "is not JSON",
    "string_unicode": "has half a character",
    "model_type": "is to be an object",
}


def _said(error: ErrorDetails, model: type[BaseModel]) -> str:
    """Ours for the usual ones; pydantic's otherwise. Never the value: it may be a secret."""
    if error["type"] == "extra_forbidden":
        names = [field.alias or name for name, field in model.model_fields.items()]
        near = nearest(str(error["loc"][-1]), names) if len(error["loc"]) == 1 else ""
        return "there is no field of that name" + (f"; did you mean `{near}`?" if near else "")
    text = _WORDS.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    return clean(text)[:300]


def _allowed(error: web.HTTPException) -> dict[str, str]:
    allow = error.headers.get("Allow")
    return {"Allow": allow} if allow else {}
