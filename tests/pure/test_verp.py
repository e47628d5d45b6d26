"""Return paths: what was made is read back, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.outgoing.verp import MAX_MESSAGE, MAX_N, address, make, parse_address, read

KEY, OTHER = b"0123456789abcdef", b"another key of more than sixteen"
LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
NUMBERS = st.integers(0, MAX_MESSAGE)
PLACES = st.integers(0, MAX_N)


@given(NUMBERS, PLACES, st.binary(min_size=16, max_size=64))
def test_a_token_is_read_back_whatever_its_case(message: int, n: int, key: bytes) -> None:
    token = make(key, message, n)
    assert len(token) == 40 and set(token) <= set(LETTERS)
    assert read(key, token) == read(key, token.upper()) == read(key, token.title()) == (message, n)


def test_a_token_with_any_other_letter_is_refused() -> None:
    token = make(KEY, 2**54 + 12345, 7)
    for place, right in enumerate(token):
        for letter in LETTERS + "018 =+-\u212a\u017f\0\n":
            if letter != right:
                assert read(KEY, token[:place] + letter + token[place + 1 :]) is None, (place, letter)


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1], lambda t: t + "a", lambda t: t + "\n", lambda t: t + "=", lambda t: ""]
)
def test_a_token_of_another_length_is_refused(change) -> None:  # type: ignore[no-untyped-def]
    assert read(KEY, change(make(KEY, 1, 1))) is None


@given(st.text(max_size=60))
def test_what_nobody_made_is_refused(text: str) -> None:
    assert read(KEY, text) is None
    assert parse_address(text, "b.example") is None


@given(st.text(LETTERS, min_size=40, max_size=40))
def test_what_looks_like_a_token_is_refused(text: str) -> None:
    assert read([KEY, OTHER], text) is None


def test_two_messages_and_two_recipients_have_nothing_to_exchange() -> None:
    one, two = make(KEY, 1, 1), make(KEY, 2, 1)
    assert one != two
    for cut in range(1, 40):
        assert read(KEY, one[:cut] + two[cut:]) in (None, (1, 1), (2, 1))
        if one[:cut] + two[cut:] not in (one, two):
            assert read(KEY, one[:cut] + two[cut:]) is None


def test_keys_are_changed_without_losing_what_is_on_its_way() -> None:
    old, new = make(KEY, 5, 0), make(OTHER, 6, 1)
    assert old != make(OTHER, 5, 0)
    assert read(KEY, new) is None and read(OTHER, old) is None
    assert read([OTHER, KEY], old) == (5, 0) and read((OTHER, KEY), new) == (6, 1)
    assert read([], old) is None


def test_a_short_key_makes_and_reads_nothing() -> None:
    with pytest.raises(ValueError, match="15 octets"):
        make(b"x" * 15, 1, 1)
    with pytest.raises(ValueError, match="0 octets"):
        read([KEY, b""], make(KEY, 1, 1))


@pytest.mark.parametrize(("message", "n"), [(-1, 0), (0, -1), (MAX_MESSAGE + 1, 0), (0, MAX_N + 1)])
def test_numbers_out_of_range_have_no_token(message: int, n: int) -> None:
    with pytest.raises(ValueError):
        make(KEY, message, n)


def test_the_token_is_not_that_of_another_day() -> None:
    """What was sent yesterday comes back after an update: the form may not change."""
    assert make(KEY, 1234567890123, 42) == "aaar64p3atfqaaaafk4i65evr3ozg5ebxdq2yrob"


def test_addresses() -> None:
    token = make(KEY, MAX_MESSAGE, MAX_N)
    whole = address(token, "bounces.example.com")
    assert whole == f"bounce+{token}@bounces.example.com" and len(whole.partition("@")[0]) <= 64
    for text in (whole, whole.upper(), whole + ".", whole.title()):
        assert parse_address(text, "Bounces.example.com.") == token
    assert parse_address(address(token, "b.example", "r"), "b.example", "R") == token
    for text in (
        "",
        token,
        f"bounce+{token}",
        f"bounce+{token}@other.example",
        f"bounce{token}@bounces.example.com",
        f"bounce-{token}@bounces.example.com",
        f"x+bounce+{token}@bounces.example.com",
        f"bounce+{token[1:]}@bounces.example.com",
        f"bounce+{token}x@bounces.example.com",
        f"bounce+{token}@bounces.example.com@evil.example",
    ):
        assert parse_address(text, "bounces.example.com") is None, text


def test_an_address_without_a_token_or_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="token"):
        address("", "b.example")
    with pytest.raises(ValueError, match="64 octets"):
        address(make(KEY, 1, 1), "b.example", "p" * 24)
    assert len(address(make(KEY, 1, 1), "b.example", "p" * 23).partition("@")[0]) == 64
