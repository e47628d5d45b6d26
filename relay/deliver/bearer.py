"""Logging in with a token: XOAUTH2 (Google's and Microsoft's) and OAUTHBEARER (RFC 7628). Never with a password instead."""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING

from aiosmtplib.errors import SMTPAuthenticationError

from relay.deliver.smtp import TIMEOUTS, Failure
from relay.reply import Reply, Stage, clean
from relay.secrets import hidden
from relay.settings import Account

if TYPE_CHECKING:
    from relay.deliver.connect import Client
    from relay.oauth.tokens import Tokens

MECHANISMS = ("xoauth2", "oauthbearer")
MAX_CHALLENGE = 300  # characters of what is told of it


class Refused(Failure):
    """The upstream refused this token: 535 is said of credentials (RFC 4954 §6), 454 of a passing trouble."""

    def __init__(self, reply: Reply, token: str) -> None:
        super().__init__(Stage.AUTH, reply)
        self.token = token


async def token(tokens: Tokens) -> str:
    """One that is good; that there is none is a login that failed. Raises Failure."""
    from relay.oauth.tokens import TokenError

    try:
        return await tokens.token()
    except TokenError as error:
        raise Failure(Stage.AUTH, Reply(0, clean(str(error)))) from None


async def renewed(tokens: Tokens, refused: Refused) -> bool:
    """Whether there is another token now, after one was refused. Raises Failure."""
    from relay.oauth.tokens import TokenError

    try:
        return await tokens.after_refusal(refused.token)
    except TokenError as error:
        raise Failure(Stage.AUTH, Reply(0, clean(f"{error}; the one before was refused: {refused.reply}"))) from None


async def login(client: Client, account: Account, host: str, username: str, tokens: Tokens | None) -> None:
    """One mechanism, once. Raises Failure, SMTPException, OSError; none tells the token."""
    assert account.oauth2 is not None and tokens is not None
    mechanism = _mechanism(client.server_auth_methods, account.oauth2.mechanism)
    # Asked for again: another session's may have been refused and renewed while this one was dialled.
    shown = await token(tokens)
    said = xoauth2(username, shown) if mechanism == "xoauth2" else oauthbearer(username, shown, host, account.port)
    timeout = TIMEOUTS[Stage.AUTH]
    response = await client.execute_command(b"AUTH", mechanism.upper().encode(), said, timeout=timeout)
    why = ""
    if response.code == 334:  # an error, in JSON; the refusal itself comes after our answer to it
        why = _challenge(response.message)
        answer = b"" if mechanism == "xoauth2" else base64.b64encode(b"\x01")  # RFC 7628 §3.2.3
        response = await client.execute_command(answer, timeout=timeout)
    if response.code == 235:
        return tokens.worked(shown)
    text = hidden(f"{response.message} ({why})" if why else response.message, said.decode(), shown)
    if response.code == 535:
        raise Refused(Reply.of(535, text), shown)
    raise SMTPAuthenticationError(response.code, text)


def _mechanism(offered: list[str], wanted: str) -> str:
    for mechanism in (wanted,) if wanted else MECHANISMS:
        if mechanism in offered:
            return mechanism
    names = wanted.upper() if wanted else "neither XOAUTH2 nor OAUTHBEARER"
    what = f"does not offer {names}, which `mechanism` of this account wants" if wanted else f"offers {names}"
    raise Failure(
        Stage.AUTH,
        Reply(0, f"upstream {what} ({' '.join(offered) or 'no login at all'}); a password is never tried instead"),
    )


def xoauth2(username: str, token: str) -> bytes:
    """developers.google.com/workspace/gmail/imap/xoauth2-protocol, in base64."""
    return base64.b64encode(f"user={username}\x01auth=Bearer {token}\x01\x01".encode())


def oauthbearer(username: str, token: str, host: str, port: int) -> bytes:
    """RFC 7628 §3.1, behind the header of GS2 (RFC 5801 §4), in base64."""
    name = username.replace("=", "=3D").replace(",", "=2C")
    return base64.b64encode(f"n,a={name},\x01host={host}\x01port={port}\x01auth=Bearer {token}\x01\x01".encode())


def _challenge(text: str) -> str:
    """`status 400, schemes Bearer, scope …` of the JSON that a server says in base64 with its refusal."""
    try:
        raw = base64.b64decode(text, validate=True).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return ""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return clean(raw)[:MAX_CHALLENGE]
    if not isinstance(found, dict):
        return clean(raw)[:MAX_CHALLENGE]
    parts = [f"{key} {value}" for key, value in found.items() if isinstance(value, str | int)]
    return clean(", ".join(parts))[:MAX_CHALLENGE]
