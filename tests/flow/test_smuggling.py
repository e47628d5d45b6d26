"""Nothing that a message holds becomes a command, here or at the next hop; nothing that somebody says becomes another line
of a log, of a header or of a reply."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
from pathlib import Path

import pytest
from certificates import Authority, authority
from fakes import Upstream
from front import Client, front, stuffed
from rig import process, running, write_config

from relay.settings import Address, Listen

__all__ = ["authority"]

HERE = Address("127.0.0.1", 0)
INNER = b"MAIL FROM:<smug@x.example>\r\nRCPT TO:<v@x.example>\r\nDATA\r\nSubject: smuggled\r\n\r\nx"
BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
# The same as for the reader alone (tests/pure/test_listener_data.py); here with what surrounds it.
SEQUENCES = [
    b"\n.\n", b"\n.\r", b"\r.\n", b"\r.\r", b"\n.\r\n", b"\r.\r\n", b"\r\n.\n", b"\r\n.\r", b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n", b"\r\n\x00.\r\n", b"\r\n.\x00\r\n", b"\n\n.\r\n", b"\r\n .\r\n", b"\r\n.\t\r\n", "\r\n．\r\n".encode(),
]  # fmt: skip


@pytest.mark.parametrize("way", ["plain", "tls", "one byte a segment"])
async def test_in(tmp_path: Path, authority: Authority, way: str) -> None:
    listen = Listen("local", HERE, tls=authority.tls("implicit") if way == "tls" else None)
    async with front(tmp_path, listen) as relay:
        stored = 0
        for sequence in SEQUENCES:
            async with relay.session(tls=authority.client() if way == "tls" else None) as client:
                for line in ("MAIL FROM:<a@b.example>", "RCPT TO:<x@y.example>"):
                    assert (await client.say(line))[0] == 250
                assert (await client.say("DATA"))[0] == 354
                wire = b"Subject: a\r\n\r\nfirst" + sequence + INNER + b"\r\n.\r\n"
                if way == "one byte a segment":
                    client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    for i in range(len(wire)):
                        await client.raw(wire[i : i + 1])
                        await asyncio.sleep(0)
                else:
                    await client.raw(wire)
                code = (await client.reply())[0]
                assert code == 250, sequence
                stored += code == 250
                await client.raw(b"VRFY x\r\n")
                assert (await client.reply())[0] == 252  # the next reply is to the next command
        rows = await relay.rows()
        assert len(rows) == stored == 16
        for row in rows:
            kept = await relay.kept(row["message"])
            assert not BARE.search(kept) and b"smug@x.example" in kept
            assert row["sender"] == "a@b.example"


async def test_out(tmp_path: Path) -> None:
    async with Upstream() as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none"})
        async with running(file) as rig:
            client = Client(*await asyncio.open_connection("127.0.0.1", rig.port))
            await client.reply()
            await client.say("EHLO x")
            bodies = [s for s in SEQUENCES if b"\0" not in s] + [b"\r\n.\r\n", b"\r\r\n.\r\r\n", b"\r\n..\r\n"]
            large = [b"\n.\r\n" * 80_000, b"x" * 65534 + b"\r\n.\r\n" + b"y" * 300_000]  # from a file, in slices
            for body in bodies + large:
                code, text = await client.mail(b"Subject: a\r\n\r\nfirst" + body + INNER + b"\r\n")
                assert code == 250, text
            await client.close()
            await rig.settled()
        assert len(up.done) == len(up.transactions) == len(bodies + large)
        for transaction in up.transactions:
            assert transaction.sender == "app@example.com"
            assert not BARE.search(transaction.wire)
            assert b"\r\n.\r\n" not in b"\r\n" + transaction.wire  # the final dot is the only one
            assert all(line.startswith(b"..") for line in transaction.wire.split(b"\r\n") if line.startswith(b"."))
        assert up.commands("MAIL") == [c for c in up.commands("MAIL") if "smug" not in c]


# -- lines of others: replies, logs, headers, what the CLI shows

ESC, BELL, CSI = "\x1b[31m", "\x07", "\x9b31m"
HOSTILE = f"{ESC}red{BELL}{CSI}\r\x00\x0b\x85\u2028 level=error event=forged"
COMMANDS = [
    f"MAIL FROM:<a{ESC}@b.example>", "MAIL FROM:<a\x85b@c.example> SMTPUTF8", "MAIL FROM:<a\u2028b@c.example> SMTPUTF8",
    'MAIL FROM:<"a\rb"@c.example>', f"MAIL FROM:<a@b.example> SIZE=1{BELL}", f"MAIL FROM:<a@b.example> X{CSI}=1",
    "MAIL FROM:<a@b.example> \u2028\x85=1", "MAIL FROM:<a@b\u2028c.example> SMTPUTF8", f"{ESC}", "\x85\u2028",
    "AUTH PLAIN " + base64.b64encode(b"\0shop\r\nMAIL FROM:<x>\0right\r\n").decode(),
    "AUTH PLAIN " + base64.b64encode(b"shop\r\n250 x\0shop\0right").decode(),
    "AUTH PLAIN " + base64.b64encode(b"\0\x1b[31m\0\x1b[31m").decode(), f"AUTH {CSI}", "AUTH \u2028",
]  # fmt: skip
HEADS = [
    f"X-Relay-Tag: {ESC}", "X-Relay-Tag: a\x85b", "X-Relay-Tag: a\r\n b\x07", f"X-Relay-Idempotency-Key: {BELL}",
    f"X-Relay-Class: {ESC}", f"X-Relay-Priority: {ESC}", f"X-Relay-Send-At: {ESC}", f"X-Relay-Route: {ESC}",
    f"X-Relay-{'y' * 100}: {HOSTILE}", f"From: {ESC} <a@b.example>", f"From: a{ESC}@b.example", "From: a\x85@b.example",
    'From: "a\u2028b"@c.example', f"Subject: {ESC}{CSI}", f"Message-ID: <{ESC}>", "Received: \x1b[31m",
]  # fmt: skip
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


@pytest.mark.parametrize("format_", ["logfmt", "json"])
async def test_no_line_of_ours_is_written_by_others(tmp_path: Path, format_: str) -> None:
    script = {
        "BANNER": f"220 fake {ESC}{BELL}".encode() + b"\r\n",
        "RCPT": lambda r: (
            f"550 5.1.1 <{r}> {ESC}red{BELL}{CSI}\x0b\x00 event=forged" if r.startswith("no") else "250 ok"
        ),
        "DOT": [f"250 2.0.0 Ok: queued as {ESC}4X{CSI}", f"451-4.3.0 a\r\n451 4.3.0 b{ESC}\u2028", b"250 ok\r\n"],
    }
    async with Upstream(script) as up:
        listen = f"log: {{format: {format_}}}\nusers: {{shop: {{password: {{file: {tmp_path}/pw}}}}}}"
        (tmp_path / "pw").write_text("right")
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none"}, extra=listen)
        file.write_text(file.read_text().replace('"127.0.0.1:0"}', '"127.0.0.1:0", auth: optional}'))
        with process(file) as relay:
            said = await hostile(relay.port)
            for line in said:
                assert re.fullmatch(rb"\d{3}[ -][ -~]*\r\n", line), line
            await asyncio.to_thread(relay.wait_for, lambda: len(up.done) >= 2)
            await asyncio.to_thread(relay.wait_for, lambda: "[31mred" in relay.log)
            state = "queue", "list", "--state", "failed"
            await asyncio.to_thread(relay.wait_for, lambda: relay.json(*state))  # written behind the line of the log
            (failed,) = await asyncio.to_thread(relay.json, *state)
            shown = [
                await asyncio.to_thread(relay.cli, *arguments)
                for arguments in (
                    ("queue", "list"), ("queue", "show", failed["queue_id"]), ("queue", "list", "--json"), ("status",),
                    ("queue", "show", failed["queue_id"], "--json"), ("queue", "stats"),
                )
            ]  # fmt: skip
            assert "red" in shown[1]
            for text in (*shown, relay.log):
                assert not UNPRINTABLE.search(text), UNPRINTABLE.search(text)
            begins = '{"time": "' if format_ == "json" else "time="
            lines = [line for line in relay.log.splitlines() if line]
            assert all(line.startswith(begins) for line in lines)
            assert not any(re.search(r'(?:^|" )event=forged', line) for line in lines)
        for transaction in up.done:
            received = transaction.message.split(b"\r\nDate:")[0].split(b"\r\n")
            assert re.fullmatch(rb"Received: from [\w.:?\[\]-]+ \(\[127\.0\.0\.1\]\)", received[0])
            assert re.fullmatch(rb"\tby relay\.test with E?SMTPA? id \w{11};", received[1])


async def hostile(port: int) -> list[bytes]:
    """Says all of it; every line that was answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    def envelope(recipient: str) -> bytes:
        return f"RSET\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n".encode()

    writer.write(b"EHLO x\tby evil (a\xe2\x80\xa8b)\xc2\x85 with <ESMTP>; x\r\n")
    writer.writelines(command.encode() + b"\r\n" for command in COMMANDS)
    for head in HEADS:
        writer.write(envelope("yes@y.example") + stuffed(head.encode() + b"\r\n\r\nx\r\n"))
    writer.write(envelope("no@y.example") + stuffed(b"\r\nx\r\n") + b"QUIT\r\n")
    said = await reader.read()
    writer.close()
    await writer.wait_closed()
    return said.splitlines(keepends=True)
