"""The PROXY header before mail, TLS and logins: who the client is, whatever the segments; and who may not say it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, authority
from conftest import until
from front import front

from relay.listener import reception
from relay.listener.proxy import SIGNATURE
from relay.secrets import Reference
from relay.settings import Address, Listen, User

__all__ = ["authority"]
BOTH_LOOPS = True

HERE = Address("127.0.0.1", 0)
MESSAGE = b"Subject: hi\r\n\r\nend\r\n"
NETWORKS = ("192.0.2.0/24", "2001:db8::/32")


def listen(**more: Any) -> Listen:
    more.setdefault("clients", NETWORKS)
    return Listen("proxied", HERE, proxy=("127.0.0.1/32",), **more)


def v1(address: str) -> bytes:
    other = "::1" if ":" in address else "127.0.0.1"
    return f"PROXY TCP{6 if ':' in address else 4} {address} {other} 5000 25\r\n".encode()


def v2(body: bytes, family: int = 0x11, command: int = 0x21) -> bytes:
    return SIGNATURE + bytes([command, family]) + len(body).to_bytes(2) + body


IPV4 = bytes([192, 0, 2, 1, 127, 0, 0, 1, 0x13, 0x88, 0, 25])
IPV6 = bytes.fromhex("20010db8000000000000000000000001") + bytes(15) + b"\x01" + b"\0\1\0\2"
GOOD = {
    "v1": (v1("192.0.2.1"), "192.0.2.1"),
    "v1 IPv6": (v1("2001:db8::1"), "2001:db8::1"),
    "v2": (v2(IPV4), "192.0.2.1"),
    "v2 with TLVs": (v2(IPV4 + b"\x04\x00\x20" + bytes(32) + b"\x20\x00\x05abcde"), "192.0.2.1"),
    "v2 with 4 KB of TLVs": (v2(IPV4 + b"\x04\x0f\xe0" + bytes(4064)), "192.0.2.1"),
    "v2 IPv6": (v2(IPV6, 0x21), "2001:db8::1"),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("split", [False, True])
async def test_the_client_is_who_the_header_says(tmp_path: Path, name: str, split: bool) -> None:
    header, address = GOOD[name]
    async with front(tmp_path, listen()) as relay, relay.session(greet=False) as client:
        for piece in [header[i : i + 1] for i in range(len(header))] if split else [header + b"EHLO x\r\n"]:
            await client.raw(piece)
            await asyncio.sleep(0)
        assert (await client.reply())[0] == 220
        assert (await (client.say("EHLO x") if split else client.reply()))[0] == 250
        assert (await client.mail(MESSAGE))[0] == 250
        (row,) = await relay.rows()
        assert row["client"] == address
        assert address.encode() in (await relay.kept(row["message"])).splitlines()[0]


@pytest.mark.parametrize(
    "header", [b"PROXY UNKNOWN\r\n", v2(b"", 0, 0x20), v2(IPV4, 0x11, 0x20), v2(bytes(216), 0x31), v2(IPV4, 0x12)]
)
async def test_the_balancer_for_itself_may_send_what_its_own_address_may(tmp_path: Path, header: bytes) -> None:
    async with front(tmp_path, listen(), listen(clients=("127.0.0.1",))) as relay:
        for door, code in ((0, 550), (1, 250)):
            async with relay.session(door, first=header) as client:
                assert (await client.mail(MESSAGE))[0] == code


@pytest.mark.parametrize(
    "said",
    [
        b"EHLO x\r\nMAIL FROM:<a@b.example>\r\n",
        b"PROXY TCP4 192.0.2.1\r\nEHLO x\r\n",
        b"PROXY TCP4 2001:db8::1 ::1 5000 25\r\n",
        b"PROXY TCP6 192.0.2.1 127.0.0.1 5000 25\r\n",
        b"PROXY TCP4 " + b"1" * 200 + b"\r\n",
        b"PROXY TCP4 192.0.2.1 127.0.0.1 5000 25\n" + b"\r\n" * 50,
        SIGNATURE + b"\x21\x11\xff\xff" + bytes(200),
        SIGNATURE + b"\x21\x11\x00\x04" + bytes(4),
        SIGNATURE + b"\x31\x11\x00\x0c" + IPV4,
        SIGNATURE + b"\x2f\x11\x00\x0c" + IPV4,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
    ],
)
async def test_a_bad_header_ends_the_connection(tmp_path: Path, said: bytes) -> None:
    async with front(tmp_path, listen()) as relay, relay.session(greet=False) as client:
        await client.raw(said)
        assert await client.reply() == (0, "")
        (told,) = relay.told("proxy_refused")
        assert told["why"].isprintable()
        assert relay.guard.inside == 0


async def test_a_header_that_does_not_come_or_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with front(tmp_path, listen()) as relay:
        with monkeypatch.context() as short:
            short.setattr(reception, "HEADER_TIMEOUT", 0.2)
            async with relay.session(greet=False) as client:
                await client.raw(b"PROXY TCP4 192")
                assert await client.reply() == (0, "")
        async with relay.session(greet=False) as client:
            await client.raw(v2(IPV4)[:-1])
            client.writer.write_eof()
            assert await client.reply() == (0, "")
        assert [t["why"] for t in relay.told("proxy_refused")] == [
            "no PROXY header came in time",
            "connection ended within the header",
        ]
        async with relay.session(first=v1("192.0.2.1")) as client:
            assert (await client.mail(MESSAGE))[0] == 250


async def test_from_elsewhere_it_is_not_believed(tmp_path: Path) -> None:
    async with front(tmp_path, listen()) as relay, relay.session(source="127.0.0.2", greet=False) as client:
        await client.raw(v1("192.0.2.1"))
        assert await client.reply() == (0, "")
        assert relay.told("proxy_refused")[0]["client"] == "127.0.0.2"


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
async def test_tls_and_login_behind_it(tmp_path: Path, authority: Authority, mode: Any) -> None:
    users = {"shop": User("shop", Reference("plain", "right"))}
    made = listen(tls=authority.tls(mode), auth="required", clients=())
    async with front(tmp_path, made, users=users) as relay:
        tls = authority.client()
        header = v2(IPV4 + b"\x20\x00\x05abcde")
        async with relay.session(first=header, tls=tls if mode == "implicit" else None) as client:
            if mode == "starttls":
                assert (await client.log_in("shop", "right"))[0] == 538
                assert (await client.start_tls(tls))[0] == 250
            assert (await client.log_in("shop", "right"))[0] == 235
            assert (await client.mail(MESSAGE))[0] == 250
        (row,) = await relay.rows()
        assert row["client"] == "192.0.2.1"
        await until(relay.nothing_left)


async def test_connections_are_counted_by_the_real_client(tmp_path: Path) -> None:
    async with front(tmp_path, listen(max_connections_client=2)) as relay:
        clients = [await relay.client(first=v1(f"192.0.2.{n}")) for n in (1, 1, 2, 2)]
        clients += [await relay.client(first=v1(f"2001:db8:0:{n}::{n}")) for n in (1, 1)]
        for address in ("192.0.2.1", "2001:db8:0:1:ffff::9", "192.0.2.2"):
            async with relay.session(first=v1(address), greet=False) as client:
                assert (await client.reply())[0] == 421
        clients.append(await relay.client(first=v1("2001:db8:0:2::1")))  # another /64
        for client in clients:
            await client.close()
        await until(relay.nothing_left)


async def test_those_who_have_not_said_who_they_are_take_no_more_than_the_room(tmp_path: Path) -> None:
    async with front(tmp_path, listen(max_connections_total=50)) as relay:
        relay.guard.room = 5
        waiting = [await relay.client(greet=False) for _ in range(5)]
        async with relay.session(greet=False) as client:
            assert await client.reply() == (0, "")
        for client in waiting:
            await client.raw(v1("192.0.2.1"))
            assert (await client.reply())[0] == 220
            await client.close()
        await until(relay.nothing_left)
        async with relay.session(first=v1("192.0.2.1")) as client:
            assert (await client.mail(MESSAGE))[0] == 250


async def test_stopping_while_headers_are_awaited(tmp_path: Path) -> None:
    async with front(tmp_path, listen()) as relay:
        waiting = [await relay.client(greet=False) for _ in range(3)]
        await waiting[0].raw(b"PROXY ")
        relay.door.stop()
        for client in waiting:
            assert await client.reply() == (0, "")
            await client.close()
