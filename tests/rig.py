"""The relay composed in this process from a real configuration file, and as a process of its own; and clients for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from conftest import free_port, until

from relay.app import App
from relay.config.load import load
from relay.maillog import MailLog
from relay.spool import Filter

FAST = "  default: {retry: {schedule: [200ms], give_up: 1d}}"


def write_config(
    folder: Path,
    accounts: dict[str, str],
    *,
    routes: str = "",
    classes: str = FAST,
    extra: str = "",
    port: int = 0,
    spool: str = "",
    dsn: str = "to: none",
    path: Path | None = None,
) -> Path:
    """`accounts`: name -> what follows `host: 127.0.0.1, `; the default route names them all in order.

    Nobody is sent a report unless `dsn` says otherwise: most tests count what they sent.
    """
    made = "\n".join(f"  {name}: {{host: 127.0.0.1, {rest}}}" for name, rest in accounts.items())
    rules = routes or f"  - {{name: all, via: [{', '.join(accounts)}]}}"
    file = path or folder / "relay.yaml"
    file.write_text(
        f"""hostname: relay.test
stop_timeout: 5s
listen: [{{name: local, address: "127.0.0.1:{port}"}}]
admin: {{socket: {folder}/admin.sock, address: null}}
spool: {{path: {folder}/spool/spool.db, reserve: 1MB{spool}}}
dsn: {{{dsn}}}
{f"accounts:{chr(10)}{made}" if made else ""}
classes:
{classes}
routes:
{rules}
{extra}
"""
    )
    return file


class Rig:
    """One App and what a test asks of it. Made by `running`."""

    def __init__(self, file: Path) -> None:
        self.log = MailLog(None)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.log.listeners.append(lambda kind, fields: self.events.append((kind, dict(fields))))
        self.app = App(load(file), self.log)

    @property
    def port(self) -> int:
        return self.app.doors[0].port

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [fields for k, fields in self.events if k == kind]

    async def send(
        self, *recipients: str, sender: str = "app@example.com", message: bytes = b"Subject: t\r\n\r\nhello\r\n"
    ) -> str:
        """One message; returns its queue id."""
        return (await self.send_many([(sender, recipients or ("you@example.net",), message)]))[0]

    async def send_many(self, messages: Iterable[tuple[str, tuple[str, ...], bytes]]) -> list[str]:
        return await submit(self.port, messages)

    async def rows(self, *ids: str) -> list[dict[str, Any]]:
        found, _ = await self.app.admin.service.rows(
            self.app.admin.service.parse_filter({"id": ",".join(ids)} if ids else {}), None, 1000
        )
        return found

    async def row(self, number: str) -> dict[str, Any]:
        return (await self.rows(number))[0]

    async def message(self, number: str) -> dict[str, Any]:
        return await self.app.admin.service.message(number)

    async def story(self, number: str) -> list[str]:
        return [e["kind"] for e in (await self.message(number))["events"]]

    async def reaches(self, number: str, *states: str, deadline: float = 30.0) -> dict[str, Any]:
        """The first recipient of a message, once it is in one of the states."""
        end = time.monotonic() + deadline
        while True:
            row = await self.row(number)
            if row["state"] in states:
                await self.abreast()
                return row
            assert time.monotonic() < end, f"{number} is {row['state']}, not {states}: {row['why']}"
            await asyncio.sleep(0.01)

    async def tried(self, number: str, attempts: int = 1, deadline: float = 30.0) -> dict[str, Any]:
        """The first recipient of a message once it was tried so often and is not in flight."""
        end = time.monotonic() + deadline
        while True:
            row = await self.row(number)
            if row["attempts"] >= attempts and row["state"] != "active":
                await self.abreast()
                return row
            assert time.monotonic() < end, f"{number}: {row['attempts']} attempts, {row['state']}: {row['why']}"
            await asyncio.sleep(0.01)

    async def abreast(self) -> None:
        """Until the relay knows of what it has committed: who reads sees that at once, what is counted in memory follows when the
        thread that writes has told."""
        writer, end = self.app.spool._writer, time.monotonic() + 30
        running, commits = writer._running, writer.commits
        while running is not None and writer._running is running and writer.commits == commits:
            assert time.monotonic() < end, "the spool's writer hangs"
            await asyncio.sleep(0.001)

    async def settled(self, deadline: float = 60.0) -> None:
        """Until nothing waits any more."""
        await until(lambda: self.app.spool.queued == 0, deadline)

    async def count(self) -> int:
        return len([r async for r in self.app.spool.find(Filter())])

    def egress(self, name: str = "main") -> Any:
        return self.app.scheduler.egresses[name]


@contextlib.asynccontextmanager
async def running(file: Path) -> AsyncIterator[Rig]:
    """The relay from a file, until the block ends."""
    rig = Rig(file)
    try:
        await rig.app.start()
    except BaseException:
        await rig.app.abort()
        raise
    try:
        yield rig
    finally:
        if rig.app.supervisor.loops:
            await rig.app.stop()


async def submit(port: int, messages: Iterable[tuple[str, tuple[str, ...], bytes]]) -> list[str]:
    """Messages over one SMTP session, byte for byte; returns the queue ids."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    ids = []

    async def expect(code: bytes) -> bytes:
        while True:
            line = await asyncio.wait_for(reader.readline(), 30)
            assert line.startswith(code), line
            if line[3:4] != b"-":
                return line

    try:
        await expect(b"220")
        writer.write(b"EHLO test.example\r\n")
        await expect(b"250")
        for sender, recipients, message in messages:
            utf8 = b" SMTPUTF8" if not "".join((sender, *recipients)).isascii() else b""
            lines = [b"MAIL FROM:<%s> BODY=8BITMIME%s\r\n" % (sender.encode(), utf8)]
            lines += [b"RCPT TO:<%s>\r\n" % r.encode() for r in recipients]
            writer.write(b"".join(lines) + b"DATA\r\n")
            for _ in lines:
                await expect(b"250")
            await expect(b"354")
            body = message if message.endswith(b"\r\n") else message + b"\r\n"
            stuffed = b"".join(b"." + x if x.startswith(b".") else x for x in body.splitlines(keepends=True))
            writer.write(stuffed + b".\r\n")
            await writer.drain()
            ids.append((await expect(b"250")).decode().split()[-1])
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return ids


# -- the process

ENV = {k: v for k, v in os.environ.items() if not k.startswith("RELAY_")}


HAND_OVER = """
import os, sys
names, first, *rest = sys.argv[1].split(":"), *sys.argv[2:]
numbers = [int(n) for n in first.split(",")]
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(numbers)), "LISTEN_FDNAMES": ":".join(names)}
copies = [os.dup2(n, 100 + i) for i, n in enumerate(numbers)]
for i, n in enumerate(copies):
    os.dup2(n, 3 + i)
os.execv(sys.executable, [sys.executable, *rest])
"""


class Process:
    """`python -m relay serve` with a file; its log in `log`.

    `sockets`: handed over as systemd does (sd_listen_fds(3)), by their names.
    """

    def __init__(
        self, file: Path, sockets: Mapping[str, socket.socket] | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self.file, self.log_file = file, file.with_suffix(f".{time.monotonic_ns()}.log")
        self.socket = file.parent / "admin.sock"
        self._out = self.log_file.open("wb")
        self.env = ENV | dict(env or {})
        given = sockets or {}
        numbers = [sock.fileno() for sock in given.values()]
        before = ["-c", HAND_OVER, ":".join(given), ",".join(map(str, numbers))] if given else []
        self.popen = subprocess.Popen(
            [sys.executable, *before, "-m", "relay", "serve", "--config", str(file)],
            stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._out, env=self.env, pass_fds=numbers,
        )  # fmt: skip

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def port(self) -> int:
        """The first listener's."""
        return self.ports()[0]

    def ports(self) -> list[int]:
        """One for each listener, as they were opened."""
        lines = [li for li in self.log.splitlines() if re.search(r'event"?[=:] ?"?listening', li)]
        return [int(re.findall(r'port"?[=:] ?(\d+)', line)[-1]) for line in lines]

    def ready(self, deadline: float = 120.0) -> Process:
        self.wait_for(lambda: re.search(r'event"?[=:] ?"?ready', self.log), deadline)
        return self

    def wait_for(self, condition: Any, deadline: float = 120.0) -> None:
        end = time.monotonic() + deadline
        while not condition():
            assert self.popen.poll() is None, f"the relay ended with {self.popen.returncode}:\n{self.log}"
            assert time.monotonic() < end, f"not within {deadline} s; the log:\n{self.log[-4000:]}"
            time.sleep(0.01)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.popen.send_signal(number)

    def wait(self, timeout: float = 120.0) -> int:
        return self.popen.wait(timeout)

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait(60)
        self._out.close()

    def cli(self, *arguments: str, code: int = 0) -> str:
        """`relay …` against this relay; its standard output. Asserts the exit code."""
        done = self.call(*arguments)
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "relay", *arguments],
            capture_output=True, text=True, timeout=120, check=False,
            env=self.env | {"RELAY_ENDPOINT": str(self.socket)},
        )  # fmt: skip

    def json(self, *arguments: str) -> Any:
        return json.loads(self.cli(*arguments, "--json"))


@contextlib.contextmanager
def process(
    file: Path, sockets: Mapping[str, socket.socket] | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Process]:
    made = Process(file, sockets, env)
    try:
        yield made.ready()
    finally:
        made.close()


__all__ = ["Process", "Rig", "free_port", "process", "running", "submit", "until", "write_config"]
