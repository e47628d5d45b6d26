"""The machine's facts, without which a figure means nothing."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.peers import output


def facts(folder: str | None) -> dict[str, str | int | float]:
    """Of the machine, and of the disk that `folder` is on (None: the one for temporary files)."""
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())
    try:
        import uvloop

        loop = f"uvloop {uvloop.__version__}"  # type: ignore[attr-defined]
    except ImportError:
        loop = "asyncio"
    return {
        "python": platform.python_version(),
        "loop": loop,
        "sqlite": sqlite3.sqlite_version,
        "kernel": platform.release(),
        "processor": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[1]) / (1 << 20)) if memory else 0,
        "filesystem": output("stat", "-f", "-c", "%T", folder or tempfile.gettempdir()),
        "fdatasync_us": round(fsync_cost(folder) * 1e6),
        "load_before": round(os.getloadavg()[0], 2),
    }


def fsync_cost(folder: str | None) -> float:
    """Seconds for a 4 KiB append and fdatasync where the spools lie: what a durable 250 costs at least."""
    with tempfile.NamedTemporaryFile(dir=folder) as f:
        taken = []
        for _ in range(100):
            f.write(b"x" * 4096)
            f.flush()
            begin = time.perf_counter()
            os.fdatasync(f.fileno())
            taken.append(time.perf_counter() - begin)
    return statistics.median(taken)
