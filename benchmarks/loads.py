"""Loads: Postfix' smtp-source in front of a server, Postfix' smtp-sink behind it, and the clock."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.service.support import ENV, answers, free_port, until

ROOT = Path(__file__).resolve().parents[1]
SENDER, RECIPIENT = "app@example.org", "user@example.com"
LIMIT = 90.0  # seconds for one run


class Stuck(Exception):
    """A load did not end in its time, or was refused. The text says which and how far it came."""


@dataclass(frozen=True)
class Load:
    """What smtp-source does. `share`: of COUNT, how many messages."""

    sessions: int
    size: int = 4096  # bytes
    fresh: bool = False  # a new connection for each message
    share: float = 1.0


class Sink:
    """A server that prints how many messages it has had; smtp-sink unless another `command` is given, which ends with what
    comes after the port."""

    def __init__(self, *command: str) -> None:
        self.port = free_port()
        self._start(command)

    def _start(self, command: tuple[str, ...], *options: str) -> None:
        self._output, self.count = b"", 0
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        sink = ["smtp-sink", *user, "-c", "-m", "1000", *options, f"127.0.0.1:{self.port}", "1024"]
        self._process = subprocess.Popen(
            [c.format(port=self.port) for c in command] or sink,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=ENV | {"PYTHONPATH": str(ROOT)},
        )
        assert self._process.stdout is not None
        self._pipe = self._process.stdout
        os.set_blocking(self._pipe.fileno(), False)

    def __enter__(self) -> Sink:
        try:
            until(lambda: answers(self.port), what="the sink answers")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._pipe.close()

    @contextmanager
    def keeping(self, folder: Path) -> Iterator[Path]:
        """What arrives meanwhile is kept in a file of a new folder, which any daemon may enter: by another smtp-sink, for to keep a
        message takes it longer than to take one. It counts from zero, and so does the next; what was connected is cut off."""
        folder.mkdir()
        folder.chmod(0o777)  # smtp-sink is nobody
        self.__exit__()
        self._start((), "-D", str(folder / "messages"))
        self.__enter__()
        yield folder / "messages"
        self.__exit__()
        self._start(())
        self.__enter__()

    def poll(self) -> int:
        """How many messages it has had."""
        self._output += self._pipe.read() or b""
        *whole, self._output = self._output.split(b"\r")
        for line in whole[-1:]:
            found = re.search(rb"mesgs?=(\d+)", line)
            self.count = int(found[1]) if found else self.count
        return self.count


def drive(port: int, sink: Sink, load: Load, count: int, limit: float = LIMIT) -> tuple[float, float]:
    """Messages a second until the last 250, and until the sink has counted the last one. Raises Stuck after `limit` seconds."""
    had = sink.poll()
    command = ["smtp-source", *([] if load.fresh else ["-d"]), "-s", str(load.sessions), "-m", str(count)]
    command += ["-l", str(load.size), "-f", SENDER, "-t", RECIPIENT, f"127.0.0.1:{port}"]
    begin = time.monotonic()
    source = subprocess.Popen(command, env=ENV, stderr=subprocess.PIPE)
    accepted = relayed = 0.0
    try:
        while not (accepted and relayed):
            now = time.monotonic() - begin
            if not accepted and source.poll() is not None:
                accepted = now
                if source.returncode:
                    break
            if not relayed and sink.poll() - had >= count:
                relayed = now
            if now > limit:
                raise Stuck(f"only {sink.poll() - had} of {count} messages came through within {limit:g} s")
            time.sleep(0.002)
    finally:
        source.kill()
        told = source.communicate()[1].decode(errors="replace").strip()
    if source.returncode:
        raise Stuck(f"smtp-source: {told}")
    return count / accepted, count / relayed
