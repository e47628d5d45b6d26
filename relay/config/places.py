"""Where things lie when the configuration does not say. Looks, and makes nothing.

What systemd hands us first, then the usual folders of a service; where they are not ours to write, the user's own, so
that `relay serve` works for root, for a service and for a user at a shell alike.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

STATE = Path("/var/lib/relay")
RUNTIME = Path("/run/relay")
CONFIG = Path("/etc/relay/relay.yaml")


def config_file(env: Mapping[str, str], given: Path | None = None, usual: Path = CONFIG) -> Path:
    """The file to read: `--config`, $RELAY_CONFIG, /etc/relay/relay.yaml, or the user's own if only that exists."""
    if given is not None:
        return given
    if env.get("RELAY_CONFIG"):
        return Path(env["RELAY_CONFIG"])
    own = _home(env, "XDG_CONFIG_HOME", ".config") / "relay" / "relay.yaml"
    return own if not os.path.exists(usual) and os.path.exists(own) else usual


def state_folder(env: Mapping[str, str], usual: Path = STATE) -> Path:
    """Where the spool lies."""
    if given := _from_systemd(env, "STATE_DIRECTORY"):
        return given
    return usual if writable(usual) else _home(env, "XDG_STATE_HOME", ".local/state") / "relay"


def runtime_folder(env: Mapping[str, str], usual: Path = RUNTIME, usual_state: Path = STATE) -> Path:
    """Where the admin socket lies."""
    if given := _from_systemd(env, "RUNTIME_DIRECTORY"):
        return given
    if writable(usual):
        return usual
    if env.get("XDG_RUNTIME_DIR"):
        return Path(env["XDG_RUNTIME_DIR"]) / "relay"
    return state_folder(env, usual_state)


def writable(folder: Path) -> bool:
    """Whether `folder` is a folder that we may write to, or could be made by us."""
    nearest = folder
    while not os.path.exists(nearest) and nearest != nearest.parent:  # Path.exists raises where it may not look
        nearest = nearest.parent
    return os.path.isdir(nearest) and os.access(nearest, os.W_OK | os.X_OK)


def _from_systemd(env: Mapping[str, str], name: str) -> Path | None:
    # systemd.exec(5): several folders are separated by colons; ours is the first.
    first = env.get(name, "").partition(":")[0]
    return Path(first) if first else None


def _home(env: Mapping[str, str], variable: str, below: str) -> Path:
    # XDG Base Directory: a relative path there is to be ignored.
    given = env.get(variable, "")
    return Path(given) if given.startswith("/") else Path(env.get("HOME") or "/") / below
