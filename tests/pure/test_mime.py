"""A message re-encoded for its next hop: what changes, what stays byte for byte, and what is refused."""

from __future__ import annotations

import base64
import email
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.outgoing import octets
from relay.outgoing.mime import MAX_TOLD, Converted, Unconvertible, convert, convert_file, needs
from relay.outgoing.octets import File

LONG = b"x" * 999
UMLAUT = "Viele Grüße aus dem Norden\r\n".encode()
QUOTED = b"Viele Gr=C3=BC=C3=9Fe aus dem Norden\r\n"


def payloads(content: bytes) -> list[tuple[str, object]]:
    """What the stdlib's parser makes of a message: the type of each part, and what it says when it is decoded."""
    return [
        (part.get_content_type(), None if part.is_multipart() else part.get_payload(decode=True))
        for part in email.message_from_bytes(content).walk()
    ]


def converted(head: bytes, body: bytes, seven_bit: bool = True) -> Converted:
    """Converts, and looks whether what must always be true is."""
    made = convert(head, body, seven_bit=seven_bit)
    assert not needs(made.head, made.body, seven_bit=seven_bit)
    assert payloads(made.head + made.body) == payloads(head + body)
    again = convert(made.head, made.body, seven_bit=seven_bit)
    assert again.head is made.head and again.body is made.body and again.done == ()
    return made


def multipart(*parts: bytes, kind: bytes = b"mixed", mark: bytes = b"b", extra: bytes = b"") -> tuple[bytes, bytes]:
    head = b"MIME-Version: 1.0\r\nContent-Type: multipart/%s; boundary=%s\r\n%s\r\n" % (kind, mark, extra)
    return head, b"".join(b"--" + mark + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + mark + b"--\r\n"


# -- nothing to do


@pytest.mark.parametrize("seven_bit", [True, False])
def test_a_message_that_is_good_is_given_back_as_it_is(seven_bit: bool) -> None:
    head, body = b"Subject: x\r\nContent-Transfer-Encoding: 8bit\r\n\r\n", b"x" * 998 + b"\r\n--b\r\n"
    made = convert(head, body, seven_bit=seven_bit)
    assert made.head is head and made.body is body and made.done == ()


def test_eight_bits_stay_where_they_are_taken() -> None:
    head, body = "Subject: Grüße\r\n\r\n".encode(), UMLAUT
    made = convert(head, body, seven_bit=False)
    assert made.head is head and made.body is body


# -- one part


def test_text_becomes_quoted_printable() -> None:
    body = "Viele Grüße = 1\r\n--b\r\nFrom here \r\n.\r\n".encode()
    made = converted(b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nX: y\r\n\r\n", body)
    assert made.head == (
        b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nX: y\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\n"
    )
    assert made.body == b"Viele Gr=C3=BC=C3=9Fe =3D 1\r\n=2D-b\r\n=46rom here=20\r\n.\r\n"
    assert made.done == ("message: 8bit -> quoted-printable",)


def test_the_encoding_is_replaced_where_it_stands_each_time() -> None:
    head = (
        b"content-transfer-encoding:\r\n 8bit\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: binary\r\n\r\n"
    )
    made = converted(b"Mime-version: 1.0\r\n" + head, UMLAUT)
    assert made.head == (
        b"Mime-version: 1.0\r\nContent-Transfer-Encoding: quoted-printable\r\nContent-Type: text/plain\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (UMLAUT, b"Content-Type: text/plain; charset=utf-8\r\n"),
        (b"Viele Gr\xfc\xdfe\r\n", b"Content-Type: text/plain; charset=iso-8859-1\r\n"),
        (LONG, b""),  # ASCII is what it is without a label
    ],
)
@pytest.mark.parametrize("head", [b"\r\n", b"Subject: x\r\n\r\n"])
def test_text_that_nobody_labelled(head: bytes, text: bytes, label: bytes) -> None:
    made = convert(head, text, seven_bit=True)
    added = b"MIME-Version: 1.0\r\n" + label + b"Content-Transfer-Encoding: quoted-printable\r\n"
    assert made.head == head[:-2] + added + b"\r\n"


@pytest.mark.parametrize("ended", [b"\r\n", b""])
@pytest.mark.parametrize("kind", [b"image/png", b"application/json", b"message/global", b"text/plain"])
def test_what_is_no_text_or_hardly_ascii_becomes_base64(kind: bytes, ended: bytes) -> None:
    body = "ΑΒΓ\r\n".encode() * 100 + ended
    made = convert(b"Content-Type: " + kind + b"\r\n\r\n", body, seven_bit=True)
    assert b"Content-Transfer-Encoding: base64\r\n" in made.head
    assert base64.b64decode(made.body) == body
    assert made.body.endswith(b"\r\n") and max(map(len, made.body.split(b"\r\n"))) == 76


@pytest.mark.parametrize("seven_bit", [True, False])
@pytest.mark.parametrize("kind", [b"text/html", b"application/x-tar"])
def test_a_line_that_is_too_long(kind: bytes, seven_bit: bool) -> None:
    made = converted(b"Content-Type: " + kind + b"\r\n\r\n", b"short\r\n" + LONG + b"\r\n", seven_bit)
    new = "quoted-printable" if kind.startswith(b"text") else "base64"
    assert made.done == (f"message: 7bit -> {new}",)
    assert max(map(len, made.body.split(b"\r\n"))) <= 76


def test_quoted_printable_that_breaks_its_own_rules() -> None:
    head = b"Content-Type: text/plain\r\nContent-Transfer-Encoding: Quoted-Printable\r\n\r\n"
    made = converted(head, b"a=\r\nb =41 1=2 \r\n" + b"=3D" * 400 + b"\r\nf\xfcr\r\n=e4=E4\r\nend=")
    assert made.head == head
    lines = made.body.split(b"\r\n")
    assert lines[:2] == [b"a=", b"b =41 1=3D2 "]
    assert lines[-3:] == [b"f=FCr", b"=e4=E4", b"end="]
    assert made.done == ("message: quoted-printable mended",)


def test_base64_with_lines_that_are_too_long() -> None:
    head = b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    coded = base64.b64encode(bytes(range(256)) * 10)
    made = converted(head, b"YWJj\r\n" + coded + b"\r\n", False)
    assert made.head == head and made.body.replace(b"\r\n", b"") == b"YWJj" + coded
    assert made.done == ("message: lines of base64 broken",)


@pytest.mark.parametrize("body", [b"YWJj\r\nK\xfche\r\n", b"YWJj" * 300 + b"--" + b"YWJj" * 300])
def test_base64_that_is_none(body: bytes) -> None:
    with pytest.raises(Unconvertible, match="base64"):
        convert(b"Content-Transfer-Encoding: base64\r\n\r\n", body, seven_bit=True)


def test_what_uuencode_made_is_not_encoded_again() -> None:
    with pytest.raises(Unconvertible, match="x-uuencode"):
        convert(b"Content-Transfer-Encoding: x-uuencode\r\n\r\n", UMLAUT, seven_bit=True)


@pytest.mark.parametrize("label", [b"8-bit", b"utf-8", b'"8bit"', b"none", b""])
def test_an_encoding_that_nobody_knows_is_none(label: bytes) -> None:
    made = converted(b"Content-Type: text/plain\r\nContent-Transfer-Encoding: " + label + b"\r\n\r\n", UMLAUT)
    assert b"Content-Transfer-Encoding: quoted-printable\r\n" in made.head


# -- several parts


def test_only_the_parts_that_need_it_change() -> None:
    plain = b'X-Odd :  folded\r\n\tso\r\nContent-type: TEXT/plain;\r\n  charset="us-ascii"\r\n\r\nline  \r\n'
    picture = b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\nYWJj"
    text = b"Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\nX: y\r\n\r\n" + UMLAUT
    head, body = multipart(plain, text, picture)
    body = (
        b"a preamble\r\n"
        + body.replace(b"--b\r\nContent-Type: image", b"--b \t\r\nContent-Type: image")
        + b"an epilogue"
    )
    made = converted(head, body)
    assert made.head is head
    new = text.replace(b"8bit", b"quoted-printable").replace(UMLAUT, QUOTED)
    assert made.body == body.replace(text, new)
    assert made.done == ("part 2: 8bit -> quoted-printable",)


def test_labels_of_what_holds_a_part() -> None:
    inner_head, inner = multipart(b"\r\n" + UMLAUT, mark=b"i", extra=b"Content-Transfer-Encoding: binary\r\n")
    within = b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + inner_head + inner
    clean = b"Content-Type: multipart/mixed; boundary=c\r\nContent-Transfer-Encoding: 8bit\r\n\r\n--c\r\n\r\nx\r\n--c--"
    head, body = multipart(within, clean, extra=b"Content-Transfer-Encoding: 8BIT\r\n")
    made = converted(head, body)
    assert made.head == head.replace(b"8BIT", b"7bit")
    assert made.body.startswith(
        b"--b\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: 7bit\r\n\r\nMIME-Version"
    )
    assert (
        b"boundary=i\r\nContent-Transfer-Encoding: 7bit\r\n\r\n--i\r\nContent-Type: text/plain; charset=utf-8\r\n"
        in made.body
    )
    assert clean in made.body
    assert made.done == (
        "message: 8bit -> 7bit",
        "part 1: 8bit -> 7bit",
        "part 1.1: binary -> 7bit",
        "part 1.1.1: 8bit -> quoted-printable",
    )


def test_a_binary_multipart_is_8bit_where_that_is_taken() -> None:
    head, body = multipart(b"\r\n" + LONG, b"\r\n" + UMLAUT, extra=b"Content-Transfer-Encoding: binary\r\n")
    made = converted(head, body, False)
    assert made.head == head.replace(b"binary", b"8bit")
    assert UMLAUT in made.body


def test_the_boundary_of_an_outer_part_ends_the_inner_ones() -> None:
    inner = b"Content-Type: multipart/mixed; boundary=bi\r\n\r\n--bi\r\n\r\n" + UMLAUT
    head, body = multipart(inner, b"\r\n--b--b\r\n --b\r\n--bi\r\n" + UMLAUT)
    made = converted(head, body)
    assert made.done == ("part 1.1: 8bit -> quoted-printable", "part 2: 8bit -> quoted-printable")
    assert made.body.endswith(b"\r\n=2D-b--b\r\n --b\r\n=2D-bi\r\n" + QUOTED + b"\r\n--b--\r\n")


@pytest.mark.parametrize("text", [b"", UMLAUT, b"Grundig = gut: \xfc\r\nb\r\n", "Grüße: x\r\n".encode()])
@pytest.mark.parametrize("head", [b"", b"Content-Type: text/plain\r\n"])
def test_a_part_without_its_empty_line(head: bytes, text: bytes) -> None:
    whole, body = multipart(head + b"no field\r\n" + text + UMLAUT)
    made = converted(whole, body)
    assert b"\r\n\r\nno field\r\n" in made.body


def test_text_outside_of_the_parts_is_spelled() -> None:
    head, body = multipart(b"\r\nx")
    before, behind = "Für alte Leser = alt\r\nplain".encode(), b"\xfc" + LONG
    made = converted(head, before + b"\r\n" + body + behind)
    assert made.body.startswith(b"F=C3=BCr alte Leser = alt\r\nplain\r\n--b\r\n\r\nx\r\n--b--\r\n=FCxxx")
    assert made.done == ("message: text outside of its parts spelled in ASCII",) * 2


def test_a_line_that_is_broken_starts_no_part() -> None:
    for at in range(60, 80):
        text = b"x" * at + b"--b--" + b"x" * 1000
        head, body = multipart(b"\r\n" + text, b"\r\n" + LONG)
        assert len(payloads(b"".join((converted(head, text + b"\r\n" + body).head, body)))) == 3


def test_a_status_report_is_text_like_a_header_block() -> None:
    status = "Reporting-MTA: dns; x\r\n\r\nDiagnostic-Code: smtp; 550 Empfänger unbekannt\r\nStatus: 5.0.0\r\n".encode()
    head, body = multipart(
        b"Content-Type: message/delivery-status\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + status, kind=b"report"
    )
    made = convert(head, body, seven_bit=True)
    assert b"Diagnostic-Code: smtp; 550 =?utf-8?b?RW1wZsOkbmdlcg==?= unbekannt\r\nStatus: 5.0.0\r\n" in made.body
    assert b"Content-Type: message/delivery-status\r\nContent-Transfer-Encoding: 7bit\r\n\r\nReporting" in made.body
    assert made.done == ("part 1: 8bit -> 7bit", "part 1: Diagnostic-Code in ASCII")


def test_what_is_told_is_bounded() -> None:
    made = converted(*multipart(*[b"\r\n" + UMLAUT] * 50))
    assert len(made.done) == MAX_TOLD + 1 and made.done[-1] == f"and {50 - MAX_TOLD} more"


# -- what is refused


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (b"multipart/signed; boundary=b", "multipart/signed"),
        (b"multipart/encrypted; boundary=b", "multipart/encrypted"),
        (b"multipart/mixed", "without a boundary"),
        (b"multipart/mixed; boundary=*", "begins no part"),
        (b"multipart/mixed; boundary*=idna''b", "without a boundary"),
        (b"multipart/mixed; x=" + b"y" * 1968 + b"; boundary=bb", "without a boundary"),
        (b"multipart/mixed" + b"; x=y" * 60 + b"; boundary=b", "without a boundary"),
        (b"message/partial", "message/partial"),
        (b"message/external-body", "message/external-body"),
        (b"message/rfc822\r\nContent-Transfer-Encoding: quoted-printable", "must not have"),
    ],
)
@pytest.mark.parametrize("bad", [UMLAUT, LONG])
def test_what_must_stay_as_it_is(kind: bytes, why: str, bad: bytes) -> None:
    part = b"Content-Type: " + kind + b"\r\n\r\n--b\r\n\r\n%s\r\n--b--"
    head, body = multipart(part % b"x", mark=b"o")
    for seven_bit in (True, False):
        good = convert(head, body.replace(b"--o--", b"--o\r\n\r\n" + LONG + b"\r\n--o--"), seven_bit=seven_bit)
        assert part % b"x" in good.body or len(kind) > 998  # the part itself may stand beside one that changes
        if bad is LONG or seven_bit:
            with pytest.raises(Unconvertible, match=f"part 1: .*{why}"):
                convert(head, multipart(part % bad, mark=b"o")[1], seven_bit=seven_bit)


def test_where_readers_disagree_what_the_body_is() -> None:
    with pytest.raises(Unconvertible, match="no field"):
        convert(b"Subject: x\r\nno field\r\nTo: y\r\n\r\n", UMLAUT, seven_bit=True)
    assert convert(b"From x Mon\r\nTo: y\r\n\r\n", UMLAUT, seven_bit=True).done


# -- in a file


@pytest.fixture(name="both")
def _both(tmp_path: Path) -> Callable[[bytes, bytes, bool], Converted]:
    """Converts in memory and in a file, which must be the same."""

    def both(head: bytes, body: bytes, seven_bit: bool) -> Converted:
        source, target = tmp_path / "source", tmp_path / "target"
        target.unlink(missing_ok=True)
        source.write_bytes(body)
        made = convert(head, body, seven_bit=seven_bit)
        new, done = convert_file(head, source, target, seven_bit=seven_bit)
        written = target.read_bytes() if target.exists() else body
        assert (new, written, done) == (made.head, made.body, made.done)
        assert target.exists() == (made.body is not body)
        return made

    return both


def test_a_body_in_a_file(both: Callable[[bytes, bytes, bool], Converted]) -> None:
    assert both(b"X: y\r\n\r\n", b"", True).done == ()
    assert both(b"X: y\r\n\r\n", b"x", True).done == ()
    assert both("Subject: ü\r\n\r\n".encode(), b"x", True).done
    assert both(b"X: y\r\n\r\n", UMLAUT * 100_000, True).done
    parts = [
        b"\r\n" + UMLAUT * 60_000,
        b"Content-Type: image/png\r\n\r\n" + b"\xff" * 600_000,
        b"\r\n" + b"=" * 800_000,
    ]
    head, body = multipart(*parts)
    made = both(head, body, True)
    assert len(made.done) == 3
    assert payloads(made.head + made.body) == payloads(head + body)


def test_a_file_that_cannot_be_made_clean_says_why(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(UMLAUT)
    with pytest.raises(Unconvertible, match="multipart/signed"):
        convert_file(
            b"Content-Type: multipart/signed; boundary=b\r\n\r\n", tmp_path / "source", tmp_path / "t", seven_bit=True
        )
    with pytest.raises(OSError):
        convert_file(b"\r\n", tmp_path / "missing", tmp_path / "t", seven_bit=True)


def test_a_file_that_has_shrunk_is_an_error_of_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"x" * 100)
    with path.open("rb") as file:
        source = File(file)
        path.write_bytes(b"x" * 50)
        with pytest.raises(OSError, match="ends after 50"):
            source.cut(0, 80)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                b"a",
                b"=",
                b"==",
                b"=41",
                b"--b",
                b" ",
                b"\r\n",
                b"x" * 1100,
                b"\xfc",
                b"=\r\n",
                b"-" * 300,
                b"YQ==" * 300,
            ]
        ),
        max_size=30,
    ),
    st.sampled_from([b"8bit", b"quoted-printable"]),
    st.integers(1003, 1300),
)
def test_pieces_cut_nothing(words: list[bytes], encoding: bytes, size: int) -> None:
    """The octets are worked on in pieces: no line, token or boundary shows where one ended."""
    text = re.sub(rb"\r\n|\r|\n", b"\r\n", b"".join(words))
    head, body = multipart(b"Content-Transfer-Encoding: " + encoding + b"\r\n\r\n" + text, mark=b"bound")
    before = octets.PIECE
    octets.PIECE = size
    try:
        converted(head, body.replace(b"text", b""), True)
    finally:
        octets.PIECE = before


def test_a_boundary_line_that_is_too_long_is_no_boundary_to_mend() -> None:
    head, body = multipart(b"\r\nx")
    with pytest.raises(Unconvertible):
        convert(head, body.replace(b"--b\r\n", b"--b" + b" " * 996 + b"\r\n", 1), seven_bit=True)


def test_what_is_told_is_printable_and_short() -> None:
    fields = b"".join(b"X-%d-%s: \xfc\r\n" % (n, b"y" * 100) for n in range(40))
    made = convert(fields + b"\r\n", b"", seven_bit=True)
    assert made.done[0].startswith("message: header X-0-yyy") and made.done[0].endswith(", … written anew")
    assert len(made.done[0]) < 500
    with pytest.raises(Unconvertible) as refused:
        convert(b"Content-Type: message/\x1b\xfc" + b"x" * 500 + b"\r\n\r\n", LONG, seven_bit=False)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 200
