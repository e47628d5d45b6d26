"""The vectors of RFC 6376 and RFC 8463, mail that Google signed, and what others keep for their tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay.signing.arc import seal
from relay.signing.canonical import Form, body_hash
from relay.signing.dkim import Fields, signature, split_fields
from relay.signing.key import SigningKey
from relay.signing.keys import generate, parse
from relay.signing.records import BadRecord, DnsFunc, read_record
from relay.signing.rules import Recipe
from relay.signing.verify import ArcResult, DkimResult, Verifier, arc_result, dkim_results, parts
from tests.pace import within

NOW = 1_700_000_000.0
# RFC 8463 §A.2; the RSA key is the same in dkimpy's files.
RSA = (
    b"v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Q"
    b"vx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB"
)
ED25519 = b"v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
# Google's of 2012 to 2016, as it was published.
GMAIL = (
    b"k=rsa; p=MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA1Kd87/UeJjenpabgbFwh+eBCsSTrqmwIYYvywlbhbqoo2DymndFkbjOVIPIldNs"
    b"/m40KF+yzMn1skyoxcTUGCQs8g3FgD2Ap3ZB5DekAo5wMmk4wimDO+U8QzI3SD07y2+07wlNWwIt8svnxgdxGkVbbhzY8i+RQ9DpSVpPbF7ykQxtKXkv/"
    b"ahW3KjViiAH+ghvvIhkx4xYSIc9oSwVmAl5OctMEeWUwg8Istjqz8BZeTWbf41fbNhte7Y+YqZOwq1Sd0DbvYAD9NOZK9vlfuac0598HY+vtSBczUiKER"
    b"Hv1yRbcaQtZFh5wtiRrN04BLUTD21MycBX5jYchHjPY/wIDAQAB"
)
PUBLISHED = {
    b"brisbane._domainkey.football.example.com.": ED25519,
    b"test._domainkey.football.example.com.": RSA,
    b"20120113._domainkey.gmail.com.": GMAIL,
    b"test._domainkey.legitimate.com(.attacker.com.": RSA,
}
SIGNED = ["dkimpy/rfc6376.signed.msg", "mimekit/rfc8463-example.msg", "mimekit/gmail.msg"]


def ask(name: bytes, timeout: int = 5) -> bytes | None:
    return PUBLISHED.get(name)


def judged(content: bytes, ask: DnsFunc = ask) -> list[DkimResult]:
    return dkim_results(*parts(content), ask, NOW)


@pytest.mark.parametrize("name", SIGNED)
def test_what_is_good_passes(corpora: Path, name: str) -> None:
    found = judged((corpora / "dkim" / name).read_bytes())
    assert found
    assert [(one.result, one.why) for one in found] == [("pass", "")] * len(found)


def test_both_signatures_of_the_rfc_are_told_apart(corpora: Path) -> None:
    found = judged((corpora / "dkim" / "mimekit/rfc8463-example.msg").read_bytes())
    assert [(one.domain, one.selector, one.algorithm, one.bits, one.mark) for one in found] == [
        ("football.example.com", "brisbane", "ed25519-sha256", 256, "/gCrinpc"),
        ("football.example.com", "test", "rsa-sha256", 1024, "F45dVWDf"),
    ]


@pytest.mark.parametrize("name", SIGNED)
def test_what_was_altered_fails(corpora: Path, name: str) -> None:
    content = (corpora / "dkim" / name).read_bytes()
    assert {one.result for one in judged(content + b"more")} == {"fail"}
    header = re.sub(rb"(?m)^Subject: ", b"Subject: Re: ", content, count=1)
    assert {one.result for one in judged(header)} == {"fail"}
    assert {one.why for one in judged(header)} == {"the header was altered, or another key signed it"}


def test_a_body_whose_end_is_missing_is_told(corpora: Path) -> None:
    # Cut by a mail system on its way; MimeKit keeps it for its parser.
    found = judged((corpora / "dkim" / "mimekit/multipart-no-end-boundary.msg").read_bytes())
    assert [one.domain for one in found] == ["gmail.com"]


def test_a_domain_that_is_none_is_refused_before_anybody_is_asked(corpora: Path) -> None:
    asked: list[bytes] = []

    def ask(name: bytes, timeout: int = 5) -> bytes | None:
        asked.append(name)
        return RSA

    [found] = judged((corpora / "dkim" / "dkimpy/test.message.baddomain").read_bytes(), ask)
    assert (found.result, found.domain) == ("neutral", "")
    assert not asked


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("badversion.txt", "its record is of another version than DKIM1"),
        ("test_tlsrpt.txt", "it is not for mail (s=)"),
    ],
)
def test_a_broken_record_is_told(corpora: Path, name: str, why: str) -> None:
    with pytest.raises(BadRecord, match=re.escape(why)):
        read_record((corpora / "dkim" / "dkimpy" / name).read_bytes())


@pytest.mark.parametrize(
    ("name", "kind", "bits"),
    [
        ("2048_testkey_PKCS8.key.pub.txt", "rsa", 2048),
        ("2048_testkey_wo_markers.pub.txt", "rsa", 2048),
        ("2048_testkey_wo_markers.pub.rsa.txt", "rsa", 2048),
        ("test2.txt", "rsa", 1024),
    ],
)
def test_a_good_record_is_read(corpora: Path, name: str, kind: str, bits: int) -> None:
    key = read_record((corpora / "dkim" / "dkimpy" / name).read_bytes())
    assert (key.kind, key.bits) == (kind, bits)


def keys(corpora: Path) -> dict[str, SigningKey]:
    names = ["dkimpy/2048_testkey_PKCS8.key", "dkimpy/ed25519test.key", "mimekit/example.pem"]
    return {name: parse((corpora / "dkim" / name).read_text()) for name in names}


def test_private_and_public_keys_fit(corpora: Path) -> None:
    found = keys(corpora)
    record = (corpora / "dkim" / "dkimpy/2048_testkey_PKCS8.key.pub.txt").read_text()
    assert found["dkimpy/2048_testkey_PKCS8.key"].public in record
    pem = (corpora / "dkim" / "mimekit/example.pub").read_text()
    assert found["mimekit/example.pem"].public == "".join(pem.split("\n")[1:-2])


MESSAGES = ["dkimpy/ed25519test.msg", "dkimpy/rfc6376.w1258.msg", "dkimpy/test.message", "dkimpy/test_extra.message"]


@pytest.mark.parametrize("name", [*MESSAGES, *SIGNED, "mimekit/multipart-no-end-boundary.msg"])
def test_all_are_signed_by_all_keys(corpora: Path, name: str) -> None:
    head, body = parts((corpora / "dkim" / name).read_bytes())
    forms: list[Form] = ["relaxed", "simple"]
    for key in keys(corpora).values():

        def published(name: bytes, timeout: int = 5, key: SigningKey = key) -> bytes:
            return key.record.encode()

        for header in forms:
            for text in forms:
                recipe = Recipe("example.com", "s", key, int(NOW), None, header, text, frozenset([b"from", b"subject"]))
                made = signature(recipe, Fields(head), body_hash(body, text))
                found = dkim_results(made + head, body, published, NOW)[0]
                assert (found.result, found.bits) == ("pass", key.bits)


def test_without_from_nothing_is_proved(corpora: Path) -> None:
    head, body = parts((corpora / "dkim" / "dkimpy/test_nofrom.message").read_bytes())
    key = generate("ed25519")
    recipe = Recipe("example.com", "s", key, int(NOW), always=(b"from",))
    made = signature(recipe, Fields(head), body_hash(body, "relaxed"))
    [found] = dkim_results(made + head, body, lambda name, timeout=5: key.record.encode(), NOW)
    assert (found.result, found.why) == ("permerror", "the message has no From")
    assert b"from" not in {name.lower() for name, _ in split_fields(head)}


def test_every_odd_message_is_judged_and_its_seal_verifies(corpora: Path) -> None:
    key, seen = generate("rsa", 1024), 0

    def ask(name: bytes, timeout: int = 5) -> bytes | None:
        return key.record.encode() if name == b"s._domainkey.example.com." else None

    for path in sorted(path for folder in ("mime", "bounces", "arf") for path in (corpora / folder).rglob("*")):
        if not path.is_file():
            continue
        seen += 1
        head, body = parts(path.read_bytes().replace(b"\r", b""))

        def judged(head: bytes = head, body: bytes = body) -> tuple[bytes, ArcResult]:
            verifier = Verifier(head, body, ask, NOW)
            found, chain = verifier.dkim(), verifier.arc()
            return seal(head, body, key, "example.com", "s", "mx.example.com", found, chain, int(NOW)), chain

        made, chain = within(1.0, judged, path)
        again = arc_result(made + head, body, ask, NOW)
        assert (again.cv, again.ended) == (("fail", True) if chain.cv == "fail" else ("pass", False)), path
    assert seen >= 500
