#!/usr/bin/env python3
"""A drop folder with many files in it when the relay begins to look.

    .venv/bin/python -m benchmarks.drop [--files 50000] [--size 2000]

The relay is a process; what it takes is held, so that nothing else is measured. Printed: files a second from the first that is
gone to the last, the processor's time for one, the relay's memory at most, and how late its loop came to its beats of
50 ms: the latest, and the share that was more than 25 ms late. Another process that asks `/healthz` meanwhile says what
others wait.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import socket
import tempfile
import time
from pathlib import Path

from benchmarks.process import Peak, cpu_seconds
from tests.service.support import Relay, config_text, free_port

OLD = 1_700_000_000


def fill(folder: Path, count: int, size: int) -> None:
    folder.mkdir()
    text = b"Your order is on its way.\n"
    for n in range(count):
        file = folder / f"{n:07}.eml"
        head = b"From: Shop <shop@example.com>\nTo: user%d@example.net\nSubject: Your order %d\n\n" % (n, n)
        file.write_bytes(head + text * (max(0, size - len(head)) // len(text)))
        os.utime(file, (OLD + n, OLD + n))


def asked(path: Path, what: str) -> str:
    connection = http.client.HTTPConnection("localhost", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(str(path))
    connection.request("GET", what)
    found = connection.getresponse().read().decode()
    connection.close()
    return found


def beats(metrics: str) -> tuple[float, float]:
    """(the latest beat of the last minute, in ms; the share of those that were over 25 ms late)."""
    count, within = (
        float(re.search(rf"^relay_loop_lag_seconds_{name} (\S+)$", metrics, re.MULTILINE)[1])  # type: ignore[index]
        for name in ("count", r'bucket\{le="0.025"\}')
    )
    worst = re.search(r"^relay_loop_lag_worst_seconds (\S+)$", metrics, re.MULTILINE)
    return float(worst[1]) * 1000 if worst else 0.0, 1 - within / count


def measure(folder: Path, files: int, size: int) -> None:
    orders, admin = folder / "orders", folder / "admin.sock"
    fill(orders, files, size)
    config = folder / "relay.yaml"
    text = config_text(folder, free_port(), extra=f"drop: {{orders: {{folder: {orders}, every: 100ms}}}}\n")
    config.write_text(text.replace("via: main}", "hold: true}"))
    with Relay(config) as relay:
        assert relay.process is not None
        pid = relay.process.pid
        done, first, began, used, waits, worst, text = 0, 0, 0.0, 0.0, list[float](), 0.0, ""
        with Peak(pid) as peak:
            while done < files:
                time.sleep(0.1)
                before = time.monotonic()
                asked(admin, "/healthz")
                waits.append(time.monotonic() - before)
                text = asked(admin, "/metrics")
                worst = max(worst, beats(text)[0])
                done = sum(int(float(n)) for n in re.findall(r"^relay_drop_files_total{.*} (\S+)$", text, re.MULTILINE))
                if done and not began:
                    first, began, used = done, time.monotonic(), cpu_seconds(pid)
        seconds, spent = time.monotonic() - began, cpu_seconds(pid) - used
    waits.sort()
    print(
        f"{(files - first) / seconds:.0f} files/s, {spent / (files - first) * 1e6:.0f} µs each, {peak.mib:.0f} MiB at most; "
        f"beats: latest {worst:.0f} ms, {beats(text)[1]:.2%} over 25 ms; /healthz: median {waits[len(waits) // 2] * 1000:.0f} ms, "
        f"99 of 100 under {waits[len(waits) * 99 // 100] * 1000:.0f} ms, at most {waits[-1] * 1000:.0f} ms",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=2000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="drop") as name:
        measure(Path(name), given.files, given.size)


if __name__ == "__main__":
    main()
