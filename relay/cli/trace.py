"""`relay queue trace`: one message's story, told for people: what happened, when, why, and what comes next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from relay import clock
from relay.cli import client, show
from relay.cli.events import COLOURS

Event = Mapping[str, Any]
_CAUSES = {"hard_bounce": "a hard bounce", "complaint": "a complaint", "soft_bounces": "soft bounces",
           "unsubscribe": "an unsubscription", "manual": "an operator", "shaping": "a rule of shaping"}  # fmt: skip


@click.command("trace")
@click.argument("queue_id")
@click.option("--json", "json_", is_flag=True, help="One JSON object: message and events.")
def trace(queue_id: str, json_: bool) -> None:
    """One message's story, in sentences.

    What happened to it, when and why, what came back, and what comes next.
    """
    found = client.ask("GET", client.message(queue_id, "/trace"))
    if json_:
        show.as_json(found)
        return
    now, message = clock.now(), found["message"]
    if message is None:
        click.secho(found["events"][0]["queue_id"], bold=True)
        click.echo("  it is forgotten (spool.keep), but for this")
    else:
        _header(message, now)
    click.secho("\nStory", bold=True)
    several = message is not None and len(message["recipients"]) > 1
    for text, fg in story(found["events"], several=several):
        click.secho(text, fg=fg)
    if message is not None:
        click.secho("\nNow", bold=True)
        for row in message["recipients"]:
            for text in now_of(row, now):
                click.echo(text)


def _header(message: Mapping[str, Any], now: float) -> None:
    to = [r["recipient"] for r in message["recipients"]]
    click.secho(message["queue_id"], bold=True)
    size = f"{message['size']:,} bytes, body {message['body']}"
    sender = f"<{message['sender']}>" + (" (a report of ours)" if message["report"] else "")
    facts = {
        "sender": sender,
        "from": message["header_from"],
        "to": f"{to[0]} and {len(to) - 1} more" if len(to) > 1 else "".join(to),
        **{name: message[name] for name in ("class", "tag", "user", "tenant", "listener", "client")},
        "size": size,
        "accepted": f"{show.stamp(message['accepted_at'])} ({show.age(now - message['accepted_at'])} ago)",
    }
    for name, value in facts.items():
        if value:
            click.echo(f"  {name:10} {show.clean(str(value))}")


def story(events: list[dict[str, Any]], *, several: bool) -> Iterator[tuple[str, str | None]]:
    """(line, colour): each event a sentence, with its time and how long after the one before it; below it what there is more."""
    last: float | None = None
    for event in events:
        wait = "" if last is None else f"+{show.span(event['at'] - last)}" if event["at"] - last >= 1 else "+0s"
        last = event["at"]
        about = f"{event['recipient']}: " if several and event.get("recipient") else ""
        kind = event["event"]
        yield f"  {show.stamp(event['at'])}  {wait:>8}  {show.clean(about + sentence(event))}", COLOURS.get(kind)
        for more in details(event):
            yield f"{'':43}{show.clean(more)}", None


def sentence(event: Event) -> str:
    """What happened, in words."""
    tell = _SENTENCES.get(event["event"])
    return tell(event) if tell else f"{event['event']}: {_said(event)}"


def _said(event: Event) -> str:
    return str(event.get("why") or event.get("last_reply") or "")


def _via(event: Event) -> str:
    return f" by {event['egress']}" if event.get("egress") else ""


def _try(event: Event) -> str:
    attempt = event.get("attempt")
    return f" (try {attempt}, {event.get('seconds', 0):g} s)" if attempt else ""


def _stage(event: Event) -> str:
    return f" at {event['stage']}" if event.get("stage") else ""


def _accepted(event: Event) -> str:
    to = event.get("recipients", ())
    return f"accepted for {to[0] if len(to) == 1 else show.plural(len(to), 'recipient')}" if to else "accepted"


def _came_back(event: Event) -> str:
    hard = {"hard": "for good", "soft": "for now"}.get(event.get("bounce_class", ""), "")
    words = (event.get("status"), event.get("reason"), event.get("reply") or event.get("last_reply"))
    said = " ".join(str(word) for word in words if word)
    return f"it came back{f', {hard}' if hard else ''}{_heard(event)}: {said or _said(event)}"


_DOORS = {"bounce": "at the SMTP door", "unsubscribe": "by List-Unsubscribe"}


def _heard(event: Event) -> str:
    source = event.get("source") or event.get("reporter")
    return f" (heard {_DOORS.get(source, f'by {source}')})" if source else ""


_SENTENCES: Mapping[str, Callable[[Event], str]] = {
    "accepted": _accepted,
    "deferred": lambda e: f"deferred{_via(e)}{_stage(e)}{_try(e)}: {e.get('last_reply') or _said(e)}",
    "delivered": lambda e: f"delivered{_via(e)}{_try(e)}: {e.get('last_reply', '')}",
    "in_doubt": lambda e: f"in doubt{_via(e)}: {_said(e).removeprefix('in doubt: ')}",
    "failed": lambda e: f"failed{_via(e)}{_stage(e)}{_try(e)}: {_said(e)}",
    "expired": lambda e: f"given up{_via(e)}: {_said(e)}",
    "suppressed": lambda e: f"not sent, its recipient is suppressed: {_said(e)}",
    "discarded": lambda e: f"discarded: {_said(e)}",
    "captured": lambda e: f"kept here by `capture`: {_said(e)}",
    "held": lambda e: f"held: {_said(e)}",
    "released": _said,
    "retried": _said,
    "cancelled": _said,
    "rerouted": _said,
    "failed_over": lambda e: f"not taken{_via(e)}, the next one was tried: {_said(e)}",
    "bounced": _came_back,
    "complained": lambda e: f"its recipient complained{_heard(e)} {_said(e)}".rstrip(),
    "unsubscribed": lambda e: f"its recipient unsubscribed{_heard(e)} {_said(e)}".rstrip(),
    "auto_replied": lambda e: f"a machine answered{_heard(e)}: {_said(e)}",
    "dsn_refused": lambda e: f"the report was refused{_via(e)}: {_said(e)}",
    "reported": lambda e: f"its sender is told: {_said(e)}",
    "not_reported": lambda e: f"its sender is not told: {_said(e)}",
    "report_on": lambda e: f"this is a {_said(e)}",
    "suppression_added": lambda e: f"suppressed from now on: {e.get('address', '')} {_said(e)}".rstrip(),
    "suppression_removed": lambda e: f"suppressed no more: {e.get('address', '')} {_said(e)}".rstrip(),
}


def details(event: Event) -> Iterator[str]:
    """What there is beside the sentence."""
    if there := ", ".join(str(event[key]) for key in ("remote", "tls") if event.get(key)):
        yield f"by {there}"
    if event.get("remote_id"):
        yield f"its id there: {event['remote_id']}"
    yield from event.get("prepared", ())
    if event.get("due_at"):
        yield f"next try: {show.stamp(event['due_at'])}, {show.span(event['due_at'] - event['at'])} later"
    if event["event"] == "in_doubt" and event.get("state"):
        yield f"it is {event['state']} now"


def now_of(row: Mapping[str, Any], now: float) -> Iterator[str]:
    """What becomes of a recipient, and what suppresses it."""
    via = f" via {row['egress']}" if row["egress"] else ""
    tries = f"{row['attempts']} {'try' if row['attempts'] == 1 else 'tries'}"
    doubt = ", in doubt: it may arrive twice" if row["in_doubt"] else ""
    state = click.style(row["state"], fg=show.COLOURS.get(row["state"]) or None)
    yield f"  {show.clean(row['recipient'])}  {state}{via}, {tries}{doubt}"
    if row["state"] not in ("delivered", "failed"):
        if row["why"]:
            yield f"      why: {show.clean(row['why'])}"
        if row["next_at"] and row["state"] != "active":
            yield f"      next: {show.clock_time(row['next_at'], now)}"
        if row["eta"]:
            behind = f", behind {row['before']} of its lane" if row["before"] else ""
            rule = f": {row['rule']}" if row["rule"] else ""
            yield f"      leaves: about {show.clock_time(row['eta'], now)}{behind}{rule}"
    for entry in row["suppressed"]:
        until = f" until {show.stamp(entry['until'])}" if entry["until"] else ""
        scope = entry["scope"] or "all mail"
        cause = _CAUSES.get(entry["why"], entry["why"])
        yield f"      suppressed for {scope}{until}, by {cause}: {show.clean(entry['evidence'])}".rstrip(": ")
