"""The DATA reader: exact whatever is sent and however it is cut, smuggles nothing, linear."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.listener.data import DataReader

# Reliability research 2.1: none of these ends a message (RFC 5321 §4.1.1.4 knows CRLF "." CRLF alone).
SMUGGLING = [
    b"\n.\n",
    b"\n.\r",
    b"\r.\n",
    b"\r.\r",
    b"\n.\r\n",
    b"\r.\r\n",
    b"\r\n.\n",
    b"\r\n.\r",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n",
    b"\r\n\x00.\r\n",
    b"\r\n.\x00\r\n",
    b"\n\n.\r\n",
    b"\r\n .\r\n",
    b"\r\n.\t\r\n",
    "\r\n．\r\n".encode(),
]


def reference(wire: bytes) -> tuple[bytes, int] | None:
    """The same in the plainest words: (clean content, bytes used); None where the end has not come."""
    end = (b"\r\n" + wire).find(b"\r\n.\r\n")
    if end < 0:
        return None
    lines = wire[:end].split(b"\r\n")
    plain = b"\r\n".join(line[1:] if line.startswith(b".") else line for line in lines)
    return re.sub(rb"\r\n|\r|\n", b"\r\n", plain), end + 3


def read(wire: bytes, *cuts: int) -> tuple[bytes, int, DataReader]:
    reader, clean, used, start = DataReader(), b"", 0, 0
    for end in (*sorted(cuts), len(wire)):
        got, taken = reader.feed(wire[start:end])
        clean, used, start = clean + got, used + taken, end
        assert len(reader._held) <= 4
        if reader.done:
            break
    return clean, used, reader


PIECES = st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"..", b"a", b"\0", b"\xff", b"\r\n.", b".\r\n", b"\r\n.\r\n"])
WIRE = st.lists(PIECES, max_size=14).map(b"".join)


@settings(max_examples=400, deadline=None)
@given(WIRE, st.lists(st.integers(0, 40), max_size=5))
@example(b".\r\n", [])
@example(b"..\r\n.\r\n", [1])
@example(b"\r\n.\r\n.\r\n", [3])
@example(b"\r\0\n\r\n.\r\n", [2])
@example(b"a\r\n\0.\r\nb\r\n.\r\n", [4])
@example(b"a\r\0\nb\r\n.\r\n", [3])
def test_it_reads_what_the_reference_reads(wire: bytes, cuts: list[int]) -> None:
    clean, used, reader = read(wire, *cuts)
    expected = reference(wire)
    if expected is None:
        assert not reader.done
        assert used == len(wire)
        return
    assert reader.done
    assert (clean, used) == expected
    content = wire[: used - 3]
    assert reader.nul is (b"\0" in content)
    assert reader.ascii is content.isascii()


@settings(max_examples=100, deadline=None)
@given(WIRE)
@example(b"\r\0\n")
def test_a_cut_at_any_byte_changes_nothing(wire: bytes) -> None:
    wire += b"\r\n.\r\nQUIT\r\n"
    whole, used, reader = read(wire)
    for cut in range(len(wire)):
        again, same, other = read(wire, cut)
        assert (again, same, other.bare, other.nul, other.ascii) == (whole, used, reader.bare, reader.nul, reader.ascii)
    again, same, _ = read(wire, *range(len(wire)))
    assert (again, same) == (whole, used)


@pytest.mark.parametrize("sequence", SMUGGLING)
def test_no_smuggling_sequence_ends_the_message_and_none_is_kept_raw(sequence: bytes) -> None:
    inner = b"MAIL FROM:<smug@x.example>\r\nRCPT TO:<v@x.example>\r\nDATA\r\nSubject: smuggled\r\n\r\nx"
    wire = b"Subject: a\r\n\r\nfirst" + sequence + inner + b"\r\n.\r\n"
    for cuts in [(), *((i,) for i in range(len(wire)))]:
        clean, used, reader = read(wire, *cuts)
        assert used == len(wire)
        assert reader.done
        assert inner in clean
        assert not re.search(rb"\r(?!\n)|(?<!\r)\n", clean)
        assert reader.bare or reader.nul or sequence in (b"\r\n .\r\n", b"\r\n.\t\r\n", SMUGGLING[-1])


@pytest.mark.parametrize("sequence", [b"\r\n.\r\n", b"\r\r\n.\r\n"])
def test_the_true_end_does_end_it(sequence: bytes) -> None:
    wire = b"Subject: a\r\n\r\nfirst" + sequence
    clean, used, reader = read(wire + b"MAIL FROM:<x>\r\n")
    assert (used, reader.done) == (len(wire), True)
    assert clean == b"Subject: a\r\n\r\nfirst\r\n" + b"\r\n" * sequence.startswith(b"\r\r")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([b"", b".", b"..", b"a.", b"text"]), max_size=8))
def test_stuffing_and_unstuffing_are_inverse(lines: list[bytes]) -> None:
    """RFC 5321 §4.5.2, both ways, whatever dots there are."""
    wire = b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines) + b".\r\n"
    clean, used, reader = read(wire)
    assert clean == b"".join(line + b"\r\n" for line in lines)
    assert used == len(wire)
    assert not reader.bare


@pytest.mark.parametrize("line", [b"x", b"\r", b"\n", b"\r\n", b".\r\n", b"\r\n.", b"\r\n.\r"])
def test_what_is_held_back_does_not_grow_with_size_or_chunks(line: bytes) -> None:
    """Work is linear because no chunk is looked at twice: at most four bytes of it come back."""
    reader, out = DataReader(), 0
    for _ in range(20_000):
        clean, used = reader.feed(line)
        assert used == len(line) or reader.done
        if reader.done:
            break
        assert len(reader._held) <= 4
        out += len(clean)
        assert len(clean) <= 2 * (len(line) + 4)
    assert out <= 2 * 20_000 * len(line) + 8


def test_of_what_is_dropped_only_the_end_is_looked_for() -> None:
    reader = DataReader()
    assert reader.feed(b"a\0b\rc\r")[0]
    reader.dropped = True
    for piece in (b"\0" * 1000, b"\n\r\n..\r", b"\n.", b"\r"):
        assert reader.feed(piece) == (b"", len(piece))
        assert not reader.done
    assert reader.feed(b"\nQUIT\r\n") == (b"", 1)
    assert reader.done


def test_what_needs_no_cleaning_is_not_copied() -> None:
    reader = DataReader()
    reader.feed(b"Subject: x\r\n\r\ny")  # what is cut off the ends of a message is
    for piece in (b"x" * 65536, b"a text. It has dots.\r\nx" * 100, "Gr\u00fc\u00dfe".encode() * 100):
        clean, used = reader.feed(piece)
        assert clean is piece
        assert used == len(piece)
