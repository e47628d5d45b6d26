"""The API as its clients see it: tokens, and requests over TCP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import aiohttp
from rig import Rig

from relay import clock
from relay.policy.access import SCOPES, Scope, Token

JSON = {"Content-Type": "application/json"}


async def token(
    rig: Rig, *scopes: Scope, user: str = "", tenant: str = "", expires: float = 0.0, name: str = "test"
) -> str:
    """Its text."""
    made = Token("", "", name, scopes or SCOPES, user, tenant, clock.now(), "test", expires)
    return (await rig.app.tokens.add(made))[1]


def base(rig: Rig) -> str:
    return f"http://{rig.app.config.admin.address}"


async def ask(
    url: str, method: str = "GET", text: str = "", body: Any = None, headers: dict[str, str] | None = None, **more: Any
) -> tuple[int, Mapping[str, str], Any]:
    """(status, header fields, what was said: JSON, or text). `text`: of a token."""
    sent = {"Authorization": f"Bearer {text}"} if text else {}
    data = json.dumps(body) if isinstance(body, dict | list) else body
    sent |= (JSON if data is not None else {}) | (headers or {})
    async with (
        aiohttp.ClientSession(auto_decompress=True) as session,
        session.request(method, url, data=data, headers=sent, **more) as answer,
    ):
        said = await answer.text()
        kind = answer.content_type
        return answer.status, answer.headers, json.loads(said) if kind.endswith("json") and said else said
