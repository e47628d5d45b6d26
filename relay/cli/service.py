"""`relay serve`, `check`, `reload`, `status`, `explain`, `spool`."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay import clock
from relay.cli import client, show
from relay.cli.client import Failed
from relay.cli.oauth import told

if TYPE_CHECKING:
    from relay.settings import Config

CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="Default: $RELAY_CONFIG, then /etc/relay/relay.yaml.",
)

# Who asks for health may wait for no longer than ten (the image's HEALTHCHECK), and some supervisors wait for ever.
HEALTH_TIMEOUT = 8.0
_PATH = click.argument("path", type=click.Path(path_type=Path), required=False)


def find(given: Path | None) -> Path:
    """The configuration's file: the one that was named, or where it lies."""
    from relay.config.places import config_file

    return config_file(os.environ, given)


def _one(config_path: Path | None, path: Path | None) -> Path | None:
    if config_path is not None and path is not None:
        raise click.UsageError("say the file once: --config PATH, or PATH alone")
    return config_path or path


def _must_exist(file: Path) -> None:
    if not os.path.exists(file):
        raise Failed(f"{file}: no such file; `relay init {file}` writes a first one", 78)


@click.command()
@CONFIG
@_PATH
def serve(config_path: Path | None, path: Path | None) -> None:
    """Run the relay. Without a configuration: a demonstration that keeps all mail on this machine."""
    from relay.cli.run import run_demo, run_service

    config_path = _one(config_path, path)
    file = find(config_path)
    if os.path.exists(file) or config_path is not None or os.environ.get("RELAY_CONFIG"):
        _must_exist(file)
        sys.exit(run_service(file))
    sys.exit(run_demo(file))


@click.command()
@CONFIG
@_PATH
@click.option("--json", "json_", is_flag=True, help="One JSON array of problems and warnings.")
def check(config_path: Path | None, path: Path | None, json_: bool) -> None:
    """Read the configuration and tell every mistake at once. Exit 0 or 78."""
    from relay.config.load import ConfigError, load

    file = find(_one(config_path, path))
    if not json_:
        _must_exist(file)
    problems: list[str] = []
    warnings: tuple[str, ...] = ()
    good = "good"
    try:
        config = load(file)
        warnings, good = config.warnings, _summary(config)
    except ConfigError as error:
        problems = str(error).splitlines()
    if json_:
        show.as_json(
            [{"level": "error", "text": p} for p in problems] + [{"level": "warning", "text": w} for w in warnings]
        )
    else:
        for line in problems:
            click.echo(line, err=True)
        for line in warnings:
            click.echo(f"warning: {line}", err=True)
        if not problems:
            click.echo(f"{file}: {good}")
    sys.exit(78 if problems else 0)


def _summary(config: Config) -> str:
    direct = sum(account.source is not None for account in config.accounts.values())
    upstream = len(config.accounts) - direct
    ways = [show.plural(upstream, "account")] if upstream or not direct else []
    if direct:
        ways.append("1 direct entry" if direct == 1 else f"{direct} direct entries")
    if config.pools:
        ways.append(f"{show.plural(len(config.pools), 'pool')} ({', '.join(config.pools)})")
    capture = ", capture on: mail is kept on this machine" if config.routes.capture else ""
    keys = f", {show.plural(len(config.signing.rules), 'signing key')}" if config.signing.rules else ""
    return f"good: {', '.join(ways)}, {show.plural(len(config.routes.routes), 'route')}{keys}{capture}"


@click.command()
@click.option("--reset", is_flag=True, help="Take back what was changed at run time.")
@click.option("--json", "json_", is_flag=True, help="One JSON object.")
def reload(reset: bool, json_: bool) -> None:
    """Make the relay read its configuration again.

    A bad one is refused, every mistake is told, and the old one stays. What was changed at run time (`relay changes`) stays too,
    but where the file says something else than it did.
    """
    found = client.ask("POST", "/v1/reload", {"reset": reset})
    if json_:
        show.as_json(found)
        return
    click.echo("reloaded")
    for note in found["notes"]:
        click.echo(f"  {note}")


@click.command()
@click.option("--health", is_flag=True, help="Only whether it is alive, for a supervisor: exit 0, or 69 and why.")
@click.option("--json", "json_", is_flag=True, help="One JSON object.")
def status(health: bool, json_: bool) -> None:
    """Is it running, does it accept, does mail leave?"""
    if health:
        client.ask("GET", "/healthz", timeout=HEALTH_TIMEOUT)
        return
    found = client.ask("GET", "/v1/status")
    if json_:
        show.as_json(found)
        return
    rows = [
        ("version", found["version"]),
        ("config", found["config"] or "none: the built-in demonstration"),
        ("spool", found["spool"]),
        ("listen", ", ".join(found["listen"]) or "nowhere"),
        *(("feedback", _door(door)) for door in found.get("feedback", ())),
        *(("drop", _drop(row)) for row in found.get("drop", ())),
        ("stopping", "yes" if found["stopping"] else ""),
        ("alive", "yes" if found["alive"] else f"no ({found['why']})"),
        ("accepting", "yes" if found["accepting"] else f"no ({_why_not(found)})"),
        ("leaving", _leaving(found)),
        *(("token", f"{t['egress']}: {told(t)}") for t in found.get("tokens", ())),
        *(("webhook", _hook(row)) for row in found.get("webhooks", ())),
        ("capture", _capture(found.get("capture"))),
        ("changed", _changed(found.get("changes", 0))),
        ("waiting", found["waiting"]),
        ("held", found["held"]),
        ("oldest", show.span(found["oldest_age"]) if found["waiting"] or found["held"] else ""),
    ]
    for name, value in rows:
        if value != "":
            click.echo(f"{name:12} {value}")
    if found["config_error"]:
        click.secho("the last reload was refused:", fg="red")
        click.echo(found["config_error"])


def _door(row: dict[str, Any]) -> str:
    """One way by which what comes back comes in."""
    state = {True: "", False: f"fails: {row['why']}", None: "(not looked into yet)"}[row["up"]]
    return show.clean(" ".join(filter(None, (row["door"], row["address"], state))))


def _drop(row: dict[str, Any]) -> str:
    """One folder: that it is looked into, or why not; and what is left in it."""
    fails = f"fails: {row['why']}" if row["up"] is False else ""
    left = [f"{row[key]} {words}" for key, words in (("odd", "left alone"), ("later", "tried again")) if row[key]]
    return show.clean(" ".join(filter(None, (f"{row['drop']}: {row['folder']}", fails, ", ".join(left)))))


def _hook(row: dict[str, Any]) -> str:
    """One endpoint: that it is well, or how far it is behind."""
    behind = [
        f"{row[key]} {word}" for key, word in (("lag", "behind"), ("waiting", "waiting"), ("dead", "dead")) if row[key]
    ]
    if row["state"] == "well" and not row["dead"]:
        return f"{row['endpoint']}: well"
    said = f"{row['endpoint']}: {', '.join([row['state'], *behind])} (relay webhooks list)"
    return show.clean(f"{said}: {row['error']}" if row["state"] != "well" else said)


def _why_not(found: dict[str, Any]) -> str:
    return found["why"] or ("it is stopping" if found["stopping"] else "unknown")


def _capture(allowed: list[str] | None) -> str:
    """Staging left on in production looks well otherwise: all is `delivered`, and nothing arrives."""
    if allowed is None:
        return ""
    return (
        f"on: mail stays on this machine, but to {', '.join(allowed)}"
        if allowed
        else "on: all mail stays on this machine"
    )


def _changed(count: int) -> str:
    """The file alone does not tell what is in force."""
    return f"{show.plural(count, 'key')} at run time (relay changes)" if count else ""


_TOLD = (("suspended", "suspension", "suspend"), ("alarms", "alarm", "alarms"))


def _leaving(found: dict[str, Any]) -> str:
    """Whether mail leaves; if an account rests, which, until when, and why. And how many destinations do."""
    from relay.admin.words import rests

    now = clock.now()
    down = {r["egress"]: rests(r["egress"], r["until"], now, r["why"]) for r in found["resting_until"]}
    parts = [
        f"{d['egress']}: {d['resting']} of {show.plural(d['destinations'], 'destination')} rest (relay queue stats)"
        for d in found["direct"]
        if d["resting"] and d["egress"] not in down
    ]
    if not down and found["stopping"]:
        return "no (it is stopping)"
    parts += [show.plural(found[what], one) + f" (relay {verb})" for what, one, verb in _TOLD if found[what]]
    if not down and not parts:
        return "yes"
    said = "no" if down and len(down) >= found["accounts"] + len(found["direct"]) else "partly" if down else "yes"
    return f"{said}: {'; '.join([*down.values(), *parts])}"


@click.group()
def spool() -> None:
    """Check or back up the spool; salvage a damaged one."""


@spool.command("check")
@click.option("--json", "json_", is_flag=True, help="One JSON object.")
def spool_check(json_: bool) -> None:
    """Look for damage, while running."""
    found = client.ask("POST", "/v1/spool/check")
    if json_:
        show.as_json(found)
    else:
        click.echo(f"{found['spool']}: {'good' if found['ok'] else 'DAMAGED'}")
        for problem in found["problems"]:
            click.echo(f"  {problem}", err=True)
    sys.exit(0 if found["ok"] else 65)


@spool.command("backup")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "json_", is_flag=True, help="One JSON object.")
def spool_backup(folder: Path, json_: bool) -> None:
    """A consistent copy into a new folder, while running. Restored, it starts with everything held."""
    found = client.ask("POST", "/v1/spool/backup", {"folder": str(folder.resolve())})
    if json_:
        show.as_json(found)
    else:
        click.echo(
            f"{found['folder']}: {found['bytes']} bytes, {found['waiting_recipients']} waiting, {found['body_files']} body files"
        )


@spool.command("salvage")
@click.argument("source", metavar="FROM", type=click.Path(path_type=Path))
@click.argument("target", metavar="TO", type=click.Path(path_type=Path))
@click.option("--json", "json_", is_flag=True, help="One JSON object.")
def spool_salvage(source: Path, target: Path, json_: bool) -> None:
    """Copy what can be read of a damaged spool.

    All that can be read of its folder FROM goes into a new folder TO; FROM is left as it is.

    The relay must be stopped. TO starts with everything held. Exit 0 if nothing was lost, 65 otherwise.
    """
    from relay.spool import SpoolError
    from relay.spool.salvage import salvage

    def progress(done: int, all_: int) -> None:
        if not json_ and sys.stderr.isatty():
            width = 30 * done // max(1, all_)
            bar = "█" * width + "░" * (30 - width)
            click.echo(f"\r  {bar} {done} of {all_} messages ", err=True, nl=done == all_)

    try:
        found = salvage(source, target, progress)
    except SpoolError as error:
        raise Failed(str(error), 65) from None
    if json_:
        show.as_json(dataclasses.asdict(found) | {"folder": str(target), "errors": sorted(found.errors)})
    else:
        for lost in found.lost:
            click.echo(f"{lost['queue_id']}  lost: {lost['lost']}  {lost['recipients']}", err=True)
        if found.events_lost:
            click.echo(f"the story of {show.plural(found.events_lost, 'message')} is lost", err=True)
        click.echo(
            f"{target}: {show.plural(found.messages, 'message')}, {show.plural(found.waiting, 'recipient')} waiting, "
            f"{len(found.lost)} lost in whole or in part"
        )
    sys.exit(65 if found.lost else 0)


def loop_factory() -> Any:
    """uvloop where it runs: the listener is twice as fast with it."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
