"""What `relay init` writes: etc/relay.yaml and systemd/relay.service, which the package carries along."""

from __future__ import annotations

import shlex
from importlib import resources
from pathlib import Path

_START = "/usr/local/bin/relay serve --config /etc/relay/relay.yaml"


def text() -> str:
    """The commented sample as it is shipped; in a checkout the file itself."""
    return _shipped("relay.yaml", "etc")


def unit(command: str, file: Path) -> str:
    """The systemd unit that starts `command`, quoted as for a shell, with the configuration `file`."""
    start = f"{command} serve --config {shlex.quote(str(file))}"
    # systemd.service(5): `%` begins a specifier and `$` a variable, also between quotes.
    start = start.replace("%", "%%").replace("$", "$$")
    return _shipped("relay.service", "systemd").replace(_START, start)


def _shipped(name: str, folder: str) -> str:
    packaged = resources.files("relay.config") / name
    return packaged.read_text() if packaged.is_file() else (Path(__file__).parents[2] / folder / name).read_text()
