"""Octets of a body, in memory or in a file, and the two encodings of RFC 2045 §6 over them. Pure but for the file.

Everything here goes over its octets once, forward, in pieces: what is needed of memory does not grow with the body.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from relay.outgoing.headers import MAX_LINE

PIECE = 256 * 1024
WIDTH = 76  # RFC 2045 §6.7 and §6.8
CRLF = b"\r\n"
_SOFT = b"=\r\n"

_ASCII = bytes(range(128))
_PLAIN = bytes(range(32, 127)) + b"\t\r\n"
_NOT_BASE64 = bytes(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="))
# An = that starts no octet and no soft line break. Two of them are one, as binascii has it.
_STRAY = re.compile(rb"=(?:=|(?![0-9A-Fa-f]{2}|[ \t]*\Z))")
_BLANK = (b" ", b"\t")
# What a line that we begin must not begin with: it could be a boundary (RFC 2046 §5.1.1), or get a > (RFC 2049 §3).
_RISKY = (b"--", b"From ")


class Unconvertible(Exception):
    """Why a message can't be made what its next hop takes; the text is for its sender."""


class Source(Protocol):
    """Octets that stand still. Places are offsets from its start."""

    size: int

    def cut(self, start: int, end: int) -> bytes: ...

    def find(self, needle: bytes, start: int, end: int) -> int: ...


class Memory:
    """A body that is here."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self.size = len(octets)
        self.cut = lambda start, end: octets[start:end]
        self.find = octets.find


class File:
    """A body in a file, of which one window is in memory. Raises OSError.

    It is not mapped: a disk that fails is an OSError here, and there the end of the process.
    """

    WINDOW = 1024 * 1024

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, 2)
        self._at, self._window = 0, b""

    def cut(self, start: int, end: int) -> bytes:
        end = max(start, end)
        self._load(start, end - start)
        return self._window[start - self._at : end - self._at]

    def find(self, needle: bytes, start: int, end: int) -> int:
        while end - start >= len(needle):
            self._load(start, len(needle))
            stop = min(self._at + len(self._window), end)
            found = self._window.find(needle, start - self._at, stop - self._at)
            if found >= 0:
                return self._at + found
            if stop == end:
                break
            start = stop - len(needle) + 1
        return -1

    def _load(self, start: int, size: int) -> None:
        """The window holds `size` octets from `start`."""
        if self._at <= start and start + size <= self._at + len(self._window):
            return
        self._file.seek(start)
        self._at, self._window = start, self._file.read(max(size, self.WINDOW))
        if len(self._window) < size:
            raise OSError(f"the body ends after {start + len(self._window)} octets, it had {self.size}")


def long_line(data: bytes) -> bool:
    """Is any line longer than 998 octets without its end? (RFC 5321 §4.5.3.1.6.) In strides: few octets are looked at."""
    at, size = 0, len(data)
    while size - at > MAX_LINE:
        at = data.rfind(b"\n", at, at + MAX_LINE + 2) + 1
        if not at:
            return True
    return False


def pieces(source: Source, start: int, end: int) -> Iterator[tuple[bytes, bool]]:
    """What lies there, whole lines where they fit, and if it is the last piece. No CRLF is cut, nor what may be an =XX."""
    while start < end:
        piece = source.cut(start, min(start + PIECE, end))
        if start + len(piece) < end:
            cut = piece.rfind(b"\n") + 1 or len(piece)
            if piece[cut - 2 : cut] != CRLF:
                tail = piece[-2:]
                cut -= 2 - tail.find(b"=") if b"=" in tail else tail.endswith(b"\r")
            piece = piece[:cut]
        start += len(piece)
        yield piece, start == end


def look(source: Source, start: int, end: int) -> tuple[int, bool]:
    """How many octets have their eighth bit, and is there a line that is too long?"""
    high, long = 0, False
    for piece, last in pieces(source, start, end):
        if not piece.isascii():
            high += len(piece.translate(None, _ASCII))
        long = long or long_line(piece) or not (last or piece.endswith(CRLF))
    return high, long


def base64(source: Source, start: int, end: int) -> Iterator[bytes]:
    """The octets as base64, without a last line end."""
    step, line = PIECE // 57 * 57, 57
    for at in range(start, end, step):
        piece = source.cut(at, min(at + step, end))
        lines = [b2a_base64(piece[i : i + line], newline=False) for i in range(0, len(piece), line)]
        yield (CRLF if at > start else b"") + CRLF.join(lines)


def quoted(source: Source, start: int, end: int) -> Iterator[bytes]:
    """Text as quoted-printable. Its line ends stay line ends."""
    for piece, last in pieces(source, start, end):
        lines = _escaped(piece.replace(b"=", b"=3D")).split(CRLF)
        for i, line in enumerate(lines):
            if len(line) > WIDTH or line.endswith(_BLANK) or line.startswith(_RISKY):
                lines[i] = _wrapped(_kept(line))
        yield CRLF.join(lines) + (b"" if last or piece.endswith(CRLF) else _SOFT)


def requoted(source: Source, start: int, end: int, seven_bit: bool) -> Iterator[bytes]:
    """Quoted-printable that breaks its own rules, mended: each line that is too long, or has 8-bit octets. Others stay.

    It is read as before: what was not encoded is, and soft line breaks join what they part.
    """
    return _mended(source, start, end, seven_bit, lambda line: _wrapped(_escaped(_STRAY.sub(b"=3D", line))), _SOFT)


def spelled(source: Source, start: int, end: int, seven_bit: bool) -> Iterator[bytes]:
    """Text that nobody decodes, for it is no part (RFC 2046 §5.1.1): the same lines, with =XX for what can't stand."""
    return _mended(source, start, end, seven_bit, lambda line: _wrapped(_escaped(line)), _SOFT)


def rebroken(source: Source, start: int, end: int, seven_bit: bool) -> Iterator[bytes]:
    """Base64 that breaks its own rules, mended: the same lines. What no decoder looks at (RFC 2045 §6.8) goes from them."""
    return _mended(source, start, end, seven_bit, _rebroken, CRLF)


def _mended(
    source: Source, start: int, end: int, seven_bit: bool, mend: Callable[[bytes], bytes], joint: bytes
) -> Iterator[bytes]:
    cut = False  # amid a line: what follows begins a line of ours
    for piece, last in pieces(source, start, end):
        lines = piece.split(CRLF)
        for i, line in enumerate(lines):
            if len(line) > MAX_LINE or (cut and not i) or (seven_bit and not line.isascii()):
                lines[i] = mend(line)
        cut = not last and not piece.endswith(CRLF)
        yield CRLF.join(lines) + (joint if cut else b"")


def _rebroken(line: bytes) -> bytes:
    line = line.translate(None, _NOT_BASE64)
    return CRLF.join([line[at : at + WIDTH] for at in range(0, len(line), WIDTH)])


def _escaped(text: bytes) -> bytes:
    for octet in set(text.translate(None, _PLAIN)):
        text = text.replace(bytes((octet,)), b"=%02X" % octet)
    return text


def _kept(line: bytes) -> bytes:
    """A blank at its end is not lost on the way."""
    return line[:-1] + b"=%02X" % line[-1] if line.endswith(_BLANK) else line


def _wrapped(line: bytes) -> bytes:
    """A line of quoted-printable with soft line breaks. No =XX is cut; a = may follow."""
    out = []
    at, size = 0, len(line)
    while True:
        lead = b""
        if line.startswith(_RISKY, at):
            lead = b"=%02X" % line[at]
            at += 1
        end = at + WIDTH - 1 - len(lead)
        if end >= size:
            out.append(lead + line[at:])
            return _SOFT.join(out)
        if line[end - 1] == 61:
            end -= 1
        elif line[end - 2] == 61:
            end -= 2
        out.append(lead + line[at:end])
        at = end
