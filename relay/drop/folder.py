"""A drop folder as the file system has it. Blocks: call it off the loop.

All is done from one descriptor of the folder, and no name is followed: what is taken is a plain file with this one name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import heapq
import itertools
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

QUIET = 2.0  # seconds since its last change: before that a file may be being written
REFUSED = "refused"
_GONE = ".done-"  # how the name of what is about to be removed begins
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


class Odd(Exception):
    """Why a file is left where it is."""


class Changed(Exception):
    """It is not what was seen any more: the next look says what it is now."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells a file from every other one, whatever it is called."""

    inode: int
    modified: int  # nanoseconds
    changed: int  # nanoseconds; a new name counts, too
    size: int

    @classmethod
    def of(cls, found: os.stat_result) -> Identity:
        return cls(found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)

    def key(self, digest: str) -> str:
        """For idempotency: `cp -p` may make a file that differs from the one that was sent in `changed` alone."""
        return hashlib.sha256(f"{self.inode} {self.modified} {self.changed} {self.size} {digest}".encode()).hexdigest()

    def still(self, other: Identity) -> bool:
        """Whether it is the same file, which may have got another name or other rights since."""
        return (self.inode, self.modified, self.size) == (other.inode, other.modified, other.size)

    def gone(self) -> str:
        """Its name while it is removed. Nobody has it but a file that was sent, or that came in the place of one."""
        return _GONE + hashlib.sha256(f"{self.inode} {self.modified} {self.size}".encode()).hexdigest()[:32]


@dataclass(slots=True)
class Seen:
    """One look: what may be taken, the oldest first; and what is odd, by name."""

    files: list[tuple[str, Identity]] = field(default_factory=list)
    odd: dict[str, str] = field(default_factory=dict)
    more: bool = False


class Folder:
    """Open until `close`. All raise OSError."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, _FOLDER)
        self._state = os.fstat(self._fd)
        self._writable = os.access(path, os.W_OK | os.X_OK, effective_ids=True)

    def close(self) -> None:
        os.close(self._fd)

    def look(self, now: float, limit: int, skip: Callable[[str, Identity], bool], most_odd: int = 1000) -> Seen:
        seen = Seen()
        names = heapq.nsmallest(limit + 1, self._takeable(now, skip, seen.odd, most_odd))
        seen.more = len(names) > limit
        seen.files = [(name, identity) for _, name, identity in names[:limit]]
        return seen

    def _takeable(
        self, now: float, skip: Callable[[str, Identity], bool], odd: dict[str, str], most: int
    ) -> Iterator[tuple[int, str, Identity]]:
        with os.scandir(self._fd) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or not name.lower().endswith(".eml"):
                    continue
                try:
                    found = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
                    self._check(found)
                except FileNotFoundError:
                    continue
                except (Odd, OSError) as error:
                    if len(odd) < most:
                        odd[name] = getattr(error, "strerror", None) or str(error)
                    continue
                identity = Identity.of(found)
                # One from the future was not written just now.
                if not 0 <= now - found.st_mtime < QUIET and not skip(name, identity):
                    yield found.st_mtime_ns, name, identity

    def _check(self, found: os.stat_result) -> None:
        """Raises Odd for what must not be taken, or could not be removed once it was."""
        kind = stat.S_IFMT(found.st_mode)
        if kind != stat.S_IFREG:
            raise Odd(f"it is {_KINDS.get(kind, 'a device')}; only plain files are taken")
        if found.st_nlink != 1:
            raise Odd("it has a second name (a hard link), so it may be another's; copy it instead")
        user = os.geteuid()
        sticky = self._state.st_mode & stat.S_ISVTX and user not in (0, found.st_uid, self._state.st_uid)
        if sticky or not self._writable:
            raise Odd("it could not be removed once it was sent; let the relay's user write into the folder")

    def open(self, name: str, identity: Identity) -> int:
        """A descriptor of the very file that was seen. Raises Changed where it is another one by now, and Odd."""
        descriptor = os.open(name, _FILE, dir_fd=self._fd)
        try:
            unchanged(descriptor, identity)
            self._check(os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def remove(self, name: str, identity: Identity) -> None:
        """The file that was seen, and no other that has its name by now."""
        hidden = identity.gone()
        if self._withdrawn(name, identity, hidden):
            os.unlink(hidden, dir_fd=self._fd)

    def refuse(self, name: str, identity: Identity, why: str) -> None:
        """Into `refused`, with the reason beside it."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(REFUSED, 0o770, dir_fd=self._fd)
        refused = os.open(REFUSED, _FOLDER | os.O_NOFOLLOW, dir_fd=self._fd)
        try:
            if os.fstat(refused).st_dev != self._state.st_dev:
                raise OSError(errno.EXDEV, "it is on another file system")
            # The reason first: what can't be told stays where it is, and its name keeps the place.
            free = _told(name, why, refused)
            try:
                moved = self._moved(name, identity, refused, free)
            except OSError:
                os.unlink(f"{free}.why", dir_fd=refused)
                raise
            if not moved:
                os.unlink(f"{free}.why", dir_fd=refused)
            os.fsync(refused)
        finally:
            os.close(refused)

    def _moved(self, name: str, identity: Identity, refused: int, free: str) -> bool:
        """As `_withdrawn`, and then into `refused`; what cannot go there has its name again."""
        hidden = f"{_GONE}{secrets.token_hex(8)}"
        # `refused` may be a mount of the same file system: then no name can go there, as rename(2) says even of one that is
        # not there. The file keeps its name all the while, and whoever else writes to that name is not in the way.
        with contextlib.suppress(FileNotFoundError):
            os.rename(hidden, free, src_dir_fd=self._fd, dst_dir_fd=refused)
        if not self._withdrawn(name, identity, hidden):
            return False
        try:
            os.rename(hidden, free, src_dir_fd=self._fd, dst_dir_fd=refused)
        except OSError:
            self._give_back(hidden, name)
            raise
        return True

    def _withdrawn(self, name: str, identity: Identity, hidden: str) -> bool:
        """Whether it is called `hidden` now, and nobody else has it in hand; not where another one has its place, or none."""
        try:
            os.rename(name, hidden, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except FileNotFoundError:
            return False
        if self._identity(hidden).still(identity):
            return True
        self._give_back(hidden)
        return False

    def _identity(self, name: str) -> Identity:
        return Identity.of(os.stat(name, dir_fd=self._fd, follow_symlinks=False))

    def recover(self) -> None:
        """What a crash left half removed: what was sent goes, all else comes back."""
        with os.scandir(self._fd) as entries:
            left = [entry.name for entry in entries if entry.name.startswith(_GONE)]
        for hidden in left:
            # What is not there, or we may not rename, is nothing that we had in hand.
            with contextlib.suppress(FileNotFoundError, PermissionError):
                if hidden == self._identity(hidden).gone():
                    os.unlink(hidden, dir_fd=self._fd)
                else:
                    self._give_back(hidden)

    def _give_back(self, hidden: str, name: str = "") -> None:
        """As `name`, if nobody else has that by now; else by a name that nobody else writes to meanwhile.

        By a look and a renaming, though a link would do both at once: fs.protected_hardlinks refuses one of another user's
        file, and a crash would leave two names. Who writes to `name` between the two loses that; it takes microseconds, and
        comes behind a renaming that failed though it was tried before.
        """
        if not name or self._has(name):
            name = f"recovered-{secrets.token_hex(8)}.eml"
        os.rename(hidden, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def _has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def sync(self) -> None:
        os.fsync(self._fd)


def unchanged(descriptor: int, identity: Identity) -> None:
    """Raises Changed."""
    if Identity.of(os.fstat(descriptor)) != identity:
        raise Changed


def _told(name: str, why: str, folder: int) -> str:
    """`name`, or if `refused` has one already, one like it; with the reason beside it. Raises OSError."""
    short = os.fsencode(name)[:200]  # 255 octets are the most, with what stands before and behind
    for number in itertools.count():
        free = os.fsdecode(b"%d-%b" % (number, short) if number else short)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            descriptor = os.open(f"{free}.why", flags, 0o640, dir_fd=folder)
        except FileExistsError:
            continue
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as out:
                out.write(f"{why}\n")
            os.stat(free, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return free
        except OSError:
            os.unlink(f"{free}.why", dir_fd=folder)
            raise
        os.unlink(f"{free}.why", dir_fd=folder)  # somebody took the reason away, and left the file
    raise AssertionError
