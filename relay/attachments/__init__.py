"""Where the content of an attachment comes from: a file of one folder, or a URL that is fetched now.

Promises: nothing outside the folder is read, whatever the path or what lies there; no URL leads where the configuration does
not allow; what is fetched is bounded in size and time, and kept by its content, so that the same URL costs one transfer.
Refuses in words (`NotAttached`), and says whether it is worth another try.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

from relay.attachments.folder import read_below
from relay.attachments.problems import NotAttached
from relay.attachments.urls import Fetcher
from relay.settings.attachments import Attachments as Rules

__all__ = ["Attaching", "NotAttached"]


class Attaching:
    """`rules` returns those of the configuration in force; `cache`: a folder of its own for what was fetched."""

    def __init__(self, rules: Callable[[], Rules], cache: Path) -> None:
        self._rules = rules
        self._fetcher = Fetcher(cache)

    async def from_folder(self, path: str, most: int, sha256: str = "") -> bytes:
        """A file of the folder, `most` bytes at most. Raises NotAttached."""
        folder = self._rules().folder
        if folder is None:
            raise NotAttached(
                "no attachment is taken by `path`; set `attachments: {folder: …}`, or send it as `content`"
            )
        content = await asyncio.to_thread(read_below, folder, path, most)
        must_be(content, sha256)
        return content

    async def from_url(self, url: str, most: int, sha256: str, since: float) -> bytes:
        """What is there now, or was after `since` (monotonic), `most` bytes at most. Raises NotAttached."""
        urls = self._rules().urls
        if urls is None:
            raise NotAttached("no attachment is taken by `url`; set `attachments: {urls: {allow: …}}`")
        content = await self._fetcher.fetch(url, urls, sha256.lower(), since)
        if len(content) > most:
            raise NotAttached(f"it is larger than the {most} bytes that are left for it")
        return content


def must_be(content: bytes, sha256: str) -> None:
    """Raises NotAttached where it is not what was meant. An empty text: nothing was said."""
    if sha256 and hashlib.sha256(content).hexdigest() != sha256.lower():
        raise NotAttached("its content has not the `sha256` that was said")
