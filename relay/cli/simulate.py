"""`relay simulate`: what would leave when, by which egress, and which rule holds it."""

from __future__ import annotations

import contextlib
import csv
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay import clock
from relay.cli import client, show
from relay.cli.client import Failed
from relay.cli.queue import duration

if TYPE_CHECKING:
    from relay.settings import Config
    from relay.simulate.result import Result
    from relay.simulate.run import Simulation
    from relay.simulate.snapshot import Snapshot
    from relay.simulate.traffic import Traffic, Wave

DATA, CONFIG = 65, 78
MOST_RULES = 12  # that are told
F = Callable[..., Any]
_OF_SEND = ("sender", "recipient", "class_", "user", "tag", "size", "over")

_FILE = click.Path(dir_okay=False, path_type=Path)
_OPTIONS = [
    click.option("--plan", type=click.Path(exists=True, dir_okay=False, allow_dash=True), help="A CSV: what is to be sent."),
    click.option("--queue", is_flag=True, help="What waits in the relay that runs, with what it has spent and learnt."),
    click.option("--send", type=click.IntRange(1), help="So many messages, instead of a file:"),
    click.option("--from", "sender", default="", help="  their MAIL FROM, and From,"),
    click.option("--to", "recipient", default="example.net", help="  to whom: a domain, or gmail.com=60,outlook.com=40,"),
    click.option("--class", "class_", default="", help="  of this traffic class,"),
    click.option("--user", default="", help="  from this user,"),
    click.option("--tag", default="", help="  with this tag,"),
    click.option("--size", default="", help="  of this size, such as 40kB,"),
    click.option("--over", default="", help="  handed in evenly over this time, such as 2h; else at once."),
    click.option("--start", default="", help="When it begins: 2026-12-01T09:00, or +2h; else now."),
    click.option("--until", default="", help="It ends then at the latest, such as +2d."),
    click.option("--seconds", callback=duration, default="100ms", help="That each message takes on its session."),
    click.option("--config", "--with", "file", type=_FILE, help="By this file; else by the relay's own."),
    click.option("--csv", "csv_", type=_FILE, help="All messages, into this file."),
    click.option("--plot", type=_FILE, help="A picture, into this file (.svg)."),
    click.option("--json", "json_", is_flag=True, help="One JSON array: a flat object for each message."),
]  # fmt: skip


def _options(command: F) -> F:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@_options
def simulate(**given: Any) -> None:
    """What would leave when, by which egress, and what waits.

    The relay's own rules decide, on a clock that runs ahead. Nothing is sent. Several of --queue, --plan and --send are one
    simulation.

    A plan has a line for each so many messages, or for each message of the past: columns time and recipient, and if wanted
    count, sender, class, user, tag, size, spread.
    """
    if not (given["queue"] or given["plan"] or given["send"]):
        raise click.UsageError("simulate what? Say --queue, --plan FILE or --send COUNT")
    plot: Path | None = given["plot"]
    if plot is not None and plot.suffix.lower() != ".svg":
        raise click.UsageError(f"--plot draws SVG: name a file that ends in .svg, not {plot.name}")
    config = _config(given["file"])
    start, waves, snapshot = _input(given)
    if snapshot and not given["file"]:
        config = _in_force(config, snapshot)
    _tell_unknown(config, waves)
    from relay.simulate.asked import made

    simulation, traffic = made(config, start, float(given["seconds"]), waves, snapshot)
    result = _run(
        simulation, traffic, waves, _moment(given["until"], simulation.start, "--until") if given["until"] else None
    )
    if given["csv_"]:
        _write_csv(given["csv_"], result)
    if plot is not None:
        _draw(plot, result, simulation)
    if given["json_"]:
        from relay.simulate.result import row

        return show.stream_json(map(row, result.left))
    _told(result, simulation, traffic)


# -- what goes in


def _config(file: Path | None) -> Config:
    import os

    from relay.config.load import ConfigError, load
    from relay.config.places import config_file

    try:
        return load(file or config_file(os.environ))
    except ConfigError as error:
        raise Failed(str(error), CONFIG) from None


def _in_force(config: Config, snapshot: Snapshot) -> Config:
    """With what is changed at run time in the relay whose queue it is."""
    from relay.config import overlay
    from relay.config.load import under

    text = snapshot.documents.get(overlay.DOCUMENT)
    return under(config, overlay.read(text))[0] if text else config


def _tell_unknown(config: Config, waves: list[Wave]) -> None:
    """Names that choose nothing: most likely they are mistyped."""
    for what, known, named in (
        ("class", {*config.classes, "default", ""}, {wave.class_ for wave in waves}),
        ("user", {*config.users, ""}, {wave.user for wave in waves}),
    ):
        for name in sorted(named - known):
            there = ", ".join(sorted(known - {""})) or "none"
            click.secho(
                f"no {what} {name!r} in the configuration, it chooses nothing; there is {there}", fg="yellow", err=True
            )


def _moment(text: str, start: float, option: str) -> float:
    from relay.simulate.plans import moment

    try:
        return moment(text, start)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None


def _input(given: dict[str, Any]) -> tuple[float, list[Wave], Snapshot | None]:
    """When it begins, what is planned, and what waits already."""
    from relay.simulate.asked import many
    from relay.simulate.plans import BadPlan, read

    snapshot = _queue() if given["queue"] else None
    now = snapshot.now if snapshot else clock.now()
    start, waves = _moment(given["start"], now, "--start"), list[Any]()
    if given["plan"]:
        try:
            with click.open_file(given["plan"], encoding="utf-8-sig") as file:
                waves += read(file, start)
        except BadPlan as error:
            raise Failed("\n".join(f"{given['plan']}: {line}" for line in str(error).splitlines()), DATA) from None
        except UnicodeDecodeError:
            raise Failed(f"{given['plan']}: it is no text in UTF-8", DATA) from None
    if given["send"]:
        asked = {name.rstrip("_"): given[name] for name in _OF_SEND}
        try:
            waves.append(many(asked, given["send"], start))
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    if not waves and (snapshot is None or not snapshot.recipients):
        click.secho("nothing to send", fg="yellow", err=True)
    return start, waves, snapshot


def _queue() -> Snapshot:
    from relay.simulate.snapshot import Snapshot

    def pages() -> Iterator[dict[str, Any]]:
        after = ""
        while True:
            page = client.ask("GET", "/v1/simulation", query={"after": after} if after else None)
            yield page
            after = page["next"]
            if not after:
                return

    return Snapshot.of(pages())


def _run(simulation: Simulation, traffic: Traffic, waves: list[Wave], until: float | None) -> Result:
    from relay.simulate.asked import leaving
    from relay.simulate.result import Result

    result = Result()
    total = simulation.shelf.waiting + sum(wave.count for wave in waves)
    with _progress(total) as step:
        for left in leaving(simulation, traffic, waves, until):
            result.add(left)
            step(left.recipients)
    return result


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar where somebody waits at a terminal."""
    if not sys.stderr.isatty() or total < 5000:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("simulating", total=total)
        yield lambda count: bar.advance(task, count)


# -- what comes out


def _write_csv(file: Path, result: Result) -> None:
    from relay.simulate.result import COLUMNS, row, written

    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(COLUMNS)
        writer.writerows(written(row(left)) for left in result.left)


def _draw(file: Path, result: Result, simulation: Simulation) -> None:
    from relay.simulate.picture import svg
    from relay.simulate.result import series

    end = result.left[-1].at if result.left else simulation.now
    start = min((left.due_at for left in result.left), default=simulation.start)
    made = series(result.left, max(start, simulation.start), end, simulation.shelf.dues())
    expired = f", {show.plural(simulation.shelf.expired, 'recipient')} expire" if simulation.shelf.expired else ""
    title = f"{show.plural(len(result.left), 'message')} leave from {_time(simulation.start)}{expired}"
    file.write_text(svg(made, title), encoding="utf-8")


def _time(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _told(result: Result, simulation: Simulation, traffic: Traffic) -> None:
    columns = ["EGRESS", "CLASS", "MESSAGES", "FIRST", "LAST", "MOST/H", "LONGEST WAIT", "HELD MOST BY"]
    show.reasons(
        columns,
        (
            [
                *(part.egress, part.class_, part.messages, _time(part.first), _time(part.last), part.peak),
                *(show.span(part.longest), part.bound),
            ]
            for part in sorted(result.parts.values(), key=lambda part: part.first)
        ),
        1,
    )
    if result.held:
        click.secho("\nWhat holds mail back", bold=True)
    for rule, seconds in result.held.most_common(MOST_RULES):
        count = result.rules[rule]
        click.echo(f"  {rule}: {show.plural(count, 'message')}, {show.span(seconds / count)} each on average")
    if len(result.held) > MOST_RULES:
        click.echo(f"  and {len(result.held) - MOST_RULES} more")
    click.echo()
    for line, colour in _notes(result, simulation, traffic):
        click.secho(line, fg=colour)


def _notes(result: Result, simulation: Simulation, traffic: Traffic) -> Iterator[tuple[str, str | None]]:
    for why, count in traffic.turned_away.most_common():
        yield f"{show.plural(count, 'message')} not queued: {why}", "yellow"
    if simulation.ended:
        yield f"{show.plural(simulation.ended, 'recipient')} of the queue would be ended by a rule, not sent", "yellow"
    if simulation.shelf.expired:
        expired = show.plural(simulation.shelf.expired, "recipient")
        yield f"{expired} would expire before their turn: `retry.give_up` of their class is too short", "red"
    if simulation.shelf.waiting:
        yield (
            f"{show.plural(simulation.shelf.waiting, 'recipient')} would still wait at {_time(simulation.now)}",
            "yellow",
        )
        for why, count in simulation.stuck().most_common(5):
            yield f"  {count}: {why}", "yellow"
    yield f"Every message is taken at its first try, after {simulation.seconds * 1000:g} ms on its session.", None
    if simulation.guesses:
        yield (
            "Where a domain's mail goes was not looked up: a domain that is not well known counts as its own host.",
            None,
        )
