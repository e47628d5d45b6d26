"""Standard input as a message: its line ends, its end, its header. Opens nothing but the file of what is large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO

from relay.addressees import Field, Unreadable, mailboxes, read
from relay.repair import shows
from relay.sendmail.options import DATA, Failed

HEAD = 256 * 1024  # as large as the relay takes a header block
IN_MEMORY = 1 << 20
LARGEST = 1 << 30  # a command that never stops to write must not fill the disk

_END = b"\r\n.\r\n"
MAILBOX_FIELDS = frozenset((b"from", b"sender", b"reply-to", b"to", b"cc"))
HIDDEN = (b"bcc", b"resent-bcc")


def normalised(pieces: Iterable[bytes], dot_ends: bool) -> Iterator[bytes]:
    """With CRLF line ends only, whatever came; the last line is whole. `dot_ends`: a line of a dot alone ends it.

    No slice ends within a CRLF, and at most five bytes are held back.
    """
    held, skip = b"\r\n", 2  # the line end before the first line counts: ".": may be the first
    cut_cr = b""
    for piece in pieces:
        data = cut_cr + piece
        cut_cr = data[-1:] if data.endswith(b"\r") else b""
        data = data[: len(data) - len(cut_cr)]
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        text = held + data.replace(b"\n", b"\r\n")
        end = text.find(_END) if dot_ends else -1
        if end >= 0:
            yield text[skip : end + 2]
            return
        keep = next((size for size in (4, 3, 2) if text.endswith(_END[:size])), 0)
        held = text[len(text) - keep :]
        if keep < len(text):
            yield text[skip : len(text) - keep]
            skip = 0
    text = held + (b"\r\n" if cut_cr else b"")
    text += b"" if text.endswith(b"\r\n") else b"\r\n"
    end = text.find(_END) if dot_ends else -1
    yield text[skip : end + 2] if end >= 0 else text[skip:]


class Message:
    """What was read: `head` and, from there on, `body`; in memory, or if it is large in a file without a name."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        """Raises Failed."""
        front = bytearray()
        self._kept: list[bytes] = []
        self._file: IO[bytes] | None = None
        self.size, self.ascii = 0, True
        for piece in pieces:
            self.size += len(piece)
            if self.size > LARGEST:
                raise Failed(DATA, f"the message is larger than {LARGEST >> 20} MB")
            self.ascii = self.ascii and piece.isascii()
            room = max(0, HEAD - len(front))
            front += piece[:room]
            if piece[room:]:
                self._keep(piece[room:])
        self._read(bytes(front))

    def _keep(self, piece: bytes) -> None:
        if self._file is None and self.size > IN_MEMORY:
            from tempfile import TemporaryFile

            self._file = TemporaryFile()  # noqa: SIM115 - see close
            self._file.writelines(self._kept)
            self._kept = []
        if self._file is not None:
            self._file.write(piece)
        else:
            self._kept.append(piece)

    def _read(self, front: bytes) -> None:
        complete = not self._kept and self._file is None
        try:
            self.fields, start = read(front, complete)
        except Unreadable as error:
            raise Failed(DATA, str(error)) from None
        ended = front.endswith(b"\r\n\r\n" if self.fields else b"\r\n", 0, start)
        # Where no empty line ends it, what should have been hidden may stand in the text.
        if text := "" if ended else shows(front, start, HEAD):
            raise Failed(DATA, text)
        self._rest = front[start:]
        self.text_size = self.size - start

    def body(self) -> Iterator[bytes]:
        yield self._rest
        yield from self._kept
        if self._file is not None:
            self._file.seek(0)
            while piece := self._file.read(1 << 16):
                yield piece

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def head(self, author: str, domain: str) -> bytes:
        """To be sent: without Bcc, with an author (a From field's value) where none is named, and with whole addresses."""
        kept = [f for f in self.fields if f.name not in HIDDEN]
        named = any(f.name == b"from" and f.value.strip() for f in kept)
        if not named:
            kept = [Field(b"from", f"From: {author}\r\n".encode()), *(f for f in kept if f.name != b"from")]
        return b"".join(_qualified(f, domain) for f in kept) + b"\r\n"


def _qualified(field: Field, domain: str) -> bytes:
    """A field with `@domain` behind each name that stands alone, as cron writes `From: root (Cron Daemon)`."""
    if field.name.removeprefix(b"resent-") not in MAILBOX_FIELDS:
        return field.text
    value = field.value
    try:
        bare = [m for m in mailboxes(value) if "@" not in m.address]
    except Unreadable:
        return field.text  # the relay tells what it makes of it
    for mailbox in reversed(bare):
        value = f"{value[: mailbox.end]}@{domain}{value[mailbox.end :]}"
    return field.text[: field.text.index(b":") + 1] + value.encode("utf-8", "surrogateescape") if bare else field.text


def stuffed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """As DATA has it: a dot more before each line that begins with one (RFC 5321 §4.5.2). Of CRLF line ends only."""
    begins = True
    for piece in pieces:
        if piece:
            dot = b"." if begins and piece.startswith(b".") else b""
            yield dot + (piece.replace(b"\n.", b"\n..") if b"\n." in piece else piece)
            begins = piece.endswith(b"\n")
