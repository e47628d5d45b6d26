"""A header block after intake means the same to every reader; what was put right is told; nothing else is changed."""

from __future__ import annotations

import re
from email.parser import BytesHeaderParser

import dkim
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.listener.data import DataReader
from relay.repair import ONCE, Outcome
from relay.submission import MAX_FIELDS, MAX_HEAD, BadMessage, Head, faults, read_head, split
from relay.trace import prefix
from tests.pace import within

FROM = b"From: a@b.example\r\n"


def taken(content: bytes) -> tuple[Head, bytes, list[str]]:
    """The head as intake keeps it, the body, and what was wrong."""
    start = split(content)
    head = read_head(content[:start])
    return head, content[start:], [fault.what for fault in faults(head, content[:start], start < len(content))]


@pytest.mark.parametrize(
    ("said", "kept", "what"),
    [
        (b"From me Mon Jan  1 00:00:00 2024\r\n", b"", ["mbox_line"]),
        (b">From me\r\nFrom you\r\n", b"", ["mbox_line"]),
        (b"Subject : x\r\n", b"Subject: x\r\n", ["blank_before_colon"]),
        (b"Subject \t :x\r\n y\r\n", b"Subject:x\r\n y\r\n", ["blank_before_colon"]),
        (b"Subject: x\r\n \r\n y\r\n\t \t\r\n", b"Subject: x\r\n y\r\n", ["blank_line"]),
        (b"Subject:\r\n \r\n", b"Subject:\r\n", ["blank_line"]),
        (b"Subject: a\x1b[31m\x7fb\r\n\x20\x0b\r\n \x01c\r\n", b"Subject: a [31m b\r\n  c\r\n", ["control_character", "blank_line"]),
        (b"Subject: a\tb\r\n\tc\r\n", b"Subject: a\tb\r\n\tc\r\n", []),
        (b"Subject: x\r\nsubject:  x\r\nSUBJECT:\r\n x\r\n", b"Subject: x\r\n", ["repeated"]),
        (b"Subject:\r\nSubject: x\r\n y\r\n", b"Subject: x\r\n y\r\n", ["repeated"]),
        (b"Subject: x\r\nSubject: \r\n", b"Subject: x\r\n", ["repeated"]),
        (b"Subject:\r\nSubject: \r\n", b"Subject:\r\n", ["repeated"]),
        (b"Subject: x\r\nsubject: y\r\n z\r\n", b"Subject: x\r\nX-Original-subject: y\r\n z\r\n", ["renamed"]),
        (b"Date: x\r\nDate: y\r\nDate:\r\n y\r\n", b"Date: x\r\nX-Original-Date: y\r\n", ["renamed", "repeated"]),
        (b"To: x@y\r\nX:\r\nTo: z <z@y>\r\nTo:\r\n\tu@y,\r\n v@y\r\n", b"To: x@y,\r\n z <z@y>,\r\n\tu@y,\r\n v@y\r\nX:\r\n", ["merged"]),
        (b"Cc: x@y, \r\nCC:z@y\r\n", b"Cc: x@y, \r\n z@y\r\n", ["merged"]),
        (b"Cc:\r\nCC:z@y\r\n", b"CC:z@y\r\n", ["repeated"]),
        (b"Content-Type: a/b\r\nContent-type: c/d\r\n", b"Content-Type: a/b\r\nX-Original-Content-type: c/d\r\n", ["renamed"]),
        (b"Received: x\r\nReceived: x\r\nX: y\r\nX: y\r\n", b"Received: x\r\nReceived: x\r\nX: y\r\nX: y\r\n", []),
        (b"Bcc : x\r\n\t\r\nX-Relay-Tag : a\x07\r\n", b"", ["blank_before_colon", "blank_line"]),
        (b"X: \xff\xc2\x85\r\n", b"X: \xff\xc2\x85\r\n", []),
    ],
)  # fmt: skip
def test_what_is_put_right(said: bytes, kept: bytes, what: list[str]) -> None:
    head, body, found = taken(said + FROM + b"\r\nbody\r\n")
    assert (head.kept, body, found) == (kept + FROM + b"\r\n", b"body\r\n", what)
    assert all(fault.outcome is Outcome.REPAIRED for fault in head.faults)


def test_an_option_is_judged_as_it_came() -> None:
    head, _, what = taken(FROM + b"X-Relay-Tag: a\x07\r\n\r\n")
    assert head.options == {"tag": "a\x07"}
    assert what == []


@pytest.mark.parametrize(
    ("said", "kept", "body", "what"),
    [
        (FROM + b"oops\r\nTo: x@y\r\n\r\nbody\r\n", FROM, b"oops\r\nTo: x@y\r\n\r\nbody\r\n", ["not_a_field"]),
        (FROM + b"S\xc3\xbc: x\r\n\r\n", FROM, b"S\xc3\xbc: x\r\n\r\n", ["not_a_field"]),
        (FROM + b"\x1bX: x\r\n\r\n", FROM, b"\x1bX: x\r\n\r\n", ["not_a_field"]),
        (FROM + b"From me Mon\r\n\r\n", FROM, b"From me Mon\r\n\r\n", ["not_a_field"]),
        (FROM, FROM, b"", []),
        (b" x\r\n" + FROM + b"\r\n", b"", b" x\r\n" + FROM + b"\r\n", ["not_a_field", "no_from"]),
        (b"Hello!\r\n", b"", b"Hello!\r\n", ["not_a_field", "no_from"]),
        (b"From here on\r\nit is text\r\n", b"", b"From here on\r\nit is text\r\n", ["not_a_field", "no_from"]),
        (b"\r\nHello!\r\n", b"", b"Hello!\r\n", ["no_from"]),
        (b"", b"", b"", ["no_from"]),
        (b"From:\r\nX: y\r\n\r\n", b"X: y\r\n", b"", ["no_from"]),
        (b"From: \r\nX: y\r\nFrom:\r\n \r\n\r\n", b"X: y\r\n", b"", ["blank_line", "repeated", "no_from"]),
        (b"From:\r\n" + FROM + b"\r\n", FROM, b"", ["repeated"]),
        (b"From: root\r\n\r\n", b"From: root\r\n", b"", ["unread_from"]),
    ],
)
def test_where_the_header_ends_and_who_wrote_it(said: bytes, kept: bytes, body: bytes, what: list[str]) -> None:
    head, rest, found = taken(said)
    assert (head.kept, rest, found) == (kept + b"\r\n", body, what)


@pytest.mark.parametrize("name", [b"From", b"Sender"])
def test_two_authors_cannot_be_put_right(name: bytes) -> None:
    for second in (b"x@y.example", b"A <a@b.example>", b"a@b.example,\r\n x@y.example"):
        head = read_head(name + b": a@b.example\r\n" + name + b": " + second + b"\r\n\r\n")
        (fault,) = head.faults
        assert (fault.outcome, fault.line) == (Outcome.REFUSED, 2)
        assert "names somebody else" in fault.text
    head = read_head(name + b": a@b.example\r\n" + name.lower() + b":   a@b.example \r\n\r\n")
    assert (head.kept, head.faults[0].outcome) == (name + b": a@b.example\r\n\r\n", Outcome.REPAIRED)


@pytest.mark.parametrize("private", [b"Bcc", b"bcc ", b"RESENT-BCC", b"X-Relay-Tag", b"x-relay-"])
@pytest.mark.parametrize(
    ("before", "line"),
    [(FROM + b"oops\r\n", 2), (b"oops\r\n", 1), (b" oops\r\n", 1), (b"\r\n", 1), (b"\r\n\r\n\r\nX: y\r\n", 1)],
)
def test_a_header_that_ends_too_soon_shows_nothing(before: bytes, line: int, private: bytes) -> None:
    content = before + private + b": x\r\nTo: y\r\n\r\n"
    with pytest.raises(BadMessage, match=rf"line {line} is no header field, so {private.strip().decode()} in line"):
        split(content)
    with pytest.raises(BadMessage, match="would be text"):
        split(content + b"x" * MAX_HEAD, complete=False)
    if before.strip():
        split(before + b"\r\n" + content)  # behind an empty line it is the sender's own text


def test_where_it_is_and_how_often_is_told() -> None:
    head = read_head(b"From: a@b.example\r\nA : x\r\nB : x\r\n y\r\nC: \x07\r\n\r\n")
    assert [(f.what, f.line, f.count) for f in head.faults] == [
        ("blank_before_colon", 2, 2),
        ("control_character", 5, 1),
    ]
    assert head.faults[0].text == "line 2: white space between A and its colon; remove it (RFC 5322 section 2.2)"
    assert head.faults[1].text == "line 5: C has the control character 0x07; remove it"
    text = faults(read_head(FROM), FROM, True)[0].text
    assert text == "line 2: no header field, nor empty; end the header with an empty line (RFC 5322 section 2.1)"


def test_where_a_large_header_ends_does_not_depend_on_how_much_of_the_body_is_here() -> None:
    for head, start in [
        (FROM + b"X: " + b"x" * 200_000 + b"\r\noops\r\n", 200_024),
        (b"X: y\r\n" * 4000 + b"oops\r\n" + b"X: y\r\n" * 60_000, 24_000),
        (b"oops\r\n", 0),
        (FROM, 19),  # one line of text without an end
        (FROM + b"X: " + b"x" * 250_000 + b"\r\n", 250_024),
    ]:
        for more in (MAX_HEAD - len(head) + 1, MAX_HEAD, 2 * MAX_HEAD):
            for complete in (False, True):
                assert split(head + b"y" * more, complete) == start
    for size in range(MAX_HEAD - 300, MAX_HEAD + 10, 7):  # a line that the limit cuts is no end
        found = set()
        for more in (300, 1000, 5000):
            content = b"X: " + b"x" * (size - 5) + b"\r\n" + b"Y" * 150 + b": z\r\n" + b"Z: z\r\n" * 1000
            for complete in (False, True):
                try:
                    found.add(split(content[: size + more] if not complete else content, complete))
                except BadMessage as error:
                    found.add(error.code)
        assert found == {552}, size


NAMES = st.sampled_from(
    [n for once in sorted(ONCE) for n in (once, once.title())] + [b"Received", b"X", b"Bcc", b"X-Relay-Tag", b"From "]
)
PIECES = st.one_of(
    NAMES,
    st.sampled_from([b":", b": ", b" :", b"\r\n", b"\r\n ", b"\r\n\t", b"\r\n\r\n", b"\r", b"\n", b" ", b"\t", b"\x1b", b"\x0b", b"\x0c",
                     b"\x85", b"\x1c", b"\x7f", b"\xff", b"a@b.example", b"x", b",", b">From x", b"From x\r\n", b"\xe2\x80\xa8", b"<"]),
    st.binary(max_size=8).map(lambda b: b.replace(b"\0", b"")),
)  # fmt: skip
CONTENT = st.one_of(
    st.lists(PIECES, max_size=40).map(b"".join),
    st.lists(
        st.tuples(NAMES, st.sampled_from([b":", b": ", b" : "]), PIECES, st.just(b"\r\n")).map(b"".join), max_size=12
    ).map(lambda lines: b"".join(lines) + b"\r\nbody"),
)


def fields(items: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """As all readers are compared: names in lower case, values unfolded."""
    return [(name.lower(), value.replace(b"\r\n", b"").strip()) for name, value in items]


def as_email(text: bytes) -> list[tuple[bytes, bytes]]:
    found = BytesHeaderParser().parsebytes(text)
    assert not found.defects, found.defects
    return [(name.encode(), value.encode("ascii", "surrogateescape")) for name, value in found.raw_items()]


@settings(max_examples=3000, deadline=None)
@given(CONTENT)
@example(b"From : x\r\n\r\n")
@example(b">From : x\r\n\r\n")
@example(b"Subject: a\r\n\x0b\r\n b\r\n\r\n")
@example(b"To: a\r\nTo:\r\n \r\n b\r\n\r\n")
@example(b"To:\r\n \x0b\r\nTo: b\r\n\r\n")
@example(b"Subject:\x01\r\nSubject: \x02x\r\nSubject: x\r\n\r\n")
def test_all_readers_agree(said: bytes) -> None:
    content, _ = DataReader().feed(said + b"\r\n.\r\n")
    try:
        head, body, _ = taken(content)
    except BadMessage:
        return  # Bcc would be seen
    if not head.has_from:
        head.add_from("ä@b.example")
    more = prefix(head, queue_id="1PGWBZ00001", hostname="relay.test", helo="x", client="", protocol="ESMTP", now=1.0)
    whole = more + head.kept
    again = read_head(whole)
    assert again.kept == whole
    assert again.faults == []
    assert again.from_ == head.from_
    ours = fields(again.fields)
    names = [name for name, _ in ours]
    assert all(names.count(name) <= 1 for name in ONCE) and {"from", "date", "message-id"} <= {
        n.decode() for n in names
    }
    assert split(whole + body) == len(whole)
    theirs, rest = dkim.rfc822_parse(whole + body)
    assert rest == body
    assert fields([(name, value) for name, value in theirs]) == ours
    assert fields(as_email(whole + body)) == ours
    assert not re.search(rb"[\0-\x08\x0b\x0c\x0e-\x1f\x7f]|\r\n[ \t]+\r\n", whole)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
def test_reading_whatever_never_raises(head: bytes) -> None:
    kept = read_head(head).kept
    assert read_head(kept).kept == kept


HOSTILE = {
    "blanks before colons": b"X : y\r\n" * 4990,
    "control characters": b"X: " + b"\x01" * 250_000 + b"\r\n",
    "control characters in options": b"X-Relay-Tag: " + b"\x01" * 250_000 + b"\r\n",
    "lines of blanks": b"X: y\r\n" + b" \r\n" * 4980,
    "long lines of blanks": b"X: y\r\n" + (b" " * 5000 + b"\r\n") * 50,
    "many lists": b"".join(b"To: a%d@b.example\r\n" % i for i in range(4980)),
    "many subjects": b"".join(b"Subject: %d\r\n" % i for i in range(4980)),
    "one subject": b"Subject: x\r\n" * 4980,
    "authors": b"".join(b"From: a%d@b.example\r\n" % i for i in range(4980)),
    "mbox lines": b"From x\r\n" * 4000 + b"X: y\r\n",
    "mbox lines and no field": b"From x\r\n" * 25_000,
    "mbox blanks": (b"From " + b" " * 5000 + b"\r\n") * 50 + b"X: y\r\n",
    "names without a colon": b"X: y\r\n" + b"x" * 250_000,
    "blanks without a colon": b"X: y\r\nX" + b" " * 250_000 + b"\r\n",
    "empty lines": b"\r\n" * 130_000,
    "options' names": b"\r\n" + (b"x-relay-" + b"y" * 200 + b"\r\n") * 1200,
    "blanks behind Bcc": b"\r\n" + (b"Bcc" + b" " * 60 + b"\r\n") * 4000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_is_wrong_takes_no_time(name: str) -> None:
    content = HOSTILE[name] + b"\r\nbody" + b"x" * MAX_HEAD

    def look() -> None:
        for complete in (True, False):
            start = split(content, complete)
            if start < MAX_HEAD and content[:start].count(b"\r\n") < MAX_FIELDS:
                head = read_head(content[:start])
                assert len(head.faults) <= 3
                assert len(head.kept) <= start + 12 * MAX_FIELDS

    within(2.0, look)
