"""The reader of an outbox, SQLite's and PostgreSQL's, before a real relay: what was committed is sent, once, whatever fails."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fakes import Upstream
from orders import NOW, Application, app, arrived, configured, mail, pg, socket, turn
from postgres import Server
from rig import running, until

from relay import outbox
from relay.outbox import Reader, Refused, Submitter, Turn, Waits
from relay.policy.backoff import DAY

__all__ = ["app", "pg"]


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
            together.wait(60)
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
    elif app.store.dialect == "postgresql" and name.endswith("_never"):
        with pytest.raises(psycopg.Error):
            app.execute(sql)  # its columns have a type
        return
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
    """Who stands between lets the small question through, and answers the submission itself. What is too large is so for ever."""
    line, state = STRANGERS[name]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        said, body = (b"200 OK", b'{"keep": 864000}') if asked.startswith(b"GET ") else (line, b"<html>")
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (said, len(body), body))
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


async def test_a_question_about_keys_that_nobody_answers_leaves_no_doubt(app: Application) -> None:
    """Nothing was submitted yet: a relay that hangs, or a proxy before one that is down, may do so for as long as it likes."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as stranger:
        port = stranger.sockets[0].getsockname()[1]
        app.book("ann")
        found = await turn(Reader(app.store, Submitter(f"http://127.0.0.1:{port}", token="x")))
        assert found.why and not found.in_doubt
        assert [(row["state"], row["attempted_at"]) for row in app.rows()] == [("waiting", None)]
