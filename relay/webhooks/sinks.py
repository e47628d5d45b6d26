"""Where a batch is handed over: a URL, a file, a command. None of them raises: what goes wrong is an answer too."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

from relay import __version__, clock, guard, https
from relay.reply import clean
from relay.secrets import Reference, SecretError, hidden
from relay.settings import Endpoint
from relay.webhooks.words import Batch, Said, Verdict, keys, meant, signature

RUNS_KEPT = 60.0  # seconds for which what a secret's command said is good
MOST_SAID = 4096  # bytes of a command's standard error that are kept
LAST_WORDS = 0.2  # seconds after its end in which they still come
SHORTEST_TOKEN = 6  # characters of a value in a URL that is hidden by itself
TEMPORARY, DATA = 75, 65  # sysexits(3): try again; this data is no good
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER", "LOGNAME")


class Sink(Protocol):
    async def send(self, batch: Batch) -> Said: ...
    def close(self) -> None: ...


def sink(endpoint: Endpoint) -> Sink:
    if endpoint.file is not None:
        return FileSink(endpoint.file)
    return CommandSink(endpoint.name, endpoint.command, endpoint.timeout) if endpoint.command else UrlSink(endpoint)


class UrlSink:
    """POST of a JSON array. What was said and what was sent stay apart: no answer's text brings a secret into the log."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._kept: dict[Reference, tuple[float, str]] = {}

    async def send(self, batch: Batch) -> Said:
        endpoint, body = self.endpoint, batch.array
        try:
            url = await self._value(endpoint.url)
            secrets = keys(await self._value(endpoint.secret))
            own = {name: await self._value(value) for name, value in endpoint.headers.items()}
        except SecretError as error:
            return Said(Verdict.REST, clean(str(error)))
        if endpoint.secret is not None and not secrets:
            # Somebody writes it anew, say. What is not signed is not sent: it might be believed.
            return Said(Verdict.REST, clean(f"its secret, {endpoint.secret.kind} {endpoint.secret.target}, is empty"))
        timestamp = int(clock.now())
        headers = {
            **own,
            "Content-Type": "application/json",
            "User-Agent": f"relay/{__version__}",
            "X-Relay-Delivery": batch.id,
            "X-Relay-Timestamp": str(timestamp),
        }
        if secrets:
            headers["X-Relay-Signature"] = signature(secrets, timestamp, body)
        try:
            answer = await guard.post(
                url,
                body,
                headers,
                seconds=endpoint.timeout,
                allow_private=endpoint.allow_private,
                ca=endpoint.ca,
            )
        except https.Unreachable as error:
            return Said(Verdict.REST, str(error))
        except https.Unanswered as error:
            return Said(Verdict.TROUBLE, str(error))
        said = meant(answer.status, answer.headers, clock.now())
        first = clean(hidden(answer.body[:400].decode(errors="replace"), *_told(url), *secrets, *own.values()))[:200]
        if said.verdict is Verdict.TAKEN or not first:
            return said
        return Said(said.verdict, f"{said.why}: {first}", said.wait)

    async def _value(self, reference: Reference | None) -> str:
        """Raises SecretError."""
        if reference is None or reference.kind == "plain":
            return "" if reference is None else reference.target
        kept, now = self._kept.get(reference), clock.monotonic()
        if kept is not None and kept[0] > now:
            return kept[1]
        value = await asyncio.to_thread(reference.resolve)
        self._kept[reference] = (now + (RUNS_KEPT if reference.kind == "command" else 1.0), value)
        return value

    def close(self) -> None:
        """Each request has its own connection."""


def _told(url: str) -> list[str]:
    """What a URL says that may be a secret, longest first: who answers quotes a part of it, as it was or decoded."""
    query = urlsplit(url).query
    return [url, query, *(value for _, value in parse_qsl(query) if len(value) >= SHORTEST_TOKEN)]


class FileSink:
    """JSON lines, appended. On the disk when they are taken; a file that was moved away, as logrotate does, is made anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: int | None = None

    async def send(self, batch: Batch) -> Said:
        try:
            await asyncio.to_thread(self._write, batch.lines)
        except OSError as error:
            return Said(Verdict.REST, f"{self.path}: {error.strerror or error}")
        return Said(Verdict.TAKEN)

    def _write(self, lines: bytes) -> None:
        if self._open is not None and not self._same(self._open):
            self.close()
        if self._open is None:
            # A FIFO waits at the opening for who reads: O_NONBLOCK says ENXIO instead.
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            self._open = os.open(self.path, flags, 0o640)
            if not stat.S_ISREG(os.fstat(self._open).st_mode):
                self.close()
                raise OSError("not a regular file")
        size = os.fstat(self._open).st_size
        # What a crash or a full disk left of a line ends here, so that the next one is whole.
        torn = size and os.pread(self._open, 1, size - 1) != b"\n"
        data = b"\n" + lines if torn else lines
        if (written := os.write(self._open, data)) < len(data):
            os.ftruncate(self._open, size)
            raise OSError(f"only {written} of {len(data)} bytes could be written")
        os.fdatasync(self._open)

    def _same(self, descriptor: int) -> bool:
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(descriptor))

    def close(self) -> None:
        if self._open is not None:
            os.close(self._open)
            self._open = None


class CommandSink:
    """JSON lines on standard input; exit code 0: taken, 65: refused, 75: later, any other: trouble. No shell, few of our variables."""

    def __init__(self, name: str, command: tuple[str, ...], timeout: float) -> None:
        self.name, self.command, self.timeout = name, command, timeout

    async def send(self, batch: Batch) -> Said:
        env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        env |= {"RELAY_ENDPOINT_NAME": self.name, "RELAY_DELIVERY": batch.id}
        try:
            transport, run = await asyncio.get_running_loop().subprocess_exec(
                Run, *self.command, stdout=asyncio.subprocess.DEVNULL, env=env, start_new_session=True
            )
        except OSError as error:
            return Said(Verdict.REST, f"{self.command[0]}: {error.strerror or error}")
        late = False
        try:
            run.hand_over(batch.lines)
            async with asyncio.timeout(self.timeout):
                await run.ended.wait()
        except TimeoutError:
            late = True
        finally:
            await run.over()
        if late:
            return Said(Verdict.TROUBLE, f"it did not end within {self.timeout:g} s")
        code = transport.get_returncode()
        if code == 0:
            return Said(Verdict.TAKEN)
        said = clean(run.said.decode(errors="replace").strip().partition("\n")[0])[:200]
        verdict = {DATA: Verdict.REFUSED, TEMPORARY: Verdict.REST}.get(code or 0, Verdict.TROUBLE)
        return Said(verdict, f"it ended with exit code {code}{f': {said}' if said else ''}")

    def close(self) -> None:
        """Each batch has its own process."""


class Run(asyncio.SubprocessProtocol):
    """One process. Its end counts, and not that of its pipes: those whom it started may hold them open for as long as they like."""

    def __init__(self) -> None:
        self.ended, self._fed, self._told = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.said = bytearray()  # the first of what it complained of; the rest is read, and dropped

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.said += data[: MOST_SAID - len(self.said)]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """Where it needs no input it may close that: its exit code says what that means."""
        (self._told if fd == 2 else self._fed).set()

    def process_exited(self) -> None:
        self.ended.set()

    def hand_over(self, lines: bytes) -> None:
        pipe = self.transport.get_pipe_transport(0)
        pipe.write(lines)
        pipe.close()

    async def over(self) -> None:
        """It has ended, by itself or by us, and those whom it started, too."""
        try:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.transport.get_pid(), signal.SIGKILL)
            await self.ended.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS):
                    await self._told.wait()
        finally:
            # One that left its group may have the pipes still; we have not.
            if not self._fed.is_set():
                self.transport.get_pipe_transport(0).abort()
            self.transport.close()
