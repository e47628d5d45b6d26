"""`relay token`, `relay audit`: who may ask over HTTP, and who changed what.

A token's text is printed once, alone on standard output, so that it can go straight into a file or a vault.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import click

from relay import clock
from relay.cli import client, show
from relay.cli.events import since
from relay.cli.queue import duration
from relay.policy.access import SCOPES

PAGE = 1000
_JSON = click.option("--json", "json_", is_flag=True, help="One JSON array of flat objects.")


@click.group()
def token() -> None:
    """Who may ask over HTTP: make tokens, list them, revoke them.

    A token is of a user, of a tenant, or of the whole relay, and may do what its scopes say.
    """


@token.command()
@click.argument("name")
@click.option(
    "--scope", "scopes", multiple=True, required=True, type=click.Choice(SCOPES), help="What it may do; several times."
)
@click.option("--user", default="", help="It submits as this user, and sees what he submitted.")
@click.option("--tenant", default="", help="It sees what the tenant's users submitted.")
@click.option("--expires", callback=duration, help="It ends after this, such as 90d; without: when it is revoked.")
def add(name: str, scopes: tuple[str, ...], user: str, tenant: str, expires: str | None) -> None:
    """A new token: its text is all that standard output gets, and is never shown again."""
    asked: dict[str, Any] = {"name": name, "scopes": list(scopes), "user": user, "tenant": tenant}
    made = client.ask("POST", "/v1/tokens", asked | ({"expires_in": float(expires)} if expires else {}))
    click.echo(made["token"])
    ends = f"until {show.clock_time(made['expires_at'], clock.now())}" if made["expires_at"] else "until it is revoked"
    click.echo(
        f"token {made['id']} ({name}): {', '.join(made['scopes'])}; {_whose(made)}; valid {ends}. "
        "It is not shown again; `relay token revoke` ends it.",
        err=True,
    )


@token.command("list")
@_JSON
def list_(json_: bool) -> None:
    """All tokens, without their secrets; revoked and expired ones too."""
    rows = _tokens()
    if json_:
        return show.stream_json(rows)
    now = clock.now()
    count = show.table(
        ["ID", "NAME", "SCOPES", "USER", "TENANT", "STATE", "EXPIRES", "LAST USED"],
        (
            (
                *(row["id"], show.clean(row["name"]), ",".join(row["scopes"])),
                *(row["user"] or "-", row["tenant"] or "-", row["state"]),
                show.clock_time(row["expires_at"], now) if row["expires_at"] else "never",
                f"{show.age(now - row['last_used_at'])} ago" if row["last_used_at"] else "-",
            )
            for row in rows
        ),
        5,
    )
    if not count and sys.stdout.isatty():
        click.echo("no tokens; `relay token add NAME --scope submit` makes one")


@token.command()
@click.argument("number", metavar="ID")
def revoke(number: str) -> None:
    """End a token at once, by its id as `relay token list` shows it."""
    if number.startswith("relay_"):  # its whole text: the id is all that the relay is to hear
        number = number.split("_")[1]
    row = client.ask("DELETE", f"/v1/tokens/{quote(number, safe='')}")
    click.echo(f"revoked: {row['id']} ({show.clean(row['name'])}); {_whose(row)}")


def _whose(row: dict[str, Any]) -> str:
    if row["user"]:
        return f"of user {row['user']}"
    return f"of tenant {row['tenant']}" if row["tenant"] else "of the whole relay"


@click.command()
@click.option("--since", callback=since, help="From a time on, or so long ago: 1h, 2026-12-01T08:00:00Z.")
@click.option("--who", help="Glob on who asked: `token 1a2b3c4d*`, `uid 0`.")
@click.option("--act", help="Glob on method and path: `POST /v1/suspend`, `* /v1/tokens*`.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@_JSON
def audit(since: str | None, who: str | None, act: str | None, limit: int, json_: bool) -> None:
    """Who changed what, the newest first.

    STATUS is HTTP's: from 400 on nothing was changed; `?`: it began, and the relay stopped before it ended.
    """
    query = {key: value for key, value in (("since", since), ("who", who), ("act", act)) if value is not None}
    rows = _entries(query, limit)
    if json_:
        return show.stream_json(rows)
    count = show.reasons(
        ["WHEN", "WHO", "WHAT", "STATUS", "ASKED"],
        (
            (
                *(show.stamp(row["at"])[:19], show.clean(row["who"]), show.clean(row["act"])),
                *(row["status"] or "?", show.clean(_words(row))),
            )
            for row in rows
        ),
        3,
    )
    if not count and sys.stdout.isatty():
        click.echo("nobody changed anything")


def _tokens() -> Iterator[dict[str, Any]]:
    page: dict[str, Any] = {"next": ""}
    while page["next"] is not None:
        page = client.ask("GET", "/v1/tokens", query={"after": page["next"]} if page["next"] else {})
        yield from page["tokens"]


def _entries(query: dict[str, str], left: int) -> Iterator[dict[str, Any]]:
    page: dict[str, Any] = {"next": ""}
    while left > 0 and page["next"] is not None:
        before = {"before": str(page["next"])} if page["next"] else {}
        page = client.ask("GET", "/v1/audit", query=query | before | {"limit": str(min(PAGE, left))})
        yield from page["audit"]
        left -= len(page["audit"])


def _words(row: dict[str, Any]) -> str:
    """What was asked and what came of it; without what is empty text, for it was not said."""
    said = row["asked"] | row["result"]
    return ", ".join(f"{name} {_word(value)}" for name, value in said.items() if value != "")


def _word(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ("; " if any(" " in one for one in value) else " ").join(value) or "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
