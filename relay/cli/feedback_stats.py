"""`relay feedback stats`: what became of mail after it left, in figures."""

from __future__ import annotations

from typing import Any

import click

from relay.cli import client, show
from relay.cli.queue import duration

_SHARES = ("bounced_hard", "bounced_soft", "complained", "unsubscribed", "auto_replied")


@click.command("stats")
@click.option("--since", default="7d", callback=duration, show_default=True, help="How far back, such as 7d.")
@click.option("--json", "json_", is_flag=True, help="One JSON array of flat objects.")
def stats(since: str, json_: bool) -> None:
    """What came back, and how often.

    Bounces, complaints, unsubscriptions and automatic replies, by egress, class, sender and destination.

    A share is of what was sent, with the bounds between which it lies with 95 % confidence; beside it the score of the last 24 hours
    and the reasons that were given most.
    """
    found = client.ask("GET", "/v1/feedback/stats", query={"seconds": since})
    if json_:
        show.as_json(found["rows"])
        return
    columns = ["WHAT", "NAME", "SENT", "HARD", "SOFT", "COMPLAINED", "UNSUBSCRIBED", "AUTO-REPLIED", "SCORE", "REASONS"]
    show.reasons(columns, [_line(row) for row in found["rows"]], 0)


def _line(row: dict[str, Any]) -> list[Any]:
    score = "" if row["score"] is None else f"{row['score']:.2f}"
    reasons = ", ".join(f"{r['reason']} {r['count']}" for r in row["reasons"])
    return [row["what"], row["name"] or "-", row["sent"], *(_share(row, name) for name in _SHARES), score, reasons]


def _share(row: dict[str, Any], name: str) -> str:
    if not row[name]:
        return "-"
    if row[name] > row["sent"]:
        return str(row[name])
    return f"{row[name]} {row[f'{name}_rate']:.2%} ({row[f'{name}_low']:.2%} to {row[f'{name}_high']:.2%})"
