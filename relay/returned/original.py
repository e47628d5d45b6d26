"""The message that a report is about, as far as what came back of its header tells. Pure.

Nothing here is proven: a stranger wrote it, or could have. Whether a token is ours says `relay.outgoing.verp.read`, whether a
queue id fits the recipient says the spool.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz

from relay.envelope import AddressError, parse_address
from relay.outgoing import mailboxes as lists
from relay.returned import parts

Fields = Sequence[tuple[str, str]]  # names in lower case, values unfolded: what `parts.header_fields` gives

MOST_RECIPIENTS = 50
MOST_VALUE = 4000  # characters of a value that are looked at
MAX_ID = 998  # a Message-ID has to fit a line

_WRITTEN = re.compile(
    r"<\s*([^<>\s@]{1,128}@[^<>\s@]{1,255})\s*>|([^\s<>(),;:\"@\[\]]{1,128}@[^\s<>(),;:\"@\[\]]{1,255})"
)
_MESSAGE_ID = re.compile(r"<([^<>\s]{1,900})>")
# As `relay.trace` writes it and few others do: nothing stands between the host and `with`, nor between the id and the date.
_RECEIVED = re.compile(r"\)\s+by\s+[A-Za-z0-9.-]{1,255}\s+with\s+[A-Za-z0-9]{1,20}\s+id\s+([0-9A-HJKMNP-TV-Z]{11});")
_OUR_ID = re.compile(r"<([0-9a-hjkmnp-tv-z]{11})@[A-Za-z0-9.-]{1,255}>")
_TOKEN = re.compile(r"bounce\+([A-Za-z2-7]{40})@", re.IGNORECASE)
# A reader's own provider may take out the return path and leave what a person would click on.
_UNSUBSCRIBE = re.compile(r"unsubscribe[/+=?]{1,2}(?:[a-z]{1,20}=)?([A-Za-z2-7]{40})(?![A-Za-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Original:
    message_id: str = ""  # with its angle brackets
    sender: str = ""  # its reverse-path, else its author; the mailbox alone
    recipients: tuple[str, ...] = ()  # of To and Cc
    queue_id: str = ""  # ours, in our letters
    token: str = ""  # lower case
    subject: str = ""
    author: str = ""  # From

    @classmethod
    def read(cls, fields: Fields) -> Original:
        """Of a header; what is not in it is empty. Never raises."""
        first: dict[str, str] = {}
        for name, value in fields:
            first.setdefault(name, value[:MOST_VALUE])
        author = mailbox(first.get("from", ""))
        message_id = first.get("message-id", "").strip()[:MAX_ID]
        if found := _MESSAGE_ID.search(message_id):
            message_id = found[0]
        return cls(
            message_id,
            mailbox(first.get("return-path", "")) or author,
            tuple(dict.fromkeys(one for name in ("to", "cc") for one in mailboxes(first.get(name, ""))))[
                :MOST_RECIPIENTS
            ],
            queue_id(fields),
            token(fields),
            first.get("subject", "")[:300],
            author,
        )

    @classmethod
    def of(cls, content: bytes) -> Original:
        """Of a part `message/rfc822` or `text/rfc822-headers`."""
        return cls.read(parts.header_fields(parts.split(content.lstrip(b"\r\n"))[0]))


def queue_id(fields: Fields) -> str:
    """The id that a relay like this one gave: of the Received nearest to the reader, else of the Message-ID."""
    for name, value in fields:
        if name == "received" and (found := _RECEIVED.search(value[:MOST_VALUE])):
            return found[1]
    for name, value in fields:
        if name == "message-id" and (found := _OUR_ID.search(value[:MAX_ID])):
            return found[1].upper()
    return ""


def token(fields: Fields) -> str:
    """Of a return path of ours, wherever it is quoted: Return-Path, To, `envelope-from`, `smtp.mailfrom=`, …; empty: in none."""
    for pattern, names in ((_TOKEN, None), (_UNSUBSCRIBE, ("list-unsubscribe", "to"))):
        for name, value in fields:
            if (names is None or name in names) and (found := pattern.search(value[:MOST_VALUE])):
                return found[1].lower()
    return ""


def mailboxes(value: str) -> list[str]:
    """The addresses of a list, without names and comments, in their order; of one that breaks the rules what looks like any."""
    value = value[:MOST_VALUE]
    try:
        return [one.address for one in lists.read(value.encode("utf-8", "replace")) if one.address]
    except lists.Unreadable:
        return [one for found in _WRITTEN.finditer(value) if (one := _address(found[1] or found[2]))][:MOST_RECIPIENTS]


def mailbox(value: str) -> str:
    """The first address; empty: there is none."""
    return next(iter(mailboxes(value)), "")


def date(value: str) -> float | None:
    """RFC 5322 §3.3, and what is read as such; epoch seconds."""
    try:
        parsed = parsedate_tz(value[:100])
        return float(mktime_tz(parsed)) if parsed else None
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def _address(text: str) -> str:
    try:
        return parse_address(text)
    except AddressError:
        return ""
