"""`relay init` and `relay password`: the first files of an installation, and what stands in them."""

from __future__ import annotations

import grp
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import click

from relay.cli.client import Failed, read_password

UNITS = Path("/etc/systemd/system")
GROUP = "relay"


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

    file = Path(os.path.abspath(path or _own_file()))
    if unit is None and not no_unit and path is None and os.geteuid() == 0 and UNITS.is_dir():
        unit = UNITS / "relay.service"
    secret = file.parent / "secrets" / "main"
    targets = [file, *([unit] if unit else []), *([secret] if username else [])]
    for target in targets:
        if target.exists() and not force:
            raise Failed(f"{target} is there already; --force writes over it", 73)
    password = read_password(new=True) if username else ""
    _folder(file.parent, 0o755)
    _folder(secret.parent, 0o750)
    _write(file, _with_login(template.text().replace("smtp.example.com", host), username), 0o640)
    if username:
        _write(secret, password + "\n", 0o640)
    if unit:
        _write(unit, template.unit(_command(), file), 0o644, ours=False)
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
    if _group() is None:
        click.echo(f"  useradd --system --home-dir /var/lib/relay --shell /usr/sbin/nologin {GROUP}")
        click.echo(f"  chgrp -R {GROUP} {file.parent}")
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


def _folder(folder: Path, mode: int) -> None:
    try:
        if not folder.is_dir():
            folder.mkdir(mode=mode, parents=True)
            folder.chmod(mode)
            _hand_over(folder)
    except OSError as error:
        raise Failed(f"{folder}: {error.strerror}; say where: relay init PATH", 73) from None


def _write(file: Path, text: str, mode: int, *, ours: bool = True) -> None:
    """Whole or not at all, and never for a moment readable by others."""
    new = file.with_name(f".{file.name}.new")
    try:
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        new.chmod(mode)
        if ours:
            _hand_over(new)
        new.replace(file)
    except OSError as error:
        raise Failed(f"{file}: {error.strerror}; say where: relay init PATH", 73) from None
    click.echo(f"wrote {file}")


def _hand_over(path: Path) -> None:
    """To the group of the service, which shall read it and not write it."""
    group = _group()
    if os.geteuid() == 0 and group is not None:
        os.chown(path, -1, group)


def _group() -> int | None:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def _command() -> str:
    """How systemd is to call this program."""
    found = shutil.which("relay")
    program = Path(sys.argv[0])
    if program.name == "relay" and program.exists():
        return shlex.quote(os.path.abspath(program))
    return shlex.quote(found) if found else f"{shlex.quote(sys.executable)} -m relay"


def _own_file() -> Path:
    """Where `serve` will look, and we may write: /etc/relay, else the user's own configuration folder."""
    from relay.config.places import config_file, writable

    file = config_file(os.environ)
    if file.exists() or writable(file.parent):
        return file
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "relay" / "relay.yaml"


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
