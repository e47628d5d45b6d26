"""Looks into the drop folders, and hands what it finds to the intake.

Promises: a bounded number of files in memory, whatever lies there; one folder holds up no other; what fails is told once
and tried again. It ends by cancellation at any point, and by kill -9: see the key of `folder.Identity`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from relay import clock, metrics
from relay.drop.folder import REFUSED, Changed, Folder, Identity, Odd, Seen, unchanged
from relay.drop.letter import Letter, open_letter, prefix
from relay.drop.reading import SLICE, File, Read, digest, read, remove
from relay.incoming import Incoming
from relay.intake import Envelope, Intake
from relay.listener.data import ContentReader
from relay.maillog import MailLog
from relay.settings import Address, Config, Drop, Listen
from relay.spool import SpoolError
from relay.submission import MAX_HEAD, BadMessage

T = TypeVar("T")

MOST_READY = 10_000  # files that one look finds: to look again for each few would be to ask of all of them each time
BATCH = 500  # files between two turns of the other folders
AT_ONCE = 32  # that are on their way into the spool: they share a commit, and one fsync of the folder
BYTES = 2 << 20  # of their pieces that are in memory
ABREAST = 2  # such slices: one is read, or removed, while the other one is committed
BREATH = 4  # files between two turns of the loop
LATER = 60.0  # seconds until what could not be taken is tried again
MOST_KEPT = 10_000  # files that wait for that; a folder with more of them rests as a whole

FILES = metrics.Counter("relay_drop_files_total", "Files of drop folders by what became of them", ["folder", "result"])


@dataclass
class Place:
    """A folder, and what is known of it."""

    drop: Drop
    due: float = 0.0
    up: bool | None = None  # None: not looked into yet
    recovered: bool = False  # what a crash left in it was seen to
    why: str = ""
    ready: deque[File] = field(default_factory=deque)  # what the last look found, and is not taken yet
    more: bool = False  # it found more than that
    later: dict[str, tuple[Identity, float]] = field(default_factory=dict)  # name -> until when it is left alone
    told: dict[str, str] = field(default_factory=dict)  # name -> what was said of it

    def rests(self, name: str, identity: Identity, now: float) -> bool:
        known = self.later.get(name)
        return known is not None and known[0].still(identity) and now < known[1]


class Drops:
    """`run` as a supervised loop; `apply` hears of a reload."""

    def __init__(self, config: Config, intake: Intake, log: MailLog) -> None:
        self._config, self._intake, self._log = config, intake, log
        self._places: dict[str, Place] = {}
        self._news = asyncio.Event()
        self.apply(config)

    def apply(self, config: Config) -> None:
        self._config = config
        self._places = {
            name: place if (place := self._places.get(name)) and place.drop == drop else Place(drop)
            for name, drop in config.drop.items()
        }
        self._news.set()

    def standing(self) -> list[dict[str, Any]]:
        """Each folder: {drop, folder, up, why, odd, later}. `odd`: files that are left alone; `later`: that are tried again."""
        return [
            {"drop": name, "folder": str(p.drop.folder), "up": p.up, "why": p.why}
            | {"odd": len(p.told.keys() - p.later.keys()), "later": len(p.later)}
            for name, p in sorted(self._places.items())
        ]

    async def run(self) -> None:
        """Ends only by cancellation."""
        while True:
            self._news.clear()
            now = clock.monotonic()
            due = [place for place in self._places.values() if place.due <= now]
            async with asyncio.TaskGroup() as group:
                for place in due:
                    group.create_task(self._look(place))
            now = clock.monotonic()
            wait = min((place.due - now for place in self._places.values()), default=None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait if wait is None else max(0.0, wait)):
                    await self._news.wait()

    async def _look(self, place: Place) -> None:
        more = False
        try:
            if why := self._intake.refuse_now():
                raise SpoolError(why)
            async with _opened(Folder.close, Folder, place.drop.folder) as folder:
                more = await self._empty(place, folder)
            place.up, place.why = True, ""
        except (OSError, SpoolError) as error:
            place.ready.clear()
            why = _why(error)
            if place.why != why:
                self._log.error("drop_failed", folder=str(place.drop.folder), drop=place.drop.name, why=why)
            place.up, place.why = False, why
        place.due = clock.monotonic() + (0.0 if more else place.drop.every)

    async def _empty(self, place: Place, folder: Folder) -> bool:
        """Takes what can be taken, up to BATCH; whether there is more. Raises OSError."""
        if not place.recovered:
            await _aside(folder.recover)
            place.recovered = True
        now = clock.now()
        place.later = {name: known for name, known in place.later.items() if now < known[1]}
        if len(place.later) >= MOST_KEPT:
            return False
        if not place.ready:
            wall = now + clock.drift()  # as the file system has it: a machine may be told the time after our start
            seen = await _aside(folder.look, wall, MOST_READY, lambda name, identity: place.rests(name, identity, now))
            self._tell_odd(place, seen)
            place.ready.extend(seen.files)
            place.more = seen.more
        slices = _slices(place.ready)
        found = await asyncio.gather(
            *(self._take(place, folder, slices) for _ in range(ABREAST)), return_exceptions=True
        )
        for error in found:
            if error is not None:
                raise error
        return bool(place.ready) or place.more

    async def _take(self, place: Place, folder: Folder, slices: Iterator[list[File]]) -> None:
        """One slice after the other: read by one thread, into the spool by one commit, away by one fsync. Raises OSError."""
        for files in slices:
            was = await _aside(read, folder, place.drop, files)
            async with asyncio.TaskGroup() as group:
                tasks = []
                for number, (file, found) in enumerate(zip(files, was, strict=True), 1):
                    tasks.append(group.create_task(self._file(place, folder, file, found)))
                    if number % BREATH == 0:
                        await asyncio.sleep(0)
            taken = [file for file, task in zip(files, tasks, strict=True) if task.result()]
            for (name, identity), error in zip(taken, await _aside(remove, folder, taken), strict=True):
                if error is None:
                    place.told.pop(name, None)
                else:
                    why = f"it is sent, and cannot be removed: {_why(error)}"
                    self._wait(place, name, identity, why, math.inf)

    def _tell_odd(self, place: Place, seen: Seen) -> None:
        for name, why in seen.odd.items():
            self._tell(place, name, why, "left")
        here = {*seen.odd, *place.later, *(name for name, _ in seen.files)}
        place.told = {name: why for name, why in place.told.items() if name in here}

    def _tell(self, place: Place, name: str, why: str, result: str) -> None:
        """Once, as long as it is the same."""
        if place.told.get(name) != why and len(place.told) < MOST_KEPT:
            place.told[name] = why
            FILES.inc(1, place.drop.name, result)
            self._log.warning(f"drop_{result}", drop=place.drop.name, file=_shown(name), why=why)

    async def _file(self, place: Place, folder: Folder, file: File, found: Read | Exception | None) -> bool:
        """One file; whether it is in the spool, and is to go away. Whatever is wrong with it, the others go on."""
        name, identity = file
        try:
            if isinstance(found, Exception):
                raise found
            submit = self._submit(place.drop, identity, found) if found else self._stream(place.drop, folder, file)
            FILES.inc(1, place.drop.name, "accepted" if await submit else "repeated")
            return True
        except (FileNotFoundError, Changed):
            return False
        except Odd as error:
            self._tell(place, name, str(error), "left")
        except BadMessage as error:
            await self._refused(place, folder, name, identity, error)
        except Exception as error:  # noqa: BLE001 - one file that nobody has thought of must not stop the folder
            self._wait(place, name, identity, _why(error))
        return False

    async def _refused(self, place: Place, folder: Folder, name: str, identity: Identity, no: BadMessage) -> None:
        why = f"{no.code} {no.enhanced} {no.text}"
        if no.code < 500:
            return self._wait(place, name, identity, why)
        try:
            await _aside(folder.refuse, name, identity, why)
        except OSError as error:
            self._wait(place, name, identity, f"{why}; it cannot be moved to {REFUSED}: {_why(error)}")
        else:
            FILES.inc(1, place.drop.name, "refused")
            self._log.warning("drop_refused", drop=place.drop.name, file=_shown(name), why=why)

    def _wait(self, place: Place, name: str, identity: Identity, why: str, seconds: float = LATER) -> None:
        place.later[name] = (identity, clock.now() + seconds)
        self._tell(place, name, why, "later")

    async def _submit(self, drop: Drop, identity: Identity, found: Read) -> bool:
        """A small file. Whether it is a new message; it is durable. Raises BadMessage, SpoolError."""
        self._must_fit(identity)
        incoming = Incoming(self._intake.spool, self._intake.budget)
        try:
            envelope = self._envelope(drop, found.letter)
            await _feed(incoming, found.content)
            _, fresh = await self._intake.accept(envelope, incoming, needs=found.needs)
            return fresh
        finally:
            incoming.release()

    async def _stream(self, drop: Drop, folder: Folder, file: File) -> bool:
        """A large one, as `_submit`, with a piece of it in memory. Raises Changed, Odd and OSError too."""
        name, identity = file
        self._must_fit(identity)
        incoming = Incoming(self._intake.spool, self._intake.budget)
        try:
            async with _opened(os.close, folder.open, name, identity) as descriptor:
                envelope, needs = await self._streamed(drop, identity, descriptor, incoming)
            _, fresh = await self._intake.accept(envelope, incoming, needs=needs)
            return fresh
        finally:
            incoming.release()

    async def _streamed(
        self, drop: Drop, identity: Identity, descriptor: int, incoming: Incoming
    ) -> tuple[Envelope, int]:
        """All of it into `incoming`; for whom it is, and what it needs of the next hop."""
        made = await _aside(digest, descriptor)
        reader, pieces = ContentReader(), _pieces(descriptor)
        front = bytearray()
        async for piece in pieces:
            front += reader.take(piece)
            if len(front) > MAX_HEAD:
                break
        complete = len(front) <= MAX_HEAD
        front += reader.end() if complete else b""
        letter = open_letter(bytes(front), complete)
        envelope = self._envelope(drop, letter)
        await _feed(incoming, prefix(drop, identity.key(made), letter) + front[letter.start :])
        async for piece in pieces:
            await _feed(incoming, reader.take(piece))
        await _feed(incoming, b"" if complete else reader.end())
        unchanged(descriptor, identity)
        return envelope, reader.needs

    def _must_fit(self, identity: Identity) -> None:
        """Raises BadMessage."""
        if identity.size > (most := self._intake.spool.max_message_size):
            raise BadMessage(552, "5.3.4", f"message is larger than {most} bytes")

    def _envelope(self, drop: Drop, letter: Letter) -> Envelope:
        """Raises BadMessage: a file is taken whole, or not at all."""
        user = self._config.users.get(drop.user)
        if drop.user and user is None:  # a reload took both away while this look was under way
            raise BadMessage(451, "4.3.0", f"there is no user {drop.user} any more")
        ascii_ = all(address.isascii() for address in (letter.sender, *letter.recipients))
        listen = Listen(drop.listener, Address("127.0.0.1", 0))
        envelope = Envelope(listen, "", "drop", "drop", letter.sender, smtputf8=not ascii_, user=user)
        if refusal := self._intake.refuse_sender(envelope):
            raise refusal
        if len(letter.recipients) > listen.max_recipients:
            raise BadMessage(554, "5.5.3", f"too many recipients, {listen.max_recipients} are allowed")
        refused = [no for r in letter.recipients if (no := self._intake.refuse_recipient(envelope, r)) is not None]
        if refused:
            raise next((no for no in refused if no.code < 500), refused[0])
        envelope.recipients = letter.recipients
        return envelope


async def _feed(incoming: Incoming, data: bytes | bytearray) -> None:
    if data and incoming.feed(bytes(data)):
        await incoming.spill()


async def _pieces(descriptor: int) -> AsyncIterator[bytes]:
    place = 0
    while piece := await _aside(os.pread, descriptor, SLICE, place):
        place += len(piece)
        yield piece


async def _aside(function: Callable[..., T], *arguments: Any) -> T:
    """On a thread, and to its end: who is cancelled closes what the thread works on."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await _end(work)
        raise


@contextlib.asynccontextmanager
async def _opened(close: Callable[[T], None], function: Callable[..., T], *arguments: Any) -> AsyncIterator[T]:
    """As `_aside`. What the thread has opened is closed, also where nobody waits for it any more."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        yield await asyncio.shield(work)
    finally:
        if await _end(work):
            close(work.result())


async def _end(work: asyncio.Future[Any]) -> bool:
    """Whether it came to something. What failed once nobody asks is heard all the same, or the loop complains of it."""
    await asyncio.wait([work])
    return not work.cancelled() and work.exception() is None


def _slices(ready: deque[File]) -> Iterator[list[File]]:
    """Those of one turn, each to be read at once: bounded in number and in bytes."""
    left = BATCH
    while ready and left > 0:
        files, size = list[File](), 0
        while ready and len(files) < min(AT_ONCE, left) and (not files or size + min(ready[0][1].size, SLICE) <= BYTES):
            files.append(ready.popleft())
            size += min(files[-1][1].size, SLICE)
        left -= len(files)
        yield files


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or (str(error) if isinstance(error, SpoolError) else repr(error))


def _shown(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
