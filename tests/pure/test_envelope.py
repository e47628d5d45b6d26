"""Addresses and queue ids: what exists is safe on a wire."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.envelope import AddressError, domain_of, parse_address, parse_queue_id, queue_id, unxtext, xtext


def isemail(corpora: Path) -> list[tuple[str, str, str]]:
    """(address, category, diagnosis); control characters are written as U+2400+n there."""
    tests = ElementTree.parse(corpora / "addresses" / "tests.xml").getroot()
    found = []
    for test in tests.iter("test"):
        raw = test.findtext("address") or ""
        address = "".join(chr(ord(c) - 0x2400) if 0x2400 <= ord(c) < 0x2421 else c for c in raw)
        found.append((address, test.findtext("category") or "", test.findtext("diagnosis") or ""))
    return found


def accepts(address: str) -> bool:
    try:
        return bool(parse_address(address))
    except AddressError:
        return False


def test_the_corpus_of_isemail(corpora: Path) -> None:
    cases = isemail(corpora)
    assert len(cases) > 150
    valid = [
        a for a, category, _ in cases if category in ("ISEMAIL_VALID_CATEGORY", "ISEMAIL_DNSWARN", "ISEMAIL_RFC5321")
    ]
    assert len(valid) > 30
    assert [a for a in valid if not accepts(a)] == []
    for address, _, _ in cases:
        if re.search(r"[\x00-\x1f\x7f]", address):
            assert not accepts(address), address
        if accepts(address):
            assert_safe(parse_address(address))
    # Comments and folding may stand in a header, never in an envelope (RFC 5321 §4.1.2).
    folded = [a for a, category, _ in cases if category == "ISEMAIL_CFWS"]
    assert [a for a in folded if accepts(a)] == []


def assert_safe(address: str) -> None:
    local, at, domain = address.rpartition("@")
    assert at
    assert local
    assert domain == domain.lower()
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", address)
    assert not re.search(r"[<> ]", domain)
    if not local.startswith('"'):
        assert not re.search(r'[<>() ,;:\\"\[\]]', local)
    assert len(address.encode()) <= 320


@given(
    st.one_of(st.text(max_size=40), st.from_regex(r'[a-z".\\<> @\[\]:]{1,20}@[a-z.\-\[\]:<> ]{1,12}', fullmatch=True))
)
def test_what_is_accepted_is_safe_and_stays_what_it_is(text: str) -> None:
    if accepts(text):
        found = parse_address(text)
        assert_safe(found)
        assert parse_address(found) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "@b.c",
        "a@",
        "a@b@c.d",
        "a@-b.c",
        "a@b..c",
        "a@.b",
        "a b@c.d",
        "a@b c",
        "a@b>c",
        "<a@b.c>",
        "a@b.c\r\n",
        "a@b.c\n",
        "a\u0085@b.c",
        "a\u009b31m@b.c",
        "a\u2028@b.c",
        "\ud800@b.c",
        ".a@b.c",
        'a"b@c.d',
        "a@[1.2.3.4",
        "a" * 310 + "@example.com",
        "ä" * 40 + "@example.com",
        "a@" + "b" * 260,
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A@EXAMPLE.com", "A@example.com"),
        ("a..b@example.com", "a..b@example.com"),  # no dot-string, and in use
        ("a.@example.com", "a.@example.com"),
        ("bounce+" + "x" * 80 + "@example.com", "bounce+" + "x" * 80 + "@example.com"),  # VERP is longer than 64
        ("@a,@b:c@d.example", "c@d.example"),
        ("a@my_host", "a@my_host"),
        ("a@example.com.", "a@example.com."),
        ("用户@例子.example", "用户@例子.example"),
    ],
)
def test_accepted(text: str, found: str) -> None:
    assert parse_address(text) == found


def test_domains() -> None:
    assert domain_of("") == ""
    assert domain_of('"a@b"@C.d') == "c.d"


@given(st.integers(0, 2**55 - 1))
def test_queue_ids_round_trip(number: int) -> None:
    text = queue_id(number)
    assert len(text) == 11
    assert parse_queue_id(text) == number
    assert parse_queue_id(text.lower().replace("0", "o").replace("1", "l")) == number


@given(st.lists(st.integers(0, 2**55 - 1), min_size=2, max_size=2, unique=True))
def test_queue_ids_sort_as_their_numbers(numbers: list[int]) -> None:
    low, high = sorted(numbers)
    assert queue_id(low) < queue_id(high)


@pytest.mark.parametrize(
    "text", ["", "123", "1PGWBZ0000U", "../../etc/pw", "1PGWBZ00001 ", "1PGWBZ00001\n", "²PGWBZ00001"]
)
def test_no_queue_ids(text: str) -> None:
    with pytest.raises(ValueError, match="no queue id"):
        parse_queue_id(text)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_xtext_comes_back(text: str) -> None:
    coded = xtext(text)
    assert unxtext(coded) == text
    assert all("!" <= c <= "~" and c != "=" for c in coded)


@pytest.mark.parametrize("text", ["a b", "a=b", "+", "+2", "+GG", "é", "a\r\n", "+2\n"])
def test_not_xtext(text: str) -> None:
    with pytest.raises(ValueError):
        unxtext(text)
