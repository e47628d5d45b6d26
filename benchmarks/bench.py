#!/usr/bin/env python3
"""How fast, how soon and how large, beside other servers, on the same machine, under the same load, in turn.

    make bench                      or: .venv/bin/python -m benchmarks.bench [--rounds 3] [--count 3000] [--peers postfix]

The relay runs as it is shipped: every message fsynced before its 250, every check on, one account, its log to a file. The
others run as they are shipped, with a queue of their own on the same disk, as null clients towards the same upstream. What
differs between rounds is noise, so medians are told, and their span. Environment: ROUNDS, COUNT, PEERS, MODES, BENCH_FOLDER.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from benchmarks import backlog, machine, plot, report, signing
from benchmarks.loads import Stuck
from benchmarks.modes import MODES, ONCE
from benchmarks.peers import NOT_COMPARED, PEERS
from benchmarks.report import RELAY, Run
from tests.service.support import find

OUT = Path(__file__).parent / "out"
FOLDER = os.environ.get("BENCH_FOLDER")


class Progress:
    """A line that tells how far it is; on a terminal it is written over, elsewhere only results are lines."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self._begun = steps, 0, time.monotonic()
        self._live = sys.stdout.isatty()

    def now(self, text: str) -> None:
        if self._live:
            passed = time.monotonic() - self._begun
            left = f", {passed / self.done * (self.steps - self.done):.0f} s to go" if self.done else ""
            print(f"\r\033[K  {self.done}/{self.steps}{left}: {text} …", end="", flush=True)

    def result(self, text: str) -> None:
        self.done += 1
        print(f"{chr(13)}\033[K  {text}" if self._live else f"  {text}", flush=True)


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder that daemons may enter."""
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=FOLDER))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def steps(modes: Sequence[str], peers: Sequence[str], rounds: int) -> list[tuple[int, str, str]]:
    """(round, mode, peer): each round every mode, in it every server in turn, the order turned about from round to round."""
    return [
        (number, mode, peer)
        for number in range(rounds)
        for mode in modes
        for peer in (peers if number % 2 == 0 else [*reversed(peers)])
        if peer in (MODES[mode].peers or peers)
    ]


def measure(todo: Sequence[tuple[int, str, str]], count: int) -> tuple[list[Run], list[str]]:
    """The runs, and what failed."""
    runs, failures, progress = [], [], Progress(len(todo))
    with workplace() as folder:
        for number, mode, peer in todo:
            where = f"round {number + 1}  {mode:8} {peer:8}"
            progress.now(where)
            # A server of its own for each run: nobody inherits another run's queue, cache or connections.
            place = folder / f"{number}-{mode}-{peer}"
            try:
                values = MODES[mode].measure(peer, place, count)
            except (Stuck, AssertionError, OSError) as error:
                failures.append(f"{where.strip()}: {error}")
                progress.result(failures[-1])
            else:
                runs.append(Run(mode, peer, number, values))
                told = (f"{report.number(v):>7} {report.MEASURES[m].title}" for m, v in values.items())
                progress.result(f"{where} {'  '.join(told)}")
            shutil.rmtree(place, ignore_errors=True)
    return runs, failures


def count_signatures(rounds: int) -> list[signing.Seen]:
    """Signatures a second, the relay's and OpenSSL's."""
    progress = Progress(2)
    seen = signing.measure(rounds, progress.now)
    for s in seen:
        progress.result(
            f"signs    {s.threads} at once: {report.number(s.ours)}/s, OpenSSL {report.number(s.openssl)}/s"
        )
    return seen


def fill_queue(count: int, lanes: int, load: int) -> list[backlog.Seen]:
    """The relay with an empty queue and with a full one."""
    progress = Progress(2)
    with workplace() as folder:
        seen = []
        for waiting in (0, count):
            seen.append(backlog.measure(folder / str(waiting), waiting, lanes, load, progress.now))
            progress.result(f"backlog  {waiting:,} wait: {report.number(seen[-1].relayed)} relayed/s")
    return seen


def chosen(given: str, known: Sequence[str], what: str) -> list[str]:
    names = [n for n in re.split(r"[\s,]+", given) if n]
    if unknown := [n for n in names if n not in known]:
        raise SystemExit(f"{what}: there is no {', '.join(unknown)}; there is: {', '.join(known)}")
    return names


def ready_peers(names: Sequence[str]) -> list[str]:
    """Those that can be started here; of the others one line each."""
    found = [RELAY]
    for name in names:
        if name == RELAY:
            continue
        if why := NOT_COMPARED.get(name) or PEERS[name].lacks():
            print(f"  without {name}: {why}", flush=True)
        else:
            found.append(name)
    return found


def arguments() -> argparse.Namespace:
    env = os.environ
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=int(env.get("ROUNDS") or 3))
    parser.add_argument("--count", type=int, default=int(env.get("COUNT") or 3000), help="messages in a run of 4 KiB")
    parser.add_argument(
        "--peers", default=env.get("PEERS", "postfix"), help=f"of: {', '.join([*PEERS, *NOT_COMPARED])}"
    )
    all_modes = [*MODES, *ONCE]
    parser.add_argument("--modes", default=env.get("MODES") or " ".join(all_modes), help=f"of: {', '.join(all_modes)}")
    parser.add_argument("--waiting", type=int, default=1_000_000, help="recipients of the backlog")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of bench.json, bench.md and bench.png")
    given = parser.parse_args()
    given.peers = chosen(given.peers, [*PEERS, *NOT_COMPARED], "PEERS")
    given.modes = chosen(given.modes, all_modes, "MODES")
    return given


def main() -> None:
    given = arguments()
    if missing := [p for p in ("smtp-source", "smtp-sink") if not find(p)]:
        raise SystemExit(f"{', '.join(missing)} is missing: sudo tests/service/install-programs")
    peers = ready_peers(given.peers)
    known = {p: PEERS[p].version() for p in peers} | machine.facts(FOLDER)
    known |= {"rounds": given.rounds, "messages": given.count}
    todo = steps([m for m in given.modes if m in MODES], peers, given.rounds)
    runs, failures = measure(todo, given.count)
    signs = count_signatures(given.rounds) if "signs" in given.modes else []
    seen = fill_queue(given.waiting, 1000, given.count) if "backlog" in given.modes else []

    found, titles = report.rows(runs), {name: mode.title for name, mode in MODES.items()}
    judged = report.judge(found)
    told = ", ".join(f"{k} {v}" for k, v in known.items())
    parts = [report.table(found, titles) if found else "", signing.table(signs) if signs else ""]
    parts += [backlog.table(seen) if seen else "", report.goals(judged)]
    parts += [f"Failed: {failure}" for failure in failures]
    text = "\n\n".join([*filter(None, parts), told]) + "\n"
    print(f"\n{report.bars(found, titles)}\n\n{text}")

    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "bench.md").write_text(text)
    (given.out / "bench.json").write_text(
        json.dumps(
            {
                "facts": known,
                "rows": [asdict(r) | {"ratios": {p: r.ratio(p) for p in r.medians if p != RELAY}} for r in found],
                "goals": [{"goal": j.goal.text, "ratio": j.ratio, "met": j.met} for j in judged],
                "signs": [asdict(s) | {"ratio": s.ratio} for s in signs],
                "backlog": [asdict(s) for s in seen],
                "failures": failures,
                "runs": [asdict(r) for r in runs],
            },
            indent=2,
        )
        + "\n"
    )
    drawn = bool(found) and plot.draw(found, titles, told, given.out / "bench.png")
    print(
        f"  kept in {given.out}: bench.json, bench.md{', bench.png' if drawn else ' (no plot: matplotlib is missing)'}"
    )
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
