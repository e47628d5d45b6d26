"""A webhook's URL leads to no address that its configuration does not allow: every form is tried at a real listener.

The listener takes whatever comes to any address of this machine and counts it. With `allow_private` the same forms do reach
it, so that a count of nothing means something.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from nameserver import Says, Told

from relay import guard
from relay.https import Unanswered, Unreachable
from relay.policy.networks import is_local, may_dial
from relay.resolver import Found, Resolver


@dataclass
class Target:
    """Counts connections, and answers as it is told."""

    port: int = 0
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    answer: bytes = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            self.requests.append(await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30))
            writer.write(self.answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            self.requests.append(b"")
        finally:
            writer.close()


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    made = Target()
    both = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    server = await asyncio.start_server(made.serve, sock=both)
    made.port = both.getsockname()[1]
    yield made
    server.close()
    await server.wait_closed()


class Names(AbstractResolver):
    """Asks a name server anew at each question, and hands on whatever it says."""

    def __init__(self, make: Callable[[], Resolver]) -> None:
        self.make, self.asked = make, 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        self.asked += 1
        said = await self.make().look(host, "A")
        assert isinstance(said, Found)
        return [
            {"hostname": host, "host": a, "port": port, "family": socket.AF_INET, "proto": 6, "flags": 0}
            for a in said.records
        ]

    async def close(self) -> None:
        """There is nothing to close."""


HERE = [  # forms of this machine
    *(
        "127.0.0.1",
        "127.0.0.2",
        "127.255.255.254",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
    ),
    *("017700000001", "0", "0.0.0.0", "00.0.0.0", "[::1]", "[0:0:0:0:0:0:0:1]", "[::]", "[::ffff:127.0.0.1]"),
    *("[::ffff:7f00:1]", "[::127.0.0.1]", "[::7f00:1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]"),
    *("[2001:0:7f00:1::]", "[fe80::1%25lo]", "[fe80::1%lo]", "[::1%25lo]", "localhost", "localhost.", "LOCALHOST"),
    *(
        "LocalHost.LocalDomain",
        "ip6-localhost",
        "127。0。0。1",
        "127.0.0.１",
        "①②⑦.⓪.⓪.①",
        "ｌocalhost",
        "127%2e0%2e0%2e1",
    ),
    *(
        "public@127.0.0.1",
        "example.com:443@127.0.0.1",
        "127.0.0.1.",
        "127.0.0.1\\@example.com",
        "127.0.0.1%00.example.com",
    ),
]
THERE = [  # of other networks that are not the public one
    *("169.254.169.254", "[::ffff:a9fe:a9fe]", "[::ffff:169.254.169.254]", "0xa9fea9fe", "2852039166", "10.0.0.1"),
    *("172.16.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1", "100.100.100.200", "192.0.0.192", "198.18.0.1"),
    *("192.0.2.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "[fd00::1]", "[fd00:ec2::254]"),
    *("[fc00::1]", "[fec0::1]", "[fe80::1]", "[ff02::1]", "[2001:db8::1]", "[100::1]", "[2002:a9fe:a9fe::]"),
]


async def ask(url: str, seconds: float = 30.0, **given: object) -> str:
    """Why not; or the status."""
    try:
        said = await guard.post(url, b"[]", {"Content-Type": "application/json"}, seconds=seconds, **given)  # type: ignore[arg-type]
    except Unanswered as error:
        return str(error)
    return str(said.status)


@pytest.mark.parametrize("host", HERE + THERE)
async def test_no_form_of_an_address_is_connected_to(target: Target, host: str) -> None:
    for url in (f"https://{host}:{target.port}/x", f"http://{host}:{target.port}/x", f"//{host}:{target.port}/"):
        with pytest.raises(Unreachable):
            await guard.post(url, b"[]", {}, seconds=60.0)
    assert target.connections == 0


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "127.0.0.2", "localhost", "LOCALHOST", "127。0。0。1", "127.0.0.１"]
)
async def test_the_same_forms_are_reached_where_private_ones_are_allowed(target: Target, host: str) -> None:
    assert await ask(f"http://{host}:{target.port}/x", allow_private=True) == "204"
    assert target.connections == 1


NEVER = [
    "0.0.0.0",
    "[::]",
    "169.254.169.254",
    "[::ffff:a9fe:a9fe]",
    "[fe80::1%25lo]",
    "[fd00:ec2::254]",
    "100.100.100.200",
]


@pytest.mark.parametrize(
    "host", [*NEVER, "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "224.0.0.1", "240.0.0.1", "255.255.255.255"]
)
async def test_some_are_never_allowed(target: Target, host: str) -> None:
    for scheme in ("http", "https"):
        with pytest.raises(Unreachable):
            await guard.post(f"{scheme}://{host}:{target.port}/", b"[]", {}, seconds=60.0, allow_private=True)
    assert target.connections == 0


ODD = [
    *("gopher://127.0.0.1:{port}/_x", "file:///etc/passwd", "ftp://127.0.0.1:{port}/", "unix:///run/x.sock", "data:,x"),
    *("http:///x", "https://", "https:127.0.0.1:{port}", "//127.0.0.1:{port}/", "127.0.0.1:{port}", "https://[::1"),
    *(
        "https://a b/",
        "https://example.com/\r\nHost: x",
        "https://exa\tmple.com/",
        "https://example.com\n/",
        "https://[v1.x]/",
    ),
    *(
        "https://127.0.0.1:{port}\\@example.com/",
        "https://example.com/ä",
        "https://example.com/#x",
        "https://u:p@example.com/",
    ),
    *("https://example.com:99999/", "https://example.com:x/", "https://ex\x00ample.com/", " https://example.com/"),
]


@pytest.mark.parametrize("url", ODD)
async def test_a_url_that_is_none_is_refused_before_anybody_is_asked(target: Target, url: str) -> None:
    url = url.format(port=target.port) if "{" in url else url
    for private in (False, True):
        with pytest.raises(ValueError):
            guard.check(url, allow_private=private)
        with pytest.raises(Unreachable):
            await guard.post(url, b"[]", {}, allow_private=private)
    assert target.connections == 0


def test_in_clear_goes_nothing_beyond_private_networks() -> None:
    with pytest.raises(ValueError, match="in clear"):
        guard.check("http://example.com/", allow_private=False)
    assert guard.check("http://crm.internal/x?y", allow_private=True) == "http://crm.internal/x?y"
    assert not may_dial("8.8.8.8", allow_private=True, clear=True)
    assert may_dial("8.8.8.8", allow_private=True) and may_dial("10.0.0.1", allow_private=True, clear=True)
    assert not may_dial("8.8.8.8%eth0", allow_private=True) and not may_dial("nobody", allow_private=True)
    assert is_local("::ffff:10.0.0.1") and not is_local("169.254.169.254") and not is_local("8.8.8.8")


@pytest.mark.parametrize(
    ("url", "private", "told"),
    [
        ("https://127.0.0.1/", False, "leads to 127.0.0.1, no address of the public network; `allow_private: true`"),
        ("https://[::ffff:10.0.0.1]/", False, "`allow_private: true` lets it"),
        ("https://169.254.169.254/", True, "no address of the public network$"),
        ("http://169.254.169.254/", True, "no address of a private network"),
        ("http://8.8.8.8/", True, "no address of a private network"),
    ],
)
def test_an_address_that_is_written_is_told_with_the_configuration(url: str, private: bool, told: str) -> None:
    """`relay check` says it, and not only the first event."""
    with pytest.raises(ValueError, match=told):
        guard.check(url, allow_private=private)


def test_names_are_written_in_ascii() -> None:
    assert (
        guard.check("https://Bücher.example:8443/a?b=%20", allow_private=False)
        == "https://xn--bcher-kva.example:8443/a?b=%20"
    )
    assert guard.check("https://[2606:4700::1111]", allow_private=False) == "https://[2606:4700::1111]/"


@pytest.mark.parametrize(
    "where", ["http://127.0.0.1:{port}/r", "https://127.0.0.1:{port}/r", "//127.0.0.1:{port}/", "/other"]
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(target: Target, where: str, status: int) -> None:
    where = where.format(port=target.port)
    target.answer = f"HTTP/1.1 {status} Go\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n".encode()
    assert await ask(f"http://127.0.0.1:{target.port}/x", allow_private=True) == str(status)
    assert target.connections == 1


async def test_names_that_lead_to_private_addresses(target: Target) -> None:
    with Told() as server:
        for name, address in (
            ("metadata.google.internal", "169.254.169.254"),
            ("lan.example", "192.168.1.1"),
            ("here.example", "127.0.0.1"),
        ):
            server.say(name, "A", address)
        server.told["alias.example", "A"] = Says(
            ["alias.example. 60 CNAME here.example.", "here.example. 60 A 127.0.0.1"]
        )
        names = Names(lambda: Resolver((server.server,), 20.0))
        for name in ("metadata.google.internal", "lan.example", "here.example", "alias.example"):
            why = await ask(f"https://{name}:{target.port}/", resolver=names)
            assert "it leads to" in why and "not" not in why.split("allow_private")[0].split("network")[1], why
        assert names.asked == 4
        assert await ask(f"http://alias.example:{target.port}/", resolver=names, allow_private=True) == "204"
    assert target.connections == 1
    assert b"\r\nHost: alias.example:" in target.requests[0]  # the name is kept


async def test_what_a_name_server_says_the_second_time_is_what_counts(target: Target) -> None:
    """DNS rebinding: whoever asks first to check, and again to connect, is led astray."""
    said: list[str] = []

    class Turning(Told):
        def response(self, question, tcp):  # type: ignore[no-untyped-def]
            said.append("203.0.114.1" if not said else "127.0.0.1")
            self.say("rebind.example", "A", said[-1], ttl=0)
            return super().response(question, tcp)

    with Turning() as server:
        names = Names(lambda: Resolver((server.server,), 20.0))
        assert (await names.resolve("rebind.example"))[0]["host"] == "203.0.114.1"  # a check would have been content
        for _ in range(3):
            assert "it leads to 127.0.0.1" in await ask(f"https://rebind.example:{target.port}/", resolver=names)
        assert await ask(f"http://rebind.example:{target.port}/", resolver=names, allow_private=True) == "204"
    assert said[:2] == ["203.0.114.1", "127.0.0.1"]
    assert target.connections == 1


async def test_no_proxy_of_the_environment_is_used(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{target.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    await ask("https://192.0.2.1/", 2.0)
    await ask("http://10.255.255.1/", 2.0, allow_private=True, resolver=None)
    assert target.connections == 0


async def test_a_status_is_an_answer_however_long_its_body_is(target: Target) -> None:
    target.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 300_000
    said = await guard.post(f"http://127.0.0.1:{target.port}/", b"[]", {}, allow_private=True, seconds=30.0)
    assert said.status == 200 and len(said.body) == guard.MOST


async def test_headers_cannot_be_smuggled(target: Target) -> None:
    with pytest.raises(Unanswered):
        await guard.post(
            f"http://127.0.0.1:{target.port}/", b"[]", {"X-Y": "a\r\nX-Z: b"}, allow_private=True, seconds=2.0
        )
    assert target.requests in ([], [b""])
