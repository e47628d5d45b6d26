#!/usr/bin/env python3
"""A password reset beside a campaign: how long it takes to arrive, with and without a hundred thousand messages before it.

    .venv/bin/python -m benchmarks.priority [--queued 100000] [--resets 100]

The account takes 14/s over 4 connections, and its sink answers each message after 300 ms, so that all connections are busy.
The campaign is of low priority, of many users and destinations, and lies in the spool when the relay starts. Then one reset a
second is handed in. Measured from the client's connection to the sink's 250, once with high priority and once immediate.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import backlog
from relay.policy.lanefacts import lane_facts
from relay.policy.routing import Facts, Table
from relay.recipient import State
from relay.spool import NewMessage, NewRecipient
from tests.service.counting import Counting, hand_in, most
from tests.service.support import Relay, until

ANSWER = 0.3  # seconds
LANES = 1000

_CONFIG = """\
hostname: relay.example.org
listen:
  - {{name: local, address: "127.0.0.1:0"}}
admin: {{socket: {folder}/admin.sock, address: null}}
spool: {{path: {folder}/spool/spool.db, reserve: 1MB}}
dsn: {{to: none}}
accounts:
  main: {{host: 127.0.0.1, port: {sink}, tls: none, connections: 4, limits: [14/s]}}
classes:
  reset: {{priority: {priority}, match: {{sender: "*@reset.example"}}}}
  campaign: {{priority: low, match: {{sender: "*@campaign.example"}}}}
routes:
  - {{name: all, via: main}}
"""


@dataclass(frozen=True)
class Seen:
    """Seconds from hand-in to the sink's 250, sorted; and what the campaign had meanwhile, messages a second."""

    priority: str
    queued: int
    latencies: tuple[float, ...]
    beside: float
    at_best: float  # the same in the best two seconds
    overtaken: int  # by how many MAILs at the sink, at most, from a reset's 250 to its own

    def share(self, part: float) -> float:
        return self.latencies[min(len(self.latencies) - 1, int(part * len(self.latencies)))]


def seed(table: Table, first: int, lane: int, at: float) -> NewMessage:
    """One message of the campaign in each lane, for `backlog.make`."""
    address = f"user{lane}@campaign.example"
    news = "news@campaign.example"
    facts = Facts(news, address, listener="local", client="127.0.0.1", user=f"shop{lane}", from_=news)
    facts = replace(facts, class_="campaign")
    text = lane_facts(table, facts, lambda question: question.ask(facts))
    made = backlog.seed(table, first, lane, at)
    recipient = NewRecipient(address, text, State.QUEUED, at, at + 5 * 86400)
    return replace(
        made, sender=news, header_from=news, class_="campaign", user=facts.user, priority=3, recipients=[recipient]
    )


def measure(folder: Path, priority: str, queued: int, resets: int, every: float = 1.0) -> Seen:
    """In a new folder."""
    folder.mkdir()
    with Counting(delay=ANSWER) as sink:
        config = folder / "relay.yaml"
        config.write_text(_CONFIG.format(folder=folder, sink=sink.port, priority=priority))
        if queued:
            backlog.make(config, queued, min(queued, LANES), time.time(), seed=seed)
        with Relay(config) as relay:
            if queued:
                sink.wait(40, 120)  # it is under way
            handed: dict[str, float] = {}
            places: dict[str, int] = {}
            begin, before = time.monotonic(), len(sink.taken)
            for n in range(resets):
                time.sleep(max(0.0, begin + n * every - time.monotonic()))
                if queued:  # however slow the machine is, the campaign goes on meanwhile
                    sink.wait(before + 3 * n, 60)
                to = f"user{n}@reset.example"
                handed[to] = time.monotonic()
                hand_in(relay.port, [to], "login@reset.example")
                places[to] = len(sink.mails)
            until(lambda: handed.keys() <= sink.when.keys(), 60, "all resets at the sink")
            seconds = time.monotonic() - begin
            beside = (len(sink.taken) - before - resets) / seconds
            relay.kill()
    campaign = Counter(sink.taken[before:]) - Counter(sink.when[to] for to in handed)
    at_best = most(list(campaign), 2.0) / 2
    overtaken = max(sink.place[to] - place for to, place in places.items())
    latencies = tuple(sorted(sink.when[to] - at for to, at in handed.items()))
    return Seen(priority, queued, latencies, beside, at_best, overtaken)


def table(seen: Sequence[Seen]) -> str:
    lines = ["| priority | queued | p50, ms | p99, ms | most, ms | campaign/s |", "|---|---:|---:|---:|---:|---:|"]
    for s in seen:
        figures = " | ".join(f"{x * 1000:.0f}" for x in (s.share(0.5), s.share(0.99), s.latencies[-1]))
        lines.append(f"| {s.priority} | {s.queued:,} | {figures} | {s.beside:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queued", type=int, default=100_000)
    parser.add_argument("--resets", type=int, default=100)
    given = parser.parse_args()
    seen = []
    with tempfile.TemporaryDirectory(prefix="priority-") as name:
        for priority in ("high", "immediate"):
            for queued in (0, given.queued):
                seen.append(measure(Path(name) / f"{priority}-{queued}", priority, queued, given.resets))
    print(table(seen))
    for without, beside in (seen[:2], seen[2:]):
        more = beside.share(0.99) - without.share(0.99)
        print(f"{beside.priority}: the campaign adds {more * 1000:.0f} ms to the p99")


if __name__ == "__main__":
    main()
