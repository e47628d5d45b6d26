"""How a batch is written and signed, and what an endpoint's answer means. Pure."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum

FIRST = 1.0  # seconds before the second try
RESERVED = ("content-", "x-relay-", "host", "connection", "transfer-encoding", "expect", "te", "trailer", "upgrade")


class Verdict(Enum):
    TAKEN = "taken"
    REFUSED = "refused"  # it does not take this batch, or one event of it
    TROUBLE = "trouble"  # the batch's fault or the endpoint's: nobody can say
    REST = "rest"  # the endpoint takes nothing now
    GONE = "gone"  # and never will


@dataclass(frozen=True, slots=True)
class Said:
    """What came of handing over one batch."""

    verdict: Verdict
    why: str = ""  # one clean line without a secret; empty: taken
    wait: float = 0.0  # seconds for which it asked


@dataclass(frozen=True, slots=True)
class Item:
    """One event on its way: its JSON, and what orders it."""

    event: int
    message: int  # 0: of none, and in no order
    at: float
    body: str


@dataclass(frozen=True, slots=True)
class Batch:
    endpoint: str
    items: Sequence[Item]

    @property
    def id(self) -> str:
        """The same at each try of the same events, in another run too."""
        text = f"{self.endpoint}:{','.join(str(item.event) for item in self.items)}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def array(self) -> bytes:
        """A JSON array of events, of one too."""
        return f"[{','.join(item.body for item in self.items)}]".encode()

    @property
    def lines(self) -> bytes:
        """One JSON object a line."""
        return "".join(f"{item.body}\n" for item in self.items).encode()


def keys(secret: str) -> tuple[str, ...]:
    """A secret's lines are several: both count while one takes the other's place."""
    return tuple(line.strip() for line in secret.splitlines() if line.strip())


def signature(secrets: Sequence[str], timestamp: int, body: bytes) -> str:
    """`v1=HEX` for each secret, with commas: HMAC-SHA-256 over the timestamp, a dot and the body."""
    signed = f"{timestamp}.".encode() + body
    return ",".join(f"v1={hmac.new(key.encode(), signed, hashlib.sha256).hexdigest()}" for key in secrets)


def meant(status: int, headers: Mapping[str, str], now: float) -> Said:
    """By the status alone. RFC 9110 §15."""
    why, wait = f"it answered {status}", retry_after(headers.get("Retry-After", ""), now)
    match status:
        case _ if 200 <= status < 300:
            return Said(Verdict.TAKEN)
        case 410:
            return Said(Verdict.GONE, why)
        case 400 | 413 | 415 | 422:
            return Said(Verdict.REFUSED, why)
        case 500 | 502 | 503 | 504 if wait:
            return Said(Verdict.REST, why, wait)
        case _ if status >= 500:
            return Said(Verdict.TROUBLE, why)
        case _ if 300 <= status < 400:
            return Said(Verdict.REST, f"{why}, a redirect, which is not followed", wait)
    return Said(Verdict.REST, why, wait)


def retry_after(text: str, now: float) -> float:
    """Seconds (RFC 9110 §10.2.3); 0: it says nothing that can be understood."""
    text = text.strip()[:64]
    if text.isascii() and text.isdecimal():
        return float(int(text))
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # such as a zone that is years away
        return 0.0
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, at.timestamp() - now)


def delay(tries: int, cap: float, chance: float, wait: float = 0.0) -> float:
    """Seconds before the next try, after so many in a row that failed. `chance` in [0, 1): half of it is drawn, so that what
    failed together does not come back together. `wait`: what was asked for, up to `cap`."""
    ceiling = min(cap, FIRST * math.pow(2.0, min(tries - 1, 64)))
    return max(min(wait, cap), ceiling * (1.0 + chance) / 2)


def reserved(header: str) -> bool:
    """Whether a header is ours to set."""
    name = header.lower()
    return any(name.startswith(one) if one.endswith("-") else name == one for one in RESERVED)
