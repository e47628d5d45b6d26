"""`relay limits` and its `set` and `reset`, `relay shaping`, `relay alarms`, `relay reputation`.

What binds mail now, and how it is received.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from relay import clock
from relay.cli import changed, client, show
from relay.config.changeable import BESIDE, KEYS


def _rows(name: str, json_: bool) -> list[dict[str, Any]] | None:
    """None: they are printed already."""
    rows: list[dict[str, Any]] = client.ask("GET", f"/v1/{name}")[name]
    if not json_:
        return rows
    show.as_json(rows)
    return None


def _nothing(count: int, text: str) -> None:
    if not count and sys.stdout.isatty():
        click.echo(text)


_JSON = click.option("--json", "json_", is_flag=True, help="One JSON array of flat objects.")


@click.group(invoke_without_command=True)
@_JSON
@click.pass_context
def limits(context: click.Context, json_: bool) -> None:
    """How much of each limit is spent, and when there is room again."""
    if context.invoked_subcommand is not None or (rows := _rows("limits", json_)) is None:
        return
    count = show.table(
        ["WHOSE", "SPENT", "OF", "USED", "NEXT", "LIMIT"],
        (
            (
                row["whose"],
                *((row["spent"], row["count"], f"{row['share']:.0%}") if row["count"] else ("", "", "")),
                f"in {show.age(row['wait'])}" if row["wait"] >= 1 else "now",
                row["limit"],
            )
            for row in rows
        ),
    )
    _nothing(count, "nothing of any limit is spent")


_SECTION = click.argument("section", type=click.Choice(BESIDE))
_KEY = click.option("--key", type=click.Choice(sorted({*KEYS["destinations"], *KEYS["limits"]})), help="Another key.")


@limits.command("set")
@_SECTION
@click.argument("name")
@click.argument("value", metavar="RATES")
@_KEY
def limits_set(section: str, name: str, value: str, key: str | None) -> None:
    """Change the limits of a user, a tenant, a class or a destination at run time, or the rate of an entry of `limits`.

    RATES as in `relay accounts set`. An entry of `limits` has one rate, and is known by its name, as a destination is.
    Of a destination --key also says connections, messages_per_connection, recipients_per_message; of an entry of `limits` burst.
    """
    key = key or _first(section)
    _patch(section, name, {key: changed.value_of(key, value)})


@limits.command("reset")
@_SECTION
@click.argument("name")
@_KEY
def limits_reset(section: str, name: str, key: str | None) -> None:
    """Take that back, for one key or all: the file holds again."""
    found = client.ask("GET", _path(section, name))["changes"]
    keys = [key] if key else [change["key"] for change in found]
    _patch(section, name, dict.fromkeys(keys or [_first(section)]))


def _first(section: str) -> str:
    """The key that is meant where none is said."""
    return KEYS[section][0]


def _patch(section: str, name: str, wanted: dict[str, Any]) -> None:
    changed.tell(client.ask("PATCH", _path(section, name), wanted))


def _path(section: str, name: str) -> str:
    return f"/v1/limits/{section}/{client.part(name)}"


@click.command()
@_JSON
def shaping(json_: bool) -> None:
    """What is done for a time because of what upstreams said.

    Recipients whom a rule suppressed: `relay suppress list --why shaping`.
    """
    if (rows := _rows("shaping", json_)) is None:
        return
    now = clock.now()
    count = show.table(
        ["EGRESS", "DESTINATION", "WHAT", "UNTIL", "WHY"],
        ((r["egress"], r["destination"], r["what"], show.clock_time(r["until"], now), r["why"]) for r in rows),
    )
    _nothing(count, "no rule of shaping is in force")


@click.command()
@_JSON
def alarms(json_: bool) -> None:
    """What somebody should look at, until it is over."""
    if (rows := _rows("alarms", json_)) is None:
        return
    now = clock.now()
    count = show.table(
        ["WHAT", "EGRESS", "SINCE", "WHY"],
        ((row["what"], row["egress"], show.age(now - row["since"]), row["why"]) for row in rows),
    )
    _nothing(count, "no alarms")


@click.command()
@_JSON
def reputation(json_: bool) -> None:
    """How mail fared in the last 24 hours; the lowest score first.

    By egress, destination, sender and class; of what leaves by MX also by the site of its hosts, and by egress and site.
    """
    if (rows := _rows("reputation", json_)) is None:
        return
    count = show.table(
        ["WHAT", "NAME", "TRIED", "SCORE", "DEFERRED", "BOUNCED", "COMPLAINED"],
        (
            (
                *(row["what"], row["name"], row["tried"], f"{row['score']:.2f}"),
                *(_share(row, kind) for kind in ("deferrals", "bounces", "complaints")),
            )
            for row in rows
        ),
    )
    _nothing(count, "nothing was tried in the last 24 hours")


def _share(row: dict[str, Any], kind: str) -> str:
    """With the bounds between which it lies with 95 % confidence."""
    return f"{row[kind]:.1%} ({row[f'{kind}_low']:.1%} to {row[f'{kind}_high']:.1%})" if row["tried"] else ""
