"""`relay webhooks`: where events go, how far each endpoint has come, and what it did not take."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import click

from relay import clock
from relay.cli import client, show

PAGE = 500
_JSON = click.option("--json", "json_", is_flag=True, help="One JSON array of flat objects.")
_ONE = click.option("--json", "json_", is_flag=True, help="One JSON object.")
_YES = click.option("--yes", is_flag=True, help="Do it.")


@click.group()
def webhooks() -> None:
    """Where events go, and what was not taken there.

    Each endpoint of `webhooks`: how far it has come, its dead letters, and how to send them again.
    """


@webhooks.command("list")
@_JSON
def list_(json_: bool) -> None:
    """Each endpoint: its state, how far it is behind, and what waits."""
    rows = client.ask("GET", "/v1/webhooks")["webhooks"]
    if json_:
        return show.as_json(rows)
    now = clock.now()
    count = show.reasons(
        ["ENDPOINT", "STATE", "BEHIND", "AGE", "WAITING", "DEAD", "NEXT", "LAST ERROR"],
        (
            (
                *(
                    row["endpoint"],
                    row["state"],
                    row["lag"],
                    show.age(row["lag_seconds"]) if row["lag_seconds"] else "-",
                ),
                *(row["waiting"], row["dead"], show.clock_time(row["next_at"], now) or "-", row["error"]),
            )
            for row in rows
        ),
        1,
    )
    if not count and sys.stdout.isatty():
        click.echo("no webhooks are configured")


@webhooks.command()
@click.argument("name")
@click.option("--limit", type=click.IntRange(1), help="At most so many.")
@click.option(
    "--json", "json_", is_flag=True, help="One JSON array: each event, as it was to be sent, and why it was not taken."
)
def dead(name: str, limit: int | None, json_: bool) -> None:
    """What an endpoint did not take for too long, or refused for good."""
    rows = _dead(name, limit)
    if json_:
        return show.stream_json(rows)
    now = clock.now()
    count = show.reasons(
        ["EVENT", "KIND", "QUEUE ID", "RECIPIENT", "AGE", "TRIES", "WHY"],
        (
            (
                *(row["event"]["id"], row["event"]["event"], row["event"].get("queue_id", "-")),
                *(
                    row["event"].get("recipient", "-"),
                    show.age(now - row["event"]["at"]),
                    row["attempts"] or "-",
                    row["why"],
                ),
            )
            for row in rows
        ),
        1,
    )
    if not count and sys.stdout.isatty():
        click.echo("no dead letters")


def _dead(name: str, limit: int | None) -> Iterator[dict[str, Any]]:
    after, left = 0, limit
    while True:
        size = PAGE if left is None else min(PAGE, left)
        page = client.ask("GET", _path(name, "dead"), query={"after": str(after), "limit": str(size)})
        yield from page["dead"]
        after = page["next"]
        if left is not None:
            left -= len(page["dead"])
        if not after or left == 0:
            return


@webhooks.command()
@click.argument("name")
@click.option("--dead", "dead_", is_flag=True, help="Its dead letters.")
@click.option("--since", metavar="TIME", help="All of the stream since a time (`2026-12-01T08:00:00Z`, or `2h` ago).")
@click.option("--after", type=click.IntRange(0), metavar="ID", help="All of the stream after an event.")
@_YES
@_ONE
def replay(name: str, dead_: bool, since: str | None, after: int | None, yes: bool, json_: bool) -> None:
    """Hand over events once more.

    Dead letters (--dead), or the stream from a point on.

    Of the stream an endpoint gets again what its filter wants; whoever receives knows a repeated event by its `id`.
    """
    asked: dict[str, Any] = {}
    if dead_:
        asked["dead"] = True
    if since is not None:
        asked["since"] = _time(since)
    if after is not None:
        asked["after"] = after
    if len(asked) != 1:
        raise click.UsageError("replay wants one of --dead, --since TIME and --after ID")
    _bulk(name, "replay", asked, yes, json_, "hand over once more")


@webhooks.command()
@click.argument("name")
@_YES
@_ONE
def drop(name: str, yes: bool, json_: bool) -> None:
    """Forget an endpoint's dead letters."""
    _bulk(name, "drop", {}, yes, json_, "forget")


@webhooks.command()
@click.argument("name")
@_ONE
def test(name: str, json_: bool) -> None:
    """Send one event of the kind `test` now, and tell what came back."""
    found = client.ask("POST", _path(name, "test"), {})
    if json_:
        show.as_json(found)
    elif found["taken"]:
        click.echo(f"{name} took it, in {found['seconds'] * 1000:.0f} ms")
    if not found["taken"]:
        raise client.Failed(f"{name} did not take it: {found['why']}", 69)


def _bulk(name: str, verb: str, asked: dict[str, Any], yes: bool, json_: bool, words: str) -> None:
    found = client.ask("POST", _path(name, verb), asked | {"dry_run": not yes})
    most = "up to " if "since" in asked or "after" in asked else ""
    if not yes:
        raise client.Failed(
            f"{verb} would {words} {most}{show.plural(found['events'], 'event')}; say --yes to do it", 64
        )
    if json_:
        return show.as_json(found)
    click.echo(f"{verb}: {most}{show.plural(found['events'], 'event')}")


def _path(name: str, verb: str) -> str:
    return f"/v1/webhooks/{quote(name, safe='')}/{verb}"


def _time(text: str) -> float:
    """A date, with a time where it matters; or how long ago."""
    from relay.config.mailvalues import parse_instant
    from relay.config.values import parse_duration

    try:
        return clock.now() - parse_duration(text)
    except ValueError:
        try:
            return parse_instant(text)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--since") from None
