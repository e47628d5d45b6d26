"""The process in which the relay simulates: `python -m relay.simulate.worker`, started by `admin.simulation`.

On standard input are pickles, which the relay wrote: the configuration in force, what is asked, and the pages of its queue if
that is simulated too. On standard output is one JSON object: what leaves, row by row as `relay simulate --json` has it, and what
does not; or `error`, what is wrong with what was asked. Its limits are those of the kernel: memory and processor time.
"""

from __future__ import annotations

import json
import pickle
import resource
import sys
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from relay.settings import Config
from relay.simulate.asked import leaving, made, many
from relay.simulate.plans import moment, read
from relay.simulate.result import row
from relay.simulate.snapshot import Snapshot

MOST_LEFT = 100_000  # messages that are told


def main(memory: int, seconds: int, source: BinaryIO) -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_AS, (memory << 20, memory << 20))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    found = _pickles(source)
    config, asked = next(found), next(found)
    try:
        return simulated(config, asked, Snapshot.of(found) if asked["queue"] else None)
    except ValueError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"it needs more than {memory} MB; ask for less at once, or `relay simulate`"}


def _pickles(source: BinaryIO) -> Iterator[Any]:
    while True:
        try:
            yield pickle.load(source)
        except EOFError:
            return


def simulated(config: Config, asked: Mapping[str, Any], snapshot: Snapshot | None) -> dict[str, Any]:
    """`asked`: as the operation's body, and `now`. Raises ValueError where it makes no sense, or comes to too much."""
    start = moment(asked["start"], snapshot.now if snapshot else asked["now"])
    waves = read(asked["plan"].splitlines(keepends=True), start) if asked["plan"] else []
    if asked["send"]:
        waves.append(many({name: asked[name] for name in _COLUMNS}, asked["send"], start))
    simulation, traffic = made(config, start, asked["seconds"], waves, snapshot)
    until = moment(asked["until"], simulation.start) if asked["until"] else None
    rows = list[dict[str, Any]]()
    for left in leaving(simulation, traffic, waves, until):
        rows.append(row(left))
        if len(rows) > MOST_LEFT:
            raise ValueError(f"more than {MOST_LEFT} messages leave; ask for less at once, or `relay simulate`")
    return {
        "messages": rows,
        "refused": dict(traffic.turned_away),
        "ended": simulation.ended,
        "expired": simulation.shelf.expired,
        "waiting": simulation.shelf.waiting,
        "why": dict(simulation.stuck()),
        "guesses": simulation.guesses,
    }


_COLUMNS = ("sender", "recipient", "class", "user", "tag", "size", "over")

if __name__ == "__main__":
    json.dump(main(int(sys.argv[1]), int(sys.argv[2]), sys.stdin.buffer), sys.stdout)
