"""What was fetched, on the disk: contents by their SHA-256, and what each URL had last. The least used goes first.
Bounded in bytes and in files, whatever is fetched.

It may be deleted at any time; what is damaged is taken for missing. Blocks: call it off the loop.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from relay import durable

MOST_FILES = 20_000
BLOCK = 4096  # bytes that a file takes beyond its content, at most
LEAST = 0.9  # of its bounds, that it is brought back to: it is not to be read through for each file


@dataclass(frozen=True, slots=True)
class Seen:
    """What a URL had, and by what its server knows whether it still has it (RFC 9110 §8.8)."""

    sha256: str
    etag: str = ""
    modified: str = ""


class Cache:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writing = threading.Lock()  # two URLs may have the same content
        self._bytes, self._files = -1, 0  # at most so many are there; -1: nobody has looked yet

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
        with self._writing, contextlib.suppress(OSError):
            if not self._content(seen.sha256).exists():
                self._write(self._content(seen.sha256), content)
            self._write(self._url(url), json.dumps(asdict(seen)).encode())
            if self._bytes < 0 or self._bytes > limit or self._files > MOST_FILES:
                self._shrink(limit)

    def _write(self, file: Path, content: bytes) -> None:
        """Raises OSError."""
        durable.replace(file, content)
        self._files += 1
        self._bytes += len(content) + BLOCK if self._bytes >= 0 else 0

    def _content(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.content"

    def _url(self, url: str) -> Path:
        return self.folder / f"{hashlib.sha256(url.encode()).hexdigest()}.url"

    def _shrink(self, limit: int) -> None:
        """What a crash left half written is a file like others: it goes when it is the oldest. Raises OSError."""
        with os.scandir(self.folder) as entries:
            found = ((e.path, e.stat(follow_symlinks=False)) for e in entries if e.is_file(follow_symlinks=False))
            files = sorted((state.st_mtime_ns, state.st_size + BLOCK, path) for path, state in found)
        self._bytes, self._files = sum(one[1] for one in files), len(files)
        if self._bytes <= limit and self._files <= MOST_FILES:
            return
        for _, size, path in files:
            if self._bytes <= limit * LEAST and self._files <= MOST_FILES * LEAST:
                return
            os.unlink(path)
            self._bytes, self._files = self._bytes - size, self._files - 1


def _touch(file: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(file)
