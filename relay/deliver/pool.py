"""An egress: one account, its sessions kept open, its breaker, and the work that waits for a session.

Of what is delivered by MX each lane of destinations is one: a direct entry's way to one site. The pool decides and then does:
`take` hands out an idle session that is still good, or dials.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from relay import clock, metrics
from relay.deliver.connect import connect
from relay.deliver.direct import Direct, OfDomain
from relay.deliver.smtp import Failure, TooSoon, Upstream
from relay.deliver.trunk import Trunk
from relay.policy.breaker import Breaker, Health
from relay.policy.crowd import Crowd
from relay.policy.gate import ANY, EgressView
from relay.policy.pace import Pace
from relay.policy.window import Window
from relay.settings import Account

if TYPE_CHECKING:
    from relay.oauth.tokens import Tokens


class Sized(Protocol):
    """Work: a transaction to so many."""

    @property
    def recipients(self) -> Sequence[object]: ...


W = TypeVar("W", bound=Sized)
HEALTH = Health()
CLAIM = 0.02  # seconds that a claim may take
AHEAD = 3  # transactions for each connection that are claimed ahead at most: a crash leaves little in doubt

DIALLED = metrics.Counter("relay_upstream_connects_total", "Sessions opened to upstreams", ["egress"])


def key_of(name: str, site: str) -> str:
    """What lanes and the gate call an egress: no name of one holds a blank."""
    return f"{name} to {site}" if site else name


def name_of(key: str) -> str:
    """What operators call it: an account, or a direct entry whatever the site."""
    return key.partition(" to ")[0]


class Egress(Generic[W]):
    """A way out. `backlog` is claimed work; carriers take it off."""

    def __init__(
        self,
        account: Account,
        hostname: str,
        tokens: Tokens | None = None,
        *,
        direct: Direct | None = None,
        trunk: Trunk | None = None,
        site: str = "",
        also: Sequence[Pace] = (),
        health: Health = HEALTH,
        now: Callable[[], float] = lambda: clock.now(),
    ) -> None:
        """`tokens`: where it logs in with those. By MX: `direct` finds the hosts of what goes to `site`, `trunk` is the entry's
        own, and `also` are limits that bind beside the lane's. `now`: the clock, where it is not the real one."""
        self.now = now
        self.account, self.hostname, self.tokens = account, hostname, tokens
        self.direct, self.trunk, self.site = direct, trunk, site
        self.name = account.name
        self.key = key_of(self.name, site)
        self.breaker = Breaker(health)
        self.stopped: tuple[float, str] | None = None  # by hand: until when, and why
        self.pace = Pace(account.limits, also)
        self.window = Window(account.connections) if direct else None
        self.crowd = Crowd(account.connections)
        self.backlog: deque[W] = deque()
        self.carriers = 0
        self.duration = CLAIM  # seconds of a transaction, as they have been of late
        self.sending = 0  # transactions that the pace has let go
        self.asking = 0  # recipients of those that it has not let go yet
        self.granted = 0  # places kept for what is being accepted
        self.seven_bit = False  # by what its last EHLO said, it takes no eight bits
        self.retired = False  # gone from the configuration: sessions are not kept
        self._idle: list[Upstream] = []
        self._goodbyes: set[asyncio.Task[None]] = set()
        self._open = 0
        # By a rule of `shaping`: sessions at most, until when, and why.
        self.shaped: tuple[int, float, str] | None = None
        self._proven = False  # the last host that was dialled answered
        self._trusted = account.username is None  # a login has worked since the last one that did not
        self.used = clock.monotonic()  # when it last had work

    @property
    def connections(self) -> int:
        """How many sessions it may have at once, as it is heard to bear them."""
        most = self.crowd.most if self.window is None else min(self.crowd.most, self.window.limit(self.now()))
        if self.shaped is not None:
            most = min(most, self.shaped[0])
            if self.shaped[1] <= self.now():
                self.shaped = None
        return most

    @property
    def busy(self) -> int:
        return len(self.backlog) + self.carriers + self.granted

    @property
    def capacity(self) -> int:
        """Transactions that may be claimed: one for each connection, and what they send until the next claim is made.

        No more than that, for what is claimed keeps its turn: mail of a higher priority waits behind it.
        """
        connections = self.connections
        return connections + max(1, min(AHEAD * connections, round(connections * CLAIM / self.duration)))

    def took(self, seconds: float) -> bool:
        """A transaction came to its end. Whether it bears all its sessions again."""
        self.duration += 0.2 * (max(seconds, 0.0001) - self.duration)
        return self.crowd.took(self.now())

    def well(self, now: float) -> None:
        """It took mail: it may bear more at once."""
        if self.window is not None:
            self.window.good(now, self.carriers)

    def strained(self, now: float, began: float, why: str) -> bool:
        """It has more at once than it bears. `began`: of the transaction, or of the dial, that showed it. Whether that is news."""
        return self.window is not None and self.window.bad(now, began, why)

    @property
    def open(self) -> bool:
        """Whether it takes one transaction more, without a question about its health."""
        if self.breaker.is_open or self.stopped is not None or self.busy >= self.capacity:
            return False
        if self.trunk is not None and not self._open and self.trunk.places(self._proven) <= 0:
            return False
        if self.pace.free:
            return True
        now = self.now()
        return self._paced(now) > 0 and (self._open > 0 or self.pace.dials(now) > 0)

    @property
    def sessions(self) -> int:
        return self._open

    @property
    def idle(self) -> bool:
        """Whether it has a session that nobody uses."""
        return bool(self._idle)

    @property
    def staff(self) -> int:
        """How many carriers may work at once: one where all others would only fail the same way.

        A wrong password costs one login, not one for each connection: providers lock an account that fails too often. A
        host that could not be reached at the first try is dialled in parallel all the same, so that its mail fails over.
        """
        first = not self._trusted and not self.breaker.failures
        most = 1 if first or self.breaker.is_open else self.connections
        if self.trunk is not None and self.trunk.full:
            # Who has a session stands in no line for another.
            most = min(most, max(1, self._open - len(self._goodbyes)))
        return most if self.pace.free else min(most, max(1, self._open + self.pace.dials(self.now())))

    def crowded(self, now: float, wait: float | None, why: str, *, dialled: bool) -> bool:
        """It has more sessions open than the upstream takes. Whether that is news. `wait`: seconds, if it said.

        `dialled`: that was said to a new session, which is closed again.
        """
        connections = self.connections if self._open or not dialled else 1
        news, rest = self.crowd.complained(now, connections, wait, why)
        if rest:
            self.pace.hold(now, rest, why)
        return news

    @property
    def fewer(self) -> str:
        """Why it has fewer connections than the account says, for people; empty: it has all."""
        most = self.account.connections
        if self.shaped is not None and self.connections == self.shaped[0] < most:
            return f"{self.shaped[0]} of {most} connections: {self.shaped[2]}"
        if self.window is not None and self.window.why and self.connections < self.crowd.most:
            return f"{self.connections} of {most} connections: {self.window.why}"
        return f"{self.crowd.most} of {most} connections: {self.crowd.why}" if self.crowd.most < most else ""

    def refused(self) -> None:
        """The login failed."""
        self._trusted = self.account.username is None

    def view(self, now: float) -> EgressView:
        if self.stopped is not None and self.stopped[0] > now:
            return EgressView(self.key, 0, self.stopped[0] - now, self.stopped[1])
        wait = self.breaker.wait(now)
        probing = self.breaker.is_open
        capacity = self.capacity
        room = capacity - self.busy
        if (probing and self.busy) or (self.backlog and room < capacity - self.connections):
            room = 0  # a claim costs a transaction, so it is made for several
        why, passes, recipients, behind = self.breaker.why, self.breaker.passes, ANY, ""
        if self.trunk is not None and not self._open and not self.carriers and room > 0:
            behind = self.trunk.line(self._proven)
            room = room if self.trunk.places(self._proven) > 0 else 0
        if not self._open and not wait and not self.pace.free:
            wait, said, passing = self.pace.dial_wait(now)
            if wait:
                why, passes = said, passing
        if not wait and not self.pace.free:
            recipients = self._recipients(now)
            room = min(room, self._paced(now), recipients)
            if room <= 0:
                # It is well: what is in excess waits, and is nobody else's, unless the limit says so.
                wait, why, passes = self.pace.wait(now)
        return EgressView(self.key, room, wait, why, probing, self.seven_bit, passes, recipients, behind)

    def _paced(self, now: float) -> int:
        """Messages that its pace allows beyond those that are claimed already."""
        return self.pace.room(now) - (self.busy - self.sending)

    def _recipients(self, now: float) -> int:
        """How many its limits allow beyond those that are claimed already."""
        return self.pace.recipients(now) - self.asking - sum(len(work.recipients) for work in self.backlog)

    def state(self) -> dict[str, Any]:
        """What it has learnt, for the next run; empty: nothing."""
        found = {"breaker": self.breaker.state(), "pace": self.pace.state()}
        return {name: state for name, state in found.items() if state}

    def load(self, state: Mapping[str, Any], now: float) -> None:
        self.breaker.load(state.get("breaker", {}), now)
        self.pace.load(state.get("pace", {}), now)

    def had_its_turn(self, session: Upstream) -> bool:
        """Whether the place of the session that a carrier works with goes to another lane of the entry."""
        return self.trunk is not None and self.trunk.had_its_turn(session.taken_at)

    @property
    def surplus(self) -> bool:
        """Whether a carrier without a session would stand in line for one, while others of the lane have some: they do its work."""
        if self.trunk is None or not self.trunk.full or self._idle:
            return False
        return 0 < self._open - len(self._goodbyes) < self.carriers

    async def take(self, domain: str = "", *, fresh: bool = False) -> Upstream:
        """A session: an idle one that is still good, the latest first, or a new one. Raises Failure, TooSoon.

        `domain`: whose mail it is for, where it leaves by MX.
        """
        session = await self._kept(domain, fresh) or await self._new(domain)
        session.taken_at = clock.monotonic()
        return session

    async def _kept(self, domain: str, fresh: bool) -> Upstream | None:
        others: list[Upstream] = []
        try:
            while self._idle:
                session = self._idle.pop()
                if not session.usable or fresh:
                    self.drop(session)
                    continue
                others.append(session)
                if self.direct is None or await self.direct.serves(session, domain):
                    return others.pop()
        finally:
            self._idle += reversed(others)
        return None

    async def _new(self, domain: str) -> Upstream:
        await self._room()
        proven = self.proven
        if self.trunk is not None:
            await self.trunk.enter(proven)
        self.begins()
        try:
            if self.direct is not None:
                session = await self.direct.reach(domain, self._dials)
            else:
                self._dials()
                session = await connect(self.account, self.hostname, self.tokens)
        except BaseException as error:
            if isinstance(error, Failure) and not isinstance(error, OfDomain):
                self._proven = False
            self.gone()
            raise
        finally:
            if self.trunk is not None and not proven:
                self.trunk.reached()
        DIALLED.inc(1, self.name)
        self.reached()
        self.seven_bit = not session.eight_bit
        return session

    def _dials(self) -> None:
        """A connection is about to be opened. Raises TooSoon."""
        if self.pace.free:
            return
        now = self.now()
        wait, why, _ = self.pace.dial_wait(now)
        if wait > 0:
            raise TooSoon(f"{self.key} waits: {why}", wait)
        self.pace.dialled(now)

    @property
    def proven(self) -> bool:
        """Whether the host to be dialled is known to answer."""
        return self._proven or self.trunk is None

    def begins(self) -> None:
        """One session more."""
        self._open += 1

    def reached(self) -> None:
        """It is open, and logged in."""
        self._trusted = self._proven = True

    def gone(self) -> None:
        """One session less."""
        self._open -= 1
        if self.trunk is not None:
            self.trunk.leave()

    def spare(self) -> bool:
        """Closes a session that nobody uses, for another lane; whether there was one."""
        if not self._idle:
            return False
        self._goodbye(self._idle.pop(0), 1.0)
        if self._idle and self.trunk is not None:
            self.trunk.idles(self)
        return True

    async def _room(self) -> None:
        """One that is saying goodbye counts until it is gone, for the upstream counts it; but mail does not wait for it long."""
        while self._idle and self._open - len(self._goodbyes) >= self.connections:
            self._goodbye(self._idle.pop(0), 1.0)  # to hosts that do not serve what is next
        while self._goodbyes and self._open >= self.connections:
            done, late = await asyncio.wait(self._goodbyes, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            for task in late if not done else ():
                task.cancel()

    def give(self, session: Upstream) -> None:
        """Back after work. One that is used up says QUIT, and nobody waits for the reply but who wants its place."""
        wanted = self.trunk is not None and self.trunk.wanted
        if session.usable and not self.retired and not wanted and self._open <= self.connections:
            session.idle_since = clock.monotonic()
            session.answers = []  # what is said next is said of another message
            self._idle.append(session)
            if self.trunk is not None:
                self.trunk.idles(self)
        elif session.connected:
            self._goodbye(session, 1.0 if wanted else 5.0)
        else:
            self.drop(session)

    def _goodbye(self, session: Upstream, patience: float) -> asyncio.Task[None]:
        goodbye = asyncio.get_running_loop().create_task(self._end(session, patience), name=f"quit-{self.name}")
        self._goodbyes.add(goodbye)
        goodbye.add_done_callback(self._goodbyes.discard)
        return goodbye

    def drop(self, session: Upstream) -> None:
        session.close()
        self.gone()

    async def sweep(self, patience: float = 5.0) -> None:
        """QUIT those that were idle for too long, or that the upstream has closed."""
        now = clock.monotonic()
        kept: list[Upstream] = []
        gone: list[Upstream] = []
        for session in self._idle:
            young = now - session.idle_since < self.account.idle and session.usable and not self.retired
            (kept if young else gone).append(session)
        self._idle = kept
        # All at once: one that ignores QUIT must not hold up the others.
        await asyncio.gather(*(self._goodbye(session, patience) for session in gone), return_exceptions=True)

    async def _end(self, session: Upstream, patience: float) -> None:
        try:
            if session.connected:
                await session.quit(patience)
        finally:
            self.drop(session)

    async def close(self) -> None:
        """At a stop: QUIT, and hardly a wait for its reply."""
        self.retired = True
        await self.sweep(0.5)
        if self._goodbyes:
            _, late = await asyncio.wait(self._goodbyes, timeout=0.5)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
