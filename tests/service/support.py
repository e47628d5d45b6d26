"""What the service tests stand on: the relay as a process, an upstream that keeps exact bytes.

Nothing here sleeps for a fixed time and trusts: `until` waits for a condition, with a deadline. All ports are free ones,
all files below the test's own folder, and only processes that were started here are ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.ports import free_port as free_port

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
ENV = {k: v for k, v in os.environ.items() if not k.startswith("RELAY_")} | {
    "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
    "PYTHONPATH": "",
    "LC_ALL": "C.UTF-8",
}


def find(program: str) -> str | None:
    return shutil.which(program, path=ENV["PATH"])


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip with a word where a program is missing."""
    missing = [p for p in programs if not find(p)]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is missing; tests/service/install-programs")


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def until(condition: Callable[[], T], timeout: float = 120.0, what: str = "") -> T:
    """What `condition` returns once it is true."""
    end = time.monotonic() + timeout
    while True:
        if found := condition():
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout:g} s: {what or getattr(condition, '__name__', 'condition')}")
        time.sleep(0.01)


def group_ended(group: int) -> bool:
    """Whether no process of this group runs any more; one that nobody asks after is no obstacle."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has just ended
            state, _, its, *_ = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            if int(its) == group and state != "Z":
                return False
    return True


def answers(port: int, greeting: bytes = b"220") -> bool:
    """Whether a server greets at the port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as sock:
            sock.settimeout(2)
            return sock.recv(100).startswith(greeting)
    except OSError:
        return False


def run(
    *command: str | Path, timeout: float = 180, check: bool = True, **kwargs: Any
) -> subprocess.CompletedProcess[str]:
    """A program to its end; its output in the failure's text."""
    kwargs.setdefault("env", ENV)
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout, **kwargs)
    if check and done.returncode:
        raise AssertionError(f"{command[0]} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


# -- the relay


def config_text(
    folder: Path, upstream: int, *, port: int = 0, account: str = "", extra: str = "", spool: Path | None = None
) -> str:
    """A configuration as an operator would write it, in front of an upstream on loopback."""
    return f"""\
hostname: relay.test
stop_timeout: 10s
listen:
  - {{name: local, address: "127.0.0.1:{port}"}}
admin: {{socket: {folder}/admin.sock, address: null}}
spool: {{path: {spool or folder / "spool"}/spool.db, reserve: 1MB}}
accounts:
  main: {{host: 127.0.0.1, port: {upstream}, tls: none{account}}}
routes:
  - {{name: all, via: main}}
{extra}"""


class Relay:
    """`python -m relay serve`, its log in a file."""

    def __init__(
        self,
        config: Path,
        *,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        """`prefix`: a command that ends in an exec of ours, such as one that enters a namespace."""
        self.prefix = prefix
        self.config, self.env, self.cwd = config, env or ENV, cwd or config.parent
        self.log_file = config.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self._from = 0  # where the log of this run begins

    def __enter__(self) -> Relay:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def start(self, timeout: float = 180.0) -> None:  # under a profiler, beside other tests
        """Returns when it is ready to take mail."""
        self._from = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "relay", "serve", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env | {"PYTHONPATH": str(ROOT)},
                cwd=self.cwd,
            )
        until(lambda: "event=ready" in self.log() or self.ended, timeout, "relay is ready")
        if self.ended:
            raise AssertionError(f"the relay ended at its start:\n{self.log()}")
        found = re.search(r"event=listening listener=\S+ address=127\.0\.0\.1 port=(\d+)", self.log())
        assert found, self.log()
        self.port = int(found[1])

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def log(self) -> str:
        """The log of this run."""
        if not self.log_file.exists():
            return ""
        with self.log_file.open("rb") as f:
            f.seek(self._from)
            return f.read().decode(errors="replace")

    def lines(self, event: str) -> list[str]:
        """Of whole lines: the last may be just being written."""
        text = self.log()
        return [line for line in text[: text.rfind("\n") + 1].splitlines() if f" event={event} " in f"{line} "]

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, timeout: float = 120.0) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout)

    def cli(self, *arguments: str, timeout: float = 120.0) -> str:
        """`relay …` against this relay; its standard output."""
        env = ENV | {"PYTHONPATH": str(ROOT), "RELAY_ENDPOINT": f"{self.config.parent}/admin.sock"}
        return run(sys.executable, "-m", "relay", *arguments, env=env, timeout=timeout).stdout

    def clean(self) -> None:
        """No traceback and no line of level error in the log: the process had nothing to complain of."""
        text = self.log()
        assert "Traceback" not in text, text
        assert " level=error " not in text, text


# -- an upstream that keeps what it gets


async def met() -> None:
    """Returns when each connection that was accepted before it was called has its task: for who stops, and cancels them."""
    for _ in range(5):
        await asyncio.sleep(0)


@dataclass(slots=True)
class Received:
    """One message at the recorder: the octets between DATA's 354 and the final dot, dot-stuffing undone."""

    sender: str
    recipients: list[str]
    raw: bytes
    parameters: str
    session: int


@dataclass
class Recorder:
    """A loopback SMTP server in a thread. `offers` are the EHLO keywords after its name."""

    offers: tuple[str, ...] = ("PIPELINING", "SIZE 50000000", "8BITMIME", "SMTPUTF8")
    messages: list[Received] = field(default_factory=list)
    port: int = 0
    sessions: int = 0

    def __enter__(self) -> Recorder:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 26, backlog=256)
        )
        self._server = server
        self.port = server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        async def close() -> None:
            self._server.close()
            await met()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    def wait(self, count: int = 1, timeout: float = 60.0) -> list[Received]:
        until(lambda: len(self.messages) >= count, timeout, f"{count} messages at the upstream")
        return self.messages

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.sessions += 1
        try:
            with contextlib.suppress(OSError, EOFError):
                await self._session(reader, writer, self.sessions)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._tasks.discard(task)

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        def say(text: str) -> None:
            writer.write(text.encode() + b"\r\n")

        sender, parameters = "", ""
        recipients: list[str] = []
        say("220 recorder.test ESMTP")
        while line := await reader.readline():
            command = line.decode().strip()
            match command[:4].upper():
                case "EHLO":
                    names = ("recorder.test", *self.offers)
                    for i, name in enumerate(names):
                        say(f"250{' ' if i == len(names) - 1 else '-'}{name}")
                case "MAIL":
                    sender, _, parameters = command[10:].strip().removeprefix("<").partition(">")
                    recipients = []
                    say("250 2.1.0 ok")
                case "RCPT":
                    recipients = [*recipients, command[8:].strip().removeprefix("<").partition(">")[0]]
                    say("250 2.1.5 ok")
                case "DATA":
                    say("354 go on")
                    await writer.drain()
                    # Octets, not lines of text: a bare CR or LF ends nothing.
                    lines = []
                    while (line := await reader.readuntil(b"\r\n")) != b".\r\n":
                        lines.append(line[1:] if line.startswith(b".") else line)
                    raw = b"".join(lines)
                    self.messages.append(Received(sender, recipients, raw, parameters.strip(), number))
                    say(f"250 2.0.0 kept {len(self.messages)}")
                case "QUIT":
                    say("221 2.0.0 bye")
                    return
                case "RSET" | "NOOP" | "HELO":
                    say("250 2.0.0 ok")
                case _:
                    say("502 5.5.2 what?")
            await writer.drain()


# -- between a client and the relay


class Tee:
    """Passes connections on to `target` and keeps what the client said: the octets that it handed over."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.said: list[bytearray] = []

    def __enter__(self) -> Tee:
        self._server = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                for sock in (client, server):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.said.append(kept := bytearray())
                threading.Thread(target=self._pair, args=(client, server, kept), daemon=True).start()

    def _pair(self, client: socket.socket, server: socket.socket, kept: bytearray) -> None:
        with client, server:
            back = threading.Thread(target=self._pass, args=(server, client, None), daemon=True)
            back.start()
            self._pass(client, server, kept)
            back.join()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket, kept: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if kept is not None:
                    kept += data
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def messages(self, sender: str) -> list[bytes]:
        """What was said between DATA and the final dot, of one MAIL FROM, dot-stuffing undone."""
        return [raw for kept in self.said for who, raw in contents(bytes(kept)) if who == sender]


def contents(said: bytes) -> list[tuple[str, bytes]]:
    """(MAIL FROM, content) of each message in what a client said."""
    found, sender, lines, inside = [], "", [], False
    for line in re.findall(rb".*?\r\n", said, re.DOTALL):
        if inside and line == b".\r\n":
            found.append((sender, b"".join(lines)))
            inside, lines = False, []
        elif inside:
            lines.append(line[1:] if line.startswith(b".") else line)
        elif line[:10].upper() == b"MAIL FROM:":
            sender = line.decode().partition("<")[2].partition(">")[0]
        elif line.upper() == b"DATA\r\n":
            inside = True
    return found


_RECEIVED = re.compile(
    rb"Received: from \S+ \(\[127\.0\.0\.1\]\)\r\n\tby relay\.test with (E?SMTP|UTF8SMTP) id (\w+);\r\n\t[^\r\n]+\r\n"
)


def without_prefix(raw: bytes, sent: bytes) -> bytes:
    """What arrived, without the header fields that the relay is meant to put in front of what was sent."""
    found = _RECEIVED.match(raw)
    assert found, raw[:300]
    raw = raw[found.end() :]
    head = b"\r\n" + sent.partition(b"\r\n\r\n")[0].lower()
    for name in (b"Date", b"Message-ID"):
        if b"\r\n" + name.lower() + b":" not in head:
            added = re.match(rb"%s: [^\r\n]+\r\n" % name, raw)
            assert added, f"{name.decode()} was missing and is missing still"
            raw = raw[added.end() :]
    return raw
