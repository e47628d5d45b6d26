"""`relay presets`: what is known of providers, with the source of each fact, and what their replies mean."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from relay import clock
from relay.cli import show
from relay.cli.client import Failed

if TYPE_CHECKING:
    from relay.policy.preset import Preset
    from relay.policy.replies import ReplyRule
    from relay.policy.shaping import ShapingRule
    from relay.reply import Trouble

WIDE = 140  # columns; on a narrower terminal a provider takes two lines
STAGES = ("banner", "ehlo", "auth", "mail", "rcpt", "data", "dot")


@click.command()
@click.argument("name", required=False)
@click.option("--reply", help='What a reply of this provider means, such as "550 5.4.5 Daily sending quota exceeded".')
@click.option("--at", type=click.Choice(STAGES), default="dot", show_default=True, help="Where --reply was said.")
@click.option("--json", "json_", is_flag=True, help="One JSON array.")
def presets(name: str | None, reply: str | None, at: str, json_: bool) -> None:
    """Which providers are known, and what is known of one.

    An account with `preset: NAME` takes from it what it does not say itself. `generic` is the dictionary of every upstream.
    """
    from relay.config import presets as known

    if name is None and reply is None:
        return _all([known.load_preset(one) for one in known.names()], json_)
    name = (name or known.GENERIC).lower()
    if name not in (*known.names(), known.GENERIC):
        raise Failed(known.no_such_preset(name), 64)
    preset = known.load_preset(name)
    if reply is not None:
        rules = preset.replies if name == known.GENERIC else preset.replies + known.generic()
        return _meaning(preset, rules, reply, at, json_)
    _one(preset, json_)


def _all(presets: list[Preset], json_: bool) -> None:
    if json_:
        return show.as_json([_row(preset) for preset in presets])
    columns = ("PRESET", "PROVIDER", "HOST", "PORT", "LIMITS", "SIGNS", "REPLIES")
    rows = [
        (p.name, p.title, _host(p), f"{p.port} {p.tls}", _limits(p) or "by account", _yes(p.signs), len(p.replies))
        for p in presets
    ]
    if not sys.stdout.isatty() or shutil.get_terminal_size().columns >= WIDE:
        show.table(columns, rows)
    else:
        more = ("; ".join(filter(None, (p.title, _limits(p), "signs" if p.signs else ""))) for p in presets)
        lines = ((row[0], row[2], row[3]) for row in rows)
        show.pairs(("PRESET", "HOST", "PORT"), zip(lines, more, strict=True), 0)
    if sys.stdout.isatty():
        click.echo("\n`relay presets NAME` tells more, with sources, and what its replies mean")


def _limits(preset: Preset) -> str:
    return ", ".join(str(rate) for rate in preset.limits)


def _host(preset: Preset) -> str:
    return preset.host or ", ".join(dict.fromkeys(preset.regions.values()))


def _row(preset: Preset) -> dict[str, Any]:
    """As --json has it: stable names, flat."""
    return {
        "name": preset.name,
        "title": preset.title,
        "about": preset.about,
        "facts": {
            key: {"value": fact.value, "source": fact.source.url, "seen": fact.source.seen, "note": fact.note}
            for key, fact in preset.facts.items()
        },
        "replies": [
            _rule(rule) | {"source": source.url} for rule, source in zip(preset.replies, preset.sources, strict=True)
        ],
        "shaping": [
            {
                "name": rule.name,
                "reply": rule.pattern.pattern,
                "does": _does(rule),
                "for": rule.seconds,
                "source": source.url,
            }
            for rule, source in zip(preset.shaping, preset.shaping_sources, strict=True)
        ],
    }


def _does(rule: ShapingRule) -> str:
    fewer = rule.connections
    parts = [
        f"slow to {rule.slow:.0%}" if rule.slow is not None else "",
        "" if fewer is None else f"{fewer:.0%} of its connections" if fewer < 1 else f"at most {fewer:.0f} connections",
        *(key if getattr(rule, key) else "" for key in ("pause", "drop", "suppress", "next", "alarm")),
    ]
    return ", ".join(part for part in parts if part)


def _rule(rule: ReplyRule) -> dict[str, Any]:
    return {
        "reply": rule.pattern.pattern,
        "at": sorted(stage.value for stage in rule.at),
        "scope": _scope(rule.scope.value),
        "verdict": "permanent" if rule.hard else "temporary",
        "then": rule.remedy.value,
        "wait": rule.wait,
        "until": str(rule.until) if rule.until else None,
        "fail_over": rule.fail_over,
        "means": rule.means,
    }


def _one(preset: Preset, json_: bool) -> None:
    if json_:
        return show.as_json([_row(preset)])
    facts = [
        (
            key,
            _written(fact.value) + (f"  ({fact.note})" if fact.note else ""),
            f"{fact.source.url}, {fact.source.seen}",
        )
        for key, fact in preset.facts.items()
    ]
    replies = [
        (rule.pattern.pattern, _suffers(rule), _time(rule), rule.means, source.url)
        for rule, source in zip(preset.replies, preset.sources, strict=True)
    ]
    click.secho(preset.title, bold=True)
    if not sys.stdout.isatty():
        click.echo(f"{preset.about}\n")
        show.table((), facts)
    else:
        show.paragraph(preset.about, 0)
        click.echo()
        for key, value, source in facts:
            click.secho(key, bold=True)
            show.paragraph(value, 2)
            click.secho(f"  {source}", dim=True)
    if replies:
        click.echo()
        click.secho("What it means by its replies", bold=True)
    if not sys.stdout.isatty():
        show.table((), replies)
    else:
        for pattern, suffers, time, means, source in replies:
            click.secho(f"  {pattern}", fg="cyan")
            show.paragraph(f"{suffers}{f', {time}' if time else ''}: {means}", 4)
            click.secho(f"    {source}", dim=True)
    _shaping(preset)
    if preset.host or preset.regions:
        click.echo(f"\nAccounts take it with `preset: {preset.name}`; what they say themselves wins.")


def _shaping(preset: Preset) -> None:
    from relay.config.values import print_duration

    rows = [
        (rule.pattern.pattern, _does(rule), print_duration(rule.seconds), source.url)
        for rule, source in zip(preset.shaping, preset.shaping_sources, strict=True)
    ]
    if rows:
        click.echo()
        click.secho("What is done for a time when it says", bold=True)
    if not sys.stdout.isatty():
        show.table((), rows)
        return
    for pattern, does, time, source in rows:
        click.secho(f"  {pattern}", fg="cyan")
        show.paragraph(f"{does}, {time}", 4)
        click.secho(f"    {source}", dim=True)


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(one) for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_written(one)}" for key, one in value.items())
    return str(value)


def _yes(value: bool | None) -> str:
    return "?" if value is None else "yes" if value else "no"


def _scope(scope: str) -> str:
    return {"egress": "account", "next_hop": "next hop"}.get(scope, scope)


def _suffers(rule: ReplyRule) -> str:
    if rule.remedy.value != "rest":
        return f"account: {'asked less often' if rule.remedy.value == 'slow' else 'fewer connections'}"
    return _scope(rule.scope.value) + (" for good" if rule.hard else "")


def _time(rule: ReplyRule) -> str:
    from relay.config.values import print_duration

    if rule.hard:
        return ""
    return f"until {rule.until}" if rule.until else print_duration(rule.wait) if rule.wait else ""


def _meaning(preset: Preset, rules: tuple[ReplyRule, ...], reply: str, at: str, json_: bool) -> None:
    from relay.policy.replies import judge
    from relay.reply import Reply, Stage

    parsed = Reply.parse(reply)
    if not parsed.code:
        raise Failed('a reply begins with its code, such as "550 5.4.5 Daily sending quota exceeded"', 64)
    if parsed.code < 400:
        raise Failed(f"{parsed.code} is no refusal, so nothing follows from it; one begins with 4 or 5", 64)
    found = judge(rules, Stage(at), parsed, clock.now())
    if json_:
        return show.as_json(
            [
                {
                    "reply": str(parsed),
                    "at": at,
                    "scope": _scope(found.scope.value),
                    "verdict": "permanent" if found.result.value == "hard" else "temporary",
                    "then": found.remedy.value,
                    "wait": found.wait,
                    "fail_over": found.fail_over if found.scope.value in ("egress", "next_hop") else None,
                    "means": found.means,
                }
            ]
        )
    click.echo("\n".join(_sentences(preset, found)))


def _sentences(preset: Preset, found: Trouble) -> list[str]:
    from relay.config.values import print_duration

    said = [
        f"means     {found.means}" if found.means else "means     what its code says; the dictionary has no word on it"
    ]
    who = {"recipient": "this recipient", "message": "this message", "destination": "all mail to the recipient's domain",
           "egress": "the account", "next_hop": "the next hop"}[found.scope.value]  # fmt: skip
    said.append(f"suffers   {who}" + (", for good" if found.result.value == "hard" else ""))
    if found.remedy.value != "rest":
        helps = "it is asked less often" if found.remedy.value == "slow" else "it gets fewer connections"
        said.append(f"then      {helps}; its mail waits, and no attempt is counted")
    if found.wait is not None:
        said.append(f"waits     {print_duration(round(found.wait))}")
    elif found.result.value != "hard" and found.remedy.value == "rest":
        rests = {
            "next_hop": "; the account rests after five in a row",
            "egress": "; the account rests for a minute, then longer, half an hour at most",
        }
        an_hour = found.scope.value == "egress" and found.means
        said.append(
            "waits     " + ("1h" if an_hour else "as `retry` of its class says" + rests.get(found.scope.value, ""))
        )
    if found.scope.value in ("egress", "next_hop"):
        takes_over = "the route's next account" if found.fail_over else "nobody: its mail waits for it"
        said.append(f"instead   {takes_over}")
    return said
