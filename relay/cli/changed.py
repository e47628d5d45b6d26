"""`relay accounts` and its `set` and `reset`, and `relay changes`: what is changed at run time, over the file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click

from relay import clock
from relay.cli import client, show
from relay.cli.client import Failed
from relay.config.changeable import EGRESS

_JSON = click.option("--json", "json_", is_flag=True, help="One JSON array of objects.")
_KEY = click.Choice(EGRESS)


@click.group(invoke_without_command=True)
@_JSON
@click.pass_context
def accounts(context: click.Context, json_: bool) -> None:
    """How each account and direct entry fares, and its limits.

    A * stands at what was changed at run time; `relay changes` tells by whom.
    """
    if context.invoked_subcommand is not None:
        return
    rows = client.ask("GET", "/v1/accounts")["accounts"]
    if json_:
        show.as_json(rows)
        return
    columns = ["NAME", "KIND", "HOST", "STATE", "CONNECTIONS", "LIMITS", "WHY"]
    show.reasons(columns, map(_line, rows), colour=3)


def _line(row: dict[str, Any]) -> list[str]:
    keys = {change["key"] for change in row["changes"]}
    limits = ", ".join(f"{one['limit']} ({one['share']:.0%} used)" for one in row["limits"]) or "none"
    connections = f"{row['sessions']} of {row['connections']}{_mark(keys & {'connections'})}"
    others = [f"{key} {row[key]}*" for key in EGRESS[2:] if key in keys]
    why = "; ".join(filter(None, [row["why"], *others]))
    return [row["name"], row["kind"], row["host"], row["state"], connections, limits + _mark(keys & {"limits"}), why]


def _mark(changed: Iterable[str]) -> str:
    return "*" if changed else ""


@accounts.command("set")
@click.argument("name")
@click.argument("key", type=_KEY)
@click.argument("value")
def accounts_set(name: str, key: str, value: str) -> None:
    """Change a limit of an account or direct entry at run time.

    It is in force at once, over restarts and reloads, until the file says something else there. VALUE is a number; of limits
    rates as in the file, with commas between them (14/s,50000/d), a JSON list, or none.
    """
    tell(client.ask("PATCH", f"/v1/accounts/{client.part(name)}", {key: value_of(key, value)}))


@accounts.command("reset")
@click.argument("name")
@click.argument("key", type=_KEY, required=False)
def accounts_reset(name: str, key: str | None) -> None:
    """Take that back, for one key or all: the file holds again."""
    path = f"/v1/accounts/{client.part(name)}"
    keys = [key] if key else [change["key"] for change in client.ask("GET", path)["changes"]]
    if not keys:
        click.echo(f"{name}: nothing is changed at run time")
        return
    tell(client.ask("PATCH", path, dict.fromkeys(keys)))


@click.command()
@_JSON
def changes(json_: bool) -> None:
    """What is changed at run time, by whom, and over what.

    IN THE FILE is what holds again once it is taken back: by `relay accounts reset` or `relay limits reset` one key, by
    `relay reload --reset` all.
    """
    from relay.config.overlay import told  # here: it wants more than click, which is all that a build has (manual)

    rows = client.ask("GET", "/v1/changes")["changes"]
    if json_:
        show.as_json(rows)
        return
    now = clock.now()
    columns = ["KEY", "VALUE", "IN THE FILE", "SINCE", "WHO"]
    lines = (
        (r["path"], told(r["value"]), told(r["file"]), show.age(now - r["at"]), show.clean(r["who"])) for r in rows
    )
    show.table(columns, lines)


def value_of(key: str, text: str) -> Any:
    """As the API takes it. Raises Failed."""
    if key == "rate" or (key == "burst" and not text.isdecimal()):
        return text
    if key != "limits":
        if not text.isdecimal():
            raise Failed(f"{key} wants a number", 64)
        return int(text)
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            raise Failed("limits wants rates (14/s,50000/d), a JSON list, or none", 64) from None
    return [] if text == "none" else [rate.strip() for rate in text.split(",")]


def tell(found: dict[str, Any]) -> None:
    """What is changed now of the entry that was."""
    from relay.config.overlay import told

    for change in found["changes"]:
        click.echo(f"{change['path']}: {told(change['value'])}; the file says {told(change['file'])}")
    if not found["changes"]:
        click.echo(f"{found['name']}: as the file has it")
    for note in found["notes"]:
        click.echo(f"  {note}")
