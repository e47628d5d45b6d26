"""What comes between 354 and the final dot. Sans-IO: bytes in, clean bytes out.

Promises: only CRLF "." CRLF ends the data (RFC 5321 §4.1.1.4; the dot may be the very first line); dots are unstuffed
exactly (§4.5.2); what comes out has CRLF line ends only; work is linear and at most four bytes are held back,
whatever arrives and however it is cut. It tells what it met, and refuses nothing itself.
"""

from __future__ import annotations

import re
from io import IncrementalNewlineDecoder

from relay.envelope import EIGHT_BIT, LINE, LONG_LINES, NUL

_END = b"\r\n.\r\n"
# The `re` module finds a literal in less than half the time that bytes.find and bytes.replace take on lines of text.
_DOT = re.compile(rb"\r\n\.")


class DataReader:
    """One message. Feed it until `done`."""

    __slots__ = ("_held", "_line", "_started", "ascii", "bare", "done", "dropped", "long_lines", "nul")

    def __init__(self) -> None:
        # The CRLF of the DATA command itself counts: ".CRLF" may be the first line.
        self._held = b"\r\n"
        self._started = False
        self.done = False
        self.bare = False  # a bare CR or LF was met, and became CRLF
        self.nul = False  # a NUL was met: no next hop takes it as it is (RFC 5321 §2.3.8)
        self.ascii = True
        self._line = 0  # octets of the line that is under way
        self.long_lines = False  # of over LINE octets
        self.dropped = False  # set by who feeds it: nobody wants the rest, only its end is looked for

    @property
    def needs(self) -> int:
        """What the message needs of its next hop, as bits."""
        return (0 if self.ascii else EIGHT_BIT) | (LONG_LINES if self.long_lines else 0) | (NUL if self.nul else 0)

    def feed(self, data: bytes | bytearray) -> tuple[bytes, int]:
        """(clean bytes, how many bytes of `data` belong to the message). All do until `done`.

        Of what needs no cleaning nothing is copied but what is cut off its ends.
        """
        held = self._held
        text = held + data
        # Base64 has no dot (46) at all, and that is seen in a fiftieth of the time.
        dot = _DOT.search(text) if 46 in text else None
        if dot is not None:
            start = dot.start()
            end = start if text.startswith(_END, start) else text.find(_END, start)
            if end >= 0:
                self.done = True
                # The CRLF before the dot ends the last line; of an empty message it is that of the DATA command.
                return self._clean(text[: end + 2], end > start), end + len(_END) - len(held)
        keep = 0
        for size in (4, 3, 2, 1):
            if text.endswith(_END[:size]):
                keep = size
                break
        cut = len(text) - keep
        self._held = text[cut:]
        return self._clean(text[:cut], dot is not None) if cut else b"", len(data)

    def whole(self, text: bytes) -> bytes:
        """A message that came by another way than DATA: no dot is stuffed, and what arrived is all."""
        self._started = self.done = True
        return self._clean(text if text.endswith((b"\n", b"\r")) or not text else text + b"\r\n", False)

    def _clean(self, text: bytes, dots: bool) -> bytes:
        if self.dropped:
            return b""
        if dots:
            # A cut never falls between CRLF and a dot (that would have been held back), so this is exact: RFC 5321
            # §4.5.2 deletes the first dot of a line that has more.
            text = text.replace(b"\r\n.", b"\r\n")
        if not self._started and text:
            self._started = True
            text = text[2:]
        if self.ascii and not text.isascii():
            self.ascii = False
        if _ends(text) not in (None, "\r\n"):
            self.bare = True
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
        if not self.nul and 0 in text:
            self.nul = True
        if not self.long_lines:
            self._measure(text)
        return text

    def _measure(self, text: bytes) -> None:
        """In strides: each line end that is found lets the next look begin a line's greatest length after it."""
        start = -self._line
        while start + LINE + 2 <= len(text):
            end = text.rfind(b"\n", max(start, 0), start + LINE + 2)
            if end < 0:
                self.long_lines = True
                return
            start = end + 1
        end = text.rfind(b"\n", max(start, 0))
        self._line = len(text) - (start if end < 0 else end + 1)


def _ends(text: bytes) -> object:
    """Which line ends it has, as `newlines` of a text file: one pass in C, where counting each kind takes four times as long."""
    decoder = IncrementalNewlineDecoder(None, translate=False)
    decoder.decode(text.decode("latin-1"), final=True)
    return decoder.newlines


class ContentReader(DataReader):
    """A message that comes by another way than SMTP: no dot ends it, none is stuffed. `take` all of it, then `end`."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        super().__init__()
        self._held, self._started = b"", True
        self._open = False  # the last line has no end yet

    def take(self, data: bytes) -> bytes:
        text = self._held + data
        self._held = b"\r" if text.endswith(b"\r") else b""
        clean = self._clean(text[: len(text) - len(self._held)], False)
        self._open = not clean.endswith(b"\r\n") if clean else self._open
        return clean

    def end(self) -> bytes:
        """What is missing of the last line."""
        clean = self._clean(self._held, False) or (b"\r\n" if self._open else b"")
        self._held, self._open = b"", False
        return clean
