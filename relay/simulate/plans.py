"""A plan in words: CSV, one line for so many messages, or one line for each message of the past."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from datetime import datetime

from relay.config.values import parse_duration, parse_size
from relay.simulate.traffic import SIZE, Wave

COLUMNS = ("time", "count", "sender", "recipient", "class", "user", "tag", "size", "spread")
MOST_TOLD = 10  # mistakes
MOST = 10_000_000  # messages


class BadPlan(ValueError):
    """What is wrong with it, a line each."""


def moment(text: str, start: float) -> float:
    """`2026-12-01T09:00` (local time, or with its offset), epoch seconds, `now`, or `+10m` from `start` on. Raises ValueError."""
    text = text.strip()
    if text in ("", "now"):
        return start
    if text.startswith("+"):
        return start + parse_duration(text[1:])
    try:
        return float(text) if text.replace(".", "", 1).isdigit() else datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"expected a time such as 2026-12-01T09:00, or +10m; found {text!r}") from None


def recipients(text: str) -> tuple[tuple[str, int], ...]:
    """`you@example.net`, `gmail.com`, or shares of several: `gmail.com=60,outlook.com=40`. Raises ValueError."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, share = part.partition("=")
        if share and not (share.isascii() and share.isdigit() and int(share)):
            raise ValueError(f"expected a share such as gmail.com=60, found {part!r}")
        local, at, domain = name.strip().rpartition("@")
        if not domain or " " in name:
            raise ValueError(f"expected a domain or an address, found {part!r}")
        found.append((f"{local.replace('*', 'someone') if at else 'someone'}@{domain}", int(share or 1)))
    if not found:
        raise ValueError("expected a recipient, such as you@example.net or gmail.com")
    return tuple(found)


def wave(given: Mapping[str, str], start: float) -> Wave:
    """One line, by the names of COLUMNS; what is left out is as `Wave` has it. Raises ValueError."""
    count = given.get("count") or "1"
    if not (count.isascii() and count.isdigit() and 0 < int(count) <= MOST):
        raise ValueError(f"expected a count of at least 1, found {count!r}")
    size = given.get("size", "")
    return Wave(
        moment(given.get("time", ""), start),
        int(count),
        given.get("sender", "").strip("<>"),
        recipients(given["recipient"]) if given.get("recipient") else recipients("example.net"),
        given.get("class", ""),
        given.get("user", ""),
        given.get("tag", ""),
        int(size) if size.isascii() and size.isdigit() else parse_size(size) if size else SIZE,
        parse_duration(given["spread"]) if given.get("spread") else 0.0,
    )


def read(lines: Iterable[str], start: float) -> list[Wave]:
    """A CSV with a header; columns of other names are passed over. Raises BadPlan with all that is wrong, by line."""
    rows = csv.DictReader(lines)
    try:
        names = [name.strip().lower() for name in rows.fieldnames or ()]
    except csv.Error as error:
        raise BadPlan(f"line 1: {error}") from None
    if "time" not in names or "recipient" not in names:
        raise BadPlan(
            f"line 1: expected a header that names time and recipient, with commas between; known are {', '.join(COLUMNS)}"
        )
    rows.fieldnames = names
    found: list[Wave] = []
    wrong: list[str] = []
    try:
        for row in rows:
            try:
                given = {name: value.strip() for name, value in row.items() if name in COLUMNS and value}
                if not given.get("time") or not given.get("recipient"):
                    raise ValueError("expected a time and a recipient")
                found.append(wave(given, start))
            except ValueError as error:
                wrong.append(f"line {rows.line_num}: {error}")
    except csv.Error as error:
        wrong.append(f"line {rows.line_num}: {error}")
    if wrong:
        more = [f"and {len(wrong) - MOST_TOLD} more"] if len(wrong) > MOST_TOLD else []
        raise BadPlan("\n".join(wrong[:MOST_TOLD] + more))
    if sum(each.count for each in found) > MOST:
        raise BadPlan(f"more than {MOST} messages")
    return found
