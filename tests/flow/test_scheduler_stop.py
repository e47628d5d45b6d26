"""Stopping: nothing new is sent, what is past the dot is awaited, and the next start delivers the rest once."""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path

import pytest
from fakes import Later, Upstream
from rig import free_port, process, running, submit, until, write_config

from relay import clock
from relay.app import StartError

TEXT = b"Subject: t\r\n\r\nhello\r\n"


async def test_before_the_dot_is_returned_after_it_is_awaited(tmp_path: Path) -> None:
    gate = asyncio.Event()
    stuck = Later(0, "250 ok", asyncio.Event())
    script = {"DOT": [Later(0, "250 ok", gate)], "RCPT": lambda r: stuck if r[0] == "b" else "250 ok"}
    async with Upstream(script) as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none, connections: 2"})
        file.write_text(file.read_text().replace("stop_timeout: 5s", "stop_timeout: 60s"))
        async with running(file) as rig:
            after = await rig.send("after@example.net")
            await until(lambda: any(t.wire for t in up.transactions))
            before = await rig.send("before@example.net")
            await until(lambda: any("before" in line for line in up.commands("RCPT")))
            waiting = await rig.send_many([("a@example.com", (f"w{i}@example.net",), TEXT) for i in range(30)])
            stopping = asyncio.ensure_future(rig.app.stop())
            await until(lambda: rig.said("stopping"))
            gate.set()
            await stopping
            assert len(rig.said("delivered")) == 1
        up.script = {}
        async with running(file) as rig:
            await rig.settled()
            rows = {r["queue_id"]: r for r in await rig.rows()}
            for number in (after, before, *waiting):
                assert (rows[number]["state"], rows[number]["attempts"]) == ("delivered", 1)
                assert not rows[number]["in_doubt"]
            assert sorted(up.delivered()) == sorted(r["recipient"] for r in rows.values())


async def test_past_the_time_it_is_in_doubt(tmp_path: Path) -> None:
    async with Upstream({"DOT": [Later(0, "250 ok", asyncio.Event()), "250 ok"]}) as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none"})
        file.write_text(file.read_text().replace("stop_timeout: 5s", "stop_timeout: 1s"))
        async with running(file) as rig:
            number = await rig.send()
            await until(lambda: any(t.wire for t in up.transactions))
            began = asyncio.get_running_loop().time()
            await rig.app.stop()
            assert asyncio.get_running_loop().time() - began < 15  # the usual time is 25 s
            assert [f["id"] for f in rig.said("in_doubt")] == [number]
        async with running(file) as rig:
            row = await rig.reaches(number, "delivered")
            assert row["in_doubt"] and row["attempts"] == 2
            assert (await rig.story(number)) == ["accepted", "in_doubt", "delivered"]


async def test_a_start_that_fails_sends_nothing(tmp_path: Path) -> None:
    """Under a supervisor it is tried again and again: nothing must have been claimed or sent by then."""
    async with Upstream() as up:
        port = free_port()
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none"}, port=port)
        up.script = {"BANNER": "421 4.3.2 not now"}
        async with running(file) as rig:
            number = await rig.send()
            due_at = (await rig.tried(number))["due_at"]
        before = len(up.sessions)  # it may have been tried once more before the stop
        up.script = {}
        await until(lambda: clock.now() > due_at)
        blocker = await asyncio.start_server(lambda r, w: None, "127.0.0.1", port)
        for _ in range(3):
            with pytest.raises(StartError, match="cannot listen"):
                async with running(file):
                    pass
        blocker.close()
        await blocker.wait_closed()
        assert len(up.sessions) == before and up.done == []
        async with running(file) as rig:
            row = await rig.reaches(number, "delivered")
            assert not row["in_doubt"] and len(up.done) == 1


async def test_sigterm_under_load(tmp_path: Path) -> None:
    """A slow upstream, hundreds queued, clients connected: exit 0 in time, 421 to the idle, nothing lost or doubled."""
    gate = asyncio.Event()
    script = {"DOT": ["250 ok"] * 15 + [Later(0, "250 ok", gate)]}
    async with Upstream(script) as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none, connections: 5"})
        file.write_text(file.read_text().replace("stop_timeout: 5s", "stop_timeout: 60s"))
        with process(file) as relay:
            reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
            await reader.readline()
            ids = await submit(relay.port, [("a@example.com", (f"r{i}@example.net",), TEXT) for i in range(300)])
            await until(lambda: len(up.done) > 10)
            relay.signal(signal.SIGTERM)
            assert (await asyncio.wait_for(reader.readline(), 30)).startswith(b"421 4.3.2")
            writer.close()
            gate.set()
            assert await asyncio.to_thread(relay.wait, 45) == 0
            assert "event=stopped" in relay.log and "in_doubt" not in relay.log
            assert not (tmp_path / "admin.sock").exists()
        sent = len(up.done)
        assert 10 < sent < 300
        up.script = {}
        with process(file) as relay:
            await until(lambda: len(up.done) >= 300, 60)
            await asyncio.to_thread(relay.wait_for, lambda: relay.json("status")["queued"] == 0)
            rows = await asyncio.to_thread(relay.json, "queue", "list", "--all")
            assert {r["state"] for r in rows} == {"delivered"} and {r["attempts"] for r in rows} == {1}
            relay.signal(signal.SIGTERM)
            assert await asyncio.to_thread(relay.wait, 45) == 0
        assert sorted(up.delivered()) == sorted(f"r{i}@example.net" for i in range(300))
        assert len(ids) == len(set(ids)) == 300


async def test_a_second_sigterm_stops_at_once(tmp_path: Path) -> None:
    async with Upstream({"DOT": [Later(0, "250 ok", asyncio.Event()), "250 ok"]}) as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none"})
        file.write_text(file.read_text().replace("stop_timeout: 5s", "stop_timeout: 60s"))
        with process(file) as relay:
            await submit(relay.port, [("a@example.com", ("r@example.net",), TEXT)])
            await until(lambda: any(t.wire for t in up.transactions))
            relay.signal(signal.SIGTERM)
            await asyncio.to_thread(relay.wait_for, lambda: "event=stopping" in relay.log)
            relay.signal(signal.SIGTERM)
            assert await asyncio.to_thread(relay.wait, 45) == 0
            assert "event=in_doubt" in relay.log
        with process(file) as relay:
            await until(lambda: len(up.done) == 1)
            relay.signal(signal.SIGTERM)
            assert await asyncio.to_thread(relay.wait, 45) == 0


async def test_an_upstream_that_ignores_quit_holds_up_no_stop(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with Upstream({"QUIT": Later(0, "221 bye", asyncio.Event()), "DOT": Later(0, "250 ok", gate)}) as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none, connections: 8"})
        async with running(file) as rig:
            await rig.send_many([("a@example.com", (f"r{i}@example.net",), TEXT) for i in range(60)])
            await until(lambda: up.open > 2)
            gate.set()
            await rig.settled()
            assert up.open > 2
            began = asyncio.get_running_loop().time()
            await rig.app.stop()
            assert asyncio.get_running_loop().time() - began < 3


async def test_a_stop_while_a_claim_fails(tmp_path: Path) -> None:
    """What the disk says to the claim does not keep dispatch from ending."""
    gate = threading.Event()
    refuse = (
        "CREATE TEMP TRIGGER no BEFORE UPDATE ON main.recipient WHEN NEW.state = 2 "
        "BEGIN SELECT RAISE(ABORT, 'not now'); END"
    )
    async with Upstream() as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none"})
        async with running(file) as rig:
            connection = rig.app.spool._writer._connection
            await rig.app.supervisor.stop("dispatch")
            number = await rig.send()
            await connection.call(lambda c: c.execute(refuse))
            rig.app.supervisor.start("dispatch", rig.app.scheduler.dispatch)
            await until(lambda: rig.said("claim_failed"))
            held = asyncio.ensure_future(connection.call(lambda _: gate.wait(60)))
            await until(lambda: not rig.app.scheduler.lanes.waiting and rig.app.spool._writer._running)
            stopping = asyncio.ensure_future(rig.app.stop())
            await until(lambda: rig.said("stopping"))
            gate.set()
            await held
            await asyncio.wait_for(stopping, 45)
            assert up.done == []
        async with running(file) as rig:
            assert (await rig.reaches(number, "delivered"))["attempts"] == 1
