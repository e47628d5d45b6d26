"""A file below a folder: by descriptors all the way down, so that no link and no `..` leads out, nor anybody who moves things."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from relay.attachments.problems import NotAttached

MAX_DEPTH = 32
_STEP = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def read_below(folder: Path, path: str, most: int) -> bytes:
    """A regular file, whole. Blocks. Raises NotAttached."""
    parts = path.split("/")
    if len(parts) > MAX_DEPTH or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise NotAttached("a path is relative to `attachments.folder`, such as invoices/17.pdf, without `.` and `..`")
    try:
        return _read(_open(folder, parts), most)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        raise NotAttached(f"no file '{path[:200]}' below `attachments.folder` that the relay may read") from None
    except UnicodeEncodeError:
        raise NotAttached("a path has no half characters") from None
    except OSError as error:
        if error.errno == errno.ELOOP:  # what O_NOFOLLOW says of a link
            raise NotAttached(f"'{path[:200]}' is, or lies behind, a symbolic link; none is followed") from None
        raise NotAttached(f"'{path[:200]}' cannot be read: {error.strerror}", later=True) from None


def _open(folder: Path, parts: list[str]) -> int:
    """Raises OSError."""
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for number, part in enumerate(parts):
        # Not to wait for whoever would write into a pipe.
        kind = os.O_NONBLOCK if number == len(parts) - 1 else os.O_DIRECTORY
        try:
            below = os.open(part, _STEP | kind, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


def _read(descriptor: int, most: int) -> bytes:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAttached("it is no regular file")
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise NotAttached(f"it is larger than the {most} bytes that are left for it")
    return content
