"""What the scheduler tells an operator: why something waits, until when, and what each account does. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable

from relay import clock
from relay.deliver.pool import Egress
from relay.policy.gate import FOREVER, EgressView, Go, admit
from relay.policy.lanefacts import LaneFacts
from relay.policy.routing import Action
from relay.scheduler.carry import Carriers
from relay.scheduler.lanes import Lane, Lanes
from relay.scheduler.work import Work


class Outlook:
    """Looks at lanes and egresses as they are."""

    def __init__(self, lanes: Lanes, carriers: Carriers) -> None:
        self.lanes, self.carriers = lanes, carriers

    def forecast(self, lane_id: int, now: float) -> tuple[str, float | None, tuple[str, ...]]:
        """(why what is due in this lane waits, until when, its egresses); an empty why: nothing holds it up."""
        lane = self.lanes.by_id.get(lane_id)
        return self._forecast(lane, now) if lane else ("", now, ())  # it has just come in

    def forecast_facts(self, facts: str, now: float) -> tuple[str, float | None, tuple[str, ...]]:
        """As `forecast`, for a lane that need not be there yet."""
        return self._forecast(self.lanes.imagined(facts), now)

    def _forecast(self, lane: Lane, now: float) -> tuple[str, float | None, tuple[str, ...]]:
        if lane.movable and lane.egresses:
            decision = admit([self.carriers.egresses[name].view(now) for name in lane.egresses], now)
            if not isinstance(decision, Go):
                return decision.why, None if decision.until == FOREVER else decision.until, lane.egresses
            return "", now, lane.egresses
        if lane.movable and lane.route is not None and lane.route.action is Action.VIA:
            return f"no account of route {lane.route.name} may send as its sender", None, ()
        return lane.why, None, lane.egresses

    def route_name(self, lane_id: int) -> str:
        lane = self.lanes.by_id.get(lane_id)
        return lane.route.name if lane and lane.route else ""

    def lanes_of_route(self, name: str) -> tuple[int, ...]:
        return tuple(i for i in self.lanes.by_id if self.route_name(i) == name)

    def lanes_by_first(self, wanted: Callable[[str], bool]) -> frozenset[int]:
        """The lanes whose first account is wanted: what waits in them would leave by it."""
        return frozenset(i for i, lane in self.lanes.by_id.items() if lane.egresses and wanted(lane.egresses[0]))

    def lane_facts_of(self, lane_id: int) -> LaneFacts | None:
        lane = self.lanes.by_id.get(lane_id)
        return lane.facts if lane else None

    def view(self, egress: str) -> EgressView | None:
        found = self.carriers.egresses.get(egress)
        return found.view(clock.now()) if found else None

    def egress_rows(self) -> list[dict[str, object]]:
        """Each egress: what it does, and why it rests if it does."""
        now = clock.now()
        return [
            {
                "egress": name,
                "host": f"{e.account.host}:{e.account.port}",
                "sessions": e.sessions,
                "in_flight": e.busy,
                **_health(e, now),
                **({"token": e.tokens.state()} if e.tokens else {}),
            }
            for name, e in self.carriers.egresses.items()
        ]


def _health(egress: Egress[Work], now: float) -> dict[str, object]:
    """`state`, how long it waits and why. One that is ready may wait for its pace."""
    breaker, pace = egress.breaker, egress.pace
    if breaker.is_open:
        state = "paused: login refused" if breaker.auth_failed else "resting"
        return {"state": state, "wait": round(breaker.wait(now), 1), "why": breaker.why}
    wait, why = pace.wait(now)
    said = [why or breaker.why or (f"it takes about {pace.shown}" if pace.rate else ""), egress.fewer]
    return {"state": "ready", "wait": round(wait, 1), "why": "; ".join(text for text in said if text)}
