"""What the kernel saw: between the last dot of a batch and its first 250 lies an fdatasync of the spool's log."""

from __future__ import annotations

import re
import subprocess
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.loads import Load, Sink, drive
from benchmarks.peers import plain

from .support import Relay, needs, until

CALL = re.compile(r"^(\d+\.\d+) (\w+)\((\d+)<([^>]*)>(.*?)\) += (-?\d+)[^<]*(?:<(\d+\.\d+)>)?$")
MESSAGES, SESSIONS = 200, 10


@dataclass
class Seen:
    synced: list[tuple[float, float]] = field(default_factory=list)  # (begin, end) of each fdatasync of the log
    answered: list[tuple[float, float]] = field(
        default_factory=list
    )  # (when the dot had been read, when 250 was written)


def trace(folder: Path) -> Seen:
    """Of one file for each thread."""
    seen, dots = Seen(), dict[str, float]()
    for file in folder.glob("trace.*"):
        for line in file.read_text(errors="replace").splitlines():
            found = CALL.match(line)
            if not found:
                continue
            at, call, number, name, rest, _, took = found.groups()
            end = float(at) + float(took or 0)
            if call in ("fdatasync", "fsync") and name.endswith("-wal"):
                seen.synced.append((float(at), end))
            elif call in ("read", "recvfrom") and r"\r\n.\r\n" in rest:
                dots[number] = end
            elif call in ("write", "sendto", "writev") and "250 2.0.0 Ok: queued as" in rest:
                seen.answered.append((dots.pop(number), float(at)))
    seen.synced.sort()
    return seen


@needs("strace", "smtp-source", "smtp-sink")
def test_an_fdatasync_lies_between_the_dot_and_250(tmp_path: Path) -> None:
    file = tmp_path / "relay.yaml"
    calls = "trace=fdatasync,fsync,read,recvfrom,write,writev,sendto"
    with Sink() as sink:
        file.write_text(plain(tmp_path, sink.port))
        with Relay(file) as relay:
            assert relay.process is not None
            command = ["strace", "-ff", "-y", "-ttt", "-T", "-s", "1000", "-e", calls, "-o", str(tmp_path / "trace")]
            with subprocess.Popen([*command, "-p", str(relay.process.pid)], stderr=subprocess.PIPE) as strace:
                assert strace.stderr is not None
                word = strace.stderr.readline()
                if b"not permitted" in word:
                    strace.wait()
                    pytest.skip("strace may not look at a process here")
                assert b"attached" in word, word
                drive(relay.port, sink, Load(SESSIONS, size=300), MESSAGES)
                until(lambda: len(trace(tmp_path).answered) >= MESSAGES)
                strace.terminate()
            relay.stop()
    seen = trace(tmp_path)
    assert len(seen.answered) == MESSAGES
    begins = [begin for begin, _ in seen.synced]
    shared: Counter[int] = Counter()
    for dot, told in seen.answered:
        first = bisect_left(begins, dot)
        assert first < len(begins) and seen.synced[first][1] <= told, (
            f"250 at {told}, dot at {dot}, and no fdatasync between"
        )
        shared[first] += 1
    print(
        f"{len(seen.answered)} × 250, each after an fdatasync that began after its dot; up to {max(shared.values())} share one"
    )
    assert max(shared.values()) > 1, "no batch at all: nothing is shown"
