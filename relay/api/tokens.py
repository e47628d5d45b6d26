"""Tokens in memory, as the spool keeps them: a request asks no database who its bearer is.

A token is `relay_ID_SECRET`. What is kept of it is a digest: the secret is 256 random bits, which nobody finds by trying, so
SHA-256 does (a slow hash is for what people choose).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from relay.policy.access import Principal, Token, bearer
from relay.settings import Config
from relay.spool.access import Access

_TEXT = re.compile(r"relay_([a-z0-9]{8})_([A-Za-z0-9_-]{43})")


class Tokens:
    def __init__(self, spool: Access, config: Callable[[], Config]) -> None:
        self._spool, self._config = spool, config
        self._known: dict[str, Token] = {}
        self._used: dict[str, float] = {}  # id -> when last
        self._answered: set[_Answered] = set()

    async def load(self) -> None:
        """Raises SpoolError."""
        self._known = {token.id: token for token in await self._spool.tokens()}

    def page(self, after: str, limit: int) -> list[Token]:
        """Behind the one with that id, the oldest first; none behind one that is not there."""
        every = iter(self._known.values())
        if after:
            next((token for token in every if token.id == after), None)
        return list(islice(every, limit))

    def used(self, token: Token) -> float:
        """When it last let somebody in since the start; 0: never."""
        return self._used.get(token.id, 0.0)

    async def add(self, wanted: Token) -> tuple[Token, str]:
        """With its text, which nobody can be shown again. Raises SpoolError."""
        token, text = issue(wanted)
        await self._spool.keep_token(token)
        self._known[token.id] = token
        return token, text

    async def revoke(self, number: str, now: float) -> Token | None:
        """None: there is no such token. Raises SpoolError."""
        token = self._known.get(number)
        if token is None:
            return None
        if not token.revoked_at:
            token = replace(token, revoked_at=now)
            self._known[number] = token  # at once: what is refused too early does no harm
            for one in [*self._answered]:
                if one.principal.token == number:
                    one.end()
        # Also of one that is revoked: the spool may have failed the first time, and then a restart would make it valid again.
        await self._spool.keep_token(token)
        return token

    def bearer(self, text: str, now: float) -> Principal | str:
        """Whose token it is, or why it lets nobody in."""
        token = find(self._known, text)
        if token is None:
            return "no such token"
        if (state := token.state(now)) != "valid":
            return f"the token is {state}"
        if gone := self._gone(token.user, token.tenant):
            return gone
        self._used[token.id] = now
        return bearer(token)

    def _gone(self, user: str, tenant: str) -> str:
        config = self._config()
        if tenant and tenant not in config.tenants:
            return f"the token's tenant {tenant} is not in the configuration any more"
        if user and user not in config.users:
            return f"the token's user {user} is not in the configuration any more"
        return ""

    # -- answers that last: a stream is no longer than its token

    @contextmanager
    def while_valid(self, principal: Principal, now: float) -> Iterator[None]:
        """Around what is only read: it is broken off once the token is revoked, expires, or sees other mail than it did. Raises Over."""
        task = asyncio.current_task()
        if not principal.token or task is None:
            yield
            return
        one = _Answered(principal, principal.users(self._config().tenants), task)
        self._answered.add(one)
        ends = principal.expires_at - now if principal.expires_at else None
        timer = asyncio.get_running_loop().call_later(max(0.0, ends), one.end) if ends is not None else None
        try:
            yield
        except asyncio.CancelledError:
            if not one.over or task.uncancel():
                raise
            raise Over from None
        finally:
            self._answered.discard(one)
            if timer is not None:
                timer.cancel()

    def reloaded(self) -> None:
        """Another configuration is in force."""
        tenants = self._config().tenants
        for one in [*self._answered]:
            who = one.principal
            if self._gone(who.user, who.tenant) or who.users(tenants) != one.users:
                one.end()


class Over(Exception):
    """What is being read is not for this token any more, as it was when it was asked for."""


@dataclass(eq=False)
class _Answered:
    """A request that is being answered."""

    principal: Principal
    users: frozenset[str] | None
    task: asyncio.Task[Any]
    over: bool = False

    def end(self) -> None:
        if not self.over:
            self.over = True
            self.task.cancel()


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


def without_tokens(text: str) -> str:
    """For log and audit, whatever somebody put a token into."""
    return _TEXT.sub(r"relay_\1_…", text)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
