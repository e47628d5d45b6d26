"""From a request to a handler and back: who asks, may he, what does he say, what is written down, how is it told."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ValidationError

from relay import clock, metrics
from relay.api.problem import Problem, invalid, problem_of
from relay.api.rooms import Rooms
from relay.api.route import ID, Call, Operation
from relay.api.tokens import Over, without_tokens
from relay.policy.access import Principal, local
from relay.reply import clean
from relay.spool.access import Audit

READ_WITHIN = 60.0  # seconds for a body to arrive
IN_FLIGHT = 128 << 20  # bytes of bodies that are read at once, over all requests
MOST_VALUES = 2_000_000  # of a body of JSON: three bytes of it may become a hundred in memory
AUDITED = 4000  # characters of what was asked that the audit keeps
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECRET = re.compile(r"(?i)password|secret|token|authorization")

REQUESTS = metrics.Counter(
    "relay_http_requests_total", "Answers of the API by operation and status", ["operation", "status"]
)
Who = Callable[[web.Request, Rooms], Principal]


def by_socket(request: web.Request, rooms: Rooms) -> Principal:
    """The process at the other end of the UNIX socket."""
    transport = request.transport
    peer = transport.get_extra_info("socket") if transport else None
    if peer is None:
        return local(-1)
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return local(uid)


def once(request: web.Request, name: str) -> str:
    """A header field that there is one of; empty: none. Raises Problem: of two nobody knows which one a proxy went by."""
    found = request.headers.getall(name, [])
    if len(found) > 1:
        raise Problem(400, f"{name} is said twice")
    return found[0] if found else ""


def by_token(request: web.Request, rooms: Rooms) -> Principal:
    """RFC 6750 §2.1, §3. Raises Problem."""
    kind, _, text = once(request, "Authorization").partition(" ")
    if kind.lower() != "bearer" or not text:
        detail = "say `Authorization: Bearer TOKEN`; `relay token add` makes one"
        raise Problem(401, detail, headers={"WWW-Authenticate": 'Bearer realm="relay"'})
    found = rooms.tokens.bearer(text.strip(), clock.now())
    if isinstance(found, str):
        challenge = 'Bearer realm="relay", error="invalid_token"'
        raise Problem(401, f"{found}; `relay token add` makes one", headers={"WWW-Authenticate": challenge})
    return found


class Endpoint:
    """One operation on one server. `handle` is what aiohttp calls."""

    in_flight = 0  # bytes of bodies, over all endpoints

    def __init__(self, operation: Operation, rooms: Rooms, who: Who) -> None:
        self.operation, self.rooms, self.who = operation, rooms, who

    async def expected(self, request: web.Request) -> None:
        """Who waits for a `100 Continue` (RFC 9110 §10.1.1) sends his body only if the request could pass; if not, `handle` says why."""
        try:
            self.operation.allows(self.who(request, self.rooms))
            self._kind(request)
        except Problem:
            return
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # it is no part of the answer

    async def handle(self, request: web.Request) -> web.StreamResponse:
        operation = self.operation
        principal = self.who(request, self.rooms)
        operation.allows(principal)
        kind = self._kind(request)
        query = self._query(request)
        data = await self._read(request) if operation.body or operation.consumes else b""
        try:
            body = self._body(kind, data)
            users = self.rooms.users(principal)
            call = Call(request, principal, request[ID], query, body, users, lambda: self.who(request, self.rooms))
            if operation.is_audited:
                return await self._audited(call)
            if operation.streams:
                return self._response(await operation.handler(call), call)
            with self.rooms.tokens.while_valid(principal, clock.now()):
                return self._response(await operation.handler(call), call)
        except Over:
            if request.method == "GET":
                self.who(request, self.rooms)  # 401, where the token is over; it would say that nothing was taken
            detail = "what this token may see has changed meanwhile; ask again, with the same Idempotency-Key"
            raise Problem(503, detail, headers={"Retry-After": "1"}) from None
        finally:
            Endpoint.in_flight -= len(data)

    # -- what was said

    def _query(self, request: web.Request) -> Any:
        found: dict[str, str] = {}
        for key, value in request.query.items():
            if key in found:
                raise Problem(400, f"{clean(key)[:100]} is said twice")
            found[key] = value
        try:
            return self.operation.query.model_validate(found)
        except ValidationError as error:
            raise invalid(error, "query", self.operation.query) from None

    async def _read(self, request: web.Request) -> bytes:
        """The body, bounded by what the operation allows and by what all requests may hold together."""
        most = self.operation.most
        most = most() if callable(most) else most
        too_large = Problem(413, f"the body is larger than {most} bytes")
        if (request.content_length or 0) > most:
            raise too_large
        parts, size = list[bytes](), 0
        try:
            async with asyncio.timeout(READ_WITHIN):
                async for part in request.content.iter_any():
                    size += len(part)
                    Endpoint.in_flight += len(part)
                    if size > most:
                        raise too_large
                    if Endpoint.in_flight > IN_FLIGHT:
                        raise Problem(503, "too much is arriving at once; try again", headers={"Retry-After": "5"})
                    parts.append(part)
        except BaseException as error:
            Endpoint.in_flight -= size
            if isinstance(error, TimeoutError):
                raise Problem(408, f"the body took longer than {READ_WITHIN:.0f} seconds") from None
            raise
        return b"".join(parts)

    def _kind(self, request: web.Request) -> str:
        """The content type of a body that the operation takes; empty: it takes none. Before anything of it is read. Raises Problem."""
        operation = self.operation
        wanted = (*(("application/json",) if operation.body else ()), *operation.consumes)
        if not wanted:
            return ""
        kind = request.content_type if request.can_read_body and "Content-Type" in request.headers else wanted[0]
        if kind not in wanted:
            raise Problem(415, f"the body is to be of {' or '.join(wanted)}")
        if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise Problem(415, "the body is packed (Content-Encoding); send it as it is")
        return kind

    def _body(self, kind: str, data: bytes) -> Any:
        operation = self.operation
        if kind in operation.consumes:
            return data
        if operation.body is None:
            return None
        try:
            if len(data) > MOST_VALUES and sum(map(data.count, (b",", b"[", b"{"))) > MOST_VALUES:
                raise Problem(
                    413, f"the body has more than {MOST_VALUES} commas and brackets; a table is sent in base64"
                )
            return operation.body.of_json(data or b"{}")
        except ValidationError as error:
            raise invalid(error, "body", operation.body) from None

    # -- what is written down

    async def _audited(self, call: Call) -> web.StreamResponse:
        """It is on record that it began before it begins, and how it ended before that is answered."""
        principal, act, status = call.principal, self._act(call), 0
        entry = Audit(clock.now(), principal.who, principal.owner, call.id, act, self._asked(call))
        number = await self.rooms.spool.begin_audit(entry)
        try:
            response = self._response(await self.operation.handler(call), call)
            status = response.status
            return response
        except Exception as error:
            status = problem_of(error, act).status
            raise
        finally:
            if status:  # else it was broken off: nobody knows how far it came
                await self.rooms.spool.end_audit(number, status, call.noted)
            # What was asked may name people: the audit has it, the log goes further.
            named = f"{self.operation.method} {self.operation.path}"
            self.rooms.log.event("audit", who=principal.who, act=named, status=status, request=call.id)

    def _act(self, call: Call) -> str:
        return f"{self.operation.method} {_path(call.request)}"

    def _asked(self, call: Call) -> Mapping[str, Any]:
        """Without what is, or is called, a secret; clipped."""
        asked: dict[str, Any] = dict(call.request.query)
        if isinstance(call.body, BaseModel):
            asked |= call.body.model_dump(mode="json", by_alias=True, exclude_unset=True)
        hidden = {key: "…" if _SECRET.search(key) else value for key, value in asked.items()}
        text = without_tokens(json.dumps(hidden))
        found: Mapping[str, Any] = json.loads(text) if len(text) <= AUDITED else {"clipped": text[:AUDITED]}
        return found

    def _response(self, found: Any, call: Call) -> web.StreamResponse:
        if isinstance(found, web.StreamResponse):
            return found
        if found is None:
            return web.Response(status=204)
        if isinstance(found, BaseModel):
            found = found.model_dump(mode="json", by_alias=True)
        return web.json_response(found, status=self.operation.status)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def telling(rooms: Rooms, who: Who) -> Any:
    """The middleware: every answer has the request's id, every error is a problem."""

    @web.middleware
    async def told(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("X-Request-Id", "")
        request[ID] = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        try:
            response = await _answer(request, handler)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told and logged in one way
            response = problem_of(error, f"{request.method} {_path(request)}").response(request[ID])
        REQUESTS.inc(1, _named(request), str(response.status))
        return response

    async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed):
            if request.path.startswith("/v1"):
                who(request, rooms)  # who has no token does not even learn which operations there are
            raise

    return told


def _path(request: web.Request) -> str:
    return without_tokens(clean(request.path)[:300])


def _named(request: web.Request) -> str:
    """No label that a stranger can choose."""
    resource = request.match_info.route.resource
    return f"{request.method} {resource.canonical}" if resource is not None else "none"
