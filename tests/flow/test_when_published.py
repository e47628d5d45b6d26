"""The relay whole: a key with `when_published` signs once a name server holds its record, and the one before it until then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import until
from fakes import Upstream
from nameserver import Scripted
from rig import Rig, running, write_config

from relay.signing import watch as module
from relay.signing.keys import generate
from relay.signing.verify import Verifier, parts

KEYS = {"old": generate("ed25519"), "new": generate("ed25519")}


class Dns(Scripted):
    """Holds the records of some of the keys."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.trouble, self.delay = False, 0.0
        super().__init__(self._answered)

    def _answered(self, name: str, tcp: bool) -> list[str] | str:
        time.sleep(self.delay)
        if self.trouble:
            return "SERVFAIL"
        selector, _, domain = name.partition("._domainkey.")
        return [KEYS[selector].record] if f"{selector}/{domain}" in self.there else "NXDOMAIN"


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dns]:
    for name, seconds in {"AGAIN": 0.2, "SOON": 0.2, "PAUSE": 0.02}.items():
        monkeypatch.setattr(module, name, seconds)
    with Dns() as made:
        yield made


def entry(folder: Path, selector: str, more: str) -> str:
    file = folder / f"{selector}.pem"
    file.write_text(KEYS[selector].pem())
    file.chmod(0o600)
    return f"  - {{domain: example.com, selector: {selector}, key: {{file: {file}}}, {more}}}\n"


def config(folder: Path, up: Upstream, dns: Dns, entries: str) -> Path:
    extra = f"signing:\n{entries}dns: {{servers: ['{dns.server}'], timeout: 20s}}\n"
    return write_config(folder, {"main": f"port: {up.port}, tls: none"}, extra=extra)


async def send(rig: Rig, up: Upstream, author: str = "ann@example.com") -> dict[str, str]:
    """Selector and d= of what the message arrives signed by; each signature verifies."""
    before = len(up.done)
    message = f"From: {author}\r\nTo: you@example.net\r\nSubject: t\r\n\r\nhello\r\n".encode()
    number = await rig.send(sender="ann@example.com", message=message)
    await rig.reaches(number, "delivered")
    arrived = up.done[before].message

    def key(name: bytes, timeout: int = 0) -> bytes:
        return KEYS[name.decode().partition(".")[0]].record.encode()

    found = Verifier(*parts(arrived), key, 4e9).dkim()
    assert all(one.result == "pass" for one in found), found
    return {one.selector: one.domain for one in found}


async def test_rotation(tmp_path: Path, dns: Dns) -> None:
    dns.there = {"old/example.com"}
    entries = entry(tmp_path, "old", "not_after: 2026-01-01") + entry(tmp_path, "new", "when_published: true")
    async with Upstream() as up, running(config(tmp_path, up, dns, entries)) as rig:
        assert await send(rig, up) == {"old": "example.com"}
        await until(lambda: rig.said("key_unpublished_yet"))
        dns.there.add("new/example.com")
        await until(lambda: rig.said("key_published"))
        assert await send(rig, up) == {"new": "example.com"}
        dns.there.clear()
        dns.trouble = True
        assert rig.app.reload()[0]
        assert await send(rig, up) == {"new": "example.com"}, "seen is seen, over a reload"


async def test_the_first_message_waits_for_the_answer(tmp_path: Path, dns: Dns) -> None:
    dns.there, dns.delay = {"new/example.com"}, 0.4
    entries = entry(tmp_path, "new", "subdomains: true, when_published: true")
    async with Upstream() as up, running(config(tmp_path, up, dns, entries)) as rig:
        assert await send(rig, up, "ann@news.example.com") == {"new": "example.com"}
        assert {name for name, _ in dns.asked} == {"new._domainkey.example.com"}, "the name that is signed as"


async def test_it_waits_while_the_dns_is_silent_and_leaves_unsigned_where_there_is_none(
    tmp_path: Path, dns: Dns
) -> None:
    dns.trouble = True
    entries = entry(tmp_path, "new", "when_published: true")
    async with Upstream() as up, running(config(tmp_path, up, dns, entries)) as rig:
        message = b"From: ann@example.com\r\nTo: you@example.net\r\nSubject: t\r\n\r\nhello\r\n"
        number = await rig.send(sender="ann@example.com", message=message)
        row = await rig.tried(number)
        assert row["state"] == "deferred" and "can't be looked up" in row["why"], row
        dns.trouble = False
        await rig.reaches(number, "delivered")
        assert b"DKIM-Signature" not in up.done[0].message
        assert rig.said("key_unpublished_yet")


async def test_an_entry_that_comes_with_a_reload_is_asked_for(tmp_path: Path, dns: Dns) -> None:
    old = entry(tmp_path, "old", "when_published: false")
    dns.there = {"old/example.com", "new/example.com"}
    async with Upstream() as up, running(config(tmp_path, up, dns, old)) as rig:
        assert await send(rig, up) == {"old": "example.com"} and not dns.asked
        config(tmp_path, up, dns, old + entry(tmp_path, "new", "when_published: true"))
        assert rig.app.reload()[0]
        await until(lambda: rig.said("key_published"))
        assert set(await send(rig, up)) == {"old", "new"}


async def test_a_start_does_not_go_back_to_the_key_before(tmp_path: Path, dns: Dns) -> None:
    """What was seen is forgotten with the process, and the old record may be gone for long: the first messages wait for the
    answer. Where there is none, the old key is better than nothing."""
    dns.there, dns.delay = {"new/example.com"}, 0.4
    entries = entry(tmp_path, "old", "not_after: 2026-01-01") + entry(tmp_path, "new", "when_published: true")
    async with Upstream() as up:
        file = config(tmp_path, up, dns, entries)
        async with running(file) as rig:
            assert await send(rig, up) == {"new": "example.com"}
        dns.trouble, dns.delay = True, 0.0
        async with running(file) as rig:
            assert await send(rig, up) == {"old": "example.com"}


async def test_a_second_kind_of_key_alone_does_not_sign_while_the_first_is_asked_for(tmp_path: Path, dns: Dns) -> None:
    """Few receivers verify Ed25519: a start must not send a message by it alone because RSA's record is still to be seen."""
    dns.there, dns.delay = {"new/example.com"}, 0.4
    entries = entry(tmp_path, "old", "when_published: false") + entry(tmp_path, "new", "when_published: true")
    async with Upstream() as up, running(config(tmp_path, up, dns, entries)) as rig:
        assert set(await send(rig, up)) == {"old", "new"}
