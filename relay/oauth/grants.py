"""What is asked of a token endpoint for each grant, and what its answer means. Pure; the time is an argument.

Refresh token and client credentials: RFC 6749 §6, §4.4. A service account shows a statement that it signed: RFC 7523 §2.1.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from relay.reply import clean
from relay.secrets import hidden
from relay.settings import OAuth2

ASSERTION_LIFE = 3600  # seconds; Google takes no longer one
USUAL_LIFE = 3600.0  # seconds of a token whose answer does not say
MAX_TOLD = 240  # characters of what an endpoint says
_JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
# RFC 6749 §5.2 has no word for these; providers took them from §4.1.2.1.
PASSING = frozenset({"temporarily_unavailable", "server_error", "slow_down", "authorization_pending"})


class GrantError(Exception):
    """What is configured cannot be asked with; the text says why and holds no secret."""


@dataclass(frozen=True, slots=True)
class Material:
    """The secrets of one request, as they were read for it."""

    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    refresh_token: str = field(default="", repr=False)
    key: str = field(default="", repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(s for s in (self.client_secret, self.refresh_token, self.key) if s)


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """Of the JSON that Google hands out for a service account."""

    email: str
    number: str
    pem: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> ServiceKey:
        """Raises GrantError."""
        wrong = (
            "is no key of a service account: the JSON file that Google Cloud made, with client_email and private_key"
        )
        try:
            found = json.loads(text)
        except ValueError:
            raise GrantError(wrong) from None
        if not isinstance(found, dict) or not all(
            isinstance(found.get(k), str) and found[k] for k in ("client_email", "private_key")
        ):
            raise GrantError(wrong)
        return cls(found["client_email"], str(found.get("private_key_id") or ""), found["private_key"])


@dataclass(frozen=True, slots=True)
class Granted:
    """A token as it came."""

    access_token: str = field(repr=False)
    life: float  # seconds
    refresh_token: str = field(default="", repr=False)  # a new one, where it was rotated


@dataclass(frozen=True, slots=True)
class Refused:
    """An answer that is no token. `passing`: the same request may be granted later."""

    error: str
    text: str
    passing: bool


def form(oauth2: OAuth2, material: Material, username: str, now: float) -> dict[str, str]:
    """The fields to POST. `now`: epoch seconds, as the endpoint sees them. Raises GrantError."""
    if oauth2.grant == "service_account":
        return {"grant_type": _JWT_BEARER, "assertion": assertion(oauth2, material.key, username, now)}
    fields = {"grant_type": oauth2.grant, "client_id": material.client_id}
    if oauth2.grant == "refresh_token":
        fields["refresh_token"] = material.refresh_token
    if material.client_secret:
        fields["client_secret"] = material.client_secret
    if oauth2.scope:
        fields["scope"] = oauth2.scope
    return fields


def assertion(oauth2: OAuth2, key: str, username: str, now: float) -> str:
    """Who we are, for whom we ask, signed (RS256: RFC 7518 §3.3). Raises GrantError."""
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15  # 8 MiB, for those alone who sign
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    account = ServiceKey.parse(key)
    try:
        private = load_pem_private_key(account.pem.encode(), None)
    except (ValueError, TypeError):  # cryptography's own text may quote the key
        raise GrantError("the private_key of the service account cannot be read") from None
    if not isinstance(private, RSAPrivateKey):
        raise GrantError("the private_key of the service account is not RSA, which RS256 needs")
    head = {"alg": "RS256", "typ": "JWT"} | ({"kid": account.number} if account.number else {})
    claims = {
        "iss": account.email,
        "sub": username,
        "scope": oauth2.scope,
        "aud": oauth2.token_url,
        "iat": int(now),
        "exp": int(now) + ASSERTION_LIFE,
    }
    signed = b".".join(_encoded(json.dumps(part).encode()) for part in (head, claims))
    return b".".join((signed, _encoded(private.sign(signed, PKCS1v15(), SHA256())))).decode()


def _encoded(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def answered(status: int, body: Mapping[str, Any], said: Mapping[str, str]) -> Granted | Refused:
    """What an answer in JSON means (RFC 6749 §5.1, §5.2). `said`: the fields that were posted, which no error may quote."""
    token, error = body.get("access_token"), body.get("error")
    if status == 200 and isinstance(token, str) and token and error is None:
        kind = body.get("token_type")
        if isinstance(kind, str) and kind.lower() != "bearer":
            return Refused("", f"it gave a token of the type {clean(kind)[:40]}, not Bearer", False)
        if not _plain(token) or " " in token:  # RFC 6750 §2.1; it stands in an SMTP command
            return Refused("", "it gave a token with characters that no token has", False)
        again = body.get("refresh_token")
        return Granted(token, _life(body.get("expires_in")), again if _plain(again) else "")
    name = clean(error)[:60] if isinstance(error, str) else ""
    told = body.get("error_description")
    # Microsoft's goes on with numbers for its own support.
    words = clean(told.partition("Trace ID:")[0])[:MAX_TOLD] if isinstance(told, str) else ""
    text = f"{name}: {words}" if name and words else name or f"it answered {status} without a token"
    text = hidden(text, *(value for key, value in said.items() if key not in _PUBLIC))
    return Refused(name, text, status >= 500 or status in (408, 429) or name in PASSING)


def _plain(token: object) -> TypeGuard[str]:
    """RFC 6749 appendix A: printable ASCII."""
    return isinstance(token, str) and token.isascii() and token.isprintable()


_PUBLIC = frozenset({"grant_type", "client_id", "scope", "redirect_uri"})


def _life(value: object) -> float:
    """`expires_in`; some servers write the number as a string."""
    try:
        life = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else USUAL_LIFE
    except (ValueError, OverflowError):
        return USUAL_LIFE
    return min(life, 30 * 86400.0) if life > 0 else USUAL_LIFE  # NaN too


_WHAT_TO_DO = {
    "invalid_client": "the client's id or secret is wrong, or the secret has ended: make a new one at the provider",
    "unauthorized_client": "the provider does not allow this client the grant: see its registration there",
    "invalid_scope": "the provider does not know `scope`, or does not allow it to this client",
    "unsupported_grant_type": "the provider does not offer this `grant`, or `token_url` is another service's",
    "interaction_required": "somebody must agree in a browser: relay oauth login {account}",
    "consent_required": "somebody must agree in a browser: relay oauth login {account}",
    "access_denied": "the provider's administrator forbids it",
}


def what_to_do(error: str, grant: str, account: str) -> str:
    """For an operator, by the `error` of an answer; empty where nothing can be said."""
    if error == "invalid_grant":
        return {
            "refresh_token": f"the login was revoked or has ended: relay oauth login {account}",
            "service_account": "the account may not act for `username` with this `scope` (domain-wide delegation), "
            "the key was deleted, or the clock is wrong",
        }.get(grant, "the provider does not take this login any more")
    return _WHAT_TO_DO.get(error, "").format(account=account)
