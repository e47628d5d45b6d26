"""Writing into the application's own transaction, by whatever connection it has. Never commits, never rolls back.

The one place that knows the libraries: by the module that a connection's class comes from, so that none is imported that is
not there. A connection in autocommit, outside of a transaction, commits by itself; then the row is a transaction of its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from relay import clock
from relay.outbox.message import row
from relay.outbox.table import TABLE, Dialect, channel, checked, ddl

_INSERT = "INSERT INTO {table} (key, message, created_at) VALUES (:key, :message, :at)"
_NAMES = ("key", "message", "at")
KNOWN = "sqlite3, aiosqlite, psycopg, psycopg2, SQLAlchemy (also SQLModel) and Django"


@dataclass(frozen=True)
class _Way:
    dialect: Callable[[Any], str]
    execute: Callable[[Any, str, dict[str, Any]], Any]


def enqueue(connection: Any, message: Any, key: str | None = None, *, table: str = TABLE, notify: bool = True) -> str:
    """The message is sent if the transaction of `connection` commits, once; returns its key.

    `key`: what makes this mail one of its kind, such as `order-17-confirmed`; default: a new UUID. `notify`:
    PostgreSQL wakes the reader at the commit; else it finds the row when it looks by itself. Raises what the database
    raises, and ValueError or TypeError for a message that is none.
    """
    made, values = _row(message, key)
    way = _sync(connection)
    way.execute(connection, _insert(way, connection, table, notify), values)
    return made


async def enqueue_async(
    connection: Any, message: Any, key: str | None = None, *, table: str = TABLE, notify: bool = True
) -> str:
    """As `enqueue`, for aiosqlite, psycopg's AsyncConnection, SQLAlchemy's AsyncSession and AsyncConnection."""
    made, values = _row(message, key)
    way = _async(connection)
    await way.execute(connection, _insert(way, connection, table, notify), values)
    return made


def create(connection: Any, table: str = TABLE) -> None:
    """Makes the table if it is not there; within the transaction, where there is one."""
    way = _sync(connection)
    for statement in ddl(_dialect(way, connection), table):
        way.execute(connection, statement, {})


async def create_async(connection: Any, table: str = TABLE) -> None:
    way = _async(connection)
    for statement in ddl(_dialect(way, connection), table):
        await way.execute(connection, statement, {})


def _row(message: Any, key: str | None) -> tuple[str, dict[str, Any]]:
    made, text = row(message, key, str(uuid.uuid4()))
    return made, {"key": made, "message": text, "at": clock.now()}


def _insert(way: _Way, connection: Any, table: str, notify: bool) -> str:
    sql = _INSERT.format(table=checked(table))
    if notify and _dialect(way, connection) == "postgresql":
        # Part of the same statement, so no round trip more. It is told at the commit, and after a rollback never.
        sql += f" RETURNING pg_notify('{channel(table)}', '')"
    return sql


def _dialect(way: _Way, connection: Any) -> Dialect:
    return way.dialect(connection)  # type: ignore[return-value]  # `ddl` refuses others


def _sync(connection: Any) -> _Way:
    way, is_async = _way(connection)
    if is_async:
        raise TypeError(f"{type(connection).__name__} is asynchronous: `await enqueue_async(...)`, `create_async(...)`")
    return way


def _async(connection: Any) -> _Way:
    way, is_async = _way(connection)
    if not is_async:
        raise TypeError(f"{type(connection).__name__} is not asynchronous: `enqueue(...)`, `create(...)`")
    return way


def _way(connection: Any) -> tuple[_Way, bool]:
    classes = type(connection).__mro__
    library = next((root for c in classes if (root := c.__module__.partition(".")[0]) in _WAYS), None)
    if library is None:
        raise TypeError(f"no known connection: {type(connection).__name__}; known are those of {KNOWN}")
    is_async = library == "aiosqlite" or any(c.__name__.lower().startswith("async") for c in classes)
    return _WAYS[library], is_async


# -- one way for each library


def _positional(mark: str) -> Callable[[str, dict[str, Any]], tuple[str, tuple[Any, ...]]]:
    def made(sql: str, values: dict[str, Any]) -> tuple[str, tuple[Any, ...]]:
        for name in values:
            sql = sql.replace(f":{name}", mark)
        return sql, tuple(values[name] for name in _NAMES if name in values)

    return made


_qmark, _format = _positional("?"), _positional("%s")


def _by_sqlite(connection: Any, sql: str, values: dict[str, Any]) -> Any:
    return connection.execute(*_qmark(sql, values))


def _by_psycopg(connection: Any, sql: str, values: dict[str, Any]) -> Any:
    return connection.execute(*_format(sql, values))


def _by_cursor(connection: Any, sql: str, values: dict[str, Any]) -> Any:
    """psycopg2 and Django: a connection alone can't execute, and a cursor may be what was given."""
    if hasattr(connection, "execute"):
        return connection.execute(*_format(sql, values))
    with connection.cursor() as cursor:
        cursor.execute(*_format(sql, values))


def _by_sqlalchemy(connection: Any, sql: str, values: dict[str, Any]) -> Any:
    from sqlalchemy import text

    return connection.execute(text(sql), values)


def _sqlalchemy_dialect(connection: Any) -> str:
    bound = connection.get_bind() if hasattr(connection, "get_bind") else connection
    return str(bound.dialect.name)


def _django_dialect(connection: Any) -> str:
    return str((connection if hasattr(connection, "vendor") else connection.db).vendor)  # a cursor knows its connection


_WAYS = {
    "sqlite3": _Way(lambda _: "sqlite", _by_sqlite),
    "aiosqlite": _Way(lambda _: "sqlite", _by_sqlite),
    "psycopg": _Way(lambda _: "postgresql", _by_psycopg),
    "psycopg2": _Way(lambda _: "postgresql", _by_cursor),
    "sqlalchemy": _Way(_sqlalchemy_dialect, _by_sqlalchemy),
    "django": _Way(_django_dialect, _by_cursor),
}
