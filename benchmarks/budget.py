#!/usr/bin/env python3
"""What one message costs, in instructions of the relay's process, whatever else the machine does.

    .venv/bin/python -m benchmarks.budget [--write]

The relay runs under valgrind's callgrind with the configuration of `make bench`; one smtp-source session at a time sends it
4 KiB messages, so that each has a transaction of its own and nothing depends on timing. A figure is in yardsticks: how many
times a fixed piece of Python costs as much in the same interpreter. So it is the same on another build or machine, give or
take a few per cent. What the kernel does is not in it, nor what the relay does each second though nothing comes: a slow
machine, under callgrind above all, would have more of that in each message. `--write` makes what was measured the recorded
budget.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.loads import ROOT, Load, Sink, drive
from benchmarks.peers import plain
from tests.service.support import Relay, run

RECORDED = Path(__file__).with_name("budget.json")
LOADS = {"kept": Load(1), "fresh": Load(1, fresh=True)}
WARM, COUNT = 30, 100
IDLE = 5.0  # seconds
MARGIN = 0.15
SLOW = 300.0  # seconds that any step may take: under callgrind all takes some fifty times as long, beside other programs more

# A mixture of what a relay does: calls, attributes, dictionaries, small texts, bytes, an expression, JSON.
YARDSTICK = r"""
import json, re
class Thing:
    def __init__(self, name, number): self.name, self.number = name, number
    def text(self): return f"{self.name}={self.number}"
def work():
    things = [Thing("n%d" % i, i) for i in range(20)]
    by_name = {t.name: t for t in things}
    line = " ".join(by_name[t.name].text() for t in things)
    found = re.findall(r"n(\d+)=(\d+)", line)
    return json.dumps(dict(found)), line.encode().replace(b"n", b"m").find(b"m19")
for _ in range(%d): work()
"""


def callgrind(folder: Path, *more: str) -> tuple[str, ...]:
    return ("valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={folder}/callgrind.out", *more)


def totals(folder: Path) -> list[int]:
    """Instructions of each part that was dumped, in order."""
    parts = sorted(folder.glob("callgrind.out.*"), key=lambda path: int(path.suffix[1:]))
    return [int(re.findall(r"^totals: (\d+)", path.read_text(errors="replace"), re.M)[0]) for path in parts]


def yardstick(folder: Path) -> float:
    """Instructions of one of them: the difference between two runs, for most of each is the interpreter's start."""
    counted = []
    for times in (200, 1200):
        place = folder / f"yardstick-{times}"
        place.mkdir()
        program = YARDSTICK.replace("%d): work", f"{times}): work")
        run(*callgrind(place), sys.executable, "-I", "-c", program, timeout=SLOW)
        text = (place / "callgrind.out").read_text(errors="replace")
        counted.append(int(re.findall(r"^totals: (\d+)", text, re.M)[0]))
    return (counted[1] - counted[0]) / 1000


def instructions(folder: Path) -> dict[str, float]:
    """Of a message of each load."""
    file = folder / "relay.yaml"
    with Sink() as sink:
        file.write_text(plain(folder, sink.port))
        relay = Relay(file, prefix=callgrind(folder, "--instr-atstart=no"))
        try:
            relay.start(timeout=SLOW)
            assert relay.process is not None
            pid = str(relay.process.pid)
            for load in LOADS.values():
                drive(relay.port, sink, load, WARM, SLOW)
            lasted = [_dumped(pid, lambda: time.sleep(IDLE))]
            for load in LOADS.values():
                lasted.append(_dumped(pid, lambda load=load: drive(relay.port, sink, load, COUNT, SLOW)))  # type: ignore[misc]
            relay.process.terminate()
            relay.process.wait(SLOW)
        finally:
            relay.__exit__()
    idle, *counted = totals(folder)[: len(lasted)]
    each_second = idle / lasted[0]
    return {
        name: (total - seconds * each_second) / COUNT
        for name, total, seconds in zip(LOADS, counted, lasted[1:], strict=True)
    }


def _dumped(pid: str, work: Callable[[], object]) -> float:
    """A part of callgrind's output has what the relay does meanwhile; seconds that it lasted."""
    started = time.perf_counter()
    run("callgrind_control", "-i", "on", pid)
    work()
    time.sleep(0.3)  # the last settlement
    run("callgrind_control", "-i", "off", pid)
    lasted = time.perf_counter() - started
    run("callgrind_control", "-d", pid)
    return lasted


def measure(folder: Path) -> dict[str, float]:
    """{load: yardsticks a message}"""
    one = yardstick(folder)
    return {name: round(counted / one, 2) for name, counted in instructions(folder).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="record it as the budget")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="budget-") as name:
        folder = Path(name)
        one, counted = yardstick(folder), instructions(folder)
    found = {load: round(value / one, 2) for load, value in counted.items()}
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    for load, value in found.items():
        was = (
            f"{value / recorded[load] - 1:+.1%} of the recorded {recorded[load]}"
            if load in recorded
            else "not recorded"
        )
        print(f"  {load:6} {counted[load]:12,.0f} instructions a message, {value:6.2f} yardsticks: {was}")
    if given.write:
        RECORDED.write_text(json.dumps(found, indent=2) + "\n")
        print(f"  recorded in {RECORDED.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
