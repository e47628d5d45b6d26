"""Bodies too large for a row: one file each under `content/`, written while they arrive.

Promises: `finish` returns when file and folder are on disk, so that the row that names it may commit. A file without a
row is an orphan, swept at the next start. Work is done off the loop, in one thread, in slices.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from relay.envelope import parse_queue_id, queue_id
from relay.outgoing import OUT

BEHIND = 256 * 1024  # bytes that are written before the disk is set to work on them


def sync(path: Path) -> None:
    """A folder's names are on disk when it returns, or a file's content."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> bool:
    """0700, with those above it, and on disk: after a power cut a file is not there whose folder is not. False: it was there."""
    if folder.is_dir():
        return False
    make_folder(folder.parent)
    folder.mkdir(mode=0o700)
    sync(folder.parent)
    return True


class Content:
    """The folder of large bodies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # One: there is one disk, which a second thread makes no faster, and each more takes the interpreter from the loop.
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="content")

    def open(self) -> None:
        make_folder(self.folder)
        self.folder.chmod(0o700)  # a restored one may be open to others
        for left in self.folder.glob(f"*{OUT}"):
            left.unlink(missing_ok=True)  # of a try that a crash ended

    def path(self, message: int) -> Path:
        return self.folder / queue_id(message)

    def stage(self, message: int) -> Staged:
        return Staged(self.path(message), self._threads)

    async def copy(self, source: Path, message: int) -> Path:
        """Another message's file for a new message, durable. Raises OSError."""
        staged = self.stage(message)
        try:
            with await asyncio.to_thread(source.open, "rb") as file:
                while data := await asyncio.to_thread(file.read, 1 << 20):
                    await staged.write(data)
            await staged.finish()
        except BaseException:
            staged.abandon()
            raise
        return staged.path

    def ids(self) -> dict[int, Path]:
        """The messages that have a file, and what else lies there is left alone."""
        found = {}
        for path in self.folder.iterdir():
            try:
                found[parse_queue_id(path.name)] = path
            except ValueError:
                continue
        return found

    def drop(self, messages: Iterable[int]) -> None:
        """Remove files whose rows are gone or settled; off the loop and not awaited: a crash leaves orphans."""
        for message in messages:
            self._threads.submit(self.path(message).unlink, missing_ok=True)

    def close(self) -> None:
        self._threads.shutdown()


class Staged:
    """One body being written."""

    def __init__(self, path: Path, threads: ThreadPoolExecutor) -> None:
        self.path = path
        self.size = 0
        self._threads = threads
        self._file: int | None = None
        self._begun = 0  # bytes that the disk was told of
        # A client may hang up while a slice is being written: then `_abandon` waits for it, and what comes after is lost.
        self._lock = threading.Lock()
        self._abandoned = False

    async def write(self, *parts: bytes) -> None:
        """Append; returns once the kernel has it, which is the back-pressure of the one who sends. Copies nothing."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._write, parts)

    async def finish(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, self._finish)

    def abandon(self) -> None:
        """The message is not accepted: the file goes. Safe to call twice, and after `finish`."""
        try:
            self._threads.submit(self._abandon)
        except RuntimeError:  # a session that was cut at the very end: the threads are gone already
            self._abandon()

    def _write(self, parts: Sequence[bytes]) -> None:
        with self._lock:
            if not self._abandoned:
                self._append(parts)

    def _append(self, parts: Sequence[bytes]) -> None:
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        size = sum(map(len, parts))
        written = os.writev(self._file, parts)
        if written < size:  # a disk that is nearly full, or a signal
            view = memoryview(b"".join(parts))[written:]
            while view:
                view = view[os.write(self._file, view) :]
        self.size += size
        if self.size - self._begun >= BEHIND:
            # Else all of a message would be written at its fdatasync, and each commit of the spool meanwhile wait behind
            # it: 60 ms for 10 MB. This is the advice that starts it; what is not on disk yet stays in memory, and so is
            # there to be sent.
            os.posix_fadvise(self._file, self._begun, self.size - self._begun, os.POSIX_FADV_DONTNEED)
            self._begun = self.size

    def _finish(self) -> None:
        with self._lock:
            assert self._file is not None
            os.fdatasync(self._file)
            os.close(self._file)
            self._file = None
        sync(self.path.parent)

    def _abandon(self) -> None:
        with self._lock:
            self._abandoned = True
            if self._file is not None:
                os.close(self._file)
                self._file = None
        self.path.unlink(missing_ok=True)
