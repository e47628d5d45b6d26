"""A key and what the DNS holds: every verdict, and what an operator is told to do."""

from __future__ import annotations

import base64
from functools import cache
from typing import Literal

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.signing.keys import SigningKey, generate
from relay.signing.published import compare, dmarc_remark, meant_for_dmarc, place


@cache
def key(kind: Literal["rsa", "ed25519"] = "rsa", number: int = 0) -> SigningKey:
    return generate(kind, 1024)


RSA, EDWARDS = key(), key("ed25519")
P = RSA.public
PKCS1 = base64.b64encode(
    serialization.load_der_public_key(base64.b64decode(P)).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.PKCS1
    )
).decode()
SPKI = base64.b64encode(bytes.fromhex("302a300506032b6570032100") + base64.b64decode(EDWARDS.public)).decode()

GOOD = [
    RSA.record,
    f"v=DKIM1;k=rsa;p={P}",
    f"k=rsa; p={P};",
    f"p={P}",
    f"v=DKIM1; h=sha1:sha256; s=email; n=a note; x-new=1; p={P[:100]} {P[100:]}\t",
    f"v=DKIM1; p={PKCS1}",
]


@pytest.mark.parametrize("record", GOOD, ids=range(len(GOOD)))
def test_good(record: str) -> None:
    found = compare(RSA, [record.encode()])
    assert found.good and found.verdict == "ok" and found.text == ""


def test_good_for_both_kinds() -> None:
    assert compare(EDWARDS, [EDWARDS.record.encode()]).good


def test_good_by_the_rfc() -> None:
    assert compare(RSA, [f"v=DKIM1; s=tlsrpt : *; h= sha256 ; p={P}".encode()]).good  # dkimpy knows one service alone


BAD = [
    (f"v=DKIM1; p={key('rsa', 1).public}", "wrong key", "another key"),
    (f"v=DKIM1; p={P[:150]}", "wrong key", "cut off after 150 of"),
    (f"v=DKIM1; k=ed25519; p={EDWARDS.public}", "wrong k=", "k=ed25519 stands there, and the key is rsa"),
    ("v=DKIM1; p=", "revoked", "selector of its own"),
    ("v=DKIM1; k=rsa; p=;", "revoked", "withdrawn"),
    (f"v=DKIM1; h=sha1; p={P}", "wrong h=", "leave h= out"),
    (f"v=DKIM1; s=tlsrpt; p={P}", "wrong s=", "not for mail"),
    (f"v=DKIM2; p={P}", "bad syntax", "publish ours"),
    (f"p={P}; v=DKIM1", "bad syntax", "publish ours"),
    (f"v=DKIM1; p={P}; p={P}", "bad syntax", "publish ours"),
    (f"v=DKIM1; k=rsa p={P}", "bad syntax", "publish ours"),
    ("v=spf1 -all", "bad syntax", "'v=spf1 -all'"),
    ("\x1b]0;gotcha\x07", "bad syntax", r"\x1b]0;gotcha\x07"),
    ("é" * 500, "bad syntax", "publish ours"),
    ("", "bad syntax", "publish ours"),
    (";;;", "bad syntax", "publish ours"),
    (f'"v=DKIM1; p={P}"', "bad syntax", "without them"),
    (f"v=DKIM1\\; k=rsa\\; p={P}", "bad syntax", "without them"),
    (f"v=DKIM1; p={P[:50]}-{P[50:]}", "bad syntax", "no base64"),
]


@pytest.mark.parametrize(("record", "verdict", "text"), BAD, ids=range(len(BAD)))
def test_bad(record: str, verdict: str, text: str) -> None:
    found = compare(RSA, [record.encode()])
    assert not found.good and found.verdict == verdict and text in found.text


def test_ed25519_in_openssl_s_form() -> None:
    found = compare(EDWARDS, [f"v=DKIM1; k=ed25519; p={SPKI}".encode()])
    assert found.verdict == "wrong key" and "32 bytes" in found.text
    found = compare(EDWARDS, [f"v=DKIM1; p={EDWARDS.public}".encode()])
    assert found.verdict == "wrong k=" and "no k=, which means rsa" in found.text


def test_none_and_several() -> None:
    assert compare(RSA, None).verdict == compare(RSA, []).verdict == "absent"
    found = compare(RSA, [RSA.record.encode(), b"v=spf1 -all"])
    assert not found.good and found.verdict == "several" and "2 TXT records" in found.text


def test_flags() -> None:
    testing = compare(RSA, [f"v=DKIM1; t=y:s; p={P}".encode()])
    assert testing.good and "t=y" in testing.text
    strict = compare(RSA, [f"v=DKIM1; t=s; p={P}".encode()])
    assert strict.good and "t=s" in strict.text


def test_place() -> None:
    assert place("s2026", "example.com") == "s2026._domainkey.example.com"


MESSAGE = b"From: a@example.com\r\nSubject: t\r\n\r\nhello\r\n"


def verifies(record: bytes) -> bool:
    """Whether dkimpy takes a signature of RSA by that record."""
    signed = dkim.sign(MESSAGE, b"s", b"example.com", RSA.pem().encode(), include_headers=[b"from"]) + MESSAGE
    return bool(dkim.verify(signed, dnsfunc=lambda *_, **__: record))


@pytest.mark.parametrize("record", GOOD, ids=range(len(GOOD)))
def test_what_is_good_verifies(record: str) -> None:
    assert verifies(record.encode())


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [f"p={P}", "p=", "v=DKIM1", "k=rsa", "k=ed25519", "h=sha256", "s=email", "t=y", "", "x", " n=1 "]
        ),
        max_size=5,
    ).map(";".join)
    | st.text(max_size=40)
)
def test_whatever_stands_there_is_told_and_ok_verifies(record: str) -> None:
    raw = record.encode()
    found = compare(RSA, [raw])
    assert found.verdict == "ok" or found.text
    assert found.text.isprintable() and P[:40] not in found.text
    if found.good:
        assert verifies(raw)


@pytest.mark.parametrize(
    ("record", "remark"),
    [
        ("v=DMARC1; p=none", ""),
        ("v=DMARC1;p=reject;", ""),
        ("v = DMARC1 ; P=None; rua=mailto:a@example.com!10m,mailto:b@example.com; pct=20", ""),
        ("v=DMARC1 p=none", "can't read"),
        ("v=dmarc1; p=none", "can't read"),
        ("DMARC1; p=none", "can't read"),
        ('"v=DMARC1; p=none"', "can't read"),
        ("v=DMARC1; p=none; mailto:a@example.com", "can't read"),
        ("v=DMARC1; p=none rua=mailto:a@example.com", "no policy"),
        ("v=DMARC1; p=block", "no policy"),
        ("v=DMARC1", "no policy"),
    ],
)
def test_a_dmarc_record_that_nobody_takes_is_remarked(record: str, remark: str) -> None:
    assert meant_for_dmarc(record.encode())
    found = dmarc_remark(record)
    assert remark in found and bool(found) == bool(remark)


@pytest.mark.parametrize("record", ["v=spf1 include:dmarc1.example", "", "a note on DMARC1"])
def test_other_records_are_no_matter_of_dmarc(record: str) -> None:
    assert not meant_for_dmarc(record.encode())
