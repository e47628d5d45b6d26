"""Attachments by URL lead to no address and no place that is not allowed, and are fetched once."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fakes import Upstream
from rig import free_port, running, until
from test_api_submit import MAIL, USERS, ask, written
from test_ssrf import HERE

from relay.attachments import cache
from relay.attachments.cache import Cache
from relay.attachments.urls import allowed, climbs


@dataclass
class Files:
    """A server of files on every address of this machine, that counts who asks."""

    port: int = 0
    asked: list[str] = field(default_factory=list)
    sent: int = 0
    status: int = 200
    content: bytes = b"%PDF"
    etag: str = ""
    gate: asyncio.Event | None = None

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if self.gate is not None:
            await self.gate.wait()
        if self.status != 200:
            return web.Response(status=self.status, headers={"Location": "http://127.0.0.1/"})
        headers = {"ETag": self.etag} if self.etag else {}
        if self.etag and request.headers.get("If-None-Match") == self.etag:
            return web.Response(status=304, headers=headers)
        self.sent += 1
        return web.Response(body=self.content, headers=headers)


@pytest.fixture
async def files() -> AsyncIterator[Files]:
    made = Files()
    app = web.Application()
    app.router.add_get("/{tail:.*}", made.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    both = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    await web.SockSite(runner, both).start()
    made.port = both.getsockname()[1]
    yield made
    await runner.cleanup()


def allowing(pattern: str, **more: Any) -> str:
    said = "".join(f", {key}: {value}" for key, value in more.items())
    return f'{USERS}attachments: {{urls: {{allow: ["{pattern}"]{said}}}}}\n'


def attached(url: str, **more: str) -> dict[str, Any]:
    return MAIL | {"attachments": [{"filename": "a.pdf", "url": url, **more}]}


def local(files: Files, **more: Any) -> str:
    return allowing(f"http://127.0.0.1:{files.port}/pub/*", allow_private="true", **more)


@pytest.mark.parametrize("host", HERE)
async def test_no_form_of_this_machine_is_reached(tmp_path: Path, files: Files, host: str) -> None:
    async with running(written(tmp_path, 1, allowing("https://*/*"))) as rig:
        for scheme in ("https", "http"):
            status, told = await ask(rig, attached(f"{scheme}://{host}:{files.port}/a"))
            assert status in (422, 503), told
    assert files.asked == []


async def test_fetched_once_and_asked_again_by_its_etag(tmp_path: Path, files: Files) -> None:
    files.etag = '"1"'
    url = f"http://127.0.0.1:{files.port}/pub/a.pdf"
    async with Upstream() as upstream, running(written(tmp_path, upstream.port, local(files))) as rig:
        for _ in range(3):
            status, told = await ask(rig, attached(url))
            assert status == 202, told
        assert (len(files.asked), files.sent) == (3, 1)
        # Under its hash it is not even asked for.
        status, _ = await ask(rig, attached(url, sha256=hashlib.sha256(b"%PDF").hexdigest()))
        assert (status, len(files.asked)) == (202, 3)
        assert (await ask(rig, attached(url, sha256="0" * 64)))[0] == 422
        await rig.settled()
        arrived = message_from_bytes(upstream.done[0].message, policy=policy.SMTP)
        assert next(arrived.iter_attachments()).get_content() == b"%PDF"


async def test_a_hash_alone_gets_nothing_of_what_another_url_had(tmp_path: Path, files: Files) -> None:
    where = f"http://127.0.0.1:{files.port}/pub"
    async with running(written(tmp_path, free_port(), local(files))) as rig:
        assert (await ask(rig, attached(f"{where}/secret.pdf")))[0] == 202
        files.status = 404
        known = hashlib.sha256(b"%PDF").hexdigest()
        assert (await ask(rig, attached(f"{where}/none.pdf", sha256=known)))[0] == 422


async def test_many_who_ask_at_once_are_one_fetch(tmp_path: Path, files: Files) -> None:
    async with Upstream() as upstream, running(written(tmp_path, upstream.port, local(files))) as rig:
        batch = {"messages": [attached(f"http://127.0.0.1:{files.port}/pub/a.pdf")] * 4}
        files.gate = asyncio.Event()
        answer = asyncio.create_task(ask(rig, batch, "/v1/messages/batch"))
        await until(lambda: files.asked)
        files.gate.set()
        status, told = await answer
        assert (status, told["accepted"]) == (202, 4)
        assert len(files.asked) < 4


@pytest.mark.parametrize(("status", "answer"), [(404, 422), (302, 422), (500, 503), (429, 503), (204, 422)])
async def test_what_is_not_there_refuses_the_message(tmp_path: Path, files: Files, status: int, answer: int) -> None:
    files.status = status
    async with running(written(tmp_path, 1, local(files))) as rig:
        found, told = await ask(rig, attached(f"http://127.0.0.1:{files.port}/pub/a.pdf"))
        assert found == answer and str(status) in told["detail"], told
        assert await rig.count() == 0
    assert len(files.asked) == 1


async def test_too_large_and_what_is_not_allowed(tmp_path: Path, files: Files) -> None:
    files.content = b"x" * 20_000
    async with running(written(tmp_path, 1, local(files, max_size="10kB"))) as rig:
        base = f"http://127.0.0.1:{files.port}"
        assert (await ask(rig, attached(f"{base}/pub/a")))[0] == 422
        asked = len(files.asked)
        for path in ("/a", "/pub/../a", "/pub/%2e%2e/a", "/pub/x%2f..%2f..%2fa", "/PUB/a"):
            status, told = await ask(rig, attached(base + path))
            assert status == 422 and "allow" in told["detail"], (path, told)
        assert len(files.asked) == asked


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("https://files.example.com/a", True),
        ("https://FILES.example.com/a", True),
        ("https://files.example.com/a/b?c=d", True),
        ("https://files.example.com.evil.example/a", False),
        ("https://evil.example/files.example.com/a", False),
        ("http://files.example.com/a", False),
        ("https://files.example.com:8443/a", False),
    ],
)
def test_a_pattern_means_its_host(url: str, good: bool) -> None:
    assert allowed(url, ("https://files.example.com/*",)) is good


def test_a_star_in_the_host_ends_with_it() -> None:
    assert allowed("https://a.example.com/x", ("https://*.example.com/*",))
    assert not allowed("https://evil.example/.example.com/x", ("https://*.example.com/*",))
    assert climbs("https://a.example/x/..%2Fy") and not climbs("https://a.example/x..y/...z")


@pytest.mark.parametrize("status", [200, 404])
async def test_a_batch_asks_a_url_once_whatever_it_answers(tmp_path: Path, files: Files, status: int) -> None:
    """No ETag: each time it is asked for costs a transfer. The next request is another time."""
    files.status = status
    async with running(written(tmp_path, free_port(), local(files))) as rig:
        batch = {"messages": [attached(f"http://127.0.0.1:{files.port}/pub/a.pdf")] * 50}
        for number in (1, 2):
            _, told = await ask(rig, batch, "/v1/messages/batch")
            assert told["accepted"] == (50 if status == 200 else 0)
            assert len(files.asked) == number


def age(made: Cache) -> None:
    """What is written next is newer than all that is there, however coarse a file's time is."""
    for file in made.folder.iterdir():
        os.utime(file, (file.stat().st_mtime - 100, file.stat().st_mtime - 100))


def test_the_cache_is_bounded_in_bytes_and_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Cache(tmp_path / "kept")
    for number in range(40):
        made.keep(f"https://x.test/{number}", b"%d" % number * 5000, "", "", 200_000)
        age(made)
        assert sum(file.stat().st_size for file in made.folder.iterdir()) <= 200_000
    assert made.seen("https://x.test/39") and not made.seen("https://x.test/0")
    monkeypatch.setattr(cache, "MOST_FILES", 10)
    for number in range(40):
        made.keep(f"https://y.test/{number}", b"%d" % number, "", "", 200_000)
        age(made)
        assert len(list(made.folder.iterdir())) <= 10
    seen = made.seen("https://y.test/39")
    assert seen and made.content(seen.sha256) == b"39"


def test_what_a_crash_left_in_the_cache(tmp_path: Path) -> None:
    """Half a file under its own name is none; half of one that was being written goes with the oldest."""
    made = Cache(tmp_path / "kept")
    made.keep("https://x.test/a", b"content", "", "", 50_000)
    seen = made.seen("https://x.test/a")
    assert seen
    (made.folder / f"{seen.sha256}.content").write_bytes(b"cont")
    (made.folder / ".half.content.new").write_bytes(b"x" * 45_000)
    os.utime(made.folder / ".half.content.new", (1, 1))
    assert made.content(seen.sha256) is None
    after = Cache(made.folder)
    after.keep("https://x.test/a", b"content", "", "", 50_000)
    assert after.content(seen.sha256) == b"content" and not (made.folder / ".half.content.new").exists()


def test_urls_that_have_the_same_content_are_kept_at_once(tmp_path: Path) -> None:
    made = Cache(tmp_path / "kept")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: made.keep(f"https://x.test/{n}", b"x" * 300_000, '"1"', "", 10**8), range(50)))
    found = {made.seen(f"https://x.test/{n}") for n in range(50)}
    assert len(found) == 1 and (only := found.pop()) and made.content(only.sha256)
