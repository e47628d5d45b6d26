"""`relay feedback`: what came back, read by hand, and in figures."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from relay.cli import show
from relay.cli.client import Failed
from relay.cli.feedback_stats import stats

DATA = 65
MOST_BYTES = 32 << 20  # of a file; what a report has beyond them is not read


@click.group()
def feedback() -> None:
    """What comes back: bounces, complaints, reports."""


feedback.add_command(stats)


@feedback.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--json", "json_", is_flag=True, help="One JSON array of flat objects.")
def parse(files: tuple[Path, ...], json_: bool) -> None:
    """What mails and reports say, as the relay understands them.

    - is standard input, a folder all that is in it.

    A line for each recipient found, one of kind `other` where a file is nothing of the kind. Bounces, complaints, DMARC and
    TLS reports (XML, JSON, gzip, zip or in a mail) and automatic replies are read. Nothing is changed, and no relay need run.
    """
    unread: list[str] = []
    # A list that is written as it comes is its own progress.
    bar = sys.stderr.isatty() and not (json_ and sys.stdout.isatty())
    rows = _rows(_found(files, unread), unread, bar)
    if json_:
        show.stream_json(rows)
    else:
        columns = ["FILE", "KIND", "CLASS", "RECIPIENT", "STATUS", "REASON", "QUEUE ID", "WHAT WAS SAID"]
        show.reasons(columns, (_line(row) for row in rows), 2)
    if unread:
        more = f"; {show.plural(len(unread) - 1, 'more file')} could not be read" if len(unread) > 1 else ""
        raise Failed(f"{unread[0]}{more}", DATA)


def _found(files: tuple[Path, ...], unread: list[str]) -> list[Path]:
    """The files that are meant, of folders all below them."""
    found: list[Path] = []
    for one in files:
        if not one.is_dir():
            found.append(one)
            continue
        before = len(found)
        found += sorted(path for path in one.rglob("*") if path.is_file() and not path.name.startswith("."))
        if len(found) == before:
            unread.append(f"{one}: a folder without a file")
    return found


def _rows(files: list[Path], unread: list[str], bar: bool) -> Iterator[dict[str, Any]]:
    from relay.returned.understand import understand

    with contextlib.ExitStack() as stack:
        each: Any = files
        if bar and len(files) > 20:
            each = stack.enter_context(click.progressbar(files, label="parse", file=sys.stderr))
        for path in each:
            try:
                raw = _read(path)
            except OSError as error:
                unread.append(f"{path}: {error.strerror or error}")
                continue
            for finding in understand(raw):
                yield {"file": str(path)} | finding.row()


def _read(path: Path) -> bytes:
    if str(path) == "-":
        return sys.stdin.buffer.read(MOST_BYTES)
    with path.open("rb") as file:
        return file.read(MOST_BYTES)


def _line(row: dict[str, Any]) -> list[Any]:
    said = row["diagnostic"] or " ".join(f"{name} {value}" for name, value in _figures(row["detail"]))
    class_ = row["class"] or row["action"]
    cells = [row["file"], row["kind"], class_, row["recipient"], row["status"], row["reason"], row["queue_id"]]
    return [*(value or "-" for value in cells), said]


def _figures(detail: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Of a summary what fits a line."""
    return ((name, value) for name, value in detail.items() if isinstance(value, str | int | float) and value != "")
