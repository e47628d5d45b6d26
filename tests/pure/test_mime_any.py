"""Any message at all, re-encoded: it is read as before or refused, in a time that grows with its size alone."""

from __future__ import annotations

import email
import re
from collections.abc import Callable, Iterator
from email.message import Message

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.outgoing.mime import Converted, Unconvertible, convert, long_line, needs
from tests.pace import within

MEGABYTES = 5
SIZE = MEGABYTES * 1_000_000
SECONDS = 4.0  # of the processor, at most: twenty times what the slowest takes, for machines that are busy


# -- what needs it


@pytest.mark.parametrize(
    ("data", "long"),
    [
        (b"", False),
        (b"x" * 998, False),
        (b"x" * 999, True),
        (b"x" * 998 + b"\r\n", False),
        (b"x" * 999 + b"\r\n", True),
        (b"\r\n" * 3000, False),
        (b"\r\n" + b"x" * 998 + b"\r\n" + b"y" * 998 + b"\r\n", False),
        (b"a\r\n" * 999 + b"x" * 999 + b"\r\n" + b"a\r\n" * 999, True),
        (b"a\r\n" * 999 + b"x" * 999, True),
    ],
)
def test_a_long_line(data: bytes, long: bool) -> None:
    assert long_line(data) is long


@given(st.lists(st.sampled_from([0, 1, 500, 996, 997, 998, 999, 1000, 2000]), max_size=12), st.booleans())
def test_a_long_line_is_found_wherever_it_is(lengths: list[int], ended: bool) -> None:
    data = b"\r\n".join(b"x" * length for length in lengths) + b"\r\n" * ended
    assert long_line(data) is any(length > 998 for length in lengths)


# -- what it says

WORDS = st.sampled_from(
    [b"a", b"Gr\xc3\xbc\xc3\x9fe", b"\xfc", b"=", b"==", b"=41", b"=\r\n", b"--", b"--b0", b"--b1--", b" ", b"\t", b".", b"x: y", b":"]
    + [b"\r\n"] * 5 + [b"\r\n\r\n", b"From x", b"YWJj", b"\x0c", b"x" * 1100, b"-" * 200, b"\xc3\xbc" * 500]
)  # fmt: skip
TEXT = st.lists(WORDS, max_size=25).map(b"".join)
ENCODINGS = st.sampled_from([b"", b"7bit", b"8bit", b"binary", b"base64", b"quoted-printable", b"8-Bit", b"x-uuencode"])
TYPES = st.sampled_from(
    [b"", b"text/plain", b"text/html; charset=utf-8", b"image/png", b"application/x; name=y", b"text"]
)
BLANK = st.sampled_from([b"", b"", b" ", b" \t"])


def head(draw: st.DrawFn, kind: bytes) -> bytes:
    encoding = draw(ENCODINGS)
    return (
        (b"Content-Type: " + kind + b"\r\n" if kind else b"")
        + (b"Content-Transfer-Encoding: " + encoding + b"\r\n" if encoding else b"")
        + draw(st.sampled_from([b"", b"X-Odd:\r\n\ty \r\n", b"Content-Description: \xc3\xbc\r\n"]))
        + (b"" if draw(st.integers(0, 30)) == 0 else b"\r\n")
    )


@st.composite
def entities(draw: st.DrawFn, depth: int = 0) -> bytes:
    kind = draw(st.sampled_from(["leaf", "leaf", "multipart", "multipart", "message"])) if depth < 4 else "leaf"
    if kind == "leaf":
        return head(draw, draw(TYPES)) + draw(TEXT)
    if kind == "message":
        return head(draw, draw(st.sampled_from([b"message/rfc822", b"message/partial"]))) + draw(entities(depth + 1))
    mark = draw(st.sampled_from([b"b0", b"b1", b"b%d" % depth, b"b%d" % depth, b"b1--"]))
    sub = draw(st.sampled_from([b"mixed", b"mixed", b"digest", b"signed"]))
    content = draw(TEXT) if draw(st.booleans()) else b""
    for _ in range(draw(st.integers(0, 3))):
        content += b"\r\n--" + mark + draw(BLANK) + b"\r\n" + draw(entities(depth + 1))
    if draw(st.integers(0, 4)):
        content += b"\r\n--" + mark + b"--" + draw(BLANK) + draw(st.sampled_from([b"", b"\r\n", b"\r\n\xfc"]))
    return head(draw, b"multipart/%s; boundary=%s" % (sub, mark)) + content


def payloads(message: Message) -> Iterator[tuple[str, object]]:
    for part in message.walk():
        yield part.get_content_type(), None if part.is_multipart() else part.get_payload(decode=True)


# Always the same ones: the stdlib has errors of its own where boundaries stand where none may.
@settings(max_examples=400, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(entities(), st.booleans())
def test_it_is_read_as_before(raw: bytes, seven_bit: bool) -> None:
    raw = b"MIME-Version: 1.0\r\n" + re.sub(rb"\r\n|\r|\n", b"\r\n", raw)
    before, _, body = raw.partition(b"\r\n\r\n")
    before = before.removesuffix(b"\r\n") + b"\r\n\r\n"
    try:
        made = convert(before, body, seven_bit=seven_bit)
    except Unconvertible:
        return
    assert not needs(made.head, made.body, seven_bit=seven_bit)
    assert bool(made.done) == needs(before, body, seven_bit=seven_bit)
    assert convert(before, body, seven_bit=seven_bit) == made  # a retry is the same octets
    assert convert(made.head, made.body, seven_bit=seven_bit).body is made.body
    old, new = email.message_from_bytes(before + body), email.message_from_bytes(made.head + made.body)
    assert list(payloads(new)) == list(payloads(old))


# -- how long it takes


def part(kind: bytes, encoding: bytes = b"8bit") -> bytes:
    return b"Content-Type: " + kind + b"\r\nContent-Transfer-Encoding: " + encoding + b"\r\n\r\n"


def multi(mark: bytes) -> bytes:
    return part(b"multipart/mixed; boundary=" + mark)


TEN_THOUSAND = b"".join(
    b"--b\r\nContent-Type: text/plain; x=%d\r\n\r\nGr\xc3\xbc\xc3\x9fe aus K\xc3\xb6ln\r\n" % n for n in range(9_990)
)
NESTED = b"".join(b"--b%d\r\n" % n + multi(b"b%d" % (n + 1)) for n in range(5_000))
CASES: dict[str, Callable[[], tuple[bytes, bytes]]] = {
    "ten thousand parts": lambda: (multi(b"b"), TEN_THOUSAND + b"--b--\r\n"),
    "multiparts in multiparts": lambda: (multi(b"b0"), NESTED + b"\xfc\r\n" + b"a\r\n" * (SIZE // 3)),
    "messages in messages": lambda: (part(b"message/rfc822"), part(b"message/rfc822") * 5_000 + b"\xfc"),
    "one boundary for all": lambda: (multi(b"b"), (b"--b\r\n" + multi(b"b")) * 5_000 + b"\xfc"),
    "boundaries only": lambda: (multi(b"b"), b"--b\r\n" * (SIZE // 5) + b"\xfc"),
    "boundaries almost": lambda: (multi(b"b"), b"--bb\r\n" * (SIZE // 6) + b"--b\r\n\r\n\xfc"),
    "a long boundary almost": lambda: (multi(b"a" * 69 + b"b"), (b"\r\n--" + b"a" * 68) * (SIZE // 72) + b"\xfc"),
    "dashes": lambda: (multi(b"b"), b"--b\r\n\r\n" + b"--\r\n" * (SIZE // 4) + b"\xfc"),
    "one line": lambda: (part(b"text/plain"), b"-" * SIZE),
    "one line of equal signs": lambda: (part(b"text/plain"), b"=" * SIZE),
    "one line of octets": lambda: (part(b"text/plain"), b"\xfc" * SIZE),
    "one line of base64": lambda: (part(b"a/b", b"base64"), b"YWJj" * (SIZE // 4)),
    "one line of quoted-printable": lambda: (part(b"a/b", b"quoted-printable"), b"=" * SIZE),
    "stray equal signs": lambda: (part(b"a/b", b"quoted-printable"), b"=\xfc" * (SIZE // 2)),
    "blanks behind an equal sign": lambda: (part(b"a/b", b"quoted-printable"), b"=" + b" " * SIZE),
    "short lines": lambda: (part(b"text/plain"), b"\xfc\r\n" + b"a\r\n" * (SIZE // 3)),
    "short lines before the parts": lambda: (multi(b"b"), b"\xfc\r\n" * (SIZE // 3) + b"--b\r\n\r\nx"),
    "binary": lambda: (part(b"a/b"), bytes(range(128, 256)) * (SIZE // 128)),
    "fields in parts": lambda: (multi(b"b"), (b"--b\r\n" + b"a: \xfc\r\n" * 3_000 + b"\r\n") * (SIZE // 21_000)),
    "good fields in parts": lambda: (multi(b"b"), (b"--b\r\n" + b"a: b\r\n" * 40_000 + b"\r\n") * 20 + b"\xfc"),
    "a part that is a header": lambda: (multi(b"b"), b"--b\r\n" + b"a: b\r\n" * (SIZE // 6) + b"\r\n\xfc"),
    "parts without an end": lambda: (multi(b"b"), b"--b\r\nX: y\r\n" * 9_000 + b"a: b" * (SIZE // 4)),
    "words": lambda: (b"Subject: " + b"\xc3\xbc a " * 50_000 + b"\r\n\r\n", b""),
    "a word": lambda: (b"Subject: " + b"\xc3\xbc" * 125_000 + b"\r\n\r\n", b""),
    "brackets": lambda: (b"To: " + b"(" * 30_000 + b"\xc3\xbc\r\n\r\n", b""),
    "angles": lambda: (b"Received: " + b"<" * 250_000 + b"\xc3\xbc\r\n\r\n", b""),
    "quotes": lambda: (b"Received: " + b'"\\' * 125_000 + b"\xc3\xbc\r\n\r\n", b""),
    "quotes of parameters": lambda: (b"Content-Disposition: x; " + b'"\\' * 125_000 + b"\xc3\xbc\r\n\r\n", b""),
    "stars of parameters": lambda: (b"Content-Disposition: x; a=\xfc; " + b"b*0*" * 60_000 + b"\r\n\r\n", b""),
    "addresses": lambda: (b"To: " + b"u <a@b.c>," * 25_000 + b"\r\n\r\n", b""),
    "parameters": lambda: (b"Content-Disposition: x" + b"; a=\xc3\xbc" * 30_000 + b"\r\n\r\n", b""),
    "a parameter": lambda: (b"Content-Disposition: x;a=" + b"b" * 250_000 + b"\r\n\r\n", b""),
    "semicolons": lambda: (b"Content-Type: x" + b";" * 250_000 + b"\r\n\r\n", b"\xfc"),
    "semicolons of parts": lambda: (
        multi(b"b"),
        b"".join(
            b"--b\r\nContent-Type: multipart/x%d%s\r\n\r\n" % (n, b';"' + b";" * 1900) for n in range(SIZE // 2000)
        ),
    ),
    "blanks": lambda: (b"X: \xfc" + b" " * 250_000 + b"x\r\n\r\n", b""),
    "fields": lambda: (b"a: \xc3\xbc\r\n" * 37_000 + b"\r\n", b""),
}


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_message_takes_no_longer_than_another(name: str) -> None:
    before, body = CASES[name]()

    def converted() -> Converted | None:
        try:
            return convert(before, body, seven_bit=True)
        except Unconvertible:
            return None

    made = within(SECONDS, converted)
    assert made is None or not needs(made.head, made.body, seven_bit=True)


def test_what_is_asked_of_each_message_costs_microseconds() -> None:
    """A line is not looked at octet by octet: 10 MB of good lines are asked about in less time than they are copied in."""
    body = (b"x" * 76 + b"\r\n") * 130_000
    assert not within(2.0, lambda: needs(b"Subject: x\r\n\r\n", body, seven_bit=True))
