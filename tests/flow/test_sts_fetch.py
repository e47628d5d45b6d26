"""MTA-STS over real HTTPS and DNS: which policy applies when the one or the other changes, fails or lies."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import ssl
import stat
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from conftest import free_port, until
from nameserver import Says, Told

from relay import clock
from relay.maillog import MailLog
from relay.nexthop import fetch, kept, sts
from relay.nexthop.sts import FETCHES, Sts, StsPolicy
from relay.resolver import Resolver

DOMAIN, HOST, RECORD = "example.test", "mta-sts.example.test", "_mta-sts.example.test"
DAY = 86400


def policy(mode: str = "enforce", mx: str = "mx.example.test", max_age: int = 604800) -> str:
    return f"version: STSv1\r\nmode: {mode}\r\nmx: {mx}\r\nmax_age: {max_age}\r\n"


class Clock:
    """Time goes on by itself, and by as much as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        for name in ("now", "monotonic"):
            read: Callable[[], float] = getattr(clock, name)
            monkeypatch.setattr(clock, name, lambda read=read: read() + self.ahead)


class World:
    """A domain with a policy, and what a relay makes of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock(monkeypatch)
        self.folder = folder / "sts"
        self.ca = trustme.CA()
        trusted = folder / "trusted.pem"
        self.ca.cert_pem.write_to_path(trusted)
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        self.port = free_port()
        monkeypatch.setattr(fetch, "PORT", self.port)
        self.dns = Told()
        self.announce("1")
        self.dns.say(HOST, "A", "127.0.0.1")
        self.dns.say(HOST, "AAAA")
        self._lines = io.StringIO()
        self._log = MailLog(self._lines)
        self.allowed = {"127.0.0.1"}
        self.status, self.body, self.type = 200, policy(), "text/plain; charset=utf-8"
        self.headers: dict[str, str] = {}
        self.requests: list[web.Request] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.drip = 0.0
        self.patience = 20.0  # seconds for a question to the DNS
        self._runner: web.AppRunner | None = None
        self.sts = self.restarted()

    def restarted(self, folder: Path | None = None) -> Sts:
        """What a new process has: the folder, and no memory."""
        self.resolver = Resolver((self.dns.server,), self.patience)
        self.sts = Sts(self.resolver, folder or self.folder, self._log, self.allowed.__contains__)
        return self.sts

    def announce(self, id_: str, ttl: int = 300) -> None:
        self.dns.say(RECORD, "TXT", f'"v=STSv1; id={id_};"', ttl=ttl)

    def silence(self) -> None:
        """Nobody answers who asks for the record. Nobody waits long for that: what is answered has more time."""
        self.dns.told[RECORD, "TXT"] = None
        self.patience = self.resolver._timeout = 1.0

    async def serve(self, cert: trustme.LeafCert | None = None) -> None:
        await self.stop()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (cert or self.ca.issue_cert(HOST)).configure_cert(context)
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context, reuse_address=True).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        await self.gate.wait()
        if request.path != "/.well-known/mta-sts.txt":
            return web.Response(text=policy("none"))
        headers = {"Content-Type": self.type} | self.headers if self.type else self.headers
        if not self.drip:
            return web.Response(status=self.status, body=self.body.encode(), headers=headers)
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for octet in self.body.encode():
                await response.write(bytes([octet]))
                await asyncio.sleep(self.drip)
        return response

    async def mode(self, after: float = 0.0) -> str | None:
        """Of what applies, `after` seconds."""
        self.clock.ahead += after
        found = await self.sts.of(DOMAIN)
        return found and found.mode

    @property
    def log(self) -> str:
        self._log.flush()
        return self._lines.getvalue()

    def said(self, event: str) -> list[str]:
        return [line for line in self.log.splitlines() if f"event={event} " in line]


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    made = World(tmp_path, monkeypatch)
    with made.dns:
        await made.serve()
        yield made
        await made.stop()


@pytest.mark.parametrize(("mode", "applies"), [("enforce", "enforce"), ("testing", "testing"), ("none", None)])
async def test_each_mode(world: World, mode: str, applies: str | None) -> None:
    world.body = policy(mode)
    before = FETCHES.values.get(("ok",), 0)
    assert await world.mode() == applies
    assert await world.mode(3600) == applies
    assert len(world.requests) == 1 and FETCHES.values["ok",] == before + 1
    assert not world.log


async def test_what_is_asked(world: World) -> None:
    found = await world.sts.of("Example.TEST.")
    assert found == StsPolicy("1", "enforce", ("mx.example.test",), 604800, pytest.approx(clock.now(), abs=60))
    assert world.sts.known(DOMAIN) == found
    (request,) = world.requests
    assert (request.method, request.host) == ("GET", f"{HOST}:{world.port}")
    assert request.headers["User-Agent"].startswith("relay/") and "Cookie" not in request.headers
    assert world.dns.questions.count((RECORD, "TXT")) == 1


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"status": 301, "headers": {"Location": "/elsewhere"}}, "it answered 301, a redirect, which is not followed"),
        ({"status": 404}, "it answered 404"),
        ({"status": 500}, "it answered 500"),
        ({"status": 204, "body": ""}, "it answered 204"),
        ({"type": "text/html"}, "its Content-Type is text/html, not text/plain"),
        ({"type": ""}, "Content-Type is application/octet-stream, not text/plain"),  # aiohttp's server says so
        ({"body": policy() + "x: " + "y" * 70_000}, "its answer, of status 200, is longer than 65536 bytes"),
        ({"body": policy("strict")}, "the policy's mode is 'strict'"),
        ({"body": "<html>"}, "is no field"),
        ({"headers": {"Content-Encoding": "gzip"}}, None),  # not what we asked for, and not undone
        ({"drip": 0.2}, "no answer within 4 s"),
    ],
)
async def test_what_is_no_policy(
    world: World, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], why: str | None
) -> None:
    if "drip" in changes:
        monkeypatch.setattr(fetch, "TIMEOUT", 4.0)
    for name, value in changes.items():
        setattr(world, name, value)
    assert await world.mode() == (None if why else "enforce")
    assert len(world.requests) == 1 and len(world.said("sts_fetch_failed")) == (why is not None)
    assert why is None or why in world.log


@pytest.mark.parametrize(
    ("cert", "why"),
    [
        (lambda ca: ca.issue_cert("example.test", "mx.example.test"), "Hostname mismatch"),
        (lambda ca: ca.issue_cert("x.test", common_name=HOST), "Hostname mismatch"),
        (lambda ca: ca.issue_cert(common_name=HOST), "mismatch"),  # RFC 8461 §3.3: a DNS-ID
        (lambda ca: trustme.CA().issue_cert(HOST), "unable to get local issuer certificate"),
        (
            lambda ca: ca.issue_cert(
                HOST,
                not_before=datetime.now(UTC) - timedelta(days=9),
                not_after=datetime.now(UTC) - timedelta(days=1),
            ),
            "certificate has expired",
        ),
    ],
)
async def test_certificates_that_do_not_vouch(world: World, cert: Callable[[trustme.CA], Any], why: str) -> None:
    await world.serve(cert(world.ca))
    assert await world.mode() is None
    (line,) = world.said("sts_fetch_failed")
    assert "its certificate is not accepted" in line and why in line and not world.requests


async def test_a_certificate_with_a_wildcard(world: World) -> None:
    await world.serve(world.ca.issue_cert("*.example.test"))
    assert await world.mode() == "enforce"


@pytest.mark.parametrize(
    "junk", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 99]
)
async def test_no_tls_at_all(world: World, junk: bytes) -> None:
    await world.stop()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(junk)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", world.port):
        assert await world.mode() is None
    assert len(world.said("sts_fetch_failed")) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"junk\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000,
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 900\r\n\r\n" + policy().encode(),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: -1\r\n\r\n" + policy().encode(),
        b"",
    ],
)
async def test_no_http_at_all(world: World, answer: bytes) -> None:
    await world.stop()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    world.ca.issue_cert(HOST).configure_cert(context)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", world.port, ssl=context):
        assert await world.mode() is None
    assert len(world.said("sts_fetch_failed")) == 1


async def test_a_failed_fetch_rests_for_five_minutes_and_is_told_once(world: World) -> None:
    world.status = 500
    world.announce("1", ttl=5)
    for after in (0, 100, 100, 90):
        assert await world.mode(after) is None
    assert len(world.requests) == 1
    assert await world.mode(20) is None and len(world.requests) == 2
    assert len(world.said("sts_fetch_failed")) == 1
    # Another id may be asked for at once (RFC 8461 §3.3).
    world.announce("2")
    world.status = 200
    assert await world.mode(20) == "enforce" and len(world.requests) == 3
    world.status = 500
    world.announce("3")
    assert await world.mode(301) == "enforce"
    assert len(world.said("sts_fetch_failed")) == 2 and "cached=enforce" in world.log


async def test_no_record_no_policy(world: World) -> None:
    world.dns.say(RECORD, "TXT", '"v=spf1 -all"')
    assert await world.mode() is None
    del world.dns.told[RECORD, "TXT"]
    assert await world.mode(301) is None
    world.dns.told[RECORD, "TXT"] = Says(rcode="SERVFAIL")
    assert await world.mode(3601) is None
    assert not world.requests and not world.log
    world.announce("1")
    assert await world.mode(61) == "enforce"  # not only once some TTL has passed


async def test_a_new_id_brings_a_new_policy(world: World) -> None:
    assert await world.mode() == "enforce"
    world.body = policy("testing")
    assert await world.mode(301) == "enforce" and len(world.requests) == 1  # the id is the same
    world.announce("2")
    assert await world.mode(301) == "testing" and len(world.requests) == 2
    world.announce("3")
    world.body = policy("none")
    assert await world.mode(301) is None and len(world.requests) == 3


async def test_unreachable_but_cached(world: World) -> None:
    """RFC 8461 §5.1: whoever blocks the fetch of the new policy leaves the old one in force, until it ends."""
    assert await world.mode() == "enforce"
    await world.stop()
    world.announce("2")
    assert await world.mode(301) == "enforce"
    assert await world.mode(6 * DAY) == "enforce"
    assert await world.mode(DAY) is None
    (line,) = world.said("sts_fetch_failed")
    assert "it cannot be reached" in line and "cached=enforce" in line


@pytest.mark.parametrize("answer", ["gone", "NXDOMAIN", "SERVFAIL", "REFUSED", "silence", "two"])
async def test_the_record_is_gone_but_the_policy_cached(world: World, answer: str) -> None:
    assert await world.mode() == "enforce"
    if answer == "gone":
        world.dns.say(RECORD, "TXT")
    elif answer == "two":
        world.dns.say(RECORD, "TXT", '"v=STSv1; id=2"', '"v=STSv1; id=3"')
    elif answer == "silence":
        world.silence()
    else:
        world.dns.told[RECORD, "TXT"] = Says(rcode=answer)
    assert await world.mode(301) == "enforce"
    assert await world.mode(6 * DAY) == "enforce"
    assert await world.mode(DAY) is None
    assert len(world.requests) == 1


async def test_a_policy_that_ended_is_fetched_anew(world: World) -> None:
    world.body = policy(max_age=1000)
    world.announce("1", ttl=DAY)
    assert await world.mode() == "enforce"
    world.body = policy("testing", max_age=0)
    assert await world.mode(990) == "enforce" and len(world.requests) == 1
    assert await world.mode(20) == "testing" and len(world.requests) == 2
    assert await world.mode(1) == "testing"  # not one fetch a message
    assert await world.mode(10) == "testing" and len(world.requests) == 3


async def test_a_restart_forgets_nothing(world: World) -> None:
    assert await world.mode() == "enforce"
    (file,) = world.folder.iterdir()
    assert stat.S_IMODE(world.folder.stat().st_mode) == 0o700 and stat.S_IMODE(file.stat().st_mode) == 0o600
    await world.stop()
    world.silence()
    world.restarted()
    assert await world.mode(DAY) == "enforce"
    world.announce("2")
    world.restarted()
    assert await world.mode(DAY) == "enforce"
    world.restarted()
    assert await world.mode(5 * DAY) is None
    assert list(world.folder.iterdir()) == []


async def test_a_policy_of_none_replaces_the_one_that_was_kept(world: World) -> None:
    assert await world.mode() == "enforce"
    world.body = policy("none")
    world.announce("2")
    assert await world.mode(301) is None
    await world.stop()
    world.restarted()
    assert await world.mode() is None
    assert not world.said("sts_fetch_failed")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"domain": "example.test", "id": "1", "mode": "enforce", "mx": [], "max_age": 999999, "fetched_at": 1e9}',
        b'{"domain": "example.test", "id": "1", "mode": "enforce", "mx": [1], "max_age": 999999, "fetched_at": 4e9}',
        b'{"domain": "example.test", "id": "1", "mode": "enforce", "mx": ["a.b"], "max_age": 999999, "fetched_at": NaN}',
        b'{"domain": "example.test", "id": "1", "mode": "x", "mx": ["a.b"], "max_age": 999999, "fetched_at": 4e9}',
        b'{"domain": "example.test", "id": "1", "mode": "testing", "mx": ["a.b"], "max_age": 9, "fetched_at": 1' + b"0" * 400 + b"}",
        b'{"domain": "other.test", "id": "1", "mode": "testing", "mx": ["a.b"], "max_age": 999999, "fetched_at": 4e9}',
    ],
)  # fmt: skip
async def test_a_file_that_is_broken_is_replaced(world: World, content: bytes) -> None:
    assert await world.mode() == "enforce"
    (file,) = world.folder.iterdir()
    good = json.loads(file.read_bytes())
    file.write_bytes(content)
    world.restarted()
    assert await world.mode() == "enforce" and len(world.requests) == 2
    assert json.loads(file.read_bytes()) | {"fetched_at": 0} == good | {"fetched_at": 0}
    assert not world.log


async def test_a_clock_that_was_ahead_makes_nothing_last(world: World) -> None:
    assert await world.mode() == "enforce"
    (file,) = world.folder.iterdir()
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"fetched_at": clock.now() + 900 * DAY}))
    await world.stop()
    world.restarted()
    found = await world.sts.of(DOMAIN)
    assert found is not None and found.ends <= clock.now() + 7 * DAY


async def test_a_folder_that_is_none_is_told_once(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    world.restarted(tmp_path / "file" / "sts")
    assert await world.mode() == "enforce"
    world.announce("2")
    world.body = policy("testing")
    assert await world.mode(301) == "testing"
    assert len(world.said("sts_not_kept")) == 1


async def test_a_folder_that_hangs_holds_up_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await world.mode() == "enforce"
    (file,) = world.folder.iterdir()
    file.unlink()
    os.mkfifo(file)  # whoever reads it waits
    monkeypatch.setattr(sts, "PATIENCE", 0.2)
    world.restarted()
    assert await world.mode() == "enforce" and len(world.requests) == 2
    assert "it hangs" in world.said("sts_not_kept")[0]
    os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK))  # lets the thread go


async def test_the_folder_is_swept_and_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST", 20)
    store = kept.Kept(world.folder)
    for number in range(50):
        made = StsPolicy("1", "enforce", ("a.example",), 1000 + number, 1000.0)
        store.save(f"d{number}.example", made)
        assert len(list(world.folder.iterdir())) <= 20
    assert store.load("d49.example", 1500.0) == made and store.load("d0.example", 1500.0) is None
    (world.folder / f".{'0' * 40}.json.new").write_text("cut off")
    (world.folder / f"{'0' * 40}.json").write_text("junk")
    store.sweep(2044.5)  # those until 44 have ended
    assert sorted(len(file.name) for file in world.folder.iterdir()) == [45] * 5
    store.sweep(9999.0)
    assert list(world.folder.iterdir()) == []


async def test_it_is_swept_by_the_loop(world: World) -> None:
    world.body = policy(max_age=100)
    assert await world.mode() == "enforce"
    world.clock.ahead += 200
    world.restarted()
    running = asyncio.create_task(world.sts.run())
    await until(lambda: list(world.folder.iterdir()) == [])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_policies_in_use_are_renewed_each_day(world: World) -> None:
    """So an attacker who blocks the fetch when a policy would end gains nothing (RFC 8461 §10.2)."""
    assert await world.mode() == "enforce"
    await world.sts.renew()
    assert len(world.requests) == 1
    for day in range(2, 20):
        world.clock.ahead += DAY
        await world.sts.renew()
        assert len(world.requests) == day
    world.silence()  # nor one who blocks the record
    assert await world.mode(DAY) == "enforce"
    world.resolver._timeout = 4.0
    await world.sts.renew()
    assert len(world.requests) == 20
    world.status = 503
    world.clock.ahead += DAY
    await world.sts.renew()
    await world.sts.renew()
    assert len(world.requests) == 21 and len(world.said("sts_fetch_failed")) == 1
    world.clock.ahead += 3601
    await world.sts.renew()
    assert len(world.requests) == 22
    assert await world.mode() == "enforce" and await world.mode(4 * DAY) == "enforce"


async def test_what_nobody_uses_is_left_to_end(world: World) -> None:
    world.body = policy(max_age=90 * DAY)
    assert await world.mode() == "enforce"
    world.clock.ahead += 31 * DAY
    await world.sts.renew()
    assert len(world.requests) == 1
    world.body = policy("none")
    world.announce("2")
    assert await world.mode() is None
    world.clock.ahead += 2 * DAY
    await world.sts.renew()
    assert len(world.requests) == 2


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0"])
async def test_a_private_address_is_not_dialled(world: World, address: str) -> None:
    world.allowed.clear()
    world.dns.say(HOST, "A", address)
    assert await world.mode() is None
    assert not world.requests and f"{HOST} has only private addresses: {address}" in world.log


async def test_only_what_was_checked_is_dialled(world: World) -> None:
    """The name of the second address can change between check and use; what was checked is what is dialled."""
    world.dns.say(HOST, "A", "10.255.255.1", "127.0.0.1", ttl=0)
    assert await world.mode() == "enforce"
    assert world.dns.questions.count((HOST, "A")) == 1


async def test_one_kind_of_address_is_enough(world: World) -> None:
    world.dns.told[HOST, "AAAA"] = Says(rcode="SERVFAIL")
    assert await world.mode() == "enforce"
    world.dns.told[HOST, "A"] = Says(rcode="SERVFAIL")
    world.restarted()
    world.announce("2")
    assert await world.mode() == "enforce"
    assert "SERVFAIL" in world.log and len(world.requests) == 1


async def test_one_fetch_for_all_who_wait(world: World) -> None:
    world.gate.clear()
    asked = [asyncio.create_task(world.sts.of(DOMAIN)) for _ in range(50)]
    await until(lambda: world.requests)
    world.gate.set()
    assert {found.mode for found in await asyncio.gather(*asked) if found} == {"enforce"}
    assert len(world.requests) == 1 and world.dns.questions.count((RECORD, "TXT")) == 1


async def test_who_gives_up_leaves_it_to_the_others(world: World) -> None:
    world.gate.clear()
    first, second = asyncio.create_task(world.sts.of(DOMAIN)), asyncio.create_task(world.sts.of(DOMAIN))
    await until(lambda: world.requests)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    world.gate.set()
    found = await second
    assert found is not None and found.mode == "enforce" and len(world.requests) == 1


async def test_it_goes_on_when_all_give_up(world: World) -> None:
    world.gate.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await world.sts.of(DOMAIN)
    world.gate.set()
    await until(lambda: world.sts.known(DOMAIN))
    assert len(world.requests) == 1


async def test_what_one_rule_allows_is_no_others(world: World) -> None:
    """Of all rules one lets its hosts have private addresses: the policies of other domains may not be at such."""
    assert await world.sts.of(DOMAIN, private=False) is None
    assert "has only private addresses: 127.0.0.1" in world.log and not world.requests


@pytest.mark.parametrize(
    "domain", ["[127.0.0.1]", "[IPv6:::1]", "127.0.0.1", "", ".", "a b", "müller.test", "a" * 300, "a..b"]
)
async def test_what_can_have_none(world: World, domain: str) -> None:
    assert await world.sts.of(domain) is None and world.sts.known(domain) is None
    assert world.dns.questions == []


async def test_memory_is_bounded_and_policies_stay_longest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sts, "MOST", 20)
    assert await world.mode() == "enforce"
    for number in range(60):
        assert await world.sts.of(f"d{number}.test") is None
        assert len(world.sts._domains) <= 20
    await world.stop()
    assert await world.mode() == "enforce" and not world.said("sts_fetch_failed")
