"""What a message says of itself: its header block, read once, capped, in linear time. Pure.

The only reader of `X-Relay-*`. Only the header block is parsed, and no more of it than we act on; what is kept is kept
byte for byte, but for what others would read in another way than we do: see `repair`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.utils import getaddresses, parsedate_to_datetime
from functools import lru_cache

from relay.envelope import AddressError, parse_address
from relay.repair import (
    CONTROLS,
    FIELD,
    LONGEST_NAME,
    MBOX,
    ONCE,
    OPTION_PREFIX,
    REMOVED,
    Fault,
    Outcome,
    line_at,
    repair,
    shows,
)

MAX_HEAD = 256 * 1024
MAX_FIELDS = 5000
MAX_HOPS = 50
MAX_VALUES = 50  # of one name that a rule may look at
MAX_VALUE = 1000  # characters of a value that a rule may look at

# Lines of an mbox file count only where a field follows: else they are text that begins with "From".
_BEGIN = re.compile(rb"(?:" + MBOX + rb"[^\r\n]*\r\n)*+" + FIELD)
_END = re.compile(rb"\r\n(?![ \t]|" + FIELD + rb")")
_NAME = re.compile(rb"[!-9;-~]{1,200}")
MAX_NAMES, MAX_NAME = 2000, 100  # that are remembered, and bytes of one
_SIMPLE_FROM = re.compile(r'[^"(),:;<>@]*<([^\s<>"(),:;@]+@[^\s<>"(),:;@]+)>\s*')
_BARE_FROM = re.compile(r'\s*([^\s<>"(),:;@]+@[^\s<>"(),:;@]+)\s*')
_OPTIONS = {
    "x-relay-class": "class",
    "x-relay-priority": "priority",
    "x-relay-send-at": "send_at",
    "x-relay-tag": "tag",
    "x-relay-idempotency-key": "idempotency_key",
    "x-relay-route": "route",
}
PRIORITIES = {"immediate": 0, "high": 1, "normal": 2, "low": 3, "0": 0, "1": 1, "2": 2, "3": 3}
SAFE_OPTION = re.compile(r"[\x20-\x7e\u00a0-\U0010ffff]{1,200}")


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
    has_from: bool
    has_date: bool
    has_message_id: bool
    hops: int
    options: dict[str, str]  # of X-Relay-*: option -> value, as written
    unknown: tuple[str, ...]  # X-Relay-* that mean nothing
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)  # (lower-case name, value as written)
    faults: list[Fault] = field(default_factory=list)  # what was put right in it, or has to be refused
    author: bytes = b""  # a From that was missing, to go in front

    def add_from(self, address: str) -> None:
        """Names an author where nobody is named; it counts as if it had been said."""
        value = f" <{address}>".encode()
        self.author, self.from_ = b"From:" + value + b"\r\n", address
        self.fields.append((b"from", value))

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

    It starts after the first empty line, or with the first line that is neither a field nor goes on with one: that is how
    receivers read it. 0: there is no header at all; RFC 5322 wants one, applications forget it, and ours goes in front.
    `complete` False: more content follows, of which at least MAX_HEAD is here.
    """
    if content.startswith(b"\r\n"):
        return _ended(content, 2)
    begin = _BEGIN.match(content, 0, MAX_HEAD)
    if begin is None:
        return _ended(content, 0)
    limit = MAX_HEAD + 4
    end = _END.search(content, begin.end(), limit)
    start = end.end() if end else len(content)
    line = content.find(b"\r\n", start, limit)
    if line == start:
        return start + 2
    # Of a line that the limit cuts it must be seen whether it is a field.
    unknown = end is None or (line < 0 and min(limit, len(content)) - start < LONGEST_NAME)
    if unknown and (len(content) > limit or not complete):
        raise BadMessage(
            552, "5.3.4", f"header block is larger than {MAX_HEAD // 1024} KiB or has no empty line after it"
        )
    return _ended(content, start)


def _ended(content: bytes, start: int) -> int:
    """`start`, where the header ends otherwise than it should. Raises BadMessage if that would show what is always removed."""
    text = shows(content, start, MAX_HEAD)
    if text:
        raise BadMessage(554, "5.6.0", text)
    return start


class _Names(dict[bytes, tuple[bytes, bool] | None]):
    """Field names as written -> (in lower case, is it kept), or None: no name, or no clean one. The same few come again."""

    def __missing__(self, written: bytes) -> tuple[bytes, bool] | None:
        known = None
        if _NAME.fullmatch(written):
            name = written.lower()
            known = name, name not in REMOVED and not name.startswith(OPTION_PREFIX)
        if len(written) <= MAX_NAME:
            if len(self) >= MAX_NAMES:
                self.clear()
            self[written] = known
        return known


_NAMES = _Names()


def read_head(head: bytes) -> Head:
    """Reads a header block, as `split` cuts it off. Raises BadMessage for one with too many lines or hops (RFC 5321 §6.3)."""
    lines = head.split(b"\r\n")
    if len(lines) > MAX_FIELDS:
        raise BadMessage(552, "5.3.4", f"header block has more than {MAX_FIELDS} lines")
    # The quickest way to see that there is no control character is to delete them all.
    found = _read(lines) if len(head.translate(None, CONTROLS)) == len(head) else None
    if found is None:
        lines, faults = repair(lines)
        found = _read(lines)
        assert found is not None
        found.faults = faults
    if found.hops > MAX_HOPS:
        raise BadMessage(554, "5.4.6", f"mail loop: {found.hops} Received headers, {MAX_HOPS} are allowed")
    return found


def _read(lines: list[bytes]) -> Head | None:
    """None: something is odd about it."""
    kept: list[bytes] = []
    fields: list[tuple[bytes, bytes]] = []
    keep_last = True
    removed = False
    for line in lines:
        if not line:
            break
        if line[0] in b" \t":
            if line.isspace() or not fields:
                return None
            if keep_last:
                kept.append(line)
            name, value = fields[-1]
            if len(value) < 4 * MAX_VALUE:  # enough for a rule; more would make this quadratic
                fields[-1] = (name, value + b"\r\n" + line)
            continue
        colon = line.find(b":")
        known = _NAMES[line[:colon]] if colon > 0 else None
        if known is None:
            return None
        name, keep_last = known
        fields.append((name, line[colon + 1 :]))
        if keep_last:
            kept.append(line)
        else:
            removed = True
    kept += (b"", b"")
    return _summary(b"\r\n".join(kept), fields, removed)


def _summary(kept: bytes, fields: list[tuple[bytes, bytes]], removed: bool) -> Head | None:
    by_name = dict(fields)
    if len(by_name) < len(fields):
        once = [name for name, _ in fields if name in ONCE]
        if len(set(once)) < len(once):
            return None
    author = by_name.get(b"from")
    if author is not None and not author.strip():
        return None
    found = Head(kept, "", author is not None, b"date" in by_name, b"message-id" in by_name, 0, {}, (), fields)
    if b"received" in by_name:
        found.hops = sum(name == b"received" for name, _ in fields)
    if removed:
        _options(found)
    if author is not None:
        found.from_ = _first_address(author)
    return found


def faults(head: Head, raw: bytes, more: bool) -> list[Fault]:
    """All that is wrong with a header block: what its fields show, and what only `raw`, as it came, does. `more`: there is a body."""
    found = head.faults[:]
    if more and raw != b"\r\n" and not raw.endswith(b"\r\n\r\n"):
        line = line_at(raw, len(raw))
        text = f"line {line}: no header field, nor empty; end the header with an empty line (RFC 5322 section 2.1)"
        found.append(Fault("not_a_field", line, text))
    if not head.has_from:
        found.append(Fault("no_from", 1, "the header has no From, or an empty one; add one (RFC 5322 section 3.6)"))
    elif not head.from_:
        text = "From names no address that can be read; write it as name@domain (RFC 5322 section 3.6.2)"
        found.append(Fault("unread_from", 1, text, Outcome.LEFT))
    return found


def _options(found: Head) -> None:
    unknown = []
    for name, value in found.fields:
        if name.startswith(OPTION_PREFIX):
            if option := _OPTIONS.get(name.decode("ascii")):
                found.options[option] = _text(value)
            else:
                unknown.append(name.decode("ascii")[:60])
    found.unknown = tuple(unknown)


def _first_address(value: bytes) -> str:
    """A long one comes once: remembered, two thousand of them would take half a gigabyte."""
    return _usual_address(value) if len(value) <= MAX_VALUE else from_address(_text(value))


@lru_cache(maxsize=2048)
def _usual_address(value: bytes) -> str:
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

    def under(self, other: Options) -> Options:
        """With all that another one says."""
        if self is _NONE:
            return other
        said = {f.name: value for f in fields(other) if (value := getattr(other, f.name)) not in ("", None)}
        return replace(self, **said)


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
        if not SAFE_OPTION.fullmatch(value):
            raise BadMessage(
                554, "5.6.0", f"X-Relay-{name.title().replace('_', '-')} wants 1 to 200 printable characters"
            )
    priority = None
    if "priority" in asked:
        priority = PRIORITIES.get(asked["priority"].lower())
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
