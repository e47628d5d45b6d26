"""`relay feedback stats`: what became of mail after it left, in figures."""

from __future__ import annotations

import sys
from typing import Any

import click

from relay.cli import client, show
from relay.cli.queue import duration

SHARES = {
    "bounced_hard": "hard",
    "bounced_soft": "soft",
    "complained": "complained",
    "unsubscribed": "unsubscribed",
    "auto_replied": "auto-replied",
}


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
    if not sys.stdout.isatty():
        show.table([], map(_line, found["rows"]))
    elif found["rows"]:
        narrow(found["rows"])


def narrow(rows: list[dict[str, Any]]) -> None:
    """For a terminal: only columns that hold anything; the bounds and the reasons below the line."""
    some = {name: word for name, word in SHARES.items() if any(row[name] for row in rows)}
    columns = ["WHAT", "NAME", "SENT", *(word.upper() for word in some.values()), "SCORE"]
    lines = []
    for row in rows:
        shares = [_share(row, name, bounds=False) for name in some]
        bounds = [f"{word} {text}" for name, word in some.items() if (text := _bounds(row, name))]
        _, name, sent, *_, score, reasons = _line(row)
        below = "; ".join(filter(None, (", ".join(bounds), reasons)))
        lines.append(((row["what"], name, sent, *shares, score), below))
    show.pairs(columns, lines, 0)


def _line(row: dict[str, Any]) -> list[Any]:
    score = "" if row["score"] is None else f"{row['score']:.2f}"
    reasons = ", ".join(f"{r['reason']} {r['count']}" for r in row["reasons"])
    return [row["what"], row["name"] or "-", row["sent"], *(_share(row, name) for name in SHARES), score, reasons]


def _share(row: dict[str, Any], name: str, *, bounds: bool = True) -> str:
    if not row[name]:
        return "-"
    if row[name] > row["sent"]:
        return str(row[name])
    return f"{row[name]} {row[f'{name}_rate']:.2%}" + (f" ({_bounds(row, name)})" if bounds else "")


def _bounds(row: dict[str, Any], name: str) -> str:
    """Empty where there is no share."""
    if not row[name] or row[name] > row["sent"]:
        return ""
    return f"{row[f'{name}_low']:.2%} to {row[f'{name}_high']:.2%}"
