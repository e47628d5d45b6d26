"""Return paths that name the recipient they were made for, so that what bounces can be told from what was forged. Pure.

A token is the message's number, the recipient's place in it, and a MAC over both: 40 letters and digits of base 32, which
survive whatever a mail system does to upper and lower case, and say nothing of who the recipient is. Without the key nobody
makes one, and of the 2**112 MACs of a message none is found by trying.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence

PREFIX = "bounce"
MIN_KEY = 16  # octets
MAX_MESSAGE, MAX_N = 2**55 - 1, 2**31 - 1
MAX_LOCAL = 64  # RFC 5321 §4.5.3.1.1

_MAC = 14  # octets: 112 bits
# 7 + 4 + 14 octets fill 40 letters to the last bit: one token, one spelling.
_TOKEN = re.compile(r"[A-Za-z2-7]{40}", re.ASCII)
_PURPOSE = b"relay return path 1\x00"


def make(key: bytes, message: int, n: int) -> str:
    """The token of recipient `n` of a message; 40 characters. Raises ValueError for a short key or a number out of range."""
    if not 0 <= message <= MAX_MESSAGE or not 0 <= n <= MAX_N:
        raise ValueError(f"no message {message} or no recipient {n}")
    payload = message.to_bytes(7, "big") + n.to_bytes(4, "big")
    return base64.b32encode(payload + _mac(key, payload)).decode("ascii").lower()


def read(keys: bytes | Sequence[bytes], text: str) -> tuple[int, int] | None:
    """The message and recipient of a token that one of the keys made; None for any other text. Raises ValueError for a short key."""
    if not _TOKEN.fullmatch(text):
        return None
    whole = base64.b32decode(text.upper())
    payload, mac = whole[:-_MAC], whole[-_MAC:]
    good = [hmac.compare_digest(mac, _mac(key, payload)) for key in ([keys] if isinstance(keys, bytes) else keys)]
    if not any(good):
        return None
    message, n = int.from_bytes(payload[:7], "big"), int.from_bytes(payload[7:], "big")
    return (message, n) if message <= MAX_MESSAGE and n <= MAX_N else None


def _mac(key: bytes, payload: bytes) -> bytes:
    if len(key) < MIN_KEY:
        raise ValueError(f"the key for return paths has {len(key)} octets; it must have {MIN_KEY} at least")
    return hmac.digest(key, _PURPOSE + payload, hashlib.sha256)[:_MAC]


def address(token: str, domain: str, prefix: str = PREFIX) -> str:
    """The return path. Raises ValueError where there is no token, or the part before the @ is longer than may be."""
    if not _TOKEN.fullmatch(token):
        raise ValueError("a return path wants the token of its recipient")
    local = f"{prefix}+{token}"
    if len(local) > MAX_LOCAL:
        raise ValueError(f"the return path {prefix}+… is longer than {MAX_LOCAL} octets before its @")
    return f"{local}@{domain}"


def parse_address(text: str, domain: str, prefix: str = PREFIX) -> str | None:
    """The token of an address that `address` made, in lower case; None for any other. Whether it is genuine says `read`."""
    local, at, where = text.rpartition("@")
    name, plus, token = local.rpartition("+")
    if not at or not plus or _plain(where) != _plain(domain) or name.lower() != prefix.lower():
        return None
    return token.lower() if _TOKEN.fullmatch(token) else None


def _plain(domain: str) -> str:
    return domain.lower().removesuffix(".")
