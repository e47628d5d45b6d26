"""Where attachments may come from, beside the request itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Urls:
    """`allow`: globs with a host and a path, such as https://files.example.com/*"""

    allow: tuple[str, ...]
    max_size: int = 10_000_000
    timeout: float = 10.0
    cache: int = 500_000_000  # bytes on the disk
    allow_private: bool = False
    ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Attachments:
    folder: Path | None = None  # None: no `path`
    urls: Urls | None = None  # None: no `url`
