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
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/= \t"
# An = that starts no octet and no soft line break. Two of them are one, as binascii has it.
_STRAY = re.compile(rb"=(?:=|(?![0-9A-Fa-f]{2}|[ \t]*(?:\r\n|\Z)))")
# What no line of ours begins with: a boundary might, that was none before, or it would get a > (RFC 2049 §3).
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

    def cut(self, start: int, end: int) -> bytes:
        return self._octets[start:end]

    def find(self, needle: bytes, start: int, end: int) -> int:
        return self._octets.find(needle, start, end)


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
        end = max(start, min(end, self.size))
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


def long_line(data: bytes, most: int = MAX_LINE) -> bool:
    """Is any line longer than 998 octets without its end? (RFC 5321 §4.5.3.1.6.) In strides: few octets are looked at."""
    at, size = 0, len(data)
    while size - at > most:
        at = data.rfind(b"\n", at, at + most + 2) + 1
        if not at:
            return True
    return False


def pieces(source: Source, start: int, end: int) -> Iterator[tuple[bytes, bool]]:
    """What lies there, whole lines where they fit, and if it is the last piece. No CRLF is cut, nor what may be an =XX."""
    while start < end:
        piece = source.cut(start, min(start + PIECE, end))
        if start + len(piece) < end:
            piece = piece[: piece.rfind(b"\n") + 1] or _cut(piece)
        start += len(piece)
        yield piece, start == end


def _cut(line: bytes) -> bytes:
    """A line, or less of it: what stands at its end may begin something."""
    tail = line[-64:].removesuffix(b"\r")
    while b"=" in tail[-2:]:
        tail = tail[: tail.rindex(b"=")]
    return line[:-64] + tail


def look(source: Source, start: int, end: int) -> tuple[int, bool, bool]:
    """How many octets have their eighth bit; is there a line that is too long; is there a NUL?"""
    high, long, nul = 0, False, False
    for piece, last in pieces(source, start, end):
        if not piece.isascii():
            high += len(piece.translate(None, _ASCII))
        long = long or long_line(piece) or not (last or piece.endswith(CRLF))
        nul = nul or b"\0" in piece
    return high, long, nul


def base64(source: Source, start: int, end: int) -> Iterator[bytes]:
    """The octets as base64, without a last line end."""
    step, line = PIECE // 57 * 57, 57
    for at in range(start, end, step):
        piece = source.cut(at, min(at + step, end))
        lines = [b2a_base64(piece[i : i + line], newline=False) for i in range(0, len(piece), line)]
        yield (CRLF if at > start else b"") + CRLF.join(lines)


def quoted(source: Source, start: int, end: int) -> Iterator[bytes]:
    """Text as quoted-printable. Its line ends stay line ends."""
    return _soft(source, start, end, _quoted, WIDTH)


def requoted(source: Source, start: int, end: int) -> Iterator[bytes]:
    """Quoted-printable that breaks its own rules, mended. It is read as before: what was encoded is, and what was not is now."""
    return _soft(source, start, end, _requoted, WIDTH)


def spelled(source: Source, start: int, end: int) -> Iterator[bytes]:
    """Text that nobody decodes, for it is no part (RFC 2046 §5.1.1): with =XX for what can't stand, long lines broken."""
    return _soft(source, start, end, lambda piece, _: _escaped(piece), MAX_LINE)


def rebroken(source: Source, start: int, end: int) -> Iterator[bytes]:
    """Base64 with its long lines broken. Raises Unconvertible where one is no base64: what stands there instead is lost else."""
    cut = False  # the piece before ends amid a line
    for piece, last in pieces(source, start, end):
        text = piece
        if cut or long_line(piece):
            lines = piece.split(CRLF)
            for i, line in enumerate(lines):
                if len(line) > MAX_LINE or (cut and not i):
                    if line.translate(None, _BASE64):
                        raise Unconvertible("it says that it is base64, and is not")
                    lines[i] = CRLF.join([line[at : at + WIDTH] for at in range(0, len(line), WIDTH)])
            text = CRLF.join(lines)
        cut = not last and not piece.endswith(CRLF)
        yield text + CRLF if cut else text


def _soft(source: Source, start: int, end: int, spell: Callable[[bytes, bool], bytes], most: int) -> Iterator[bytes]:
    """`spell` each piece, whole lines unless the other argument says that it is cut; then break lines longer than `most`."""
    for piece, last in pieces(source, start, end):
        cut = not last and not piece.endswith(CRLF)
        text = spell(piece, cut)
        for risky in _RISKY:
            text = text.replace(CRLF + risky, CRLF + b"=%02X" % risky[0] + risky[1:])
        if text.startswith(_RISKY):
            text = b"=%02X" % text[0] + text[1:]
        if long_line(text, most):
            text = CRLF.join([line if len(line) <= most else _wrapped(line) for line in text.split(CRLF)])
        yield text + _SOFT if cut else text


def _escaped(text: bytes) -> bytes:
    for octet in set(text.translate(None, _PLAIN)):
        text = text.replace(bytes((octet,)), b"=%02X" % octet)
    return text


def _quoted(text: bytes, cut: bool) -> bytes:
    text = _escaped(text.replace(b"=", b"=3D"))
    # Blanks at the end of a line would be lost on the way (RFC 2045 §6.7).
    text = text.replace(b" \r\n", b"=20\r\n").replace(b"\t\r\n", b"=09\r\n")
    return text[:-1] + b"=%02X" % text[-1] if text.endswith((b" ", b"\t")) and not cut else text


def _requoted(text: bytes, cut: bool) -> bytes:
    # At the end of a piece that is cut no = may be taken for a soft line break.
    return _escaped(_STRAY.sub(b"=3D", text + b"x")[:-1] if cut else _STRAY.sub(b"=3D", text))


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
