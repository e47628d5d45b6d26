"""The process that reads what strangers wrote: `python -m relay.returned.worker`, started by `bounded.Understanding`.

On standard input and output are frames: four octets of length, then that many octets; in: a mail or report, out: JSON, a list of
`Finding.row()`. An empty frame goes out first: ready. It ends when its input does. Its limits are those of the kernel: memory
in all, and processor time for each frame, both from its arguments: MiB and seconds.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from relay.returned import Finding, Kind

HEADER = 4  # octets
TOO_HARD = "too_hard"


def answer(understand: Callable[[bytes], list[Finding]], raw: bytes) -> list[dict[str, Any]]:
    """What it means; one finding `other` where reading it needs too much, or breaks."""
    try:
        return [finding.row() for finding in understand(raw)]
    except Exception as error:  # noqa: BLE001 - see below
        # Whatever a mail can do to a parser is told, and the next mail gets a parser that has not seen it.
        why = f"{type(error).__name__}: {error}"[:200]
    return [Finding(Kind.OTHER, reason=TOO_HARD, detail={"why": why}).row()]


def main(memory: int, seconds: int) -> None:
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # uvloop hands on what is inheritable
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory << 20, memory << 20))
    from relay.returned.understand import understand  # in its own limits, which hold while it is loaded too

    out = sys.stdout.buffer
    _write(out, b"")
    while (raw := _read(sys.stdin.buffer)) is not None:
        _allow(seconds)
        rows = answer(understand, raw)
        _write(out, json.dumps(rows).encode())
        if any(row["reason"] == TOO_HARD for row in rows):
            return


def _allow(seconds: int) -> None:
    """From now on; the kernel ends whoever needs more (SIGXCPU)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _read(stream: BinaryIO) -> bytes | None:
    header = stream.read(HEADER)
    if len(header) < HEADER:
        return None
    size = int.from_bytes(header, "big")
    raw = stream.read(size)
    return raw if len(raw) == size else None


def _write(stream: BinaryIO, content: bytes) -> None:
    stream.write(len(content).to_bytes(HEADER, "big") + content)
    stream.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
