"""MTA-STS policies in a folder, one small file a domain, so that a restart is no chance for whoever blocks their fetch.

What can't be read is no policy, and goes. Blocks: call it off the loop.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from pathlib import Path
from threading import Lock

from relay import durable
from relay.nexthop.stspolicy import StsPolicy, made

MOST = 10_000  # files
LONGEST = 128 * 1024  # bytes of one


class Kept:
    """Raises OSError where the folder is in trouble."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock()  # who gave up waiting has left a thread here
        self._count = -1  # files; below 0: nobody has looked

    def load(self, domain: str, now: float) -> StsPolicy | None:
        """`now`: epoch seconds."""
        with self._lock:
            return self._load(self._file(domain), domain, now)

    def save(self, domain: str, policy: StsPolicy) -> None:
        """On the disk when this returns."""
        content: dict[str, object] = {"domain": domain, "id": policy.id, "mode": policy.mode, "mx": policy.mx}
        content |= {"max_age": policy.max_age, "fetched_at": policy.fetched_at}
        with self._lock:
            if self._count < 0 or self._count >= MOST:
                self._sweep(policy.fetched_at)
            file = self._file(domain)
            self._count += not file.exists()
            durable.replace(file, json.dumps(content).encode())

    def sweep(self, now: float) -> None:
        """Removes what has ended, and of too many those that end soonest."""
        with self._lock:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        ends = []
        for left in self._folder.glob(".*.new"):  # by a crash
            left.unlink(missing_ok=True)
        for file in self._folder.glob("*.json"):
            policy = self._load(file, None, now)
            if policy is not None:
                ends.append((policy.ends, file))
        self._count = len(ends)
        if self._count >= MOST:
            ends.sort()
            for _, file in ends[: self._count - MOST + MOST // 10]:
                file.unlink(missing_ok=True)
                self._count -= 1

    def _file(self, domain: str) -> Path:
        """A domain can be longer than the name of a file."""
        return self._folder / f"{hashlib.sha256(domain.encode()).hexdigest()[:40]}.json"

    def _load(self, file: Path, domain: str | None, now: float) -> StsPolicy | None:
        try:
            with file.open("rb") as opened:
                raw = opened.read(LONGEST)
        except FileNotFoundError:
            return None
        policy = None
        with contextlib.suppress(ValueError, TypeError, KeyError, OverflowError, RecursionError):
            policy = _policy(json.loads(raw), domain, now)
        if policy is None or policy.ends <= now:
            file.unlink(missing_ok=True)
            self._count -= self._count > 0
            return None
        return policy


def _policy(found: dict[str, object], domain: str | None, now: float) -> StsPolicy | None:
    """Raises ValueError, TypeError, KeyError, OverflowError."""
    id_, mode, hosts = found["id"], found["mode"], found["mx"]
    max_age, fetched_at = found["max_age"], found["fetched_at"]
    if not isinstance(id_, str) or not isinstance(mode, str) or not isinstance(hosts, list):
        return None
    if not isinstance(max_age, int) or not isinstance(fetched_at, int | float) or not math.isfinite(fetched_at):
        return None
    if domain is not None and found["domain"] != domain:
        return None
    # A clock that was wrong then must not make a policy last.
    return made(id_, mode, hosts, max_age, min(float(fetched_at), now))
