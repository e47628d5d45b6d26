"""`relay outbox`, and its reader by a token over TCP."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from fakes import Upstream
from orders import Application, app, arrived, configured, pg, turn
from rig import ENV, free_port, running

from relay.outbox import Reader, Submitter

__all__ = ["app", "pg"]


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


BOOKED_NEVER = "INSERT INTO relay_outbox (key, message, created_at) VALUES ('k', '[]', CAST('x' AS TEXT))"
Verb = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def verb(app: Application, tmp_path: Path) -> Verb:
    """`relay outbox …` on the application's database."""
    env = ENV | {"RELAY_OUTBOX_DATABASE": app.url, "RELAY_ENDPOINT": str(tmp_path / "admin.sock")}

    def run(*arguments: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "relay", "outbox", *arguments],
            capture_output=True, text=True, timeout=120, check=False, env=env | more,
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
    app.execute(BOOKED_NEVER)
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
        assert await asyncio.wait_for(process.wait(), 60) == 0
