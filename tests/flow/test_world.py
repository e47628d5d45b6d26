"""The tests' own DNS, mail hosts, certificates and policies are what they claim to be: what stands on them may rely on it."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import aiosmtplib
import dns.flags
import dns.message
import dns.rcode
import pytest
from certificates import Certs, Identity, certs
from conftest import until
from nameserver import Scripted
from simmx import SimMx, after, greylist, silent
from stsserver import Policy, StsServer, text
from world import World, bogus, plain, signed, world

from tests.ports import blackhole, common_port, free_port

__all__ = ["certs"]

TLSA = "3 1 1 " + "ab" * 32


@pytest.fixture(scope="module", name="dns_world")
def _world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    zones = {
        "secure.example": signed(
            "@ MX 10 mx", "mx A 127.0.1.1", "mx AAAA ::1", f"_25._tcp.mx TLSA {TLSA}", "away CNAME mx.insecure.test.",
            "out CNAME mx.insecure.test.", "bad A 127.0.1.2", "sub.plain TXT yes",
        ),
        "_tcp.bad.secure.example": bogus(f"_25 TLSA {TLSA}"),
        "insecure.test": plain("@ MX 10 mx", "mx A 127.0.1.3", f"_25._tcp.mx TLSA {TLSA}"),
        "below.insecure.test": signed("@ MX 10 mx"),
        "bogus.example": bogus("@ MX 10 mx", "mx A 127.0.1.4"),
    }  # fmt: skip
    with (
        Scripted(lambda name, tcp: ["from elsewhere"]) as other,
        world(tmp_path_factory.mktemp("dns") / "world", zones, {"elsewhere.example": other.port}) as made,
    ):
        yield made


def outcome(found: dns.message.Message) -> tuple[str, bool, list[str]]:
    """(rcode, AD, records)"""
    records = [record.to_text() for rrset in found.answer for record in rrset]
    return dns.rcode.to_text(found.rcode()), bool(found.flags & dns.flags.AD), records


@pytest.mark.parametrize(
    ("name", "kind", "rcode", "proved", "records"),
    [
        ("secure.example", "MX", "NOERROR", True, ["10 mx.secure.example."]),
        ("mx.secure.example", "AAAA", "NOERROR", True, ["::1"]),
        ("_25._tcp.mx.secure.example", "TLSA", "NOERROR", True, [TLSA]),
        ("none.secure.example", "MX", "NXDOMAIN", True, []),
        ("mx.secure.example", "MX", "NOERROR", True, []),
        ("nobody.example", "MX", "NXDOMAIN", True, []),
        ("insecure.test", "MX", "NOERROR", False, ["10 mx.insecure.test."]),
        ("_25._tcp.mx.insecure.test", "TLSA", "NOERROR", False, [TLSA]),
        ("none.insecure.test", "MX", "NXDOMAIN", False, []),
        ("below.insecure.test", "MX", "NOERROR", False, ["10 mx.below.insecure.test."]),
        ("away.secure.example", "A", "NOERROR", False, ["mx.insecure.test.", "127.0.1.3"]),
        ("bogus.example", "MX", "SERVFAIL", False, []),
        ("mx.bogus.example", "A", "SERVFAIL", False, []),
        ("bad.secure.example", "A", "NOERROR", True, ["127.0.1.2"]),
        ("_25._tcp.bad.secure.example", "TLSA", "SERVFAIL", False, []),
        ("x.elsewhere.example", "TXT", "NOERROR", False, ['"from elsewhere"']),
    ],
)
def test_what_is_proved(dns_world: World, name: str, kind: str, rcode: str, proved: bool, records: list[str]) -> None:
    found, ad, had = outcome(dns_world.ask(name, kind))
    assert (found, ad, [record.lower() for record in had]) == (rcode, proved, records)


@pytest.mark.parametrize("host", ["127.0.1.1", "::1"])
async def test_a_host_tells_who_came_and_how(certs: Certs, host: str) -> None:
    identity = certs.right("mx1.example.com")
    async with SimMx(host, identity=identity, name="mx1.example.com") as mx:
        await deliver(mx, certs.bundle, "r1@example.com")
        taken = mx.accepted[0]
        assert (taken.sender, taken.recipients) == ("s@example.org", ("r1@example.com",))
        assert taken.content == b"Subject: hello\r\n\r\n.dot\r\n"
        visit = taken.visit
        assert (visit.source, visit.tls, visit.sni) == (
            "127.0.0.1" if host != "::1" else host,
            "TLSv1.3",
            "mx1.example.com",
        )
        assert visit.helo == "relay.test" and visit.began < taken.at
        await until(lambda: visit.ended)


@pytest.mark.parametrize(
    ("made", "trouble"),
    [
        (lambda c: c.right("mx1.example.com"), ""),
        (lambda c: c.chained("mx1.example.com"), ""),
        (lambda c: c.chained("mx1.example.com", root=True), ""),
        (lambda c: c.right("mx2.example.com"), "Hostname mismatch"),
        (lambda c: c.expired("mx1.example.com"), "expired"),
        (lambda c: c.untrusted("mx1.example.com"), "self-signed|unable to get local issuer"),
        (lambda c: c.self_signed("mx1.example.com"), "self-signed"),
    ],
    ids=["right", "chained", "with root", "wrong name", "expired", "untrusted", "self-signed"],
)
async def test_certificates_are_as_good_as_they_say(
    certs: Certs, made: Callable[[Certs], Identity], trouble: str
) -> None:
    async with SimMx("127.0.1.1", identity=made(certs)) as mx:
        if not trouble:
            await deliver(mx, certs.bundle, "r1@example.com")
        else:
            with pytest.raises(ssl.SSLCertVerificationError, match=trouble):
                await deliver(mx, certs.bundle, "r1@example.com")


def test_tlsa_is_what_openssl_makes_of_it(certs: Certs) -> None:
    identity = certs.chained("mx1.example.com")
    leaf, above, root = identity.chain
    text = ssl.DER_cert_to_PEM_cert(leaf)
    key = subprocess.run(["openssl", "x509", "-pubkey", "-noout"], input=text.encode(), capture_output=True, check=True)
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-outform", "DER"], input=key.stdout, capture_output=True, check=True
    )
    assert identity.tlsa() == f"3 1 1 {hashlib.sha256(der.stdout).hexdigest()}"
    assert identity.tlsa(2, 0, 2, at=-1) == f"2 0 2 {hashlib.sha512(root).hexdigest()}"
    assert identity.tlsa(2, 0, 0, at=1) == f"2 0 0 {above.hex()}"


async def test_one_port_at_many_hosts_and_what_they_say() -> None:
    hosts = ["127.0.1.1", "127.0.1.2", "127.0.1.3"]
    port = common_port(hosts)
    async with (
        SimMx(hosts[0], port, {"RCPT": greylist()}) as grey,
        SimMx(hosts[1], port, {"DOT": after(1, "421 4.7.0 enough")}) as tired,
        SimMx(hosts[2], port, most=1) as small,
    ):
        assert await deliver(grey, None, "r1@example.com") == 450
        assert await deliver(grey, None, "r1@example.com") == 250
        assert [await deliver(tired, None, "r1@example.com") for _ in range(2)] == [250, 421]
        first = await asyncio.open_connection(small.host, port)
        assert (await first[0].readline()).startswith(b"220")
        second = await asyncio.open_connection(small.host, port)
        assert (await second[0].readline()).startswith(b"421")
        for _, writer in (first, second):
            writer.close()
            await writer.wait_closed()
        assert small.most_open == 2 and len(small.visits) == 2


async def test_dead_hosts() -> None:
    async with silent("127.0.1.1") as mute:
        reader, writer = await asyncio.open_connection(mute.host, mute.port)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        writer.close()
    with blackhole("127.0.1.1") as port:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.open_connection("127.0.1.1", port), 0.2)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.1.1", free_port("127.0.1.1"))


async def deliver(mx: SimMx, ca: Path | None, recipient: str) -> int:
    """The code that ended it. With `ca` by TLS, verified."""
    client = aiosmtplib.SMTP(hostname=mx.host, port=mx.port, start_tls=False, local_hostname="relay.test", timeout=30)
    await client.connect()
    try:
        if ca is not None:
            context = ssl.create_default_context(cafile=ca)
            await client.starttls(server_hostname="mx1.example.com", tls_context=context)
        await client.sendmail("s@example.org", [recipient], b"Subject: hello\r\n\r\n.dot\r\n")
        return 250
    except aiosmtplib.SMTPRecipientsRefused as refused:
        return refused.recipients[0].code
    except aiosmtplib.SMTPResponseException as refused:
        return refused.code
    finally:
        client.close()


async def test_policies(certs: Certs) -> None:
    trust = ssl.create_default_context(cafile=certs.bundle)
    async with StsServer(certs) as sts, aiohttp.ClientSession() as http:

        async def get(domain: str) -> tuple[int, str]:
            url = f"https://127.0.0.1:{sts.port}/.well-known/mta-sts.txt"
            name = f"mta-sts.{domain}"
            async with http.get(
                url, ssl=trust, server_hostname=name, headers={"Host": name}, allow_redirects=False
            ) as found:
                return found.status, await found.text()

        sts.policies["one.example"] = Policy(text("enforce", "mx.one.example", "*.two.example"))
        sts.policies["two.example"] = Policy(status=302, headers={"Location": "https://one.example/"})
        sts.policies["down.example"] = Policy(down=True)
        sts.policies["slow.example"] = Policy("x", delay=60)
        sts.policies["bad.example"] = Policy("x", identity=certs.untrusted("mta-sts.bad.example"))
        assert await get("one.example") == (
            200,
            "version: STSv1\r\nmode: enforce\r\nmx: mx.one.example\r\nmx: *.two.example\r\nmax_age: 86400\r\n",
        )
        assert (await get("two.example"))[0] == 302
        assert (await get("nobody.example"))[0] == 404
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await get("down.example")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(get("slow.example"), 0.2)
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await get("bad.example")
        assert sts.asked[0] == ("mta-sts.one.example", "/.well-known/mta-sts.txt")
        assert sts.policies["one.example"].asked == 1
        await sts.stop()
        with pytest.raises(aiohttp.ClientConnectorError):
            await get("one.example")
        await sts.start()
        assert (await get("one.example"))[0] == 200
