"""`relay sink`: an upstream for tests, which behaves as the profile says and shows what it kept."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay import clock
from relay.cli import show
from relay.cli.client import Failed
from relay.cli.mail import address

if TYPE_CHECKING:
    from relay.settings import ServerTls
    from relay.sink import Kept, Profile, Sink

PROFILES = ("flaky", "gmail", "greylist", "microsoft365", "ses", "slow")
TEMPORARY = 75
PATIENCE = 1.0  # seconds
MAX_SHOWN = 10  # messages that were doubled

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--listen", default="127.0.0.1:2526", show_default=True, help="Address and port; port 0: a free one.")
@click.option(
    "--keep",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("sink"),
    show_default=True,
    help="The folder for the .eml files.",
)
@click.option("--profile", type=click.Choice(PROFILES), help="Behave as this one does.")
@click.option("--script", type=_FILE, help="Behave as this file says (docs/sink.md); it may extend a profile.")
@click.option(
    "--speed",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="All times of the profile so many times shorter: 60 makes 30/min of 30/s and 60 s of 1 s. Bursts stay.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="For what a profile draws by lot.")
@click.option("--delay", type=click.FloatRange(0), default=0.0, help="Seconds before each reply to the final dot.")
@click.option("--user", default="", help="Only this name may log in; default: any.")
@click.option("--password-file", type=_FILE, help="The password that is right; read anew at each login.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The access tokens that are valid, one a line; read anew at each login.",
)
@click.option("--tls", type=click.Choice(["none", "starttls", "implicit"]), default="none", show_default=True)
@click.option("--tls-certificate", type=_FILE, help="PEM, the whole chain.")
@click.option("--tls-key", type=_FILE, help="PEM, if it is not in the same file.")
@click.option("--count", type=click.IntRange(1), help="End once so many messages were kept.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="End after so many seconds.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line: each event, the summary last.")
def sink(
    listen: str,
    folder: Path,
    profile: str | None,
    script: Path | None,
    speed: float,
    seed: int,
    delay: float,
    user: str,
    password_file: Path | None,
    token_file: Path | None,
    tls: str,
    tls_certificate: Path | None,
    tls_key: Path | None,
    count: int | None,
    timeout: float | None,
    as_json: bool,
) -> None:
    """An upstream for tests, which can behave as a provider.

    It keeps mail, one .eml file a message, and sends nothing on. At its end (Ctrl-C, SIGTERM, --count, --timeout) it sums
    up what it saw. The exit code is 0, or 75 where --timeout came before --count.
    """
    from relay.settings import Address
    from relay.sink import Logins, Sink

    host, port = address(listen)
    screen = Screen(as_json)
    made = Sink(
        Address(host, port),
        folder,
        screen.arrived,
        profile=_profile(profile, script).faster(speed),
        delay=delay,
        tls=_tls(tls, tls_certificate, tls_key),
        logins=Logins(user, password_file, token_file),
        seed=seed,
        told=screen.told,
    )
    ended = asyncio.run(_run(made, screen, count, timeout))
    screen.summary(made)
    sys.exit(0 if ended else TEMPORARY)


def _profile(name: str | None, script: Path | None) -> Profile:
    from relay.config.problems import ConfigError
    from relay.sink import Profile, named, read_script

    if name and script:
        raise click.UsageError("--profile or --script; a script extends a profile by `profile: NAME` in its file")
    if script:
        try:
            return read_script(script)
        except ConfigError as error:
            raise Failed(str(error), 78) from None
    return named(name) if name else Profile()


def _tls(mode: str, certificate: Path | None, key: Path | None) -> ServerTls | None:
    from relay.certificate import complaint
    from relay.listener.tls import made
    from relay.secrets import Reference, SecretError
    from relay.settings import ServerTls

    if mode == "none":
        if certificate or key:
            raise click.UsageError("--tls-certificate wants --tls starttls or --tls implicit")
        return None
    if certificate is None:
        raise click.UsageError(f"--tls {mode} wants a --tls-certificate")
    reference = Reference("file", str(key)) if key else None
    found = ServerTls("starttls" if mode == "starttls" else "implicit", certificate, reference)
    try:
        made(found)
    except (OSError, SecretError, ValueError) as error:  # ssl.SSLError is an OSError
        raise Failed(f"{certificate} can't be used: {complaint(error)}", 78) from None
    return found


async def _run(made: Sink, screen: Screen, count: int | None, timeout: float | None) -> bool:
    """Until it is to end; False where `timeout` came before `count`."""
    from relay.listener.front import ListenError

    loop, enough = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, enough.set)
    screen.kept = lambda: enough.set() if count is not None and made.tally.kept >= count else None
    try:
        await made.open()
    except ListenError as error:
        raise Failed(
            f"{str(error).partition(';')[0]}; --listen names another place, port 0 takes a free one", 69
        ) from None
    screen.listens(made)
    try:
        async with asyncio.timeout(timeout):
            await enough.wait()
    except TimeoutError:
        pass
    reached = count is not None and made.tally.kept >= count
    # Whose message was the last one still wants to say QUIT.
    await made.close(PATIENCE if reached else 0.0)
    return reached or enough.is_set() or count is None


class Screen:
    """What is shown: a line for each event, and the summary."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self.kept: Callable[[], None] = lambda: None

    def listens(self, made: Sink) -> None:
        where, folder = made.door.where, made.folder.resolve()
        if self._json:
            return self._line("listening", {"address": where, "folder": str(folder)})
        click.echo(f"sink listens on {where} and keeps mail in {folder}; stop it with Ctrl-C")

    def arrived(self, kept: Kept) -> None:
        if self._json:
            self._line("kept", asdict(kept) | {"path": str(kept.path)})
        else:
            to = ", ".join(kept.recipients)
            click.echo(f"{kept.id}  <{kept.sender}> -> {to}  {kept.size} bytes  {kept.subject!r}  {kept.path}")
        self.kept()

    def told(self, kind: str, fields: dict[str, Any]) -> None:
        if self._json:
            self._line(kind, fields)

    def _line(self, kind: str, fields: dict[str, Any]) -> None:
        click.echo(json.dumps({"event": kind, "time": round(clock.now(), 3)} | fields, ensure_ascii=False))
        sys.stdout.flush()

    def summary(self, made: Sink) -> None:
        found = made.tally.summary()
        if self._json:
            return self._line("summary", found)
        doubled = len(found["doubled"])
        click.echo(
            f"\nkept {show.plural(found['kept'], 'message')} with {found['message_ids']} different Message-IDs "
            f"in {found['seconds']} s; {doubled} doubled; {show.plural(found['connections'], 'connection')}, "
            f"{found['most_connections']} at once at most, {found['dropped']} dropped"
        )
        for one in found["doubled"][:MAX_SHOWN]:
            click.echo(f"doubled: {one['message_id']} for {one['recipient']}, {one['count']} times")
        if doubled > MAX_SHOWN:
            click.echo(f"and {doubled - MAX_SHOWN} more, which --json names")
        if found["replies"]:
            click.echo()
            replies = [
                (r["count"], _percent(r["share"]), r["after_minute"], _percent(r["share_after_minute"]), r["reply"])
                for r in found["replies"]
            ]
            show.table(("COUNT", "SHARE", "AFTER 60 s", "SHARE", "REPLY"), replies)
        limits = [
            (b["limit"], b["of"], f"{b['rate']:g}/s", b["burst"], b["took"], b["refused"], b["minimum"], b["seconds"])
            for b in found["buckets"]
        ] + [(p["limit"], p["of"], "", p["most"], p["highest"], p["refused"], "", "") for p in found["places"]]
        if limits:
            click.echo()
            show.table(("LIMIT", "OF", "RATE", "BURST", "TOOK", "REFUSED", "MINIMUM s", "SECONDS"), limits)


def _percent(share: float) -> str:
    return f"{share:.2%}"
