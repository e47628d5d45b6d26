"""The reader of an outbox, SQLite's and PostgreSQL's, before a real relay: what was committed is sent, once, whatever fails."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fakes import Upstream
from postgres import Server, server
from rig import ENV, free_port, running, until, write_config

from relay import outbox
from relay.outbox import Reader, Refused, Submitter, Turn, Waits
from relay.policy.backoff import DAY

NOW = 1_800_000_000.0


@pytest.fixture(scope="module", name="pg")
def _pg() -> Iterator[Server]:
    with server() as found:
        yield found


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


async def test_sent_if_and_only_if_it_was_committed(app: Application, tmp_path: Path) -> None:
    async with Upstream() as up, running(configured(tmp_path, up)) as rig:
        reader = Reader(app.url, socket(tmp_path))
        with closing(app.connect()) as connection:
            outbox.enqueue(connection, mail("nobody"))
            assert (await turn(reader)).sent == 0 or app.url.startswith("sqlite")
            connection.rollback()
        app.book("ann", "bob")
        found = await turn(reader)
        assert (found.sent, found.repeated, found.why) == (2, 0, "")
        assert app.rows() == []
        idle = await turn(reader)
        assert idle.sent == 0 and idle.pause > 0
        await rig.settled()
        assert arrived(up) == ["ann", "bob"]
        reader.close()


async def test_what_was_sent_stays_as_long_as_one_wants(app: Application, tmp_path: Path) -> None:
    async with Upstream() as up, running(configured(tmp_path, up)) as rig:
        reader = Reader(app.url, socket(tmp_path), keep=DAY)
        app.book("ann")
        await turn(reader)
        (row,) = app.rows("sent")
        assert (await rig.message(row["queue_id"]))["tag"] == ""
        await turn(reader, NOW + DAY / 2)
        assert len(app.rows("sent")) == 1
        await turn(reader, NOW + DAY + 1)
        assert app.rows() == []
        reader.close()


class Crash(Exception):
    """The reader's end."""


async def test_a_reader_that_dies_after_the_relay_took_it(app: Application, tmp_path: Path) -> None:
    async with Upstream() as up, running(configured(tmp_path, up)) as rig:
        real = socket(tmp_path)

        def dying(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
            real(messages)
            raise Crash

        app.book("ann", "bob")
        reader = Reader(app.url, dying)
        with pytest.raises(Crash):
            await turn(reader)
        reader.close()  # as the kernel does
        (first, _) = app.rows("waiting")
        assert first["attempted_at"] == NOW and first["attempts"] == 1
        second = Reader(app.url, real)
        found = await turn(second, NOW + 60)
        assert (found.sent, found.repeated) == (2, 2)
        assert app.rows() == []
        await rig.settled()
        assert arrived(up) == ["ann", "bob"]
        second.close()


async def test_what_may_have_been_sent_long_ago_is_left_to_a_person(app: Application, tmp_path: Path) -> None:
    def silent(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        raise Waits("no answer", certain=False)

    def away(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        raise Waits("refused", certain=True)

    app.book("ann")
    reader = Reader(app.store, silent)
    assert (await turn(reader)).why == "no answer"
    # Of what the relay certainly did not take this time, the time before is still in doubt.
    reader = Reader(app.store, away)
    await turn(reader, NOW + DAY)
    app.book("bob")
    for day in range(2, 5):
        assert (await turn(reader, NOW + day * DAY)).in_doubt == 0
    found = await turn(reader, NOW + 6 * DAY)
    assert found.in_doubt == 1
    (row,) = app.rows("in_doubt")
    assert "may have been sent" in row["last_error"]
    await turn(reader, NOW + 30 * DAY)
    (waiting,) = app.rows("waiting")
    assert waiting["attempted_at"] is None and waiting["last_error"] == "refused"  # bob's: never taken by anybody
    assert app.store.retry([row["id"]], ["in_doubt"]) == 1
    async with Upstream() as up, running(configured(tmp_path, up)) as rig:
        reader = Reader(app.store, socket(tmp_path))
        assert (await turn(reader, NOW + 31 * DAY)).sent == 2
        await rig.settled()
        assert arrived(up) == ["ann", "bob"]


async def test_two_readers_share_the_work(app: Application, tmp_path: Path) -> None:
    names = [f"n{i:03}" for i in range(300)]
    async with Upstream() as up, running(configured(tmp_path, up)) as rig:
        for i in range(0, 300, 50):
            app.book(*names[i : i + 50])
        turns: list[Turn] = []
        together = threading.Barrier(2)

        def read() -> None:
            reader = Reader(app.url, socket(tmp_path), batch=20)
            together.wait(20)
            while True:
                found = reader.turn(NOW, 0.5)
                turns.append(found)
                if not found.sent and not app_has_rows():
                    break
            reader.close()

        def app_has_rows() -> bool:
            store = outbox.open_store(app.url)
            try:
                return store.counts()["waiting"] > 0
            finally:
                store.close()

        await asyncio.gather(*(asyncio.to_thread(read) for _ in range(2)))
        await rig.settled()
        assert Counter(arrived(up)) == Counter(names)
        assert app.rows() == []
        if app.url.startswith("postgresql"):
            assert sum(t.sent for t in turns) == 300 and sum(t.repeated for t in turns) == 0


async def test_commits_in_another_order(pg: Server, tmp_path: Path) -> None:
    app = Application(pg.database())
    async with Upstream() as up, running(configured(tmp_path, up)) as rig:
        reader = Reader(app.store, socket(tmp_path))
        with closing(app.connect()) as slow:
            outbox.enqueue(slow, mail("first"))
            app.book("second")
            assert (await turn(reader)).sent == 1
            slow.commit()
        assert (await turn(reader)).sent == 1
        await rig.settled()
        assert arrived(up) == ["first", "second"]
    app.store.close()


async def test_who_is_refused_holds_up_nobody(app: Application, tmp_path: Path) -> None:
    async with Upstream() as up, running(configured(tmp_path, up)) as rig:
        reader = Reader(app.store, socket(tmp_path))
        app.book("ann")
        app.book("bad", to="no address", key="k")
        app.book("unknown", nonsense=1)
        app.execute("INSERT INTO relay_outbox (key, message, created_at) VALUES ('by-hand', 'no JSON', 0)")
        app.book("bob")
        found = await turn(reader)
        assert (found.sent, found.refused) == (2, 3)
        assert app.rows("waiting") == []
        why = [row["last_error"] for row in app.rows("refused")]
        assert why[0].startswith("400: ") and why[1].startswith("400: ") and "JSON" in why[2]
        await rig.settled()
        assert arrived(up) == ["ann", "bob"]


async def test_a_relay_that_is_down_is_waited_for(app: Application, tmp_path: Path) -> None:
    async with Upstream() as up:
        file = configured(tmp_path, up)
        reader = Reader(app.store, socket(tmp_path))
        app.book("ann", "bob")
        pauses = []
        for _ in range(8):
            found = await turn(reader)
            assert "admin.sock" in found.why and not found.sent
            pauses.append(found.pause)
        assert pauses == sorted(pauses) and 1 <= pauses[0] < pauses[-1] <= 60
        assert {row["attempted_at"] for row in app.rows("waiting")} == {None}
        async with running(file) as rig:
            assert (await turn(reader)).sent == 1  # one by one, at first
            assert (await turn(reader)).sent == 1
            await rig.settled()
            assert arrived(up) == ["ann", "bob"]


async def test_a_spool_that_is_full_is_waited_for(app: Application, tmp_path: Path) -> None:
    async with Upstream() as up, running(configured(tmp_path, up)) as rig:
        reader = Reader(app.store, socket(tmp_path))
        app.book("ann")
        rig.app.spool.reserve = 1 << 62  # more than any disk has
        rig.app.spool.check_room()
        found = await turn(reader)
        assert "503" in found.why and found.pause >= 1
        (row,) = app.rows("waiting")
        assert row["attempted_at"] is None
        rig.app.spool.reserve = 0
        rig.app.spool.check_room()
        assert (await turn(reader, NOW + 3600)).sent == 1


async def test_a_row_that_brings_requests_down_is_found(app: Application) -> None:
    """Of forty one that no request may hold, and one at which the relay goes silent."""
    sent: list[str] = []

    def submit(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        subjects = [str(m["subject"]) for m in messages]
        if "poison" in subjects:
            raise Refused("413")
        if "silence" in subjects:
            raise Waits("no answer", certain=False)
        sent.extend(subjects)
        return [{"status": 202, "queue_id": "1", "repeated": False} for _ in messages]

    names = [f"n{i}" for i in range(40)]
    app.book(*names[:10], "poison", *names[10:25], "silence", *names[25:])
    reader, now = Reader(app.store, submit, batch=30), NOW
    for _ in range(60):
        found = await turn(reader, now)
        now += found.pause
        if len(sent) == 40:
            break
    assert sorted(sent) == sorted(names)
    assert [row["last_error"] for row in app.rows("refused")] == ["413"]
    (row,) = app.rows("waiting")
    assert row["next_at"] > NOW and row["attempted_at"] is not None


BY_HAND = {
    "nan": "INSERT INTO relay_outbox (key, message, created_at) VALUES ('k', '{\"metadata\": {\"a\": NaN}}', 0)",
    "infinity": "INSERT INTO relay_outbox (key, message, created_at) VALUES ('k', '{\"metadata\": {\"a\": 1e999}}', 0)",
    "octets_as_key": "INSERT INTO relay_outbox (key, message, created_at) VALUES (x'6b', '{}', 0)",
    "key_not_utf8": "INSERT INTO relay_outbox (key, message, created_at) VALUES (CAST(x'6bff' AS TEXT), '{}', 0)",
    "attempted_never": "INSERT INTO relay_outbox (key, message, created_at, attempted_at) VALUES ('k', '[]', 0, CAST('x' AS TEXT))",
    "booked_never": "INSERT INTO relay_outbox (key, message, created_at, next_at) VALUES ('k', '[]', CAST('x' AS TEXT), "
    "CAST('x' AS TEXT))",
    "not_utf8": "INSERT INTO relay_outbox (key, message, created_at) VALUES ('k', CAST(x'7b22ff223a317d' AS TEXT), 0)",
}


# What PostgreSQL lets in where its database is of no encoding.
BY_HAND_ASCII = {
    "key_not_utf8": r"INSERT INTO relay_outbox (key, message, created_at) VALUES (E'k\xff', '{}', 0)",
    "not_utf8": r"""INSERT INTO relay_outbox (key, message, created_at) VALUES ('k', E'{"\xff":1}', 0)""",
}


@pytest.mark.parametrize("name", BY_HAND)
async def test_a_row_that_was_written_by_hand_holds_up_nobody(
    app: Application, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sql = BY_HAND[name]
    if name in BY_HAND_ASCII and app.store.dialect == "postgresql":
        with pytest.raises(psycopg.Error):
            app.execute(BY_HAND_ASCII[name])  # a database in UTF-8 lets none in
        app = Application(request.getfixturevalue("pg").database("SQL_ASCII"))
        sql = BY_HAND_ASCII[name]
    async with Upstream() as up, running(configured(tmp_path, up)):
        reader = Reader(app.url, socket(tmp_path))
        app.book("ann")
        app.execute(sql)
        app.book("bob")
        for _ in range(8):
            await turn(reader)
        await until(lambda: arrived(up) == ["ann", "bob"])
        (row,) = app.rows()
        assert row["state"] == "refused" and row["last_error"], row
        json.dumps(row)
        reader.close()
        app.store.close()


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


@pytest.mark.parametrize("detail", ["a\0b", "half \ud800"], ids=["nul", "half"])
async def test_whatever_is_answered_can_be_kept(app: Application, detail: str) -> None:
    app.book("ann")
    assert (await turn(Reader(app.store, lambda _: [{"status": 422, "detail": detail}]))).refused == 1
    (row,) = app.rows("refused")
    assert row["last_error"] == "422: " + detail.replace("\0", "?").replace("\ud800", "?")


STRANGERS = {
    "proxy": (b"400 Bad Request", "waiting"),
    "unread": (b"422 No", "waiting"),
    "large": (b"413 Too Large", "refused"),
}


@pytest.mark.parametrize("name", STRANGERS)
async def test_what_is_no_relay_refuses_no_row(app: Application, name: str) -> None:
    """Such as nginx, where somebody wrote http for https; but what is too large for who is in between is so for ever."""
    line, state = STRANGERS[name]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>" % line)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as stranger:
        port = stranger.sockets[0].getsockname()[1]
        app.book("ann")
        found = await turn(Reader(app.store, Submitter(f"http://127.0.0.1:{port}", token="x")))
    assert [row["state"] for row in app.rows()] == [state]
    assert (found.pause >= 1 and line[:3].decode() in found.why) if state == "waiting" else not found.why


async def test_a_clock_that_was_wrong_keeps_no_row_for_ever(app: Application) -> None:
    """A machine without a clock of its own starts in another year, and is put right."""
    told: list[int] = []

    def submit(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        told.append(len(messages))
        if len(told) == 1:
            return [{"status": 503, "detail": "later"} for _ in messages]
        if len(told) == 2:
            raise Waits("no answer", certain=False)
        return [{"status": 202, "queue_id": "1", "repeated": False} for _ in messages]

    app.book("ann")
    reader = Reader(app.store, submit)
    await turn(reader, NOW + 365 * DAY)
    (row,) = app.rows()
    assert row["next_at"] > NOW + 364 * DAY
    await turn(reader, NOW)  # it is put right, and that submission has no answer
    (row,) = app.rows()
    assert row["attempted_at"] == NOW and row["next_at"] <= NOW + 300
    app.execute(f"UPDATE relay_outbox SET attempted_at = {NOW + 365 * DAY}")
    await turn(reader, NOW + 600)
    assert len(told) == 3 and app.rows() == []


async def test_a_database_that_goes_away(app: Application, tmp_path: Path) -> None:
    async with Upstream() as up, running(configured(tmp_path, up)):
        reader = Reader(app.url, socket(tmp_path))
        app.book("ann")
        app.execute("ALTER TABLE relay_outbox RENAME TO elsewhere")
        found = await turn(reader)
        assert "there is no table relay_outbox" in found.why and found.pause >= 1
        app.execute("ALTER TABLE elsewhere RENAME TO relay_outbox")
        assert (await turn(reader)).sent == 1
        reader.close()


async def test_large_rows_go_in_requests_that_the_relay_takes(app: Application, tmp_path: Path) -> None:
    async with Upstream() as up, running(configured(tmp_path, up)) as rig:
        reader = Reader(app.store, socket(tmp_path))
        for name in ("a", "b", "c", "d"):
            app.book(name, text="x" * 70 + "\n" + ("y" * 70 + "\n") * 42000)
        sent = [(await turn(reader)).sent for _ in range(2)]
        assert sent == [2, 2]
        await rig.settled()
        assert arrived(up) == ["a", "b", "c", "d"]


# -- by tokens, and by the verbs


async def test_over_tcp_by_a_token(app: Application, tmp_path: Path) -> None:
    async with Upstream() as up:
        file = configured(tmp_path, up)
        file.write_text(file.read_text().replace("address: null", f'address: "127.0.0.1:{free_port()}"'))
        async with running(file) as rig:
            url = f"http://{rig.app.config.admin.address}"
            app.book("ann")
            found = await turn(Reader(app.store, Submitter(url, token="relay_wrong")))
            assert "401" in found.why and app.rows("waiting")[0]["attempted_at"] is None
            token = await asyncio.to_thread(made_token, tmp_path)
            elsewhere = await turn(Reader(app.store, Submitter(f"{url}/elsewhere", token=token)))
            assert "does not say for how long it knows keys" in elsewhere.why
            assert (await turn(Reader(app.store, Submitter(url, token=token)))).sent == 1


def made_token(folder: Path) -> str:
    import http.client
    import socket as sockets

    connection = http.client.HTTPConnection("localhost", timeout=10)
    connection.sock = sockets.socket(sockets.AF_UNIX)
    connection.sock.connect(str(folder / "admin.sock"))
    body = json.dumps({"name": "outbox", "scopes": ["submit"]})
    connection.request("POST", "/v1/tokens", body, {"Content-Type": "application/json"})
    with closing(connection):
        return str(json.loads(connection.getresponse().read())["token"])


Verb = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def verb(app: Application, tmp_path: Path) -> Verb:
    """`relay outbox …` on the application's database."""
    env = ENV | {"RELAY_OUTBOX_DATABASE": app.url, "RELAY_ENDPOINT": str(tmp_path / "admin.sock")}

    def run(*arguments: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "relay", "outbox", *arguments],
            capture_output=True, text=True, timeout=60, check=False, env=env | more,
        )  # fmt: skip
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    return run


async def test_the_verbs(app: Application, verb: Verb, tmp_path: Path) -> None:
    async with Upstream() as up, running(configured(tmp_path, up)) as rig:
        assert "relay_outbox is there" in verb("create").stdout
        assert "CREATE TABLE IF NOT EXISTS other (" in verb("create", "--show", "--table", "other").stdout
        app.book("ann", "bob")
        app.book("bad", to="no address")
        app.book("worse", to="no address")
        assert len(verb("list").stdout.splitlines()) == 4
        said = (await asyncio.to_thread(verb, "run", "--once")).stderr
        assert "outbox: 2 sent, 2 refused\n" in said
        await rig.settled()
        assert arrived(up) == ["ann", "bob"]
        rows = json.loads(verb("list", "--state", "refused", "--json").stdout)
        first, second = (str(row["id"]) for row in rows)
        assert verb("retry", first).stdout == "1 row to be submitted again\n"
        assert len(verb("list", "--state", "waiting").stdout.splitlines()) == 1
        assert "2 refused" not in (await asyncio.to_thread(verb, "run", "--once")).stderr
        assert "say --yes" in verb("drop", "--all", "refused", code=64).stderr
        assert verb("drop", first).stdout == "1 row dropped\n"
        assert "1 of those named" in verb("drop", first, second, code=65).stderr
        assert app.rows() == []
        verb("retry", code=64)
        verb("drop", "1", "--all", "refused", code=64)


def test_the_verbs_say_what_is_wrong(app: Application, verb: Verb, tmp_path: Path) -> None:
    assert "there is no table nowhere" in verb("list", "--table", "nowhere", code=69).stderr
    assert "lower-case" in verb("list", "--table", "No where", code=64).stderr
    assert "sqlite:///FILE" in verb("list", "--database", "mysql://a@b/c", code=78).stderr
    for url in ("postgresql://a:geheim@b/c", "postgresql://a:geheim@[/c", "postgresql://a@b/c?sslpassword=geheim"):
        said = verb("list", "--database", url, code=64)
        assert "no place on the command line" in said.stderr and "geheim" not in said.stderr
    for url in (
        "postgresql://a:geheim@[/c",
        "postgresql://a:geheim@127.0.0.1:1/c",
        "postgresql://a:geheim@h/c?x=geheim",
    ):
        said = verb("list", code=69, RELAY_OUTBOX_DATABASE=url)
        assert "geheim" not in said.stderr + said.stdout and "database" in said.stderr
    assert "no database" in verb("list", "--database", f"sqlite:///{tmp_path}/none.db", code=69).stderr
    assert not (tmp_path / "none.db").exists()
    app.book("ann")
    assert "admin.sock" in verb("run", "--once", code=75).stderr
    assert "such are http" in verb("run", code=78, RELAY_URL="relay.example").stderr
    said = verb("run", code=78, RELAY_URL="http://127.0.0.1:1", RELAY_TOKEN="geheim\n")
    assert "the token has" in said.stderr and "geheim" not in said.stderr
    said = verb("run", code=78, RELAY_URL="http://relay.example:2580", RELAY_TOKEN="geheim")
    assert "in the clear" in said.stderr and "geheim" not in said.stderr


def test_a_row_that_was_written_by_hand_is_listed(app: Application, verb: Verb) -> None:
    if app.store.dialect != "sqlite":
        pytest.skip("PostgreSQL lets none in")
    app.execute(BY_HAND["booked_never"])
    assert verb("list").stdout.split()[:3] == ["1", "waiting", "?"]


async def test_a_signal_ends_it(app: Application, tmp_path: Path) -> None:
    async with Upstream() as up, running(configured(tmp_path, up)):
        env = ENV | {"RELAY_OUTBOX_DATABASE": app.url, "RELAY_ENDPOINT": str(tmp_path / "admin.sock")}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "relay",
            "outbox",
            "run",
            env=env | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=-1,
        )
        assert process.stderr
        assert b"submits to" in await process.stderr.readline()
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0
