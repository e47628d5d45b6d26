"""An operation of the API: declared once, served and described from that.

A handler gets a `Call` whose query and body have been read by its models, and returns what its answer model says: a dict, or
a response of its own where it streams.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from relay.admin.ports import NotFound
from relay.api.problem import Problem
from relay.policy.access import Principal, Scope

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
ID = web.RequestKey("id", str)  # of a request, as its answer, the log and the audit have it
MAX_BODY = 5 << 20  # bytes, where an operation does not say otherwise


class Model(BaseModel):
    """What comes in: no field that we do not know. Built at the first request: most are of operations that few call."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, str_max_length=1 << 20, defer_build=True)

    @classmethod
    def of_json(cls, data: bytes) -> Self:
        """Raises ValidationError."""
        return cls.model_validate_json(data)


class Answer(BaseModel):
    """What goes out, for the description; rows may hold more than it names."""

    model_config = ConfigDict(extra="allow", populate_by_name=True, defer_build=True)


class Nothing(Model):
    """No field."""


@dataclass
class Call:
    """One request."""

    request: web.Request
    principal: Principal
    id: str  # of the request
    query: Any  # its model, read
    body: Any  # its model, read; bytes for another content type than JSON; None where there is none
    users: frozenset[str] | None  # whose mail it sees; None: everybody's
    renewed: Callable[[], Principal]  # who asks, looked at again; raises Problem where that is over
    noted: dict[str, Any] = field(default_factory=dict)  # what the audit says of the result

    def path(self, name: str) -> str:
        return self.request.match_info[name]

    def must_see(self, user: str, what: str) -> None:
        """Raises NotFound for what is another tenant's: that it exists is none of their business."""
        if self.users is not None and user not in self.users:
            raise NotFound(what)


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True)
class Operation:
    method: Method
    path: str  # such as /v1/messages/{id}
    scope: Scope
    summary: str
    handler: Handler
    answer: type[BaseModel] | None = None  # None: not JSON, see `produces`
    query: type[Model] = Nothing
    body: type[Model] | None = None
    consumes: tuple[str, ...] = ()  # content types beside application/json whose body the handler gets as bytes
    produces: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)  # that a request may have: name -> what it says
    status: int = 200
    whole: bool = False  # of the whole relay: a token of a tenant or a user gets 403
    streams: bool = False  # it looks at its token itself while it lasts, and ends in words
    audited: bool | None = None  # None: whatever is no GET
    most: int | Callable[[], int] = MAX_BODY  # bytes of the body
    examples: Mapping[str, Any] = field(
        default_factory=dict
    )  # of path parameters, `body` and `answer`, for the description
    about: str = ""  # what else a caller should know, for the description

    @property
    def name(self) -> str:
        """Its operationId: `post_messages_id_resend`."""
        return "_".join([self.method.lower(), *re.findall(r"[a-z]+", self.path.removeprefix("/v1"))])

    @property
    def is_audited(self) -> bool:
        return self.method != "GET" if self.audited is None else self.audited

    def allows(self, principal: Principal) -> None:
        """Raises Problem."""
        if not principal.may(self.scope):
            raise Problem(403, f"{self.method} {self.path} wants the scope {self.scope}, which this token has not")
        if self.whole and not principal.whole:
            raise Problem(
                403, f"{self.method} {self.path} is about the whole relay; this token is of one tenant or user"
            )
