"""What a message says of itself: Bcc and X-Relay-* gone however they are written, options, caps, linear work."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay import submission
from relay.submission import (
    MAX_FIELDS,
    MAX_HEAD,
    MAX_HOPS,
    MAX_VALUE,
    BadMessage,
    Options,
    decoded,
    from_address,
    read_head,
    read_options,
    split,
)
from relay.trace import prefix
from tests.pace import within

NOW = 1_800_000_000.0
ALL = frozenset({"class", "priority", "send_at", "tag", "idempotency_key", "route"})


@pytest.mark.parametrize(
    "field",
    [
        b"Bcc: a@b.c\r\n",
        b"BCC:a@b.c\r\n",
        b"bCc : a@b.c\r\n",
        b"bcc\t:\r\n",
        b"Bcc:\r\n a@b.c,\r\n\td@e.f\r\n",
        b"Resent-Bcc: a@b.c\r\n",
        b"RESENT-BCC:\r\n  a@b.c\r\n",
        b"X-Relay-Tag: t\r\n",
        b"x-relay-anything: t\r\n \r\n\tmore\r\n",
        b"X-Relay-: t\r\n",
    ],
)
def test_what_is_removed(field: bytes) -> None:
    for head in (
        field + b"To: x\r\n y\r\n\r\n",
        b"To: x\r\n y\r\n" + field + b"\r\n",
        field + b"To: x\r\n y\r\n" + field,
    ):
        assert read_head(head).kept == b"To: x\r\n y\r\n\r\n"


@pytest.mark.parametrize(
    "field",
    [b"Bccx: a\r\n", b"X-Bcc: a\r\n", b"XBcc: a\r\n", b"X-Relay: a\r\n", b"X-Relayed-By: a\r\n", b"Received: x\r\n"],
)
def test_what_stays(field: bytes) -> None:
    assert read_head(field + b"\r\n").kept == field + b"\r\n"


NAMES = st.sampled_from([b"Received", b"bcc", b"Resent-Bcc", b"X-Relay-Tag", b"x-SUBJECT", b"Resent-From", b"x"])
VALUE = st.binary(max_size=20).map(lambda b: re.sub(rb"[\0-\x08\x0a-\x1f\x7f]", b"", b) + b".")
FIELDS = st.lists(st.tuples(NAMES, st.lists(VALUE, min_size=1, max_size=3)), max_size=12)


@given(FIELDS)
def test_all_other_fields_stay_byte_for_byte(fields: list[tuple[bytes, list[bytes]]]) -> None:
    written = [(name, name + b":" + b"\r\n ".join(values) + b"\r\n") for name, values in fields]
    kept = read_head(b"".join(text for _, text in written) + b"\r\n").kept
    assert kept == b"".join(t for n, t in written if n not in (b"bcc", b"Resent-Bcc", b"X-Relay-Tag")) + b"\r\n"


@pytest.mark.parametrize(
    ("content", "start"),
    [
        (b"", 0),
        (b"\r\n", 2),
        (b"\r\nbody", 2),
        (b"A: b\r\n\r\nbody", 8),
        (b"A: b\r\n", 6),
        (b"no header here\r\n\r\nx", 0),
        (b" folded\r\nA: b\r\n\r\n", 0),
        (b"From me Mon\r\nA: b\r\n\r\nx", 21),
        (b"From me Mon\r\n>From me Tue\r\nA: b\r\n\r\nx", 35),
        (b">From me\r\n\r\nx", 0),  # no line of an mbox file: no field follows
        (b"From where I stand\r\nall is well\r\n", 0),
        (b"From : x@y.example\r\n\r\nx", 22),
        (b"A: b\r\nbroken\r\n\r\nx", 6),
        (b"A: b\r\n c\r\nbroken: \r\nS\xc3\xbc: x\r\n\r\nx", 20),
        (b"A: b\r\n: x\r\n\r\nx", 6),
        (b"A: b\r\nB" + b" " * 50 + b": x\r\n\r\nx", 64),
        (b"A: b\r\nB" + b" " * 51 + b": x\r\n\r\nx", 6),
        (b"A: b\r\n" + b"B" * 201 + b": x\r\n\r\nx", 6),
        (b"A: b\r\n \r\n\t\r\nB: c\r\n\r\nx", 20),
        (b"A: b\r\nFrom me Mon\r\n\r\nx", 6),
        (b"A: b\r\nlast", 6),
    ],
)
def test_where_the_body_starts(content: bytes, start: int) -> None:
    assert split(content) == start


def test_caps() -> None:
    with pytest.raises(BadMessage, match="256 KiB"):
        split(b"A: " + b"x" * MAX_HEAD + b"\r\n\r\n")
    with pytest.raises(BadMessage):
        split(b"A: b\r\n", complete=False)
    assert split(b"A: b\r\n\r\n" + b"x" * 2 * MAX_HEAD) == 8
    read_head(b"A: b\r\n" * (MAX_FIELDS - 2) + b"\r\n")
    with pytest.raises(BadMessage, match=str(MAX_FIELDS)):
        read_head(b"A: b\r\n" * (MAX_FIELDS + 1) + b"\r\n")
    assert read_head(b"Received: x\r\n" * MAX_HOPS + b"\r\n").hops == 50
    with pytest.raises(BadMessage) as told:
        read_head(b"RECEIVED : x\r\n" * (MAX_HOPS + 1) + b"\r\n")
    assert (told.value.code, told.value.enhanced) == (554, "5.4.6")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("a@b.c", "a@b.c"),
        ("App <a@b.c>", "a@b.c"),
        ('"x, y" <a@b.c>, d@e.f', "a@b.c"),
        ("a@b.c (comment)", "a@b.c"),
        ("=?utf-8?q?=C3=A9?= <a@b.c>", "a@b.c"),
        ("undisclosed-recipients:;", ""),
        ("", ""),
        ("nobody", ""),
        ('"a\x1b[31m"@b.c', ""),
        ('"a\x85b"@c.d', ""),
    ],
)
def test_from(value: str, found: str) -> None:
    assert from_address(value) == found


@pytest.mark.parametrize(
    "piece", ["(", "((((", "<", '"', "\\", "a@b,", ":", ";", "[", "=?", "@", "(\\", '"(', "é(", ",", "<("]
)
def test_a_hostile_from_is_no_exception(piece: str) -> None:
    for value in (piece * 1000, piece * 1000 + "a@b.c", "a@b.c" + piece * 1000):
        assert from_address(value[:1000]).isprintable()


@settings(max_examples=300)
@given(st.text(max_size=80))
def test_from_never_raises(value: str) -> None:
    assert from_address(value).isprintable()


def options(text: str, honour: frozenset[str] = ALL) -> tuple[Options, list[str]]:
    return read_options(read_head(text.encode() + b"\r\n\r\n"), honour, NOW)


def test_options() -> None:
    found, ignored = options(
        "X-Relay-Class: bulk\r\nx-relay-priority: HIGH\r\nX-Relay-Send-At: 2027-01-15T09:00:00+01:00\r\n"
        "X-Relay-Tag:  order-7 \r\nX-Relay-Idempotency-Key: k\r\n 2\r\nX-Relay-Route: shop\r\nX-Relay-What: 1"
    )
    assert found == Options("bulk", 1, 1_800_000_000.0, "order-7", "k 2", "shop")
    assert ignored == ["x-relay-what: unknown"]


def test_options_that_are_not_honoured_are_told_and_not_even_checked() -> None:
    found, ignored = options("X-Relay-Priority: nonsense\r\nX-Relay-Tag: t", frozenset({"tag"}))
    assert found == Options(tag="t")
    assert ignored == ["x-relay-priority: not honoured by this listener"]


@pytest.mark.parametrize(
    ("text", "value"), [("immediate", 0), ("HIGH", 1), ("normal", 2), ("Low", 3), ("0", 0), ("3", 3)]
)
def test_priorities(text: str, value: int) -> None:
    assert options(f"X-Relay-Priority: {text}")[0].priority == value


@pytest.mark.parametrize(
    "text",
    ["X-Relay-Priority: 4", "X-Relay-Priority: ²", "X-Relay-Tag:", "X-Relay-Tag: " + "x" * 201, "X-Relay-Tag: a\x07",
     "X-Relay-Send-At: now", "X-Relay-Send-At: 2027-01-15T09:00:00", "X-Relay-Send-At: 2029-01-15T09:00:00Z",
     "X-Relay-Send-At: 9999-12-31T23:59:59-23:59"],
)  # fmt: skip
def test_options_that_make_no_sense(text: str) -> None:
    with pytest.raises(BadMessage) as told:
        options(text)
    assert (told.value.code, told.value.enhanced) == (554, "5.6.0")


@settings(max_examples=200)
@given(st.sampled_from(["Class", "Priority", "Send-At", "Tag", "Idempotency-Key", "Route"]), st.text(max_size=40))
def test_any_value_is_taken_or_refused(name: str, value: str) -> None:
    try:
        options(f"X-Relay-{name}: " + re.sub(r"[\r\n\ud800-\udfff]", "", value))
    except BadMessage:
        return


def made(text: bytes, **more: str) -> bytes:
    words = {
        "queue_id": "1PGWBZ00001",
        "hostname": "relay.test",
        "helo": "x",
        "client": "127.0.0.1",
        "protocol": "ESMTP",
    }
    return prefix(read_head(text), now=NOW, **(words | more))


def test_prefix() -> None:
    found = made(b"\r\n").decode().split("\r\n")
    assert found[:2] == ["Received: from x ([127.0.0.1])", "\tby relay.test with ESMTP id 1PGWBZ00001;"]
    assert re.fullmatch(r"\t\w{3}, \d\d Jan 2027 \d\d:00:00 [+-]\d{4}", found[2])
    assert found[3] == "Date: " + found[2].strip()
    assert found[4:] == ["Message-ID: <1pgwbz00001@relay.test>", ""]
    assert made(b"DATE: x\r\nmessage-id : <y>\r\n\r\n").count(b"\r\n") == 3


@pytest.mark.parametrize("helo", ["x\r\nBcc: y", "a" * 4000, "ünï", "", "(x) by evil;", "\x1b[31m"])
def test_what_a_client_calls_itself_injects_nothing(helo: str) -> None:
    found = made(b"\r\n", helo=helo)
    assert found.count(b"\r\n") == 5
    assert max(map(len, found.split(b"\r\n"))) < 998
    assert (
        re.fullmatch(rb"Received: from [A-Za-z0-9.:_\-\[\]?]+ \(\[127\.0\.0\.1\]\)", found.split(b"\r\n")[0])
        or not helo
    )


HOSTILE = {
    "one field, folded": lambda n: b"X: y\r\n" + b" z\r\n" * n,
    "one long line": lambda n: b"From: " + b"(" * n * 40 + b"\r\n",
    "many fields": lambda n: b"X-Relay-Tag: t\r\n" * n,
    "no colon": lambda n: b"x" * 39 * n + b"\r\n",
    "blanks": lambda n: b"X" + b" " * 40 * n + b"\r\n",
    "long folds": lambda n: b"Bcc:\r\n" + b"\t" * 40 * n + b"\r\n",
    "colons": lambda n: b":" * 40 * n + b"\r\n",
}


def work(head: bytes) -> int:
    """Lines of our own code that run, and what the fields came to hold: a measure that no clock disturbs."""
    count = 0

    def trace(frame: object, event: str, _: object) -> object:
        nonlocal count
        if frame.f_code.co_filename != submission.__file__:  # type: ignore[attr-defined]
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        found = read_head(head)
    finally:
        sys.settrace(before)
    return count + sum(len(value) for _, value in found.fields) + len(head)


@pytest.mark.parametrize("name", HOSTILE)
def test_work_grows_with_the_header_and_not_faster(name: str) -> None:
    small, large = (HOSTILE[name](n) + b"\r\n" for n in (300, 2400))
    assert work(large) <= 8 * work(small) * 1.25 + 2000


def test_a_subject_is_read_in_bounded_time() -> None:
    hostile = b"=?a?b?x" * (MAX_HEAD // 7)  # each looks for its end: it was 50 s, on the thread that writes the spool
    assert len(within(2.0, lambda: decoded(hostile))) <= 2 * MAX_VALUE


def test_a_subject_in_encoded_words() -> None:
    words = b"\r\n ".join(b"=?utf-8?b?5pel5pys6Kqe5pel5pys6Kqe5pel5pys6Kqe?=" for _ in range(30))
    assert decoded(b" " + words) == "日本語" * 90
    assert decoded(b"=?nonsense?q?a?=") == "=?nonsense?q?a?="
