"""What a URL has now: asked of it each time, transferred once as long as its server says that it is the same.

The messages of one request are one time: a thousand of them that name a URL ask it once, whatever it answers, as long as the
cache keeps its content. One that it can't keep, or has dropped meanwhile, is asked for again, once for all that wait then:
a thousand contents of one request are more than memory may hold.
"""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from relay import clock, guard
from relay.attachments.cache import Cache
from relay.attachments.problems import NotAttached
from relay.https import Answer, TooLong, Unanswered
from relay.policy.routing import glob
from relay.settings.attachments import Urls

AT_ONCE = 4  # fetches: each holds its content in memory
REMEMBERED = 1000  # URLs, of what they answered last
LATER = frozenset({408, 425, 429})  # statuses of 4xx that another try may end


def allowed(url: str, patterns: tuple[str, ...]) -> bool:
    """Whether a URL as `guard.check` makes it is one of those: scheme, host and path each by its own part of the pattern, so that
    a `*` of the host ends where the host does. The path's letters have their case."""
    parts = urlsplit(url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    for pattern in patterns:
        scheme, _, rest = pattern.partition("://")
        host, _, below = rest.partition("/")
        # Not `fnmatch`: it would know [sets].
        if (scheme, True) == (parts.scheme, glob(host)(parts.netloc)) and fnmatch.fnmatchcase(
            path, "/" + below.replace("[", "[[]")
        ):
            return True
    return False


def climbs(url: str) -> bool:
    """Whether a part of its path is `.` or `..`, which is resolved on the way: `/public/../secret` is no path of /public/."""
    return any(
        unquote(part) in (".", "..") for part in urlsplit(url).path.replace("%2f", "/").replace("%2F", "/").split("/")
    )


@dataclass(frozen=True, slots=True)
class Had:
    """What a URL had at a time."""

    at: float
    sha256: str = ""
    why: str = ""  # it had nothing
    later: bool = False  # but may have


class Fetcher:
    def __init__(self, folder: Path) -> None:
        self.cache = Cache(folder)
        self._room = asyncio.Semaphore(AT_ONCE)
        self._under_way: dict[str, asyncio.Task[bytes]] = {}
        self._had: dict[str, Had] = {}

    async def fetch(self, url: str, rules: Urls, sha256: str, since: float) -> bytes:
        """What it has, or had after `since`. Who asks for what is being fetched gets the same. `sha256`: what this URL had, and is
        here under it, is not asked for. Raises NotAttached."""
        try:
            url = guard.check(url, allow_private=rules.allow_private)
        except ValueError as error:
            raise NotAttached(str(error)) from None
        if climbs(url) or not allowed(url, rules.allow):
            raise NotAttached("`attachments.urls.allow` does not name this URL")
        if sha256 and (kept := await asyncio.to_thread(self._kept, url, sha256)) is not None:
            return kept
        content = await self._since(url, since)
        if content is None:
            task = self._under_way.get(url)
            if task is None:
                task = self._under_way[url] = asyncio.create_task(self._fetch(url, rules))
                task.add_done_callback(lambda _: self._under_way.pop(url, None))
            content = await asyncio.shield(task)  # one who gives up is not the only one who waits
        if sha256 and _sha256(content) != sha256:
            raise NotAttached("what is there has not the `sha256` that was said")
        return content

    async def _since(self, url: str, since: float) -> bytes | None:
        """What it had after that, if anybody knows. Raises NotAttached."""
        had = self._had.get(url)
        if had is None or had.at < since:
            return None
        if had.why:
            raise NotAttached(had.why, later=had.later)
        return await asyncio.to_thread(self.cache.content, had.sha256)

    def _kept(self, url: str, sha256: str) -> bytes | None:
        """What this URL had: whoever else's was kept is not to be learnt, or sent, by its hash alone. Blocks."""
        seen = self.cache.seen(url)
        return self.cache.content(sha256) if seen and seen.sha256 == sha256 else None

    async def _fetch(self, url: str, rules: Urls) -> bytes:
        async with self._room:
            now = clock.monotonic()
            try:
                content = await self._asked(url, rules)
            except NotAttached as why:
                self._remember(url, Had(now, why=str(why), later=why.later))
                raise
            self._remember(url, Had(now, await asyncio.to_thread(_sha256, content)))
            return content

    def _remember(self, url: str, had: Had) -> None:
        self._had.pop(url, None)  # the newest stands last
        self._had[url] = had
        if len(self._had) > REMEMBERED:
            del self._had[next(iter(self._had))]

    async def _asked(self, url: str, rules: Urls) -> bytes:
        """Raises NotAttached."""
        seen = await asyncio.to_thread(self.cache.seen, url)
        kept = await asyncio.to_thread(self.cache.content, seen.sha256) if seen else None
        asked = {}
        if seen and kept is not None:  # RFC 9110 §13.1.2, §13.1.3
            asked = {"If-None-Match": seen.etag} if seen.etag else {}
            asked |= {"If-Modified-Since": seen.modified} if seen.modified and not seen.etag else {}
        answer = await _ask(url, asked, rules)
        if answer.status == 304 and asked and kept is not None:
            return kept
        _must_be_content(answer)
        marks = [answer.headers.get(name, "") for name in ("ETag", "Last-Modified")]
        etag, modified = (mark if mark.isascii() and mark.isprintable() and len(mark) < 200 else "" for mark in marks)
        await asyncio.to_thread(self.cache.keep, url, answer.body, etag, modified, rules.cache)
        return answer.body


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def _ask(url: str, asked: dict[str, str], rules: Urls) -> Answer:
    """Raises NotAttached."""
    try:
        return await guard.get(
            url,
            asked,
            seconds=rules.timeout,
            most=rules.max_size,
            allow_private=rules.allow_private,
            ca=rules.ca,
        )
    except (guard.NotAllowed, TooLong) as error:
        raise NotAttached(str(error)) from None
    except Unanswered as error:
        raise NotAttached(f"{error}; try again", later=True) from None


def _must_be_content(answer: Answer) -> None:
    """Raises NotAttached."""
    status = answer.status
    if status >= 500 or status in LATER:
        raise NotAttached(f"its server answers {status} now; try again", later=True)
    if 300 <= status < 400:
        raise NotAttached(f"its server answers {status}, and no redirect is followed; name where it is")
    if status != 200:
        raise NotAttached(f"its server answers {status}")
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise NotAttached("its server compresses what it was asked for as it is")
