"""`relay init` and `relay password`: the first files of an installation, and what stands in them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import click

from relay.cli import files
from relay.cli.client import Failed, read_password

UNITS = Path("/etc/systemd/system")
ELSEWHERE = "say where: relay init PATH"


@click.command()
@click.option("--host", default="smtp.example.com", show_default=True, help="The upstream to hand mail to.")
@click.option("--username", help="What to log in with there; the password is asked for, or read from standard input.")
@click.option(
    "--unit",
    type=click.Path(path_type=Path),
    help="Write the systemd unit there. Default for root: /etc/systemd/system.",
)
@click.option("--no-unit", is_flag=True, help="Write no unit.")
@click.option("--force", is_flag=True, help="Write over files that are there.")
@click.argument("path", type=click.Path(path_type=Path), required=False)
def init(path: Path | None, host: str, username: str | None, unit: Path | None, no_unit: bool, force: bool) -> None:
    """Write the first files of an installation.

    A configuration, every key commented, a folder for secrets, and the systemd unit. Default: where `relay serve` looks.
    """
    from relay.config import template
    from relay.config.load import ConfigError, load

    file = Path(os.path.abspath(path or files.own_config()))
    if unit is None and not no_unit and path is None and os.geteuid() == 0 and UNITS.is_dir():
        unit = UNITS / "relay.service"
    secret = file.parent / "secrets" / "main"
    targets = [file, *([secret] if username else []), *([unit] if unit else [])]
    for target in targets:
        if target.exists() and not force:
            raise Failed(f"{target} is there already; --force writes over it", 73)
    password = read_password(new=True) if username else ""
    files.folder(file.parent, 0o755, ELSEWHERE)
    files.folder(secret.parent, 0o750, ELSEWHERE)
    files.write(file, _with_login(template.text().replace("smtp.example.com", host), username), 0o640, ELSEWHERE)
    if username:
        files.write(secret, password + "\n", 0o640, ELSEWHERE)
    if unit:
        files.write(unit, template.unit(_command(), file), 0o644, ELSEWHERE, ours=False)
    for target in targets:
        click.echo(f"wrote {target}")
    try:
        load(file)
    except ConfigError as error:
        raise Failed(str(error), 78) from None
    _tell_next(file, unit, bool(username))


def _tell_next(file: Path, unit: Path | None, login: bool) -> None:
    click.echo("next:")
    if not login:
        click.echo(f"  edit `accounts` in {file}; a password goes into a file in {file.parent / 'secrets'}")
    click.echo(f"  relay check {file}")
    if unit is None:
        click.echo(f"  relay serve {file}")
        return
    if _hidden():
        click.echo(
            "  the service sees neither /home nor /root: install the relay elsewhere, and call that one in the unit:"
        )
        click.echo("    python3 -m venv /opt/relay && /opt/relay/bin/pip install RELAY")
        click.echo(f"    ExecStart=/opt/relay/bin/relay serve --config {file}    in {unit}")
    if files.group() is None:
        click.echo(f"  useradd --system --home-dir /var/lib/relay --shell /usr/sbin/nologin {files.GROUP}")
        click.echo(f"  chgrp -R {files.GROUP} {file.parent}")
    click.echo("  systemctl daemon-reload && systemctl enable --now relay")


def _hidden() -> bool:
    """Whether ProtectHome= keeps this program, or the Python that runs it, from the service."""
    return any(
        path.lstrip("'").startswith(("/home/", "/root/")) for path in (_command(), os.path.realpath(sys.executable))
    )


def _with_login(text: str, username: str | None) -> str:
    """The sample with the login of `main` uncommented."""
    if username is None:
        return text
    login = f"    username: {json.dumps(username, ensure_ascii=False)}"
    text = re.sub(r"(?m)^#\|     username: app@example\.com$", lambda _: login, text, count=1)  # its \\ and \u stay
    return re.sub(r"(?m)^#\|     (password: \{file: secrets/main\})", r"    \1", text, count=1)


def _command() -> str:
    """How systemd is to call this program."""
    found = shutil.which("relay")
    program = Path(sys.argv[0])
    if program.name == "relay" and program.exists():
        return shlex.quote(os.path.abspath(program))
    return shlex.quote(found) if found else f"{shlex.quote(sys.executable)} -m relay"


@click.group()
def password() -> None:
    """Passwords of the users who log in to the relay."""


@password.command("hash")
def password_hash() -> None:
    """Print the hash of a password.

    It is asked for, or read from standard input; the hash (argon2id) belongs to `users.NAME.password_hash`.
    """
    from relay.listener.auth import hasher_

    click.echo(f'"{hasher_().hash(read_password(new=True))}"')
