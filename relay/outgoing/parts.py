"""Where the parts of a message lie: its header blocks, bodies and what stands between them, as places. Pure.

Why not the stdlib's parser: it keeps no octets (a part that it writes again may be folded, ended or padded otherwise, and
whatever was signed upstream is broken), it takes seconds for ten thousand parts, and gives up on deep nesting. What this one
finds is what that one finds; but all that it says is where. It goes from the outside in, as RFC 2046 §5.1.2 wants it: the
boundary of an outer part ends all inner ones. There is no recursion, and each level goes over its octets once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from enum import Enum, auto
from functools import lru_cache

from relay.outgoing.octets import CRLF, Source, Unconvertible

MAX_PARTS = 20_000  # and what lies between them
MAX_DEPTH = 30
MAX_HEAD = 256 * 1024
MAX_TYPE = 2000  # octets of a Content-Type that are read: the stdlib's reader is quadratic
MAX_PARAMETERS = 50
MAX_FALSE = 20_000  # lines that begin as a boundary does and are none
_TOO_MANY = f"it has more than {MAX_PARTS} parts"

# As the stdlib's parser has it: whatever has a colon is a field.
_FIELDS = re.compile(rb"(?:>?From [^\r\n]*+(?:\r\n|\Z))?+(?:(?:[!-9;-~]*+[ \t]*+:|[ \t])[^\r\n]*+(?:\r\n|\Z))*+")
_BEGINS = re.compile(rb">?From |[!-9;-~]*+[ \t]*+:|[ \t]")
_TYPE = re.compile(rb"(?im)^content-type[ \t]*:([^\r\n]*+(?:\r\n[ \t][^\r\n]*+)*+)")
_ENCODING = re.compile(rb"(?im)^content-transfer-encoding[ \t]*:([^\r\n]*+(?:\r\n[ \t][^\r\n]*+)*+)")
_UNPRINTABLE = re.compile(r"[^!-~]")
_BEHIND = re.compile(rb"(--)?+[ \t]*+(?:\r\n|\Z)")

_MESSAGES = ("message/rfc822", "message/news")
# RFC 6532 §3.7 and RFC 6533 let these be encoded.
_GLOBAL = tuple(f"message/global{kind}" for kind in ("", "-headers", "-delivery-status", "-disposition-notification"))
_FIELD_LISTS = tuple(
    f"message/{kind}" for kind in ("delivery-status", "disposition-notification", "feedback-report", "tracking-status")
)


class Kind(Enum):
    LEAF = auto()  # content, which may be encoded
    MULTIPART = auto()
    MESSAGE = auto()  # holds one entity
    FIELDS = auto()  # text like a header block, which may not be encoded (RFC 3464 §2.1)
    SEALED = auto()  # may not be changed within
    BETWEEN = auto()  # before a multipart's first part, or behind its last


@dataclass(slots=True)
class Part:
    """[start, body) is its header block with the empty line, [body, end) its content; of the message itself `start` is `body`."""

    kind: Kind
    name: str  # "2.1": the first one within the second; "": the message itself
    parent: int  # its place in the list; -1: none
    depth: int
    start: int
    body: int
    end: int
    root: bool = False  # it is a message: its own, or one that lies in another
    separated: bool = True  # an empty line ends its header block
    type: str = "text/plain"
    typed: bool = True
    encoding: str = ""
    why: str = ""  # of a sealed one
    boundary: bytes = b""


@lru_cache(maxsize=256)
def _said(value: bytes) -> tuple[str, bytes]:
    """The type and the boundary of a Content-Type; empty: it has none that can be read."""
    field = Message()
    field["Content-Type"] = value.replace(CRLF, b"").decode("latin-1")
    type_ = _UNPRINTABLE.sub("?", field.get_content_type())[:80]
    if not type_.startswith("multipart/") or value.count(b";") > MAX_PARAMETERS:
        return type_, b""
    try:
        boundary = field.get_boundary() or ""
    except (ValueError, LookupError):  # a charset of RFC 2231 that is none for text
        boundary = ""
    return type_, boundary.encode("latin-1", "replace")


def split(head: bytes, source: Source) -> list[Part]:
    """The parts of a message in the order in which they lie. Raises Unconvertible for too many."""
    top = Part(Kind.LEAF, "", -1, 0, 0, 0, source.size, root=True)
    _label(top, head, "text/plain")
    parts: list[Part] = []
    todo = [top]
    while todo:
        part = todo.pop()
        if part.kind is Kind.BETWEEN:
            parts.append(part)
            continue
        if part is not top:
            _read(part, source)
        here = len(parts)
        parts.append(part)
        if here >= MAX_PARTS:
            raise Unconvertible(_TOO_MANY)
        if part.boundary:
            _check(part, parts)
        if part.kind in (Kind.MULTIPART, Kind.MESSAGE) and part.depth >= MAX_DEPTH:
            part.kind, part.why = Kind.SEALED, f"a part that is nested deeper than {MAX_DEPTH}"
        elif part.kind is Kind.MULTIPART:
            inner = list(_inner(part, here, source))
            if not inner:
                part.kind, part.why = Kind.SEALED, f"{part.type} whose boundary begins no part"
            todo += reversed(inner)
        elif part.kind is Kind.MESSAGE:
            place = part.body, part.body, part.end
            todo.append(Part(Kind.LEAF, _below(part, 1), here, part.depth + 1, *place, root=True))
    return parts


def whole(head: bytes) -> bool:
    """Has a header block nothing but fields? Behind what is none some readers see the body."""
    found = _FIELDS.match(head)
    return found is not None and found.end() == len(head)


def _check(part: Part, parts: list[Part]) -> None:
    """That a line of its boundary is no end of a multipart around it, nor the other way round: readers differ in whose it is.

    Raises Unconvertible.
    """
    mine, above = part.boundary, part.parent
    while above >= 0:
        other = parts[above].boundary
        if other and mine != other and mine.removesuffix(b"--") == other.removesuffix(b"--"):
            raise Unconvertible(f"the boundary of {part.type} may be taken for that of what it lies in")
        above = parts[above].parent


def _below(part: Part, number: int) -> str:
    return f"{part.name}.{number}" if part.name else str(number)


def _read(part: Part, source: Source) -> None:
    """Finds where its header block ends, and reads it."""
    size = 4096
    while True:
        block = source.cut(part.start, min(part.start + size, part.end))
        found = _FIELDS.match(block)
        end = found.end() if found else 0
        complete = part.start + len(block) == part.end
        if complete or (end < len(block) and block.find(CRLF, end) >= 0):
            break
        if size >= MAX_HEAD:
            if end == len(block) or _BEGINS.match(block, end):
                raise Unconvertible(f"part {part.name} has a header block of more than {MAX_HEAD // 1024} KiB")
            break
        size *= 8
    part.separated = block.startswith(CRLF, end)
    part.body = part.start + end + 2 * part.separated
    _label(part, block[:end], part.type)


def _label(part: Part, head: bytes, default: str) -> None:
    """What its header block says of it."""
    found = _TYPE.search(head)
    part.typed = found is not None
    encoding = _ENCODING.search(head)
    if encoding:
        words = encoding[1].replace(b'"', b"").lower().split()
        part.encoding = words[0].rstrip(b";").decode("latin-1") if words else ""
    part.type, part.boundary = _said(found[1][:MAX_TYPE].lstrip(b" \t")) if found else (default, b"")
    if found and len(found[1]) > MAX_TYPE:
        part.boundary = b""  # it may have been cut
    part.kind, part.why = _kind(part)


def _kind(part: Part) -> tuple[Kind, str]:
    main = part.type.partition("/")[0]
    if part.type in ("multipart/signed", "multipart/encrypted"):
        return Kind.SEALED, f"{part.type}, which must stay as it is (RFC 1847)"
    if main == "multipart":
        none = f"{part.type} without a boundary that can be read"
        return (Kind.MULTIPART, "") if part.boundary else (Kind.SEALED, none)
    if main != "message" or part.type in _GLOBAL:  # RFC 6532 §3.7, RFC 6533: they may be encoded
        return Kind.LEAF, ""
    if part.encoding in ("base64", "quoted-printable"):
        # Against RFC 2045 §6.4, but it is done: some readers decode it, others read what is there.
        return Kind.SEALED, f"{part.type} with an encoding that it must not have"
    if part.type in _MESSAGES:
        return Kind.MESSAGE, ""
    return (Kind.FIELDS, "") if part.type in _FIELD_LISTS else (Kind.SEALED, f"{part.type}, which must not be encoded")


def _inner(part: Part, here: int, source: Source) -> Iterator[Part]:
    """What a multipart holds, in its order; nothing where its boundary does not begin one."""
    delimiters = list(_delimiters(source, part))
    if not delimiters or delimiters[0][2]:
        return
    last = part.end
    if last == source.size and not delimiters[-1][2] and source.cut(last - 2, last) == CRLF:
        last -= 2  # a line end at the end of all is no content, as if the last boundary stood behind it
    begins = [part.body, *(end for _, end, _ in delimiters)]
    ends = [*(start for start, _, _ in delimiters), last]
    type_ = "message/rfc822" if part.type == "multipart/digest" else "text/plain"  # RFC 2046 §5.1.5
    for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        between = number == 0 or (number == len(delimiters) and delimiters[-1][2])
        kind, name = (Kind.BETWEEN, part.name) if between else (Kind.LEAF, _below(part, number))
        yield Part(kind, name, here, part.depth + 1, begin, begin, max(begin, end), type=type_)


def _delimiters(source: Source, part: Part) -> Iterator[tuple[int, int, bool]]:
    """RFC 2046 §5.1.1: where each begins (with the line end before it) and ends, and if it is the last one.

    A line is one if it has nothing but `--`, the boundary, maybe `--`, and blanks.
    """
    mark = b"--" + part.boundary
    needle = CRLF + mark
    count = false = 0
    first = part.body == 0 and source.cut(0, len(mark)) == mark  # nothing stands before it
    at = -2 if first else source.find(needle, max(part.body - 2, 0), part.end)
    while at != -1:
        behind = at + len(needle)
        tail = source.cut(behind, min(behind + 1000, part.end))
        found = _BEHIND.match(tail)
        if found and (found.end() < len(tail) or behind + len(tail) == part.end or tail.endswith(CRLF)):
            end = behind + found.end()
            count += 1
            if count > MAX_PARTS:
                raise Unconvertible(_TOO_MANY)
            yield at, end, found[1] is not None
            if found[1]:
                return
            behind = end - 2 if found[0].endswith(CRLF) else end
        else:
            false += 1
            if false > MAX_FALSE:
                raise Unconvertible("too many lines begin as a boundary does")
        at = source.find(needle, behind, part.end)
