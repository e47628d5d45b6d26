"""A body in a file goes over the wire as it is, whether it is in memory or on disk only, and leaves the loop to the others."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest
from test_turns import Turns

from relay.deliver.content import SLICE, Content, ContentError, slices, stuffed

HEAD = b"Subject: t\r\n\r\n"
BODIES = {
    "lines": b"x" * 76 + b"\r\n",
    "dots": b".\r\n..\r\n.x\r\n",
    "a dot at each cut": b"\r\n." + b"y" * (SLICE - 3),
    "CRLF at each cut": b"z" * (SLICE - 1) + b"\r" + b"\n." + b"z" * (SLICE - 2),
    "no end of line": b"x",
}


def forgotten(path: Path) -> None:
    """Out of memory: what is read of it now comes from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "on disk"])
@pytest.mark.parametrize("name", BODIES)
async def test_the_same_from_memory_and_from_disk(tmp_path: Path, name: str, cached: bool) -> None:
    body = (BODIES[name] * (1 + 3 * SLICE // len(BODIES[name])))[: 3 * SLICE + 77]
    (path := tmp_path / "body").write_bytes(body)
    if not cached:
        forgotten(path)
    turns = Turns()
    got = [data async for data in slices(Content(HEAD, path))]
    assert await turns.stop() >= 4
    assert b"".join(got) == b"".join(stuffed(HEAD, body))
    assert max(map(len, got)) <= 2 * SLICE


async def test_a_body_that_cannot_be_read_is_no_fault_of_the_connection(tmp_path: Path) -> None:
    for path, gone in ((tmp_path / "no such file", True), (tmp_path, False)):
        with pytest.raises(ContentError) as error:
            _ = [data async for data in slices(Content(HEAD, path))]
        assert error.value.gone is gone


def opened(path: Path) -> int:
    """How many descriptors of this process are of that file."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(descriptor) == str(path.resolve())
    return found


async def test_given_up_in_the_middle(tmp_path: Path) -> None:
    (path := tmp_path / "body").write_bytes(b"x" * (10 * SLICE))
    made = slices(Content(HEAD, path))
    for _ in range(3):
        await anext(made)
    assert opened(path)
    await made.aclose()  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    assert not opened(path)
