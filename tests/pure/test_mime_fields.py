"""Header fields that can't stay as they are: 8-bit text, and lines that are too long."""

from __future__ import annotations

import email
import re
from email.header import decode_header, make_header

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.outgoing.mime import Unconvertible, convert
from relay.outgoing.octets import long_line
from relay.outgoing.words import mended


def written(field: str | bytes) -> str:
    """One field without its line end, made ASCII."""
    raw = field.encode() if isinstance(field, str) else field
    new, names = mended(raw + b"\r\n", True)
    assert new.isascii() and not long_line(new) and new.endswith(b"\r\n")
    assert names == [raw.partition(b":")[0].decode().strip()]
    assert mended(new, True) == (new, [])
    return new[:-2].decode()


ENCODED = r"(?<![^\s(])=\?[^? ]+\?[bq]\?[^? ]*\?=(?![^\s)])"


def shown(field: str) -> str:
    """What a reader shows of a value that may have raw text too: RFC 2047 §6."""
    value = field.partition(":")[2].replace("\r\n", "")
    value = re.sub(rf"({ENCODED})[ \t]+(?={ENCODED})", r"\1", value).replace("?==?", "?= =?")
    return re.sub(
        rf"({ENCODED}) (?={ENCODED})|({ENCODED})", lambda m: str(make_header(decode_header(m[1] or m[2]))), value
    ).strip()


@pytest.mark.parametrize(
    ("field", "new"),
    [
        ("Subject: Grüße aus Köln", "Subject: =?utf-8?b?R3LDvMOfZQ==?= aus =?utf-8?b?S8O2bG4=?="),
        ("Subject:ü", "Subject: =?utf-8?b?w7w=?="),
        ("Subject:\r\n  ü  \r\n\tx ", "Subject:  =?utf-8?b?w7w=?=  \tx "),
        ("Comments: (ü)", "Comments: =?utf-8?b?KMO8KQ==?="),
        ("Subject: ü ä", "Subject: =?utf-8?b?w7wgw6Q=?="),
        # The blank between two encoded words is not shown.
        ("Subject: =?utf-8?q?a?= ü =?utf-8?q?b?=", "Subject: =?utf-8?q?a?= =?utf-8?b?IMO8IA==?= =?utf-8?q?b?="),
        ("From: Jörg Müller <a@b.c>", "From: =?utf-8?b?SsO2cmcgTcO8bGxlcg==?= <a@b.c>"),
        ('From: "Müller, Jörg" <a@b.c>, x@y', "From: =?utf-8?b?TcO8bGxlciwgSsO2cmc=?= <a@b.c>, x@y"),
        ('To: "\\"Ü\\"" Dr. X<a@b.c>,"y, z" <d@e>', 'To: =?utf-8?b?IsOcIg==?= Dr. X<a@b.c>,"y, z" <d@e>'),
        ("Cc: Ü<a@b.c>", "Cc: =?utf-8?b?w5w=?= <a@b.c>"),
        ("To: Größe: a@b.c, Ü <d@e>;", "To: =?utf-8?b?R3LDtsOfZQ==?= : a@b.c, =?utf-8?b?w5w=?= <d@e>;"),
        ("Reply-To: a@b.c (Jörg (Ü))", "Reply-To: a@b.c (=?utf-8?b?SsO2cmc=?= (=?utf-8?b?w5w=?=))"),
        ("To: Empfänger", "To: =?utf-8?b?RW1wZsOkbmdlcg==?="),
        ("Keywords: ü, a", "Keywords: =?utf-8?b?w7w=?= , a"),
        ("List-Id: Ü <x.y>", "List-Id: =?utf-8?b?w5w=?= <x.y>"),
        ("Received: from x (ü) by y", "Received: from x (=?utf-8?b?w7w=?=) by y"),
        ('Content-Type: a/b; name="ü.pdf"; x=y', "Content-Type: a/b; name*=utf-8''%C3%BC.pdf; x=y"),
        ("Content-Disposition: x;filename=ü", "Content-Disposition: x; filename*=utf-8''%C3%BC"),
        ("Content-Type: a/b; name*=utf-8''%41ü", "Content-Type: a/b; name*=utf-8''%41%C3%BC"),
        ("Content-Type: a/b; name=ü; name*=utf-8''%C3%BC", "Content-Type: a/b; name*=utf-8''%C3%BC"),
    ],
)
def test_how_a_field_is_written(field: str, new: str) -> None:
    assert written(field) == new


def test_what_is_not_utf_8_is_taken_for_latin_1() -> None:
    assert written(b"Subject: Gr\xfc\xdfe") == "Subject: =?iso-8859-1?b?R3L832U=?="
    assert written(b'Content-Type: a/b; name="\xfc"') == "Content-Type: a/b; name*=iso-8859-1''%FC"


@pytest.mark.parametrize(
    "field",
    [
        "From: jörg@b.c",
        "From: x <jörg@b.c>",
        "To: a@müller.example",
        'To: ü "x <a@b.c>',
        "To: ü, (x",
        "Message-ID: <ü@x>",
        "Date: Mon, 1 Jän 2024 00:00:00 +0000",
        "Received: from müller",
        "Content-Type: multipart/mixed; boundary=ü",
        "Content-Type: text/plain; charset=ü",
        "Content-Type: text/ü",
        "Content-Disposition: attachment; a b=ü",
        "Grüße: x",
        "no field ü",
        "Message-ID: <" + "x" * 1000 + ">",
        "X-Blank: x" + " " * 1000 + "x",
        "X-" + "x" * 300 + ": ü",
    ],
)
def test_what_can_not_be_written(field: str) -> None:
    with pytest.raises(Unconvertible):
        mended(field.encode() + b"\r\n", True)


@pytest.mark.parametrize(
    "field",
    [
        "Subject: " + "word " * 400,
        "Subject:" + "x" * 3000 + " y",
        "Subject: " + "ü" * 3000,
        "X-Any: " + "x" * 988 + "  " + "y" * 995,
        'To: "' + "long name " * 200 + '" <a@b.c>',
        "References: " + "<a@b.example>" * 200,
        "To: " + ",".join(f"a{n}@b.example" for n in range(200)),
        "To: " + ",".join(f"ü <a{n}@b.example>" for n in range(200)),
        "To: " + ",".join(f"a{n}@b.example" for n in range(4000)),
        "DKIM-Signature: v=1;a=rsa-sha256; b=" + "A" * 700 + ";bh=" + "B" * 700,
        'Content-Type: application/x;name="' + "x" * 2000 + '"',
        "Content-Disposition: attachment; filename=" + "ü" * 500,
    ],
)
def test_a_line_that_is_too_long_is_folded(field: str) -> None:
    new = written(field)
    assert all(line.strip() for line in new.split("\r\n"))
    if field.startswith("Content"):
        part = email.message_from_string(new + "\n\n")
        assert part.get_filename() == field.partition("ame=")[2].strip('"')
    else:
        assert shown(new).replace(" ", "") == field.partition(":")[2].replace(" ", "")


@pytest.mark.parametrize("name", ["To", "Received", "Subject", "X-Any", "Content-Type", "Keywords"])
def test_a_long_line_alone_is_folded_and_keeps_its_octets(name: str) -> None:
    raw = f"{name}: <ü@b.example>; ".encode() + b"a=\xfc; " * 300
    new, _ = mended(raw + b"\r\n", False)
    assert not long_line(new)
    assert new.replace(b"\r\n", b"") == raw


def test_a_good_field_stays_as_it_is_folded() -> None:
    good = b"Subject:\r\n  x\r\n\t \r\nX-y : z\r\nContent-Type: text/plain\r\n"
    made = convert(good + "Comments: ü\r\n\r\n".encode(), b"", seven_bit=True)
    assert made.head == good + b"Comments: =?utf-8?b?w7w=?=\r\n\r\n"
    assert made.done == ("message: header Comments written anew",)


def test_fields_of_parts_are_written_too() -> None:
    head = b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    part = 'Content-Disposition: attachment; filename="ü"\r\nX: y\r\n\r\nx'
    nested = "Content-Type: message/rfc822\r\n\r\nSubject: ü\r\n\r\ny"
    made = convert(head, f"--b\r\n{part}\r\n--b\r\n{nested}\r\n--b--".encode(), seven_bit=True)
    assert made.head is head
    assert made.body == (
        b"--b\r\nContent-Disposition: attachment; filename*=utf-8''%C3%BC\r\nX: y\r\n\r\nx\r\n"
        b"--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: =?utf-8?b?w7w=?=\r\n\r\ny\r\n--b--"
    )


WORD = st.sampled_from(
    ["a", "ü", "ß" * 30, "x" * 1200, "=?utf-8?q?=41?=", "=?utf-8?b?w7w=?=", "(", '"', ",", "=", "?="]
)
BLANK = st.sampled_from([" ", "  ", "\t", "\r\n ", "\r\n\t"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(BLANK, WORD), min_size=1, max_size=12), st.booleans())
def test_free_text_is_read_as_before(words: list[tuple[str, str]], latin: bool) -> None:
    value = "".join(blank + word for blank, word in words)
    raw = value.encode("latin-1" if latin else "utf-8")
    new, _ = mended(b"Subject: x" + raw + b"\r\n", True)
    assert new.isascii() and not long_line(new)
    assert mended(new, True) == (new, [])
    assert shown(new.decode()) == shown("Subject: x" + value)


PHRASE = st.sampled_from(["Jörg", '"Ü, Ä"', "Dr.", "Müller", '"a\\"ü"', "=?utf-8?q?=C3=84?=", "O'x", "(ü)", '"x y"'])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(PHRASE, max_size=4), min_size=1, max_size=4))
def test_names_of_addresses_are_read_as_before(phrases: list[list[str]]) -> None:
    boxes = [" ".join([*words, f"<a{n}@b.example>"]) for n, words in enumerate(phrases)]
    raw = f"To: {', '.join(boxes)}\r\n".encode()
    new, _ = mended(raw, True)
    assert new.isascii() and mended(new, True) == (new, [])
    for n, words in enumerate(phrases):
        assert f"<a{n}@b.example>".encode() in new
        for word in words:
            bare = word.strip('"()').replace("\\", "")
            assert shown(f"x: {bare}") in shown(new.decode())


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["To", "Received", "Content-Type", "Content-Disposition", "X", "Keywords", "Date", "List-Id"]),
    st.text(st.sampled_from(list("aü \";,<>()@=*'%\\\t:.[]?")), max_size=60),
    st.booleans(),
)
def test_whatever_stands_there_it_is_written_or_refused(name: str, value: str, latin: bool) -> None:
    raw = f"{name}: {value}".encode("latin-1" if latin else "utf-8") + b"\r\n"
    try:
        new, _ = mended(raw, True)
    except Unconvertible:
        assert not raw.isascii()
        return
    assert new.isascii() and new.endswith(b"\r\n") and new.count(b"\r\n") == new.count(b"\n")
    assert raw.isascii() == (new == raw)
    assert mended(new, True) == (new, [])
