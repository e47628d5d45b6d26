"""Clients that mean no good: other protocols, crowds, dribble, a line without end. A healthy one hardly feels them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from certificates import Authority, authority
from conftest import until
from front import Client, Front, front, stuffed
from rig import Process, process

from relay.listener import wire
from relay.listener.guard import room_for_clients
from relay.secrets import Reference
from relay.settings import Address, Listen, User

__all__ = ["authority"]

HERE = Address("127.0.0.1", 0)
MESSAGE = b"Subject: hi\r\n\r\nend\r\n"
ENVELOPE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<x@y.example>\r\n"
COMMANDS = b"\r\nEHLO x\r\n" + ENVELOPE + b"DATA\r\n" + stuffed(MESSAGE)


# -- other protocols


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\nHost: x",
        b"POST / HTTP/1.1\r\n",
        b"post /x",
        b"CONNECT relay:25 HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM",
        b"POST /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n",
        b"POST /\xff\xfe HTTP/1.1\r\nHost: x\r\n",
        b"POST /\x01 HTTP/1.1\r\nHost: x\r\n",
        b"GET\r\n",
        b"GET\n",
    ],
)
@pytest.mark.parametrize("tls", [False, True])
async def test_http_is_turned_away_and_its_body_is_no_mail(
    tmp_path: Path, authority: Authority, first: bytes, tls: bool
) -> None:
    listen = Listen("local", HERE, tls=authority.tls("implicit") if tls else None)
    async with front(tmp_path, listen) as relay:
        async with relay.session(greet=False, tls=authority.client() if tls else None) as client:
            await client.reply()
            await client.raw(first + COMMANDS * 2)
            assert (await client.reply())[0] == 421
            assert await client.reply() == (0, "")
        assert await relay.rows() == []
        assert len(relay.told("http_refused")) == 1
        await until(relay.nothing_left)


async def test_http_split_anywhere_is_http(tmp_path: Path) -> None:
    async with front(tmp_path) as relay:
        said = b"POST /" + b"a" * 4100 + b" HTTP/1.1" + COMMANDS
        for cut in (1, 3, 5, 4095, 4096, 4097, 4105, 4118):
            async with relay.session(greet=False) as client:
                await client.reply()
                await client.raw(said[:cut])
                await asyncio.sleep(0.01)
                await client.raw(said[cut:])
                assert (await client.reply())[0] == 421
        assert await relay.rows() == []


async def test_a_line_that_is_too_long_ends_a_login(tmp_path: Path) -> None:
    """Its rest is no response, and neither is the next command."""
    users = {"shop": User("shop", Reference("plain", "right"))}
    for bad in (b"x" * 5000 + b"\r\n", b"\xff\r\n", b"a\x00b\r\n"):
        async with (
            front(tmp_path, Listen("local", HERE, auth="optional"), users=users) as relay,
            relay.session() as client,
        ):
            assert (await client.say("AUTH LOGIN"))[0] == 334
            await client.raw(bad)
            assert (await client.reply())[0] == 500
            assert (await client.mail(MESSAGE))[0] == 250


# -- crowds


def test_the_room_that_descriptors_leave() -> None:
    for descriptors in (64, 256, 1024, 65536):
        for doors in (1, 8):
            room, backlog = room_for_clients(descriptors, 20, doors)
            assert descriptors / 2 <= room < descriptors and 4 <= backlog <= 512
    assert room_for_clients(1024, 20, 1) == (1024 - 84 - 256, 256)
    assert room_for_clients(20000, 20, 2) == (20000 - 84 - 1024, 512)


async def test_beyond_the_room_of_all_doors_421(tmp_path: Path) -> None:
    listens = [Listen("a", HERE), Listen("b", HERE)]
    async with front(tmp_path, *listens) as relay:
        relay.guard.room = 4
        clients = [await relay.client(door) for door in (0, 1, 0, 1)]
        for door in (0, 1):
            async with relay.session(door, greet=False) as client:
                assert await client.reply() == (421, "4.7.0 too many connections, try again later")
        assert (await clients[0].mail(MESSAGE))[0] == 250
        await clients.pop().close()
        await until(lambda: relay.guard.inside == 3)
        async with relay.session() as client:
            assert (await client.mail(MESSAGE))[0] == 250
        for client in clients:
            await client.close()
        await until(relay.nothing_left)


async def test_one_address_does_not_take_the_place_of_others(tmp_path: Path) -> None:
    async with front(tmp_path, Listen("local", HERE, max_connections_client=3)) as relay:
        mine = [await relay.client(source="127.0.0.2") for _ in range(3)]
        async with relay.session(source="127.0.0.2", greet=False) as client:
            assert (await client.reply())[0] == 421
        async with relay.session(source="127.0.0.3") as client:
            assert (await client.mail(MESSAGE))[0] == 250
        for client in mine:
            await client.close()


async def test_commands_that_bring_nothing(tmp_path: Path) -> None:
    async with front(tmp_path) as relay:
        for line in (b"NOOP\r\n", b"RSET\r\n", b"VRFY x\r\n", b"EHLO x\r\n", b"HELP\r\n"):
            async with relay.session() as client:
                await client.raw(line * 150)
                codes = []
                while (code := (await client.reply())[0]) and code != 421:
                    codes.append(code)
                assert code == 421 and len(codes) < 100
        async with relay.session() as client:  # mail makes room for more
            for _ in range(3):
                await client.raw(b"NOOP\r\n" * 80)
                assert [(await client.reply())[0] for _ in range(80)] == [250] * 80
                assert (await client.mail(MESSAGE))[0] == 250


# -- time


async def swept(relay: Front, client: Client, say: bytes = b"", deadline: float = 30.0) -> tuple[int, str]:
    """The last thing that the client hears, while it dribbles and the door sweeps."""
    last, end = (0, ""), time.monotonic() + deadline
    task = asyncio.create_task(client.reply())
    while time.monotonic() < end:
        relay.door.sweep()
        done, _ = await asyncio.wait({task}, timeout=0.02)
        if not done and not client.writer.transport.is_closing():
            client.writer.write(say)
        elif done:
            if not (answer := task.result())[0]:
                return last
            last, task = answer, asyncio.create_task(client.reply())
    raise AssertionError(f"not cut within {deadline} s; it last heard {last}")


async def test_half_a_command_keeps_nobody_awake(tmp_path: Path) -> None:
    async with front(tmp_path, Listen("local", HERE, idle_timeout=0.3)) as relay, relay.session() as client:
        assert await swept(relay, client, b"N") == (421, "4.4.2 idle for too long, closing connection")
        await until(relay.nothing_left)


async def test_a_transaction_has_an_end(tmp_path: Path) -> None:
    listen = Listen("local", HERE, transaction_timeout=0.3)
    async with front(tmp_path, listen) as relay:
        async with relay.session() as client:
            await client.raw(ENVELOPE)
            last = await swept(relay, client, b"RCPT TO:<x@y.example>\r\n")
            assert last == (421, "4.4.2 the transaction takes too long, closing connection")
        async with relay.session() as client:
            await client.raw(ENVELOPE + b"DATA\r\n")
            assert (await swept(relay, client, b"x" * 900 + b"\r\n"))[0] == 421
        await until(relay.nothing_left)


async def test_a_message_that_dribbles_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "SLOW_GRACE", 0.2)
    async with front(tmp_path, Listen("local", HERE, min_rate=1000)) as relay:
        async with relay.session() as client:
            await client.raw(ENVELOPE + b"DATA\r\n")
            last = await swept(relay, client, b"x")
            assert last == (421, "4.4.2 the message comes with less than 1000 bytes a second, closing connection")
            assert relay.intake.budget.used == 0
        async with relay.session() as client:  # one that is just fast enough ends well
            await client.raw(ENVELOPE + b"DATA\r\nSubject: x\r\n\r\n")
            await client.raw((b"x" * 98 + b"\r\n") * 100)  # ten seconds ahead: this machine may stop for a while
            end = time.monotonic() + 0.6
            while time.monotonic() < end:
                await client.raw(b"x" * 98 + b"\r\n")
                await asyncio.sleep(0.02)
                relay.door.sweep()
            await client.raw(b".\r\n")
            assert [(await client.reply())[0] for _ in range(4)] == [250, 250, 354, 250]


async def test_our_own_time_is_not_held_against_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk takes longer than every deadline."""
    monkeypatch.setattr(wire, "SLOW_GRACE", 0.1)
    listen = Listen("local", HERE, idle_timeout=0.4, transaction_timeout=0.4, min_rate=100_000)
    async with front(tmp_path, listen) as relay, relay.session() as client:
        disk, free = relay.spool.content._threads, threading.Event()
        for _ in range(disk._max_workers):  # a disk that does nothing for a while
            disk.submit(free.wait, 20)
        await client.raw(ENVELOPE + b"DATA\r\nSubject: x\r\n\r\n" + b"x" * 998 + b"\r\n")
        await client.raw((b"y" * 98 + b"\r\n") * 4000)
        session = next(iter(relay.door.sessions))
        await until(lambda: session._task is not None)
        end = time.monotonic() + 0.8
        while time.monotonic() < end:
            relay.door.sweep()
            await asyncio.sleep(0.02)
        free.set()
        await client.raw(b".\r\n")
        assert [(await client.reply())[0] for _ in range(4)] == [250, 250, 354, 250]


# -- in the real process: 200 that dribble, and a line without end


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Process]:
    idle = getattr(request, "param", "3s")
    file = tmp_path / "relay.yaml"
    file.write_text(
        f"hostname: relay.test\nlisten: [{{name: local, address: '127.0.0.1:0', idle_timeout: {idle}}}]\n"
        f"admin: {{socket: {tmp_path}/admin.sock, address: null}}\n"
        f"spool: {{path: {tmp_path}/spool/spool.db, reserve: 1MB, max_message_size: 1MB}}\n"
        "routes: [{name: all, hold: true}]\n"
    )
    with process(file) as made:
        yield made
        made.signal()
        assert made.wait() == 0
        assert "Traceback" not in made.log and "session_error" not in made.log


def p95(port: int, count: int) -> float:
    """Seconds of a whole session with one message."""
    times = []
    for _ in range(count):
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            sock.sendall(b"EHLO x\r\n" + ENVELOPE + b"DATA\r\n" + stuffed(MESSAGE) + b"QUIT\r\n")
            assert sock.makefile("rb").read().count(b"queued as") == 1
        times.append(time.monotonic() - began)
    return sorted(times)[int(count * 0.95)]


@pytest.mark.parametrize("served", ["10s"], indirect=True)
def test_two_hundred_that_dribble(served: Process) -> None:
    p95(served.port, 20)
    alone = p95(served.port, 150)
    together = []
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(socket.create_connection(("127.0.0.1", served.port), 10)) for _ in range(200)]
        for i, sock in enumerate(crowd):
            sock.setblocking(False)
            sock.sendall(b"EHLO x\r\n" if i % 2 else b"EH")
        began = time.monotonic()
        while not together or time.monotonic() - began < 2.0:
            for sock in crowd:
                sock.send(b"N")
            together.append(p95(served.port, 20))
        end = time.monotonic() + 60
        left = set(crowd)
        while left:
            assert time.monotonic() < end, f"{len(left)} are still inside"
            left = {sock for sock in left if still_inside(sock)}
            time.sleep(0.05)
    # Others use this machine too, and never evenly: the best that it was among them, and the worse of before and after.
    alone, among = max(alone, p95(served.port, 150)), min(together)
    if os.environ.get("STORM_SHOW"):
        print(f"\nslow-loris: p95 {1000 * alone:.1f} ms alone, {1000 * among:.1f} ms among 200")
    assert among < max(2 * alone, alone + 0.01), (alone, together)


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def still_inside(sock: socket.socket) -> bool:
    try:
        sock.send(b"N")
        return bool(sock.recv(4096))
    except BlockingIOError:
        return True
    except OSError:
        return False


def test_reset_at_once_is_no_client_of_this_machine(served: Process) -> None:
    """What it said lies there to be read; whose it was can't be asked any more."""
    for _ in range(50):
        sock = socket.create_connection(("127.0.0.1", served.port), 5)
        sock.sendall(b"EHLO x\r\n" + ENVELOPE + b"DATA\r\n" + stuffed(MESSAGE))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    p95(served.port, 1)
    eventually(lambda: "client=127.0.0.1" in served.log)
    accepted = [line for line in served.log.splitlines() if "event=accepted" in line]
    assert all("client=127.0.0.1" in line for line in accepted)


def rss(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.storm
@pytest.mark.parametrize("served", ["10m"], indirect=True)
def test_ten_lines_without_end(served: Process) -> None:
    """Half are commands, half are messages. `make storm`: 1 GB each."""
    megabytes = int(os.environ.get("STORM_LINE_MB", "20"))
    clients = [socket.create_connection(("127.0.0.1", served.port), 30) for _ in range(10)]
    for sock in clients[5:]:
        sock.sendall(b"EHLO x\r\n" + ENVELOPE + b"DATA\r\nSubject: ")
    p95(served.port, 20)
    before, most, piece = rss(served.popen.pid), 0, b"x" * (1 << 20)
    for _ in range(megabytes):
        for sock in clients:
            sock.sendall(piece)
        most = max(most, rss(served.popen.pid))
    if os.environ.get("STORM_SHOW"):
        print(f"\n10 clients, a line of {megabytes} MiB each: RSS {before >> 20} -> {most >> 20} MiB")
    for i, sock in enumerate(clients):
        sock.sendall(b"\r\n" if i < 5 else b"\r\n.\r\n")
        said = b""
        while b"\n5" not in said:
            said += sock.recv(4096)
        assert (b"500 5.5.2" if i < 5 else b"552 5.3.4") in said
        sock.close()
    assert most - before <= 64 << 20, (before >> 20, most >> 20)
