"""Folders whose files are mail."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Drop:
    """A folder: each `.eml` file in it is submitted, and then removed."""

    name: str
    folder: Path
    user: str = ""  # whose mail it is
    tag: str = ""  # of messages that say none themselves, as is `class_`
    class_: str = ""
    every: float = 1.0  # seconds between two looks

    @property
    def listener(self) -> str:
        """By what rules, metrics and the log know it."""
        return f"drop:{self.name}"
