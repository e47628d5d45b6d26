"""What a client may use: bytes, recipients, connections, time; and what is left behind by one that goes away: nothing."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import free_port, until
from front import Client, Front, front, stuffed

from relay.settings import Address, Listen
from relay.spool import INLINE_LIMIT

HERE = Address("127.0.0.1", 0)
MESSAGE = b"Subject: hi\r\n\r\nend\r\n"
ENVELOPE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<x@y.example>\r\n"


async def test_size_is_refused_at_mail_and_after_the_dot(tmp_path: Path) -> None:
    async with front(tmp_path, max_message_size=1000) as relay, relay.session() as client:
        assert (await client.say("MAIL FROM:<a@b.example> SIZE=1001"))[0] == 552
        assert (await client.mail(b"Subject: x\r\n\r\n" + b"x" * 984 + b"\r\n"))[0] == 250  # 1000 as they are counted
        code, text = await client.mail(b"Subject: x\r\n\r\n" + b"x" * 985 + b"\r\n")
        assert (code, text) == (552, "5.3.4 message is larger than 1000 bytes")
        assert (await client.mail(b"Subject: x\r\n\r\n" + b"x" * 5_000_000))[0] == 552
        assert relay.intake.budget.used == 0
        assert len(await relay.rows()) == 1


async def test_too_many_recipients_are_told_to_come_again(tmp_path: Path) -> None:
    async with front(tmp_path, Listen("local", HERE, max_recipients=3)) as relay, relay.session() as client:
        await client.say("MAIL FROM:<a@b.example>")
        answers = [await client.say(f"RCPT TO:<r{i}@y.example>") for i in range(5)]
        assert [code for code, _ in answers] == [250, 250, 250, 452, 452]
        assert answers[3][1].startswith("4.5.3 ")
        assert (await client.say("DATA"))[0] == 354
        await client.raw(stuffed(MESSAGE))
        assert (await client.reply())[0] == 250
        assert len(await relay.rows()) == 3


async def test_connections_are_counted_and_given_back(tmp_path: Path) -> None:
    listen = Listen("local", HERE, max_connections_total=3, max_connections_client=2)
    async with front(tmp_path, listen) as relay:
        one, two = await relay.client(), await relay.client()
        async with relay.session(greet=False) as third:
            assert await third.reply() == (421, "4.7.0 too many connections from you, try again later")
            assert await third.reply() == (0, "")
        await one.close()
        await until(lambda: len(relay.door.sessions) == 1)
        three = await relay.client()
        await two.close()
        await three.close()
        await until(relay.nothing_left)


async def test_connections_of_everybody_are_counted(tmp_path: Path) -> None:
    listen = Listen("local", HERE, max_connections_total=1)
    async with front(tmp_path, listen) as relay, relay.session(), relay.session(greet=False) as second:
        assert await second.reply() == (421, "4.7.0 too many connections, try again later")


@pytest.mark.parametrize(
    "said", [b"", b"EHLO x\r\n", b"EHLO x\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<a@b.c>\r\nDATA\r\nhalf"]
)
async def test_who_is_silent_for_too_long_is_cut(tmp_path: Path, said: bytes) -> None:
    async with front(tmp_path, Listen("local", HERE, idle_timeout=0.2)) as relay:
        async with relay.session(greet=False) as client:
            await client.raw(said)
            codes = []
            while (answer := await _sweeping(relay, client))[0]:
                codes.append(answer)
            assert codes[-1] == (421, "4.4.2 idle for too long, closing connection")
        await until(relay.nothing_left)
        assert await relay.rows() == []


async def _sweeping(relay: Front, client: Client) -> tuple[int, str]:
    reading = asyncio.ensure_future(client.reply())
    while not reading.done():
        relay.door.sweep()
        await asyncio.wait([reading], timeout=0.02)
    return await reading


async def test_a_client_that_never_reads_is_bounded_and_cut(tmp_path: Path) -> None:
    """It asks for 30 MB of replies and reads none."""
    async with front(tmp_path, Listen("local", HERE, idle_timeout=0.3, max_recipients=1 << 30)) as relay:
        address = ("127.0.0.1", relay.door.port)
        with socket.socket() as mute:
            mute.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            mute.connect(address)
            mute.setblocking(False)
            await until(lambda: relay.door.sessions)
            (session,) = relay.door.sessions
            mute.send(b"EHLO x\r\nMAIL FROM:<a@b.example>\r\n")
            for _ in range(200):
                try:
                    mute.send(b"RCPT TO:<a@b.example>\r\n" * 10_000)
                except BlockingIOError:
                    pass
                await asyncio.sleep(0.001)
                assert session.transport is not None
                assert session.transport.get_write_buffer_size() < 256 * 1024
                assert len(session._buffer) < 1 << 20
            while relay.door.sessions:
                relay.door.sweep()
                await asyncio.sleep(0.01)
        await relay.send(MESSAGE)


async def test_a_slow_reader_gets_every_reply(tmp_path: Path) -> None:
    listen = Listen("local", HERE, max_recipients=1 << 30)
    async with front(tmp_path, listen) as relay, relay.session() as client:
        count = 40_000
        await client.say("MAIL FROM:<a@b.example>")
        sending = asyncio.create_task(client.raw(b"RCPT TO:<a@b.example>\r\n" * count))
        codes = [(await client.reply())[0] for _ in range(count)]
        await sending
        assert codes == [250] * count
        await client.say("RSET")
        assert (await client.mail(MESSAGE))[0] == 250


async def test_bytes_that_are_arriving_are_capped_over_all_sessions(tmp_path: Path) -> None:
    async with front(tmp_path) as relay:
        relay.intake.budget.limit = 300_000
        clients = [await relay.client() for _ in range(4)]
        for client in clients:
            await client.raw(ENVELOPE + b"DATA\r\nSubject: x\r\n\r\n" + b"x" * 100_000)
            assert [(await client.reply())[0] for _ in range(3)] == [250, 250, 354]
        await until(lambda: relay.intake.budget.used > 199_000)
        await asyncio.gather(*(c.raw(b"\r\n.\r\n") for c in clients))
        answers = [await c.reply() for c in clients]
        assert sorted(code for code, _ in answers) in ([250, 250, 452, 452], [250, 250, 250, 452])
        assert next(text for code, text in answers if code == 452).startswith("4.3.1 ")
        for client in clients:
            assert (await client.mail(MESSAGE))[0] == 250
            await client.close()
        await until(relay.nothing_left)


@pytest.mark.parametrize("size", [0, 100, INLINE_LIMIT + 100, 3_000_000])
async def test_a_client_that_hangs_up_inside_its_message_leaves_nothing(tmp_path: Path, size: int) -> None:
    async with front(tmp_path) as relay:
        for abort in (False, True):
            client = await relay.client()
            await client.raw(ENVELOPE + b"DATA\r\nSubject: x\r\n\r\n" + b"line\r\n" * (size // 6))
            await client.reply()
            if abort:
                client.writer.transport.abort()
            else:
                await client.close()
            await until(relay.nothing_left)
        assert await relay.rows() == []


@pytest.mark.parametrize("size", [100, 1_000_000])
async def test_a_client_that_hangs_up_after_the_dot_has_sent_its_message(tmp_path: Path, size: int) -> None:
    async with front(tmp_path) as relay:
        client = await relay.client()
        content = b"Subject: x\r\n\r\n" + b"line\r\n" * (size // 6)
        await client.raw(ENVELOPE + b"DATA\r\n" + stuffed(content))
        assert [(await client.reply())[0] for _ in range(3)] == [250, 250, 354]
        await client.close()
        await until(lambda: relay.told("accepted"))
        (row,) = await relay.rows()
        assert (await relay.kept(row["message"])).endswith(content)
        await until(lambda: relay.intake.budget.used == 0 and not relay.door.sessions)


async def test_a_disk_that_refuses_a_large_body_is_452_and_leaves_nothing(tmp_path: Path) -> None:
    async with front(tmp_path) as relay, relay.session() as client:
        folder = relay.spool.content.folder
        folder.rmdir()
        code, text = await client.mail(b"Subject: x\r\n\r\n" + b"x" * 1_000_000)
        assert (code, text[:5]) == (452, "4.3.1")
        assert str(folder) not in text
        folder.mkdir()
        assert (await client.mail(b"Subject: x\r\n\r\n" + b"x" * 1_000_000))[0] == 250
        assert relay.intake.budget.used == 0


async def test_when_the_spool_takes_nothing_mail_is_452_and_so_is_the_dot(tmp_path: Path) -> None:
    async with front(tmp_path) as relay, relay.session() as client:
        await client.raw(ENVELOPE + b"DATA\r\n")
        assert [(await client.reply())[0] for _ in range(3)] == [250, 250, 354]
        relay.spool.refusal = "the disk is full"
        await client.raw(stuffed(MESSAGE))
        code, text = await client.reply()
        assert (code, text[:5]) == (452, "4.3.1")
        code, text = await client.say("MAIL FROM:<a@b.example>")
        assert (code, text[:5]) == (452, "4.3.1")
        relay.spool.refusal = ""
        assert (await client.mail(MESSAGE))[0] == 250


async def test_stopping_lets_the_message_under_way_in_and_nobody_else(tmp_path: Path) -> None:
    async with front(tmp_path) as relay:
        idle, busy = await relay.client(), await relay.client()
        await busy.raw(ENVELOPE + b"DATA\r\nSubject: x\r\n")
        assert [(await busy.reply())[0] for _ in range(3)] == [250, 250, 354]
        relay.door.stop()
        assert await idle.reply() == (421, "4.3.2 shutting down")
        draining = asyncio.create_task(relay.door.drain(10))
        await busy.raw(b"\r\nend\r\n.\r\n")
        assert (await busy.reply())[0] == 250
        assert (await busy.reply())[0] == 421
        await draining
        assert len(await relay.rows()) == 1
        await idle.close()
        await busy.close()


# -- memory, in a process of its own


@pytest.fixture
def served(tmp_path: Path) -> object:
    port = free_port()
    file = tmp_path / "relay.yaml"
    file.write_text(
        f"listen: [{{name: local, address: '127.0.0.1:{port}'}}]\n"
        f"admin: {{socket: {tmp_path}/admin.sock, address: null}}\n"
        f"spool: {{path: {tmp_path}/spool/spool.db, reserve: 1MB, max_message_size: 1MB}}\n"
        "routes: [{name: all, hold: true}]\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "relay", "serve", "--config", str(file)],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 60
        while b"event=ready" not in (process.stderr.readline() if process.stderr else b""):
            assert time.monotonic() < end and process.poll() is None
        yield port, process.pid
    finally:
        process.terminate()
        errors = process.communicate(timeout=120)[1]
    assert b"Traceback" not in errors
    assert process.returncode == 0


def rss(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("piece", "megabytes", "ends"),
    [
        (b"line of text\r\n" * 5000, 150, True),
        (b"x" * 65536, 150, True),
        (b"x" * 65536, 60, False),
        (b"\r.\r\n" * 9999, 60, True),
    ],
    ids=["150 MB", "one line of 150 MB", "a command without end", "dots"],
)
def test_memory_is_bounded_whatever_arrives(served: tuple[int, int], piece: bytes, megabytes: int, ends: bool) -> None:
    port, pid = served
    with socket.create_connection(("127.0.0.1", port), 20) as client:
        answers = client.makefile("rb")
        if ends:
            client.sendall(b"EHLO x\r\n" + ENVELOPE + b"DATA\r\n")
            while not (line := answers.readline()).startswith(b"354"):
                assert line, "the connection is closed"
        before, most = rss(pid), 0
        for _ in range(megabytes * 1_000_000 // len(piece)):
            client.sendall(piece)
            most = max(most, rss(pid))
        client.sendall(b"\r\n.\r\n" if ends else b"\r\n")
        while (line := answers.readline()) and not line.startswith((b"552", b"500")):
            pass
        assert line.startswith(b"552 5.3.4" if ends else b"500 5.5.2")
    assert most - before < 64_000_000


def test_a_client_that_closes_its_side_gets_its_replies_from_the_real_process(served: tuple[int, int]) -> None:
    """Once more under the event loop that is used outside tests."""
    with socket.create_connection(("127.0.0.1", served[0]), 20) as client:
        client.sendall(b"EHLO x\r\n" + (ENVELOPE + b"DATA\r\n" + stuffed(b"x" * 600_000)) * 3)
        client.shutdown(socket.SHUT_WR)
        said = client.makefile("rb").read().decode()
    assert said.count("250 2.0.0 Ok: queued as ") == 3
