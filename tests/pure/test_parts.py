"""Mail that came back, read within bounds: what it says is found, and nothing in it takes long or raises."""

from __future__ import annotations

import pytest

from relay.returned import parts
from relay.returned.parts import Mail
from tests.pace import within

HEAD = b"From: a@example.com\r\nContent-Type: "


def whole(raw: bytes) -> Mail:
    mail = parts.read(raw)
    assert isinstance(mail.text, str)
    assert all(isinstance(part.text, str) for part in mail.parts)
    return mail


def nested(depth: int) -> bytes:
    return b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (i, i) for i in range(depth))


def many(form: str, count: int) -> bytes:
    return b"".join(form.replace("#", str(i)).encode() for i in range(count))


HOSTILE = {
    "continuations": lambda: b"A: b\n" + b" x\n" * 80_000 + b"\n",
    "fields": lambda: b"A: b\n" * 200_000 + b"\n",
    "parameters": lambda: HEAD + b"text/plain" + many("; a#=b", 60_000) + b"\n\nx",
    "RFC 2231 parameters": lambda: HEAD + b"text/plain" + many("; a*#=b", 20_000) + b"\n\nx",
    "RFC 2231 charset": lambda: HEAD + b"text/plain; charset*=punycode''" + b"b" * 200_000 + b"\n\nx",
    "encoded words": lambda: b"Subject: " + b"=?utf-8?q?a?= " * 18_000 + b"\n\nx",
    "encoded words without end": lambda: many("Subject: =?utf-8?q?a?= " + "=?a?q?" * 1_600 + "\n", 25) + b"\n\nx",
    "scripts": lambda: HEAD + b"text/html\n\n" + b"<script " * 60_000,
    "brackets": lambda: HEAD + b"text/html\n\n" + b"<" * 500_000,
    "punycode": lambda: HEAD + b"text/plain; charset=punycode\n\na-" + b"b" * 500_000,
    "parts": lambda: HEAD + b"multipart/mixed; boundary=b\n\n" + b"--b\n\nx\n" * 100_000,
    "nested multiparts": lambda: nested(1_000),
    "nested multiparts, many lines": lambda: nested(45) + b"\n" + b"x\n" * 900_000,
    "nested messages": lambda: b"Content-Type: message/rfc822\n\n" * 1_000,
    "one line": lambda: HEAD + b"text/plain\n\n" + b"x" * 2_000_000,
    "empty lines": lambda: HEAD + b"text/plain\n\n" + b"\n" * 2_000_000,
    "uuencode": lambda: (
        HEAD + b"text/plain\nContent-Transfer-Encoding: x-uuencode\n\nbegin 644 /x\n" + b"M!!!\n" * 400_000
    ),
    "nothing": lambda: b"",
    "octets": lambda: bytes(range(256)) * 4_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_takes_long(name: str) -> None:
    raw = HOSTILE[name]()
    within(1.0, lambda: whole(raw))


@pytest.mark.parametrize(
    "charset", ["idna", "undefined", '"a\0b"', "rot13", "hex", "unicode_escape", "no-such", "ä", ""]
)
def test_a_charset_that_is_none_is_utf_8(charset: str) -> None:
    mail = whole(HEAD + b"text/plain; charset=" + charset.encode() + b"\n\n" + "grün ".encode())
    assert mail.text == "grün "


def test_an_encoded_word_that_is_none_stays() -> None:
    assert parts.read(b"Subject: a =?utf-8?b?a?= b =?utf-8?q?=41 c?= =?x-none?q?d?=\n\n").first("subject") == (
        "a =?utf-8?b?a?= b A cd"
    )


def test_characters_split_between_two_words() -> None:
    assert parts.read(b"Subject: =?utf-8?b?w7w=?=\n =?utf-8?q?_=C3?= =?utf-8?q?=BC?=\n\n").first("subject") == "ü ü"


def test_a_broken_line_does_not_end_the_header() -> None:
    mail = parts.read(b"From: a\nthis is no field\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nx\n--b--\n")
    assert mail.type == "multipart/mixed"
    assert mail.text == "x"


def test_what_is_returned_is_a_leaf_as_it_stands() -> None:
    inner = b"Subject: x\r\n y\r\nContent-Type: multipart/mixed; boundary=i\r\n\r\n--i\r\n\r\nFrom me\r\n--i--\r\n"
    mail = parts.read(
        HEAD
        + b"multipart/report; boundary=b\r\n\r\n--b\r\nContent-Type: message/rfc822\r\n\r\n"
        + inner
        + b"\r\n--b--\r\n"
    )
    assert [(part.type, part.content) for part in mail.parts] == [("message/rfc822", inner)]


def test_what_is_returned_may_be_encoded() -> None:
    """RFC 2046 §5.2.1 forbids it, and it is done."""
    mail = parts.read(HEAD + b"message/rfc822\nContent-Transfer-Encoding: base64\n\nU3ViamVjdDogeA==\n")
    assert mail.parts[0].content == b"Subject: x"


def test_fields_of_delivery_status_keep_their_empty_lines() -> None:
    mail = parts.read(HEAD + b"message/delivery-status\n\nReporting-MTA: dns; a\n\nAction: failed\n\nAction: delayed\n")
    assert mail.parts[0].type == "message/delivery-status"
    assert mail.parts[0].content == b"Reporting-MTA: dns; a\n\nAction: failed\n\nAction: delayed\n"


def test_scripts_and_styles_are_not_shown() -> None:
    mail = parts.read(
        HEAD + b"text/html\n\n<STYLE>a{}</style >Hello<br>&lt;a@b&gt;<script>x</SCRIPT> <b>you</b><script>y"
    )
    assert mail.text.split() == ["Hello", "<a@b>", "you"]


def test_fields_beyond_the_most_are_left_out() -> None:
    mail = parts.read(b"A: b\n" * 1_000 + b"Z: b\n x\n\n")
    assert len(mail.fields) == 1_000
    assert mail.fields[-1] == ("a", "b")
