"""MAIL and RCPT as they are written: paths, brackets, parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.listener.command import BadCommand, Mail, Rcpt, parse_mail, parse_rcpt
from relay.spool import Notify


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
        ("FROM:<a@b.c> AUTH", 501),
        ("FROM:<a@b.c> XAUTH=<>", 555),
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


# -- RFC 3461


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("RET=FULL", Mail("a@b.c", ret="FULL")),
        ("ret=hdrs", Mail("a@b.c", ret="HDRS")),
        ("ENVID=QQ314159", Mail("a@b.c", envid="QQ314159")),
        ("ENVID=a+20b+3D+2Bc", Mail("a@b.c", envid="a b=+c")),
        (f"ENVID={'x' * 100} RET=FULL SIZE=3", Mail("a@b.c", 3, ret="FULL", envid="x" * 100)),
    ],
)
def test_mail_asks_for_reports(parameters: str, expected: Mail) -> None:
    assert parse_mail(f"FROM:<a@b.c> {parameters}") == expected


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("NOTIFY=NEVER", Rcpt("a@b.c", Notify.NEVER)),
        ("notify=success,Delay", Rcpt("a@b.c", Notify.SUCCESS | Notify.DELAY)),
        ("NOTIFY=FAILURE,FAILURE", Rcpt("a@b.c", Notify.FAILURE)),
        ("ORCPT=rfc822;a@b.c", Rcpt("a@b.c", 0, "rfc822;a@b.c")),
        ("ORCPT=rfc822;a+2bx@b.c NOTIFY=FAILURE", Rcpt("a@b.c", Notify.FAILURE, "rfc822;a+2Bx@b.c")),
        ("ORCPT=utf-8;\\x{E9}@b.c", Rcpt("a@b.c", 0, "utf-8;\\x{E9}@b.c")),
        ("ORCPT=utf-8;é@b.c", Rcpt("a@b.c", 0, "utf-8;\\x{E9}@b.c")),
        (f"ORCPT=x;{'y' * 498}", Rcpt("a@b.c", 0, f"x;{'y' * 498}")),
    ],
)
def test_rcpt_asks_for_reports(parameters: str, expected: Rcpt) -> None:
    assert parse_rcpt(f"TO:<a@b.c> {parameters}", True) == expected


@pytest.mark.parametrize("value", ["", "=", "=ALL", "=FULL,HDRS"])
def test_bad_ret(value: str) -> None:
    assert refusal(lambda: parse_mail(f"FROM:<a@b.c> RET{value}")) == 501


@pytest.mark.parametrize(
    "value", ["", "=", "=a+", "=a+2", "=a+0A", "=a+0D+0Ab", "=+E9", "=+7F", "=a=b", "=é", "=" + "x" * 101]
)
def test_bad_envid(value: str) -> None:
    assert refusal(lambda: parse_mail(f"FROM:<a@b.c> SMTPUTF8 ENVID{value}")) == 501


@pytest.mark.parametrize(
    "value", ["", "=", "=NEVER,SUCCESS", "=SUCCESS,", "=,", "=ALWAYS", "=SUCCESS;DELAY", "=TOLD", "=16"]
)
def test_bad_notify(value: str) -> None:
    assert refusal(lambda: parse_rcpt(f"TO:<a@b.c> NOTIFY{value}", False)) == 501


@pytest.mark.parametrize(
    "value",
    ["", "=", "=a@b.c", "=rfc822;", "=;a@b.c", "=rfc822;a+0D+0AX:1", "=rfc822;a+00", "=r f;a", "=rfc/822;a", "=rfc822;é@b.c",
     "=rfc822;" + "x" * 500, "=utf-8;" + "é" * 90],
)  # fmt: skip
def test_bad_orcpt(value: str) -> None:
    assert refusal(lambda: parse_rcpt(f"TO:<a@b.c> ORCPT{value}", True)) == 501


@pytest.mark.parametrize("parameter", ["RET=FULL", "ENVID=x"])
def test_mail_without_the_offer(parameter: str) -> None:
    assert refusal(lambda: parse_mail(f"FROM:<a@b.c> {parameter}", dsn=False)) == 555


@pytest.mark.parametrize("parameter", ["NOTIFY=NEVER", "ORCPT=rfc822;x"])
def test_rcpt_without_the_offer(parameter: str) -> None:
    assert refusal(lambda: parse_rcpt(f"TO:<a@b.c> {parameter}", False, dsn=False)) == 555


@given(st.text(max_size=80))
def test_what_is_taken_is_one_printable_ascii_line(text: str) -> None:
    text = "".join(text.split())
    try:
        found = parse_mail(f"FROM:<a@b.c> ENVID={text}").envid + parse_rcpt(f"TO:<a@b.c> ORCPT=x;{text}", True).orcpt
    except BadCommand:
        return
    assert found.isascii() and found.isprintable()


def refusal(call: Callable[[], object]) -> int:
    with pytest.raises(BadCommand) as told:
        call()
    assert told.value.enhanced == "5.5.4"
    return told.value.code
