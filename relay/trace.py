"""The fields that are put in front of a message that was taken in: which way it came, and what it lacked. Pure."""

from __future__ import annotations

import re
from email.utils import formatdate
from functools import lru_cache

from relay.submission import Head


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    """RFC 5322 §3.3, in local time; many messages share a second."""
    return formatdate(second, localtime=True)


_SAFE_NAME = re.compile(r"[^A-Za-z0-9.:_\-\[\]]")


def prefix(head: Head, *, queue_id: str, hostname: str, helo: str, client: str, protocol: str, now: float) -> bytes:
    """What goes in front of the kept header: Received (RFC 5321 §4.4), and From, Date and Message-ID where they are missing.

    No recipient is named in Received: it would show one Bcc recipient to another.
    """
    date = _date(int(now))
    text = f"{_received(helo, client, hostname, protocol)} id {queue_id};\r\n\t{date}\r\n"
    if not head.has_date:
        text += f"Date: {date}\r\n"
    if not head.has_message_id:
        text += f"Message-ID: <{queue_id.lower()}@{hostname}>\r\n"
    return text.encode("ascii", "replace") + head.author


@lru_cache(maxsize=256)
def _received(helo: str, client: str, hostname: str, protocol: str) -> str:
    greeted = _SAFE_NAME.sub("?", helo)[:255] or "unknown"
    literal = f"[IPv6:{client}]" if ":" in client else f"[{client}]" if client else "local"  # a UNIX socket
    return f"Received: from {greeted} ({literal})\r\n\tby {hostname} with {protocol}"
