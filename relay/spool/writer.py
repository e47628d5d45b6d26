"""The one connection that writes, and group commit.

Whatever waits goes into the next transaction; a lone job does not wait for company. A transaction runs as one function
on the connection's thread. One bad job never fails its group: on an error the group is rolled back and replayed one by
one, each in a transaction of its own. After an error of the disk nothing is replayed: all of the group fail.

The WAL is moved into the file between transactions, by us: SQLite's own checkpoint is part of a COMMIT and hides what the
disk said to it. What an fsync that failed means: docs/adr/0006-fsync-errors.md.
"""

from __future__ import annotations

import asyncio
import operator
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

import aiosqlite

from relay import clock, metrics
from relay.spool import SpoolCorrupt, SpoolError, SpoolFull, usual
from relay.spool.rows import MOST

T = TypeVar("T")

CHECKPOINT = 1000  # pages, by estimate, before the WAL is moved into the file
PAGE = 4096
DAMAGED = "stop the relay, keep a copy of its folder, then `relay spool check` and `relay spool salvage`"

COMMITS = metrics.Counter("relay_spool_commits_total", "Transactions committed to the spool")
COMMIT_SECONDS = metrics.Counter("relay_spool_commit_seconds_total", "Time spent in transactions of the spool")
COMMIT_ERRORS = metrics.Counter("relay_spool_errors_total", "Transactions of the spool that failed")


@dataclass(slots=True)
class Job(Generic[T]):
    """Work for the next transaction: `run(connection, jobs)` does all jobs of its kind at once, one result each."""

    run: Callable[[sqlite3.Connection, Sequence[Any]], Sequence[T]]
    work: Any
    done: asyncio.Future[T]
    rank: int
    size: int  # bytes beyond a few small rows
    then: Callable[[T | BaseException], None] | None = (
        None  # hears it before whoever waits goes on, and also if nobody does
    )
    at_once: Usual | None = None


# The rows that are all there is to a piece of work, and its result; None where there is more to it.
Usual = Callable[[Any], tuple[list[tuple[Any, ...]], Any] | None]


Ended = tuple[list[Job[Any]], list[Any], float]  # a group, its results, and when its transaction began

RECORD, ACCEPT, ACT, CLAIM = range(4)  # ranks, the order inside a transaction: a claim sees what was just accepted


def each(function: Callable[..., Any]) -> Callable[..., list[Any]]:
    """A job without work of its own."""
    return lambda connection, jobs: [function(connection) for _ in jobs]


def each_of(function: Callable[..., Any]) -> Callable[..., list[Any]]:
    return lambda connection, jobs: [function(connection, work) for work in jobs]


class Connection(aiosqlite.Connection):
    """aiosqlite, with a whole transaction as one call: a call costs 29 µs, a transaction has many statements."""

    async def open(self) -> None:
        """Connect. One that fails ends its thread before it tells: else that speaks to a loop that may be closed by then."""
        try:
            await self
        except BaseException:
            await asyncio.to_thread(self._thread.join)
            raise

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run `function(sqlite3 connection, *arguments)` on the connection's thread."""
        result: T = await self._execute(function, self._conn, *arguments)  # type: ignore[no-untyped-call]
        return result


def connect(path: str, *, read_only: bool = False) -> Connection:
    """A connection in autocommit mode; a transaction is BEGIN … COMMIT, said by us."""

    def connector() -> sqlite3.Connection:
        uri = f"file:{path.replace('%', '%25').replace('?', '%3f').replace('#', '%23')}"
        connection = sqlite3.connect(
            uri + ("?mode=ro" if read_only else ""),
            uri=True,
            isolation_level=None,
            cached_statements=256,
            check_same_thread=False,
            timeout=10.0,
        )
        connection.execute(f"PRAGMA cache_size = {-2048 if read_only else -6144}")
        connection.execute("PRAGMA temp_store = MEMORY")
        return connection

    made = Connection(connector, iter_chunk_size=64)
    # A forgotten connection must not keep the process alive.
    made._thread.daemon = True
    return made


class Writer:
    """Owns the writing connection and the queue in front of it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: deque[Job[Any]] = deque()  # filled on the loop, emptied on the thread
        self._running: asyncio.Task[None] | None = None
        self.beat = clock.monotonic()  # when the thread last answered: the watchdog's pulse
        self.damaged = ""  # what a damaged page said: until a restart
        self._refused = ""  # why the disk refused the last transaction
        self._stuck = ""  # why the WAL can't be moved into the file
        self._partial = False  # it was moved in part and that part not synced, because someone reads
        self._pages, self._changes = 0, 0  # since the last checkpoint
        self.commits = 0
        self._stir: asyncio.Event | None = None  # set at the next commit; there is one where somebody waits

    def submit(
        self,
        run: Callable[[sqlite3.Connection, Sequence[Any]], Sequence[T]],
        work: Any,
        rank: int,
        size: int = 0,
        then: Callable[[T | BaseException], None] | None = None,
        at_once: Usual | None = None,
    ) -> asyncio.Future[T]:
        """Enqueue; the future ends when the transaction has committed. Jobs of a lower rank run first in it."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(Job(run, work, done, rank, size, then, at_once))
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._drain(), name="spool-writer")
        return done

    async def close(self) -> None:
        while self._running is not None:
            await asyncio.wait([self._running])
        await self._checkpoint("TRUNCATE")
        await self._connection.close()

    @property
    def broken(self) -> str:
        """Why nothing can be kept durably; empty: it can."""
        return self.damaged or self._refused or self._stuck

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def stir(self) -> asyncio.Event:
        """Set at the next commit."""
        if self._stir is None:
            self._stir = asyncio.Event()
        return self._stir

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                self._ended(*await self._connection.call(self._groups, loop))
                if self._pages >= CHECKPOINT or self._stuck:
                    await self._checkpoint("PASSIVE")
        finally:
            self._running = None
            if self._waiting:
                self._running = loop.create_task(self._drain(), name="spool-writer")

    def _groups(self, connection: sqlite3.Connection, loop: asyncio.AbstractEventLoop) -> Ended:
        """On the thread: group after group, until nothing waits or the WAL is to be moved. Each is answered on the loop while
        the next one is written: to wait for a turn of the loop between two would cost as much as the fsync. The last one is
        returned, for the loop is called for that in any case."""
        while True:
            started = clock.monotonic()
            group: list[Job[Any]] = []
            while self._waiting:
                group.append(self._waiting.popleft())
            group.sort(key=_rank)
            try:
                results = _transaction(connection, group)
            except Exception as error:  # noqa: BLE001 - whatever it was, every waiting job must hear it
                results = [error] * len(group)
            self._pages += sum(job.size for job in group) // PAGE + connection.total_changes - self._changes
            self._changes = connection.total_changes
            if self._pages >= CHECKPOINT or self._stuck or not self._waiting:
                return group, results, started
            loop.call_soon_threadsafe(self._ended, group, results, started)

    def _ended(self, group: list[Job[Any]], results: list[Any], started: float) -> None:
        self.beat = clock.monotonic()
        COMMITS.inc()
        COMMIT_SECONDS.inc(self.beat - started)
        self._answer(group, results)
        self.commits += 1
        if self._stir is not None:
            self._stir.set()
            self._stir = None

    async def _checkpoint(self, mode: str) -> None:
        """Moves the WAL into the file. A disk that refuses it refuses mail: else the WAL would grow without end."""
        try:
            _, pages, moved = await self._connection.call(_checkpoint, mode)
        except sqlite3.Error as error:
            COMMIT_ERRORS.inc()
            self.note(translate(error))
            self._stuck = str(translate(error))
            if self._partial:
                _end(f"the disk of the spool failed ({error}) while pages of it were written back and not yet synced")
        else:
            self._pages, self._stuck, self._partial = 0, "", moved < pages

    def note(self, error: SpoolError) -> None:
        """A damaged page that was met, by whomever: there may be more."""
        if isinstance(error, SpoolCorrupt):
            self.damaged = str(error)

    def _answer(self, group: list[Job[Any]], results: list[Any]) -> None:
        self._refused = ""
        for job, result in zip(group, results, strict=True):
            if isinstance(result, BaseException):
                COMMIT_ERRORS.inc()
                if isinstance(result, SpoolFull):
                    self._refused = str(result)
                elif isinstance(result, SpoolError):
                    self.note(result)
                if not job.done.done():
                    job.done.set_exception(result)
                    # Whoever waited may be gone (a client that hung up): then nobody needs to hear it.
                    job.done.exception()
            elif not job.done.done():
                job.done.set_result(result)
        # Whoever waits goes on in the loop's next turn, when this has been done, and before what this sets going: the 250s
        # leave first.
        for job, result in zip(group, results, strict=True):
            if job.then is not None:
                job.then(result)


_rank = operator.attrgetter("rank")


def _checkpoint(connection: sqlite3.Connection, mode: str) -> tuple[int, int, int]:
    found: tuple[int, int, int] = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    return found


def _end(why: str) -> NoReturn:
    """At once, as a kill -9 would: to close the file is to move the WAL once more and to delete it.

    What was written back and not synced may be lost, and SQLite takes it for done. The next start moves all of the WAL.
    """
    os.write(2, f"relay: {why}; ended, so that the next start writes them again from its log\n".encode())
    os._exit(74)


def _transaction(connection: sqlite3.Connection, group: list[Job[Any]]) -> list[Any]:
    """All jobs in one transaction; their results in order, an exception where one failed."""
    try:
        return _commit(connection, group)
    except sqlite3.Error as error:
        if _of_the_disk(error):
            return [translate(error)] * len(group)
        if len(group) == 1:
            return [translate(error)]
    except Exception as error:  # noqa: BLE001 - a job that cannot be done fails alone
        if len(group) == 1:
            return [error]
    return [result for job in group for result in _transaction(connection, [job])]


def _at_once(connection: sqlite3.Connection, group: list[Job[Any]]) -> list[Any] | None:
    """All of a group in one statement, which is a transaction of its own; None where one of its jobs needs more, or has an
    idempotency key that is known: then nothing of it was written."""
    rows: list[tuple[Any, ...]] = []
    results = []
    for job in group:
        found = job.at_once(job.work) if job.at_once else None
        if found is None:
            return None
        rows += found[0]
        results.append(found[1])
    if len(rows) > MOST:
        return None
    try:
        usual.write(connection, rows)
    except sqlite3.IntegrityError:
        return None
    return results


def _commit(connection: sqlite3.Connection, group: list[Job[Any]]) -> list[Any]:
    if (done := _at_once(connection, group)) is not None:
        return done
    connection.execute("BEGIN IMMEDIATE")
    try:
        results: list[Any] = []
        start = 0
        while start < len(group):
            run, end = group[start].run, start
            while end < len(group) and group[end].run == run:
                end += 1
            results += run(connection, [job.work for job in group[start:end]])
            start = end
        connection.execute("COMMIT")
        return results
    except BaseException:
        # A failed COMMIT may have rolled back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _of_the_disk(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_READONLY,
    )


def translate(error: Exception) -> SpoolError:
    """In the spool's words, one line."""
    text = " ".join(str(error).split())
    if not isinstance(error, sqlite3.Error) or "decode to UTF-8" in text:
        return SpoolCorrupt(f"the spool is damaged (a value that cannot be: {text}); {DAMAGED}")
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return SpoolFull("the disk of the spool is full")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return SpoolCorrupt(f"the spool is damaged ({text}); {DAMAGED}")
    if _of_the_disk(error):
        return SpoolFull(f"the disk of the spool refused a write ({text})")
    return SpoolError(text)
