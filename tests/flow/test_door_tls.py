"""The door under TLS: nothing said before the handshake counts after it, nothing said after it is lost, and a handshake
that fails leaves nothing behind. On asyncio's loop and on uvloop, which the product uses."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import socket
import ssl
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, authority
from conftest import until
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from front import Client, Front, front, plain, stuffed

from relay.listener import tls as listener_tls
from relay.listener.front import ListenError
from relay.secrets import Reference
from relay.settings import Address, Listen, ServerTls, User

__all__ = ["authority"]
BOTH_LOOPS = True

HERE = Address("127.0.0.1", 0)
MESSAGE = b"Subject: hi\r\n\r\nend\r\n"
ENVELOPE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<x@y.example>\r\n"
SHOP = {"shop": User("shop", Reference("plain", "right"))}


def starttls(authority: Authority, **more: Any) -> Listen:
    return Listen("local", HERE, tls=authority.tls(), **more)


def implicit(authority: Authority, **more: Any) -> Listen:
    return Listen("local", HERE, tls=authority.tls("implicit"), **more)


async def test_mail_through_both_kinds(tmp_path: Path, authority: Authority) -> None:
    async with front(tmp_path, starttls(authority), implicit(authority)) as relay:
        async with relay.session() as client:
            assert "STARTTLS" in (await client.say("EHLO x"))[1].split("\n")
            assert "STARTTLS" not in (await client.start_tls(authority.client()))[1].split("\n")
            assert (await client.mail(MESSAGE))[0] == 250
            assert (await client.say("STARTTLS"))[0] == 503
        async with relay.session(1, tls=authority.client()) as client:
            assert (await client.mail(MESSAGE * 1000))[0] == 250
            assert (await client.say("STARTTLS"))[0] == 503
        for row in await relay.rows():
            assert b"with ESMTPS id" in await relay.kept(row["message"])
        await until(relay.nothing_left)


class Tunnel:
    """TLS by hand over a socket, so that the test says which bytes share a segment."""

    def __init__(self, client: Client, context: ssl.SSLContext) -> None:
        self.client, self.incoming, self.outgoing = client, ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="127.0.0.1")

    async def _more(self) -> None:
        async with asyncio.timeout(10):
            data = await self.client.reader.read(65536)
        assert data, "the relay hung up"
        self.incoming.write(data)

    async def shake(self, then: bytes = b"") -> None:
        """The handshake; `then` goes out in one segment with its last flight."""
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.client.raw(self.outgoing.read())
                await self._more()
        if then:
            self.tls.write(then)
        await self.client.raw(self.outgoing.read())

    async def say(self, data: bytes) -> None:
        self.tls.write(data)
        await self.client.raw(self.outgoing.read())

    async def lines(self, count: int) -> list[str]:
        """So many whole replies."""
        found = b""
        while len(re.findall(rb"(?m)^\d{3} .*\r\n", found)) < count:
            try:
                found += self.tls.read()
            except ssl.SSLWantReadError:
                await self._more()
        return [line for line in found.decode().split("\r\n") if line]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_what_follows_the_handshake_at_once_is_not_lost(
    tmp_path: Path, authority: Authority, version: ssl.TLSVersion
) -> None:
    """A client may say EHLO in the very segment that ends its handshake."""
    context = authority.client()
    context.minimum_version = context.maximum_version = version
    async with front(tmp_path, starttls(authority)) as relay, relay.session() as client:
        assert (await client.say("STARTTLS"))[0] == 220
        tunnel = Tunnel(client, context)
        await tunnel.shake(b"EHLO x\r\n" + ENVELOPE + b"DATA\r\n" + stuffed(MESSAGE) + b"NOOP\r\n")
        codes = [line[:3] for line in await tunnel.lines(6) if line[3] == " "]
        assert codes == ["250", "250", "250", "354", "250", "250"]
        assert len(await relay.rows()) == 1


async def test_a_client_that_says_its_hello_at_once(tmp_path: Path, authority: Authority) -> None:
    """It lies in the socket when the connection is accepted."""
    async with front(tmp_path, implicit(authority)) as relay:

        def talk() -> bytes:
            with (
                socket.create_connection(("127.0.0.1", relay.door.port), 5) as sock,
                authority.client().wrap_socket(sock, server_hostname="127.0.0.1") as tls,
            ):
                return tls.recv(100)

        clients = [asyncio.to_thread(talk) for _ in range(20)]
        assert await asyncio.gather(*clients) == [b"220 relay.test ESMTP relay\r\n"] * 20
        await until(relay.nothing_left)


async def test_implicit_what_follows_the_handshake_at_once_is_answered_after_the_greeting(
    tmp_path: Path, authority: Authority
) -> None:
    async with front(tmp_path, implicit(authority)) as relay, relay.session(greet=False) as client:
        tunnel = Tunnel(client, authority.client())
        await tunnel.shake(b"EHLO x\r\nNOOP\r\n")
        lines = await tunnel.lines(3)
        assert lines[0].startswith("220 ") and lines[-1] == "250 2.0.0 Ok"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"STARTTLS\r\nNOOP\r\n", True),
        (b"STARTTLS\r\nEHLO x\r\n" + ENVELOPE, True),
        (b"STARTTLS\r\nMAIL FR", True),
        (b"STARTTLS\r\n\r\n", True),
        (b"starttls \r\nX", True),
    ],
)
async def test_nothing_may_follow_starttls_in_its_segment(
    tmp_path: Path, authority: Authority, said: bytes, told: bool
) -> None:
    """CVE-2011-0411: no reply to what was slipped in, and no session after it."""
    async with front(tmp_path, starttls(authority)) as relay, relay.session() as client:
        await client.raw(said)
        assert (await client.reply())[0] == 421
        assert await client.reply() == (0, "")
        assert relay.told("starttls_injection")
        await until(relay.nothing_left)


async def test_clear_text_in_the_next_segment_is_no_handshake(tmp_path: Path, authority: Authority) -> None:
    async with front(tmp_path, starttls(authority)) as relay, relay.session() as client:
        assert (await client.say("STARTTLS"))[0] == 220
        await client.raw(b"EHLO x\r\n" + ENVELOPE + b"DATA\r\n" + stuffed(MESSAGE))
        answered = await client.reader.read()
        assert b"250" not in answered and b"354" not in answered
        assert await relay.rows() == []
        await until(lambda: relay.told("tls_failed"))
        await until(relay.nothing_left)


async def test_nothing_said_before_the_handshake_counts_after_it(tmp_path: Path, authority: Authority) -> None:
    """RFC 3207 §4.2: greeting, login, transaction."""
    async with front(tmp_path, starttls(authority, auth="optional"), users=SHOP) as relay, relay.session() as client:
        assert (await client.log_in("shop", "right"))[0] == 235
        for line in ("MAIL FROM:<a@b.example>", "RCPT TO:<x@y.example>"):
            assert (await client.say(line))[0] == 250
        assert (await client.say("STARTTLS"))[0] == 220
        await client.secure(authority.client())
        assert (await client.say("DATA"))[0] == 503
        assert (await client.say("RCPT TO:<x@y.example>"))[0] == 503
        assert (await client.say("MAIL FROM:<a@b.example>"))[0] == 503  # not even the greeting
        assert (await client.say("AUTH PLAIN " + plain("shop", "right")))[0] == 503
        await client.say("EHLO x")
        assert (await client.log_in("shop", "right"))[0] == 235  # which it could not if it were logged in still
        assert (await client.mail(MESSAGE))[0] == 250
        assert b"with ESMTPSA id" in await relay.kept((await relay.rows())[0]["message"])


async def test_starttls_with_an_argument_or_half_a_command_before(tmp_path: Path, authority: Authority) -> None:
    async with front(tmp_path, starttls(authority)) as relay, relay.session() as client:
        assert (await client.say("STARTTLS now"))[0] == 501
        await client.raw(b"NOOP\r\nSTART")
        assert (await client.reply())[0] == 250
        await client.raw(b"TLS\r\n")
        assert (await client.reply())[0] == 220
        await client.secure(authority.client())
        assert (await client.say("NOOP"))[0] == 250


async def test_starttls_of_one_who_has_closed_its_side(tmp_path: Path, authority: Authority) -> None:
    """`printf … | nc -N`: no handshake can follow, so none is waited for."""
    async with front(tmp_path, starttls(authority)) as relay, relay.session() as client:
        client.writer.write(ENVELOPE + b"DATA\r\n" + stuffed(MESSAGE) + b"STARTTLS\r\n")
        client.writer.write_eof()
        codes = [(await client.reply())[0] for _ in range(6)]
        assert codes[:4] == [250, 250, 354, 250] and codes[-1] == 0 and 220 not in codes
        await until(relay.nothing_left)


def _reset(client: Client) -> None:
    """RST instead of FIN."""
    sock = client.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()


@pytest.mark.parametrize("end", ["close", "reset", "half"])
@pytest.mark.parametrize(
    "said", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"GET / HTTP/1.1\r\n\r\n", b"\x80" * 600]
)
@pytest.mark.parametrize("kind", ["starttls", "implicit"])
async def test_who_goes_away_within_the_handshake_leaves_nothing(
    tmp_path: Path, authority: Authority, kind: str, said: bytes, end: str
) -> None:
    listen = starttls(authority) if kind == "starttls" else implicit(authority)
    async with front(tmp_path, listen) as relay:
        for _ in range(3):
            client = await relay.client(greet=kind == "starttls")
            if kind == "starttls":
                assert (await client.say("STARTTLS"))[0] == 220
            await until(lambda: relay.guard.inside == 1)
            if said:
                await client.raw(said)
            match end:
                case "close":
                    await client.close()
                case "reset":
                    _reset(client)
                case "half":
                    client.writer.write_eof()
            await until(relay.nothing_left)
            await client.close()
        assert relay.told("session_error") == []


@pytest.mark.parametrize("kind", ["starttls", "implicit"])
async def test_a_handshake_that_hangs_is_cut(
    tmp_path: Path, authority: Authority, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("wire", "reception"):
        monkeypatch.setattr(f"relay.listener.{module}.HANDSHAKE_TIMEOUT", 0.3)
    listen = starttls(authority) if kind == "starttls" else implicit(authority)
    async with front(tmp_path, listen) as relay, relay.session(greet=kind == "starttls") as client:
        if kind == "starttls":
            assert (await client.say("STARTTLS"))[0] == 220
        await client.raw(b"\x16\x03\x01\x02\x00")
        await until(lambda: relay.told("tls_failed"))
        await until(relay.nothing_left)
        assert listener_tls.HANDSHAKE_TIMEOUT == 30.0


@pytest.mark.parametrize("kind", ["starttls", "implicit"])
async def test_stopping_within_a_handshake_leaves_nothing(tmp_path: Path, authority: Authority, kind: str) -> None:
    listen = starttls(authority) if kind == "starttls" else implicit(authority)
    async with front(tmp_path, listen) as relay, relay.session(greet=kind == "starttls") as client:
        if kind == "starttls":
            assert (await client.say("STARTTLS"))[0] == 220
        await until(lambda: relay.guard.inside == 1)
        relay.door.stop()
        await relay.door.drain(0.05)
        await until(relay.nothing_left)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_versions_are_refused(tmp_path: Path, authority: Authority, version: ssl.TLSVersion) -> None:
    strict = Listen("strict", HERE, tls=authority.tls("implicit", "1.3"))
    context = authority.client()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    async with front(tmp_path, implicit(authority), strict) as relay:
        for door in range(2):
            if door == 0 and version == ssl.TLSVersion.TLSv1_2:
                async with relay.session(tls=context) as client:
                    assert (await client.say("NOOP"))[0] == 250
                continue
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await relay.client(door, tls=context)
        await until(relay.nothing_left)


# -- the certificate


async def shown(relay: Front, authority: Authority) -> bytes:
    async with relay.session(tls=authority.client()) as client:
        found = client.writer.get_extra_info("ssl_object").getpeercert(True)
        assert isinstance(found, bytes)
        return found


@pytest.fixture
def own(tmp_path: Path) -> Authority:
    """Files of this test alone, to be spoilt."""
    (tmp_path / "tls").mkdir()
    return Authority(tmp_path / "tls")


async def test_a_renewed_certificate_is_taken_and_a_bad_one_is_not(tmp_path: Path, own: Authority) -> None:
    async with front(tmp_path, implicit(own)) as relay:
        first = await shown(relay, own)
        async with relay.session(tls=own.client()) as old:
            own.issue()
            await relay.door.refresh()
            second = await shown(relay, own)
            assert second != first
            assert (await old.mail(MESSAGE))[0] == 250  # who is inside stays
            expires = relay.door.certificate and relay.door.certificate.expires
        good = own.certificate.read_bytes()
        for bad in (b"", b"no certificate", good[:-200], own.key.read_bytes()):
            own.certificate.write_bytes(bad)
            told = len(relay.told("certificate_refused"))
            for _ in range(3):
                await relay.door.refresh()
            assert len(relay.told("certificate_refused")) <= told + 1  # once, and the same words not again
            assert await shown(relay, own) == second
        assert "the old one stays" in relay.told("certificate_refused")[0]["hint"]
        own.certificate.unlink()
        await relay.door.refresh()
        assert await shown(relay, own) == second
        own.issue(60)
        await relay.door.refresh()
        assert await shown(relay, own) not in (first, second)
        assert relay.door.certificate and expires and relay.door.certificate.expires > expires + 86400


async def test_a_certificate_that_could_not_be_read_is_taken_once_it_can(tmp_path: Path, own: Authority) -> None:
    """What was wrong with it need not change its time or size: rights, or the rest of what it stands on."""
    key = own.folder / "link.key"
    key.symlink_to(own.key)
    listen = Listen("local", HERE, tls=ServerTls("implicit", own.certificate, Reference("file", str(key))))
    async with front(tmp_path, listen) as relay:
        first = await shown(relay, own)
        before = own.key.read_bytes()
        own.issue()
        good, status = own.key.read_bytes(), own.key.stat()
        own.key.write_bytes(before.ljust(len(good))[: len(good)])  # not the one of the new certificate

        os.utime(own.key, ns=(status.st_atime_ns, status.st_mtime_ns))
        await relay.door.refresh()
        assert len(relay.told("certificate_refused")) == 1
        own.key.write_bytes(good)
        os.utime(own.key, ns=(status.st_atime_ns, status.st_mtime_ns))
        await relay.door.refresh()
        assert await shown(relay, own) != first


@pytest.mark.parametrize("kind", ["credential", "env", "file", "command", "same file"])
async def test_the_key_is_a_secret_like_others(
    tmp_path: Path, own: Authority, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(own.folder))
    monkeypatch.setenv("OUR_KEY", own.key.read_text())
    key = {
        "credential": Reference("credential", own.key.name),
        "env": Reference("env", "OUR_KEY"),
        "file": Reference("file", str(own.key)),
        "command": Reference("command", "cat", (str(own.key),)),
    }.get(kind)
    if key is None:
        own.certificate.write_bytes(own.certificate.read_bytes() + own.key.read_bytes())
    async with front(tmp_path, Listen("local", HERE, tls=ServerTls("implicit", own.certificate, key))) as relay:
        assert await shown(relay, own)


def test_a_key_with_a_passphrase_is_refused_and_asks_nobody(tmp_path: Path, own: Authority) -> None:
    """OpenSSL would ask for it on the terminal, and the relay would wait for ever."""

    key = load_pem_private_key(own.key.read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"x"))
    own.key.write_bytes(locked)
    program = (
        "import ssl, sys; from pathlib import Path; from relay.certificate import load_into; "
        "from relay.secrets import Reference\n"
        "for key in (Reference('file', sys.argv[2]), None):\n"
        "    try: load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), Path(sys.argv[1]), key)\n"
        "    except (ssl.SSLError, ValueError) as error: print('refused', error)"
    )
    both = own.folder / "both.pem"
    both.write_bytes(own.certificate.read_bytes() + locked)

    ours, theirs = pty.openpty()
    done = subprocess.run(
        ["setsid", "--ctty", sys.executable, "-c", program, str(both), str(own.key)],
        stdin=theirs, stdout=subprocess.PIPE, timeout=120, check=False,
    )  # fmt: skip
    for fd in (ours, theirs):
        os.close(fd)
    assert done.stdout.count(b"refused") == 2


async def test_no_certificate_at_the_start_is_told(tmp_path: Path, own: Authority) -> None:
    own.certificate.write_bytes(b"nothing")
    with pytest.raises(ListenError, match="no certificate that can be used"):
        async with front(tmp_path, implicit(own)):
            raise AssertionError("it opened")
