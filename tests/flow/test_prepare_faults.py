"""What goes wrong while a message is made ready to leave: nothing is left behind, and nobody else suffers from it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from fakes import Later, Upstream
from rig import running, until, write_config
from signatures import signed

from relay.signing.keys import generate
from relay.signing.threads import Threads

BODY = b"x" * 2000 + b"\r\n" + b"y\r\n" * 200_000
ARC = "arc: {domain: example.com, selector: s, key: {file: arc.pem}, routes: all}\n"


async def test_a_large_message_that_waits_for_the_dns_leaves_no_file(tmp_path: Path) -> None:
    """It was re-encoded into a file, and then could not be sealed."""
    key = generate("rsa")
    (tmp_path / "arc.pem").write_text(key.pem())
    (tmp_path / "arc.pem").chmod(0o600)
    dns = "dns: {servers: ['127.0.0.1:1'], timeout: 200ms}\n"
    later = "  default: {retry: {schedule: [1h], give_up: 1d}}"
    async with Upstream() as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none"}, extra=ARC + dns, classes=later)
        async with running(file) as rig:
            number = await rig.send(message=signed(key, body=BODY) + b"\r\n" + BODY)
            row = await rig.tried(number)
            assert row["state"] == "deferred" and "DNS" in row["last_reply"], row
            assert [p.name for p in (tmp_path / "spool" / "content").iterdir()] == [number]
            assert not up.transactions


EIGHT_BIT_SIGNED = (
    b"From: app@example.com\r\nContent-Type: multipart/signed; boundary=b; protocol=x/y\r\n\r\n"
    b"--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n\xc3\xa4\r\n--b\r\n\r\nsig\r\n--b--\r\n"
)


async def test_what_the_message_before_was_answered_is_not_this_ones(tmp_path: Path) -> None:
    """On a session from the pool a message turns out to be one that can't be sent: before anything was said of it."""
    script = {"RCPT": lambda r: "550 5.1.1 nobody of that name" if r.startswith("bad") else "250 ok"}
    async with Upstream(script, extensions=("PIPELINING",)) as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none"})
        async with running(file) as rig:
            await rig.send("good@example.net", "bad@example.net")
            await rig.settled()
            rig.egress().seven_bit = False  # as while the first session was being opened
            number = await rig.send("a@example.net", "b@example.net", message=EIGHT_BIT_SIGNED)
            await rig.settled()
            replies = [row["last_reply"] for row in await rig.rows(number)]
            assert len(replies) == 2 and all("5.6.3" in reply for reply in replies), replies


async def test_a_rule_for_each_recipient_holds_for_what_is_claimed_already(tmp_path: Path) -> None:
    """A transaction of several recipients waits for a session when a reload wants an own message for each of them."""
    key = "feedback: {domain: bounces.example.com, token_key: {file: token}}\n"
    (tmp_path / "token").write_text("0123456789abcdef")
    (tmp_path / "token").chmod(0o600)
    gate = asyncio.Event()
    async with Upstream({"DOT": [Later(0, "250 ok", gate), "250 ok"]}) as up:
        account = {"main": f"port: {up.port}, tls: none, connections: 1"}
        route = "  - {name: all, via: main%s}"
        file = write_config(tmp_path, account, routes=route % "", extra=key)
        async with running(file) as rig:
            await rig.send("first@example.net")
            await until(lambda: any(t.wire for t in up.transactions))
            number = await rig.send("a@example.net", "b@example.net")
            await until(lambda: len(rig.egress().backlog) == 1)
            rewrite = ", rewrite: {reverse_path: verp, add: {X-For: '{recipient}'}}"
            write_config(tmp_path, account, routes=route % rewrite, extra=key)
            assert rig.app.reload()[0]
            gate.set()
            await rig.settled()
            told = [(t.accepted, t.message.partition(b"X-For: ")[2].partition(b"\r\n")[0]) for t in up.done[1:]]
            assert sorted(told) == [(["a@example.net"], b"a@example.net"), (["b@example.net"], b"b@example.net")]
            assert {row["attempts"] for row in await rig.rows(number)} == {1}


async def test_a_line_that_became_too_long_by_being_put_right(tmp_path: Path) -> None:
    subject = b"Subject: " + b"word " * 197
    assert 980 < len(subject) <= 998
    message = b"From: app@example.com\r\nSubject: first\r\n" + subject + b"\r\n\r\nhello\r\n"
    async with Upstream() as up, running(write_config(tmp_path, {"main": f"port: {up.port}, tls: none"})) as rig:
        await rig.send(message=message)
        await rig.settled()
        assert b"X-Original-Subject: word" in up.done[0].wire
        assert max(map(len, up.done[0].wire.split(b"\r\n"))) <= 998


async def test_what_a_next_hop_takes_is_asked_before_a_message_fails_for_it(tmp_path: Path) -> None:
    """By its last EHLO it took seven bits; it takes eight now, and nothing else is sent that would show it."""
    async with Upstream(extensions=("PIPELINING",)) as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none, messages_per_connection: 1"})
        async with running(file) as rig:
            await rig.send()
            await rig.settled()
            assert rig.egress().seven_bit
            up.extensions = ("PIPELINING", "8BITMIME")
            number = await rig.send(message=EIGHT_BIT_SIGNED)
            row = await rig.reaches(number, "delivered", "failed")
            assert row["state"] == "delivered" and EIGHT_BIT_SIGNED.partition(b"\r\n\r\n")[2] in up.done[-1].message


async def test_a_panic_in_a_thread_is_heard_of() -> None:
    class Panic(BaseException):
        """As cryptography raises one."""

    def panic() -> None:
        raise Panic("of what is secret")

    threads = Threads(1)
    try:
        async with asyncio.timeout(60):
            with pytest.raises(RuntimeError, match="Panic"):
                await threads.run(panic, lost=repr)
            assert await threads.run(lambda: 7, lost=repr) == 7
    finally:
        threads.close()


async def test_what_nobody_waits_for_any_more_is_put_away() -> None:
    threads, begun, end, lost = Threads(1), threading.Event(), threading.Event(), list[int]()

    def job() -> int:
        begun.set()
        end.wait(60)
        return 7

    try:
        waiting = asyncio.ensure_future(threads.run(job, lost=lost.append))
        assert await asyncio.to_thread(begun.wait, 60)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        end.set()
        assert await threads.run(lambda: 8, lost=lost.append) == 8
        assert lost == [7]
    finally:
        threads.close()


async def test_no_thread_outlives_its_relay(tmp_path: Path) -> None:
    def signing() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("sign-")}

    before = signing()  # of others, which may be about to end
    key = tmp_path / "key.pem"
    key.write_text(generate("rsa").pem())
    key.chmod(0o640)
    entry = "signing:\n  - {domain: example.com, selector: s1, key: {file: key.pem}}\n"
    async with Upstream() as up:
        async with running(write_config(tmp_path, {"main": f"port: {up.port}, tls: none"}, extra=entry)) as rig:
            await rig.send(message=b"From: app@example.com\r\n\r\nx\r\n")
            await rig.settled()
            assert signing() - before
        await until(lambda: signing() <= before)
