"""Those who carry mail in a simulation: each a session that takes so many seconds for a message, and fails at nothing.

What they do with an egress is what the carriers of the relay do (scheduler.carry), step by step: the same backlog, the same
turns, the same counts. Only the session is none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from relay.deliver.pool import Egress
from relay.deliver.trunk import TURN
from relay.policy.turn import NOT_LONG, turn
from relay.scheduler.work import Work


class World(Protocol):
    """Time, and what becomes of a message."""

    now: float
    seconds: float  # that a message takes

    def after(self, seconds: float, then: Callable[[], None]) -> None: ...
    def waited(self, work: Work, why: str) -> None: ...
    def left(self, work: Work, egress: Egress[Work]) -> None: ...
    def put_back(self, work: Work, seconds: float = 0.0) -> None: ...


@dataclass(slots=True, eq=False)
class Session:
    transactions: int = 0
    taken_at: float = 0.0
    idle_since: float = 0.0


@dataclass(slots=True, eq=False)
class _Carrier:
    session: Session | None = None


@dataclass(slots=True, eq=False)
class _Place:
    """Its turn for a place among the sessions of a direct entry (deliver.trunk)."""

    then: Callable[[], None]
    came: bool = False

    def done(self) -> bool:
        return self.came

    def set_result(self, result: None, /) -> None:
        self.came = True
        self.then()


@dataclass(slots=True, eq=False)
class Crew:
    """Of one egress."""

    egress: Egress[Work]
    world: World
    idle: list[Session] = field(default_factory=list)

    def push(self, work: Work) -> None:
        self.egress.backlog.append(work)
        self._hire(1)

    def spare(self) -> bool:
        """Closes a session that nobody uses, for another lane; whether there was one."""
        if not self.idle:
            return False
        self.idle.pop(0)
        self.egress.gone()
        return True

    def _hire(self, count: int) -> None:
        for _ in range(min(count, self.egress.staff - self.egress.carriers)):
            self.egress.carriers += 1
            self.world.after(0.0, partial(self._next, _Carrier()))

    def _next(self, carrier: _Carrier) -> None:
        egress, session = self.egress, carrier.session
        if not egress.backlog or egress.carriers > egress.connections or self._gives_way(session):
            return self._ends(carrier)
        work = egress.backlog.popleft()
        work.asks = len(work.recipients)
        egress.asking += work.asks
        egress.breaker.start()
        if session is not None:
            self._turn(carrier, work, self.world.now + NOT_LONG)
        elif egress.pace.until > self.world.now:
            self._too_soon(carrier, work)
        elif self.idle:
            carrier.session = self.idle.pop()
            self._taken(carrier, work)
        elif egress.trunk is None:
            self._dial(carrier, work, True)
        else:
            proven = egress.proven
            # On its own turn: who hands it the place is at something else just now.
            then = partial(self.world.after, 0.0, partial(self._dial, carrier, work, proven))
            egress.trunk.line_up(_Place(then), proven)

    def _gives_way(self, session: Session | None) -> bool:
        """The place of its session goes to another lane of the entry; or it would stand in line for one that others have."""
        trunk = self.egress.trunk
        if trunk is None:
            return False
        if session is None:
            return trunk.full and not self.idle and 0 < self.egress.sessions < self.egress.carriers
        return self.world.now - session.taken_at >= TURN and trunk.wanted

    def _dial(self, carrier: _Carrier, work: Work, proven: bool) -> None:
        egress, now = self.egress, self.world.now
        egress.begins()
        wait, *_ = egress.pace.dial_wait(now)
        if egress.trunk is not None and not proven:
            egress.trunk.reached()
        if wait > 0:
            egress.gone()
            return self._too_soon(carrier, work)
        egress.pace.dialled(now)
        egress.reached()
        carrier.session = Session()
        self._taken(carrier, work)

    def _taken(self, carrier: _Carrier, work: Work) -> None:
        assert carrier.session is not None
        carrier.session.taken_at = self.world.now
        if self.egress.backlog:
            self._hire(len(self.egress.backlog))
        self._turn(carrier, work, self.world.now + NOT_LONG)

    def _turn(self, carrier: _Carrier, work: Work, end: float) -> None:
        egress, now = self.egress, self.world.now
        if not egress.pace.free:
            found = turn(egress.pace, now, len(work.recipients), work.claim.size, end)
            if not found.fit:
                return self._too_soon(carrier, work, found.alone)
            if found.fit < len(work.recipients):
                self.world.put_back(work.share(work.recipients[found.fit :]))
                work.recipients = work.recipients[: found.fit]
                return self._turn(carrier, work, end)
            if found.wait:
                self.world.waited(work, f"{egress.key} waits: {found.why}")
                return self.world.after(found.wait, partial(self._turn, carrier, work, end))
            egress.pace.take(now, len(work.recipients), work.claim.size)
            egress.sending, work.paced = egress.sending + 1, True
            egress.asking, work.asks = egress.asking - work.asks, 0
        self.world.left(work, egress)
        self.world.after(self.world.seconds, partial(self._done, carrier, work))

    def _too_soon(self, carrier: _Carrier, work: Work, alone: float = 0.0) -> None:
        self.egress.breaker.returned()
        self.egress.asking, work.asks = self.egress.asking - work.asks, 0
        self.world.put_back(work, alone if self.egress.sessions else 0.0)
        self._next(carrier)

    def _done(self, carrier: _Carrier, work: Work) -> None:
        egress, now, session = self.egress, self.world.now, carrier.session
        assert session is not None
        egress.took(self.world.seconds)
        egress.breaker.succeeded()
        egress.pace.throttle.taken(now)
        egress.pace.accepted(now)
        egress.well(now)
        egress.asking, work.asks = egress.asking - work.asks, 0
        if work.paced:
            egress.sending, work.paced = egress.sending - 1, False
        session.transactions += 1
        if egress.backlog:
            self._hire(len(egress.backlog))
        if session.transactions >= egress.account.messages_per_connection:
            carrier.session = None
            egress.gone()
        self._next(carrier)

    def _ends(self, carrier: _Carrier) -> None:
        egress, session = self.egress, carrier.session
        egress.carriers -= 1
        if session is None:
            return
        if (egress.trunk is not None and egress.trunk.wanted) or egress.sessions > egress.connections:
            return egress.gone()
        session.idle_since = self.world.now
        self.idle.append(session)
        if egress.trunk is not None:
            egress.trunk.idles(self)
        self.world.after(egress.account.idle, self._sweep)

    def _sweep(self) -> None:
        last = self.world.now - self.egress.account.idle + 0.001
        for session in [s for s in self.idle if s.idle_since <= last]:
            self.idle.remove(session)
            self.egress.gone()
