#!/usr/bin/env python3
"""Batches of a thousand small messages by POST /v1/messages/batch, over TCP with a token, from a process of its own.

    .venv/bin/python -m benchmarks.batches [--batches 10] [--keys]

Measured twice: with what was accepted held back, and with deliveries to a sink going on. Printed: messages a second that were
accepted (all batches, one behind the other), the slowest batch, and the relay's CPU time for a message, which is what
a machine that others use too can tell; deliveries that went on meanwhile are in it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.process import cpu_seconds
from tests.service.support import ROOT, Relay, free_port

SIZE = 1000
TEXT = "Your order is on its way.\n" * 8


def write_config(folder: Path, sink: int, held: bool) -> tuple[Path, int]:
    port = free_port()
    route = "{name: all, hold: true}" if held else "{name: all, via: sink}"
    account = "" if held else f"accounts:\n  sink: {{host: 127.0.0.1, port: {sink}, tls: none}}\n"
    file = folder / "relay.yaml"
    file.write_text(
        f'hostname: relay.example.org\nlisten:\n  - {{name: local, address: "127.0.0.1:0"}}\n'
        f'admin: {{socket: {folder}/admin.sock, address: "127.0.0.1:{port}"}}\n'
        f"spool: {{path: {folder}/spool/spool.db}}\n{account}routes:\n  - {route}\n"
    )
    return file, port


def batch(number: int, keys: bool) -> bytes:
    return json.dumps(
        {
            "messages": [
                {
                    "from": "Shop <shop@example.org>",
                    "to": f"user{n}@example.com",
                    "subject": f"Your order {number}-{n}",
                    "text": TEXT,
                    **({"idempotency_key": f"{number}/{n}"} if keys else {}),
                }
                for n in range(SIZE)
            ]
        }
    ).encode()


def token(path: Path) -> str:
    """One that may submit."""
    connection = http.client.HTTPConnection("localhost", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(str(path))
    connection.request("POST", "/v1/tokens", json.dumps({"name": "bench", "scopes": ["submit"]}))
    made: str = json.loads(connection.getresponse().read())["token"]
    connection.close()
    return made


@contextmanager
def sink() -> Iterator[int]:
    """An upstream that keeps nothing, in a process of its own; its port."""
    command = [sys.executable, "-m", "tests.service.load", "sink"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def measure(folder: Path, batches: int, held: bool, keys: bool) -> tuple[float, float, float]:
    """(accepted a second, the slowest batch in seconds, the relay's CPU seconds for a message)."""
    folder.mkdir()
    with sink() as there:
        config, port = write_config(folder, there, held)
        with Relay(config) as relay:
            made = token(folder / "admin.sock")
            bodies = [batch(n, keys) for n in range(batches + 1)]
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            headers = {"Authorization": f"Bearer {made}", "Content-Type": "application/json"}
            assert relay.process is not None
            times, used = [], 0.0
            for number, body in enumerate(bodies):
                if number == 1:  # the first one warms
                    used = cpu_seconds(relay.process.pid)
                begin = time.monotonic()
                connection.request("POST", "/v1/messages/batch", body, headers)
                answer = connection.getresponse()
                told = json.loads(answer.read())
                times.append(time.monotonic() - begin)
                assert told["accepted"] == SIZE, told
            used = cpu_seconds(relay.process.pid) - used
            relay.stop(timeout=60)
    return SIZE * batches / sum(times[1:]), max(times[1:]), used / (SIZE * batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--keys", action="store_true", help="each message has an idempotency key")
    given = parser.parse_args()
    print("| deliveries | accepted/s | slowest batch, s | CPU, µs a message |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="batches-", dir=os.environ.get("BENCH_FOLDER")) as name:
        for held in (True, False):
            told = "held" if held else "going on"
            accepted, slowest, used = measure(Path(name) / told.split()[0], given.batches, held, given.keys)
            print(f"| {told} | {accepted:.0f} | {slowest:.2f} | {used * 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
