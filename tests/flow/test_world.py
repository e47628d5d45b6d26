"""The tests' own DNS, mail hosts, certificates and policies are what they claim to be: what stands on them may rely on it."""

from __future__ import annotations

from collections.abc import Iterator

import dns.flags
import dns.message
import dns.rcode
import pytest
from nameserver import Scripted
from world import World, bogus, plain, signed, world

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
