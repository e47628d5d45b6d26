"""A PostgreSQL server of a test's own: in a temporary folder, on a UNIX socket only, as a user that is not root."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

USER = "tester"
_names = itertools.count(1)


def _programs() -> Path | None:
    """The newest that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: float(p.parts[-3]))
    if found:
        return found[-1].parent
    elsewhere = shutil.which("initdb")
    return Path(elsewhere).parent if elsewhere else None


def _as_other() -> tuple[list[str], str]:
    """(what to put before a command, the user): PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return [], ""
    names = [name for name in ("postgres", "nobody") if name in {u.pw_name for u in pwd.getpwall()}]
    if not names or not shutil.which("runuser"):
        pytest.skip("PostgreSQL does not run as root, and there is no runuser, or no user postgres or nobody")
    return ["runuser", "-u", names[0], "--"], names[0]


class Server:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def database(self, encoding: str = "UTF8") -> str:
        """A new, empty database; its URL."""
        name = f"test_{os.getpid()}_{next(_names)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0")
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql://{USER}@/{name}?host={quote(str(self.folder), safe='')}"


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Skips the test where there is none."""
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server: apt-get install postgresql")
    before, user = _as_other()
    with tempfile.TemporaryDirectory(prefix="relay-pg-") as name:
        folder = Path(name)
        if user:
            shutil.chown(folder, user)
        data, log = str(folder / "data"), folder / "log"
        made = subprocess.run(
            [*before, str(programs / "initdb"), "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],
            capture_output=True, text=True, timeout=120, check=False, cwd="/",
        )  # fmt: skip
        assert made.returncode == 0, made.stdout + made.stderr
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
        options += ["-c", "max_prepared_transactions=2"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*before, str(programs / "postgres"), "-D", data, *options],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/",
            )  # fmt: skip
            try:
                found = Server(folder)
                _await(found, process, log)
                yield found
            finally:
                process.terminate()  # runuser hands it on
                process.wait(30)


def _await(found: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(found.url("postgres")).close()
            return
        except psycopg.OperationalError:
            assert process.poll() is None and time.monotonic() < end, log.read_text(errors="replace")
            time.sleep(0.05)


@pytest.fixture(scope="module")
def pg() -> Iterator[Server]:
    with server() as found:
        yield found
