#!/usr/bin/env python3
"""What one decision of the gate costs: may this lane move now, and if not why and until when.

    .venv/bin/python -m benchmarks.gate [--lanes 1000] [--rules 20]

Lanes of a thousand users, each bound by so many rules: limits by sender, From domain, user, tenant, class, destination and
together, in messages and recipients, by the second to the day. CPU time of this thread, the median of several rounds:

    pass     a round of the planner (`Planner.plan`), for each lane that it decides
    wait     one question to one limit (`Meter.wait`), free and used up, with a long history
    egress   the view of an egress with limits of its own (`Egress.view`)

With all lanes free, some or all blocked by the last of their rules, and once they wait there.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

from relay.config.load import load
from relay.deliver.pool import Egress
from relay.maillog import MailLog
from relay.nexthop.mx import Mx
from relay.policy.gate import EgressView
from relay.policy.limits import Limit, Meter
from relay.policy.rate import Rate
from relay.resolver import Resolver
from relay.scheduler.bounds import Bounds
from relay.scheduler.lanes import Lanes
from relay.scheduler.plan import Planner
from relay.scheduler.sites import Sites
from relay.scheduler.work import Work
from relay.settings import Config
from relay.spool import Head

NOW = 1_800_000_000.0
ROUNDS = 15
BUDGET = 20.0  # microseconds a decision
_PER = ("sender", "from", "user", "tenant", "class", "destination", "sender, destination", "user, class", "egress", "")
_RATES = ("1000000/d", "500000/h", "100000/min", "1000000 messages/d", "900000 messages/h")


@dataclass
class Exit:
    """An egress that has room for all."""

    room: int = 1 << 20
    busy: int = 0

    def view(self, now: float) -> EgressView:
        return EgressView("main", self.room, 0.0, "")


def config_of(folder: Path, rules: int) -> Config:
    """`rules` limits bind every lane; the last of them, `last`, is by user and may be used up."""
    limits = [
        f"  - {{name: rule{n}, {f'per: [{per}], ' if per else ''}rate: {_RATES[n % len(_RATES)]}}}"
        for n, per in zip(range(rules - 1), cycle(_PER), strict=False)
    ]
    file = folder / "relay.yaml"
    text = "\n".join([*limits, "  - {name: last, per: [user], rate: 10/h}"])
    file.write_text(f"""\
hostname: relay.example.org
listen: [{{name: local, address: "127.0.0.1:0"}}]
admin: {{socket: {folder}/admin.sock, address: null}}
spool: {{path: {folder}/spool.db}}
accounts:
  main: {{host: 127.0.0.1, port: 25, tls: none, limits: [14/s, 1000/min, 50000/d, 30 messages/s, 1GB/h]}}
routes: [{{name: all, via: main}}]
limits:
{text}
""")
    return load(file)


class Bench:
    """Lanes in memory with all that is due, and the planner over them."""

    def __init__(self, config: Config, lanes: int) -> None:
        self.bounds = Bounds(config, lambda key: ())
        self.lanes = Lanes(config, Sites(Mx(Resolver()), config, MailLog(None)), self.bounds)
        self.planner = Planner(self.lanes, {"main": Exit()}, {})
        self.lanes.update(Head(i, _facts(i), NOW) for i in range(lanes))
        self.decide(NOW)  # its posts are found once for each lane

    def decide(self, now: float) -> tuple[int, float]:
        """Passes until nothing more moves: how many lanes went or were stopped, and the CPU seconds that it took."""
        count, taken = 0, 0.0
        while True:
            began = time.thread_time()
            plan = self.planner.plan(now)
            self.planner.end(plan)
            taken += time.thread_time() - began
            count += len(plan.asks) + plan.held
            for ask in plan.asks:
                self.lanes.found(self.lanes.by_id[ask.lane], None)
            if not plan.asks and not plan.again:
                return count, taken

    def due(self) -> None:
        """Every lane that waits nowhere has something due again."""
        self.lanes.update(Head(lane.id, "", NOW) for lane in list(self.lanes.by_id.values()) if lane.post is None)

    def use_up(self, share: float) -> None:
        """The last limit of that part of the lanes."""
        for lane in self.lanes.by_id.values():
            if lane.id < share * len(self.lanes.by_id):
                self.bounds.meters_of(lane, "main", NOW)[-1].take(NOW, 10, 1000)


def _facts(number: int) -> str:
    return (
        f'{{"class":"default","user":"u{number}","sender":"s{number}@example.org","from":"d{number}.example.org",'
        f'"destination":"r{number % 100}.example.net"}}'
    )


def passes(config: Config, lanes: int, share: float) -> list[float]:
    """Microseconds for each lane decided, with that part of the lanes blocked."""
    found = []
    for _ in range(ROUNDS):
        bench = Bench(config, lanes)
        bench.use_up(share)
        bench.due()
        count, taken = bench.decide(NOW + 1)
        assert count == lanes, (count, lanes)
        found.append(taken / count * 1e6)
    return found


def asleep(config: Config, lanes: int) -> list[float]:
    """Microseconds of a whole pass while all lanes wait at their limits and one other is due."""
    bench = Bench(config, lanes + 1)
    bench.use_up(lanes / (lanes + 1))
    bench.due()
    bench.decide(NOW + 1)
    found = []
    for i in range(ROUNDS * 10):
        bench.lanes.update([Head(lanes, "", NOW)])
        found.append(bench.decide(NOW + 1 + i * 1e-4)[1] * 1e6)
    return found


def each(ask: Callable[[float], object], count: int = 5000) -> list[float]:
    """Microseconds of one question."""
    found = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        for i in range(count):
            ask(NOW + 3000 + i * 1e-6)
        found.append((time.thread_time() - began) / count * 1e6)
    return found


def meter(used: int, count: int = 10_000) -> Meter:
    """With a history of 128 parts."""
    made = Meter(Limit("one", Rate.parse(f"{count}/h")), "one", "limit one's")
    for i in range(3000):
        made.spent.add(made.limit.rate, used // 3000, NOW + i)
    return made


def egress(config: Config) -> Egress[Work]:
    made = Egress[Work](config.accounts["main"], "relay.example.org")
    for i in range(1000):
        made.pace.take(NOW + 2000 + i / 2, 1, 4096)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=1000)
    parser.add_argument("--rules", type=int, default=20)
    parser.add_argument("--profile", action="store_true", help="where the time goes, with all lanes blocked")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gate-") as name:
        config = config_of(Path(name), given.rules)
    if given.profile:
        with cProfile.Profile() as profile:
            passes(config, given.lanes, 1.0)
        pstats.Stats(profile).sort_stats("tottime").print_stats(20)
        return
    print(
        f"{given.lanes} lanes, {given.rules} rules each; CPU microseconds, median of {ROUNDS} rounds (least … most)\n"
    )
    rows = [
        (f"pass, a lane, {share:.0%} of the lanes blocked", passes(config, given.lanes, share))
        for share in (0.0, 0.5, 1.0)
    ]
    rows += [
        ("whole pass beside all of them waiting", asleep(config, given.lanes)),
        ("Meter.wait, free", each(meter(3000).wait)),
        ("Meter.wait, used up", each(meter(12_000).wait)),
        ("Egress.view, five limits", each(egress(config).view)),
    ]
    print("| decision | µs | least | most |\n|---|---:|---:|---:|")
    for what, found in rows:
        print(f"| {what} | {median(found):.1f} | {min(found):.1f} | {max(found):.1f} |")


if __name__ == "__main__":
    main()
