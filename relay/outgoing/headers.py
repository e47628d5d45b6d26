"""A header block as a list of fields and back, byte for byte, in linear time. Pure.

Promises: `join(split(head)) == head`. What is not touched keeps its case, its folding and its blanks; a line that is no
field at all stays where it stood. A field made here is one field whatever its value says: a value with a line end or a
control character is refused, not repaired.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from email.header import Header
from typing import NamedTuple

MAX_LINE = 998  # octets without its CRLF: RFC 5322 §2.1.1
WIDTH = 76  # what a line that we write has, where its words let it

_NEXT_FIELD = re.compile(rb"(?<=\r\n)(?![ \t])")
_NAME = re.compile(rb"[!-9;-~]+[ \t]*")  # RFC 5322 §2.2, and the blanks before the colon of §4.5.3
_WRITTEN_NAME = re.compile(r"[!-9;-~]{1,75}")
_WORD = re.compile(r" *[^ ]+")
# Those of ASCII and of Latin-1, line separators, halves of characters. A tab is a control character too: no value needs it.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Field(NamedTuple):
    """One field. `name` as it is written, `key` in lower case; both empty for what is no field. `raw` ends with CRLF."""

    name: bytes
    key: bytes
    raw: bytes

    @property
    def value(self) -> bytes:
        """What stands behind the colon, with its line ends, but for the last."""
        return self.raw[self.raw.find(b":") + 1 : -2]


def split(head: bytes) -> list[Field]:
    """The fields of a header block that ends with its empty line. Raises ValueError where that is not its only empty line."""
    if head == b"\r\n":
        return []
    if head.find(b"\r\n\r\n") != len(head) - 4 or head.startswith(b"\r\n"):
        raise ValueError("a header block ends with its first empty line")
    return [_field(raw) for raw in _NEXT_FIELD.split(head[:-2]) if raw]


def _field(raw: bytes) -> Field:
    name = raw[: max(raw.find(b":"), 0)]
    if not _NAME.fullmatch(name):
        return Field(b"", b"", raw)
    name = name.rstrip(b" \t")
    return Field(name, name.lower(), raw)


def join(fields: Iterable[Field]) -> bytes:
    return b"".join([f.raw for f in fields]) + b"\r\n"


def first(fields: Iterable[Field], key: bytes) -> Field | None:
    """The first field with this lower-case name."""
    return next((f for f in fields if f.key == key), None)


def without(fields: Iterable[Field], unwanted: Callable[[bytes], bool]) -> list[Field]:
    """All but the fields whose lower-case name is unwanted; what is no field stays."""
    return [f for f in fields if not (f.key and unwanted(f.key))]


def put(fields: Iterable[Field], new: Field) -> list[Field]:
    """`new` in the place of the first field of its name, and of all others; at the end where there is none."""
    found: list[Field] = []
    done = False
    for field in fields:
        if field.key != new.key:
            found.append(field)
        elif not done:
            found.append(new)
            done = True
    return found if done else [*found, new]


def with_value(field: Field, value: bytes) -> Field:
    """The field with another raw value, its name as it was. The value is the caller's: it comes from a field."""
    return field._replace(raw=field.raw[: field.raw.find(b":") + 1] + value + b"\r\n")


def make(name: str, value: str, *, plain: bool = False) -> Field:
    """A new field, folded at blanks to 76 octets where its words let it; as encoded words (RFC 2047) where it must be.

    `plain`: the value has a structure that encoded words would break; it must be ASCII.
    Raises ValueError for a name that is none, and for a value that is blank, has a control character, or has an ASCII
    word that no line holds.
    """
    if not _WRITTEN_NAME.fullmatch(name):
        raise ValueError(f"{name!a} is no name of a header field")
    if CONTROL.search(value):
        raise ValueError(f"{name}: the value has a control character")
    if not (value := value.strip()):
        raise ValueError(f"{name}: the value is blank")
    plain = plain or (value.isascii() and "=?" not in value)
    text = _fold(name, value) if plain else _encode(name, value)
    if any(len(line) > MAX_LINE for line in text.split("\r\n")):
        raise ValueError(f"{name}: a word of the value is longer than a line may be (RFC 5322 section 2.1.1)")
    raw_name = name.encode("ascii")
    return Field(raw_name, raw_name.lower(), text.encode("ascii") + b"\r\n")


def _fold(name: str, value: str) -> str:
    line, lines = f"{name}:", []
    for found in _WORD.finditer(f" {value}"):
        word = found[0]
        if len(line) + len(word) > WIDTH and line != f"{name}:":
            lines.append(line)
            line = ""
        line += word
    return "\r\n".join([*lines, line])


def _encode(name: str, value: str) -> str:
    """What looks like an encoded word is encoded itself: it shall be read as it was written."""
    encoded = Header(value, "utf-8", maxlinelen=WIDTH, header_name=name).encode(linesep="\r\n")
    return f"{name}: {encoded}"
