"""Files that a verb writes for the service: whole or not at all, and never for a moment readable by others."""

from __future__ import annotations

import grp
import os
from pathlib import Path

from relay.cli.client import Failed

GROUP = "relay"


def folder(path: Path, mode: int, say: str) -> None:
    """Made where it is missing. `say`: how to name another place. Raises Failed (73)."""
    try:
        if not path.is_dir():
            path.mkdir(mode=mode, parents=True)
            path.chmod(mode)
            _hand_over(path)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}; {say}", 73) from None


def write(file: Path, text: str, mode: int, say: str, *, ours: bool = True) -> None:
    """`ours`: the service shall read it. Raises Failed (73)."""
    new = file.with_name(f".{file.name}.new")
    try:
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        if ours:
            _hand_over(new)
        new.chmod(mode)
        new.replace(file)
    except OSError as error:
        raise Failed(f"{file}: {error.strerror}; {say}", 73) from None


def own_config() -> Path:
    """Where `serve` will look, and we may write: /etc/relay, else the user's own configuration folder."""
    from relay.config.places import config_file, writable

    file = config_file(os.environ)
    if file.exists() or writable(file.parent):
        return file
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "relay" / "relay.yaml"


def group() -> int | None:
    """The service's; None: nobody has made it yet."""
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def _hand_over(path: Path) -> None:
    """To the group of the service, which shall read it and not write it."""
    found = group()
    if os.geteuid() == 0 and found is not None:
        os.chown(path, -1, found)
