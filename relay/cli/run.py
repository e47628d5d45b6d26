"""Running the relay in the foreground: the service, and the demonstration of a machine without a configuration."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import sys
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay.app import App, StartError
from relay.cli.service import loop_factory
from relay.config.load import ConfigError, default_config, load
from relay.listener.front import ListenError
from relay.maillog import MailLog
from relay.settings import Address, Config, Spool

if TYPE_CHECKING:
    from relay.sink import Kept

UNAVAILABLE, CONFIG = 69, 78


def run_service(file: Path) -> int:
    """The relay with its configuration; returns the exit code."""
    try:
        config = load(file)
    except ConfigError as error:
        click.echo(str(error), err=True)
        return CONFIG
    log = MailLog(sys.stderr, config.log.format, config.log.redact)
    for warning in config.warnings:
        log.warning("config_note", note=warning)
    return _run(_serve(config, log))


def _run(work: Coroutine[Any, Any, int]) -> int:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(work)


async def _serve(config: Config, log: MailLog) -> int:
    app = App(config, log)
    try:
        await app.start()
    except StartError as error:
        log.flush()
        click.echo(f"relay: {error}", err=True)
        await app.abort()
        return UNAVAILABLE
    # A full collection walks over all that there is and holds the loop for 40 ms, whenever a few thousand objects were made:
    # a message with many header fields is enough. What is there now is there for good, and need not be looked at again.
    gc.collect()
    gc.freeze()
    await app.run()
    return 0


def run_demo(missing: Path) -> int:
    return _run(_demo(missing))


async def _demo(missing: Path) -> int:
    """A sink on a free port, and the relay in front of it."""
    from relay.sink import Sink  # for those alone who look at the demonstration

    config = default_config(os.environ)
    # Apart from the spool of a real relay, which may come to this machine later.
    spool = Spool(config.spool.path.parent / "demo" / "spool.db", keep_bodies="all")
    folder = spool.path.parent / "sink"
    screen = Screen()
    try:
        # Before the sink makes it on the way to its own folder, and then for all to read.
        spool.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = Sink(Address("127.0.0.1", 0), folder, screen.arrived)
        port = await made.open()
    except (OSError, ListenError) as error:
        click.echo(f"relay: {error}", err=True)
        return UNAVAILABLE
    config = replace(default_config(os.environ, upstream=Address("127.0.0.1", port)), spool=spool)
    log = MailLog(None)
    log.listeners.append(screen.heard)
    app = App(config, log)
    try:
        await app.start()
    except StartError as error:
        click.echo(f"relay: {error}", err=True)
        await app.abort()
        await made.close()
        return UNAVAILABLE
    screen.welcome(config, [door.port for door in app.doors], folder, missing)
    await app.run()
    await made.close()
    return 0


def _command() -> str:
    """How this program is called from here, to be copied to a second terminal: it may be in no PATH."""
    if shutil.which("relay"):
        return "relay"
    program = Path(sys.argv[0])
    whole = os.path.abspath(program if program.name == "relay" else sys.executable)
    short = os.path.relpath(whole)
    here = whole if short.startswith("..") else short
    return here if program.name == "relay" else f"{here} -m relay"


class Screen:
    """What the demonstration shows: each message passing by."""

    def __init__(self) -> None:
        self._tty = sys.stdout.isatty()

    def welcome(self, config: Config, ports: list[int], folder: Path, missing: Path) -> None:
        listen, relay = f"127.0.0.1:{ports[0]}", _command()
        self._say(f"The relay listens on {listen}. This is a demonstration: all mail stays on this machine.", bold=True)
        click.echo(
            f"""
  Point an application's SMTP settings at it: host localhost, port {ports[0]}, no TLS, no login. Or send a first message:

      {relay} send --to you@example.com
      printf 'Subject: hi\\r\\n\\r\\nhello\\r\\n' | \\
        curl -sS smtp://{listen} --mail-from app@example.com --mail-rcpt you@example.com -T -

  spool     {config.spool.path}
  sink      {folder}/*.eml   what was delivered
  look      {relay} queue list --all      {relay} queue show QUEUE-ID      {relay} queue stats
  for real  {relay} init, edit {missing}, {relay} serve

  Stop it with Ctrl-C. What passes:
"""
        )

    def heard(self, kind: str, fields: dict[str, Any]) -> None:
        match kind:
            case "accepted":
                to = fields.get("recipient") or f"{fields['recipients']} recipients"
                self._line("accepted ", fields["id"], f"<{fields['sender']}> -> {to}, {fields['size']} bytes", "cyan")
            case "delivered":
                self._line(
                    "delivered",
                    fields["id"],
                    f"{fields['recipient']} via {fields['egress']}: {fields['reply']}",
                    "green",
                )
            case "deferred" | "in_doubt" | "failed" | "held":
                why = f"{fields['recipient']}: {fields['reply']}"
                self._line(f"{kind:9}", fields["id"], why, "red" if kind == "failed" else "yellow")
            case "refused":
                click.echo(f"refused   {'':11}  {fields.get('code', '')} {fields['why']}")
            case "loop_died" | "spool_refused" | "session_error" | "delivery_error" | "not_accepting" | "clock_jumped":
                click.secho(f"{kind}: {fields}", fg="red", err=True)
            case "stopping":
                click.echo("\nstopping …")

    def arrived(self, kept: Kept) -> None:
        self._line("kept     ", "", f"{kept.path}  {kept.subject!r}", "")

    def _line(self, what: str, number: str, text: str, colour: str) -> None:
        click.secho(what, fg=colour or None, nl=False)
        click.echo(f"  {number:11}  {text}")

    def _say(self, text: str, *, bold: bool) -> None:
        click.secho(text, bold=bold)
