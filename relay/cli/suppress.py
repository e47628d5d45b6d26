"""`relay suppress`: who gets nothing more; by hand, and as files."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import click

from relay import clock
from relay.cli import client, show
from relay.cli.client import Failed
from relay.cli.queue import duration

PART = 500  # lines that are handed over at once
PAGE = "1000"
TOLD = 20  # lines that could not be taken, each told
WHYS = ("hard_bounce", "complaint", "soft_bounces", "unsubscribe", "manual", "shaping")

_JSON = click.option("--json", "json_", is_flag=True, help="One JSON array of flat objects.")
_SCOPE = click.option("--scope", help="Whose mail: all, tenant:NAME or class:NAME.")
_WHY = click.option("--why", type=click.Choice(WHYS), help="For what reason.")
_SOURCE = click.option(
    "--source", help="Who said so: hand, import, smtp, bounce, imap:NAME, unsubscribe, shaping, a provider."
)


@click.group()
def suppress() -> None:
    """Who gets nothing more, and why: look, add, remove.

    Addresses that bounced, complained, unsubscribed, or were named by hand.
    """


@suppress.command()
@click.argument("addresses", nargs=-1, required=True)
@click.option("--scope", default="all", show_default=True, help="Whose mail: all, tenant:NAME or class:NAME.")
@click.option("--for", "for_", callback=duration, help="It ends by itself after this, such as 30d; without: never.")
@click.option("--reason", default="", help="Told wherever somebody asks why.")
@_JSON
def add(addresses: tuple[str, ...], scope: str, for_: str | None, reason: str, json_: bool) -> None:
    """Send nothing more to these addresses."""
    if patterns := [address for address in addresses if address.startswith("*")]:
        raise click.UsageError(f"{patterns[0]}: addresses are suppressed, one by one; a pattern would be nobody's")
    until = {} if for_ is None else {"until": clock.now() + float(for_)}
    said = f"{reason} (by {_operator()})" if reason else f"by {_operator()}"
    made = [{"address": a, "scope": scope, "evidence": said, "source": "hand"} | until for a in addresses]
    listed: list[dict[str, Any]] = []
    refused = 0
    for start in range(0, len(made), PART):
        found = client.ask("POST", "/v1/suppressions", {"entries": made[start : start + PART]})
        listed += found["listed"]
        for row in found["kept"]:
            click.echo(f"{row['address']}: is suppressed already ({_about(row)})", err=True)
        for one in found["refused"]:
            click.echo(f"{addresses[start + one['number']]}: {one['why']}", err=True)
        refused += len(found["refused"])
    if json_:
        show.as_json(listed)
    else:
        for row in listed:
            click.echo(f"suppressed: {row['address']} ({_about(row)})")
    sys.exit(65 if refused else 0)


def _operator() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _about(row: Mapping[str, Any]) -> str:
    until = f", until {show.clock_time(row['until'], clock.now())}" if row["until"] else ""
    return f"{row['scope']}, {row['why']}{until}"


@suppress.command()
@click.argument("addresses", nargs=-1)
@click.option("--scope", help="There alone: all (what is about all mail), tenant:NAME or class:NAME.")
@click.option("--all-scopes", is_flag=True, help="Wherever it is suppressed; the default.")
@_WHY
@_SOURCE
@click.option("--yes", is_flag=True, help="Do it; a filter alone only counts.")
@_JSON
def remove(
    addresses: tuple[str, ...], scope: str | None, all_scopes: bool, why: str | None, source: str | None, yes: bool,
    json_: bool,
) -> None:  # fmt: skip
    """Send to these addresses again.

    Or to all that a filter or a pattern (`'*@example.com'`) names.

    Whoever complained or unsubscribed has asked not to get mail.
    """
    if scope and all_scopes:
        raise click.UsageError("--scope or --all-scopes, not both")
    globs = [address for address in addresses if set(address) & set("*?")]
    if globs and len(addresses) > 1:
        raise click.UsageError(f"a pattern stands alone: {globs[0]}")
    if addresses and not globs:
        if why or source:
            raise click.UsageError("addresses, or a filter: not both")
        found = _removed(list(addresses), scope)
    else:
        given = {"address": globs[0] if globs else None, "scope": scope, "why": why, "source": source}
        chosen = {key: value for key, value in given.items() if value}
        if not chosen:
            raise click.UsageError("remove whom? Say addresses, a pattern, --scope, --why or --source")
        found = client.ask("POST", "/v1/suppressions/remove", {"filter": chosen, "dry_run": not yes})
        if not yes:
            click.echo(f"{show.plural(found['count'], 'entry').replace('entrys', 'entries')}; --yes removes them")
            sys.exit(0 if not found["count"] else 64)
    if json_:
        show.as_json(found["removed"])
    else:
        for row in found["removed"]:
            click.echo(f"removed: {row['address']} ({_about(row)})")
        if found["count"] > len(found["removed"]):
            click.echo(f"and {found['count'] - len(found['removed'])} more")
    for address in found["missing"]:
        click.echo(f"{address}: is not suppressed", err=True)
    sys.exit(65 if found["missing"] else 0)


def _removed(addresses: list[str], scope: str | None) -> dict[str, Any]:
    whole: dict[str, Any] = {"removed": [], "count": 0, "missing": []}
    for start in range(0, len(addresses), PART):
        asked = {"addresses": addresses[start : start + PART], "scope": scope}
        found = client.ask("POST", "/v1/suppressions/remove", asked)
        whole = {key: whole[key] + found[key] for key in whole}
    return whole


def _pages(chosen: Mapping[str, str | None]) -> Iterator[dict[str, Any]]:
    query = {key: value for key, value in chosen.items() if value} | {"limit": PAGE}
    while True:
        found = client.ask("GET", "/v1/suppressions", query=query)
        yield from found["suppressions"]
        if not found["next"]:
            return
        query["after"] = found["next"]


@suppress.command("list")
@click.argument("address", required=False)
@_SCOPE
@_WHY
@_SOURCE
@_JSON
def list_(address: str | None, scope: str | None, why: str | None, source: str | None, json_: bool) -> None:
    """Who is suppressed, why, and for whose mail.

    ADDRESS may be a pattern such as '*@example.com'.
    """
    rows = _pages({"address": address, "scope": scope, "why": why, "source": source})
    if json_:
        return show.stream_json(rows)
    now = clock.now()
    columns = ["ADDRESS", "SCOPE", "WHY", "SOURCE", "SINCE"]
    lines = (
        (
            (row["address"], row["scope"], row["why"], row["source"], show.age(now - row["at"])),
            show.clock_time(row["until"], now) if row["until"] else "",
            f"{row['queue_id']} {row['evidence']}".strip(),
        )
        for row in rows
    )
    if not sys.stdout.isatty():
        show.table([], ((*first, until, evidence) for first, until, evidence in lines))
        return
    # An address is never broken, for it is copied from here; what may be long stands below its line.
    below = (
        (first, "; ".join(filter(None, (f"until {until}" if until else "", said)))) for first, until, said in lines
    )
    if not show.pairs(columns, below, 2):
        click.echo(f"{address or 'nobody'} is {'not ' if address else ''}suppressed")


# -- files


@suppress.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--scope", help="Of lines that name none: all (the default), tenant:NAME or class:NAME.")
@click.option("--why", type=click.Choice(WHYS), default="manual", show_default=True, help="Of lines that say none.")
@click.option("--reason", default="", help="Told with each line that has no text of its own.")
@click.option("--for", "for_", callback=duration, help="When lines that name no end come to theirs; without: never.")
@click.option("--dry-run", is_flag=True, help="Only say what would come of it.")
@click.option("--json", "json_", is_flag=True, help="One JSON object.")
def import_(
    file: BinaryIO, scope: str | None, why: str, reason: str, for_: str | None, dry_run: bool, json_: bool
) -> None:
    """Take a list of addresses from a file.

    CSV with a header, or one address a line; - for standard input.

    The exports of SES, SendGrid, Mailgun, Postmark, Mailjet and Brevo are understood, and `relay suppress export`. Lines that
    can't be taken are told with their number, the others count; then the exit code is 65.
    """
    from relay.cli import suppresscsv

    more = {"scope": scope, "evidence": reason, "until": None if for_ is None else clock.now() + float(for_)}
    taken = _Import({"dry_run": dry_run, "any_scope": scope is None})
    try:
        with _progress(file) as step:
            for number, found in suppresscsv.entries(file, why):
                taken.total["lines"] += 1
                if isinstance(found, str):
                    taken.wrong(number, found)
                else:
                    more_of_it = {key: value for key, value in more.items() if value and not found.get(key)}
                    taken.part.append((number, found | more_of_it))
                if len(taken.part) == PART:
                    taken.hand_over()
                    step()
            if taken.part:
                taken.hand_over()
    except suppresscsv.NoList as error:
        raise Failed(f"{file.name}: {error}", 65) from None
    total = taken.total
    if total["refused"] > TOLD:
        click.echo(f"and {total['refused'] - TOLD} more that could not be taken", err=True)
    if json_:
        show.as_json(total | {"dry_run": dry_run, "bad": taken.bad})
    else:
        would = "would be " if dry_run else ""
        text = f"{would}suppressed: {total['listed']}; already: {total['kept']}; not taken: {total['refused']}"
        click.echo(f"{text} (of {show.plural(total['lines'], 'line')})")
    sys.exit(65 if total["refused"] else 0)


class _Import:
    """Lines on their way to the relay, a part at a time, and what became of them. `asked`: beside them."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self.total = {"lines": 0, "listed": 0, "kept": 0, "refused": 0}
        self.bad: list[dict[str, Any]] = []  # the first of those that could not be taken
        self.part: list[tuple[int, dict[str, Any]]] = []
        self._asked = asked

    def wrong(self, line: int, text: str) -> None:
        self.total["refused"] += 1
        if len(self.bad) < TOLD:
            self.bad.append({"line": line, "why": text})
            click.echo(f"line {line}: {text}", err=True)

    def hand_over(self) -> None:
        found = client.ask("POST", "/v1/suppressions", {"entries": [entry for _, entry in self.part], **self._asked})
        for one in found["refused"]:
            self.wrong(self.part[one["number"]][0], one["why"])
        self.total["listed"] += len(found["listed"])
        self.total["kept"] += len(found["kept"])
        self.part.clear()


@contextlib.contextmanager
def _progress(file: BinaryIO) -> Iterator[Callable[[], None]]:
    """A bar where somebody waits at a terminal, by how much of the file is read."""
    raw = getattr(file, "raw", None)
    size = os.fstat(file.fileno()).st_size if raw is not None and raw.seekable() else 0
    if not sys.stderr.isatty() or not size:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("importing", total=size)
        yield lambda: bar.update(task, completed=raw.tell() if raw is not None else 0)


@suppress.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), required=False)
@_SCOPE
@_WHY
@_SOURCE
def export(file: Path | None, scope: str | None, why: str | None, source: str | None) -> None:
    """The list as CSV, to FILE or standard output.

    `relay suppress import` takes it again unchanged.
    """
    rows = _pages({"scope": scope, "why": why, "source": source})
    if file is None or str(file) == "-":
        with io.TextIOWrapper(sys.stdout.buffer, "utf-8", newline="", write_through=False) as out:
            _write(out, rows)
        return
    new = file.with_name(f".{file.name}.new")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8", newline="") as to:
            count = _write(to, rows)
        new.replace(file)
    except OSError as error:
        raise Failed(f"{file}: {error.strerror}", 73) from None
    finally:
        new.unlink(missing_ok=True)
    click.echo(f"{file}: {count} {'entry' if count == 1 else 'entries'}", err=True)


def _write(out: io.TextIOBase | Any, rows: Iterator[dict[str, Any]]) -> int:
    from relay.cli.suppresscsv import COLUMNS, written

    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    count = 0
    for row in rows:
        writer.writerow(written(row))
        count += 1
    return count
