"""Lists of suppressed addresses as CSV: ours, those of providers as they name their columns, and one address a line.

Memory is bounded whatever the file: line by line, and none longer than MAX_LINE. Nothing in a cell is ever a formula for a
spreadsheet; what is exported imports again unchanged.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO

from relay.reply import clean

COLUMNS = ("address", "scope", "why", "evidence", "source", "at", "until", "queue_id")
MAX_LINE = 16384  # characters
_FORMULA = "=+-@\t\r"

# Columns as others call them, without case, blanks and punctuation.
_NAMES: Mapping[str, tuple[str, ...]] = {
    # ours; Mailgun; SendGrid, Brevo, Mailjet; SES, Postmark
    "address": ("address", "email", "emailaddress", "emails", "recipient", "contactemail", "contact"),
    "scope": ("scope",),
    "why": ("why", "reason", "suppressionreason", "type", "blockedreason", "reasoncode"),
    "evidence": ("evidence", "error", "description", "details", "diagnosticcode", "bouncemessage", "comment"),
    "code": ("code", "status", "smtpcode"),
    "source": ("source",),
    "at": (
        *("at", "created", "createdat", "date", "timestamp", "lastupdatetime", "blockedat", "blockeddate", "addedat"),
        *("bouncedat", "unsubscribedat", "dateblocked"),
    ),
    "until": ("until", "expires", "expiresat", "expiry"),
    "queue_id": ("queueid",),
}
_COLUMN = {name: column for column, names in _NAMES.items() for name in names}

# What providers call a cause; what else stands there is told as evidence.
_CAUSES: Mapping[str, str] = {
    "hardbounce": "hard_bounce", "bounce": "hard_bounce", "bounced": "hard_bounce", "permanent": "hard_bounce",
    "complaint": "complaint", "spamcomplaint": "complaint", "spam": "complaint", "spamreport": "complaint",
    "abuse": "complaint", "contactflaggedasspam": "complaint",
    "unsubscribe": "unsubscribe", "unsubscribed": "unsubscribe", "unsubscribedviaemail": "unsubscribe",
    "unsubscribedviaapi": "unsubscribe", "unsubscribedviama": "unsubscribe",
    "manualsuppression": "manual", "manual": "manual", "adminblocked": "manual",
    "softbounces": "soft_bounces", "shaping": "shaping",
}  # fmt: skip


class NoList(Exception):
    """The file is none; the text says why."""


Entry = dict[str, Any]  # as POST /v1/suppressions takes them


def entries(file: BinaryIO, why: str) -> Iterator[tuple[int, Entry | str]]:
    """(number of the line, an entry or what is wrong with the line). `why`: of what says no cause itself.

    Raises NoList. The addresses are not looked at: the relay does that.
    """
    lines = _Lines(file)
    first = lines.first()
    reader = csv.reader(lines, delimiter=_delimiter(first))
    columns: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield lines.number, str(error)
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if columns is None:
            columns = header(cells)
            if columns:
                continue
            columns = ["address", "why"]
        if lines.cut:
            lines.cut = False
            yield lines.number, f"longer than {MAX_LINE} characters"
            continue
        try:
            yield lines.number, entry(dict(zip(columns, map(unquoted, cells), strict=False)), why)
        except ValueError as error:
            yield lines.number, str(error)


def header(cells: Sequence[str]) -> list[str]:
    """Our names of a file's columns, the first of each that is there; empty: its first line is none. Raises NoList."""
    if any("@" in cell for cell in cells):
        return []
    named: list[str] = []
    for cell in cells:
        column = _COLUMN.get(re.sub(r"[^a-z0-9]", "", cell.lower()), "")
        named.append(column if column not in named else "")
    if "address" not in named:
        found = ", ".join(clean(cell.strip()[:40]) for cell in cells[:12])
        raise NoList(f"no column of addresses: {found}; call it `address`")
    return named


def entry(row: Mapping[str, str], why: str) -> Entry:
    """Raises ValueError."""
    made: Entry = {"address": row.get("address", "").strip(), "source": row.get("source") or "import"}
    said, cause = row.get("why", ""), _CAUSES.get(re.sub(r"[^a-z]", "", row.get("why", "").lower()))
    told = [row.get("code", ""), "" if cause else said, row.get("evidence", "")]
    made["why"] = cause or ("hard_bounce" if row.get("code") else why)
    made["evidence"] = " ".join(filter(None, map(str.strip, told)))
    if row.get("scope"):
        made["scope"] = row["scope"]
    if row.get("queue_id"):
        made["queue_id"] = row["queue_id"]
    if (at := time(row.get("at", ""))) is not None:
        made["at"] = at
    if row.get("until"):
        made["until"] = time(row["until"])
        if made["until"] is None:
            raise ValueError(f"no time that we know: {row['until'][:40]!r}")
    return made


def time(text: str) -> float | None:
    """Epoch seconds of a time as lists have them; without a zone it is UTC. None: it is none."""
    text = text.strip().removesuffix(" UTC")
    ways: tuple[Callable[[str], datetime], ...] = (datetime.fromisoformat, parsedate_to_datetime)
    if re.fullmatch(r"[0-9]{9,13}(\.[0-9]+)?", text):
        number = float(text)
        return number / 1000 if number > 1e11 else number
    for read in ways:
        try:
            found = read(text)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        except (ValueError, TypeError, OverflowError):
            continue
    return None


def written(row: Mapping[str, Any]) -> list[str]:
    """A row of the list as cells."""
    cells = [row[name] if row[name] is not None else "" for name in COLUMNS]
    return [_stamp(cell) if isinstance(cell, float | int) else quoted(cell) for cell in cells]


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def quoted(cell: str) -> str:
    """So that no spreadsheet takes it for a formula: behind an apostrophe. What looks so already gets one more."""
    return f"'{cell}" if cell[:1] in tuple(_FORMULA) or _is_quoted(cell) else cell


def unquoted(cell: str) -> str:
    return cell[1:] if _is_quoted(cell) else cell


def _is_quoted(cell: str) -> bool:
    bare = cell.lstrip("'")
    return bare != cell and bare[:1] in tuple(_FORMULA)


def _delimiter(line: str) -> str:
    return max(",;\t", key=line.count)


class _Lines:
    """The lines of a file of any size, in any encoding that spreadsheets write. What is no UTF-8 stays recognisable as such."""

    def __init__(self, file: BinaryIO) -> None:
        buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)  # type: ignore[type-var]
        start = buffered.peek(4)[:4]
        wide = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = "utf-16" if wide else "utf-8-sig"
        self._text = io.TextIOWrapper(buffered, encoding, errors="backslashreplace", newline=None)
        self._first: str | None = None
        self.number, self.cut = 0, False

    def first(self) -> str:
        """The first that is not empty, without taking it."""
        self._first = ""
        while self._first.strip() == "" and (line := self._next()):
            self._first = line
        return self._first

    def _next(self) -> str:
        line = self._text.readline(MAX_LINE)
        self.number += 1
        if len(line) == MAX_LINE and not line.endswith("\n"):
            self.cut = True
            while (rest := self._text.readline(MAX_LINE)) and not rest.endswith("\n"):
                continue
        return line.replace("\0", "\ufffd")

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self._first is not None:
            line, self._first = self._first, None
        else:
            line = self._next()
        if not line:
            raise StopIteration
        return line
