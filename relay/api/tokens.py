"""Tokens in memory, as the spool keeps them: a request asks no database who its bearer is.

A token is `relay_ID_SECRET`. What is kept of it is a digest: the secret is 256 random bits, which nobody finds by trying, so
SHA-256 does (a slow hash is for what people choose).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace

from relay.policy.access import Principal, Token, bearer
from relay.settings import Config
from relay.spool.access import Access

_TEXT = re.compile(r"relay_([a-z0-9]{8})_([A-Za-z0-9_-]{43})")


class Tokens:
    def __init__(self, spool: Access, config: Callable[[], Config]) -> None:
        self._spool, self._config = spool, config
        self._known: dict[str, Token] = {}

    async def load(self) -> None:
        """Raises SpoolError."""
        self._known = {token.id: token for token in await self._spool.tokens()}

    def all(self) -> list[Token]:
        return list(self._known.values())

    async def add(self, wanted: Token) -> tuple[Token, str]:
        """With its text, which nobody can be shown again. Raises SpoolError."""
        token, text = issue(wanted)
        await self._spool.keep_token(token)
        self._known[token.id] = token
        return token, text

    async def revoke(self, number: str, now: float) -> Token | None:
        """None: there is no such token. Raises SpoolError."""
        token = self._known.get(number)
        if token is None or token.revoked_at:
            return token
        token = replace(token, revoked_at=now)
        self._known[number] = token  # at once: what is refused too early does no harm
        await self._spool.keep_token(token)
        return token

    def bearer(self, text: str, now: float) -> Principal | str:
        """Whose token it is, or why it lets nobody in."""
        token = find(self._known, text)
        if token is None:
            return "no such token"
        if (state := token.state(now)) != "valid":
            return f"the token is {state}"
        config = self._config()
        if token.tenant and token.tenant not in config.tenants:
            return f"the token's tenant {token.tenant} is not in the configuration any more"
        if token.user and token.user not in config.users:
            return f"the token's user {token.user} is not in the configuration any more"
        return bearer(token)


def issue(token: Token) -> tuple[Token, str]:
    """The token with an id and a digest, and its text, which is shown once and kept nowhere."""
    number, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    return replace(token, id=number, digest=_digest(secret)), f"relay_{number}_{secret}"


def find(tokens: Mapping[str, Token], text: str) -> Token | None:
    """The token that a text is of, whatever its state; None: it is none of ours."""
    written = _TEXT.fullmatch(text)
    if written is None:
        return None
    token = tokens.get(written[1])
    # One that is not known takes as long as one whose secret is wrong.
    good = hmac.compare_digest(_digest(written[2]), token.digest if token else "0" * 64)
    return token if good else None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
