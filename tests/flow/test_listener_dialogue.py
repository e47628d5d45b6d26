"""The dialogue: what EHLO offers, order, one clear reply for each bad input, pipelining, limits of a session."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from conftest import until
from front import front, stuffed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.listener.wire import MAX_ERRORS
from relay.settings import Address, Listen

MESSAGE = b"Subject: hi\r\n\r\n.dot\r\nend\r\n"
HERE = Address("127.0.0.1", 0)


async def test_what_ehlo_offers_and_helo_does_not(tmp_path: Path) -> None:
    async with front(tmp_path, max_message_size=1234567) as relay, relay.session(greet=False) as client:
        assert await client.reply() == (220, "relay.test ESMTP relay")
        code, text = await client.say("EHLO [127.0.0.1]")
        assert (code, text.split("\n")) == (
            250,
            ["relay.test", "PIPELINING", "SIZE 1234567", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN"],
        )
        assert await client.say("HELO x") == (250, "relay.test")


@pytest.mark.parametrize(
    ("before", "line", "expected"),
    [
        ("", "MAIL FROM:<a@b.example>", "503 5.5.1"),
        ("EHLO x", "RCPT TO:<a@b.example>", "503 5.5.1"),
        ("EHLO x", "DATA", "503 5.5.1"),
        ("EHLO x|MAIL FROM:<a@b.example>", "DATA", "554 5.5.1"),
        ("EHLO x|MAIL FROM:<a@b.example>", "MAIL FROM:<a@b.example>", "503 5.5.1"),
        ("EHLO x|MAIL FROM:<a@b.example>|RSET", "RCPT TO:<a@b.example>", "503 5.5.1"),
        ("EHLO x|MAIL FROM:<a@b.example>|EHLO x", "RCPT TO:<a@b.example>", "503 5.5.1"),
        ("EHLO x|MAIL FROM:<a@b.example>|RCPT TO:<a@b.example>", "DATA now", "501 5.5.4"),
        ("", "EHLO", "501 5.5.4"),
        ("", "HELO ", "501 5.5.4"),
        ("EHLO x", "", "500 5.5.1"),
        ("EHLO x", "BREW coffee", "500 5.5.1"),
        ("EHLO x", "STARTTLS", "502 5.5.1"),
        ("EHLO x", "AUTH PLAIN", "502 5.5.1"),
        ("EHLO x", "BDAT 10 LAST", "502 5.5.1"),
        ("EHLO x", "MAIL", "501 5.5.4"),
        ("EHLO x", "MAIL FROM:", "501 5.5.4"),
        ("EHLO x", "MAIL TO:<a@b.example>", "501 5.5.4"),
        ("EHLO x", "MAIL FROM:<a@b.example", "501 5.1.7"),
        ("EHLO x", "MAIL FROM:<a b@c.example>", "553 5.1.7"),
        ("EHLO x", "MAIL FROM:<nobody>", "553 5.1.7"),
        ("EHLO x", "MAIL FROM:<a@b.example>SIZE=1", "501 5.5.4"),
        ("EHLO x", "MAIL FROM:<a@b.example> SIZE=²", "501 5.5.4"),
        ("EHLO x", "MAIL FROM:<a@b.example> SIZE=99999999999", "552 5.3.4"),
        ("EHLO x", "MAIL FROM:<a@b.example> SIZE=1 size=2", "501 5.5.4"),
        ("EHLO x", "MAIL FROM:<a@b.example> BODY=BINARYMIME", "501 5.5.4"),
        ("HELO x", "MAIL FROM:<a@b.example> RET=FULL", "555 5.5.4"),
        ("EHLO x", "MAIL FROM:<a@b.example> RET=ALL", "501 5.5.4"),
        ("EHLO x", "MAIL FROM:<a@b.example> ENVID=a+b", "501 5.5.4"),
        ("EHLO x", "MAIL FROM:<ä@b.example>", "553 5.6.7"),
        ("EHLO x|MAIL FROM:<>", "RCPT TO:<ä@b.example>", "553 5.6.7"),
        ("EHLO x|MAIL FROM:<>", "RCPT TO:<>", "501 5.1.3"),
        ("EHLO x|MAIL FROM:<>", "RCPT TO:<Postmaster>", "550 5.1.1"),
        ("HELO x|MAIL FROM:<>", "RCPT TO:<a@b.example> NOTIFY=NEVER", "555 5.5.4"),
        ("EHLO x|MAIL FROM:<>", "RCPT TO:<a@b.example> NOTIFY=NEVER,DELAY", "501 5.5.4"),
        ("EHLO x|MAIL FROM:<>", "RCPT TO:<a@b.example> ORCPT=a@b.example", "501 5.5.4"),
        ("EHLO x|MAIL FROM:<>", "RCPT TO:<a@>", "553 5.1.3"),
    ],
)
async def test_bad_input_gets_one_clear_reply(tmp_path: Path, before: str, line: str, expected: str) -> None:
    async with front(tmp_path) as relay, relay.session(greet=False) as client:
        await client.reply()
        for earlier in filter(None, before.split("|")):
            assert (await client.say(earlier))[0] == 250
        code, text = await client.say(line)
        assert f"{code} {text}".startswith(expected + " ")
        assert (await client.say("NOOP"))[0] == 250  # one reply and no more


async def test_forgiven_writings(tmp_path: Path) -> None:
    async with front(tmp_path) as relay, relay.session() as client:
        for line in ("mail from: <a@b.example>  SIZE=10 BODY=8BITMIME", "MAIL FROM:a@b.example", "MAIL FROM:<>"):
            assert (await client.say(line))[0] == 250, line
            assert (await client.say("rcpt to:  <x@y.example>"))[0] == 250
            await client.say("rset")
        await client.raw(b"NOOP\nNOOP\n")  # bare LF ends a command for a client that was written so
        assert [await client.reply() for _ in range(2)] == [(250, "2.0.0 Ok")] * 2
        assert (await client.say("VRFY x"))[0] == 252
        assert (await client.say("HELP"))[0] == 214
        assert (await client.say("MAIL FROM:<ä@b.example> SMTPUTF8"))[0] == 250
        assert (await client.say('RCPT TO:<"a > b"@c.example>'))[0] == 250
        assert (await client.say("QUIT"))[0] == 221
        assert await client.reply() == (0, "")


@pytest.mark.parametrize("line", [b"NOOP \xff\r\n", b"NOOP \x00\r\n", b"NO\x1bOP\r\n", b"NOOP a\rMAIL\r\n"])
async def test_bytes_that_are_no_text(tmp_path: Path, line: bytes) -> None:
    async with front(tmp_path) as relay, relay.session() as client:
        await client.raw(line)
        code, text = await client.reply()
        assert (code, text[:5]) == (500, "5.5.2")


async def test_a_line_that_is_too_long_is_skipped_whole(tmp_path: Path) -> None:
    async with front(tmp_path) as relay, relay.session() as client:
        for piece in (b"NOOP " + b"x" * 5000, b"y" * 100_000, b"QUIT\r\n"):
            await client.raw(piece)
        assert await client.reply() == (500, "5.5.2 command line is too long")
        assert (await client.say("NOOP"))[0] == 250
        await client.raw(b"NOOP " + b"x" * 4092 + b"\r\n" + b"NOOP\r\n")
        assert [(await client.reply())[0] for _ in range(2)] == [500, 250]


async def test_too_many_errors_end_the_session(tmp_path: Path) -> None:
    async with front(tmp_path) as relay, relay.session() as client:
        await client.raw(b"WHAT\r\n" * (MAX_ERRORS + 50))
        codes = [(await client.reply())[0] for _ in range(MAX_ERRORS + 3)]
        assert codes == [500] * (MAX_ERRORS + 1) + [421, 0]
        await until(relay.nothing_left)


ENVELOPE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<x@y.example>\r\nDATA\r\n"
WHOLE = ENVELOPE + stuffed(MESSAGE) + b"NOOP\r\n" + ENVELOPE + stuffed(b"") + b"QUIT\r\n"


async def test_a_whole_session_in_one_segment(tmp_path: Path) -> None:
    async with front(tmp_path) as relay, relay.session() as client:
        await client.raw(WHOLE)
        codes = [(await client.reply())[0] for _ in range(11)]
        assert codes == [250, 250, 354, 250, 250, 250, 250, 354, 250, 221, 0]
        assert len(await relay.rows()) == 2


async def test_a_session_that_is_cut_at_every_byte(tmp_path: Path) -> None:
    async with front(tmp_path) as relay:
        for cut in range(1, len(WHOLE), 3):
            async with relay.session() as client:
                client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await client.raw(WHOLE[:cut])
                await asyncio.sleep(0)
                await client.raw(WHOLE[cut:])
                assert [(await client.reply())[0] for _ in range(10)][-1] == 221, cut
        for row in await relay.rows():
            kept = await relay.kept(row["message"])
            assert kept.endswith((b"\r\n\r\n", b"\r\n" + MESSAGE)), kept


async def test_byte_by_byte(tmp_path: Path) -> None:
    async with front(tmp_path) as relay, relay.session() as client:
        for i in range(len(WHOLE)):
            await client.raw(WHOLE[i : i + 1])
        assert [(await client.reply())[0] for _ in range(10)][-1] == 221
        assert len(await relay.rows()) == 2


async def test_a_client_that_says_all_and_closes_its_side_gets_its_replies(tmp_path: Path) -> None:
    """`printf … | nc -N localhost 2525`: RFC 793 lets the other direction go on."""
    async with front(tmp_path) as relay, relay.session() as client:
        client.writer.write(ENVELOPE + stuffed(MESSAGE) + ENVELOPE + stuffed(MESSAGE))
        client.writer.write_eof()
        assert [(await client.reply())[0] for _ in range(9)] == [250, 250, 354, 250] * 2 + [0]
        assert len(await relay.rows()) == 2
        await until(relay.nothing_left)


async def test_many_messages_of_one_connection(tmp_path: Path) -> None:
    async with front(tmp_path) as relay, relay.session() as client:
        for i in range(30):
            assert (await client.mail(b"Subject: %d\r\n\r\n" % i, sender="" if i % 2 else "a@b.example"))[0] == 250
        numbers = [r["message"] for r in await relay.rows()]
        assert len(set(numbers)) == 30


async def test_ipv6(tmp_path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no ::1")
    async with front(tmp_path, Listen("local", HERE), Listen("six", Address("::1", 0))) as relay:
        number = await relay.send(MESSAGE, door=1)
        assert b"([IPv6:::1])\r\n" in await relay.kept(number)
        (row,) = await relay.rows()
        assert (row["listener"], row["client"]) == ("six", "::1")


async def test_line_endings_reject(tmp_path: Path) -> None:
    strict = Listen("strict", HERE, line_endings="reject")
    async with front(tmp_path, strict) as relay, relay.session() as client:
        await client.raw(b"NOOP\n")
        assert await client.reply() == (500, "5.5.2 command does not end with CRLF")
        for content in (b"Subject: x\n\r\n", b"Subject: x\r\n\r\na\rb\r\n"):
            code, text = await client.mail(content)
            assert (code, text[:5]) == (554, "5.6.0")
        assert (await client.mail(MESSAGE))[0] == 250


def seeds(corpora: Path) -> list[bytes]:
    return [p.read_bytes() for p in sorted((corpora / "fuzz_seeds").rglob("*")) if p.is_file()]


async def _survives(folder: Path, sessions: list[bytes]) -> None:
    async with front(folder) as relay:
        for said in sessions:
            async with relay.session(greet=False) as client:
                client.writer.write(said)
                client.writer.write_eof()
                while True:
                    code, text = await client.reply()
                    if not code:
                        break
                    assert not any(word in text for word in ("Traceback", "Error", "Exception", "object at", ".py"))
                    assert code != 451
                    if code >= 400 and code != 421:
                        assert text[0] in "45", text
        assert relay.told("session_error") == []
        await until(relay.nothing_left)
        await relay.send(MESSAGE)


async def test_sessions_that_broke_somebody(tmp_path: Path, corpora: Path) -> None:
    found = seeds(corpora)
    assert found
    await _survives(tmp_path, found + [s.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") for s in found])


VERBS = st.sampled_from(
    [b"EHLO x", b"MAIL FROM:<a@b.c>", b"RCPT TO:<a@b.c>", b"DATA", b"RSET", b".", b"QUIT", b"MAIL FROM:", b"RCPT TO:<"]
)
LINES = st.lists(st.tuples(st.one_of(VERBS, st.binary(max_size=40)), st.sampled_from([b"\r\n", b"\n", b"\r", b""])))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sessions=st.lists(LINES, min_size=1, max_size=4))
def test_random_sessions(tmp_path_factory: pytest.TempPathFactory, sessions: list[list[tuple[bytes, bytes]]]) -> None:
    said = [b"".join(line + end for line, end in s) for s in sessions]
    asyncio.run(_survives(tmp_path_factory.mktemp("random"), said))
