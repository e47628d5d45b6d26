"""The words of AUTH: PLAIN (RFC 4616) and LOGIN (draft-murchison-sasl-login), in the frame of RFC 4954. Pure."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field

from relay.listener.command import BadCommand

MECHANISMS = ("PLAIN", "LOGIN")
MAX_NAME, MAX_PASSWORD = 255, 1024


@dataclass(frozen=True, slots=True)
class Credentials:
    user: str
    password: str = field(repr=False)


class Exchange:
    """One AUTH command. Feed `step` until it returns Credentials; a text is the next challenge, to be sent after 334."""

    def __init__(self, mechanism: str) -> None:
        if mechanism not in MECHANISMS:
            raise BadCommand(504, "5.5.4", f"this mechanism is not offered; known are {' '.join(MECHANISMS)}")
        self.mechanism = mechanism
        self._user: str | None = None

    def step(self, response: str | None) -> str | Credentials:
        """`response`: what the client said, in base64; None: nothing yet. Raises BadCommand, which ends the exchange."""
        if response is None:
            return "" if self.mechanism == "PLAIN" else encoded("Username:")
        if response == "*":  # RFC 4954 §4
            raise BadCommand(501, "5.7.0", "login cancelled")
        said = decoded(response)
        if self.mechanism == "PLAIN":
            return _plain(said)
        if self._user is None:
            self._user = said
            return encoded("Password:")
        return _credentials(self._user, said)


def _plain(said: str) -> Credentials:
    parts = said.split("\0")
    if len(parts) != 3:
        raise BadCommand(501, "5.5.2", "PLAIN wants [authzid] NUL user NUL password, in base64")
    acting, user, password = parts
    if acting not in ("", user):
        raise BadCommand(535, "5.7.8", "nobody may act as another user here")
    return _credentials(user, password)


def _credentials(user: str, password: str) -> Credentials:
    if not 0 < len(user) <= MAX_NAME or not 0 < len(password) <= MAX_PASSWORD or "\0" in user + password:
        raise BadCommand(501, "5.5.2", "user name or password is empty or too long")
    return Credentials(user, password)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def decoded(text: str) -> str:
    """RFC 4954 §4: a lone `=` stands for an initial response that is empty."""
    try:
        return base64.b64decode("" if text == "=" else text, validate=True).decode()
    except (binascii.Error, ValueError):
        raise BadCommand(501, "5.5.2", "this is no base64 of UTF-8 text") from None
