"""The API's TCP address: before those who say nothing, too much, or by a browser; and by TLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from bearers import ask, base, token
from certificates import Authority
from conftest import until
from rig import Rig, free_port, running, write_config

from relay.api.server import names_this_machine
from relay.api.site import Bounds
from relay.settings import Address

NEAR = Address("127.0.0.1", 0)


def api(folder: Path) -> Path:
    file = write_config(folder, {"main": f"port: {free_port()}, tls: none"})
    file.write_text(file.read_text().replace("address: null", f'address: "127.0.0.1:{free_port()}"'))
    return file


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(api(tmp_path)) as made:
        yield made


@contextlib.asynccontextmanager
async def line(port: int, text: bytes = b"") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(text)
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """All that comes, also before a reset."""
    said = b""
    async with asyncio.timeout(60):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                said += data
    return said


def site(rig: Rig) -> Any:
    return rig.app.admin._sites[-1]


async def test_half_open_connections_hold_up_nobody_and_go(rig: Rig) -> None:
    port = await rig.app.admin.open_tcp(NEAR, bounds=Bounds(connections=150, head=4.0))
    text = await token(rig, "read")
    async with contextlib.AsyncExitStack() as stack:
        starts = (b"", b"G", b"GET /v1/status HTTP/1.1\r\nX: y", b"POST /v1/tokens HTTP/1.1\r\nContent-Length: 10\r\n")
        lines = [await stack.enter_async_context(line(port, starts[n % 4])) for n in range(100)]
        assert (await ask(f"http://127.0.0.1:{port}/v1/status", text=text))[0] == 200
        for reader, _ in lines:
            assert await rest(reader) == b""
    await until(lambda: not len(site(rig).crowd))


async def test_a_drop_at_a_time_does_not_prolong_a_head(rig: Rig) -> None:
    port = await rig.app.admin.open_tcp(NEAR, bounds=Bounds(head=2.0))
    async with line(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") as (reader, writer):
        assert b"200" in await reader.readline()  # then it is idle, which it may be; but not forever at a second head
        gone = asyncio.ensure_future(rest(reader))
        writer.write(b"GET /healthz HTTP/1.1\r\nX: ")
        while not gone.done():
            writer.write(b"x")
            await asyncio.wait({gone}, timeout=0.05)
        assert b"HTTP/1.1" not in gone.result()


async def test_what_is_no_http_is_told_so_and_fills_no_log(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    assert rig.app.config.admin.address
    for text in (b"\x16\x03\x01\x02\x00", b"canary-word / HTTP/9\r\n\r\n", b"GET / HTTP/1.1\r\nA B: c\r\n\r\n"):
        async with line(rig.app.config.admin.address.port, text + b"\r\n\r\n") as (reader, _):
            said = await rest(reader)
            assert said.startswith(b"HTTP/1.1 400") or said.startswith(b"HTTP/1.0 400"), said
            assert b"application/problem+json" in said and b"canary" not in said
            head, _, body = said.partition(b"\r\n\r\n")
            assert f"X-Request-Id: {json.loads(body)['request_id']}".encode() in head and b"aiohttp" not in head
    assert not caplog.records


async def test_no_more_connections_than_there_is_room_for(rig: Rig) -> None:
    port = await rig.app.admin.open_tcp(NEAR, bounds=Bounds(connections=3))
    async with line(port), line(port), line(port):
        await until(lambda: len(site(rig).crowd) == 3)
        async with line(port, b"GET /healthz HTTP/1.1\r\n\r\n") as (reader, _):
            assert await rest(reader) == b""
    await until(lambda: not len(site(rig).crowd))
    assert (await ask(f"http://127.0.0.1:{port}/healthz"))[0] == 200


@pytest.mark.parametrize("expects", [False, True], ids=["sent", "expected"])
async def test_a_body_of_who_may_not_is_not_read(rig: Rig, expects: bool) -> None:
    """A gigabyte without a token: answered and closed, with no word to go on."""
    assert rig.app.config.admin.address
    for auth in (b"", b"Authorization: Bearer " + (await token(rig, "read")).encode() + b"\r\n"):
        head = b"POST /v1/tokens HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\nContent-Type: application/json\r\n"
        head += auth + (b"Expect: 100-continue\r\n" if expects else b"") + b"\r\n"
        async with line(rig.app.config.admin.address.port, head + (b"" if expects else b"x" * 100_000)) as (reader, _):
            said = await rest(reader)
            assert said.startswith(b"HTTP/1.1 403" if auth else b"HTTP/1.1 401"), said
            assert b"100 Continue" not in said


async def test_who_may_is_told_to_go_on(rig: Rig) -> None:
    assert rig.app.config.admin.address
    text = (await token(rig, "admin")).encode()
    body = b'{"name": "n", "scopes": ["read"]}'
    head = b"POST /v1/tokens HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    head += b"Authorization: Bearer %s\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n" % (text, len(body))
    async with line(rig.app.config.admin.address.port, head) as (reader, writer):
        assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
        writer.write(body)
        assert b"HTTP/1.1 201" in await rest(reader)


async def test_a_browser_can_do_nothing_here(rig: Rig) -> None:
    text = await token(rig, "admin")
    page = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    body = b'{"name": "n", "scopes": ["admin"]}'
    for form in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        status, headers, _ = await ask(base(rig) + "/v1/tokens", "POST", text, body, page | {"Content-Type": form})
        assert status == 415 and not [name for name in headers if name.lower().startswith("access-control")]
    packed = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    assert (await ask(base(rig) + "/v1/tokens", "POST", text, body, packed))[0] == 415
    asked = page | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    status, headers, _ = await ask(base(rig) + "/v1/tokens", "OPTIONS", headers=asked)
    assert status == 401 and "Access-Control-Allow-Origin" not in headers and "Set-Cookie" not in headers
    assert (await ask(base(rig) + "/v1/tokens", headers={"Cookie": f"token={text}"}))[0] == 401
    assert len(rig.app.tokens.page("", 10)) == 1


async def test_a_name_that_was_made_to_lead_here_sees_nothing(rig: Rig) -> None:
    text = await token(rig, "read")
    for path in ("/metrics", "/healthz", "/readyz", "/openapi.json"):
        assert (await ask(base(rig) + path))[0] == 200
        for host in ("evil.example", "evil.example:2580", "127.0.0.1.evil.example", "[::1].evil.example"):
            assert (await ask(base(rig) + path, headers={"Host": host}))[0] == 401, host
            assert (await ask(base(rig) + path, text=text, headers={"Host": host}))[0] == 200


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [("", True), ("localhost", True), ("LOCALHOST:2580", True), ("127.0.0.1:1", True), ("[::1]:2580", True),
     ("relay.test:2580", True), ("localhost.evil", False), ("evil", False), ("[::1].evil", False), ("::1", False)],
)  # fmt: skip
def test_names_of_this_machine(host: str, is_ours: bool) -> None:
    assert names_this_machine(host, "relay.test") is is_ours


async def test_a_wrong_path_or_method_says_where_to_look(rig: Rig) -> None:
    text = await token(rig, "read")
    status, _, told = await ask(f"{base(rig)}/v1/mesages", text=text)
    assert status == 404 and "/openapi.json" in told["detail"]
    status, fields, told = await ask(f"{base(rig)}/v1/explain", text=text)
    assert status == 405 and fields["Allow"] == "POST" and told["detail"] == "this path has no GET; it has POST"


async def test_the_description_is_enough_to_write_a_client(rig: Rig) -> None:
    _, _, told = await ask(f"{base(rig)}/openapi.json")
    used = {tag for path in told["paths"].values() for operation in path.values() for tag in operation["tags"]}
    assert {tag["name"] for tag in told["tags"]} == used
    schemas = told["components"]["schemas"]
    assert not [name for name in schemas if "__" in name], "two models have one name: clients are generated of these"
    for name in ("Submission", "Part", "Accepted", "MessageRow", "RecipientRow", "OneMessage", "TokenRow", "AuditRow"):
        fields = schemas[name]["properties"].items()
        assert [f for f, said in fields if "description" not in said and f not in ("id", "metadata")] == [], name
    assert told["paths"]["/v1/messages"]["post"]["responses"]["202"]["content"]["application/json"]["example"]
    assert "429" in told["paths"]["/v1/events/stream"]["get"]["responses"]


async def test_probes_show_health_alone(rig: Rig) -> None:
    port = await rig.app.admin.open_probes(NEAR)
    text = await token(rig, "admin")
    for path in ("/metrics", "/healthz", "/readyz"):
        assert (await ask(f"http://127.0.0.1:{port}{path}", headers={"Host": "relay-1.internal"}))[0] == 200
    for path in ("/openapi.json", "/v1/status", "/v1/tokens"):
        assert (await ask(f"http://127.0.0.1:{port}{path}", text=text))[0] == 404


async def test_beyond_loopback_by_tls_and_with_a_token(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    file = api(tmp_path)
    tls = f"tls: {{certificate: {authority.certificate}, key: {{file: {authority.key}}}}}"
    port = free_port()
    admin = f'admin: {{socket: {tmp_path}/admin.sock, {tls}, address: "0.0.0.0:{port}"}}'
    file.write_text(re.sub("^admin:.*$", admin, file.read_text(), flags=re.MULTILINE))
    async with running(file) as rig:
        url = f"https://127.0.0.1:{port}"
        whole, mine = await token(rig, "read"), await token(rig, "admin", tenant="gone")
        for path in ("/metrics", "/healthz", "/readyz", "/openapi.json", "/v1/status"):
            assert (await ask(url + path, ssl=authority.client()))[0] == 401
            assert (await ask(url + path, text=mine, ssl=authority.client()))[0] == 401
            assert (await ask(url + path, text=whole, ssl=authority.client()))[0] == 200
            submits = await token(rig, "submit")
            assert (await ask(url + path, text=submits, ssl=authority.client()))[0] == 403
        async with line(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") as (reader, _):
            assert b"200" not in await rest(reader)
        before = await shown(port, authority)
        authority.issue(60)
        await rig.app.admin.refresh()
        assert await shown(port, authority) != before


async def shown(port: int, authority: Authority) -> Any:
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=authority.client())
    try:
        return writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
    finally:
        writer.close()
        await writer.wait_closed()


def waiting(path: str, token: str) -> bytes:
    head = f"GET {path}?wait=50&after=end HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    return f"{head}Authorization: Bearer {token}\r\n\r\n".encode()


async def test_an_answer_lasts_no_longer_than_its_token(rig: Rig) -> None:
    assert rig.app.config.admin.address
    made = await token(rig, "read")
    waits = [o for o in rig.app.admin.operations if o.path == "/v1/events" and o.method == "GET"]
    for operation in waits:
        head = waiting(operation.path, made)
        async with line(rig.app.config.admin.address.port, head) as (reader, _):
            await until(lambda: rig.app.tokens._answered)
            await rig.app.tokens.revoke(made.split("_")[1], 1.0)
            said = await rest(reader)
            assert said.startswith(b"HTTP/1.1 401 ") and b"the token is revoked" in said
    assert not rig.app.tokens._answered


async def test_a_wait_ends_with_a_word_where_the_tenant_has_other_users(rig: Rig, tmp_path: Path) -> None:
    """Nothing is told that was asked for while the token saw something else; asked again it sees what it sees now."""
    assert rig.app.config.admin.address
    port = rig.app.config.admin.address.port
    file = tmp_path / "relay.yaml"
    anew = file.read_text() + "users: {u: {tenant: t}}\n"
    file.write_text(file.read_text() + "tenants: {t: {}}\n")
    assert rig.app.reload()[0]
    head = waiting("/v1/events", await token(rig, "read", tenant="t"))
    async with line(port, head) as (reader, _):
        await until(lambda: rig.app.tokens._answered)
        file.write_text(anew + "tenants: {t: {}}\n")
        assert rig.app.reload()[0]
        said = await rest(reader)
    assert said.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 1" in said and b"ask again" in said
