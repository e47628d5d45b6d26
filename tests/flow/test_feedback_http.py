"""The public side as a server for strangers: what it answers, what it tells of itself, and what one of them can take of it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ssl
import time
from pathlib import Path

import aiohttp
import pytest
from conftest import until

from relay import metrics
from relay.feedback import http, web
from relay.feedback.throttle import Buckets
from relay.spool import SpoolError
from tests import webhooks
from tests.certificates import Authority
from tests.publicside import Bench, configured, public, raw
from tests.rig import free_port, running

BOTH_LOOPS = True
LOGIN = webhooks.login("relay", "secret")
EVENT = {
    "RecordType": "Bounce",
    "ID": 1,
    "Type": "HardBounce",
    "Email": "jane@example.com",
    "Details": "550 5.1.1 unknown",
}


async def test_what_there_is(tmp_path: Path) -> None:
    async with public(tmp_path) as bench:
        for path in ("/", "/metrics", "/v1/status", "/readyz", "/feedback", "/feedback/", "/feedback/nobody", "/feedback/postmark/x",
                     "/healthz/x", "/unsubscribe", "/unsubscribe/", "/unsubscribe/a/b", "/%66eedback/postmark", "//feedback/postmark",
                     "/feedback/../metrics", "/feedback/postmark%00", "/favicon.ico"):  # fmt: skip
            for method in ("GET", "POST", "PUT", "OPTIONS"):
                answer = await bench.ask(method, path)
                assert (answer.status, answer.body) == (404, b""), (method, path)
        for path, allowed in (
            ("/feedback/postmark", "POST"),
            ("/healthz", "GET, HEAD"),
            ("/unsubscribe/x", "GET, HEAD, POST"),
        ):
            answer = await bench.ask("DELETE", path)
            assert (answer.status, answer.headers["Allow"]) == (405, allowed)
        answer = await bench.ask("GET", "/healthz")
        assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize("host", ["xn--", "[::1", "a..b", "x:99999", "\udcff"])
async def test_a_target_that_names_a_host_which_is_none(tmp_path: Path, host: str) -> None:
    async with public(tmp_path) as bench:
        target = f"GET http://{host}/healthz HTTP/1.1\r\nHost: x\r\n\r\n".encode("utf-8", "surrogateescape")
        assert (await raw(bench.port, target)).split(b" ", 2)[1] in (b"404", b"400", b"200")


async def test_nothing_is_told_of_who_answers(tmp_path: Path) -> None:
    async with public(tmp_path) as bench:
        for request in (
            b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n", b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
            b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nA: " + b"b" * 9000 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST /feedback/postmark HTTP/1.1\r\nAuthorization: " + LOGIN.encode()
            + b"\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nno chunk\r\n\r\n",
        ):  # fmt: skip
            said = (await raw(bench.port, request + b"\r\n")).lower()
            assert b"server:" not in said and b"aiohttp" not in said and b"python" not in said, said
            assert b"traceback" not in said and b"500" not in said.split(b"\r\n")[0]
            if said:
                assert b"connection: close" in said or said.startswith(b"http/1.0"), said


@pytest.mark.parametrize(
    ("body", "headers", "why"),
    [
        (b"a=b", {"Content_Type": "multipart/form-data"}, "its body is packed, or no JSON by its Content-Type"),
        (b" " * 600_000, {}, "its body is too long"),
    ],
)
async def test_the_log_says_what_is_wrong_with_a_body(
    tmp_path: Path, body: bytes, headers: dict[str, str], why: str
) -> None:
    async with public(tmp_path) as bench:
        await bench.post("postmark", body, Authorization=LOGIN, **headers)
        assert [said["why"] for said in bench.rig.said("feedback_refused")] == [why]


async def test_bodies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with public(tmp_path) as bench:
        assert (await bench.post("postmark", EVENT, Authorization=LOGIN)).status == 200
        packed = gzip.compress(b" " * 1_000_000)
        assert (await bench.post("postmark", packed, Authorization=LOGIN, Content_Encoding="gzip")).status == 415
        assert (await bench.post("postmark", EVENT, Authorization=LOGIN, Content_Type="application/xml")).status == 415
        assert (
            await bench.post("postmark", EVENT, Authorization=LOGIN, Content_Type="multipart/form-data; boundary=x")
        ).status == 415
        assert (await bench.post("postmark", b"{", Authorization=LOGIN)).status == 400
        assert (await bench.post("postmark", b"[" * 200_000, Authorization=LOGIN)).status == 400
        assert (await bench.post("postmark", b" " * 600_000, Authorization=LOGIN)).status == 413
        # Neither is a body read of one who is not logged in, nor is more of it taken than it may have.
        head = b"POST /feedback/postmark HTTP/1.1\r\nHost: x\r\n"
        login = f"Authorization: {LOGIN}\r\n".encode()
        long = b"Content-Length: 10000000000\r\n\r\n"
        assert (await raw(bench.port, head + long)).startswith(b"HTTP/1.1 401")
        assert (await raw(bench.port, head + login + long)).startswith(b"HTTP/1.1 413")
        chunks = b"10000\r\n" + b" " * 65536 + b"\r\n90000\r\n" + b" " * 589824
        assert (await raw(bench.port, head + login + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)).startswith(
            b"HTTP/1.1 413"
        )
        monkeypatch.setattr(web, "BODY", 0.2)
        slow = head + login + b"Content-Length: 100\r\n\r\n{"
        began = time.monotonic()
        assert (await raw(bench.port, slow)).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - began < 9.0


async def test_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says nothing, or a header letter by letter, lives so long and no longer; and of all there are so many."""
    monkeypatch.setattr(web, "LIFE", 600.0)
    monkeypatch.setattr(web, "MOST_CONNECTIONS", 5)
    async with public(tmp_path) as bench:
        site = bench.rig.app.feedback.public.site
        assert site is not None
        idle = [await asyncio.open_connection("127.0.0.1", bench.port) for _ in range(5)]
        await until(lambda: len(site.crowd) == 5)
        assert await raw(bench.port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        for _, writer in idle:
            writer.close()
        await until(lambda: not len(site.crowd))
        monkeypatch.setattr(web, "LIFE", 0.5)
        idle = [await asyncio.open_connection("127.0.0.1", bench.port) for _ in range(5)]
        idle[0][1].write(b"GET /healthz HT")
        for reader, writer in idle:
            with contextlib.suppress(ConnectionError):
                assert b"200" not in await asyncio.wait_for(reader.read(), 60.0)
            writer.close()
        await until(lambda: not len(site.crowd))
        monkeypatch.setattr(web, "LIFE", 600.0)
        assert (await bench.ask("GET", "/healthz")).status == 200
        await until(lambda: not len(site.crowd))


async def test_one_request_a_connection(tmp_path: Path) -> None:
    async with public(tmp_path) as bench:
        said = await raw(bench.port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        assert said.count(b"HTTP/1.1 200") == 1


async def test_who_asks_too_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by the address that the proxy tells; what came to nothing good costs more."""
    monkeypatch.setattr(http, "REFUSED", (0.001, 3.0))
    monkeypatch.setattr(http, "ASKED", (0.001, 10.0))
    async with public(tmp_path, http='{address: "127.0.0.1:0", proxy: [127.0.0.1/32, 10.0.0.0/8]}') as bench:
        bad = [await bench.post("postmark", EVENT, X_Forwarded_For="198.51.100.7") for _ in range(4)]
        assert [answer.status for answer in bad] == [401, 401, 401, 429]
        assert int(bad[3].headers["Retry-After"]) > 0
        good = {"Authorization": LOGIN}
        assert (await bench.post("postmark", EVENT, X_Forwarded_For="198.51.100.7", **good)).status == 429
        assert (await bench.post("postmark", EVENT, X_Forwarded_For="198.51.100.8", **good)).status == 200
        # What a client writes into the header itself stands before what the proxies add.
        forged = "198.51.100.8, 198.51.100.7, 10.0.0.3"
        assert (await bench.post("postmark", EVENT, X_Forwarded_For=forged, **good)).status == 429
        assert [(await bench.ask("GET", "/healthz", X_Forwarded_For="198.51.100.9")).status for _ in range(11)] == [
            200
        ] * 10 + [429]


async def test_clients_of_a_provider(tmp_path: Path) -> None:
    async with public(tmp_path, http='{address: "127.0.0.1:0", proxy: [127.0.0.1/32]}') as bench:
        assert (await bench.post("pm-near", EVENT, Authorization=LOGIN, X_Forwarded_For="192.0.2.9")).status == 200
        for told in ("198.51.100.7", "192.0.2.9, 198.51.100.7", "nonsense", ""):
            assert (await bench.post("pm-near", EVENT, Authorization=LOGIN, X_Forwarded_For=told)).status == 401
    async with public(tmp_path) as bench:  # no proxy that we know: nobody's word counts
        assert (await bench.post("pm-near", EVENT, Authorization=LOGIN, X_Forwarded_For="192.0.2.9")).status == 401


def test_buckets_are_bounded() -> None:
    buckets = Buckets(1.0, 2.0, most=100)
    assert [buckets.take("a", 0.0) for _ in range(3)] == [True, True, False]
    assert buckets.take("a", 1.0) and not buckets.take("a", 1.0)
    for number in range(1000):
        buckets.take(str(number), 2.0)
    assert len(buckets._left) == 100


async def test_what_could_not_be_kept_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with public(tmp_path) as bench:

        async def full(learnt: object) -> None:
            raise SpoolError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(bench.spool, "learn", full)
            answer = await bench.post("postmark", EVENT, Authorization=LOGIN)
            assert answer.status == 503 and int(answer.headers["Retry-After"]) > 0 and answer.body == b""
        assert (await bench.post("postmark", EVENT, Authorization=LOGIN)).status == 200
        assert len(await bench.events("bounced")) == 1
        (tmp_path / "password").unlink()
        bench.rig.app.feedback.public._keys.clear()
        assert (await bench.post("postmark", EVENT, Authorization=LOGIN)).status == 503
        assert "password" in bench.rig.said("feedback_unavailable")[-1]["why"]


async def test_neither_log_nor_metrics_hold_what_strangers_write(tmp_path: Path) -> None:
    async with public(tmp_path) as bench:
        for _ in range(5):
            await bench.post("postmark", EVENT, Authorization=webhooks.login("relay", "hunter2hunter2"))
            await bench.ask("POST", "/feedback/made-up-name")
            await bench.ask("GET", "/unsubscribe/" + "a" * 40)
        (line,) = bench.rig.said("feedback_refused")
        assert line["provider"] == "postmark" and "hunter2" not in str(bench.rig.events)
        told = metrics.exposition().decode()
        lines = [line for line in told.splitlines() if line.startswith("relay_feedback_http_total")]
        assert any('kind="postmark",result="unverified"' in line for line in lines)
        assert not any("made-up" in line or "aaaa" in line for line in lines)


async def test_tls_and_a_renewed_certificate(tmp_path: Path) -> None:
    own = Authority(tmp_path)
    tls = f'{{address: "127.0.0.1:0", tls: {{certificate: {own.certificate}, key: {{file: {own.key}}}}}}}'
    async with public(tmp_path, http=tls) as bench:
        context = ssl.create_default_context()
        own.ca.configure_trust(context)

        async def serial(name: str | None) -> str:
            trust = ssl.create_default_context()
            own.ca.configure_trust(trust)
            trust.check_hostname = name is not None
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", bench.port, ssl=trust, server_hostname=name or ""
            )
            found = writer.get_extra_info("peercert")["serialNumber"]
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
            return str(found)

        first = await serial("relay.test")
        assert await serial(None) == first
        own.issue(days=60)
        await bench.rig.app.feedback.public.follow()
        assert await serial("relay.test") != first and await serial(None) != first
        assert await raw(bench.port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") != b"HTTP/1.1 200"
        async with aiohttp.ClientSession() as session:
            url = f"https://127.0.0.1:{bench.port}/healthz"
            async with session.get(url, ssl=context) as response:
                assert response.status == 200


async def test_a_reload_opens_and_closes(tmp_path: Path) -> None:
    port = free_port()
    file = configured(tmp_path)
    async with running(file) as rig:
        bench = Bench(rig)
        before = bench.port
        file.write_text(file.read_text().replace('"127.0.0.1:0"}\n  providers', f'"127.0.0.1:{port}"}}\n  providers'))
        assert rig.app.reload()[0]
        await until(lambda: bench.port == port)
        bench.base = f"http://127.0.0.1:{port}"
        assert (await bench.ask("GET", "/healthz")).status == 200
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", before)
        text = file.read_text()
        begins = text.index("feedback:")
        file.write_text(text[:begins] + text[text.index("suppression:") :])
        assert rig.app.reload()[0]
        await until(lambda: bench.port == 0)


async def test_an_address_that_is_taken_ends_a_start(tmp_path: Path) -> None:
    port = free_port()
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", port)
    try:
        with pytest.raises(Exception, match=r"feedback\.http"):
            async with public(tmp_path, http=f'{{address: "127.0.0.1:{port}"}}'):
                raise AssertionError("it started")
    finally:
        server.close()
