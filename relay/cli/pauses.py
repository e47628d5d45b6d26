"""`relay suspend` and `relay resume`: stop mail by hand, and let it go again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from relay import clock
from relay.cli import client, show
from relay.cli.queue import duration

F = Callable[..., Any]

_SELECTORS = [
    click.option("--class", "class_", help="Mail of this traffic class."),
    click.option("--tag", help="Mail with this X-Relay-Tag."),
    click.option("--sender", help="Mail with this MAIL FROM; '' is the null sender."),
    click.option("--egress", help="What leaves by this account or direct entry."),
    click.option("--destination", help="What goes to this domain, or to this rule of `destinations`."),
    click.option("--user", help="What this user submitted."),
    click.option("--lane", help="One lane, by its lane_id."),
]


def selectors(command: F) -> F:
    for option in reversed(_SELECTORS):
        command = option(command)
    return command


def _selected(given: dict[str, str | None]) -> dict[str, str] | None:
    """Which one was named; None: none. Two would be read as both at once by one person, as either by another."""
    named = [(kind.rstrip("_"), value) for kind, value in given.items() if value is not None]
    if len(named) > 1:
        raise click.UsageError(
            f"one at a time: --{named[0][0]} or --{named[1][0]}; each is suspended and resumed by itself"
        )
    return {"kind": named[0][0], "value": named[0][1]} if named else None


@click.command()
@selectors
@click.option("--for", "for_", callback=duration, help="It resumes by itself after this, such as 2h.")
@click.option("--reason", default="", help="Told wherever somebody asks why mail waits.")
@click.option("--list", "list_", is_flag=True, help="What is suspended; the default.")
@click.option("--json", "json_", is_flag=True, help="One JSON array of flat objects; one object with a selector.")
def suspend(for_: str | None, reason: str, list_: bool, json_: bool, **given: str | None) -> None:
    """Stop mail from leaving; alone: what is suspended.

    Names may be patterns (`--tag 'order-*'`). Mail is accepted as before, and waits without an attempt. It is kept over a restart.
    """
    selected = _selected(given)
    if selected is None:
        if for_ is not None or reason:
            raise click.UsageError(
                "suspend what? Say --class, --tag, --sender, --egress, --destination, --user or --lane"
            )
        return _list(json_)
    if list_:
        raise click.UsageError("--list shows all that is suspended; say it alone")
    asked: dict[str, Any] = {**selected, "reason": reason} | ({"for": float(for_)} if for_ is not None else {})
    found = client.ask("POST", "/v1/suspend", asked)
    if json_:
        return show.as_json(found)
    now = clock.now()
    until = "until it is resumed" if found["until"] is None else f"until {show.clock_time(found['until'], now)}"
    click.echo(f"suspended: {_named(found)} {until}")
    for note in found["notes"]:
        click.echo(f"  {note}")


def _list(json_: bool) -> None:
    rows = client.ask("GET", "/v1/suspensions")["suspensions"]
    if json_:
        return show.as_json(rows)
    now = clock.now()
    count = show.table(
        ["WHAT", "VALUE", "UNTIL", "SINCE", "REASON"],
        (
            (
                *(row["kind"], row["value"] or "<>"),
                "resumed by hand" if row["until"] is None else show.clock_time(row["until"], now),
                *(show.age(now - row["at"]), row["reason"]),
            )
            for row in rows
        ),
    )
    if not count and sys.stdout.isatty():
        click.echo("nothing is suspended")


@click.command()
@selectors
@click.option("--all", "all_", is_flag=True, help="All that is suspended.")
@click.option("--json", "json_", is_flag=True, help="One JSON object.")
def resume(all_: bool, json_: bool, **given: str | None) -> None:
    """Let go what was suspended, in the same words. `--egress` also dials one that rests at once."""
    selected = _selected(given)
    if (selected is None) is not all_:
        raise click.UsageError(
            "resume wants one of --class, --tag, --sender, --egress, --destination, --user, --lane, or --all"
        )
    found = client.ask("POST", "/v1/resume", selected or {"all": True})
    if json_:
        return show.as_json(found)
    if selected and found["resumed"]:
        click.echo(f"resumed: {_named(selected)}")
    elif selected:
        click.echo(f"{_named(selected)} was not suspended{'' if found['asked_again'] else ', and does not rest'}")
    else:
        click.echo(f"resumed: {show.plural(found['resumed'], 'suspension')}")
    for name in found["asked_again"]:
        click.echo(f"  {name} rested; it is dialled again now")


def _named(selected: dict[str, Any]) -> str:
    return f"{selected['kind']} {selected['value'] or '<>'}"
