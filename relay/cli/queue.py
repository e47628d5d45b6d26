"""`relay queue`: look at what is queued, and act on it."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from relay import clock
from relay.cli import client, show
from relay.cli.trace import trace

F = Callable[..., Any]
_WAITING = ("queued", "deferred", "active", "held")
MOST_LANES = 50  # that a terminal is shown
WIDE = 170  # columns; on a narrower terminal a recipient takes two lines


def duration(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """An option such as `2h`, in seconds."""
    if value is None:
        return None
    from relay.config.values import parse_duration

    try:
        return str(parse_duration(value))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


_FILTERS = [
    click.option("--sender", help="Glob on MAIL FROM."),
    click.option("--recipient", help="Glob on the recipient."),
    click.option("--domain", help="Glob on the recipient's domain."),
    click.option("--egress", help="The account or direct entry that was tried last, or that it waits for."),
    click.option("--route", help="The route that takes it now."),
    click.option("--class", "class_", help="Traffic class."),
    click.option("--tag", help="X-Relay-Tag."),
    click.option("--user", help="The user who submitted it."),
    click.option("--state", help="queued, deferred, active, held, delivered, failed; several with commas."),
    click.option("--error", help="Text in why or in the last reply."),
    click.option("--older-than", callback=duration, help="Accepted longer ago than, such as 2h."),
]


def filters(command: F) -> F:
    for option in reversed(_FILTERS):
        command = option(command)
    return command


def _wanted(ids: tuple[str, ...], given: dict[str, Any]) -> dict[str, str]:
    named = {"class" if k == "class_" else k: str(v) for k, v in given.items() if v}
    return ({"id": ",".join(ids)} if ids else {}) | named


@click.group()
def queue() -> None:
    """Look at mail and act on it: where it is, why it waits."""


@queue.command("list")
@filters
@click.option("--all", "all_", is_flag=True, help="Delivered and failed ones too.")
@click.option("--limit", type=click.IntRange(1), help="At most so many.")
@click.option("--json", "json_", is_flag=True, help="One JSON array of flat objects.")
def list_(all_: bool, limit: int | None, json_: bool, **given: Any) -> None:
    """What waits, the oldest first; --all: what is done too.

    A line for each recipient. --state selects those that are done too.
    """
    if not all_ and not given["state"]:
        given["state"] = "queued,deferred,active,held"
    rows = client.recipients(_wanted((), given), limit)
    if json_:
        show.stream_json(rows)
        return
    now = clock.now()
    if sys.stdout.isatty() and shutil.get_terminal_size().columns < WIDE:
        columns = ["QUEUE ID", "STATE", "RECIPIENT", "TRIES", "AGE", "NEXT"]
        count = show.pairs(columns, (_pair(row, now) for row in rows), 1)
    else:
        count = show.table(
            ["QUEUE ID", "STATE", "RECIPIENT", "SENDER", "LANE", "TRIES", "AGE", "NEXT", "WHY"],
            (_line(row, now) for row in rows),
            colour=1,
        )
    if sys.stdout.isatty():
        click.echo(show.plural(count, "recipient") if count else "nothing waits; --all shows what is done")


def _line(row: dict[str, Any], now: float) -> list[Any]:
    why = row["why"] or row["last_reply"]
    sender = "a report" if row["report"] else f"<{row['sender']}>"
    return [
        *(row["queue_id"], row["state"], row["recipient"], sender, row["lane"], row["attempts"]),
        *(show.age(now - row["accepted_at"]), show.clock_time(row["next_at"], now), why),
    ]


def _pair(row: dict[str, Any], now: float) -> tuple[list[Any], str]:
    number, state, recipient, sender, lane, tries, age, following, why = _line(row, now)
    return [number, state, recipient, tries, age, following], f"{sender}  {lane}  {why}".rstrip()


@queue.command("show")
@click.argument("queue_id")
@click.option("--json", "json_", is_flag=True, help="One JSON object.")
def show_(queue_id: str, json_: bool) -> None:
    """One message: its recipients, its story, its header block."""
    found = client.ask("GET", client.message(queue_id))
    if json_:
        show.as_json(found)
        return
    now = clock.now()
    click.secho(found["queue_id"], bold=True)
    for name in ("sender", "header_from", "class", "tag", "user", "listener", "client", "size", "body"):
        if found[name] != "":
            click.echo(f"  {name.replace('header_from', 'from'):10} {found[name]}")
    for about in [e["message"] for e in found["events"] if e["kind"] == "report_on"]:
        click.echo(f"  {'report on':10} {about}")
    click.echo(f"  {'accepted':10} {show.stamp(found['accepted_at'])} ({show.age(now - found['accepted_at'])} ago)")
    click.secho("\nRecipients", bold=True)
    for r in found["recipients"]:
        click.echo(f"  {r['recipient']}  ", nl=False)
        fg = show.COLOURS.get(r["state"])
        click.echo(click.style(r["state"], fg=fg) if fg else r["state"], nl=False)
        doubt = "  in doubt: it may arrive twice" if r["in_doubt"] else ""
        click.echo(
            f"  {r['attempts']} {'try' if r['attempts'] == 1 else 'tries'}  via {r['egress'] or '-'}  lane {r['lane']}{doubt}"
        )
        for label, value in (
            *(("why", r["why"]), ("last reply", r["last_reply"])),
            *(("by", _by(r)), ("its id there", r["remote_id"]), ("asked for reports", r["notify"])),
        ):
            if value:
                click.echo(f"      {label}: {value}")
        if r["next_at"] and r["state"] != "active":
            click.echo(f"      next: {show.clock_time(r['next_at'], now)}")
        if r["eta"]:
            behind = f", behind {r['before']} of its lane" if r["before"] else ""
            rule = f": {r['rule']}" if r["rule"] else ""  # which may begin with a word of its own: `in its quiet hours`
            click.echo(f"      leaves: about {show.clock_time(r['eta'], now)}{behind}{rule}")
    click.secho("\nStory", bold=True)
    for e in found["events"]:
        who = "" if e["n"] is None else f" {found['recipients'][e['n']]['recipient']}"
        said = e.get("why") or e.get("last_reply") or ""
        click.echo(f"  {show.stamp(e['at'])}  {e['kind']}{who}{' via ' + e['egress'] if e['egress'] else ''}  {said}")
        if by := _by(e):
            click.echo(f"      by {by}")
        for line in e.get("prepared", ()):
            click.echo(f"      {line}")
    click.secho("\nHeader, as it came", bold=True)
    click.echo("  " + found["head"].strip().replace("\r\n", "\n  "))


def _by(told: dict[str, Any]) -> str:
    """Which of its domain's hosts it was, and how safe the way there, where it left by MX."""
    return ", ".join(filter(None, (told.get("remote"), told.get("tls"))))


@queue.command("stats")
@click.option("--json", "json_", is_flag=True, help="One JSON object.")
def stats(json_: bool) -> None:
    """Counts by state, by lane, and what each account does.

    Below a direct entry: those of its destinations that matter.
    """
    found = client.ask("GET", "/v1/stats")
    if json_:
        show.as_json(found)
        return
    click.echo("  ".join(f"{name} {count}" for name, count in found["states"].items()))
    now = clock.now()
    click.echo()
    lanes, more = _merged(found["lanes"]), 0
    if sys.stdout.isatty() and len(lanes) > MOST_LANES:
        more = len(lanes) - MOST_LANES
        lanes = sorted(lanes, key=lambda lane: -sum(lane[s] for s in _WAITING))[:MOST_LANES]
    show.reasons(
        ["LANE", "QUEUED", "DEFERRED", "ACTIVE", "HELD", "OLDEST", "NEXT", "WHY"],
        [
            [lane["lane"], *(lane[s] for s in _WAITING), show.age(lane["oldest_age"]),
             show.clock_time(lane["next_at"], now), lane["why"]]
            for lane in lanes
        ],
        0,
    )  # fmt: skip
    if more:
        click.echo(f"… and {show.plural(more, 'lane')} more with fewer recipients; --json has them all")
    click.echo()
    show.reasons(
        ["ACCOUNT", "HOST", "STATE", "SESSIONS", "IN FLIGHT", "WAIT", "WHY"],
        [
            [_named(e), e["host"], _state(e), _sessions(e), e["in_flight"],
             show.span(max(1, e["wait"])) if e["wait"] else "-", e["why"]]
            for e in found["egresses"]
        ],
        2,
    )  # fmt: skip


def _named(egress: dict[str, Any]) -> str:
    """A direct entry's destinations stand below it."""
    return f"{egress['egress']} to {egress['destination']}" if egress["destination"] else str(egress["egress"])


def _sessions(egress: dict[str, Any]) -> str:
    """How many are open; to a destination also how many at once it is heard to bear."""
    return f"{egress['sessions']} of {egress['connections']}" if egress["destination"] else str(egress["sessions"])


def _state(egress: dict[str, Any]) -> str:
    """One that is well may have to wait all the same: for its limit, or for what it was learnt to take."""
    return "waits" if egress["state"] == "ready" and egress["wait"] else str(egress["state"])


def _merged(lanes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What waits, by the lanes' names: for an operator those of one class and route are one."""
    made: dict[str, dict[str, Any]] = {}
    for lane in lanes:
        if not any(lane.get(s) for s in _WAITING):
            continue
        row = made.setdefault(
            lane["lane"],
            {"lane": lane["lane"], "oldest_age": 0.0, "next_at": None, "why": "", **dict.fromkeys(_WAITING, 0)},
        )
        for state in _WAITING:
            row[state] += lane.get(state, 0)
        row["oldest_age"] = max(row["oldest_age"], lane["oldest_age"])
        row["next_at"] = min((t for t in (row["next_at"], lane["next_at"]) if t is not None), default=None)
        row["why"] = row["why"] or lane["why"]
    return list(made.values())


def _act(verb: str, help_: str, *, confirm: bool = False, with_target: bool = False) -> click.Command:
    @click.argument("queue_ids", nargs=-1)
    @filters
    @click.option("--dry-run", is_flag=True, help="Say what would be done, change nothing.")
    @click.option("--json", "json_", is_flag=True, help="One JSON object.")
    def command(queue_ids: tuple[str, ...], dry_run: bool, json_: bool, **given: Any) -> None:
        to, yes = str(given.pop("to", None) or ""), bool(given.pop("yes", False))
        if with_target and not to and not given.pop("by_rules", False):
            raise click.UsageError("reroute wants --to ACCOUNT or --to ROUTE, or --by-rules to undo an earlier one")
        given.pop("by_rules", None)
        asked = {"filter": _wanted(queue_ids, given), "to": to}
        if confirm and not yes and not dry_run:
            found = client.ask("POST", f"/v1/queue/{verb}", asked | {"dry_run": True})
            count = show.plural(found["recipients"], "recipient")
            raise client.Failed(f"{verb} would end {count}; say --yes to do it, --dry-run to look", 64)
        found = client.ask("POST", f"/v1/queue/{verb}", asked | {"dry_run": dry_run})
        if json_:
            show.as_json(found)
        else:
            _told(verb, found)
        for line in found["skipped"]:
            click.echo(line, err=True)
        if queue_ids and not found["recipients"]:
            sys.exit(65)

    if confirm:
        command = click.option("--yes", is_flag=True, help="Do it.")(command)
    if with_target:
        command = click.option("--to", help="An account, direct entry, pool or route.")(command)
        command = click.option("--by-rules", is_flag=True, help="Forget an earlier reroute: the rules decide.")(command)
    return click.command(verb, help=help_)(command)


def _told(verb: str, found: dict[str, Any]) -> None:
    dry = " (dry run)" if found["dry_run"] else ""
    click.echo(f"{verb}{dry}: {show.plural(found['recipients'], 'recipient')}")
    for line in found["sample"]:
        click.echo(f"  {line}")
    if found["recipients"] > len(found["sample"]):
        click.echo(f"  … and {found['recipients'] - len(found['sample'])} more")
    for line in found["notes"]:
        click.secho(line, fg="yellow")


for _command in (
    _act("retry", "Try now, not later. Limits, and an account that rests, still make it wait."),
    _act("hold", "Keep it until it is released."),
    _act("release", "Let go what is held."),
    _act("cancel", "End it: it is not delivered, and stays visible as failed.", confirm=True),
    _act("reroute", "Send it another way, and try now.", with_target=True),
):
    queue.add_command(_command)


@queue.command("export")
@click.argument("queue_ids", nargs=-1)
@filters
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    help="A file for one message, else a folder; default: standard output.",
)
@click.option("--force", is_flag=True, help="Write over files that are there.")
def export(queue_ids: tuple[str, ...], output: Path | None, force: bool, **given: Any) -> None:
    """Messages as .eml, as they came in.

    That is before they are rewritten and signed, which is done for each try.
    """
    wanted = _wanted(queue_ids, given)
    if not wanted:
        raise click.UsageError("export wants queue ids or a filter")
    ids = (
        list(queue_ids)
        if list(wanted) == ["id"]
        else list(dict.fromkeys(r["queue_id"] for r in client.recipients(wanted)))
    )
    if len(ids) > 1 and output is None:
        raise click.UsageError(f"{len(ids)} messages: say --output FOLDER")
    if not ids:
        raise client.Failed("nothing matches", 65)
    if output is None:
        for data in client.stream(client.message(ids[0], "/raw")):
            sys.stdout.buffer.write(data)
        return
    if len(ids) == 1 and not output.is_dir():
        _save(ids[0], output, force)
        click.echo(f"wrote {output}")
        return
    output.mkdir(parents=True, exist_ok=True)
    missing: list[client.Failed] = []
    with contextlib.ExitStack() as stack:
        numbers: Iterable[str] = ids
        if sys.stderr.isatty():
            numbers = stack.enter_context(click.progressbar(ids, label="export", file=sys.stderr))
        for number in numbers:
            try:
                _save(number, output / f"{Path(number).name}.eml", force)
            except client.Failed as error:
                if error.exit_code not in (65, 73):
                    raise
                missing.append(error)
    click.echo(f"wrote {show.plural(len(ids) - len(missing), 'message')} into {output}")
    if missing:
        lines = [error.message for error in missing[:20]]
        raise client.Failed("\n".join([*lines, *(["…"] if len(missing) > 20 else [])]), missing[0].exit_code)


def _save(number: str, path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise client.Failed(f"{path} is there already; --force writes over it", 73)
    slices = client.stream(client.message(number, "/raw"))
    first = next(slices, b"")  # a refusal leaves no empty file behind
    with path.open("wb") as file:
        file.write(first)
        file.writelines(slices)


@queue.command("resend")
@click.argument("queue_id")
@click.option("--to", "recipients", multiple=True, help="Only to this recipient of it; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, change nothing.")
@click.option("--json", "json_", is_flag=True, help="One JSON object.")
def resend(queue_id: str, recipients: tuple[str, ...], dry_run: bool, json_: bool) -> None:
    """Send a kept message again, as a new one.

    It is routed by the rules in force.
    """
    if dry_run:
        message = client.ask("GET", client.message(queue_id))
        names = list(recipients) or [r["recipient"] for r in message["recipients"]]
        found: dict[str, Any] = {
            "resent": message["queue_id"],
            "dry_run": True,
            "recipients": len(names),
            "body": message["body"],
        }
    else:
        found = client.ask("POST", client.message(queue_id, "/resend"), {"recipients": list(recipients)})
    if json_:
        show.as_json(found)
    elif dry_run:
        kept = "" if found["body"] == "kept" else "; its body is not kept any more, so it can't be"
        click.echo(f"would resend {queue_id} to {show.plural(found['recipients'], 'recipient')}{kept}")
    else:
        count = show.plural(found["recipients"], "recipient")
        click.echo(f"resent {found['resent']} as {found['queue_id']} to {count}")


queue.add_command(trace)
