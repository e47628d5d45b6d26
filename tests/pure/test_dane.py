"""DANE for SMTP: which records count, and which certificates they promise."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import pytest
from conftest import NOW
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from relay.nexthop import dane
from relay.nexthop.dane import Mismatch, Tlsa, usable, verify
from relay.nexthop.identity import means

TIME = datetime.fromtimestamp(NOW, UTC)
SHA256 = hashes.SHA256()
NAMES = ["mx.example.org", "example.org"]


@dataclass(frozen=True)
class Made:
    certificate: x509.Certificate
    key: Any

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def spki(self) -> bytes:
        return self.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def record(self, usage: int, selector: int, matching: int) -> tuple[int, int, int, bytes]:
        data = self.spki if selector else self.der
        digests = {0: data, 1: hashlib.sha256(data).digest(), 2: hashlib.sha512(data).digest()}
        return usage, selector, matching, digests[matching]


@lru_cache
def key_of(kind: str) -> Any:
    if kind.startswith("rsa"):
        return rsa.generate_private_key(65537, int(kind[3:].partition("-")[0]))
    if kind.startswith("ed"):
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP256R1())


def make(
    subject: str,
    issuer: Made | None = None,
    *,
    kind: str = "",
    names: tuple[str, ...] = (),
    ca: bool | None = None,
    path: int | None = None,
    days: tuple[int, int] = (-1, 30),
    extra: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    digest: Any = SHA256,
    pss: bool = False,
) -> Made:
    """`ca` None: no basicConstraints at all."""
    key = key_of(kind or f"ec-{subject}")
    signer = issuer or Made(None, key)  # type: ignore[arg-type]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.certificate.subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(TIME + timedelta(days=days[0]))
        .not_valid_after(TIME + timedelta(days=days[1]))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, path), False)  # not critical: private ones do so
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical)
    if isinstance(signer.key, ed25519.Ed25519PrivateKey):
        digest = None
    how = padding.PSS(padding.MGF1(digest), padding.PSS.DIGEST_LENGTH) if pss else None
    return Made(builder.sign(signer.key, digest, rsa_padding=how), key)


ROOT = make("root", ca=True)
MIDDLE = make("middle", ROOT, ca=True, path=0)
LEAF = make("leaf", MIDDLE, names=("mx.example.org",))
CHAIN = [LEAF.der, MIDDLE.der, ROOT.der]
STRANGER = make("mx.example.org", names=("mx.example.org",))


def check(chain: list[bytes], *records: tuple[int, int, int, bytes], names: list[str] = NAMES, now: float = NOW) -> str:
    kept = usable(records)
    assert kept
    return verify(chain, kept, names, now)


def usage(**allowed: bool) -> x509.KeyUsage:
    kinds = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    more = ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in (*kinds, *more)})


@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("matching", [0, 1, 2])
@pytest.mark.parametrize(("usage_", "made"), [(3, LEAF), (2, MIDDLE), (2, ROOT)])
def test_every_kind_of_record(usage_: int, made: Made, selector: int, matching: int) -> None:
    said = check(CHAIN, made.record(usage_, selector, matching))
    assert said.startswith(f"{usage_} {selector} {matching} {made.record(usage_, selector, matching)[3].hex()[:16]}…")
    with pytest.raises(Mismatch):
        check([STRANGER.der], made.record(usage_, selector, matching))


def test_the_servers_own_key_needs_neither_name_nor_date() -> None:
    old = make("other.example", names=("other.example",), days=(-9, -1))
    assert check([old.der], old.record(3, 1, 1)).startswith("3 1 1 ")
    # RFC 7672 §3.1.1: nor does it matter what else the server sends, or that one of several records is of a key to come.
    assert check([old.der, b"junk"], LEAF.record(3, 1, 1), old.record(3, 1, 1)).startswith("3 1 1 ")
    with pytest.raises(
        Mismatch, match=r"the server's key is 3 1 1 [0-9a-f]{16}…, which no TLSA record promises: 3 1 1 "
    ):
        check([old.der, LEAF.der], LEAF.record(3, 1, 1))


@pytest.mark.parametrize(
    ("names", "subject", "good"),
    [
        (("mx.example.org",), "x", True),
        (("MX.Example.ORG",), "x", True),
        (("example.org",), "x", True),  # the domain of the recipient
        (("*.example.org",), "x", True),
        (("*.org",), "x", True),  # of example.org
        (("m*.example.org",), "x", False),
        (("*",), "x", False),
        (("other.example", "mx.example.org"), "x", True),
        (("other.example",), "mx.example.org", False),  # there are DNS names: the subject's counts nothing
        ((), "mx.example.org", True),
        ((), "other.example", False),
    ],
)
def test_names_below_an_authority(names: tuple[str, ...], subject: str, good: bool) -> None:
    leaf = make(subject, ROOT, names=names)
    if good:
        check([leaf.der, ROOT.der], ROOT.record(2, 1, 1))
    else:
        with pytest.raises(Mismatch, match=r"the certificate is for .*, not for mx\.example\.org or example\.org"):
            check([leaf.der, ROOT.der], ROOT.record(2, 1, 1))


def test_an_authority_must_be_shown_or_whole_in_the_record() -> None:
    """RFC 7672 §3.1.2: a digest of what is not there verifies nothing."""
    with pytest.raises(Mismatch, match="no certificate of the server's chain is the authority 2 0 1 "):
        check([LEAF.der, MIDDLE.der], ROOT.record(2, 0, 1))
    check([LEAF.der, MIDDLE.der], ROOT.record(2, 0, 0))
    check([LEAF.der, MIDDLE.der], ROOT.record(2, 1, 0))
    check([LEAF.der], MIDDLE.record(2, 1, 0))
    with pytest.raises(Mismatch):
        check([LEAF.der], ROOT.record(2, 0, 0))  # MIDDLE is missing
    with pytest.raises(Mismatch):
        check([LEAF.der], ROOT.record(2, 1, 0))


@pytest.mark.parametrize(("kind", "pss"), [("rsa2048", False), ("rsa2048-b", True), ("ec-b", False)])
def test_keys_alone_of_each_kind(kind: str, pss: bool) -> None:
    root = make("root", ca=True, kind=kind, pss=pss)
    leaf = make("leaf", root, names=("mx.example.org",), pss=pss)
    assert check([leaf.der], root.record(2, 1, 0)).startswith("2 1 0 ")
    assert check([leaf.der, root.der], root.record(2, 1, 1)).startswith("2 1 1 ")
    with pytest.raises(Mismatch):
        check([STRANGER.der], root.record(2, 1, 0))


def test_any_order_and_what_does_not_belong() -> None:
    check([LEAF.der, ROOT.der, b"\x30\x03abc", STRANGER.der, MIDDLE.der], ROOT.record(2, 0, 1))


def bad_chains() -> dict[str, list[Made]]:
    """None of them is to be trusted, though their root is."""
    forged = make("middle", STRANGER, ca=True)
    constraints = x509.NameConstraints([x509.DNSName("allowed.example")], None)
    limited = make("limited", ROOT, ca=True, extra=((constraints, True),))
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    clients = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    mute = make("mute", ROOT, ca=True, extra=((usage(digital_signature=True), True),))
    no_flag, not_one = make("none", ROOT), make("leafy", ROOT, ca=False)
    ended, later = make("ended", ROOT, ca=True, days=(-9, -1)), make("later", ROOT, ca=True, days=(1, 9))
    below = make("below", MIDDLE, ca=True)
    weak = make("weak", ROOT, ca=True, kind="rsa1024")
    chains = {
        "no flag": [no_flag], "no authority": [not_one], "ended": [ended], "not yet": [later],
        "path": [below, MIDDLE], "forged": [forged], "constrained": [limited], "may not sign": [mute], "weak": [weak],
        "gap": [make("gap", make("missing", ROOT, ca=True), ca=True)],
    }  # fmt: skip
    found = {name: [make("leaf", way[0], names=("mx.example.org",)), *way] for name, way in chains.items()}
    for name, changes in {
        "leaf ended": {"days": (-9, -1)}, "leaf to come": {"days": (1, 2)}, "critical": {"extra": ((unknown, True),)},
        "for clients": {"extra": ((clients, False),)},
    }.items():  # fmt: skip
        found[name] = [make("leaf", ROOT, names=("mx.example.org",), **changes)]  # type: ignore[arg-type]
    return found


BAD = bad_chains()


@pytest.mark.parametrize("which", BAD)
def test_chains_that_do_not_hold(which: str) -> None:
    with pytest.raises(Mismatch, match="does not lead to the authority of the TLSA record"):
        check([*(one.der for one in BAD[which]), ROOT.der], ROOT.record(2, 1, 1))
    # The key itself may be promised all the same.
    check([one.der for one in BAD[which]], ROOT.record(2, 1, 1), BAD[which][0].record(3, 1, 1))


def test_an_authority_has_its_own_dates() -> None:
    root = make("root", ca=True, days=(-9, 2))
    leaf = make("leaf", root, names=("mx.example.org",))
    check([leaf.der, root.der], root.record(2, 1, 1))
    with pytest.raises(Mismatch):
        check([leaf.der, root.der], root.record(2, 1, 1), now=NOW + 3 * 86400)


def test_a_leaf_is_no_authority() -> None:
    """What is promised as an authority must have signed the server's certificate; it is not itself that."""
    alone = make("mx.example.org", names=("mx.example.org",), ca=True)
    for chain in ([alone.der], [alone.der, alone.der]):
        with pytest.raises(Mismatch, match="no certificate of the server's chain is the authority"):
            check(chain, alone.record(2, 1, 1))


def test_a_second_authority_is_tried() -> None:
    assert check(CHAIN, STRANGER.record(2, 0, 1), ROOT.record(2, 0, 1)).startswith("2 0 1 ")
    with pytest.raises(Mismatch, match="2 0 1"):
        check(CHAIN, STRANGER.record(2, 0, 1), STRANGER.record(3, 0, 1))


@pytest.mark.parametrize(
    "record",
    [
        (0, 1, 1, b"x" * 32),  # PKIX-TA and PKIX-EE: RFC 7672 §3.1.3
        (1, 1, 1, b"x" * 32),
        (255, 1, 1, b"x" * 32),
        (3, 2, 1, b"x" * 32),
        (3, 1, 3, b"x" * 32),
        (3, 1, 1, b"x" * 31),
        (3, 1, 1, b""),
        (3, 1, 2, b"x" * 32),
        (3, 1, 0, b""),
        (3, 0, 0, b"x" * (dane.LONGEST + 1)),
        (2, 0, 0, b"no certificate"),
        (2, 1, 0, b"no key"),
    ],
)
def test_records_of_no_use(record: tuple[int, int, int, bytes]) -> None:
    assert usable([record]) == ()
    assert usable([record, LEAF.record(3, 1, 1)]) == (Tlsa(*LEAF.record(3, 1, 1)),)


def test_the_strongest_digest_counts() -> None:
    """RFC 7671 §9. Whole data stay, and so do other kinds; what is malformed does not push out what is not."""
    records = [LEAF.record(3, 1, 1), LEAF.record(3, 1, 2), LEAF.record(3, 1, 0), LEAF.record(3, 0, 1)]
    assert [(r.usage, r.selector, r.matching) for r in usable(records)] == [(3, 1, 2), (3, 1, 0), (3, 0, 1)]
    assert usable([LEAF.record(3, 1, 1), (3, 1, 2, b"short")]) == (Tlsa(*LEAF.record(3, 1, 1)),)


def test_bounds() -> None:
    many = [(3, 1, 1, n.to_bytes(32)) for n in range(500)]
    assert len(usable(many)) == dane.MOST_RECORDS
    with pytest.raises(Mismatch, match="and 97 more"):
        check([LEAF.der], *many)
    with pytest.raises(Mismatch):
        check([LEAF.der, *[MIDDLE.der] * 30, ROOT.der], ROOT.record(2, 1, 1))
    with pytest.raises(Mismatch, match="showed no certificate"):
        check([], LEAF.record(3, 1, 1))
    with pytest.raises(Mismatch, match="longer than"):
        check([b"x" * 20_000, LEAF.der], LEAF.record(3, 1, 1))
    with pytest.raises(Mismatch, match="cannot be read"):
        check([b"junk", ROOT.der], ROOT.record(2, 1, 1))


@pytest.mark.parametrize("kind", ["rsa2048", "rsa1024", "ed-a", "ec-x"])
def test_the_key_is_read_as_it_stands(kind: str) -> None:
    made = make("mx", kind=kind)
    assert dane._key(made.der) == made.spki
    assert check([made.der], made.record(3, 1, 2))


@example(b"", 14, 128)  # a serial number that is not positive: cryptography warns
@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 255))
def test_no_certificate_of_a_stranger_breaks_it(junk: bytes, at: int, octet: int) -> None:
    bent = LEAF.der[:at] + bytes([octet]) + LEAF.der[at + 1 :]
    records = usable([ROOT.record(2, 1, 1), MIDDLE.record(2, 1, 0)])
    dane._key(junk)
    for chain in ([junk, ROOT.der], [LEAF.der, junk], [LEAF.der[:at], MIDDLE.der]):
        with pytest.raises(Mismatch):
            verify(chain, usable([ROOT.record(2, 1, 1)]), NAMES, NOW)
    for middle in (bent, MIDDLE.der[:at] + bytes([octet]) + MIDDLE.der[at + 1 :]):
        if middle not in (LEAF.der, MIDDLE.der):
            with pytest.raises(Mismatch):
                verify([LEAF.der, middle, ROOT.der], records[:1], NAMES, NOW)
    if bent != LEAF.der:
        with pytest.raises(Mismatch):
            verify([bent, MIDDLE.der, ROOT.der], records, NAMES, NOW)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3), st.binary(max_size=70)), max_size=9))
def test_whatever_the_dns_holds(records: list[tuple[int, int, int, bytes]]) -> None:
    kept = usable(records)
    assert all(r.usage in (2, 3) for r in kept)
    if kept:
        with pytest.raises(Mismatch):
            verify(CHAIN, kept, NAMES, NOW)


@pytest.mark.parametrize(
    ("pattern", "host", "good"),
    [
        ("mx.example.com", "mx.example.com", True),
        ("MX.example.com", "mx.EXAMPLE.com.", True),
        ("*.example.com", "mx.example.com", True),
        ("*.example.com", "a.b.example.com", False),
        ("*.example.com", "example.com", False),
        ("*.example.com", ".example.com", False),
        ("*.*.example.com", "a.b.example.com", False),
        ("mx.*.com", "mx.a.com", False),
        ("*", "com", False),
        ("*.", "com.", False),
        ("", "", False),
        ("example.com", "mx.example.com", False),
    ],
)
def test_what_a_name_means(pattern: str, host: str, good: bool) -> None:
    assert means(pattern, host) == good
