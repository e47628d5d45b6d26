"""`relay outbox`: the program that submits what applications' transactions left in their database, and its refused rows."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from relay import clock
from relay.cli import client, show
from relay.cli.client import Failed
from relay.cli.queue import duration

if TYPE_CHECKING:
    from relay.outbox import Store, Submitter, Turn

SIGNALS = {signal.SIGTERM, signal.SIGINT}
ENV = "RELAY_OUTBOX_DATABASE"
PROBLEMS = ("refused", "in_doubt")

_JSON = click.option("--json", "json_", is_flag=True, help="One JSON array of flat objects.")
_IDS = click.argument("ids", nargs=-1, type=click.IntRange(1, (1 << 63) - 1), metavar="[ID]...")
_ALL = click.option("--all", "all_", type=click.Choice(PROBLEMS), help="All rows of this state.")


def _database(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--table", default="relay_outbox", show_default=True, help="The table.")(command)
    return click.option(
        "--database",
        envvar=ENV,
        required=True,
        metavar="URL",
        callback=_without_password,
        help=f"sqlite:///FILE or postgresql://USER@HOST/NAME; with a password in {ENV} alone.",
    )(command)


def _without_password(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """An argument is seen by every user of the machine."""
    from relay.outbox.store import shows_password

    given = context.get_parameter_source("database")
    if given is click.core.ParameterSource.COMMANDLINE and shows_password(value):
        raise click.UsageError(f"a password has no place on the command line: set {ENV}, or use a ~/.pgpass")
    return value


@click.group()
def outbox() -> None:
    """Mail that an application's transaction left in its database.

    `run` submits it to the relay; the other verbs look at the table, and at what the relay refused.
    """


@outbox.command()
@_database
@click.option("--batch", type=click.IntRange(1, 1000), default=500, show_default=True, help="Rows submitted at once.")
@click.option(
    "--poll",
    default="1s",
    show_default=True,
    callback=duration,
    help="How often to look for rows, besides when the database tells of them.",
)
@click.option(
    "--doubt",
    default="5d",
    show_default=True,
    callback=duration,
    help="Rows whose first submission had no answer for longer are left to a person; less than the relay's spool.keep.",
)
@click.option("--keep", callback=duration, help="Keep rows that were sent, for so long; default: they go at once.")
@click.option("--once", is_flag=True, help="End once nothing waits that could be sent now.")
def run(database: str, table: str, batch: int, poll: str, doubt: str, keep: str | None, once: bool) -> None:
    """Submit what was committed, as long as it runs.

    The relay is that of RELAY_ENDPOINT (its socket), or of RELAY_URL and RELAY_TOKEN. SIGTERM ends it after the batch
    that is under way. Several may run on one PostgreSQL table: they share the work.
    """
    from relay.outbox import Reader

    submit = _submitter()
    with _opened(database, table) as store:
        store.check()
        reader = Reader(store, submit, batch, poll=float(poll), doubt=float(doubt), keep=float(keep or 0))
        # They wait at the door while a batch is under way, and are looked for between two.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        _say(f"submits to {submit.where}")
        last = _Told()

        def wait(seconds: float) -> bool:
            return signal.sigtimedwait(SIGNALS, seconds) is not None or (once and last.idle)

        reader.run(wait, last)
        if once and last.turn and last.turn.why:
            raise Failed(last.turn.why, 75)


class _Told:
    """What each turn did, a line where there is something to tell; a trouble once, until it is another one."""

    def __init__(self) -> None:
        self.turn: Turn | None = None
        self._why = ""

    @property
    def idle(self) -> bool:
        """Whether the last turn found nothing, or nobody to hand it to."""
        turn = self.turn
        return turn is not None and (bool(turn.why) or not (turn.sent or turn.refused or turn.in_doubt or turn.waiting))

    def __call__(self, turn: Turn) -> None:
        self.turn = turn
        counts = {
            "sent": turn.sent,
            "sent before": turn.repeated,
            "refused": turn.refused,
            "to wait": turn.waiting if not turn.why else 0,
            "in doubt": turn.in_doubt,
        }
        if line := ", ".join(f"{count} {name}" for name, count in counts.items() if count):
            _say(line)
        if turn.why and turn.why != self._why:
            _say(f"waits: {turn.why}")
        if turn.why or turn.sent:
            self._why = turn.why


def _say(line: str) -> None:
    """What the relay or a database said may stand in it."""
    click.echo(f"outbox: {show.clean(line)}", err=True)


def _submitter() -> Submitter:
    from relay.outbox import Submitter

    url = os.environ.get("RELAY_URL") or f"unix:{os.path.abspath(client.endpoint())}"
    try:
        return Submitter(url)
    except ValueError as error:
        raise Failed(f"RELAY_URL, RELAY_TOKEN: {error}", 78) from None


@contextlib.contextmanager
def _opened(database: str, table: str) -> Iterator[Store]:
    """The store, closed at the end; its errors as a word and an exit code."""
    from relay.outbox import OutboxError, open_store

    try:
        store = open_store(database, table)
    except ValueError as error:
        raise Failed(f"--table: {error}", 64) from None
    except OutboxError as error:
        raise Failed(str(error), 78) from None
    try:
        yield store
    except OutboxError as error:
        raise Failed(str(error), 69) from None
    finally:
        store.close()


@outbox.command()
@_database
@click.option("--show", "show_", is_flag=True, help="Only show the SQL, for a migration of your own.")
def create(database: str, table: str, show_: bool) -> None:
    """Make the table, where it is not there."""
    from relay.outbox import ddl

    with _opened(database, table) as store:
        if show_:
            return click.echo(";\n".join(ddl(store.dialect, table)) + ";")
        store.create()
    click.echo(f"{table} is there")
    return None


@outbox.command("list")
@_database
@click.option("--state", "state", type=click.Choice(["waiting", *PROBLEMS, "sent"]), help="Default: all but sent.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="At most so many.")
@_JSON
def list_(database: str, table: str, state: str | None, limit: int, json_: bool) -> None:
    """What waits, what was refused and why, what is in doubt."""
    with _opened(database, table) as store:
        rows = store.rows([state] if state else ["waiting", *PROBLEMS], limit)
    if json_:
        return show.as_json(rows)
    now = clock.now()
    count = show.reasons(
        ["ID", "STATE", "AGE", "TRIES", "KEY", "WHY"],
        ((r["id"], r["state"], _age(r["created_at"], now), r["attempts"], r["key"], r["last_error"]) for r in rows),
        1,
    )
    if not count and sys.stdout.isatty():
        click.echo("the outbox is empty")
    return None


def _age(at: object, now: float) -> str:
    """SQLite keeps any text where a number should be."""
    return show.age(now - at) if isinstance(at, int | float) else "?"


@outbox.command()
@_IDS
@_ALL
@_database
def retry(ids: tuple[int, ...], all_: str | None, database: str, table: str) -> None:
    """Submit rows again, under their keys.

    What is in doubt may have been sent: the relay may have forgotten its key, and would send it once more.
    """
    with _opened(database, table) as store:
        _changed(store.retry(ids, _states(ids, all_, ["waiting", *PROBLEMS])), ids, "to be submitted again")


@outbox.command()
@_IDS
@_ALL
@click.option("--yes", is_flag=True, help="Do it.")
@_database
def drop(ids: tuple[int, ...], all_: str | None, yes: bool, database: str, table: str) -> None:
    """Take rows out of the table; they are never sent."""
    states = _states(ids, all_, ["waiting", *PROBLEMS])
    with _opened(database, table) as store:
        if all_ and not yes and (count := store.counts()[all_]):
            raise Failed(f"drop would end {show.plural(count, 'row')}; say --yes to do it", 64)
        _changed(store.drop(ids, states), ids, "dropped")


def _states(ids: tuple[int, ...], all_: str | None, any_: list[str]) -> list[str]:
    if bool(ids) == bool(all_):
        raise click.UsageError("name rows by their ids, or all of a state by --all")
    return [all_] if all_ else any_


def _changed(count: int, ids: tuple[int, ...], what: str) -> None:
    click.echo(f"{show.plural(count, 'row')} {what}")
    if count < len(set(ids)):
        raise Failed(f"{len(set(ids)) - count} of those named are not there, or were sent; see `relay outbox list`", 65)
