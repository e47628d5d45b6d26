"""kill -9 at random of an application that writes into its outbox and of the reader that submits: what arrives is what was
committed, each once.

Short as part of the tests; `make storm` runs it long. STORM_OUTBOX (kills) and STORM_SEED set the size.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fakes import Upstream
from postgres import server
from rig import ENV, Process, write_config

from relay import outbox

HERE = Path(__file__).parent


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        with closing(sqlite3.connect(tmp_path / "app.db")) as made:
            outbox.create(made)
            made.execute("CREATE TABLE booked (name TEXT)")
        yield f"sqlite:///{tmp_path}/app.db"
        return
    with server() as running:
        found = running.database()
        with psycopg.connect(found) as connection:
            outbox.create(connection)
            connection.execute("CREATE TABLE booked (name TEXT)")
        yield found


@dataclass
class Part:
    """A process that is killed and started again."""

    command: list[str]
    env: dict[str, str]
    log: Path
    popen: subprocess.Popen[bytes] | None = None
    kills: int = 0

    async def alive(self) -> None:
        """It runs, and has said so."""
        if self.popen is not None:
            assert self.popen.poll() is None, self.log.read_text()
            return
        before = self.log.stat().st_size if self.log.exists() else 0
        self.popen = self.start()
        end = time.monotonic() + 60
        while self.log.stat().st_size == before:
            assert self.popen.poll() is None and time.monotonic() < end, self.log.read_text()
            await asyncio.sleep(0.005)

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as out:
            return subprocess.Popen(self.command, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def kill(self) -> None:
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait(20)
            self.popen = None
            self.kills += 1


@dataclass
class Storm:
    url: str
    folder: Path
    kills: int
    seed: int
    caught: int = 0  # readers that died with rows of which nobody knew whether the relay had them
    dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        python, env = [sys.executable, "-u"], ENV | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self.app = Part([*python, str(HERE / "outbox_application.py"), self.url], env, self.folder / "app.log")
        env |= {"RELAY_OUTBOX_DATABASE": self.url, "RELAY_ENDPOINT": str(self.folder / "admin.sock")}
        run = ["-m", "relay", "outbox", "run", "--batch", "20", "--poll", "20ms"]
        self.reader = Part([*python, *run], env, self.folder / "reader.log")

    async def blow(self) -> None:
        while self.app.kills + self.reader.kills < self.kills:
            await asyncio.gather(self.app.alive(), self.reader.alive())
            await self.booked(5 * (self.app.kills + self.reader.kills + 2))
            await asyncio.sleep(self.dice.random() / 2)
            for part in self.dice.choice([[self.app], [self.reader], [self.reader, self.app]]):
                part.kill()
            self.caught += self.reader.popen is None and self.ask("count(*)", "attempted_at IS NOT NULL") > 0
        self.app.kill()
        await self.reader.alive()
        end = time.monotonic() + 120
        while self.ask("count(*)", "state = 'waiting'"):
            assert time.monotonic() < end, self.reader.log.read_text()[-2000:]
            await asyncio.sleep(0.1)
        self.reader.kill()

    async def booked(self, wanted: int) -> None:
        """Until the application has booked more than so many, however long that takes here."""
        end = time.monotonic() + 60
        while int(self.query("SELECT count(*) FROM booked")[0][0]) <= wanted:
            await self.app.alive()
            assert time.monotonic() < end, self.app.log.read_text()[-2000:]
            await asyncio.sleep(0.05)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        is_file = self.url.startswith("sqlite")
        made: Any = (
            sqlite3.connect(self.url.removeprefix("sqlite:///"), timeout=60) if is_file else psycopg.connect(self.url)
        )
        with closing(made):
            return list(made.execute(sql).fetchall())

    def ask(self, what: str, where: str) -> int:
        return int(self.query(f"SELECT {what} FROM relay_outbox WHERE {where}")[0][0])

    @property
    def repeated(self) -> int:
        words = [part.split() for line in self.reader.log.read_text().splitlines() for part in line[8:].split(", ")]
        return sum(int(word[0]) for word in words if word[1:] == ["sent", "before"])


async def delivered(relay: Process) -> None:
    end = time.monotonic() + 120
    while await asyncio.to_thread(relay.cli, "queue", "list", "--state", "queued,deferred,active"):
        assert time.monotonic() < end
        await asyncio.sleep(0.2)


@pytest.mark.storm
async def test_what_arrives_is_what_was_committed(url: str, tmp_path: Path) -> None:
    kills = int(os.environ.get("STORM_OUTBOX", "10"))
    seed = int(os.environ.get("STORM_SEED") or random.SystemRandom().randrange(1 << 32))
    async with Upstream() as up:
        relay = Process(write_config(tmp_path, {"main": f"port: {up.port}, tls: none"}))
        with closing(relay):
            await asyncio.to_thread(relay.ready, 120)
            storm = Storm(url, tmp_path, kills, seed)
            try:
                await storm.blow()
            finally:
                storm.app.kill()
                storm.reader.kill()
            await delivered(relay)
        arrived = Counter(t.recipients[0].strip("<>").partition("@")[0] for t in up.transactions if t.done)
    booked = Counter(name for (name,) in storm.query("SELECT name FROM booked"))
    told = (
        f"seed {seed}: killed the application {storm.app.kills} and the reader {storm.reader.kills} times, "
        f"{storm.caught} of those with rows under way, {storm.repeated} submitted again; "
        f"{booked.total()} rows committed, {arrived.total()} mails, {len(booked - arrived)} lost, {len(arrived - booked)} too many"
    )
    if os.environ.get("STORM_SHOW"):
        print(f"\n{url.partition(':')[0]}: {told}")
    assert booked.total() > 5 * kills, told
    assert arrived == booked, told
    assert storm.query("SELECT state, count(*) FROM relay_outbox GROUP BY state") == [], told
    if kills >= 50:
        assert storm.caught and storm.repeated, f"the storm must have blown: {told}"
