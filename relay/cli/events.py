"""`relay events`: what happens, as it happens or from any point on: a line of JSON for each event, on a terminal a readable one."""

from __future__ import annotations

import http.client
import json
import os
import select
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import click

from relay import clock
from relay.cli import client, show

WAIT = 10.0  # seconds of one question; what is written to a closed pipe is noticed so soon
PATIENCE = (0.2, 5.0)  # seconds between questions to a relay that is gone: at first, and at most
PAGE = 1000
UNAVAILABLE = 69

COLOURS = {
    "delivered": "green", "resumed": "green", "released": "green", "failed": "red", "expired": "red", "bounced": "red",
    "complained": "red", "suppressed": "red", "dsn_refused": "red", "deferred": "yellow", "in_doubt": "yellow",
    "held": "yellow", "throttled": "yellow", "paused": "yellow", "unsubscribed": "yellow", "accepted": "cyan",
    "config_changed": "magenta",
}  # fmt: skip
# What a line says in its own place, or what only programs need.
_SAID = ("id", "at", "event", "queue_id", "recipient", "recipients", "sender", "from", "egress", "code", "class", "user",
         "tenant", "tag", "stage", "seconds", "attempt", "prepared", "last_reply", "why", "remote_id")  # fmt: skip


def since(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """`1h`: so long ago; else a time of RFC 3339, a naive one being local. In epoch seconds."""
    if value is None:
        return None
    from relay.config.values import parse_duration

    try:
        return str(clock.now() - parse_duration(value))
    except ValueError:
        try:
            return str(datetime.fromisoformat(value).astimezone().timestamp())
        except (ValueError, OverflowError, OSError):
            raise click.BadParameter(f"{value!r}: expected such as 1h, or 2026-12-01T08:00:00Z") from None


_FILTERS = [
    click.option("--kind", help="Such as delivered,bounced; several with commas, as with each filter."),
    click.option("--message", help="Of one message, by its queue id."),
    click.option("--recipient", help="Glob on the recipient."),
    click.option("--domain", help="Glob on the recipient's domain."),
    click.option("--sender", help="Glob on MAIL FROM."),
    click.option("--egress", help="Glob on the account or direct entry."),
    click.option("--class", "class_", help="Glob on the traffic class."),
    click.option("--tag", help="Glob on X-Relay-Tag."),
    click.option("--user", help="Glob on the user."),
    click.option("--tenant", help="Glob on the tenant."),
]


def _filters(command: Any) -> Any:
    for option in reversed(_FILTERS):
        command = option(command)
    return command


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on for ever; without a start: with what comes from now on.")
@click.option("--after", type=click.IntRange(0), help="Those after the event of this id.")
@click.option("--since", callback=since, help="From a time on, or so long ago: 1h, 2026-12-01T08:00:00Z.")
@click.option("--limit", type=click.IntRange(1), help="At most so many, then stop.")
@click.option("--json", "--jsonl", "json_", is_flag=True, help="A line of JSON for each, on a terminal too.")
@_filters
def events(
    follow: bool, after: int | None, since: str | None, limit: int | None, json_: bool, **given: str | None
) -> None:
    """What happened and happens to mail, from any point on.

    A line of JSON for each event; the `id` of the last one goes on where it stopped: --after ID. Without a start it is all that is
    kept (spool.keep). docs/events.md has the kinds and their fields.
    """
    if after is not None and since is not None:
        raise click.UsageError("--after or --since, not both")
    query = {"class" if key == "class_" else key: value for key, value in given.items() if value}
    start = {"since": since} if since is not None else {"after": "end" if after is None and follow else str(after or 0)}
    plain = not json_ and sys.stdout.isatty()
    try:
        for event in stream(query, start, follow, limit):
            click.echo(line(event) if plain else json.dumps(event, ensure_ascii=False, separators=(",", ":")))
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        _hush()


def stream(
    query: Mapping[str, str], start: Mapping[str, str], follow: bool, limit: int | None
) -> Iterator[dict[str, Any]]:
    """Each once, in order. `follow`: a relay that is gone is waited for, once it has answered at all."""
    left, wait, reached = limit, PATIENCE[0], False
    where = dict(start)
    while left is None or left > 0:
        asked = {**query, **where, "limit": str(PAGE if left is None else min(PAGE, left))}
        try:
            # The first answer comes at once: from then on there is a cursor, and nothing of what comes meanwhile is missed.
            page = _ask(asked | ({"wait": str(WAIT)} if follow and reached else {}))
        except client.Failed as error:
            if not (follow and reached and error.exit_code == UNAVAILABLE):
                raise
            if wait == PATIENCE[0]:
                click.echo(f"{error.message}; waiting for it", err=True)
            time.sleep(wait)
            wait = min(2 * wait, PATIENCE[1])
            _look()
            continue
        reached, wait, where = True, PATIENCE[0], {"after": str(page["next"])}
        yield from page["events"]
        left = None if left is None else left - len(page["events"])
        if not follow and not page["more"]:
            return
        _look()


def _ask(query: Mapping[str, str]) -> Any:
    try:
        return client.ask("GET", "/v1/events", query=query)
    except (OSError, http.client.HTTPException, ValueError) as error:  # it went away in the middle of its answer
        raise client.Failed(f"the relay went away ({error or type(error).__name__})", UNAVAILABLE) from None


def _look() -> None:
    """Raises BrokenPipeError where nobody reads what we write any more: without news nothing would tell."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (ValueError, OSError):  # it is no file
        return
    if any(found & select.POLLERR for _, found in poll.poll(0)):
        raise BrokenPipeError


def _hush() -> None:
    """What is still to be flushed goes nowhere, without a word."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def line(event: Mapping[str, Any]) -> str:
    """For a terminal."""
    kind = str(event["event"])
    who = event.get("recipient") or event.get("address") or _several(event.get("recipients", ()))
    # Why an attempt failed holds the reply that it got.
    said = event.get("why") or event.get("last_reply") or ""
    rest = " ".join(
        f"{key}={_short(key, value)}"
        for key, value in event.items()
        if key not in _SAID and value not in ("", 0, None) and not (key == "address" and value == who)
    )
    parts = [
        f"{kind:<14}",
        event.get("queue_id", ""),
        f"<{event.get('sender', '')}> -> {who}" if kind == "accepted" else who,
        f"via {event['egress']}" if event.get("egress") else "",
        said,
        rest,
    ]
    first, *more = (show.clean(str(part)) for part in parts)
    if more[-1]:
        more[-1] = click.style(more[-1], dim=True)
    return "  ".join(
        part for part in (show.stamp(event["at"]), click.style(first, fg=COLOURS.get(kind)), *more) if part
    )


def _several(recipients: Any) -> str:
    names = list(recipients)
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else "".join(names)


def _short(key: str, value: Any) -> str:
    if key in ("due_at", "until") and isinstance(value, (int, float)):
        return show.stamp(value).partition(".")[0].replace(" ", "T")
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
