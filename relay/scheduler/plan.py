"""What may leave now: the gate is asked for each way, the posts for each lane. Nothing is written, nothing is sent.

The scheduler claims by it; `relay simulate` asks it on a clock of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from relay.policy.gate import FOREVER, EgressView, Go, admit
from relay.policy.limits import Meter
from relay.policy.rate import Unit
from relay.scheduler.bounds import Post
from relay.scheduler.lanes import Lane, Lanes, Way
from relay.scheduler.turns import share
from relay.spool import SIBLINGS, Ask

MAX_ASKED = 200  # lanes in one claim: others wait for its transaction
MAX_ENDED = 10  # lanes that a rule ends, in one claim
MAX_HELD = 500  # lanes that are found to be held, in one pass: the event loop has other work


class Exit(Protocol):
    """An egress as the planner sees it."""

    @property
    def busy(self) -> int: ...

    def view(self, now: float) -> EgressView: ...


class Entry(Protocol):
    """What all sites of a direct entry share: places for those that have no session."""

    def line(self, proven: bool) -> str: ...
    def places(self, proven: bool) -> int: ...


@dataclass(slots=True)
class Plan:
    """What to claim, and the egress (its key) of each lane."""

    asks: list[Ask] = field(default_factory=list)
    goes: dict[int, str] = field(default_factory=dict)
    again: bool = False  # something was moved that may go in the next round, or not everybody was asked
    held: int = 0  # lanes that were stopped
    reserved: list[tuple[list[Meter], dict[Unit, int]]] = field(default_factory=list)  # how many of each unit


@dataclass(slots=True)
class _Going:
    """What a round has let go so far."""

    places: dict[str, int]  # for who has no session, by line
    open: dict[str, tuple[Go, list[Way]]] = field(default_factory=dict)  # by egress


class Planner:
    """`look_at`: a way that is not at rest may go then, whether or not anybody ends before."""

    def __init__(self, lanes: Lanes, egresses: Mapping[str, Exit], trunks: Mapping[str, Entry]) -> None:
        self.lanes, self.egresses, self.trunks = lanes, egresses, trunks
        self.look_at = FOREVER

    def plan(self, now: float) -> Plan:
        """For each lane that may go, how many and by which egress. `end` has to be called once they are claimed."""
        plan, self.look_at = Plan(), FOREVER
        trunks = self.trunks.values()
        going = _Going({trunk.line(proven): trunk.places(proven) for trunk in trunks for proven in (True, False)})
        lines = self.lanes.lines()
        for way in self.lanes.ways(now):
            if not way.egresses:
                self._end_by_rule(way, now, plan)
            elif len(going.open) < MAX_ASKED:  # the others are the first ones of the next round
                self._ask(way, now, going, lines)
            else:
                plan.again = True
        for line, count in lines.items():
            for _ in range(count):
                if going.places.get(line, 1) <= 0 or len(going.open) >= MAX_ASKED:
                    break
                if (first := self.lanes.first(line)) is not None:
                    self._ask(first, now, going, {})
        for egress, (go, ways) in going.open.items():
            self._share(egress, go, ways, now, plan)
        return plan

    def end(self, plan: Plan) -> None:
        """Its claim is over: what was reserved for it is spent, or was not needed."""
        for meters, most in plan.reserved:
            for meter in meters:
                meter.reserved -= most[meter.unit]

    def _end_by_rule(self, way: Way, now: float, plan: Plan) -> None:
        for _, lane in zip(range(MAX_ENDED), self.lanes.take([way]), strict=False):
            lane.asked = True
            plan.asks.append(Ask(lane.id, 50, now))

    def _ask(self, way: Way, now: float, going: _Going, lines: Mapping[str, int]) -> None:
        """Whether a way may go now; else it rests, or stands in line behind those that do already."""
        decision = admit([self.egresses[name].view(now) for name in way.egresses], now)
        if isinstance(decision, Go):
            line, new = decision.behind, decision.egress not in going.open
            if line and (line in lines or (new and going.places[line] <= 0)):
                return self.lanes.stand(way, line)
            if line and new:
                going.places[line] -= 1
            going.open.setdefault(decision.egress, (decision, []))[1].append(way)
        elif decision.behind:
            self.lanes.stand(way, decision.behind)
        elif any(self.egresses[name].busy for name in way.egresses):
            self.look_at = min(self.look_at, decision.until)
        else:
            self.lanes.come_back(way)
            self.lanes.rest(way, decision.until, now)

    def _share(self, egress: str, go: Go, ways: list[Way], now: float, plan: Plan) -> None:
        """The room of an egress, among the lanes that wait for it, in their order."""
        room, turns = go.count, [way.turns for way in ways]
        if room <= 0 or len(plan.asks) >= MAX_ASKED:
            return
        siblings = min(SIBLINGS, -(-go.recipients // max(1, sum(map(len, turns)))))
        shares: dict[int, int] = {}
        for lane in self.lanes.take(ways, egress):
            if lane.level not in shares:
                shares[lane.level] = share(turns, lane, room)
            ask = Ask(lane.id, min(shares[lane.level], room), now)
            ask.siblings = max(0, siblings - ask.limit)
            if not self._bound(lane, egress, ask, plan):
                self.lanes.order.served(lane, egress, 0)
                plan.held += 1
                if plan.held < MAX_HELD:
                    continue
                plan.again = True
                break
            lane.asked = True
            plan.goes[lane.id] = egress
            plan.asks.append(ask)
            room -= ask.limit
            if room <= 0 or len(plan.asks) >= MAX_ASKED:
                break

    def _bound(self, lane: Lane, egress: str, ask: Ask, plan: Plan) -> bool:
        """Whether its posts let a lane go, and lowers what is asked of it to that; else it waits at one, or goes another way."""
        now, size, limit = ask.now, lane.size, ask.limit
        spare = limit + ask.siblings  # recipients
        posts = self.lanes.bounds.of(lane, egress, now)
        longest: Post | None = None
        seconds = 0.0
        for post in posts:
            meter = post.meter
            room = post.room(now) if meter is None else meter.room(now, size)
            if room > 0:
                if room < spare:
                    limit = min(limit, room)
                    if meter is not None and meter.unit == "recipients":
                        spare = room
                continue
            held = post.wait(now, size)
            if held.passes and (later := _after(lane.egresses, egress)):
                self.lanes.turn_aside(lane, later)
                plan.again = True
                return False
            if longest is None or held.seconds > seconds:
                longest, seconds = post, held.seconds
        if longest is not None:
            self.lanes.park(lane, longest, now + seconds, now)
            return False
        ask.limit = limit
        ask.siblings = min(ask.siblings, spare - limit)
        if meters := [post.meter for post in posts if post.meter is not None]:
            most: dict[Unit, int] = {
                "messages": limit,
                "recipients": limit + ask.siblings,
                "bytes": size,
                "connections": 0,
            }
            for meter in meters:
                meter.reserved += most[meter.unit]
            plan.reserved.append((meters, most))
        return True


def _after(egresses: tuple[str, ...], egress: str) -> tuple[str, ...]:
    return egresses[egresses.index(egress) + 1 :] if egress in egresses else ()
