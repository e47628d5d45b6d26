"""MAIL and RCPT as they are written: paths, brackets, parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.listener.command import BadCommand, Mail, parse_mail, parse_rcpt


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("FROM:<a@B.Example>", Mail("a@b.example")),
        ("from:<>", Mail("")),
        ("FROM: <a@b.c>", Mail("a@b.c")),
        ("FROM:a@b.c", Mail("a@b.c")),
        ("FROM:a@b.c SIZE=5", Mail("a@b.c", 5)),
        ("FROM:< a@b.c >", Mail("a@b.c")),
        ("FROM:<a@b.c> size=0", Mail("a@b.c", 0)),
        ("FROM:<a@b.c>\tBODY=8bitmime", Mail("a@b.c", eight_bit=True)),
        ("FROM:<a@b.c> BODY=7BIT SMTPUTF8 SIZE=12", Mail("a@b.c", 12, smtputf8=True)),
        ("FROM:<é@b.c> SMTPUTF8", Mail("é@b.c", smtputf8=True)),
        ("FROM:<@relay.example,@other.example:a@b.c>", Mail("a@b.c")),
        ('FROM:<"a> SIZE=1"@b.c>', Mail('"a> SIZE=1"@b.c')),
        (r'FROM:<"a\">b"@b.c> SIZE=3', Mail(r'"a\">b"@b.c', 3)),
        ("FROM:<a@[192.0.2.1]>", Mail("a@[192.0.2.1]")),
        ("FROM:<a@[IPv6:2001:db8::1]>", Mail("a@[ipv6:2001:db8::1]")),
    ],
)
def test_mail(argument: str, expected: Mail) -> None:
    assert parse_mail(argument) == expected


@pytest.mark.parametrize(
    ("argument", "code"),
    [
        ("", 501),
        ("FROM", 501),
        ("FROM:", 501),
        ("TO:<a@b.c>", 501),
        ("FROM:<a@b.c", 501),
        ('FROM:<"a@b.c>', 501),
        ("FROM:<a@b.c>SIZE=1", 501),
        ("FROM:<a@b.c><d@e.f>", 501),
        ("FROM:<a@b.c> SIZE", 501),
        ("FROM:<a@b.c> SIZE=", 501),
        ("FROM:<a@b.c> SIZE=²", 501),
        ("FROM:<a@b.c> SIZE=١", 501),
        ("FROM:<a@b.c> SIZE=-1", 501),
        ("FROM:<a@b.c> SIZE=1e3", 501),
        ("FROM:<a@b.c> SIZE=999999999999999999999", 501),
        ("FROM:<a@b.c> SIZE=1 SIZE=1", 501),
        ("FROM:<a@b.c> Body=7BIT bODY=7BIT", 501),
        ("FROM:<a@b.c> BODY", 501),
        ("FROM:<a@b.c> SMTPUTF8=yes", 501),
        ("FROM:<a@b.c> AUTH=<>", 555),
        ("FROM:<a@b.c> =", 555),
        ("FROM:<é@b.c>", 553),
        ("FROM:<<a@b.c>>", 501),
        ("FROM:<a b@c.d>", 553),
        ("FROM:<a@b.c\x00>", 553),
    ],
)
def test_bad_mail(argument: str, code: int) -> None:
    with pytest.raises(BadCommand) as told:
        parse_mail(argument)
    assert told.value.code == code
    assert told.value.enhanced.startswith("5.")


@pytest.mark.parametrize(
    ("argument", "code"),
    [
        ("TO:<>", 501),
        ("TO:<postmaster>", 550),
        ("TO:<a@b.c> FOO=bar", 555),
        ("TO:<é@b.c>", 553),
        ("TO:x", 553),
    ],
)
def test_bad_rcpt(argument: str, code: int) -> None:
    with pytest.raises(BadCommand) as told:
        parse_rcpt(argument, False)
    assert told.value.code == code


def test_rcpt() -> None:
    assert parse_rcpt("TO:<A@B.c>", False).address == "A@b.c"
    assert parse_rcpt("to: <é@ü.example> ", True).address == "é@ü.example"
    assert parse_rcpt("TO:<Postmaster@b.c>", False).address == "Postmaster@b.c"


def answer(parse: Callable[[str], object], argument: str) -> BadCommand | None:
    try:
        parse(argument)
    except BadCommand as told:
        return told
    return None


@given(st.text(max_size=60))
def test_whatever_is_said_is_an_address_or_a_clear_refusal(text: str) -> None:
    for told in (answer(parse_mail, f"FROM:{text}"), answer(lambda a: parse_rcpt(a, True), f"TO:{text}")):
        assert told is None or (500 <= told.code < 560 and told.text.isprintable())


def test_a_line_full_of_parameters_is_read_in_one_go() -> None:
    names = " ".join(f"P{i:x}" for i in range(700))
    with pytest.raises(BadCommand, match="P0 is not supported"):
        parse_mail(f"FROM:<a@b.c> {names}")
