"""What a provider's webhook comes to, and what its readers share: who calls, what is refused, how values are read. Pure.

Nobody's JSON is trusted in its shape: a value of another type than its documentation says counts as not there.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from relay.envelope import AddressError, parse_address, parse_queue_id, queue_id
from relay.policy.bounces import Reason, Verdict, classify
from relay.policy.networks import in_networks
from relay.reply import clean
from relay.returned import Finding, Kind

KEY = "relay"  # what our ids are called among a message's metadata

MOST_TEXT = 2000  # characters of a value that are looked at
_TOKEN = re.compile(r"[A-Za-z2-7]{40}", re.ASCII)
_OUR_ID = re.compile(r"<?([0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{11})@[A-Za-z0-9.-]{1,255}>?", re.ASCII)
_GONE = frozenset({Reason.USER_UNKNOWN, Reason.HOST_UNKNOWN, Reason.NOT_ACCEPTED, Reason.MOVED})


class Unverified(Exception):
    """It is not the provider who calls, or nobody can tell; the text is for our log, and holds no secret."""


class Unreadable(Exception):
    """Nothing that the provider's documentation knows; the text is for our log."""


class Later(Exception):
    """What it takes to verify is not at hand just now: the provider shall come again."""


@dataclass(frozen=True, slots=True)
class Said:
    """One thing that a provider says of one recipient. `once`: by what it is known when it comes again."""

    finding: Finding
    once: str


@dataclass(frozen=True, slots=True)
class Keys:
    """What a provider is known by, as it is now: the values, not where they stand."""

    topics: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()  # networks; empty: any
    public_key: str = field(default="", repr=False)
    signing_key: str = field(default="", repr=False)
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Call:
    """A request. `headers`: names in lower case, the first value of each. `now`: epoch seconds."""

    headers: Mapping[str, str]
    body: bytes
    client: str
    now: float


# -- who calls


def from_there(keys: Keys, client: str) -> None:
    """Raises Unverified."""
    if keys.clients and not in_networks(client, keys.clients):
        raise Unverified("its address is in none of `clients`")


def same(given: str, wanted: str) -> bool:
    """In the same time whatever they have in common. Nothing is the same as nothing."""
    return bool(wanted) and hmac.compare_digest(_digest(given), _digest(wanted))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def basic(keys: Keys, headers: Mapping[str, str]) -> None:
    """RFC 7617. Raises Unverified."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        raise Unverified("no login")
    try:
        name, colon, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        raise Unverified("a login that can't be read") from None
    good = same(name, keys.username) & same(password, keys.password)
    if not colon or not good:
        raise Unverified("another login")


def bearer(keys: Keys, headers: Mapping[str, str]) -> None:
    """RFC 6750 §2.1. Raises Unverified."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not same(value.strip(), keys.token):
        raise Unverified("no token, or another one")


def fresh(at: float, now: float, window: float) -> None:
    """Raises Unverified of what was signed longer ago than `window` seconds, or is of a time to come."""
    if not now - window <= at <= now + 300.0:
        raise Unverified("signed too long ago, or in a time to come")


# -- values


def read_json(body: bytes) -> Any:
    """Raises Unreadable."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise Unreadable("no JSON") from None


def _no_number(text: str) -> None:
    raise ValueError(text)  # NaN and Infinity are Python's own (RFC 8259 §6)


def obj(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """Those of a list; of one alone, that."""
    found = value if isinstance(value, list) else [value]
    return [one for one in found if isinstance(one, dict)]


def text(value: Any, most: int = MOST_TEXT) -> str:
    """A string on one line, or a number as one; empty of all else."""
    if isinstance(value, str):
        return " ".join(value[:most].encode("utf-8", "replace").decode("utf-8").split())
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63 else ""


def seconds(value: Any) -> float | None:
    """Epoch seconds out of a number, of a number in text, or of a date (RFC 3339); None: there is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        found = float(value) if abs(value) < 1e15 else -1.0
    elif isinstance(value, str) and len(value) < 64:
        try:
            found = float(value) if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", value) else _date(value)
        except (ValueError, OverflowError):
            return None
    else:
        return None
    return found if 0 < found < 1e11 else None


def _date(value: str) -> float:
    # Postmark writes seven digits of a second; Python reads six.
    made = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", value))
    return (made if made.tzinfo else made.replace(tzinfo=UTC)).timestamp()


def once(*parts: str) -> str:
    """A key of bounded length out of what tells one thing from another."""
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def address(value: Any) -> str:
    """A mailbox, with or without a name before it; empty: it is none."""
    found = value.strip() if isinstance(value, str) and len(value) < 400 else ""
    if found.endswith(">") and "<" in found:
        found = found[found.rindex("<") + 1 : -1]
    try:
        return parse_address(found)
    except AddressError:
        return ""


# -- which message


@dataclass(frozen=True, slots=True)
class Ids:
    """Of our message, as its metadata or header gives them; claimed, not proven."""

    queue_id: str = ""
    token: str = ""
    message_id: str = ""

    @classmethod
    def of(cls, ours: Sequence[Any], message_ids: Sequence[Any] = ()) -> Ids:
        """`ours`: values of what we may have put in: a queue id or a token. Whatever is neither counts as nothing."""
        found, token, message_id = "", "", ""
        for value in ours:
            given = text(value, 200)
            if _TOKEN.fullmatch(given):
                token = token or given.lower()
            else:
                found = found or _queue_id(given)
        for value in message_ids:
            given = text(value, 998)
            if not given:
                continue
            message_id = message_id or (given if given.startswith("<") else f"<{given}>")
            if match := _OUR_ID.fullmatch(given):
                found = found or _queue_id(match[1])
        return cls(found, token, message_id)


def _queue_id(given: str) -> str:
    try:
        number = parse_queue_id(given)
    except ValueError:
        return ""
    return queue_id(number) if number < 1 << 55 else ""


# -- what it means


def judged(
    status: str, words: str, *, sure: Reason | None = None, likely: Reason | None = None, temporary: bool = False
) -> Verdict:
    """`sure`: what the provider's own code says beyond doubt; `likely`: what it means where the other server's words say nothing.

    `temporary`: the provider calls it soft, so hard it is not.
    """
    found = classify(status, 0, words, "failed") if sure is None else None
    reason = sure if found is None else found.reason
    assert reason is not None
    if reason is Reason.UNKNOWN and likely is not None:
        reason = likely
    if found is not None and not found.class_:  # a report of failure that quotes 250
        reason = likely or Reason.UNKNOWN
    if reason in _GONE:
        soft = temporary or (found is not None and found.class_ == "soft" and found.reason is reason)
        return Verdict("soft" if soft else "hard", reason)
    if reason is Reason.UNKNOWN and not temporary:
        return Verdict("undetermined", reason)
    return Verdict("soft", reason)


def bounce(
    recipient: str,
    ids: Ids,
    verdict: Verdict,
    *,
    status: str = "",
    words: str = "",
    remote: str = "",
    reporter: str = "",
    sender: str = "",
    at: float | None = None,
    action: Literal["failed", "delayed"] = "failed",
) -> Finding:
    # What is only delayed is no bounce yet: it has a reason, and no class.
    return Finding(
        Kind.BOUNCE,
        recipient,
        status=status if re.fullmatch(r"[245]\.\d{1,3}\.\d{1,3}", status, re.ASCII) else "",
        class_=verdict.class_ if action == "failed" else "",
        reason=verdict.reason.value,
        action=action,
        diagnostic=clean(words),
        remote=clean(remote),
        reporter=clean(reporter),
        queue_id=ids.queue_id,
        token=ids.token,
        message_id=ids.message_id,
        sender=sender,
        at=at,
    )


def complaint(
    recipient: str, ids: Ids, *, reason: str = "abuse", reporter: str = "", sender: str = "", at: float | None = None
) -> Finding:
    return Finding(
        Kind.COMPLAINT,
        recipient,
        reason=clean(reason)[:100],
        reporter=clean(reporter),
        queue_id=ids.queue_id,
        token=ids.token,
        message_id=ids.message_id,
        sender=sender,
        at=at,
    )


def unsubscribe(recipient: str, ids: Ids, *, at: float | None = None) -> Finding:
    return Finding(
        Kind.UNSUBSCRIBE,
        recipient,
        queue_id=ids.queue_id,
        token=ids.token,
        message_id=ids.message_id,
        at=at,
    )
