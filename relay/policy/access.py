"""Who may do what over HTTP: tokens, their scopes, and whose mail their bearer sees.

Without user and tenant a token is of the whole relay. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Scope = Literal["submit", "read", "operate", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
# What a scope brings with it: who may change a thing may look at it. `submit` brings nothing: an application that only sends
# reads nobody's mail.
_BRINGS: Mapping[Scope, frozenset[Scope]] = {
    "submit": frozenset({"submit"}),
    "read": frozenset({"read"}),
    "operate": frozenset({"read", "operate"}),
    "admin": frozenset(SCOPES),
}


@dataclass(frozen=True, slots=True)
class Token:
    id: str
    digest: str  # SHA-256 of the secret, hexadecimal
    name: str  # what it is for, in its owner's words
    scopes: tuple[Scope, ...]
    user: str = ""  # submits as this one, and sees what he submitted
    tenant: str = ""  # sees what the tenant's users submitted
    created_at: float = 0.0
    created_by: str = ""
    expires_at: float = 0.0  # 0: never
    revoked_at: float = 0.0  # 0: it is not

    def state(self, now: float) -> Literal["valid", "expired", "revoked"]:
        if self.revoked_at:
            return "revoked"
        return "expired" if self.expires_at and self.expires_at <= now else "valid"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. Without `user` and `tenant`: somebody of the whole relay."""

    who: str  # for the audit: `token 1a2b3c4d (crm)`, `uid 0`
    scopes: frozenset[Scope]
    user: str = ""
    tenant: str = ""
    token: str = ""  # its id; empty: it came without one
    expires_at: float = 0.0  # 0: never

    @property
    def whole(self) -> bool:
        return not self.user and not self.tenant

    @property
    def owner(self) -> str:
        """Whose things it keeps apart from others': the tenant, `user:NAME`, or empty."""
        return self.tenant or (f"user:{self.user}" if self.user else "")

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes

    def users(self, tenants: Mapping[str, frozenset[str]]) -> frozenset[str] | None:
        """Those whose mail it sees; None: everybody's. `tenants`: of the configuration in force."""
        if self.whole:
            return None
        return frozenset({self.user}) if self.user else tenants.get(self.tenant, frozenset())


def yields(kept_by: str, owner: str) -> bool:
    """Whether that owner may undo what was stopped: an operator any, a tenant what its users stopped too, a user his own."""
    return not owner or kept_by == owner or bool(kept_by and not owner.startswith("user:"))


def bearer(token: Token) -> Principal:
    scopes = frozenset[Scope]().union(*(_BRINGS[scope] for scope in token.scopes))
    who = f"token {token.id} ({token.name})" if token.name else f"token {token.id}"
    return Principal(who, scopes, token.user, token.tenant, token.id, token.expires_at)


def local(uid: int) -> Principal:
    """Whoever could open the UNIX socket: its file mode let him in."""
    return Principal(f"uid {uid}", frozenset(SCOPES))
