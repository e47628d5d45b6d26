"""SMTP replies as values, and what a failure means: who suffers from it. Pure.

`classify` is the table of docs/flow.md ("Who suffers"), after Postfix' smtp_trouble.c plus the account.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:\s+|$)")
_UNSAFE = re.compile(r"[^ -~\u00a0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")
_CODE = re.compile(r"[2-5][0-9]{2}")
MAX_TEXT = 500


class Stage(StrEnum):
    """Where in a session something happened."""

    PREPARE = "prepare"  # before anything was said: it is made ready to leave
    RESOLVE = "resolve"
    CONNECT = "connect"
    BANNER = "banner"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    BODY = "body"  # between 354 and the final dot
    DOT = "dot"  # the final dot was sent


class Scope(StrEnum):
    """Who suffers."""

    RECIPIENT = "recipient"
    MESSAGE = "message"
    DESTINATION = "destination"  # all mail to the recipient's domain by this egress
    NEXT_HOP = "next_hop"
    EGRESS = "egress"


class Remedy(StrEnum):
    """What helps an egress that suffers."""

    REST = "rest"  # nothing leaves by it for a time
    SLOW = "slow"  # it is asked less often
    FEWER = "fewer"  # fewer sessions at once


class Result(StrEnum):
    DELIVERED = "delivered"
    SOFT = "soft"  # try again later
    HARD = "hard"  # never again
    DOUBT = "doubt"  # the dot was sent and no reply came: it may have arrived
    RETURNED = "returned"  # nothing was said about it upstream: no attempt
    LATER = "later"  # nothing was said upstream: its destination rests; no attempt
    HELD = "held"  # a rule holds it since the last reload: no attempt


@dataclass(slots=True)  # not frozen, which costs four times as much to make; nobody changes one
class Reply:
    """`code` 0: no reply came, `text` is ours. `enhanced` is RFC 3463's, or empty. Safe in a log line and a header."""

    code: int
    text: str
    enhanced: str = ""

    @classmethod
    def of(cls, code: int, text: str) -> Reply:
        """From what a peer said: any length, any bytes. Several lines become one; control characters go."""
        plain = clean(text)
        found = _ENHANCED.match(plain)
        if not found:
            return cls(code, plain)
        # Continuation lines repeat the enhanced code: RFC 2034 §4.
        enhanced = found[1]
        return cls(code, plain[found.end() :].replace(f" {enhanced} ", " "), enhanced)

    @classmethod
    def parse(cls, text: str) -> Reply:
        """Of what `str` made."""
        code, _, rest = text.partition(" ")
        return cls.of(int(code), rest) if _CODE.fullmatch(code) else cls(0, clean(text))

    def __str__(self) -> str:
        if self.code and self.enhanced and self.text:
            return f"{self.code} {self.enhanced} {self.text}"
        return " ".join(part for part in (str(self.code) if self.code else "", self.enhanced, self.text) if part)


_REMOTE_ID = re.compile(
    r"(?:queued(?: mail)? as |id=|queued\)? ?<|message[ -]id[:=]? ?<?|accepted message )([A-Za-z0-9._@+=$-]{3,100})|"
    r"^(?:ok:?|<)\s*([A-Za-z0-9._@+$-]{8,100})(?![=\w])",
    re.IGNORECASE,
)


def remote_id(text: str) -> str:
    """The next hop's own queue id out of its last reply, or the empty string. Every server words it its own way."""
    found = _REMOTE_ID.search(text)
    return (found[1] or found[2] or "").rstrip(".") if found else ""


def clean(text: str) -> str:
    """One printable line of at most MAX_TEXT characters out of whatever a stranger sent."""
    text = text[: MAX_TEXT * 4]
    if not (text.isascii() and text.isprintable()):
        text = _UNSAFE.sub(" ", text)
    return text.strip()[:MAX_TEXT]


@dataclass(frozen=True, slots=True)
class Trouble:
    """`wait`: so many seconds at least, if anything tells. The rest is known where a provider's own words were understood
    (policy.replies): `means` for operators, and what helps an egress."""

    scope: Scope
    result: Result
    wait: float | None = None
    means: str = ""
    remedy: Remedy = Remedy.REST
    fail_over: bool = True  # the route's next account may take over
    suppress: float = 0.0  # seconds for which the recipient gets nothing more, by a rule of `shaping`


_NEXT_HOP = (Stage.RESOLVE, Stage.CONNECT, Stage.BANNER, Stage.EHLO, Stage.STARTTLS)


def classify(stage: Stage, code: int, *, null_sender: bool = False) -> Trouble:
    """What a failure at `stage` with reply `code` (0: none came) means. RFC 5321 §4.2.1, §4.5.3.1.10, §3.8.

    `null_sender`: a session that is logged in said MAIL FROM:<>, which some providers refuse as if it were not.

    A failed login is never the message's fault: it defers even on 5xx.
    """
    if stage is Stage.AUTH:
        return Trouble(Scope.EGRESS, Result.SOFT)
    if stage is Stage.DOT and code == 0:
        return Trouble(Scope.MESSAGE, Result.DOUBT)
    if stage in _NEXT_HOP or code in (0, 421):
        return Trouble(Scope.NEXT_HOP, Result.SOFT)
    if code == 530 and stage is Stage.MAIL and null_sender:
        return Trouble(Scope.MESSAGE, Result.HARD)
    if code == 530:  # authentication required: the account's trouble, whatever the stage (RFC 4954 §6)
        return Trouble(Scope.EGRESS, Result.SOFT)
    hard = 500 <= code < 600
    if stage is Stage.RCPT:
        # RFC 5321 §4.5.3.1.10: 552 to RCPT means "too many recipients" and is temporary.
        return Trouble(Scope.RECIPIENT, Result.HARD if hard and code != 552 else Result.SOFT)
    return Trouble(Scope.MESSAGE, Result.HARD if hard else Result.SOFT)
