"""The outbox as its reader sees it: SQLite or PostgreSQL, in the few statements that both understand.

    take     marks rows as attempted and commits that, before anything is submitted
    settle   says what became of them, in one transaction
    stirs    waits until there may be more: PostgreSQL tells it (LISTEN), of SQLite it is asked often, for that is cheap

Rows are found by their state, never by an id above the last one seen: transactions commit in another order than they began.
On PostgreSQL what was taken stays locked until it is settled, and others pass over it (FOR UPDATE SKIP LOCKED); a reader that
dies lets go at once. On SQLite no lock outlives a mark: two readers would submit the same rows, which the relay takes once.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from relay import clock
from relay.outbox.table import STATES, TABLE, Dialect, channel, checked, ddl

MAX_BYTES = 8 << 20  # of the messages of one batch, but for a single one that is larger
PACE = 0.05  # seconds between two questions whether an SQLite file was changed
LOCK = 30.0  # seconds to wait for others that write
LONGEST = (
    3600.0  # seconds, and more than a row ever waits: one that is to wait longer was told so by a clock that was wrong
)
DOUBT = "it may have been sent: its first submission, whose answer never came, was so long ago that the relay may have "
DOUBT += "forgotten its key; look for it, then `relay outbox retry` or `drop`"


class OutboxError(Exception):
    """The database can't be used; what to do is in its text."""


@dataclass(frozen=True, slots=True)
class Row:
    id: int
    key: str
    message: str
    attempts: int  # this one too


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a row. `certain`: for one that waits, that the relay did not take it this time."""

    id: int
    kind: Literal["sent", "refused", "waits"]
    why: str = ""
    queue_id: str = ""
    next_at: float = 0.0
    certain: bool = False


class Store(ABC):
    """One table of one database; connects when it is first asked, and again after `close`. Raises OutboxError."""

    dialect: Dialect
    skip = ""  # what makes a SELECT lock its rows, and pass over those of others
    octets = "length(message)"  # JSON is mostly ASCII: near enough

    def __init__(self, table: str = TABLE) -> None:
        self.table = checked(table)
        self._taken_at = 0.0

    @abstractmethod
    def transaction(self, *, reads: bool = False) -> contextlib.AbstractContextManager[Callable[..., Any]]:
        """What executes a statement with `?`s, in a transaction of its own. `reads`: it writes nothing."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of everything; what was not settled is taken again."""

    @abstractmethod
    def stirs(self, seconds: float) -> bool:
        """Waits, at most so long, until something was committed since `take` looked; here, or it may be elsewhere."""

    def hold(self, ids: Sequence[int]) -> list[Row]:
        """Rows that were marked, to be submitted."""
        with self.transaction(reads=True) as execute:
            return self._read(execute, ids)

    # -- the reader

    def take(self, now: float, most: int, doubtful: float) -> tuple[list[Row], int]:
        """Rows to submit now, and how many became `in_doubt`: attempted before `doubtful`, and never answered."""
        due = f"FROM {self.table} WHERE state = 'waiting' AND (next_at <= ? OR next_at > ?)"
        times = now, now + LONGEST
        with self.transaction(reads=True) as execute:  # idle, it must not keep the application from writing
            if execute(f"SELECT id {due} LIMIT 1", times).fetchone() is None:
                return [], 0
        with self.transaction() as execute:
            sql = f"SELECT id, attempted_at, {self.octets} {due} ORDER BY id LIMIT ?{self.skip}"
            fit, old = _fitting(execute(sql, (*times, most)), doubtful)
            if old:
                sql = f"UPDATE {self.table} SET state = 'in_doubt', last_error = ? WHERE {_among(old)}"
                execute(sql, (DOUBT, *old))
            if fit:
                # What lies ahead was not the time of an attempt: the row would never be in doubt.
                first = "CASE WHEN attempted_at <= ? THEN attempted_at ELSE ? END"
                sql = f"UPDATE {self.table} SET attempts = attempts + 1, attempted_at = {first} WHERE {_among(fit)}"
                execute(sql, (now, now, *fit))
        self._taken_at = now
        return self.hold(fit) if fit else [], len(old)

    def settle(self, outcomes: Sequence[Outcome], now: float, keep: float = 0.0) -> None:
        """`keep`: seconds that what was sent stays in the table; 0: it goes at once."""
        with self.transaction() as execute:
            sent = [o for o in outcomes if o.kind == "sent"]
            if sent and not keep:
                ids = [o.id for o in sent]
                execute(f"DELETE FROM {self.table} WHERE {_among(ids)}", ids)
            for o in sent if keep else ():
                sql = "SET state = 'sent', sent_at = ?, queue_id = ?, last_error = ''"
                execute(f"UPDATE {self.table} {sql} WHERE id = ?", (now, o.queue_id, o.id))
            for o in outcomes:
                if o.kind == "refused":
                    sql = (
                        f"UPDATE {self.table} SET state = 'refused', last_error = ? WHERE id = ? AND state = 'waiting'"
                    )
                    execute(sql, (o.why, o.id))
                elif o.kind == "waits":
                    # Known not to be taken: it is as if this attempt had not been; one before it may still be in doubt.
                    at = "CASE WHEN attempted_at = ? THEN NULL ELSE attempted_at END" if o.certain else "attempted_at"
                    sql = f"SET next_at = ?, last_error = ?, attempted_at = {at} WHERE id = ? AND state = 'waiting'"
                    taken = (self._taken_at,) if o.certain else ()
                    execute(f"UPDATE {self.table} {sql}", (o.next_at, o.why, *taken, o.id))

    def forget(self, before: float) -> None:
        """Drops what was sent before a time."""
        with self.transaction() as execute:
            execute(f"DELETE FROM {self.table} WHERE state = 'sent' AND sent_at < ?", (before,))

    # -- a person

    def create(self) -> None:
        with self.transaction() as execute:
            for statement in ddl(self.dialect, self.table):
                execute(statement, ())

    def check(self) -> None:
        """Raises OutboxError where there is no table."""
        with self.transaction(reads=True) as execute:
            execute(f"SELECT id FROM {self.table} LIMIT 0", ())

    def rows(self, states: Sequence[str], limit: int) -> list[dict[str, Any]]:
        """The oldest first, without their messages."""
        columns = ("id", "key", "state", "created_at", "attempts", "attempted_at", "next_at", "queue_id", "last_error")
        marks = ", ".join("?" * len(states))
        sql = f"SELECT {', '.join(columns)} FROM {self.table} WHERE state IN ({marks}) ORDER BY id LIMIT ?"
        with self.transaction(reads=True) as execute:
            return [
                dict(zip(columns, map(_text, row), strict=True)) for row in execute(sql, (*states, limit)).fetchall()
            ]

    def counts(self) -> dict[str, int]:
        with self.transaction(reads=True) as execute:
            found = execute(f"SELECT state, count(*) FROM {self.table} GROUP BY state", ()).fetchall()
        return dict.fromkeys(STATES, 0) | {str(state): int(count) for state, count in found}

    def retry(self, ids: Sequence[int], states: Sequence[str]) -> int:
        """Makes rows wait again, as if they had never been tried; those of `ids`, or all in `states`."""
        return self._change("UPDATE {} SET state = 'waiting', next_at = 0, attempted_at = NULL", ids, states)

    def drop(self, ids: Sequence[int], states: Sequence[str]) -> int:
        return self._change("DELETE FROM {}", ids, states)

    def _change(self, what: str, ids: Sequence[int], states: Sequence[str]) -> int:
        marks = ", ".join("?" * len(states))
        more = f" AND {_among(ids)}" if ids else ""
        with self.transaction() as execute:
            sql = f"{what.format(self.table)} WHERE state IN ({marks}){more}"
            return int(execute(sql, (*states, *ids)).rowcount)

    def _read(self, execute: Callable[..., Any], ids: Sequence[int]) -> list[Row]:
        found = execute(
            f"SELECT id, key, message, attempts FROM {self.table} WHERE {_among(ids)} AND state = 'waiting' "
            f"ORDER BY id{self.skip}",
            ids,
        ).fetchall()
        return [Row(*row) for row in found]

    def _trouble(self, error: Exception, missing: bool) -> OutboxError:
        if missing:
            return OutboxError(f"there is no table {self.table}: `relay outbox create` makes it")
        return OutboxError(f"the database: {str(error).strip().splitlines()[0] if str(error).strip() else 'no answer'}")


class SqliteStore(Store):
    dialect: Dialect = "sqlite"

    def __init__(self, path: str, table: str = TABLE) -> None:
        super().__init__(table)
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._seen = 0

    @contextlib.contextmanager
    def transaction(self, *, reads: bool = False) -> Iterator[Callable[..., Any]]:
        try:
            connection = self._connection or self._open()
            # At once for writing: a lock that is asked for in the midst of a transaction may be refused without waiting.
            connection.execute("BEGIN" if reads else "BEGIN IMMEDIATE")
            try:
                yield connection.execute
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._trouble(error, "no such table" in str(error)) from None

    def take(self, now: float, most: int, doubtful: float) -> tuple[list[Row], int]:
        self._seen = self._version()  # before it looks: what is committed meanwhile is something new
        return super().take(now, most, doubtful)

    def stirs(self, seconds: float) -> bool:
        left, end = seconds, clock.monotonic() + seconds
        while left > 0:
            time.sleep(min(PACE, left))  # first: where others commit all the time it looks no more often
            if self._version() != self._seen:
                return True
            left = end - clock.monotonic()
        return False

    def _version(self) -> int:
        """Another number after each commit of others, whatever they wrote."""
        with self.transaction(reads=True) as execute:
            return int(execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if not Path(self.path).is_file():
            raise OutboxError(f"there is no database {self.path}: the application makes it, or the path is wrong")
        # By one thread at a time, which need not always be the same.
        made = sqlite3.connect(self.path, timeout=LOCK, isolation_level=None, check_same_thread=False)
        # Whoever wrote a row by hand may have written no UTF-8: that row is refused, and holds up no other.
        made.text_factory = _decoded
        self._connection = made
        return made


class PostgresStore(Store):
    """By psycopg. What was taken is locked, in a transaction that is open until it is settled."""

    dialect: Dialect = "postgresql"
    skip = " FOR UPDATE SKIP LOCKED"
    octets = "octet_length(message)"  # it is known without unpacking them

    def __init__(self, url: str, table: str = TABLE) -> None:
        super().__init__(table)
        try:
            import psycopg
        except ImportError:
            raise OutboxError("PostgreSQL wants psycopg: pip install 'relay-mta[postgres]'") from None
        self._psycopg, self._url = psycopg, url
        self._connection: psycopg.Connection[Any] | None = None
        self._listens = False

    @contextlib.contextmanager
    def transaction(self, *, reads: bool = False) -> Iterator[Callable[..., Any]]:
        with self._told():
            connection = self._connection or self._open()
            # The one that `hold` left open ends here: what is settled is so together with its locks.
            try:
                yield lambda sql, values: connection.execute(sql.replace("?", "%s"), values)
                connection.commit()
            except BaseException:
                if not connection.closed:
                    connection.rollback()
                raise

    def hold(self, ids: Sequence[int]) -> list[Row]:
        with self._told():
            connection = self._connection or self._open()
            rows = self._read(lambda sql, values: connection.execute(sql.replace("?", "%s"), values), ids)
            if not rows:
                connection.commit()  # another reader was faster; no transaction stays open over a pause
            return rows

    def take(self, now: float, most: int, doubtful: float) -> tuple[list[Row], int]:
        if not self._listens:  # before it looks; and who only looks needs no server that is written to
            with self.transaction() as execute:
                execute(f'LISTEN "{channel(self.table)}"', ())
            self._listens = True
        return super().take(now, most, doubtful)

    def stirs(self, seconds: float) -> bool:
        with self._told():
            connection = self._connection or self._open()
            return bool(
                list(connection.notifies(timeout=seconds, stop_after=1))
            )  # to the last of those that came together

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection, self._listens = None, False

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._psycopg.ProgrammingError as error:
            if error.sqlstate is None:
                # Before there was a server to ask; the text may show the URL, and so its password.
                raise OutboxError(
                    "the database's URL can't be read; it is such as postgresql://USER@HOST/NAME"
                ) from None
            raise self._trouble(error, isinstance(error, self._psycopg.errors.UndefinedTable)) from None
        except self._psycopg.Error as error:
            raise self._trouble(error, False) from None

    def _open(self) -> Any:
        # No statement is prepared: a pooler between may give each transaction another server, and LISTEN then has no effect.
        made = self._psycopg.connect(
            self._url, prepare_threshold=None, application_name="relay outbox", client_encoding="utf8"
        )
        if made.info.parameter_status("server_encoding") == "SQL_ASCII":
            # It takes any octets, and asked for UTF-8 hands out none of a batch with a row that is not. As of SQLite.
            made.execute("SET client_encoding = 'SQL_ASCII'")
            made.adapters.register_loader("text", self._loader())
        made.execute("SET idle_in_transaction_session_timeout = 0")  # the relay may take its time
        made.commit()
        self._connection = made
        return made

    def _loader(self) -> Any:
        class Text(self._psycopg.adapt.Loader):  # type: ignore[misc, name-defined]
            def load(self, data: Any) -> str:
                return _decoded(bytes(data))

        return Text


def open_store(url: str, table: str = TABLE) -> Store:
    """From sqlite:///app.db, sqlite:////var/lib/app/app.db or postgresql://…. Raises OutboxError, ValueError."""
    scheme, _, rest = url.partition("://")
    name = scheme.partition("+")[0].lower()  # postgresql+psycopg, as SQLAlchemy has it
    if name == "sqlite" and rest.startswith("/") and len(rest) > 1:
        return SqliteStore(unquote(rest[1:].partition("?")[0]), table)
    if name in ("postgresql", "postgres"):
        return PostgresStore(f"postgresql://{rest}", table)
    raise OutboxError("the database is sqlite:///FILE (sqlite:////FILE from the root) or postgresql://USER@HOST/NAME")


def shows_password(url: str) -> bool:
    """One that cannot be read may."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "@" in url
    return bool(parts.password) or not {"password", "sslpassword"}.isdisjoint(parse_qs(parts.query))


def _decoded(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _among(ids: Sequence[int]) -> str:
    return f"id IN ({', '.join('?' * len(ids))})"


def _fitting(found: Iterable[tuple[int, Any, int]], doubtful: float) -> tuple[list[int], list[int]]:
    """(as many as one request holds, and one at least; those that are in doubt). Reads on no further than it must."""
    fit, old, left = list[int](), list[int](), MAX_BYTES
    for number, at, size in found:
        if isinstance(at, int | float) and at < doubtful:  # SQLite keeps any text where a number should be
            old.append(number)
            continue
        left -= size
        if fit and left < 0:
            break
        fit.append(number)
    return fit, old
