"""What the scheduler tells an operator: why something waits, until when, and what each account does. Changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Any

from relay import clock
from relay.deliver.network import Network
from relay.deliver.pool import Egress, name_of
from relay.deliver.survey import survey
from relay.policy.gate import FOREVER, EgressView, Go, admit
from relay.policy.held import FREE, Held
from relay.policy.lanefacts import LaneFacts
from relay.policy.routing import Action, Facts
from relay.scheduler.carry import Carriers
from relay.scheduler.foresight import foresee, sharing
from relay.scheduler.lanes import Lane, Lanes
from relay.scheduler.work import Work
from relay.settings import Account

PART = 500  # destinations that are looked at in one go


@dataclass(slots=True)
class _Sum:
    """Over the destinations of a direct entry."""

    destinations: int = 0
    resting: int = 0
    sessions: int = 0
    busy: int = 0
    first: Egress[Work] | None = None  # of those that rest, who may be dialled next


class Outlook:
    """Looks at lanes and egresses as they are."""

    def __init__(self, lanes: Lanes, carriers: Carriers, network: Network) -> None:
        self.lanes, self.carriers, self.network = lanes, carriers, network

    def forecast(self, lane_id: int, now: float) -> tuple[str, float | None, tuple[str, ...]]:
        """(why what is due in this lane waits, until when, its egresses); an empty why: nothing holds it up.

        The egresses are keys (`deliver.pool.key_of`); where its destination is being looked up, names.
        """
        lane = self.lanes.by_id.get(lane_id)
        return self._forecast(lane, now) if lane else ("", now, ())  # it has just come in

    def forecast_facts(self, facts: str, now: float) -> tuple[str, float | None, tuple[str, ...]]:
        """As `forecast`, for a lane that need not be there yet."""
        return self._forecast(self.lanes.imagined(facts), now)

    def _forecast(self, lane: Lane, now: float) -> tuple[str, float | None, tuple[str, ...]]:
        if lane.unsited:
            return lane.why, None, self._ahead(lane)
        if lane.movable and lane.egresses:
            views = [self.view(key, now) for key in lane.egresses]
            decision = admit([view for view in views if view is not None], now)
            held = self._at_posts(lane, now)
            if not isinstance(decision, Go) and (decision.until > now + held.seconds or not held.seconds):
                return decision.why, None if decision.until == FOREVER else decision.until, lane.egresses
            return held.why, None if held.seconds == FOREVER else now + held.seconds, lane.egresses
        if lane.movable and lane.route is not None and lane.route.action is Action.VIA:
            return f"no account of route {lane.route.name} may send as its sender", None, ()
        return lane.why, lane.resumes if lane.suspended and lane.resumes < FOREVER else None, lane.egresses

    def _at_posts(self, lane: Lane, now: float) -> Held:
        """By the limits of its mail, and the hours of its class; what passes to the next egress holds nothing where there is one."""
        held = [post.wait(now, lane.size) for post in self.lanes.bounds.of(lane, lane.egresses[0], now)]
        return max(
            (h for h in held if not (h.passes and len(lane.egresses) > 1)), key=lambda h: h.seconds, default=FREE
        )

    async def eta(self, row: Mapping[str, Any], now: float) -> tuple[float | None, str, int]:
        """(when a recipient that waits will leave, about; by which rule; how many leave before it in its lane). `row`: as
        `Spool.find` has it. None: nobody knows."""
        lane = self.lanes.by_id.get(row["lane"])
        if lane is None or not lane.movable:
            resumes = lane.resumes if lane is not None and lane.suspended and lane.resumes < FOREVER else None
            return resumes, lane.why if lane else "", 0
        place = row["lane"], row["priority"], row["due_at"], row["message"]
        before, waiting = await self.carriers.spool.before(place, sharing(self.lanes, lane, now), now)
        seconds, rule = foresee(self.lanes, self.carriers.egresses.at, lane, before, waiting, row["size"], now)
        if row["due_at"] > now + seconds:
            return row["due_at"], "", before  # it comes then, and who is before it by then is not here yet
        return (None if seconds == FOREVER else now + seconds), rule, before

    def _ahead(self, lane: Lane) -> tuple[str, ...]:
        """By name, those that it leaves by once it is known where to."""
        table = self.lanes.config.table
        return table.egresses(lane.route, lane.facts.ask, lane.facts.drawn) if lane.route else ()

    def route_name(self, lane_id: int) -> str:
        lane = self.lanes.by_id.get(lane_id)
        return lane.route.name if lane and lane.route else ""

    def destination(self, lane_id: int) -> str:
        """The site that it leaves to; empty where it does not leave by MX, or that is not known yet."""
        lane = self.lanes.by_id.get(lane_id)
        return lane.site if lane else ""

    def lanes_of_route(self, name: str) -> tuple[int, ...]:
        return tuple(i for i in self.lanes.by_id if self.route_name(i) == name)

    def lanes_by_first(self, wanted: Callable[[str], bool]) -> frozenset[int]:
        """The lanes whose first account, or direct entry, is wanted: what waits in them would leave by it."""
        known: dict[str, bool] = {}  # thousands of lanes leave by a few

        def by(keys: Sequence[str]) -> bool:
            name = name_of(keys[0]) if keys else ""
            return known[name] if name in known else known.setdefault(name, bool(name) and wanted(name))

        return frozenset(i for i, x in self.lanes.by_id.items() if by(self._ahead(x) if x.unsited else x.egresses))

    def lane_facts_of(self, lane_id: int) -> LaneFacts | None:
        lane = self.lanes.by_id.get(lane_id)
        return lane.facts if lane else None

    def view(self, egress: str, now: float | None = None) -> EgressView | None:
        """By its key, or a direct entry's name: then as it is for a destination that nothing is known of."""
        return self.carriers.egresses.look(egress, clock.now() if now is None else now)

    def rest(self, name: str, domain: str) -> tuple[float, str]:
        """(until when, why) an egress sends nothing to a domain; 0: it does."""
        rest = self.carriers.blame.resting.rests.get((name, domain))
        return (rest.until, rest.why) if rest is not None and rest.until > clock.now() else (0.0, "")

    async def survey(self, facts: Facts, names: Sequence[str]) -> dict[str, Any]:
        """How these direct entries would reach the recipient's domain (`deliver.survey`)."""
        return await survey(self.network, self.lanes.config, facts, names)

    # -- what each does

    def egress_rows(self) -> list[dict[str, Any]]:
        """One for each account and direct entry: what it does, and why it rests if it does.

        `destinations` is None for an account. `down`: nothing leaves by it; by a direct entry, to nobody.
        """
        now, sums = clock.now(), self._sums()
        rows = []
        for name, account in self.lanes.config.accounts.items():
            egress = self.carriers.egresses.get(name)
            if account.source is not None:
                rows.append(self._direct(account, sums.get(name, _Sum()), now))
            elif egress is not None:
                row = _NO_SITE | {"egress": name, "host": f"{account.host}:{account.port}", **_figures(egress, now)}
                row["down"] = row["state"] != "ready"
                rows.append(row | ({"token": egress.tokens.state()} if egress.tokens else {}))
        return rows

    def _sums(self) -> dict[str, _Sum]:
        sums: dict[str, _Sum] = {}
        for egress in self.carriers.egresses.values():
            if egress.direct is None:
                continue
            made = sums.get(egress.name)
            if made is None:
                made = sums[egress.name] = _Sum()
            made.destinations += 1
            made.sessions += egress.sessions
            made.busy += egress.busy
            if egress.breaker.is_open:
                made.resting += 1
                if made.first is None or egress.breaker.until < made.first.breaker.until:
                    made.first = egress
        return sums

    def _direct(self, account: Account, made: _Sum, now: float) -> dict[str, Any]:
        source, trunk = account.source, self.carriers.egresses.trunks[account.name]
        assert source is not None
        state, (wait, why, _) = "ready", trunk.pace.wait(now)
        if made.first is not None:
            state = f"{made.resting} of {made.destinations} destinations rest"
            if made.resting == made.destinations:
                wait, why = made.first.breaker.wait(now), f"{made.first.site}: {made.first.breaker.why}"
        if not why and trunk.full:
            why = f"it has as many connections as it may, {account.connections}"
        addresses = ", ".join(filter(None, (source.v4, source.v6)))
        return _NO_SITE | {
            "egress": account.name,
            "host": f"MX, from {addresses}" if addresses else "MX",
            "destinations": made.destinations,
            "resting": made.resting,
            "sessions": made.sessions,
            "connections": account.connections,
            "in_flight": made.busy,
            "state": state,
            "wait": round(wait, 1),
            "why": why,
            "down": 0 < made.destinations == made.resting,
        }

    async def destination_rows(self, name: str, most: int) -> list[dict[str, Any]]:
        """Of a direct entry's destinations those that matter: first what rests or is slowed, then the busiest; at most so many."""
        now, found = clock.now(), list[tuple[bool, int, int, int]]()
        every = self.carriers.egresses.of(name)
        for start in range(0, len(every), PART):
            for i, egress in enumerate(every[start : start + PART], start):
                sick = egress.breaker.is_open or bool(egress.fewer) or egress.pace.until > now
                if sick or egress.busy or egress.sessions:
                    found.append((sick, egress.busy, egress.sessions, -i))
            found = nlargest(most, found)
            await asyncio.sleep(0)
        chosen = [every[-number] for *_, number in found]
        return [
            _NO_SITE | {"egress": name, "destination": egress.site, **_figures(egress, now)}
            | {"down": egress.breaker.is_open}
            for egress in chosen
        ]  # fmt: skip


_NO_SITE: dict[str, Any] = {"destination": "", "host": "", "destinations": None, "resting": None}


def _figures(egress: Egress[Work], now: float) -> dict[str, Any]:
    return {
        "sessions": egress.sessions,
        "connections": egress.connections,
        "in_flight": egress.busy,
        **_health(egress, now),
    }


def _health(egress: Egress[Work], now: float) -> dict[str, Any]:
    """`state`, how long it waits and why. One that is ready may wait for its pace."""
    breaker, pace, stopped = egress.breaker, egress.pace, egress.stopped
    if stopped is not None and stopped[0] > now:
        wait = stopped[0] - now if stopped[0] < FOREVER else 0.0
        return {"state": "suspended", "wait": round(wait, 1), "why": stopped[1]}
    if breaker.is_open:
        state = "paused: login refused" if breaker.auth_failed else "resting"
        return {"state": state, "wait": round(breaker.wait(now), 1), "why": breaker.why}
    wait, why, _ = pace.wait(now)
    said, fewer = why or breaker.why or (f"it takes about {pace.shown}" if pace.rate else ""), egress.fewer
    count, _, reason = fewer.partition(": ")
    if reason and said.endswith(reason):
        fewer = count  # one reply is often the reason of both
    return {"state": "ready", "wait": round(wait, 1), "why": "; ".join(filter(None, (said, fewer)))}
