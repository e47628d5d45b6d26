"""DMARC alignment, relaxed (RFC 7489 section 3.1), and the sentences that an operator reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.envelope import ascii_domain
from relay.policy.alignment import Alignment, aligned, organizational_domain, verdict


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("example.com", "example.com", True),
        ("example.com", "Example.COM.", True),
        ("news.example.com", "example.com", True),
        ("news.example.com", "bounces.example.com", True),
        ("a.b.c.example.com", "x.example.com", True),
        ("example.com", "example.net", False),
        ("example.com", "notexample.com", False),
        ("example.com", "com", False),
        ("shop.co.uk", "other.co.uk", False),
        ("mail.shop.co.uk", "shop.co.uk", True),
        ("shop.co.uk", "co.uk", False),
        ("co.uk", "co.uk", True),
        # Somebody else's customer is not somebody else.
        ("alice.github.io", "github.io", False),
        ("alice.github.io", "bob.github.io", False),
        ("www.alice.github.io", "alice.github.io", True),
        # A wildcard of the list, and its exception.
        ("a.b.ck", "c.b.ck", False),
        ("a.www.ck", "b.www.ck", True),
        ("mail.bücher.example", "xn--bcher-kva.example", True),
        ("straße.de", "strasse.de", False),
        ("straße.de", "xn--strae-oqa.de", True),
        ("例え.jp", "news.xn--r8jz45g.jp", True),
        ("host", "host", True),
        ("host", "other", False),
        ("a.internal", "b.internal", False),
        ("x.a.internal", "a.internal", True),
        ("", "", False),
        ("example.com", "", False),
        ("", "example.com", False),
        ("example.com..", "example.com", False),
        ("a..example.com", "example.com", False),
        (".", ".", False),
        ("[192.0.2.1]", "[192.0.2.1]", True),
        ("[192.0.2.1]", "[198.51.2.1]", False),
    ],
)
def test_relaxed_alignment(one: str, other: str, same: bool) -> None:
    assert aligned(one, other) is same
    assert aligned(other, one) is same


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_is_answered(one: str, other: str) -> None:
    assert aligned(one, other) is aligned(other, one)
    plain = ascii_domain(one)
    assert not plain.isascii() or ascii_domain(plain) == plain.removesuffix(".")


def test_who_is_asked_for_the_organizational_domain() -> None:
    asked: list[str] = []

    def organizational(domain: str) -> str:
        asked.append(domain)
        return domain.split(".", 1)[1]

    assert aligned("a.example.com", "a.example.com", organizational) and not asked
    assert not aligned("a.example.com", "a.example.net", organizational) and not asked
    assert aligned("a.Example.com", "b.example.com.", organizational)
    assert asked == ["a.example.com", "b.example.com"]


def test_the_list_as_installed() -> None:
    organizational_domain("a.example.com")  # the list is read once
    assert organizational_domain("A.b.Example.co.uk.") == "example.co.uk"
    assert organizational_domain("co.uk") == "co.uk"
    assert organizational_domain("食狮.公司.cn") == "xn--85x722f.xn--55qx5d.cn"


def test_a_long_domain_does_not_take_long() -> None:
    long = "".join(map(chr, range(0x4E00, 0x4E00 + 20_000)))
    assert ascii_domain(long) == long.lower()


@pytest.mark.parametrize(
    ("from_", "signed_by", "envelope", "upstream", "expected", "warns"),
    [
        ("shop.example.com", ["shop.example.com"], "other.net", False, Alignment.DKIM, False),
        ("shop.example.com", ["other.net", "example.com"], "other.net", True, Alignment.DKIM, False),
        ("shop.example.com", ["other.net"], "b.example.com", False, Alignment.SPF_ONLY, False),
        ("shop.example.com", ["other.net"], "other.net", False, Alignment.MISALIGNED, True),
        ("shop.example.com", ["other.net"], "", False, Alignment.MISALIGNED, True),
        ("shop.example.com", [], "other.net", False, Alignment.UNSIGNED, True),
        ("shop.example.com", [], "b.example.com", False, Alignment.UNSIGNED, True),
        ("shop.example.com", [], "", False, Alignment.UNSIGNED, True),
        ("shop.example.com", [], "other.net", True, Alignment.UNKNOWN, False),
        ("shop.example.com", ["other.net"], "b.example.com", True, Alignment.UNKNOWN, False),
        ("", ["example.com"], "example.com", True, Alignment.NO_FROM, True),
    ],
)
def test_verdicts(
    from_: str, signed_by: list[str], envelope: str, upstream: bool, expected: Alignment, warns: bool
) -> None:
    found = verdict(from_, signed_by, envelope, upstream)
    assert (found.alignment, found.warns) == (expected, warns)
    assert from_ in found.why
    if warns and from_:
        assert found.why.endswith(f"add `signing` for {from_}")


def test_the_sentence_for_three_in_the_morning() -> None:
    assert verdict("shop.example.com", [], "bounces.other.net").why == (
        "From shop.example.com is signed by nobody, and the envelope domain bounces.other.net is not aligned: receivers "
        "with a DMARC policy refuse or quarantine it; add `signing` for shop.example.com"
    )
    assert verdict("shop.example.com", ["other.net"], "bounces.example.com").why == (
        "From shop.example.com is signed by other.net only, which is not aligned; the envelope domain bounces.example.com is "
        "aligned, which helps as long as SPF passes and nobody forwards the message; add `signing` for shop.example.com"
    )
