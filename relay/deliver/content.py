"""A message as it goes over the wire: head and body, dots stuffed, in slices. A large body never waits for the disk on the loop."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SLICE = 64 * 1024
END = b".\r\n"
# The `re` module finds a literal in less than half the time that bytes.replace takes to find none.
_DOT = re.compile(rb"\r\n\.")


class ContentError(Exception):
    """The body can't be read here: no fault of an upstream. `gone`: and it will not be there later."""

    def __init__(self, text: str, gone: bool) -> None:
        super().__init__(text)
        self.gone = gone


@dataclass(slots=True)
class Content:
    """Head and body as the spool keeps them: CRLF line ends only."""

    head: bytes
    body: bytes | Path


def stuffed(head: bytes, body: bytes) -> tuple[bytes, ...]:
    """A whole message in pieces, dots stuffed (RFC 5321 §4.5.2) and its last line ended, without the final dot.

    A body without such dots is not copied.
    """
    if not head.endswith(b"\r\n"):
        return (_ended(head + body),)
    return (_ended(head), _ended(body)) if body else (_ended(head),)


def _ended(text: bytes) -> bytes:
    if text.startswith(b"."):
        text = b"." + text
    if not text.endswith(b"\r\n"):
        text += b"\r\n"
    return _stuffed(text)


def _stuffed(text: bytes) -> bytes:
    """Every dot that follows a CRLF, doubled. Most text has none, base64 has no dot (46) at all."""
    return text.replace(b"\r\n.", b"\r\n..") if 46 in text and _DOT.search(text) else text


class Stuffer:
    """The same for a message that comes in slices."""

    def __init__(self) -> None:
        self._held = b"\r\n"  # the line before the first: its dot is stuffed too
        self._first = True

    def feed(self, data: bytes | memoryview) -> bytes:
        text = self._held + data
        # An end that a dot could follow is held back, so that no pair of CRLF and dot is cut. Where nothing is, nothing
        # is copied here.
        keep = 2 if text.endswith(b"\r\n") else 1 if text.endswith(b"\r") else 0
        self._held = text[len(text) - keep :]
        return self._out(text[: len(text) - keep])

    def finish(self) -> bytes:
        return self._out(self._held if self._held.endswith(b"\r\n") else self._held + b"\r\n")

    def _out(self, text: bytes) -> bytes:
        text = _stuffed(text)
        if self._first and text:
            self._first = False
            text = text[2:]
        return text


async def slices(content: Content) -> AsyncIterator[bytes]:
    """The stuffed message in slices, for a body in a file. Raises ContentError."""
    assert isinstance(content.body, Path)
    stuffer = Stuffer()
    yield stuffer.feed(content.head)
    with await _read(content.body.open, "rb", 0) as file:
        buffer, at = memoryview(bytearray(SLICE)), 0
        while count := _cached(file.fileno(), buffer, at) or await _read(os.preadv, file.fileno(), [buffer], at):
            at += count
            yield stuffer.feed(buffer[:count])
            await asyncio.sleep(0)  # an upstream that takes all at once must not keep the others from their turn
    yield stuffer.finish()


def _cached(file: int, buffer: memoryview, at: int) -> int:
    """What is in memory, and mail that has just come in is: 30 µs, where a thread costs 100 and the others their turn. 0: ask the disk."""
    try:
        return os.preadv(file, [buffer], at, os.RWF_NOWAIT)
    except OSError:  # nothing is, or this file system cannot say; or it is broken, as the thread will hear
        return 0


async def _read(function: Callable[..., Any], *arguments: Any) -> Any:
    """Off the loop. An OSError of the file must not look like one of the connection."""
    try:
        return await asyncio.to_thread(function, *arguments)
    except OSError as error:
        raise ContentError(f"the body can't be read: {error}", isinstance(error, FileNotFoundError)) from None
