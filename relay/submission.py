"""What a message says of itself: its header block, read once, capped, in linear time. Pure.

The only reader of `X-Relay-*`. Only the header block is parsed, and no more of it than we act on; what is kept is kept
byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.utils import formatdate, getaddresses, parsedate_to_datetime
from functools import lru_cache

from relay.envelope import AddressError, parse_address

MAX_HEAD = 256 * 1024
MAX_FIELDS = 5000
MAX_HOPS = 50
MAX_VALUES = 50  # of one name that a rule may look at
MAX_VALUE = 1000  # characters of a value that a rule may look at

_FIELD = re.compile(rb"([!-9;-~]{1,200})[ \t]*:")
_NAME = re.compile(rb"[!-9;-~]{1,200}[ \t]*")
MAX_NAMES, MAX_NAME = 2000, 100  # that are remembered, and bytes of one
_SIMPLE_FROM = re.compile(r'[^"(),:;<>@]*<([^\s<>"(),:;@]+@[^\s<>"(),:;@]+)>\s*')
_BARE_FROM = re.compile(r'\s*([^\s<>"(),:;@]+@[^\s<>"(),:;@]+)\s*')
_REMOVED = (b"bcc", b"resent-bcc")
_OPTION_PREFIX = b"x-relay-"
_OPTIONS = {
    "x-relay-class": "class",
    "x-relay-priority": "priority",
    "x-relay-send-at": "send_at",
    "x-relay-tag": "tag",
    "x-relay-idempotency-key": "idempotency_key",
    "x-relay-route": "route",
}
_PRIORITIES = {"immediate": 0, "high": 1, "normal": 2, "low": 3, "0": 0, "1": 1, "2": 2, "3": 3}
_SAFE_OPTION = re.compile(r"[\x20-\x7e\u00a0-\U0010ffff]{1,200}")


class BadMessage(Exception):
    """Why this message is refused: SMTP code, enhanced code, text for its sender."""

    def __init__(self, code: int, enhanced: str, text: str) -> None:
        super().__init__(text)
        self.code, self.enhanced, self.text = code, enhanced, text


@dataclass(slots=True)
class Head:
    """The header block as it will be kept, and what it said."""

    kept: bytes  # without Bcc and X-Relay-*, with the empty line that ends it
    from_: str
    has_date: bool
    has_message_id: bool
    hops: int
    options: dict[str, str]  # of X-Relay-*: option -> value, as written
    unknown: tuple[str, ...]  # X-Relay-* that mean nothing
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)  # (lower-case name, value as written)

    def headers(self) -> Mapping[str, tuple[str, ...]]:
        """All values by lower-case name, unfolded and clipped, for rules."""
        found: dict[bytes, list[str]] = {}
        for name, value in self.fields:
            values = found.setdefault(name, [])
            if len(values) < MAX_VALUES:
                values.append(_text(value))
        return {name.decode("ascii"): tuple(values) for name, values in found.items()}


def split(content: bytes, complete: bool = True) -> int:
    """Where the body starts in normalised content. Raises BadMessage where the header block is too large.

    `complete` False: more content follows; then no end within MAX_HEAD is an error already.
    """
    if content.startswith(b"\r\n"):
        return 2
    first = content[: content.find(b"\r\n") + 1 or None]
    if content and not _FIELD.match(first) and not first.startswith((b"From ", b">From ")):
        return 0  # no header at all: RFC 5322 wants one, applications forget it; ours goes in front
    end = content.find(b"\r\n\r\n", 0, MAX_HEAD + 4)
    if end >= 0:
        return end + 4
    if len(content) > MAX_HEAD or not complete:
        raise BadMessage(
            552, "5.3.4", f"header block is larger than {MAX_HEAD // 1024} KiB or has no empty line after it"
        )
    return len(content)


class _Names(dict[bytes, tuple[bytes, bool] | None]):
    """Field names as they are written -> (in lower case, is it kept), or None: no name. The same few come again and again."""

    def __missing__(self, written: bytes) -> tuple[bytes, bool] | None:
        known = None
        if _NAME.fullmatch(written):
            name = written.rstrip(b" \t").lower()
            known = name, name not in _REMOVED and not name.startswith(_OPTION_PREFIX)
        if len(written) <= MAX_NAME:
            if len(self) >= MAX_NAMES:
                self.clear()
            self[written] = known
        return known


_NAMES = _Names()


def read_head(head: bytes) -> Head:
    """Reads a header block. Raises BadMessage for one with too many fields or hops (RFC 5321 §6.3)."""
    lines = head.split(b"\r\n")
    if len(lines) > MAX_FIELDS:
        raise BadMessage(552, "5.3.4", f"header block has more than {MAX_FIELDS} lines")
    kept: list[bytes] = []
    fields: list[tuple[bytes, bytes]] = []
    keep_last = True
    for line in lines:
        if not line:
            keep_last = True
            continue
        if line[0] in b" \t":
            if keep_last:
                kept.append(line)
            if fields:
                name, value = fields[-1]
                if len(value) < 4 * MAX_VALUE:  # enough for a rule; more would make this quadratic
                    fields[-1] = (name, value + b"\r\n" + line)
            continue
        colon = line.find(b":")
        known = _NAMES[line[:colon]] if colon > 0 else None
        if known is None:
            keep_last = True
        else:
            name, keep_last = known
            fields.append((name, line[colon + 1 :]))
        if keep_last:
            kept.append(line)
    kept += (b"", b"")
    return _summary(b"\r\n".join(kept), fields)


def _summary(kept: bytes, fields: list[tuple[bytes, bytes]]) -> Head:
    found = Head(kept, "", False, False, 0, {}, (), fields)
    author: bytes | None = None
    unknown = []
    for name, value in fields:
        if name == b"from":
            author = value if author is None else author
        elif name == b"date":
            found.has_date = True
        elif name == b"message-id":
            found.has_message_id = True
        elif name == b"received":
            found.hops += 1
        elif name.startswith(_OPTION_PREFIX):
            if option := _OPTIONS.get(name.decode("ascii")):
                found.options[option] = _text(value)
            else:
                unknown.append(name.decode("ascii")[:60])
    found.unknown = tuple(unknown)
    if found.hops > MAX_HOPS:
        raise BadMessage(554, "5.4.6", f"mail loop: {found.hops} Received headers, {MAX_HOPS} are allowed")
    if author is not None:
        found.from_ = _first_address(author)
    return found


@lru_cache(maxsize=2048)
def _first_address(value: bytes) -> str:
    return from_address(_text(value))


def _text(value: bytes) -> str:
    unfolded = value.replace(b"\r\n", b"") if b"\r\n" in value else value
    return unfolded[: 4 * MAX_VALUE].decode("utf-8", "replace").strip()[:MAX_VALUE]


def decoded(value: bytes) -> str:
    """A Subject as people read it (RFC 2047); as it was written where it can't be read."""
    # The stdlib's parser looks for the end of each encoded word to the end of the text: 256 KB held everything up for a minute.
    text = value.replace(b"\r\n", b"")[: 4 * MAX_VALUE].decode("utf-8", "replace").strip()[: 2 * MAX_VALUE]
    if "=?" not in text:
        return text
    try:
        return str(make_header(decode_header(text)))
    except (HeaderParseError, LookupError, ValueError):
        return text


def from_address(value: str) -> str:
    """The first address of a From header, or the empty string; never raises."""
    found = _SIMPLE_FROM.fullmatch(value) or _BARE_FROM.fullmatch(value)
    if found:
        address = found[1]
    else:
        try:
            address = next((address for _, address in getaddresses([value]) if "@" in address), "")
        except (RecursionError, ValueError, IndexError):
            return ""  # the stdlib's parser gives up on a kilobyte of "(((("
    # It is matched, listed and logged: no control character shall come that far.
    return address if address.isprintable() else ""


_AUTHORS = (b"from", b"sender", b"resent-from", b"resent-sender")
MAX_AUTHORS = 50
MAX_AUTHORS_SIZE = 8000  # of the fields that want the stdlib's parser: it takes a millisecond a kilobyte for some


def authors(head: Head) -> Iterator[str]:
    """Every address of every From and Sender; an empty text for a field that can't be read whole. Never raises."""
    count = size = 0
    for name, value in head.fields:
        if name in _AUTHORS:
            text = value.replace(b"\r\n", b"").decode("utf-8", "replace")
            plain = _SIMPLE_FROM.fullmatch(text) or _BARE_FROM.fullmatch(text)
            size += 0 if plain else len(text)
            # One that is longer has been clipped.
            found = _addresses(text) if len(value) < 4 * MAX_VALUE and size <= MAX_AUTHORS_SIZE else [""]
            count += len(found)
            yield from found
            if count > MAX_AUTHORS:
                yield ""
                return


def _addresses(text: str) -> list[str]:
    one = from_address(text)
    if _SIMPLE_FROM.fullmatch(text) or _BARE_FROM.fullmatch(text):
        return [one]
    try:
        found = [address for _, address in getaddresses([text])]
    except (RecursionError, ValueError, IndexError):
        return [""]
    # What the parser makes nothing of, or no address, another one may take for one that the user must not use.
    return [a if _is_address(a) else "" for a in found] or [""]


def _is_address(text: str) -> bool:
    try:
        return bool(parse_address(text)) and text.isprintable()
    except AddressError:
        return False


@dataclass(frozen=True, slots=True)
class Options:
    """What an application asked for, by headers that its listener honours."""

    class_: str = ""
    priority: int | None = None
    send_at: float | None = None
    tag: str = ""
    idempotency_key: str = ""
    route: str = ""


_NONE = Options()


def read_options(head: Head, honour: frozenset[str], now: float) -> tuple[Options, list[str]]:
    """The honoured options, and what was ignored and why, for the log. Raises BadMessage where one makes no sense."""
    if not head.options and not head.unknown:
        return _NONE, []
    ignored = [f"{name}: unknown" for name in head.unknown]
    ignored += [
        f"x-relay-{name.replace('_', '-')}: not honoured by this listener"
        for name in head.options
        if name not in honour
    ]
    asked = {name: value for name, value in head.options.items() if name in honour}
    for name, value in asked.items():
        if not _SAFE_OPTION.fullmatch(value):
            raise BadMessage(
                554, "5.6.0", f"X-Relay-{name.title().replace('_', '-')} wants 1 to 200 printable characters"
            )
    priority = None
    if "priority" in asked:
        priority = _PRIORITIES.get(asked["priority"].lower())
        if priority is None:
            raise BadMessage(554, "5.6.0", "X-Relay-Priority wants immediate, high, normal, low, or 0 to 3")
    send_at = _instant(asked["send_at"]) if "send_at" in asked else None
    if send_at is not None and send_at > now + 366 * 86400:
        raise BadMessage(554, "5.6.0", "X-Relay-Send-At is more than a year ahead")
    return Options(
        asked.get("class", ""),
        priority,
        send_at,
        asked.get("tag", ""),
        asked.get("idempotency_key", ""),
        asked.get("route", ""),
    ), ignored


def _instant(text: str) -> float:
    """RFC 3339 or an RFC 5322 date, with a zone; epoch seconds."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        try:
            when = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError):
            raise BadMessage(554, "5.6.0", "X-Relay-Send-At wants a date such as 2026-12-01T08:00:00+01:00") from None
    if when.tzinfo is None:
        raise BadMessage(554, "5.6.0", "X-Relay-Send-At wants a time zone, such as Z or +01:00")
    return when.timestamp()


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    """RFC 5322 §3.3, in local time; many messages share a second."""
    return formatdate(second, localtime=True)


_SAFE_NAME = re.compile(r"[^A-Za-z0-9.:_\-\[\]]")


def prefix(head: Head, *, queue_id: str, hostname: str, helo: str, client: str, protocol: str, now: float) -> bytes:
    """What goes in front of the kept header: Received (RFC 5321 §4.4), and Date and Message-ID where they are missing.

    No recipient is named in Received: it would show one Bcc recipient to another.
    """
    date = _date(int(now))
    text = f"{_received(helo, client, hostname, protocol)} id {queue_id};\r\n\t{date}\r\n"
    if not head.has_date:
        text += f"Date: {date}\r\n"
    if not head.has_message_id:
        text += f"Message-ID: <{queue_id.lower()}@{hostname}>\r\n"
    return text.encode("ascii", "replace")


@lru_cache(maxsize=256)
def _received(helo: str, client: str, hostname: str, protocol: str) -> str:
    greeted = _SAFE_NAME.sub("?", helo)[:255] or "unknown"
    literal = f"[IPv6:{client}]" if ":" in client else f"[{client}]" if client else "local"  # a UNIX socket
    return f"Received: from {greeted} ({literal})\r\n\tby {hostname} with {protocol}"
