"""Writing into an application's own transaction, by each library: there after its commit, gone after its rollback."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from email.message import EmailMessage
from email.mime.text import MIMEText
from pathlib import Path
from typing import Any

import aiosqlite
import psycopg
import psycopg2
import pytest
from postgres import Server, pg
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from relay import outbox

__all__ = ["pg"]

MAIL = {"from": "shop@example.com", "to": "ann@example.net", "subject": "50% :off", "text": "\0 ü ?"}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database with an outbox."""
    if request.param == "sqlite":
        sqlite3.connect(tmp_path / "app.db").execute("VACUUM").connection.close()
        url = f"sqlite:///{tmp_path}/app.db"
    else:
        url = request.getfixturevalue("pg").database()
    return made(url)


def made(url: str) -> str:
    with closing(outbox.open_store(url)) as store:
        store.create()
    return url


def rows(url: str) -> list[dict[str, Any]]:
    store = outbox.open_store(url)
    try:
        return store.rows(["waiting"], 100)
    finally:
        store.close()


# -- each way to a connection: a context manager that gives (connection, commit, rollback)


@contextmanager
def plain(url: str) -> Iterator[Any]:
    made = sqlite3.connect(url.removeprefix("sqlite:///")) if url.startswith("sqlite") else psycopg.connect(url)
    with closing(made):
        yield made, made.commit, made.rollback


@contextmanager
def cursor(url: str) -> Iterator[Any]:
    with plain(url) as (connection, commit, rollback):
        yield connection.cursor(), commit, rollback


def engine(url: str) -> Any:
    return create_engine(url.replace("postgresql:", "postgresql+psycopg:"))


@contextmanager
def session(url: str) -> Iterator[Any]:
    with Session(made := engine(url)) as found:
        yield found, found.commit, found.rollback
    made.dispose()


@contextmanager
def scoped(url: str) -> Iterator[Any]:
    found = scoped_session(sessionmaker(made := engine(url)))
    yield found, found.commit, found.rollback
    found.remove()
    made.dispose()


@contextmanager
def core(url: str) -> Iterator[Any]:
    with (made := engine(url)).connect() as found:
        yield found, found.commit, found.rollback
    made.dispose()


# -- and those of psycopg2, which knows PostgreSQL alone


@contextmanager
def plain2(url: str) -> Iterator[Any]:
    with closing(psycopg2.connect(url)) as made:
        yield made, made.commit, made.rollback


@contextmanager
def cursor2(url: str) -> Iterator[Any]:
    with plain2(url) as (connection, commit, rollback), connection.cursor() as found:
        yield found, commit, rollback


@contextmanager
def session2(url: str) -> Iterator[Any]:
    with Session(made := create_engine(url.replace("postgresql:", "postgresql+psycopg2:"))) as found:
        yield found, found.commit, found.rollback
    made.dispose()


SYNC: list[Callable[[str], Any]] = [plain, cursor, session, scoped, core]


@pytest.mark.parametrize("way", SYNC, ids=lambda way: way.__name__)
def test_there_after_a_commit_alone(url: str, way: Callable[[str], Any]) -> None:
    written(url, way)


@pytest.mark.parametrize("way", [plain2, cursor2, session2], ids=lambda way: way.__name__)
def test_there_after_a_commit_alone_by_psycopg2(pg: Server, way: Callable[[str], Any]) -> None:
    written(made(pg.database()), way)


def written(url: str, way: Callable[[str], Any]) -> None:
    with closing(outbox.open_store(url)) as reader, way(url) as (connection, commit, rollback):
        outbox.create(connection)  # it is there
        commit()
        assert reader.take(1e10, 10, 0) == ([], 0)
        outbox.enqueue(connection, MAIL)
        rollback()
        assert rows(url) == [] and not reader.stirs(0)
        key = outbox.enqueue(connection, MAIL)
        assert rows(url) == []  # it commits nothing itself
        outbox.enqueue(connection, MAIL, key="order-17")
        assert not reader.stirs(0)
        commit()
        assert reader.stirs(60)  # it is told at the commit
    found = rows(url)
    assert [row["key"] for row in found] == [key, "order-17"]
    store = outbox.open_store(url)
    taken, _ = store.take(1e10, 10, 0)
    store.close()
    assert [json.loads(row.message) for row in taken] == [MAIL, MAIL]


@asynccontextmanager
async def asynchronous(url: str) -> AsyncIterator[Any]:
    if url.startswith("sqlite"):
        async with aiosqlite.connect(url.removeprefix("sqlite:///")) as database:
            yield database, database.commit, database.rollback
    else:
        async with await psycopg.AsyncConnection.connect(url) as connection:
            yield connection, connection.commit, connection.rollback


@asynccontextmanager
async def async_session(url: str) -> AsyncIterator[Any]:
    async with AsyncSession(made := async_engine(url)) as found:
        yield found, found.commit, found.rollback
    await made.dispose()


@asynccontextmanager
async def async_core(url: str) -> AsyncIterator[Any]:
    async with (made := async_engine(url)).connect() as found:
        yield found, found.commit, found.rollback
    await made.dispose()


def async_engine(url: str) -> AsyncEngine:
    return create_async_engine(
        url.replace("postgresql:", "postgresql+psycopg:").replace("sqlite:", "sqlite+aiosqlite:")
    )


@pytest.mark.parametrize("way", [asynchronous, async_session, async_core], ids=lambda way: way.__name__)
async def test_there_after_a_commit_alone_async(url: str, way: Callable[[str], Any]) -> None:
    async with way(url) as (connection, commit, rollback):
        await outbox.create_async(connection)
        await commit()
        reader = outbox.open_store(url)
        assert await asyncio.to_thread(reader.take, 1e10, 10, 0) == ([], 0)
        await outbox.enqueue_async(connection, MAIL)
        await rollback()
        key = await outbox.enqueue_async(connection, MAIL)
        assert await asyncio.to_thread(rows, url) == []
        await commit()
        assert await asyncio.to_thread(reader.stirs, 60)
        reader.close()
        with pytest.raises(TypeError, match="enqueue_async"):
            outbox.enqueue(connection, MAIL)
    assert [row["key"] for row in await asyncio.to_thread(rows, url)] == [key]


def test_who_does_not_want_to_notify(pg: Server) -> None:
    url = made(pg.database())
    with closing(outbox.open_store(url)) as reader, plain(url) as (connection, commit, _):
        reader.take(1e10, 10, 0)
        outbox.enqueue(connection, MAIL, notify=False)
        commit()
        assert len(rows(url)) == 1 and not reader.stirs(0)


def test_two_phases_and_notifications_exclude_each_other(pg: Server) -> None:
    """PREPARE TRANSACTION takes none that notified: `notify=False` is for them."""
    url = made(pg.database())
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute("BEGIN")
        outbox.enqueue(connection, MAIL)
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="NOTIFY"):
            connection.execute("PREPARE TRANSACTION 'a'")
        connection.execute("BEGIN")
        key = outbox.enqueue(connection, MAIL, notify=False)
        connection.execute("PREPARE TRANSACTION 'b'")
        assert rows(url) == []
        connection.execute("COMMIT PREPARED 'b'")
    assert [row["key"] for row in rows(url)] == [key]


def test_a_table_in_a_schema_of_its_own(pg: Server) -> None:
    url = pg.database()
    with plain(url) as (connection, commit, _):
        connection.execute("CREATE SCHEMA mail")
        outbox.create(connection, "mail.order")
        commit()
        with closing(outbox.open_store(url, "mail.order")) as reader:
            assert reader.take(1e10, 10, 0) == ([], 0)
            outbox.enqueue(connection, MAIL, table="mail.order")
            commit()
            assert reader.stirs(60)


def test_a_key_is_there_once(url: str) -> None:
    with plain(url) as (connection, commit, rollback):
        outbox.enqueue(connection, MAIL, key="order-17")
        commit()
        with pytest.raises((sqlite3.IntegrityError, psycopg.errors.UniqueViolation)):
            outbox.enqueue(connection, MAIL, key="order-17")
        rollback()


async def test_what_is_no_connection_and_what_is_no_message(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no known connection: int"):
        outbox.enqueue(3, MAIL)
    with closing(sqlite3.connect(tmp_path / "app.db")) as database:
        outbox.create(database)
        for message in ({"to": "a@example.com"}, {"from": "a@example.com"}, {}, EmailMessage()):
            with pytest.raises(ValueError, match=r"From|from"):
                outbox.enqueue(database, message)
        for message in ("text", None, MAIL | {"text": b"octets"}):
            with pytest.raises(TypeError):
                outbox.enqueue(database, message)
        for text in ("x\ud800", "\udcff"):
            with pytest.raises(ValueError, match="no Unicode"):
                outbox.enqueue(database, MAIL | {"text": text})
        outbox.enqueue(database, MAIL | {"text": "\U0001f600"})
        for key in (" a", "ü", "a\n", "x" * 201):
            with pytest.raises(ValueError, match="ASCII"):
                outbox.enqueue(database, MAIL, key=key)
        with pytest.raises(ValueError, match="differ"):
            outbox.enqueue(database, MAIL | {"idempotency_key": "a"}, key="b")
        assert outbox.enqueue(database, MAIL | {"idempotency_key": "a"}) == "a"
        with pytest.raises(ValueError, match="lower-case"):
            outbox.enqueue(database, MAIL, table="x; DROP TABLE y")
        with pytest.raises(TypeError, match="not asynchronous"):
            await outbox.enqueue_async(database, MAIL)


def test_a_whole_message_and_its_envelope() -> None:
    message = EmailMessage()
    message["From"], message["To"] = "Shop <shop@example.com>", 'Ann <ann@example.net>, "B, C" <bc@example.net>'
    message["Bcc"] = "books@example.com, ann@example.net"
    message.set_content("From here on: größer\n")
    found = outbox.wire(message)
    assert found["from"] == "shop@example.com"
    assert found["to"] == ["ann@example.net", "bc@example.net", "books@example.com"]
    content = base64.b64decode(found["raw"])
    assert b"books@" not in content and b"\r\nFrom here" in content and b"\n" not in content.replace(b"\r\n", b"")
    assert message["Bcc"], "the application's own is as it was"
    old = MIMEText("From here\n")
    old["From"], old["To"], old["Sender"] = "a@example.com", "b@example.com", "s@example.com"
    assert outbox.wire(old)["from"] == "s@example.com"
    assert b"\r\nFrom here" in base64.b64decode(outbox.wire(old)["raw"])


def test_the_statements_are_those_of_create(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "app.db")) as database:
        for statement in outbox.ddl("sqlite", "mail_out"):
            database.execute(statement)
        outbox.enqueue(database, MAIL, table="mail_out")
        database.execute(f"ATTACH '{tmp_path}/mail.db' AS mail")
        outbox.create(database, "mail.box")
        outbox.enqueue(database, MAIL, table="mail.box")
        assert database.execute("SELECT name FROM mail.sqlite_master WHERE sql LIKE '% INDEX %'").fetchall() == [
            ("box_waiting",)
        ]
    with pytest.raises(ValueError, match="no outbox for mysql"):
        outbox.ddl("mysql")  # type: ignore[arg-type]
