"""How things look on a terminal; and as one JSON array where `--json` asks, which scripts may rely on."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import click

COLOURS = {
    "delivered": "green",
    "failed": "red",
    "held": "yellow",
    "deferred": "yellow",
    "active": "cyan",
    "queued": "",
    "ok": "green",
    "pass": "green",
    "unknown": "yellow",
    "temperror": "yellow",
    "ready": "green",
    "waits": "yellow",
    "resting": "red",
    "paused: login refused": "red",
}


def as_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def stream_json(rows: Iterable[dict[str, Any]]) -> None:
    """One JSON array, written as it comes."""
    click.echo("[", nl=False)
    for i, row in enumerate(rows):
        click.echo((",\n" if i else "\n") + json.dumps(row, ensure_ascii=False), nl=False)
    click.echo("\n]")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], colour: int | None = None) -> int:
    """A table on a terminal, tab-separated lines into a pipe; returns how many rows. `colour`: the column with a state."""
    if not sys.stdout.isatty():
        count = 0
        for count, row in enumerate(rows, 1):  # noqa: B007 - the count is the result
            click.echo("\t".join(str(value) for value in row))
        return count
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        made.add_column(name, overflow="fold", no_wrap=name in ("QUEUE ID", "STATE", "NEXT", "AGE"))
    for row in rows:
        cells = [Text(str(value)) for value in row]
        if colour is not None:
            cells[colour].stylize(COLOURS.get(str(row[colour]), ""))
        made.add_row(*cells)
    if made.row_count:
        Console().print(made)
    return made.row_count


def reasons(columns: Sequence[str], rows: Iterable[Sequence[Any]], colour: int) -> int:
    """A table whose last column is text of any length: on a terminal it stands below its line, whatever the width."""
    if not sys.stdout.isatty():
        return table(columns, rows)
    return pairs(columns[:-1], ((row[:-1], row[-1]) for row in rows), colour)


def pairs(columns: Sequence[str], rows: Iterable[tuple[Sequence[Any], str]], colour: int) -> int:
    """For a narrow terminal: a line of columns, never broken, and below it, dim, the rest of what there is to say."""
    made = [([clean(value) for value in first], clean(second)) for first, second in rows]
    if not made:
        return 0
    widths = [max(len(line[i]) for line in (columns, *(first for first, _ in made))) for i in range(len(columns))]
    click.secho("  ".join(name.ljust(width) for name, width in zip(columns, widths, strict=True)).rstrip(), bold=True)
    for first, second in made:
        cells = [text.ljust(width) for text, width in zip(first, widths, strict=True)]
        if fg := COLOURS.get(first[colour]):
            cells[colour] = click.style(cells[colour], fg=fg)
        click.echo("  ".join(cells).rstrip())
        if second:
            paragraph(second, 4, dim=True)
    return len(made)


def paragraph(text: str, indent: int, *, dim: bool = False) -> None:
    """Text on a terminal, broken between words."""
    margin = " " * indent
    width = max(40, shutil.get_terminal_size().columns)
    made = textwrap.fill(
        text, width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False, break_long_words=False
    )
    click.secho(made, dim=dim or None)


def clean(value: Any) -> str:
    """On one line, and without what would steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(value))


def plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def span(seconds: float) -> str:
    """12s, 1m 4s, 3h 5m, 2d 1h: two units."""
    left, words = max(0, int(seconds)), list[str]()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size:
            words.append(f"{left // size}{unit}")
            left %= size
        elif words:
            break
    return " ".join(words[:2]) or "0s"


def age(seconds: float) -> str:
    """12s, 5m, 3h, 2d."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def clock_time(at: float | None, now: float) -> str:
    """When, as a person at the machine reads it: local time, and how long until."""
    if at is None:
        return "-"
    local = datetime.fromtimestamp(at).astimezone()
    text = local.strftime("%H:%M:%S") if abs(at - now) < 43200 else local.strftime("%Y-%m-%d %H:%M")
    return f"{text} (in {age(at - now)})" if at > now + 1 else "now"


def stamp(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(sep=" ", timespec="milliseconds")


def leaving(row: dict[str, Any], sender: str) -> Iterator[tuple[str, str | None]]:
    """(line, colour) of what `explain` says of a message that leaves by an account."""
    if "error" not in row:
        return
    if known := "; ".join([f"preset {row['preset']}"] * bool(row["preset"]) + row["limits"]):
        yield known, None
    if row["error"]:
        yield f"it can't leave: {row['error']}", "red"
        return
    if row["reverse_path"] != sender:
        yield f"reverse-path: <{sender}> -> <{row['reverse_path']}>", None
    for change in row["changes"]:
        if not change.startswith("reverse-path: "):  # said above
            yield change, None
    if row["samples"]:
        yield "(the id and the tokens shown are samples)", None
    for broken in row["broken"]:
        yield f"breaks its own signature {broken}", "yellow"
    for s in row["signatures"]:
        kind, place = s["algorithm"].partition("-")[0], s["origin"].rpartition("/")[2]
        name = f"{s['selector']}._domainkey.{s['domain']}, {kind} ({place})"
        if s["waits"]:
            yield f"does not sign: {name}", "yellow"
            yield f"  {s['waits']}", "yellow"
        else:
            yield f"signed by {name}", "green"
    if row["upstream_signs"]:
        by = f"preset {row['preset']}" if row["preset"] else "`signs: true`"
        yield f"not signed here: the account signs itself ({by})", None
    if row["sealed"]:
        yield "sealed (ARC)", None
    if row["why"]:
        yield f"DMARC: {row['why']}", "green" if row["alignment"] == "aligned_dkim" else "yellow"
