"""The newest of a refresh token that its provider rotates: a file beside the spool, which nobody else may read.

The configured one stays where it is, for it may be read-only, or a command. What is kept belongs to it by a fingerprint: once an
operator has logged in anew, what came of the old login counts no more.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path


def fingerprint(*parts: str) -> str:
    """Of a login: the configured refresh token, and whose it is. It cannot be turned back."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Store:
    """One account's file. Blocks: call it off the loop."""

    file: Path

    def load(self, mark: str) -> str:
        """The newest refresh token that came of the login with this fingerprint; empty: there is none."""
        try:
            found = json.loads(self.file.read_bytes())
        except (OSError, ValueError):
            return ""
        if not isinstance(found, dict) or found.get("of") != mark:
            return ""
        token = found.get("refresh_token")
        return token if isinstance(token, str) else ""

    def save(self, mark: str, token: str) -> None:
        """On the disk when this returns. Raises OSError."""
        folder = self.file.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = folder / f".{self.file.name}.new"
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as out:
            json.dump({"of": mark, "refresh_token": token}, out)
            out.flush()
            os.fsync(out.fileno())
        new.replace(self.file)
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
