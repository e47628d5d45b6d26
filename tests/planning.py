"""The planner over real lanes and limits, with egresses that say what a test tells them, and a queue in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conftest import NOW
from rig import write_config

from relay.config.load import load
from relay.maillog import MailLog
from relay.nexthop.mx import Mx
from relay.policy.gate import EgressView
from relay.resolver import Resolver
from relay.scheduler.bounds import Bounds
from relay.scheduler.lanes import Lanes
from relay.scheduler.plan import Plan, Planner
from relay.scheduler.sites import Sites
from relay.settings import Config
from relay.spool import Head

TWO = {"one": "port: 1, tls: none", "two": "port: 2, tls: none"}


def config_of(folder: Path, extra: str = "", classes: str = "  default: {}", routes: str = "") -> Config:
    return load(write_config(folder, TWO, classes=classes, extra=extra, routes=routes))


@dataclass
class Exit:
    """An egress of so much room."""

    name: str
    room: int = 1000
    wait: float = 0.0
    busy: int = 0
    passes: bool = True

    def view(self, now: float) -> EgressView:
        return EgressView(self.name, self.room, self.wait, "it rests" if self.wait else "", passes=self.passes)


@dataclass
class Queue:
    """What waits in each lane, and what left: (when, lane, egress, messages). Every message has one recipient and `size` bytes."""

    config: Config
    exits: dict[str, Exit] = field(default_factory=lambda: {name: Exit(name) for name in TWO})
    kept: Callable[[str], Sequence[tuple[float, int]]] = lambda key: ()
    size: int = 100
    waiting: Counter[int] = field(default_factory=Counter)
    left: list[tuple[float, int, str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bounds = Bounds(self.config, self.kept)
        self.lanes = Lanes(self.config, Sites(Mx(Resolver()), self.config, MailLog(None)), self.bounds)
        self.planner = Planner(self.lanes, self.exits, {})
        self._number = 0

    def lane(self, user: str = "u", class_: str = "default", count: int = 1, at: float = NOW, **facts: str) -> int:
        """A new lane with so many messages due."""
        self._number += 1
        more = "".join(f',"{name}":"{value}"' for name, value in facts.items())
        self.waiting[self._number] = count
        self.lanes.update([Head(self._number, f'{{"class":"{class_}","user":"{user}"{more}}}', at)])
        return self._number

    def more(self, lane: int, count: int, at: float = NOW) -> None:
        self.waiting[lane] += count
        self.lanes.update([Head(lane, "", at)])

    def plan(self, now: float = NOW) -> Plan:
        """One pass, as `Scheduler._pass` makes it: claimed, counted, sent."""
        plan = self.planner.plan(now)
        served: dict[int, int] = {}
        for ask in plan.asks:
            served[ask.lane] = min(ask.limit, self.waiting[ask.lane])
            self.waiting[ask.lane] -= served[ask.lane]
        self.planner.end(plan)
        for ask in plan.asks:
            lane, egress = self.lanes.by_id[ask.lane], plan.goes[ask.lane]
            self.lanes.found(lane, now if self.waiting[ask.lane] else None)
            self.lanes.order.served(lane, egress, served[ask.lane])
            for _ in range(served[ask.lane]):
                for meter in self.bounds.meters_of(lane, egress, now):
                    meter.take(now, 1, self.size)
            if served[ask.lane]:
                self.left.append((now, ask.lane, egress, served[ask.lane]))
        return plan

    def settle(self, now: float = NOW, most: int = 1000) -> int:
        """Passes at one time until nothing more moves; how many."""
        for number in range(1, most):
            plan = self.plan(now)
            if not plan.asks and not plan.again:
                return number
        raise AssertionError("it never comes to rest")

    def run(self, until: float, now: float = NOW) -> float:
        """Passes as time goes on, each when the lanes say that there may be more; the time of the last."""
        while True:
            self.settle(now)
            due = min(self.lanes.next_due() or until, self.planner.look_at, until)
            if now >= until:
                return now
            now = min(until, max(due, now + 0.01))

    def sent(self, *lanes: int, egress: str = "") -> int:
        return sum(n for _, lane, by, n in self.left if (not lanes or lane in lanes) and by.startswith(egress))
