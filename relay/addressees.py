"""Whom a message is for, as its own header says it: the fields of a header block, and the mailboxes in them. Pure.

For those who hand in a message without an envelope (`sendmail -t`, a file in a folder). Imports nothing but the standard
library, for it is on the way of a command that must start at once.

Promises: work is linear, whatever comes; the same answer on every Python; a field that cannot be read whole is refused
(Unreadable), for whoever is left out of it, or taken for somebody else, would be so in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from relay.repair import FIELD, LONGEST_NAME, MBOX, shown

DESTINATIONS = (b"to", b"cc", b"bcc")

_MBOX_LINES = re.compile(rb"(?:" + MBOX + rb"[^\r\n]*\r\n)++(?=" + FIELD + rb")")
_ONE = re.compile(rb"([!-9;-~]{1,200}+)[ \t]{0,50}+:[^\r\n]*+(?:\r\n[ \t][^\r\n]*+)*+(?:\r\n|\Z)")
# Of an address list (RFC 5322 §3.4): what stands whole, a quoted pair, plain text, or one special.
_WHOLE = r'"(?:[^"\\]|\\.)*+"|\[[^\[\]\\\r\n]*+\]'  # a quoted string, a literal
_TOKEN = re.compile(rf'{_WHOLE}|\\.|[^"\\\[(),:;<>]++|.', re.DOTALL)
_ANY_WHOLE = re.compile(_WHOLE, re.DOTALL)
_ODD = re.compile(r'[\s"<>,;:()]')


class Unreadable(ValueError):
    """Why nobody can say whom a header names; for who wrote it."""


class Field(NamedTuple):
    name: bytes  # in lower case
    text: bytes  # all of it, with the CRLF that ends it

    @property
    def value(self) -> str:
        return self.text[self.text.index(b":") + 1 :].decode("utf-8", "surrogateescape")


class Mailbox(NamedTuple):
    address: str  # as written: nobody has looked yet whether it is one
    end: int  # where it ends in the text that it was read from


def begin(content: bytes) -> int:
    """Where the header block begins: behind the lines of an mbox file."""
    found = _MBOX_LINES.match(content)
    return found.end() if found else 0


def read(content: bytes, complete: bool = True) -> tuple[list[Field], int]:
    """The header block of a message with CRLF line ends, and where its text begins, as `submission.split` has it.

    Lines of an mbox file in front are left out. `complete` False: more follows. Raises Unreadable where that hides its end.
    """
    place = begin(content)
    fields = []
    while one := _ONE.match(content, place):
        fields.append(Field(one[1].lower(), one[0]))
        place = one.end()
    if content.startswith(b"\r\n", place):
        return fields, place + 2
    # Of a line that is cut off it must be seen whether it is a field.
    if not complete and (len(content) - place < LONGEST_NAME and content.find(b"\n", place) < 0):
        raise Unreadable(f"its header block is larger than {len(content) // 1024} KiB, or has no empty line after it")
    return fields, place


def mailboxes(text: str) -> list[Mailbox]:
    """Those of an address list, members of groups too. Raises Unreadable."""
    found: list[Mailbox] = []
    parts: list[tuple[str, int]] = []  # of the mailbox that is under way, without its name and its comments
    depth = 0  # of comments
    angle: bool | None = None  # within <>, behind it, or neither
    for token in _TOKEN.finditer(text):
        said, end = token[0], token.end()
        if said in ("(", ")"):
            depth += 1 if said == "(" else -1
            if depth < 0:
                raise Unreadable("a ) without its (")
            if angle is not False:
                parts.append((" ", end))  # a comment parts words as a blank does
        elif depth:
            continue
        elif said == "<" and angle is None:
            parts, angle = [], True
        elif said == ">" and angle:
            angle = False
            parts = parts or [("", end)]  # nothing between them is not the same as nothing at all
        elif angle or said not in (",", ";", ":", "<", ">"):
            if angle is not False:
                parts.append((said, end))
            elif not said.isspace():
                raise Unreadable(f"{said.strip()[:40]!r} after an address")
        elif said == ":":
            parts = []  # the name of a group
        elif said in (",", ";"):
            found += _mailbox(parts)
            parts, angle = [], None
        else:
            raise Unreadable(f"a {said} in the wrong place")
    if depth or angle:
        raise Unreadable(f"a {'(' if depth else '<'} that is not closed")
    return [*found, *_mailbox(parts)]


def _mailbox(parts: list[tuple[str, int]]) -> Iterator[Mailbox]:
    """None of nothing but blanks. Raises Unreadable."""
    address = "".join(said for said, _ in parts).strip()
    if not parts or (not address and parts[-1][0]):
        return
    if address.startswith("@") and ":" in address:
        address = address.partition(":")[2]  # a source route (RFC 5322 §4.4)
    if not address or not address.isprintable() or _ODD.search(_ANY_WHOLE.sub("", address)):
        raise Unreadable(f"{address[:60]!r} is no address; between two there is a comma")
    yield Mailbox(address, next(end - len(said) + len(said.rstrip()) for said, end in reversed(parts) if said.strip()))


def destinations(fields: Iterable[Field]) -> list[str]:
    """Whom To, Cc and Bcc name, each once; of a message that was sent again, whom those of the last time do.

    RFC 5322 §3.6.6: each time puts a block of Resent-* fields in front of the one before. Raises Unreadable.
    """
    asked = _resent(fields) or [(f.name, f) for f in fields]
    found: dict[str, None] = {}
    for name, field in asked:
        if name in DESTINATIONS:
            try:
                text = field.value.encode("utf-8", "surrogateescape").decode("utf-8")
                found |= dict.fromkeys(mailbox.address for mailbox in mailboxes(text))
            except UnicodeDecodeError:
                raise Unreadable(f"{shown(field.text).partition(':')[0]} is not UTF-8") from None
            except Unreadable as error:
                raise Unreadable(f"{shown(field.text).partition(':')[0]} cannot be read: {error}") from None
    return list(found)


def _resent(fields: Iterable[Field]) -> list[tuple[bytes, Field]]:
    """The first block of Resent-* fields, by their names without that."""
    block: list[tuple[bytes, Field]] = []
    for field in fields:
        name = field.name.removeprefix(b"resent-")
        if name != field.name and name not in [known for known, _ in block]:
            block.append((name, field))
        elif block:
            break
    return block
