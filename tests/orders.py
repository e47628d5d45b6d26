"""An application with an outbox, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fakes import Upstream
from postgres import pg
from rig import write_config

from relay import outbox
from relay.outbox import Reader, Submitter, Turn

__all__ = ["NOW", "Application", "app", "arrived", "configured", "mail", "pg", "socket", "turn"]

NOW = 1_800_000_000.0


class Application:
    """One that books orders."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.store = outbox.open_store(url)
        self.store.create()

    def connect(self) -> Any:
        if self.url.startswith("sqlite"):
            return sqlite3.connect(self.url.removeprefix("sqlite:///"))
        return psycopg.connect(self.url)

    def book(self, *names: str, **more: Any) -> list[str]:
        """One transaction; the keys."""
        with closing(self.connect()) as connection:
            keys = [outbox.enqueue(connection, mail(name) | more) for name in names]
            connection.commit()
        return keys

    def rows(self, *states: str) -> list[dict[str, Any]]:
        return self.store.rows(states or ["waiting", "refused", "in_doubt", "sent"], 1000)

    def execute(self, sql: str) -> None:
        with closing(self.connect()) as connection:
            connection.execute(sql)
            connection.commit()


@pytest.fixture(params=["sqlite", "postgresql"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Application]:
    if request.param == "sqlite":
        sqlite3.connect(tmp_path / "app.db").execute("VACUUM").connection.close()
        made = Application(f"sqlite:///{tmp_path}/app.db")
    else:
        made = Application(request.getfixturevalue("pg").database())
    yield made
    made.store.close()


def mail(name: str) -> dict[str, Any]:
    return {"from": "shop@example.com", "to": f"{name}@example.net", "subject": name, "text": "Thank you.\n"}


def configured(folder: Path, up: Upstream) -> Path:
    return write_config(folder, {"main": f"port: {up.port}, tls: none"})


def socket(folder: Path) -> Submitter:
    return Submitter(f"unix:{folder}/admin.sock")


async def turn(reader: Reader, now: float = NOW) -> Turn:
    return await asyncio.to_thread(reader.turn, now, 0.5)


def arrived(up: Upstream) -> list[str]:
    """Who got mail, each as often as he got it."""
    return sorted(t.recipients[0].partition("@")[0].strip("<") for t in up.transactions if t.done)
