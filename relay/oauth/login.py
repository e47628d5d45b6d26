"""The login of a person, once, for a refresh token: by a code that is entered in a browser anywhere (RFC 8628), or by an address
that the browser is sent to (RFC 6749 §4.1 with PKCE, RFC 7636) and that is pasted here. Neither needs a browser on this machine.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
from dataclasses import dataclass
from urllib.parse import parse_qs, urlencode, urlsplit

from relay import clock
from relay.oauth.endpoint import EndpointError, post
from relay.oauth.grants import Granted, Refused, answered
from relay.reply import clean
from relay.settings import OAuth2

_DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
INTERVAL, SLOWER = 5.0, 5.0  # seconds between two questions, and more of them when asked for: RFC 8628 §3.5
MAX_INTERVAL, MAX_LIFE = 60.0, 3600.0


class LoginError(Exception):
    """Why there is no login; the text says what to do. `again`: the same may do the next time."""

    def __init__(self, text: str, *, again: bool = False) -> None:
        super().__init__(text)
        self.again = again


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks. `secret` may be empty: an application on a user's machine keeps none."""

    oauth2: OAuth2
    id: str
    secret: str

    def fields(self, **more: str) -> dict[str, str]:
        return {"client_id": self.id} | ({"client_secret": self.secret} if self.secret else {}) | more


@dataclass(frozen=True, slots=True)
class Shown:
    """What the person is shown, and what is asked with meanwhile."""

    address: str
    code: str
    device_code: str
    interval: float
    until: float  # monotonic


async def begin(client: Client) -> Shown:
    """A code for a person to enter. Raises LoginError."""
    url, began = client.oauth2.device_url, clock.monotonic()
    try:
        answer = await post(url, {"client_id": client.id, "scope": client.oauth2.scope}, client.oauth2.ca)
    except EndpointError as error:
        raise LoginError(f"{urlsplit(url).hostname}: {error}", again=True) from None
    body = answer.body
    # Google's has another name for it than the RFC.
    address, code, device = (body.get(k) for k in ("verification_uri", "user_code", "device_code"))
    address = address or body.get("verification_url")
    if answer.status != 200 or not all(isinstance(x, str) and x for x in (address, code, device)):
        found = answered(answer.status, {**body, "access_token": None}, {})
        raise LoginError(f"{urlsplit(url).hostname} gave no code: {found.text if isinstance(found, Refused) else ''}")
    interval = _number(body.get("interval"), INTERVAL, MAX_INTERVAL)
    life = _number(body.get("expires_in"), 900.0, MAX_LIFE)
    return Shown(clean(str(address)), clean(str(code)), str(device), interval, began + life)


async def entered(client: Client, shown: Shown) -> str:
    """The refresh token, once the code was entered and agreed to. Raises LoginError."""
    interval = shown.interval
    fields = client.fields(grant_type=_DEVICE, device_code=shown.device_code)
    while True:
        await asyncio.sleep(interval)
        if clock.monotonic() > shown.until:
            raise LoginError("nobody entered the code in time; start again", again=True)
        try:
            answer = await post(client.oauth2.token_url, fields, client.oauth2.ca)
        except EndpointError as error:
            if error.lasting:
                raise LoginError(f"{urlsplit(client.oauth2.token_url).hostname}: {error}") from None
            interval = min(MAX_INTERVAL, interval * 2)  # RFC 8628 §3.5
            continue
        found = answered(answer.status, answer.body, fields)
        if isinstance(found, Granted):
            return _refresh_token(found)
        if found.error == "slow_down":
            interval = min(MAX_INTERVAL, interval + SLOWER)
        elif not found.passing:
            raise _refused(found)


@dataclass(frozen=True, slots=True)
class Asked:
    """An address to open, and what its answer is known by."""

    address: str
    redirect: str
    state: str
    verifier: str


def ask(client: Client, username: str, redirect: str) -> Asked:
    state, verifier = secrets.token_urlsafe(24), secrets.token_urlsafe(48)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    asked = {
        "response_type": "code",
        "client_id": client.id,
        "redirect_uri": redirect,
        "scope": client.oauth2.scope,
        "state": state,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        "login_hint": username,
        # Google gives a refresh token for these alone; others pass over them.
        "access_type": "offline",
        "prompt": "consent",
    }
    url = client.oauth2.authorize_url
    return Asked(f"{url}{'&' if '?' in url else '?'}{urlencode(asked)}", redirect, state, verifier)


async def pasted(client: Client, asked: Asked, address: str) -> str:
    """The refresh token for the address that the browser ended at. Raises LoginError."""
    try:
        found = {key: values[0] for key, values in parse_qs(urlsplit(address.strip()).query).items()}
    except ValueError:
        found = {}
    if "error" in found:
        raise LoginError(f"it was declined: {clean(found.get('error_description') or found['error'])[:200]}")
    if "code" not in found:
        raise LoginError("that address holds no code: paste the whole line that the browser shows at its end")
    if found.get("state") != asked.state:
        raise LoginError("that address is of another login: open the one that is shown above, and paste where it ends")
    fields = client.fields(
        grant_type="authorization_code", code=found["code"], redirect_uri=asked.redirect, code_verifier=asked.verifier
    )
    try:
        answer = await post(client.oauth2.token_url, fields, client.oauth2.ca)
    except EndpointError as error:
        raise LoginError(f"{urlsplit(client.oauth2.token_url).hostname}: {error}", again=True) from None
    granted = answered(answer.status, answer.body, fields)
    if isinstance(granted, Refused):
        raise _refused(granted)
    return _refresh_token(granted)


def _refresh_token(granted: Granted) -> str:
    token = granted.refresh_token
    if not token:
        raise LoginError("the provider gave no refresh token: `scope` needs its word for one, such as offline_access")
    return token


def _refused(found: Refused) -> LoginError:
    words = {
        "access_denied": "it was declined in the browser",
        "authorization_declined": "it was declined in the browser",
        "expired_token": "nobody entered the code in time; start again",
    }
    return LoginError(
        words.get(found.error, f"the provider refused: {found.text}"), again=found.error == "expired_token"
    )


def _number(value: object, otherwise: float, most: float) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return float(min(most, value)) if good and isinstance(value, int | float) else otherwise
