"""The newest of a refresh token that its provider rotates: a file beside the spool, which nobody else may read.

The configured one stays where it is, for it may be read-only, or a command. What is kept belongs to it by a fingerprint: once an
operator has logged in anew, what came of the old login counts no more.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from relay import durable


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
        durable.replace(self.file, json.dumps({"of": mark, "refresh_token": token}).encode())
