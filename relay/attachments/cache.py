"""What was fetched, on the disk: contents by their SHA-256, and what each URL had last. The least used goes first.

It may be deleted at any time; what is damaged is taken for missing. Blocks: call it off the loop.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from relay import durable


@dataclass(frozen=True, slots=True)
class Seen:
    """What a URL had, and by what its server knows whether it still has it (RFC 9110 §8.8)."""

    sha256: str
    etag: str = ""
    modified: str = ""


class Cache:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def content(self, sha256: str) -> bytes | None:
        """With that hash, whatever lies there under its name."""
        file = self._content(sha256)
        try:
            found = file.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(found).hexdigest() != sha256:
            file.unlink(missing_ok=True)
            return None
        _touch(file)
        return found

    def seen(self, url: str) -> Seen | None:
        file = self._url(url)
        try:
            found = json.loads(file.read_bytes())
            seen = Seen(str(found["sha256"]), str(found["etag"]), str(found["modified"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        _touch(file)
        return seen

    def keep(self, url: str, content: bytes, etag: str, modified: str, limit: int) -> None:
        """And no more than `limit` bytes of all. A disk that does not take it keeps nothing: that is no reason to refuse mail."""
        seen = Seen(hashlib.sha256(content).hexdigest(), etag, modified)
        if len(content) > limit:
            return
        with contextlib.suppress(OSError):
            if not self._content(seen.sha256).exists():
                durable.replace(self._content(seen.sha256), content)
            durable.replace(self._url(url), json.dumps(asdict(seen)).encode())
            self._shrink(limit)

    def _content(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.content"

    def _url(self, url: str) -> Path:
        return self.folder / f"{hashlib.sha256(url.encode()).hexdigest()}.url"

    def _shrink(self, limit: int) -> None:
        """Raises OSError."""
        with os.scandir(self.folder) as entries:
            files = sorted((e.stat().st_mtime_ns, e.stat().st_blocks * 512, e.path) for e in entries)
        size = sum(one[1] for one in files)
        for _, bytes_, path in files:
            if size <= limit:
                return
            os.unlink(path)
            size -= bytes_


def _touch(file: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(file)
