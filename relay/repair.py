"""Makes a header block mean the same to whoever reads it: what was odd is put right, and told. Pure.

Promises: what comes out is fields alone, each with a name that its colon follows at once, no control character, no line of
white space only, and each of `ONCE` once; nothing that has a value is lost, and work is linear. What can't be put right without
guessing is said to be so, and refused by who asked. Why each is as it is: docs/adr/0010-malformed-headers.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum

FIELD = rb"[!-9;-~]{1,200}+[ \t]{0,50}+:"
LONGEST_NAME = 251  # with its blanks and its colon
MBOX = rb">?From (?![ \t]*:)"  # "From : x" is a field
# All of ASCII that is not printable, but tab and what ends a line.
CONTROLS = bytes([*range(9), 11, 12, *range(14, 32), 127])

REMOVED = (b"bcc", b"resent-bcc")
OPTION_PREFIX = b"x-relay-"
AUTHORS = (b"from", b"sender")
# RFC 5322 §4.5.3 reads several as one list; it says so of To and Cc only, but nothing else is meant by two Reply-To.
LISTS = (b"to", b"cc", b"reply-to")
# RFC 5322 §3.6 and RFC 2045 allow one of each.
ONCE = frozenset((
    *AUTHORS, *LISTS, b"date", b"message-id", b"in-reply-to", b"references", b"subject",
    b"mime-version", b"content-type", b"content-transfer-encoding",
))  # fmt: skip

SECOND = "a second {}; send one (RFC 5322 section 3.6)"

_FIELD = re.compile(rb"([!-9;-~]{1,200}+)([ \t]{0,50}+):")
_MBOX = re.compile(MBOX)
_EMPTY_LINES = re.compile(rb"(?:\r\n)*+")
_PRIVATE = re.compile(rb"(?im)^((?:resent-)?bcc|x-relay-[!-9;-~]{0,200}+)[ \t]{0,50}+:")
_TO_SPACES = bytes.maketrans(CONTROLS, b" " * len(CONTROLS))


class Outcome(Enum):
    REPAIRED = "repaired"
    LEFT = "left"  # as it came: it has one meaning, though an odd one
    REFUSED = "refused"  # it has more than one


# No dataclasses: they import `inspect`, which took a fifth of a call of `relay-sendmail`.
class Fault:
    """One kind of what was wrong with a header block."""

    __slots__ = ("count", "line", "outcome", "text", "what")

    def __init__(self, what: str, line: int, text: str, outcome: Outcome = Outcome.REPAIRED) -> None:
        self.what = what  # one of a few words
        self.line = line  # of the first of its kind, as the client counts: from 1
        self.text = text  # what it is and what to do about it, for who wrote the message; printable ASCII
        self.outcome, self.count = outcome, 1


class _Field:
    __slots__ = ("lines", "name", "number", "written")

    def __init__(self, number: int, written: bytes) -> None:
        self.number, self.written = number, written
        self.name = written.lower()
        self.lines: list[bytes] = []

    @property
    def value(self) -> bytes:
        """As it compares: unfolded, each run of white space as one space; empty if there is nothing else."""
        return b" ".join(b"".join(self.lines)[len(self.written) + 1 :].split())


def repair(lines: Sequence[bytes]) -> tuple[list[bytes], list[Fault]]:
    """A header block's lines up to the empty one, without their ends -> those to keep, and what was wrong, by kind."""
    block = b"".join(lines)
    work = _Repair(controls=len(block.translate(None, CONTROLS)) < len(block))
    return work.once(work.fields(lines)), list(work.faults.values())


def shows(content: bytes, start: int, limit: int) -> str:
    """Of a header that ends at `start` before its time: what that would show to everybody, told to the sender; or nothing.

    What was to be removed stands in the text then. It is looked for up to the empty line that was to be the end, or `limit`.
    """
    empty = _EMPTY_LINES.match(content, start, limit)
    begin = empty.end() if empty else start
    stop = content.find(b"\r\n\r\n", begin, limit)
    found = _PRIVATE.search(content, begin, stop if stop >= 0 else limit)
    if not found:
        return ""
    ended = 1 if start == 2 else line_at(content, start)  # 2: it begins with an empty line
    name, line = shown(found[1]), line_at(content, found.start())
    return f"line {ended} is no header field, so {name} in line {line} would be text that all see; correct the header"


def line_at(content: bytes, place: int) -> int:
    """The number, from 1, of the line that has this place."""
    return content.count(b"\n", 0, place) + 1


def shown(name: bytes) -> str:
    """A field's name as written, for a reply or a log."""
    return name[:60].decode("ascii", "replace")


class _Repair:
    def __init__(self, controls: bool) -> None:
        self.controls = controls  # is there any control character
        self.faults: dict[str, Fault] = {}

    def tell(self, what: str, line: int, text: str, name: bytes = b"", outcome: Outcome = Outcome.REPAIRED) -> None:
        """`text` has {} for the field's name."""
        known = self.faults.get(what)
        if known:
            known.count += 1
        else:
            self.faults[what] = Fault(what, line, f"line {line}: {text.format(shown(name))}", outcome)

    def fields(self, lines: Sequence[bytes]) -> list[_Field]:
        """Each field by itself put right."""
        found: list[_Field] = []
        for number, line in enumerate(lines, 1):
            if line[:1] in (b" ", b"\t"):
                if not found:
                    break
                self.continued(found[-1], number, line)
            elif known := _FIELD.match(line):
                written, blanks = known.groups()
                if blanks:
                    text = "white space between {} and its colon; remove it (RFC 5322 section 2.2)"
                    self.tell("blank_before_colon", number, text, written)
                field = _Field(number, written)
                field.lines.append(written + b":" + self.clean(field, number, line[known.end() :]))
                found.append(field)
            elif not found and _MBOX.match(line):
                self.tell("mbox_line", number, "the 'From ' line of an mbox file; leave it out")
            else:
                break  # the empty line, or what is no header any more: see `submission.split`
        return found

    def continued(self, field: _Field, number: int, line: bytes) -> None:
        line = self.clean(field, number, line)
        if line.isspace():
            text = "{} goes on with a line of white space only; remove it (RFC 5322 section 3.2.2)"
            self.tell("blank_line", number, text, field.written)
        else:
            field.lines.append(line)

    def clean(self, field: _Field, number: int, said: bytes) -> bytes:
        """With spaces for control characters: one that vanished could make a word, or an address, of two."""
        if not self.controls or field.name in REMOVED or field.name.startswith(OPTION_PREFIX):
            return said  # it is not kept, and what it says shall be refused as it came
        spaced = said.translate(_TO_SPACES)
        if spaced != said:
            odd = next(a for a, b in zip(said, spaced, strict=True) if a != b)
            text = f"{{}} has the control character 0x{odd:02X}; remove it"
            self.tell("control_character", number, text, field.written)
        return spaced

    def once(self, fields: Sequence[_Field]) -> list[bytes]:
        """The lines of all fields, each of ONCE once."""
        first: dict[bytes, _Field] = {}
        seen: dict[bytes, set[bytes]] = {}
        kept: list[_Field] = []
        for field in fields:
            if field.name not in ONCE:
                kept.append(field)
                continue
            value = field.value
            if field.name not in first:
                first[field.name], seen[field.name] = field, {value}
                kept.append(field)
            elif self.again(first[field.name], field, value, seen[field.name]):
                kept.append(field)
        return [line for field in kept if field.name != b"from" or field.value for line in field.lines]

    def again(self, first: _Field, field: _Field, value: bytes, seen: set[bytes]) -> bool:
        """One more of a name; does it stay?"""
        if not value or value in seen:
            self.tell("repeated", field.number, SECOND, field.written)
            return False
        empty = seen == {b""}
        seen.add(value)
        if empty:  # some libraries write an empty Subject first
            self.tell("repeated", field.number, SECOND, field.written)
            first.written, first.lines = field.written, field.lines
        elif field.name in AUTHORS:
            text = "a second {} that names somebody else; send one (RFC 5322 section 3.6)"
            self.tell(f"two_{field.name.decode()}", field.number, text, field.written, Outcome.REFUSED)
        elif field.name in LISTS:
            self.tell("merged", field.number, SECOND, field.written)
            _append(first.lines, field)
        else:
            self.tell("renamed", field.number, SECOND, field.written)
            field.lines[0] = b"X-Original-" + field.lines[0]
            return True
        return False


def _append(lines: list[bytes], field: _Field) -> None:
    """The list of another field behind the one that `lines` ends with (RFC 5322 §4.5.3)."""
    if not lines[-1].rstrip(b" \t").endswith(b","):
        lines[-1] += b","
    begun = field.lines[0][len(field.written) + 1 :].strip(b" \t")
    if begun:
        lines.append(b" " + begun)
    lines += field.lines[1:]
