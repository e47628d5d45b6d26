#!/usr/bin/env python3
"""How many messages a second, beside Postfix, on the same machine, under the same load, in turn.

    make bench                      or: .venv/bin/python benchmarks/bench.py [--rounds 3] [--count 3000] [--peers postfix]

The relay runs as it is shipped: every message fsynced before its 250, every check on, one account, its log to a file. Postfix
runs as Debian ships it, with its own queue folder on the same disk, as a null client towards the same upstream. Both take the
load from Postfix' smtp-source and hand it to Postfix' smtp-sink, whose count ends the clock. What differs between rounds is noise,
so the median of the rounds is told, and the rounds with it. Environment: ROUNDS, COUNT, PEERS.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from service.postfix import Postfix  # noqa: E402
from service.support import ENV, Relay, answers, find, free_port, until  # noqa: E402

OUT = Path(__file__).parent / "out"
PEERS = ("postfix",)
SENDER, RECIPIENT = "app@example.org", "user@example.com"
LIMIT = 60.0  # seconds for one run

CONFIG = """\
hostname: relay.example.org
listen:
  - {{name: local, address: "127.0.0.1:0"}}
admin: {{socket: {folder}/admin.sock, address: null}}
spool: {{path: {folder}/spool/spool.db}}
accounts:
  sink: {{host: 127.0.0.1, port: {sink}, tls: none}}
routes:
  - {{name: all, via: sink}}
"""


@dataclass(frozen=True)
class Load:
    name: str
    sessions: int
    size: int
    fresh: bool


LOADS = (
    Load("10 kept sessions, 4 KiB", 10, 4096, False),
    Load("10 at once, a new connection each, 4 KiB", 10, 4096, True),
)


@dataclass(frozen=True)
class Run:
    peer: str
    load: str
    accepted: float  # messages a second until the last 250
    relayed: float  # messages a second until the upstream has counted the last one


class Sink:
    """smtp-sink, which prints how many messages it has had."""

    def __init__(self) -> None:
        self.port = free_port()
        self._output, self.count = b"", 0
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        command = ["smtp-sink", *user, "-c", "-m", "1000", f"127.0.0.1:{self.port}", "1024"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENV)
        assert self._process.stdout is not None
        self._pipe = self._process.stdout
        os.set_blocking(self._pipe.fileno(), False)

    def __enter__(self) -> Sink:
        until(lambda: answers(self.port), what="smtp-sink answers")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._pipe.close()

    def poll(self) -> int:
        self._output += self._pipe.read() or b""
        *whole, self._output = self._output.split(b"\r")
        for line in whole[-1:]:
            found = re.search(rb"mesgs?=(\d+)", line)
            self.count = int(found[1]) if found else self.count
        return self.count


def drive(port: int, sink: Sink, load: Load, count: int) -> tuple[float, float]:
    """(accepted, relayed) a second. Raises SystemExit where it does not end."""
    had = sink.poll()
    command = ["smtp-source", *([] if load.fresh else ["-d"]), "-s", str(load.sessions), "-m", str(count)]
    command += ["-l", str(load.size), "-f", SENDER, "-t", RECIPIENT, f"127.0.0.1:{port}"]
    begin = time.monotonic()
    source = subprocess.Popen(command, env=ENV, stderr=subprocess.PIPE)
    accepted = relayed = 0.0
    while not (accepted and relayed):
        now = time.monotonic() - begin
        if not accepted and source.poll() is not None:
            accepted = now
        if not relayed and sink.poll() - had >= count:
            relayed = now
        if now > LIMIT:
            source.kill()
            raise SystemExit(f"only {sink.poll() - had} of {count} messages came through within {LIMIT:g} s")
        time.sleep(0.002)
    told = source.communicate()[1]
    if source.returncode:
        raise SystemExit(f"smtp-source: {told.decode(errors='replace').strip()}")
    return count / accepted, count / relayed


@contextmanager
def relay(folder: Path, sink: int) -> Iterator[int]:
    folder.mkdir()
    file = folder / "relay.yaml"
    file.write_text(CONFIG.format(folder=folder, sink=sink))
    with Relay(file) as running:
        yield running.port
        assert running.stop() == 0
        running.clean()


@contextmanager
def postfix(folder: Path, sink: int) -> Iterator[int]:
    with Postfix(folder, sink) as running:
        yield running.port


def measure(peers: list[str], rounds: int, count: int) -> list[Run]:
    """Each round: every load, every server in turn, the order turned about from round to round."""
    starters = {"relay": relay, "postfix": postfix}
    runs = []
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=os.environ.get("BENCH_FOLDER")))
    folder.chmod(0o755)
    try:
        for number in range(rounds):
            order = ["relay", *peers] if number % 2 == 0 else [*reversed(peers), "relay"]
            for load in LOADS:
                for peer in order:
                    # A server of its own for each run: nobody inherits another run's queue, cache or connections.
                    place = folder / f"{peer}-{number}-{LOADS.index(load)}"
                    with Sink() as sink, starters[peer](place, sink.port) as port:
                        drive(port, sink, load, count // 10)  # warm: processes forked, code paths taken once
                        accepted, relayed = drive(port, sink, load, count)
                    shutil.rmtree(place, ignore_errors=True)
                    runs.append(Run(peer, load.name, accepted, relayed))
                    print(
                        f"  round {number + 1}/{rounds}  {load.name:42} {peer:8}"
                        f" {accepted:7.0f} accepted/s {relayed:7.0f} relayed/s",
                        flush=True,
                    )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return runs


def facts(rounds: int, count: int) -> dict[str, str | int]:
    version = subprocess.run(["postconf", "-h", "mail_version"], env=ENV, capture_output=True, text=True, check=False)
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    try:
        import uvloop

        loop = f"uvloop {uvloop.__version__}"
    except ImportError:
        loop = "asyncio"
    from relay import __version__

    return {
        "relay": __version__,
        "postfix": version.stdout.strip(),
        "python": platform.python_version(),
        "loop": loop,
        "sqlite": sqlite3.sqlite_version,
        "kernel": platform.release(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": model[1] if model else platform.machine(),
        "fsync_us": round(fsync_cost() * 1e6),
        "rounds": rounds,
        "messages": count,
    }


def fsync_cost() -> float:
    """Seconds for a 4 KiB append and fdatasync where the spools lie: what a durable 250 costs at least."""
    with tempfile.NamedTemporaryFile(dir=os.environ.get("BENCH_FOLDER")) as f:
        taken = []
        for _ in range(100):
            f.write(b"x" * 4096)
            f.flush()
            begin = time.perf_counter()
            os.fdatasync(f.fileno())
            taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def report(runs: list[Run], known: dict[str, str | int]) -> str:
    lines = ["", "| load | server | accepted/s | relayed/s | relayed, × relay |", "|---|---|---:|---:|---:|"]
    bars = [""]
    for load in dict.fromkeys(r.load for r in runs):
        mine = [r for r in runs if r.load == load]
        medians = {
            peer: (
                statistics.median(r.accepted for r in mine if r.peer == peer),
                statistics.median(r.relayed for r in mine if r.peer == peer),
            )
            for peer in sorted({r.peer for r in mine}, key=lambda p: p != "relay")
        }
        most = max(v for pair in medians.values() for v in pair)
        bars.append(f"  {load}")
        for peer, (accepted, relayed) in medians.items():
            ratio = relayed / medians["relay"][1]
            lines.append(f"| {load} | {peer} | {accepted:.0f} | {relayed:.0f} | {ratio:.2f} |")
            for what, value in (("accepted", accepted), ("relayed", relayed)):
                bars.append(f"    {peer:8} {what:8} {'█' * round(40 * value / most):40} {value:6.0f}/s")
        for peer, (_, relayed) in medians.items():
            if peer != "relay":
                bars.append(f"    the relay passes on {medians['relay'][1] / relayed:.2f} × {peer}")
    told = ", ".join(f"{k} {v}" for k, v in known.items())
    return "\n".join([*lines, *bars, "", f"  {told}", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("ROUNDS") or 3))
    parser.add_argument("--count", type=int, default=int(os.environ.get("COUNT") or 3000), help="messages in a run")
    parser.add_argument("--peers", default=os.environ.get("PEERS") or "postfix", help=f"of: {', '.join(PEERS)}")
    given = parser.parse_args()
    peers = [p for p in re.split(r"[\s,]+", given.peers) if p]
    if unknown := [p for p in peers if p not in PEERS]:
        raise SystemExit(f"PEERS: {', '.join(unknown)} cannot be compared with yet; there is: {', '.join(PEERS)}")
    missing = [p for p in ("smtp-source", "smtp-sink", "postfix") if not find(p)]
    if missing:
        raise SystemExit(f"{', '.join(missing)} is missing: sudo tests/service/install-programs")
    if os.geteuid() != 0:
        print("an instance of Postfix needs root: the relay is measured alone")
        peers = []
    known = facts(given.rounds, given.count)
    runs = measure(peers, given.rounds, given.count)
    text = report(runs, known)
    print(text)
    OUT.mkdir(exist_ok=True)
    (OUT / "bench.json").write_text(json.dumps({"facts": known, "runs": [asdict(r) for r in runs]}, indent=2) + "\n")
    (OUT / "bench.md").write_text(text)
    print(f"  kept in {OUT.relative_to(ROOT)}/bench.json and bench.md")


if __name__ == "__main__":
    main()
