"""What wakes an outbox's reader, and what keeps it from submitting."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing
from pathlib import Path

from fakes import Upstream
from orders import NOW, Application, app, arrived, configured, mail, pg, socket, turn
from postgres import Server
from rig import running, until, write_config

from relay import outbox
from relay.outbox import Reader, Turn
from relay.policy.backoff import DAY

__all__ = ["app", "pg"]


class Runs:
    """A reader that runs in a thread, and looks by itself once an hour."""

    def __init__(self, app: Application, folder: Path) -> None:
        self.turns: list[Turn] = []
        self._end = threading.Event()
        self._reader = Reader(app.url, socket(folder), poll=3600)
        self._thread = threading.Thread(target=self._reader.run, args=(self._end.wait, self.turns.append))
        self._thread.start()

    def end(self) -> None:
        self._end.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._reader.close()


async def test_a_commit_wakes_the_reader(app: Application, tmp_path: Path) -> None:
    async with Upstream() as up, running(configured(tmp_path, up)):
        reader = Runs(app, tmp_path)
        await until(lambda: reader.turns)
        app.book("ann")
        await until(lambda: arrived(up) == ["ann"])
        await until(lambda: not app.rows())
        app.book("bob", "eve")
        await until(lambda: arrived(up) == ["ann", "bob", "eve"])
        await asyncio.to_thread(reader.end)
        assert len(reader.turns) < 50 and not any(t.why for t in reader.turns), "it waits, and does not spin"


async def test_what_the_database_does_not_tell_is_found_by_looking(pg: Server, tmp_path: Path) -> None:
    app = Application(pg.database())
    async with Upstream() as up, running(configured(tmp_path, up)):
        end = threading.Event()
        reader = Reader(app.store, socket(tmp_path), poll=0.02)
        thread = threading.Thread(target=reader.run, args=(end.wait,))
        thread.start()
        with closing(app.connect()) as connection:
            outbox.enqueue(connection, mail("ann"), notify=False)
            connection.commit()
        await until(lambda: arrived(up) == ["ann"])
        end.set()
        await asyncio.to_thread(thread.join, 60)
    app.store.close()


async def test_a_connection_that_breaks_while_it_listens(pg: Server, tmp_path: Path) -> None:
    app = Application(pg.database())
    async with Upstream() as up, running(configured(tmp_path, up)):
        reader = Runs(app, tmp_path)
        await until(lambda: reader.turns)
        app.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'relay outbox' "
            "AND datname = current_database()"
        )
        await until(lambda: any("database" in t.why for t in reader.turns))
        app.book("ann")  # it looks when it is back
        await until(lambda: arrived(up) == ["ann"])
        app.book("bob")  # and listens again
        await until(lambda: arrived(up) == ["ann", "bob"])
        await asyncio.to_thread(reader.end)
    app.store.close()


# -- how long keys are known


async def test_doubt_is_shorter_than_the_relay_remembers(app: Application, tmp_path: Path) -> None:
    async with (
        Upstream() as up,
        running(write_config(tmp_path, {"main": f"port: {up.port}, tls: none"}, spool=", keep: 1d")),
    ):
        app.book("ann")
        found = await turn(Reader(app.store, socket(tmp_path)))
        assert "knows keys for 86400s" in found.why and "--doubt 86100s or less" in found.why and found.pause >= 1
        (row,) = app.rows("waiting")
        assert row["attempted_at"] is None and row["last_error"] == found.why
        assert (await turn(Reader(app.store, socket(tmp_path), doubt=DAY))).why
        assert (await turn(Reader(app.store, socket(tmp_path), doubt=86100))).sent == 1


async def test_a_relay_that_comes_back_with_another_memory(app: Application, tmp_path: Path) -> None:
    async with Upstream() as up:
        reader = Reader(app.store, socket(tmp_path))
        async with running(configured(tmp_path, up)):
            app.book("ann")
            assert (await turn(reader)).sent == 1
        app.book("bob")
        assert "admin.sock" in (await turn(reader)).why
        short = write_config(tmp_path, {"main": f"port: {up.port}, tls: none"}, spool=", keep: 1d")
        async with running(short):
            assert "spool.keep" in (await turn(reader, NOW + 60)).why
        async with running(configured(tmp_path, up)):
            assert (await turn(reader, NOW + 120)).sent == 1
