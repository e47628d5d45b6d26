"""Mail leaves signed, by bytes that arrive as they were signed: rotation, rewriting, conversion, retries, and what holds it back."""

from __future__ import annotations

import asyncio
import base64
import re
from email import message_from_bytes
from pathlib import Path
from typing import Any

import dkim
import pytest
from fakes import DROP, Transaction, Upstream
from front import Client
from rig import Rig, running, write_config
from test_smuggling import SEQUENCES

from relay.envelope import queue_id
from relay.outgoing import verp
from relay.signing.key import SigningKey
from relay.signing.keys import generate

RSA, ED = generate("rsa"), generate("ed25519")
KEYS = {"s1": RSA, "e1": ED}
SIGNING = """signing:
  - {domain: example.com, subdomains: true, selector: s1, key: {file: s1.pem}}
  - {domain: example.com, subdomains: true, selector: e1, key: {file: e1.pem}}
"""
TOKEN_KEY = "0123456789abcdef-return-path"
FEEDBACK = "feedback: {domain: bounces.example.com, token_key: {file: token}}\n"
MAIL = b"From: App <app@example.com>\r\nTo: you@example.net\r\nSubject: hello\r\n\r\nHello   there \t \r\n\r\n\r\n"


def keys(folder: Path, **given: SigningKey) -> None:
    for name, key in (given or KEYS).items():
        (folder / f"{name}.pem").write_text(key.pem())
        (folder / f"{name}.pem").chmod(0o640)
    (folder / "token").write_text(TOKEN_KEY)
    (folder / "token").chmod(0o600)


def config(folder: Path, up: Upstream, *, signing: str = SIGNING, **more: Any) -> Path:
    keys(folder)
    return write_config(folder, {"main": f"port: {up.port}, tls: none"}, extra=FEEDBACK + signing, **more)


def dns(name: bytes, timeout: int = 5) -> bytes | None:
    key = KEYS.get(name.decode().partition(".")[0])
    return key.record.encode() if key else None


def verified(message: bytes) -> list[bool]:
    """Of each DKIM-Signature, from the top, by dkimpy."""
    one = dkim.DKIM(message)
    count = sum(name.lower() == b"dkim-signature" for name, _ in one.headers)
    return [_good(message, i) for i in range(count)]


def _good(message: bytes, number: int) -> bool:
    try:
        return bool(dkim.DKIM(message).verify(idx=number, dnsfunc=dns))
    except dkim.ValidationError:  # its body is another one
        return False


async def sent(rig: Rig, up: Upstream, message: bytes = MAIL, **more: Any) -> Transaction:
    before = len(up.done)
    await rig.send(message=message, **more)
    await rig.settled()
    assert len(up.done) == before + 1
    return up.done[-1]


async def test_two_signatures_and_both_are_good(tmp_path: Path) -> None:
    async with Upstream() as up, running(config(tmp_path, up)) as rig:
        got = await sent(rig, up)
        assert verified(got.message) == [True, True]
        body = got.message.partition(b"\r\n\r\n")[2]
        assert body == MAIL.partition(b"\r\n\r\n")[2]  # signed, and not a byte of it changed
        size = re.search(r"SIZE=(\d+)", got.mail)
        assert size and int(size[1]) == len(got.message)
        (row,) = await rig.rows()
        story = (await rig.message(row["queue_id"]))["events"][-1]
        assert story["prepared"] == [f"signed by {name}._domainkey.example.com" for name in ("s1", "e1")]
        assert rig.said("unaligned") == []


async def test_what_is_altered_no_longer_verifies(tmp_path: Path) -> None:
    async with Upstream() as up, running(config(tmp_path, up)) as rig:
        good = (await sent(rig, up)).message
    for old, new in ((b"hello\r\n", b"hallo\r\n"), (b"Hello ", b"Hollo "), (b"app@", b"abb@")):
        assert old in good
        assert not any(verified(good.replace(old, new)))
    # Oversigned: none may be added.
    for field in (b"Subject: x\r\n", b"Reply-To: evil@example.net\r\n", b"Cc: x@example.net\r\n"):
        assert not any(verified(good.replace(b"Received:", field + b"Received:", 1)))
    assert verified(b"X-Spam: no\r\n" + good) == [True, True]


async def test_a_retry_is_the_same_bytes(tmp_path: Path) -> None:
    routes = (
        "  - {name: all, via: main, rewrite: {reverse_path: verp, add: {X-Id: '{id}'}, "
        "list_unsubscribe: {url: 'https://example.com/{token}'}}}"
    )
    script = {"DOT": ["451 4.3.0 later", "451 4.3.0 later", "250 ok"]}
    async with Upstream(script, extensions=("PIPELINING",)) as up, running(config(tmp_path, up, routes=routes)) as rig:
        long = MAIL + "grüße ".encode() * 300 + b"\r\n"
        await rig.send(message=long)
        await rig.settled()
        assert len(up.transactions) == 3 and len({t.wire for t in up.transactions}) == 1
        assert len({t.sender for t in up.transactions}) == 1
        assert verified(up.done[0].message) == [True, True]


async def test_after_a_crash_of_the_session_too(tmp_path: Path) -> None:
    async with Upstream({"BODY": [DROP, None]}) as up, running(config(tmp_path, up)) as rig:
        await rig.send(message=MAIL + b"x" * 70 + b"\r\n")
        await rig.settled()
        assert len(up.done) == 1 and verified(up.done[0].message) == [True, True]


async def test_sixteen_ends_that_are_none(tmp_path: Path) -> None:
    """Strict bytes on the wire, and a good signature over them."""
    async with Upstream() as up, running(config(tmp_path, up)) as rig:
        client = Client(*await asyncio.open_connection("127.0.0.1", rig.port))
        await client.reply()
        await client.say("EHLO x")
        for sequence in SEQUENCES:
            code, text = await client.mail(MAIL + b"first" + sequence + b"MAIL FROM:<smug@x.example>\r\n")
            assert code == 250, text
            await rig.settled()
            got = up.done[-1]
            assert verified(got.message) == [True, True], sequence
            assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", got.wire)
            assert all(line.startswith(b"..") for line in got.wire.split(b"\r\n") if line.startswith(b"."))
        assert len(up.done) == len(SEQUENCES) == 16
        assert not any("smug" in line for line in up.commands("MAIL"))
        await client.close()


async def test_eight_bits_to_a_next_hop_that_takes_seven(tmp_path: Path) -> None:
    text = "Grüße, 世界\r\n" * 40
    message = MAIL.replace(b"\r\n\r\n", b"\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n", 1) + text.encode()
    async with (
        Upstream(extensions=("PIPELINING", "SIZE 100000000")) as up,
        running(config(tmp_path, up)) as rig,
    ):
        for _ in range(2):  # the first learns it, the second knows it
            got = await sent(rig, up, message)
            assert got.wire.isascii() and verified(got.message) == [True, True]
            assert "8BITMIME" not in got.mail
            payload = message_from_bytes(got.message).get_payload(decode=True)
            assert isinstance(payload, bytes) and text.encode() in payload
        async with Upstream() as other:
            assert verified((await sent(rig, up, MAIL)).message) == [True, True]
            assert not other.done


async def test_a_large_message_is_converted_beside_the_original(tmp_path: Path) -> None:
    message = MAIL + ("Grüße, 世界" + "x" * 60 + "\r\n").encode() * 8000 + b"y" * 5000 + b"\r\n"
    async with (
        Upstream(extensions=("PIPELINING", "SIZE 100000000")) as up,
        running(config(tmp_path, up)) as rig,
    ):
        got = await sent(rig, up, message)
        assert got.wire.isascii() and verified(got.message) == [True, True]
        assert max(map(len, got.wire.split(b"\r\n"))) <= 998
        payload = message_from_bytes(got.message).get_payload(decode=True)
        assert isinstance(payload, bytes)
        assert payload == message.partition(b"\r\n\r\n")[2]
        assert not [p for p in (tmp_path / "spool" / "content").iterdir() if p.name.endswith(".out")]


async def test_what_cannot_be_converted_fails_and_says_so(tmp_path: Path) -> None:
    signed = (
        b"From: app@example.com\r\nContent-Type: multipart/signed; boundary=b; protocol=x/y\r\n\r\n"
        b"--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n\xc3\xa4\r\n--b\r\n\r\nsig\r\n--b--\r\n"
    )
    async with Upstream(extensions=("PIPELINING",)) as up, running(config(tmp_path, up)) as rig:
        number = await rig.send(message=signed)
        row = await rig.reaches(number, "failed")
        assert "5.6.3" in row["last_reply"] and "8-bit" in row["last_reply"]
        assert not up.transactions
        await sent(rig, up)  # and the account is none the worse


async def test_rewritten_first_and_signed_then(tmp_path: Path) -> None:
    routes = (
        "  - {name: all, via: main, rewrite: {reverse_path: verp, from: '*@news.example.com', reply_to: '{from}', "
        "sender: news@example.com, remove: [X-Mailer], add: {X-Tag: 'for {recipient}'}, "
        "list_unsubscribe: {url: 'https://example.com/u/{token}', mailto: 'u+{token}@bounces.example.com'}}}"
    )
    async with Upstream() as up, running(config(tmp_path, up, routes=routes)) as rig:
        await rig.send("a@example.net", "b@example.net", message=b"X-Mailer: x\r\n" + MAIL)
        await rig.settled()
        assert [t.accepted for t in up.done] in (
            [["a@example.net"], ["b@example.net"]],
            [["b@example.net"], ["a@example.net"]],
        )
        for got in up.done:
            assert verified(got.message) == [True, True]
            read = message_from_bytes(got.message)
            assert read["From"] == "App <app@news.example.com>" and read["Reply-To"] == "App <app@example.com>"
            assert read["Sender"] == "news@example.com" and read["X-Mailer"] is None
            assert read["X-Tag"] == f"for {got.accepted[0]}"
            assert read["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
            token = verp.parse_address(got.sender, "bounces.example.com")
            assert token is not None
            found = verp.read(TOKEN_KEY.encode(), token)
            assert found is not None
            rows = {(r["queue_id"], r["recipient"]) for r in await rig.rows()}
            assert (queue_id(found[0]), got.accepted[0]) in rows
            assert f"https://example.com/u/{token}" in read["List-Unsubscribe"]
            # What RFC 8058 §4 wants signed is.
            assert b"list-unsubscribe-post" in got.message.partition(b"bh=")[0].lower()


async def test_reports_keep_the_null_sender(tmp_path: Path) -> None:
    routes = "  - {name: all, via: main, rewrite: {reverse_path: verp}}"
    async with Upstream() as up, running(config(tmp_path, up, routes=routes)) as rig:
        assert (await sent(rig, up, sender="")).sender == ""


async def test_unsigned_is_told_once_for_each_sender(tmp_path: Path) -> None:
    async with Upstream() as up, running(config(tmp_path, up)) as rig:
        for sender in ("x@other.example", "x@other.example", "y@other.example"):
            got = await sent(rig, up, MAIL.replace(b"app@example.com", sender.encode()), sender=sender)
            assert verified(got.message) == []
        told = rig.said("unaligned")
        assert [(t["sender"], t["verdict"]) for t in told] == [
            ("x@other.example", "unsigned"),
            ("y@other.example", "unsigned"),
        ]
        assert "other.example" in told[0]["why"]


async def test_who_signs_itself_is_left_alone(tmp_path: Path) -> None:
    keys(tmp_path)
    async with Upstream() as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none, signs: true"}, extra=SIGNING)
        async with running(file) as rig:
            assert verified((await sent(rig, up)).message) == []
            assert rig.said("unaligned") == []


async def test_keys_of_users_and_routes_come_before_those_for_anybody(tmp_path: Path) -> None:
    signing = SIGNING.partition("  - {domain: example.com, subdomains: true, selector: e1")[0] + (
        "  - {domain: example.com, selector: e1, key: {file: e1.pem}, routes: [news]}\n"
    )
    routes = "  - {name: news, match: {recipient: '*@news.example'}, via: main}\n  - {name: rest, via: main}"
    async with Upstream() as up, running(config(tmp_path, up, signing=signing, routes=routes)) as rig:
        for recipient, selector in (("x@news.example", b"s=e1"), ("x@example.net", b"s=s1")):
            await rig.send(recipient, message=MAIL)
            await rig.settled()
            assert verified(up.done[-1].message) == [True] and selector in up.done[-1].message


@pytest.mark.parametrize("form", ["relaxed/simple", "simple/relaxed", "simple/simple"])
async def test_other_forms_and_an_end(tmp_path: Path, form: str) -> None:
    signing = SIGNING.replace("selector: s1,", f"selector: s1, canonicalisation: {form}, expires: 14d,")
    async with Upstream() as up, running(config(tmp_path, up, signing=signing)) as rig:
        got = await sent(rig, up)
        assert verified(got.message) == [True, True]
        first = got.message.partition(b"bh=")[0]
        t, x = re.search(rb"t=(\d+)", first), re.search(rb"x=(\d+)", first)
        assert t and x and int(x[1]) - int(t[1]) == 14 * 86400 and f"c={form}".encode() in first
        assert not re.search(rb"\bl=", first)


async def test_a_key_that_is_gone_at_a_reload_leaves_all_as_it_was(tmp_path: Path) -> None:
    async with Upstream() as up:
        file = config(tmp_path, up)
        async with running(file) as rig:
            (tmp_path / "s1.pem").unlink()
            taken, lines = rig.app.reload()
            assert not taken and "s1.pem" in lines[0]
            assert verified((await sent(rig, up)).message) == [True, True]
            keys(tmp_path, s1=ED, e1=ED)  # a new key in the same file counts with a reload, and not before
            assert verified((await sent(rig, up)).message) == [True, True]
            assert rig.app.reload()[0]
            got = await sent(rig, up)
            assert got.message.count(b"a=ed25519-sha256") == 2


async def test_no_key_is_told_anywhere(tmp_path: Path) -> None:
    async with Upstream() as up:
        file = config(tmp_path, up)
        async with running(file) as rig:
            await sent(rig, up)
            seen = [repr(rig.events), repr(rig.app.config), str(rig.app.config.signing), repr(vars(rig.app.preparer))]
            seen.append(repr(await rig.message((await rig.rows())[0]["queue_id"])))
            seen.append(repr(await rig.app.admin.service.explain({"from": "app@example.com", "to": "x@example.net"})))
            (tmp_path / "s1.pem").write_text(RSA.pem()[:-40])
            seen += rig.app.reload()[1]
            lines = [line for line in (RSA.pem() + ED.pem()).splitlines() if not line.startswith("-----")]
            for line in [*lines, TOKEN_KEY, base64.b64encode(TOKEN_KEY.encode()).decode()]:
                assert not any(line in text for text in seen)
