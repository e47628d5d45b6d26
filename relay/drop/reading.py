"""Files of a drop folder, read: many small ones at once, a large one piece by piece. Blocks: call it off the loop.

Promises: what comes back is all of the very file that was seen, as it was then, or why not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from relay.drop.folder import Folder, Identity, unchanged
from relay.drop.letter import Letter, open_letter, prefix
from relay.listener.data import ContentReader
from relay.settings import Drop

SLICE = 1 << 18  # bytes that are read at once; what is larger goes piece by piece

File = tuple[str, Identity]  # its name, and what it was when it was seen


@dataclass(slots=True)
class Read:
    """A small file, as it goes into the spool."""

    letter: Letter
    content: bytes
    needs: int


def read(folder: Folder, drop: Drop, files: Iterable[File]) -> list[Read | Exception | None]:
    """Of each file all of it, or why not; None: it is large. An error is for whoever tells of it: one file ends no other."""
    return [_tried(folder, drop, name, identity) if identity.size <= SLICE else None for name, identity in files]


def _tried(folder: Folder, drop: Drop, name: str, identity: Identity) -> Read | Exception:
    try:
        return _read(folder, drop, name, identity)
    except Exception as error:  # noqa: BLE001 - told where the file is dealt with
        return error


def _read(folder: Folder, drop: Drop, name: str, identity: Identity) -> Read:
    """Raises BadMessage, Changed, Odd, OSError."""
    descriptor = folder.open(name, identity)
    try:
        written = b"".join(_pieces(descriptor, identity.size))
        unchanged(descriptor, identity)
    finally:
        os.close(descriptor)
    reader = ContentReader()
    clean = reader.take(written)
    clean += reader.end()
    letter = open_letter(clean, True)
    key = identity.key(hashlib.sha256(written).hexdigest())
    return Read(letter, prefix(drop, key, letter) + clean[letter.start :], reader.needs)


def digest(descriptor: int) -> str:
    """Of the content, as `Identity.key` wants it."""
    made, place = hashlib.sha256(), 0
    while piece := os.pread(descriptor, SLICE, place):
        place += len(piece)
        made.update(piece)
    return made.hexdigest()


def _pieces(descriptor: int, size: int) -> Iterator[bytes]:
    """Up to that size: one that grows meanwhile is found out by `unchanged`."""
    place = 0
    while place < size and (piece := os.pread(descriptor, size - place, place)):
        place += len(piece)
        yield piece


def remove(folder: Folder, files: Iterable[File]) -> list[OSError | None]:
    """Takes those away that are in the spool; why not, of each where that failed. Durable when it returns. Raises OSError."""
    failed: list[OSError | None] = []
    for name, identity in files:
        try:
            folder.remove(name, identity)
            failed.append(None)
        except OSError as error:
            failed.append(error)
    folder.sync()
    return failed
