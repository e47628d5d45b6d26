"""The lanes in memory: when each is due, where it goes, and why it waits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from relay.policy.gate import FOREVER
from relay.policy.routing import Action, LaneFacts, Route, Undecided
from relay.settings import Config
from relay.spool import Head

_NO_ROUTE = "no route of the configuration in force matches it; it waits for one that does, see `relay explain`"
_STALE = "it is being routed anew after a reload"


@dataclass(slots=True)
class Lane:
    """One lane. `due_at` None: nothing is due in it."""

    id: int
    facts: LaneFacts
    due_at: float | None = None
    route: Route | None = None
    egresses: tuple[str, ...] = ()
    stale: bool = False  # the configuration asks a question that its facts don't answer
    wait_until: float = 0.0
    why: str = ""

    @property
    def movable(self) -> bool:
        return not self.stale and self.route is not None


@dataclass
class Lanes:
    """All lanes, in fair turns."""

    config: Config
    by_id: dict[int, Lane] = field(default_factory=dict)
    _turn: int = 0

    def update(self, heads: Iterable[Head]) -> None:
        """What the spool said: a lane has something due then, or has it earlier than we knew."""
        for head in heads:
            lane = self.by_id.get(head.lane)
            if lane is None:
                lane = self.by_id[head.lane] = Lane(head.lane, LaneFacts.parse(head.facts))
                self._route(lane)
            if head.due_at is not None and (lane.due_at is None or head.due_at < lane.due_at):
                lane.due_at = head.due_at

    def imagined(self, facts: str) -> Lane:
        """The lane of these facts as it would be; it is not kept."""
        lane = Lane(-1, LaneFacts.parse(facts))
        self._route(lane)
        return lane

    def reload(self, config: Config) -> None:
        self.config = config
        for lane in self.by_id.values():
            self._route(lane)

    def _route(self, lane: Lane) -> None:
        """Derive the route from the lane's facts; no row is read."""
        table = self.config.table
        lane.wait_until, lane.why, lane.egresses = 0.0, "", ()
        lane.stale = not lane.facts.covers(table.questions)
        route = None if lane.stale else lane.facts.route_in(table, self.config.accounts)
        lane.route = None if isinstance(route, Undecided) else route
        if lane.stale:
            lane.why, lane.wait_until = _STALE, FOREVER
        elif lane.route is None:
            lane.why, lane.wait_until = _NO_ROUTE, FOREVER
        elif lane.route.action is Action.VIA:
            known = [e for e in table.egresses(lane.route, lane.facts.ask) if e in self.config.accounts]
            lane.egresses = tuple(known)

    def due(self, now: float) -> list[Lane]:
        """Lanes with something due, each pass beginning with another one."""
        ready = [lane for lane in self.by_id.values() if lane.due_at is not None and lane.due_at <= now]
        if not ready:
            return []
        self._turn = (self._turn + 1) % len(ready)
        return ready[self._turn :] + ready[: self._turn]

    def next_due(self, now: float) -> float | None:
        """When the next lane that could move may do so; None: nothing waits for a time."""
        times = [
            max(lane.due_at, lane.wait_until)
            for lane in self.by_id.values()
            if lane.due_at is not None and (lane.due_at > now or lane.wait_until > now)
        ]
        finite = [t for t in times if t != FOREVER]
        return min(finite, default=None)

    def stale(self) -> list[Lane]:
        return [lane for lane in self.by_id.values() if lane.stale]
