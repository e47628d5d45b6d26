"""Tokens, and who changed what."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from relay import clock
from relay.admin.ports import BadRequest, NotFound
from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Model, Operation
from relay.api.rows import NEXT, Cursor
from relay.policy.access import Scope, Token
from relay.spool.access import Audit, AuditFilter

MOST = 1000  # of a page
LONGEST = 10 * 366 * 86400.0  # seconds that a token may be valid


class NewToken(Model):
    # The log, the audit and terminals show it.
    name: Annotated[
        str,
        Field(
            min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$", description="What it is for."
        ),
    ]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=4, description="What its bearer may do.")]
    user: str = Field("", max_length=100, description="Submits as this user, and sees what he submitted.")
    tenant: str = Field("", max_length=100, description="Sees what the tenant's users submitted.")
    expires_in: float | None = Field(
        None, gt=0, le=LONGEST, description="Seconds that it is valid; without: until it is revoked."
    )


class TokenRow(Answer):
    id: str = Field(description="What `DELETE` and the audit call it.")
    name: str = Field(description="What it is for.")
    scopes: list[Scope] = Field(description="What its bearer may do.")
    user: str = Field(description="Whose it is; empty: no user's.")
    tenant: str = Field(description="Whose it is; empty: no tenant's.")
    state: str = Field(description="`valid`, `expired` or `revoked`.")
    created_at: float = Field(description="Epoch seconds.")
    created_by: str = Field(description="Who made it, as the audit says it.")
    expires_at: float | None = Field(description="Epoch seconds; null: when it is revoked.")
    revoked_at: float | None = Field(description="Epoch seconds; null: it is not.")
    last_used_at: float | None = Field(description="Since the relay was started; null: not yet.")


class MadeToken(TokenRow):
    token: str = Field(description="Its text; it is shown this once.")


class TokensQuery(Model):
    after: str = Field("", max_length=8, description="The `next` of the page before.")
    limit: int = Field(MOST, ge=1, description=f"At most {MOST}.")


class TokenRows(Answer):
    tokens: list[TokenRow] = Field(description="A page of all that are kept, also those that are over.")
    next: str | None = Field(description=NEXT)


class AuditQuery(Model):
    who: str = Field("", description="A glob on who asked.")
    act: str = Field("", description="A glob on method and path, such as `POST /v1/suspend`.")
    since: float = Field(0.0, ge=0, description="Epoch seconds.")
    before: Cursor = Field(0, description="The `next` of the page before.")
    limit: int = Field(100, ge=1, description=f"At most {MOST}.")


class AuditRow(Answer):
    id: int = Field(description="Its number, and a cursor.")
    at: float = Field(description="When it began; epoch seconds.")
    who: str = Field(description="`token ID (NAME)`, or `uid N` over the socket.")
    tenant: str = Field(description="Whose token it was.")
    request_id: str = Field(description="`X-Request-Id` of its answer, and of the log.")
    act: str = Field(description="Method and path.")
    asked: dict[str, Any] = Field(description="Without secrets.")
    status: int | None = Field(description="Of HTTP; null: it began, and how it ended is not known.")
    result: dict[str, Any] = Field(description="What came of it.")


class AuditRows(Answer):
    audit: list[AuditRow] = Field(description="The newest first.")
    next: int | None = Field(description="`before` of the next page; null: this was the last one.")


def operations(rooms: Rooms) -> list[Operation]:
    async def tokens(call: Call) -> dict[str, Any]:
        asked, now = call.query, clock.now()
        limit = min(asked.limit, MOST)
        found = rooms.tokens.page(asked.after, limit)
        return {
            "tokens": [_row(token, now, rooms.tokens.used(token)) for token in found],
            "next": found[-1].id if len(found) == limit else None,
        }

    async def add(call: Call) -> dict[str, Any]:
        asked, now = call.body, clock.now()
        token = Token(
            "", "", asked.name, tuple(dict.fromkeys(asked.scopes)), asked.user, asked.tenant, now, call.principal.who,
            now + asked.expires_in if asked.expires_in else 0.0,
        )  # fmt: skip
        _must_fit(token, rooms)
        made, text = await rooms.tokens.add(token)
        call.noted["id"] = made.id
        return _row(made, now) | {"token": text}

    async def revoke(call: Call) -> dict[str, Any]:
        now = clock.now()
        token = await rooms.tokens.revoke(call.path("token"), now)
        if token is None:
            raise NotFound("no such token; `relay token list` names them")
        return _row(token, now, rooms.tokens.used(token))

    async def audit(call: Call) -> dict[str, Any]:
        asked = call.query
        limit = min(asked.limit, MOST)
        found = await rooms.spool.audits(AuditFilter(asked.who, asked.act, asked.since), asked.before or None, limit)
        return {"audit": [_told(entry) for entry in found], "next": found[-1].id if len(found) == limit else None}

    return [
        Operation(
            "GET",
            "/v1/tokens",
            "admin",
            "Tokens, without their secrets",
            tokens,
            TokenRows,
            query=TokensQuery,
            whole=True,
        ),
        Operation("POST", "/v1/tokens", "admin", "A new token", add, MadeToken, body=NewToken, status=201, whole=True),
        Operation("DELETE", "/v1/tokens/{token}", "admin", "Revoke a token", revoke, TokenRow, whole=True),
        Operation("GET", "/v1/audit", "admin", "Who changed what", audit, AuditRows, query=AuditQuery, whole=True),
    ]


def _must_fit(token: Token, rooms: Rooms) -> None:
    """Raises BadRequest."""
    config = rooms.config
    if token.user and token.tenant:
        raise BadRequest("a token is of a user or of a tenant, not both: a user's tenant is his own")
    for what, name, known in (("user", token.user, config.users), ("tenant", token.tenant, config.tenants)):
        if name and name not in known:
            raise BadRequest(
                f"no {what} {name!r} in the configuration; there are: {', '.join(sorted(known)) or 'none'}"
            )


def _row(token: Token, now: float, used: float = 0.0) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "scopes": list(token.scopes),
        "user": token.user,
        "tenant": token.tenant,
        "state": token.state(now),
        "created_at": token.created_at,
        "created_by": token.created_by,
        "expires_at": token.expires_at or None,
        "revoked_at": token.revoked_at or None,
        "last_used_at": used or None,
    }


def _told(entry: Audit) -> dict[str, Any]:
    return {
        "id": entry.id,
        "at": entry.at,
        "who": entry.who,
        "tenant": entry.tenant,
        "request_id": entry.request,
        "act": entry.act,
        "asked": dict(entry.asked),
        "status": entry.status or None,
        "result": dict(entry.result),
    }
