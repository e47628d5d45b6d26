"""Questions to the DNS: what is there, what surely is not, and what nobody can tell. Against Knot, and against servers that fail."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port, until
from nameserver import Knot, Scripted, knot, strings

import relay.resolver as module
from relay.resolver import MAX_ALIASES, DnsTrouble, Resolver, server, servers

BOTH_LOOPS = True
LONG = "v=DKIM1; k=rsa; p=" + "A" * 3000

Ask = Callable[[Resolver, str], Awaitable[list[bytes] | None]]


@pytest.fixture(scope="module", name="zone")
def _zone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Knot]:
    with knot(tmp_path_factory.mktemp("knot") / "knot") as made:
        made.serve(
            example_com=[
                'plain TXT "one"',
                'split._domainkey TXT "v=DKIM1; " "p=" "abc"',
                'two TXT "one"\ntwo TXT "another"',
                f"long TXT {strings(LONG)}",
                "alias CNAME split._domainkey",
                "there CNAME s1._domainkey.example.net.",
                "nowhere CNAME missing",
                'bytes TXT "\\255\\000"',
            ],
            example_net=['s1._domainkey TXT "theirs"'],
        )
        yield made


@pytest.fixture(name="ask", params=["awaited", "now"])
def _ask(request: pytest.FixtureRequest) -> Ask:
    """Both twins."""
    if request.param == "awaited":
        return lambda resolver, name: resolver.txt(name)
    return lambda resolver, name: asyncio.to_thread(resolver.txt_now, name)


@pytest.fixture(autouse=True)
async def _nothing_is_left() -> AsyncIterator[None]:
    before = sockets()
    yield
    await until(lambda: sockets() <= before)


def sockets() -> set[str]:
    """Those that are open for the internet."""
    families = ["tcp", "tcp6", "udp", "udp6"]
    lines = [li.split() for name in families for li in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]]
    inodes = {f"socket:[{line[9]}]" for line in lines}
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return found & inodes


async def trouble(ask: Ask, resolver: Resolver, name: str = "x.example.com") -> str:
    with pytest.raises(DnsTrouble) as found:
        await ask(resolver, name)
    return str(found.value)


async def test_what_a_real_server_holds(zone: Knot, ask: Ask) -> None:
    resolver = Resolver((zone.server,))
    table = {
        "plain.example.com": [b"one"],
        "Plain.Example.COM.": [b"one"],
        "split._domainkey.example.com": [b"v=DKIM1; p=abc"],
        "long.example.com": [LONG.encode()],  # cut off over UDP
        "alias.example.com": [b"v=DKIM1; p=abc"],
        "there.example.com": [b"theirs"],
        "bytes.example.com": [b"\xff\0"],
        "nowhere.example.com": None,
        "missing.example.com": None,
        "ns.example.com": None,  # it has an address only
    }
    assert {name: await ask(resolver, name) for name in table} == table
    assert sorted(await ask(resolver, "two.example.com") or []) == [b"another", b"one"]
    assert "REFUSED" in await trouble(ask, resolver, "elsewhere.test")


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".com", ".".join(["abcdefgh"] * 40), "a\\.b\\", "é" * 70])
async def test_there_can_be_no_such_name(ask: Ask, name: str) -> None:
    assert await ask(Resolver((f"127.0.0.1:{free_port()}",), 0.1), name) is None


async def test_trouble_is_no_absence(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "ONE_TRY", 0.2)
    with Scripted(lambda name, tcp: "SERVFAIL") as up:
        assert (
            "x.example.com: 127.0.0.1 port" in (said := await trouble(ask, Resolver((up.server,))))
            and "SERVFAIL" in said
        )
    silent = True
    with Scripted(lambda name, tcp: None if silent else ["here"]) as up:
        patient = asyncio.ensure_future(ask(Resolver((up.server,), 60.0), "y.example.com"))
        begun = time.monotonic()
        assert "no answer" in await trouble(ask, Resolver((up.server,), 0.5))
        assert time.monotonic() - begun > 0.2 and not patient.done(), "each waits for its own time"
        await until(lambda: up.asked.count(("y.example.com", False)) >= 2)
        silent = False
        assert await patient == [b"here"], "it is asked again"
    with Scripted(lambda name, tcp: "NS ns.example.net.") as up:
        assert "recursive" in await trouble(ask, Resolver((up.server,)))
    with Scripted(lambda name, tcp: "TC") as up:
        assert await trouble(ask, Resolver((up.server,), 30.0))
        assert {tcp for _, tcp in up.asked} == {False, True}
    assert "no answer" in await trouble(ask, Resolver((f"127.0.0.1:{free_port()}",), 0.3))


async def test_the_next_server_is_asked(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "ONE_TRY", 0.5)
    with Scripted(lambda name, tcp: "REFUSED") as bad, Scripted(lambda name, tcp: ["here"]) as good:
        assert await ask(Resolver((bad.server, good.server)), "x.example.com") == [b"here"]
    with Scripted(lambda name, tcp: None) as silent, Scripted(lambda name, tcp: "NXDOMAIN") as good:
        assert await ask(Resolver((silent.server, good.server), 30.0), "x.example.com") is None


async def test_over_ipv6(ask: Ask) -> None:
    with Scripted(lambda name, tcp: ["here"] if tcp else "TC", "::1") as up:
        assert await ask(Resolver((up.server,)), "x.example.com") == [b"here"]


async def test_aliases_that_the_server_does_not_follow(ask: Ask) -> None:
    table = {
        "a.example.com": "CNAME b.example.com.",
        "b.example.com": ["here"],
        "c.example.com": "CNAME d.example.com.",
    }
    with Scripted(lambda name, tcp: table.get(name, "NXDOMAIN")) as up:
        assert await ask(Resolver((up.server,)), "a.example.com") == [b"here"]
        assert await ask(Resolver((up.server,)), "c.example.com") is None
    with Scripted(lambda name, tcp: "CNAME b.example.com." if name[0] == "a" else "CNAME a.example.com.") as up:
        assert "aliases" in await trouble(ask, Resolver((up.server,)), "a.example.com")
        assert len(up.asked) == MAX_ALIASES


async def test_the_system_s_servers_as_they_are_now(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 30.0)  # else a machine that stands still is told, and no server
    # The port is always 53 there, which a test may not have: what counts is that the file is read, and again.
    file = tmp_path / "resolv.conf"
    resolver = Resolver((), 0.5, file)
    assert f"{file} names no server" in await trouble(ask, resolver)
    file.write_text("search example.com\nnameserver 127.0.0.99\n")
    assert "127.0.0.99: " in await trouble(ask, resolver)
    file.write_text("nameserver 127.0.0.98\n\n")
    assert "127.0.0.98: " in await trouble(ask, resolver)
    file.write_text("nameserver nonsense\n")
    assert str(file) in await trouble(ask, resolver)


async def test_only_the_answer_to_the_question_counts(ask: Ask) -> None:
    def mangle(wire: bytes) -> list[bytes]:
        other_id = bytes([wire[0] ^ 1]) + wire[1:]
        other_name = wire.replace(b"\x01x", b"\x01y")
        return [b"", b"\xff" * 20, other_id.replace(b"right", b"wrong"), other_name.replace(b"right", b"wrong"), wire]

    with Scripted(lambda name, tcp: ["right"], mangle=mangle) as up:
        assert await ask(Resolver((up.server,)), "x.example.com") == [b"right"]


async def test_whatever_a_server_sends_is_an_answer_or_trouble(ask: Ask) -> None:
    lots = random.Random(5)
    found = set[str]()

    def mangle(wire: bytes) -> list[bytes]:
        raw = bytearray(wire)
        if raw[2] & 2:  # TC: as it is, so that the next one comes over TCP, where nothing may be overheard
            return [wire]
        for _ in range(lots.randint(0, 2)):
            at = lots.randrange(2, len(raw) + 1)
            raw[at : at + lots.choice([0, 1, 1, 1, 99])] = lots.randbytes(lots.choice([0, 1, 1, 1, 9]))
        return [bytes(raw)]

    answers: list[Any] = [
        ["one"],
        ["one", "two"],
        "CNAME a.example.com.",
        "NXDOMAIN",
        "SERVFAIL",
        "NS ns.example.com.",
        [],
    ]
    with Scripted(lambda name, tcp: lots.choice(answers) if tcp else "TC", mangle=mangle) as up:
        for _ in range(200):
            try:
                texts = await ask(Resolver((up.server,), 0.5), "x.example.com")
                assert texts is None or all(isinstance(text, bytes) for text in texts)
                found.add("answer" if texts else "absent")
            except DnsTrouble:
                found.add("trouble")
    assert found == {"answer", "absent", "trouble"}


async def test_a_question_may_be_given_up() -> None:
    with Scripted(lambda name, tcp: None) as up:
        task = asyncio.create_task(Resolver((up.server,), 30).txt("x.example.com"))
        await until(lambda: up.asked)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_many_at_once_are_bounded_and_all_answered(zone: Knot) -> None:
    resolver, most = Resolver((zone.server,), 20.0), 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, len(sockets()))
            await asyncio.sleep(0.001)

    before, watching = len(sockets()), asyncio.create_task(watch())
    found = await asyncio.gather(*(resolver.txt("plain.example.com") for _ in range(300)))
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    assert found == [[b"one"]] * 300 and most - before <= 70


def test_servers_are_read() -> None:
    table = {
        "127.0.0.1": ("127.0.0.1", 53),
        "127.0.0.1:5353": ("127.0.0.1", 5353),
        "::1": ("::1", 53),
        "[::1]": ("::1", 53),
        "[::1]:5353": ("::1", 5353),
    }
    assert {text: server(text) for text in table} == table
    for text in (
        "",
        "dns.example",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:70000",
        "[127.0.0.1]:53",
        "[::1",
        "[::1]x",
        "1.2.3",
    ):
        with pytest.raises(ValueError, match="expected a DNS server"):
            server(text)


def test_who_does_not_ask_does_not_pay() -> None:
    code = "import sys, relay.resolver; sys.exit('dns' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
