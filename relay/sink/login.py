"""Whom a sink lets in: anybody, or those whom files name; and the words of XOAUTH2 and OAUTHBEARER (RFC 7628)."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from relay.listener.command import BadCommand
from relay.listener.sasl import Credentials, Exchange, decoded
from relay.secrets import Reference, SecretError

_BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Token(Credentials):
    """`password` is an access token."""

    mechanism: str = "XOAUTH2"


class TokenExchange(Exchange):
    """One AUTH with an access token: one response, and that is all there is to say."""

    def __init__(self, mechanism: str) -> None:
        self.mechanism = mechanism

    def step(self, response: str | None) -> str | Credentials:
        if response is None:
            return ""
        if response == "*":  # RFC 4954 §4
            raise BadCommand(501, "5.7.0", "login cancelled")
        first, *rest = decoded(response).split("\1")
        pairs = dict(part.partition("=")[::2] for part in (rest if self.mechanism == "OAUTHBEARER" else [first, *rest]))
        # RFC 7628 §3.1: a GS2 header (RFC 5801 §4) such as `n,a=user@example.com,` stands before the pairs.
        user = _authzid(first) if self.mechanism == "OAUTHBEARER" else pairs.get("user", "")
        bearer = _BEARER.fullmatch(pairs.get("auth", ""))
        if not bearer or (self.mechanism == "XOAUTH2" and not user):
            raise BadCommand(501, "5.5.2", f"{self.mechanism} wants a user and auth=Bearer TOKEN, in base64")
        return Token(user, bearer[1], self.mechanism)


def _authzid(header: str) -> str:
    for part in header.split(","):
        if part.startswith("a="):
            return part[2:].replace("=2C", ",").replace("=3D", "=")
    return ""


def exchange_of(mechanism: str, offered: Sequence[str]) -> Exchange:
    """Raises BadCommand for what is not offered."""
    if mechanism not in offered:
        raise BadCommand(504, "5.5.4", f"this mechanism is not offered; known are {' '.join(offered)}")
    return TokenExchange(mechanism) if mechanism in ("XOAUTH2", "OAUTHBEARER") else Exchange(mechanism)


def challenge(scope: str) -> str:
    """What a token that is refused is answered with, after 334: RFC 7628 §3.2.2."""
    status = {"status": "400", "schemes": "Bearer", "scope": scope}
    return base64.b64encode(json.dumps(status, separators=(",", ":")).encode()).decode()


@dataclass(frozen=True, slots=True)
class Logins:
    """Without files anybody may log in. With any of them, what is in none of them is refused.

    `password`: a file with the one password that is right. `tokens`: a file with the access tokens that are valid now,
    one a line. Both are read anew at each login, so a test may change a password and revoke a token.
    """

    user: str = ""
    password: Path | None = None
    tokens: Path | None = None

    async def accept(self, given: Credentials) -> bool:
        if self.user and not hmac.compare_digest(self.user.encode(), given.user.encode()):
            return False
        if self.password is None and self.tokens is None:
            return True
        file = self.tokens if isinstance(given, Token) else self.password
        if file is None:
            return False
        try:
            valid = await asyncio.to_thread(Reference("file", str(file)).resolve)
        except SecretError:
            return False  # no file: nobody
        found = valid.split() if isinstance(given, Token) else [valid]
        return any(hmac.compare_digest(one.encode(), given.password.encode()) for one in found if one)
