"""The commented sample, for `relay init`: etc/relay.yaml, which the package carries along."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def text() -> str:
    """The sample as it is shipped; in a checkout the file itself."""
    packaged = resources.files("relay.config") / "relay.yaml"
    return (
        packaged.read_text() if packaged.is_file() else (Path(__file__).parents[2] / "etc" / "relay.yaml").read_text()
    )
