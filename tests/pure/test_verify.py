"""DKIM signatures of strangers: what each is worth, told apart, and nothing that they write costs much or raises."""

from __future__ import annotations

import base64
import logging
import re
from pathlib import Path

import pytest
from conftest import NOW
from hypothesis import given, settings
from hypothesis import strategies as st
from signatures import BODY, DOMAIN, HEAD, SIGNED_AT, handmade, published, signed

from relay.signing.keys import generate
from relay.signing.records import MAX_FAILURES, MAX_SECONDS, BadRecord, DnsFunc, NoAnswer, Records, read_record
from relay.signing.verify import MAX_SIGNATURES, DkimResult, Verifier, dkim_results, parts
from tests.pace import within

RSA = generate("rsa", 1024)
ED25519 = generate("ed25519")
ASK = published(s=RSA, e=ED25519)
EMPTY = base64.b64encode(bytes(32)).decode()


def only(head: bytes, body: bytes | Path = BODY, ask: DnsFunc = ASK, now: float = NOW) -> DkimResult:
    [found] = dkim_results(head, body, ask, now)
    return found


def said(head: bytes, body: bytes = BODY, ask: DnsFunc = ASK, now: float = NOW) -> tuple[str, str]:
    found = only(head, body, ask, now)
    return found.result, found.why


# -- what they are worth


def test_a_good_one_passes_and_is_told_apart() -> None:
    head = signed(ED25519, signed(RSA), selector="e")
    first, second = dkim_results(head, BODY, ASK, NOW)
    assert (first.domain, first.selector, first.algorithm, first.bits) == (DOMAIN, "e", "ed25519-sha256", 256)
    assert (second.domain, second.selector, second.algorithm, second.bits) == (DOMAIN, "s", "rsa-sha256", 1024)
    assert {(one.result, one.why) for one in (first, second)} == {("pass", "")}
    marks = [found.decode() for found in re.findall(rb"\n b=([\w+/]{8})", head)]
    assert [first.mark, second.mark] == marks


def test_a_body_in_a_file_is_the_same(tmp_path: Path) -> None:
    body = BODY * 20_000
    (tmp_path / "body").write_bytes(body)
    assert only(signed(RSA, body=body), tmp_path / "body").result == "pass"
    assert only(signed(RSA, body=body + b"x\r\n"), tmp_path / "body").result == "fail"
    with pytest.raises(OSError):
        only(signed(RSA), tmp_path / "gone")


def test_no_signature_no_result() -> None:
    assert dkim_results(HEAD, BODY, ASK, NOW) == []
    assert dkim_results(b"", b"", ASK, NOW) == []


def test_what_was_altered_is_told() -> None:
    head = signed(RSA)
    altered = ("fail", "the header was altered, or another key signed it")
    assert said(head, BODY + b"x") == ("fail", "the body was altered")
    assert said(head.replace(b"Of this", b"Of that")) == altered
    assert said(head, ask=published(s=generate("rsa", 1024))) == altered
    assert said(signed(ED25519), ask=published(s=generate("ed25519"))) == altered
    assert said(head, BODY + b" \r\n\r\n") == ("pass", "")  # relaxed


def test_a_second_from_never_passes() -> None:
    once, other = signed(RSA), b"From: evil@example.org\r\n"
    for head in (once.replace(b"From:", other + b"From:", 1), once + other):
        assert said(head)[0] == "fail"
        assert "2 From fields" in said(head)[1]
    assert said(handmade(RSA, HEAD + other, h="from:from:to")) == ("policy", "the message has 2 From fields")


def test_a_field_that_is_signed_once_more_than_it_is_there_may_not_be_added() -> None:
    head = handmade(RSA, h="from:to:to:subject:cc")
    assert said(head) == ("pass", "")
    assert said(b"To: c@example.net\r\n" + head)[0] == "fail"
    assert said(head + b"Cc: c@example.net\r\n")[0] == "fail"
    assert said(b"X-Any: c@example.net\r\n" + head)[0] == "pass"


def test_a_signature_may_sign_others_but_never_itself() -> None:
    below = handmade(ED25519, s="e")
    head = handmade(RSA, below, h="from:dkim-signature")
    assert [one.result for one in dkim_results(head, BODY, ASK, NOW)] == ["pass", "pass"]
    # Fields of one name are taken from the bottom up: the lower one is named once more than it can be.
    assert said(handmade(RSA, h="from:dkim-signature")) == ("pass", "")


def test_a_signature_that_begins_with_its_b() -> None:
    assert said(handmade(RSA, b_first=True)) == ("pass", "")


def test_without_from_nothing_is_proved() -> None:
    assert said(handmade(RSA, h="subject")) == ("permerror", "it does not sign From")
    head = HEAD.replace(b"From:", b"X-From:")
    assert said(handmade(RSA, head)) == ("permerror", "the message has no From")


def test_a_header_block_with_a_line_that_is_no_field_proves_nothing() -> None:
    assert said(signed(RSA) + b"no field at all\r\n")[0] == "permerror"
    assert said(signed(RSA) + b": nor this\r\n")[0] == "permerror"
    assert said(b"From somebody Tue Nov 14 22:13:20 2023\r\n" + signed(RSA))[0] == "pass"  # as mbox begins


def test_a_length_that_leaves_something_out_is_told() -> None:
    body = b"Hello.\r\n"
    head = handmade(RSA, body=body, l="8")
    assert said(head, body) == ("pass", "")
    assert said(head, body + b"Buy!\r\n") == ("policy", "l= leaves 6 octets of the body unsigned")
    assert said(head, b"Jello.\r\n") == ("fail", "the body was altered")
    assert said(head, b"Hello") == ("permerror", "l=8 is more than the body's 7 octets")
    both = handmade(RSA, handmade(RSA, body=body, l="8"), body + b"Buy!\r\n")
    assert [one.result for one in dkim_results(both, body + b"Buy!\r\n", ASK, NOW)] == ["pass", "policy"]


def test_times() -> None:
    assert said(handmade(RSA, t=str(SIGNED_AT), x=str(SIGNED_AT + 60)), now=SIGNED_AT + 50) == ("pass", "")
    assert said(handmade(RSA, x=str(SIGNED_AT + 60)), now=SIGNED_AT + 60.5) == ("pass", "")
    assert said(handmade(RSA, x=str(SIGNED_AT + 60)), now=SIGNED_AT + 99.5) == ("pass", "expired 39s ago")
    assert said(handmade(RSA, x="1700000060"), now=1_700_010_000) == ("fail", "it has expired [x=1700000060]")
    ahead = int(NOW) + 2 * 3600
    assert said(handmade(RSA, t=str(ahead))) == ("policy", f"it was signed in the future [t={ahead}]")
    assert said(handmade(RSA, t=str(ahead)), now=ahead - 60) == ("pass", "")  # clocks differ
    assert said(handmade(RSA, t="20", x="10")) == ("neutral", "x= is before t=")


def test_what_is_no_proof_any_more() -> None:
    assert said(handmade(RSA, a="rsa-sha1")) == ("policy", "rsa-sha1 is no proof any more [RFC 8301]")
    short = b"p=" + base64.b64encode(der_key((1 << 511) + 1, 65537))
    assert said(handmade(RSA), ask=published(s=short)) == (
        "policy",
        "an RSA key of 512 bits; less than 1024 is no proof",
    )


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ({"v": "2"}, "v= value is not 1 ['2']"),
        ({"v": None}, "the signature can't be read: it has no v="),
        ({"a": "rsa-md5"}, "unknown signature algorithm: 'rsa-md5'"),
        ({"c": "relaxed/odd"}, "c= names no canonical form that there is"),
        ({"c": "relaxed/"}, ""),
        ({"d": "exa mple.com"}, "d= is no domain name"),
        ({"d": "-example.com"}, "d= is no domain name"),
        ({"d": "a" * 254}, "d= is no domain name"),
        ({"d": ""}, "d= is no domain name"),
        ({"s": "a..b"}, "s= is no domain name"),
        ({"i": "example.com"}, "i= has no @"),
        ({"i": "@example.org"}, "i= domain is not a subdomain of d= [i='@example.org' d='example.com']"),
        ({"l": "many"}, "l= is no number"),
        ({"t": "9" * 5000}, "t= is no number"),
        ({"x": "-1"}, "x= is no number"),
        ({"q": "dns/mx"}, "q= value is not dns/txt ['dns/mx']"),
        ({"h": "from" + ":x" * 600}, "it names more than 500 fields"),
        ({"z": "x" * 20_000}, "the signature is unreasonably large"),
        ({"z": " " * 200 + "x"}, "the signature is unreasonably large"),
    ],
)
def test_what_can_not_be_read_is_neutral(tags: dict[str, str | None], why: str) -> None:
    found = only(handmade(RSA, **tags))
    if why:
        assert (found.result, found.why) == ("neutral", why)
    else:
        assert found.result == "fail"  # the form is simple, and it was not signed so


def test_a_signature_that_lost_its_end_can_not_be_read() -> None:
    head = signed(RSA)
    cut = re.sub(rb"; *\r\n[ \t]b=[^:]*\r\n(?=Received)", b"\r\n", head)
    assert len(cut) < len(head) and said(cut) == ("neutral", "the signature can't be read: it has no b=")


def test_a_neutral_one_still_says_whose_it_is() -> None:
    found = only(handmade(RSA, a="rsa-md5"))
    assert (found.domain, found.selector, found.algorithm) == (DOMAIN, "s", "rsa-md5")


def test_nothing_but_printable_ascii_is_told() -> None:
    odd = handmade(RSA, a='x"\\(\x07\xff)' + "y" * 300, d='e"x(\x1b\u00fc', s="\u2028")
    found = only(odd)
    for text in (found.domain, found.selector, found.algorithm, found.why, found.mark):
        assert re.fullmatch(r"[ -~]{0,200}", text)
        assert not set(text) & set('"\\()')


def test_a_domain_beyond_ascii_is_asked_for_as_the_dns_knows_it() -> None:
    asked: list[bytes] = []

    def ask(name: bytes, timeout: int = 5) -> bytes | None:
        asked.append(name)
        return RSA.record.encode()

    found = only(handmade(RSA, d="b\u00fccher.example"), ask=ask)
    assert (found.result, found.domain) == ("pass", "xn--bcher-kva.example")
    assert asked == [b"s._domainkey.xn--bcher-kva.example."]


# -- keys


def der_key(modulus: int, exponent: int) -> bytes:
    """An RSAPublicKey (RFC 8017 §A.1.1) that no library would make."""

    def der(tag: int, value: bytes) -> bytes:
        size = len(value).to_bytes(3, "big").lstrip(b"\0") or b"\0"
        length = size if len(value) < 128 else bytes([0x80 | len(size)]) + size
        return bytes([tag]) + length + value

    numbers = (modulus, exponent)
    return der(0x30, b"".join(der(2, b"\0" + n.to_bytes((n.bit_length() + 7) // 8, "big")) for n in numbers))


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (None, "no key is published"),
        (b"", "no key is published"),
        (b"v=DKIM1; p=", "it is revoked (empty p=)"),
        (b"v=DKIM1", "its record has no p="),
        (b"v=DKIM2; p=AAAA", "its record is of another version than DKIM1"),
        (b"v=spf1 -all", "its record is of another version than DKIM1"),
        (b"any text", "its record is no list of tags"),
        (b"p=AAAA; p=AAAA", "its record is no list of tags"),
        (b"k=rsa; p=AAAA", "its record holds no key that can be read"),
        (b"k=rsa; p=!", "its record holds no key that can be read"),
        (b"k=ed25519; p=AAAA", "its record holds no key that can be read"),
        (b"k=dsa; p=AAAA", "its record holds no key that can be read"),
        (b"k=\xff; p=AAAA", "its record holds no key that can be read"),
        (b"p=" + b"A" * 60_000, "its record is too large"),
        (b"p=" + base64.b64encode(der_key(1 << 10_000, 65537)), "an RSA key that is too large: 10001 bits"),
        (b"p=" + base64.b64encode(der_key(1 << 2000, (1 << 2000) - 1)), "an RSA key that is too large: 2001 bits"),
        (b"s=tlsrpt; " + RSA.record.encode(), "it is not for mail (s=)"),
    ],
)
def test_a_key_that_is_none_is_told(record: bytes | None, why: str) -> None:
    found = only(handmade(RSA), ask=published(s=record))
    assert (found.result, found.why) == ("permerror", f"its key: {why}".replace("(", "[").replace(")", "]"))


@pytest.mark.parametrize(
    ("before", "tags", "result", "why"),
    [
        ("", {}, "pass", ""),
        ("s=*:tlsrpt; ", {}, "pass", ""),
        ("s=email; g=*; n=a note; ", {}, "pass", ""),
        ("t=y; ", {}, "pass", "the domain only tests DKIM [t=y]"),
        ("t=s; ", {}, "pass", ""),
        ("t=s; ", {"i": "me@EXAMPLE.com"}, "pass", ""),
        ("t=y:s; ", {"i": "@sub.example.com"}, "permerror", "i= is of another domain than d="),
        ("h=sha256; ", {}, "pass", ""),
        ("h=sha1; ", {}, "permerror", "its key does not allow sha256 [h=]"),
        ("", {"a": "ed25519-sha256"}, "permerror", "its key is of kind rsa, the signature says ed25519-sha256"),
    ],
)
def test_what_a_record_asks_for(before: str, tags: dict[str, str | None], result: str, why: str) -> None:
    record = (before + RSA.record.removeprefix("v=DKIM1; ")).encode()
    found = only(handmade(RSA, **tags), ask=published(s=record))
    assert found.result == result
    assert found.why == why or (why and found.why.startswith(why))


def test_a_record_needs_no_version_and_may_be_folded() -> None:
    text = RSA.record.removeprefix("v=DKIM1; ").replace("p=", "p=\t ")
    key = read_record((text[:60] + "  " + text[60:]).encode())
    assert (key.kind, key.bits, key.testing, key.strict, key.hashes) == ("rsa", 1024, False, False, None)
    with pytest.raises(BadRecord):
        read_record(b"\xff" * 100)


def test_a_dns_that_does_not_answer_is_no_fault_of_the_signature() -> None:
    def ask(name: bytes, timeout: int = 5) -> bytes | None:
        raise TimeoutError

    assert said(handmade(RSA), ask=ask) == ("temperror", "the DNS did not answer: TimeoutError")


def test_a_dns_that_does_not_answer_is_not_asked_for_long() -> None:
    asked: list[bytes] = []

    def ask(name: bytes, timeout: int = 5) -> bytes | None:
        asked.append(name)
        raise TimeoutError

    head = HEAD
    for number in range(10):
        head = handmade(RSA, head, s=f"s{number}")
    assert {one.result for one in dkim_results(head, BODY, ask, NOW)} == {"temperror"}
    assert len(asked) == MAX_FAILURES


def test_a_slow_dns_has_an_end() -> None:
    clock = iter(range(0, 10_000, 5))
    asked: list[bytes] = []

    def ask(name: bytes, timeout: int = 5) -> bytes | None:
        asked.append(name)
        return None

    records = Records(ask, lambda: float(next(clock)))
    for number in range(20):
        with pytest.raises((NoAnswer, BadRecord)):
            records.key(f"s{number}", DOMAIN)
    assert len(asked) == MAX_SECONDS / 5


def test_each_record_is_asked_for_once() -> None:
    asked: list[bytes] = []

    def ask(name: bytes, timeout: int = 5) -> bytes | None:
        asked.append(name)
        return ASK(name)

    head = handmade(RSA, handmade(RSA, handmade(ED25519, s="e")))
    assert [one.result for one in dkim_results(head, BODY, ask, NOW)] == ["pass"] * 3
    assert len(asked) == 2


# -- bounds


GOOD = handmade(RSA, h="from").removesuffix(HEAD)
FOLDS = b"\r\n " * 30 + b"b"


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (GOOD + HEAD, b" " * 16_000 + b"x\r\n"),
        (GOOD + HEAD, b" \t" * 4_000_000 + b"x\r\n"),
        (GOOD + HEAD, b" \r\n" * 3_000_000),
        (GOOD + HEAD, b"\r\n" * 4_000_000 + b"x"),
        (GOOD * 1000 + HEAD, BODY),
        (GOOD * 10 + HEAD + b"Subject: " + b"x y\t" * 60_000 + b"\r\n", BODY),
        ((b"DKIM-Signature: v=1; " + FOLDS * 170 + b"\r\n") * 10 + HEAD, BODY),
        (GOOD.replace(b"; b=", b"; x" + FOLDS * 170 + b"=1; b=") * 10 + HEAD, BODY),
        (handmade(RSA, b"X: 1\r\n" * 40_000, h="from" + ":x" * 499) * 1 + HEAD, BODY),
        (handmade(RSA, b"", h="from:" + ":".join(f"x{n}" for n in range(499))) * 10 + b"X1: 1\r\n" * 40_000 + HEAD, BODY),
        (GOOD + HEAD + b" \r\n" * 500_000, BODY),
        (GOOD + b"X" * 1_000_000 + b"\r\n" + HEAD, BODY),
        (b"DKIM-Signature:" + b";" * 1_000_000 + b"\r\n" + HEAD, BODY),
        (GOOD.replace(b"d=", b"i=" + b"@" * 8000 + b"; d="), BODY),
    ],
    ids=range(14),
)  # fmt: skip
def test_nothing_costs_much(head: bytes, body: bytes) -> None:
    within(2.0, lambda: Verifier(head, body, ASK, NOW).dkim())


def test_only_so_many_are_looked_at() -> None:
    assert len(dkim_results(GOOD * 1000 + HEAD, BODY, ASK, NOW)) == MAX_SIGNATURES


def test_the_largest_keys_that_are_taken_cost_little() -> None:
    record = b"p=" + base64.b64encode(der_key((1 << 8192) - 1, (1 << 64) - 1))
    head = re.sub(rb"; b=[^;\r]*", b"; b=" + b"/" * 15_000, GOOD) * 10 + HEAD
    within(2.0, lambda: Verifier(head, BODY, published(s=record), NOW).dkim())


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([b"v=1", b"a=rsa-sha256", b"b=AAAA", b"bh=" + EMPTY.encode(), b"d=a.b", b"s=s", b"h=from"]),
            st.sampled_from([b"c=simple", b"l=1", b"t=1", b"x=2", b"i=@a.b", b"q=dns/txt", b"; ;", b"=", b"\r\n\t"]),
            st.binary(max_size=12),
        ),
        max_size=16,
    ),
    st.binary(max_size=40),
    st.one_of(st.none(), st.binary(max_size=40), st.binary(max_size=40).map(lambda p: b"k=rsa; p=" + p)),
)
def test_whatever_they_write_there_is_a_result(tags: list[bytes], body: bytes, record: bytes | None) -> None:
    head = b"DKIM-Signature: " + b";".join(tags) + b"\r\n" + HEAD
    for found in dkim_results(head, body, lambda name, timeout=5: record, NOW):
        assert found.result != "pass"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=60))
def test_whatever_a_message_is_nothing_is_raised(head: bytes, body: bytes) -> None:
    verifier = Verifier(head, body, ASK, NOW)
    verifier.dkim()
    assert verifier.arc().cv in ("none", "fail")
    parts(head + body)


def test_it_says_nothing_to_any_log(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    for head in (signed(RSA), signed(RSA, HEAD + b"From: b@example.org\r\n"), handmade(RSA, h="from", bh=EMPTY)):
        dkim_results(head, BODY, ASK, NOW)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "head", "body"),
    [
        (b"A: 1\n\nb\n", b"A: 1\r\n", b"b\r\n"),
        (b"A: 1\r\nB: 2\r\n\r\nb", b"A: 1\r\nB: 2\r\n", b"b"),
        (b"\nb", b"", b"b"),
        (b"A: 1", b"A: 1\r\n", b""),
        (b"A: 1\n", b"A: 1\r\n", b""),
        (b"", b"", b""),
    ],
)
def test_a_file_in_two_parts(content: bytes, head: bytes, body: bytes) -> None:
    assert parts(content) == (head, body)
