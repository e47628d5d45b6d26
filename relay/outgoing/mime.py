"""A message made what its next hop takes: for one without 8BITMIME without 8-bit octets, for each without too long lines.

Promises: what need not change stays byte for byte: other parts, preambles, the order and folding of fields. What a part
says when it is decoded is the same. The same message gives the same octets at each try, and one that is good already is
given back as it is. Work is linear in the size, and bounded in parts, depth and memory. What RFC 1847 and RFC 2045 §6.4
forbid to touch is not touched: Unconvertible says why, and the message can't go that way (554 5.6.3).

Text becomes quoted-printable while that is the shorter way, everything else base64. Pure but for `convert_file`.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from relay.outgoing import octets, words
from relay.outgoing.octets import CRLF, File, Memory, Source, Unconvertible, long_line
from relay.outgoing.parts import MAX_HEAD, Kind, Part, split, whole

__all__ = ["Converted", "Unconvertible", "convert", "convert_file", "long_line", "needs"]

MAX_TOLD = 20  # changes
MAX_MENDED = 512 * 1024  # octets of header blocks with something bad: they take most of the time
COPIED = 1024 * 1024  # octets at a time

_ENCODING = re.compile(rb"(?im)^content-transfer-encoding[ \t]*:[^\r\n]*+(?:\r\n[ \t][^\r\n]*+)*+")
_MIME_VERSION = re.compile(rb"(?im)^mime-version[ \t]*:")
_QUOTED, _BASE64 = "quoted-printable", "base64"
_UUENCODED = ("x-uuencode", "uuencode", "x-uue", "uue", "x-yencode", "x-binhex", "binhex")


@dataclass(slots=True)
class Converted:
    """`done`: what was changed, in the order of the message, for log and explain; empty: nothing was."""

    head: bytes
    body: bytes
    done: tuple[str, ...]


@dataclass(slots=True)
class _Edit:
    """[start, end) of the body is to be something else."""

    start: int
    end: int
    new: Iterator[bytes]


def needs(head: bytes, body: bytes, *, seven_bit: bool) -> bool:
    """Has it anything that its next hop does not take? Asked of each message: about 2 µs for 4 KiB."""
    if b"\0" in body or b"\0" in head:
        return True
    return (seven_bit and not (head.isascii() and body.isascii())) or long_line(body) or long_line(head)


def convert(head: bytes, body: bytes, *, seven_bit: bool) -> Converted:
    """`head` with its empty line; both with CRLF line ends only. Raises Unconvertible."""
    if not needs(head, body, seven_bit=seven_bit):
        return Converted(head, body, ())
    source = Memory(body)
    plan = _Plan(head, source, seven_bit)
    if plan.edits:
        body = b"".join(_written(source, plan.edits))
    if needs(plan.head, body, seven_bit=seven_bit):
        raise Unconvertible("what is wrong with it can't be mended")
    return Converted(plan.head, body, plan.told())


def convert_file(head: bytes, source: Path, target: Path, *, seven_bit: bool) -> tuple[bytes, tuple[str, ...]]:
    """The same for a body in a file: the head, and what was done. Blocks; uses a few MB whatever the size.

    `target` is written only where the body changes. Raises Unconvertible and OSError, and may leave a piece of `target`
    behind then.
    """
    with source.open("rb") as file:
        body = File(file)
        if not (words.bad(head, seven_bit) or _bad(body, 0, body.size, seven_bit)):
            return head, ()
        plan = _Plan(head, body, seven_bit)
        good = True
        if plan.edits:
            target.touch(0o600)
            with target.open("wb") as out:
                for piece in _written(body, plan.edits):
                    out.write(piece)
            with target.open("rb") as file:
                written = File(file)
                good = not _bad(written, 0, written.size, seven_bit)
        if not good or words.bad(plan.head, seven_bit):
            raise Unconvertible("what is wrong with it can't be mended")
        return plan.head, plan.told()


def _bad(source: Source, start: int, end: int, seven_bit: bool) -> bool:
    high, long, nul = octets.look(source, start, end)
    return long or nul or bool(seven_bit and high)


def _written(source: Source, edits: list[_Edit]) -> Iterator[bytes]:
    at = 0
    for edit in edits:
        yield from _copied(source, at, edit.start)
        yield from edit.new
        at = edit.end
    yield from _copied(source, at, source.size)


def _copied(source: Source, start: int, end: int) -> Iterator[bytes]:
    for at in range(start, end, COPIED):
        yield source.cut(at, min(at + COPIED, end))


class _Plan:
    """What is to be done to one message: its new header block, and the edits of its body."""

    def __init__(self, head: bytes, source: Source, seven_bit: bool) -> None:
        self.head, self.edits = head, list[_Edit]()
        self._source, self._seven_bit = source, seven_bit
        self._done: list[str] = []
        self._mended = 0  # octets of header blocks
        self._parts = split(head, source)
        self._changed: set[int] = set()  # parts that are changed, or hold one
        self._encoded: set[int] = set()  # messages whose parts get an encoding
        # A part is told of after what it holds, since that decides on its label: from the end to the front.
        for here in range(len(self._parts) - 1, -1, -1):
            self._decide(here)
        self.edits.reverse()
        self._done.reverse()

    def told(self) -> tuple[str, ...]:
        more = len(self._done) - MAX_TOLD
        return (*self._done[:MAX_TOLD], *([f"and {more} more"] if more > 0 else []))

    def _decide(self, here: int) -> None:
        part = self._parts[here]
        told = len(self._done)
        encoding = ""
        if part.kind not in (Kind.MULTIPART, Kind.MESSAGE):
            encoding = self._content(part)
        elif here in self._changed:
            encoding = self._label(part)
        if encoding or len(self._done) > told:
            self._changed.add(here)
        if encoding or here in self._encoded:
            self._encoded.add(here if part.root else part.parent)
        if part.kind is not Kind.BETWEEN:
            self._header(part, here, encoding)
        if here in self._changed or len(self._done) > told:
            self._changed.add(part.parent)

    def _label(self, part: Part) -> str:
        """RFC 2045 §6.4: a composite one says 8bit or binary only while something in it is."""
        if self._seven_bit:
            return "7bit" if part.encoding in ("8bit", "binary") else ""
        return "8bit" if part.encoding == "binary" else ""

    def _content(self, part: Part) -> str:
        """Mends what a part holds itself. Its new encoding; empty: as it was."""
        high, long, nul = octets.look(self._source, part.body, part.end)
        if not long and not nul and not (high and self._seven_bit):
            return ""
        if part.kind is Kind.SEALED:
            what = "a NUL" if nul else "a line of more than 998 octets" if long else "8-bit octets"
            raise Unconvertible(f"{_where(part)}: {what} in {part.why}")
        place = self._source, part.body, part.end
        if part.kind is Kind.BETWEEN:
            self._edit(part, octets.spelled(*place), "text outside of its parts spelled in ASCII")
        elif part.kind is Kind.FIELDS:
            self._fields(part)
            return self._label(part)
        elif part.encoding == _QUOTED:
            self._edit(part, octets.requoted(*place), "quoted-printable mended")
        elif part.encoding == _BASE64:
            if nul or (high and self._seven_bit):
                what = "a NUL" if nul else "8-bit octets"
                raise Unconvertible(f"{_where(part)}: it says that it is base64, and has {what}")
            self._edit(part, octets.rebroken(*place), "lines of base64 broken")
        elif part.encoding in _UUENCODED:
            raise Unconvertible(f"{_where(part)}: {part.encoding} can't be encoded again")
        else:
            return self._encode(part, high, nul)
        return ""

    def _encode(self, part: Part, high: int, nul: bool) -> str:
        # Each octet beyond ASCII takes three in the one, every one a third more in the other.
        text = part.type.startswith("text/") and not nul and high * 6 <= part.end - part.body
        new = _QUOTED if text else _BASE64
        encoded = (octets.quoted if text else octets.base64)(self._source, part.body, part.end)
        if not text and part.end == self._source.size:
            encoded = _ended(encoded)
        was = part.encoding if part.encoding in ("7bit", "8bit", "binary") else "8bit" if high else "7bit"
        self._edit(part, encoded, f"{was} -> {new}")
        return new

    def _fields(self, part: Part) -> None:
        if part.end - part.body > MAX_HEAD:
            raise Unconvertible(f"{_where(part)}: {part.type} of more than {MAX_HEAD // 1024} KiB can't be mended")
        new, names = words.mended(self._source.cut(part.body, part.end), self._seven_bit, plain=True)
        self._edit(part, iter((new,)), f"{_listed(names)} in ASCII")

    def _edit(self, part: Part, new: Iterator[bytes], done: str) -> None:
        self.edits.append(_Edit(part.body, part.end, new))
        self._done.append(f"{_where(part)}: {done}")

    def _header(self, part: Part, here: int, encoding: str) -> None:
        end = part.body - 2 * part.separated
        old = head = self._source.cut(part.start, end) if part.parent >= 0 else self.head[:-2]
        if words.bad(head, self._seven_bit):
            self._mended += len(head)
            if self._mended > MAX_MENDED:
                raise Unconvertible(f"more than {MAX_MENDED // 1024} KiB of header blocks that can't stay as they are")
            head, names = words.mended(head, self._seven_bit)
            self._done.append(f"{_where(part)}: header {_listed(names)} written anew")
        if part.parent < 0 and (head != old or here in self._changed) and not whole(old):
            raise Unconvertible("the header block has a line that is no field, behind which it may be read as the body")
        new = b""
        if part.root and here in self._encoded and not _MIME_VERSION.search(head):
            new += b"MIME-Version: 1.0\r\n"
        if encoding and not part.typed and part.kind is Kind.LEAF:
            new += self._type(part)
        if encoding:
            field = b"Content-Transfer-Encoding: " + encoding.encode("ascii")
            head, found = _ENCODING.subn(field, head)
            new += b"" if found else field + CRLF
            if part.kind is not Kind.LEAF:
                self._done.append(f"{_where(part)}: {part.encoding} -> {encoding}")
        if new and head and not head.endswith(CRLF):
            head += CRLF
        head += new
        if not part.separated and (new or here in self._changed):
            head += CRLF  # what comes now could be taken for fields
        if head == old:
            return
        if part.parent < 0:
            self.head = head + CRLF
        else:
            self.edits.append(_Edit(part.start, end, iter((head,))))

    def _type(self, part: Part) -> bytes:
        """For text that nobody labelled. Readers guessed so far, and must not take its quoted-printable for ASCII.

        Where it is not UTF-8 it is called ISO-8859-1: this shows something for each octet. RFC 1428 has `unknown-8bit`,
        which readers show as an attachment or not at all.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        high = False
        try:
            for piece, last in octets.pieces(self._source, part.body, part.end):
                high = high or not piece.isascii()
                decoder.decode(piece, last)
        except UnicodeDecodeError:
            return b"Content-Type: text/plain; charset=iso-8859-1\r\n"
        return b"Content-Type: text/plain; charset=utf-8\r\n" if high else b""


def _ended(new: Iterator[bytes]) -> Iterator[bytes]:
    yield from new
    yield CRLF


def _listed(names: list[str]) -> str:
    """Names of fields, for people."""
    found = list(dict.fromkeys(names))
    return ", ".join([name[:80] for name in found[:5]] + ["…"] * (len(found) > 5))


def _where(part: Part) -> str:
    return f"part {part.name}" if part.name else "message"
