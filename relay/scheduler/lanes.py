"""The lanes in memory: when each is due, which way it leaves by, and why it waits.

A pass costs by what can move, not by what waits. A lane lies in one of four places: among the timers until it is due,
then in the turns of its way; at a post that holds it back (scheduler.bounds); or nowhere while nothing waits in it or nothing
of it may move. A way is all lanes that leave by the same accounts: one question to the gate answers for all of them, and one
whose accounts rest is not asked again before they may be dialled. Where mail leaves by MX these are the lanes of one site,
whatever their domains.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from relay.deliver.pool import key_of
from relay.policy.classes import DEFAULT_CLASS
from relay.policy.gate import FOREVER
from relay.policy.lanefacts import LaneFacts
from relay.policy.routing import Action, Route, Undecided
from relay.scheduler.bounds import Bounds, Post
from relay.scheduler.sites import Sites
from relay.scheduler.turns import Clock, Flow, Order, Turns
from relay.settings import Config
from relay.spool import Head

AGAIN = 5.0  # seconds after which a way that rests, or a post, is looked at again, whatever it was told
NEXT = 0.02  # seconds after which more of those that wait at a post that is open are let in
_SLACK = 64
NOT_SUSPENDED = ("", FOREVER)

_NO_ROUTE = "no route of the configuration in force matches it; it waits for one that does, see `relay explain`"
_STALE = "it is being routed anew after a reload"
_UNSITED = "its domain's mail servers are being looked up"


@dataclass(slots=True, eq=False)
class Lane:
    """One lane. `due_at` None: nothing is due in it."""

    id: int
    facts: LaneFacts
    due_at: float | None = None
    route: Route | None = None
    egresses: tuple[str, ...] = ()
    stale: bool = False  # the configuration asks a question that its facts don't answer
    unsited: bool = False  # it leaves by MX, and that is not known yet
    site: str = ""  # which of those it leaves to
    why: str = ""  # it does not move
    way: Way | None = None  # None: it does not move
    detour: Way | None = None  # it waits in the turns of this one, for a limit makes it go by a later egress
    turn: int = 0  # its place in the turns of its way; 0: it is not in them
    asked: bool = False  # a claim of it is under way
    level: int = 2  # of priority
    flow: Flow = (2, "", "")
    clock: Clock | None = None  # by which it had its last turn
    posts: dict[str, tuple[Post, ...]] = field(default_factory=dict)  # by egress, see scheduler.bounds
    post: Post | None = None  # at which it waits
    size: int = 1  # bytes of what it will send next, where a limit counts them
    suspended: str = ""  # by hand: why
    resumes: float = FOREVER  # until when

    def idle(self, now: float) -> bool:
        """Nothing of it is due, nor being claimed: what comes now overtakes nobody."""
        return not self.asked and (self.due_at is None or self.due_at > now)

    @property
    def movable(self) -> bool:
        return not self.stale and self.route is not None and not self.suspended


@dataclass(slots=True, eq=False)
class Way:
    """The lanes that leave by the same accounts; without any: those that a rule ends here."""

    egresses: tuple[str, ...]
    turns: Turns  # those that are due
    rests: bool = False
    behind: str = ""  # it stands in this line for a place among the sessions of a direct entry (deliver.trunk)


@dataclass
class Lanes:
    """All lanes, in fair turns."""

    config: Config
    sites: Sites
    bounds: Bounds
    order: Order = field(default_factory=Order)
    suspended: Callable[[Lane], tuple[str, float]] = lambda lane: (
        NOT_SUSPENDED
    )  # why a lane does not move, by hand, until when
    again: float = AGAIN
    by_id: dict[int, Lane] = field(default_factory=dict)
    _of_domain: dict[str, list[Lane]] = field(default_factory=dict)  # those that leave by MX
    _ways: dict[tuple[str, ...], Way] = field(default_factory=dict)
    _timers: list[tuple[float, int]] = field(
        default_factory=list
    )  # (due, lane), a heap; what is outdated is passed over
    _open: dict[Way, None] = field(default_factory=dict)  # ways with lanes in their turns
    _by: dict[str, list[Way]] = field(default_factory=dict)  # the ways of each egress
    _lines: dict[str, deque[Way]] = field(default_factory=dict)  # who has waited longest first
    _rests: list[tuple[float, int, Way]] = field(default_factory=list)  # (until, number, way), a heap
    _posts: list[tuple[float, int, Post]] = field(default_factory=list)  # the same of posts at which somebody waits
    _number: int = 0

    def update(self, heads: Iterable[Head]) -> None:
        """What the spool said: a lane has something due then, or has it earlier than we knew."""
        for head in heads:
            lane = self.by_id.get(head.lane)
            if lane is None and not head.facts:
                continue  # it was forgotten meanwhile: nothing is in it
            if lane is None:
                lane = self.by_id[head.lane] = Lane(head.lane, LaneFacts.parse(head.facts))
                if lane.facts.destination:
                    self._of_domain.setdefault(lane.facts.destination, []).append(lane)
                self._route(lane)
            if head.due_at is not None and (lane.due_at is None or head.due_at < lane.due_at):
                lane.due_at = head.due_at
                self._place(lane)

    def found(self, lane: Lane, due_at: float | None) -> None:
        """The spool was asked: this is when the lane's next recipient is due. It goes behind the others."""
        lane.due_at, lane.asked = due_at, False
        self._place(lane)

    def forget(self, ids: Iterable[int]) -> None:
        """The spool has no recipient of these; and whatever was known for nobody but them."""
        for lane in (self.by_id.pop(number, None) for number in ids):
            if lane is None:
                continue
            self._leave(lane)
            if domain := lane.facts.destination:
                others = [other for other in self._of_domain[domain] if other is not lane]
                self._of_domain[domain] = others
                if not others:
                    del self._of_domain[domain]
        self._ways = {lane.egresses: lane.way for lane in self.by_id.values() if lane.way is not None}
        self._by = {}
        self.order.keep({egresses[0] for egresses in self._ways if egresses})
        for way in self._ways.values():
            for egress in way.egresses:
                self._by.setdefault(egress, []).append(way)
        self.sites.keep(self._of_domain.keys(), {lane.site for lane in self.by_id.values()})

    def imagined(self, facts: str) -> Lane:
        """The lane of these facts as it would be; it is not kept."""
        lane = Lane(-1, LaneFacts.parse(facts))
        self._route(lane)
        return lane

    def reload(self, config: Config) -> None:
        """Every lane is routed anew, and nothing rests for what was known before."""
        self.config = config
        for kept in (self._ways, self._timers, self._open, self._rests, self._posts, self._by, self._lines):
            kept.clear()
        self.order.keep(())
        self.bounds.apply(config)
        for lane in self.by_id.values():
            lane.turn, lane.post, lane.detour = 0, None, None
            lane.posts.clear()
            self._route(lane)
            self._place(lane)

    def _route(self, lane: Lane) -> None:
        """Derive the route from the lane's facts; no row is read."""
        table = self.config.table
        lane.why, lane.egresses, lane.way, lane.site, lane.unsited = "", (), None, "", False
        lane.stale = not (lane.facts.covers(table.questions) and lane.facts.holds(table))
        facts = lane.facts
        class_ = self.config.classes.get(facts.class_) or self.config.classes.get("default", DEFAULT_CLASS)
        lane.level = int(class_.priority) if facts.priority is None else facts.priority
        lane.flow = (lane.level, facts.class_, facts.user)
        route = None if lane.stale else lane.facts.route_in(table)
        lane.route = None if isinstance(route, Undecided) else route
        if lane.route is not None and not lane.facts.fits(table, lane.route):
            lane.stale = True
        if lane.stale:
            lane.why = _STALE
        elif lane.route is None:
            lane.why = _NO_ROUTE
        elif lane.route.action is Action.VIA:
            known = table.egresses(lane.route, lane.facts.ask, lane.facts.drawn)
            lane.egresses = self._to_site(lane, tuple(e for e in known if e in self.config.accounts))
        lane.suspended, lane.resumes = NOT_SUSPENDED if lane.stale else self.suspended(lane)
        if lane.suspended:
            lane.why = lane.suspended
        if lane.stale or lane.unsited or lane.suspended:
            return
        if lane.route is not None and (lane.egresses or lane.route.action is not Action.VIA):
            lane.way = self._way(lane.egresses)

    def _way(self, egresses: tuple[str, ...]) -> Way:
        way = self._ways.get(egresses)
        if way is None:
            way = self._ways[egresses] = Way(egresses, self.order.turns(egresses))
            for egress in egresses:
                self._by.setdefault(egress, []).append(way)
        return way

    def _to_site(self, lane: Lane, egresses: tuple[str, ...]) -> tuple[str, ...]:
        """Of those that deliver by MX the one that is for its destination's site."""
        direct = self.config.table.direct
        if not direct or direct.isdisjoint(egresses):
            return egresses
        site = self.sites.of(lane.facts)
        if site is None:
            lane.unsited, lane.why = True, _UNSITED
            return ()
        lane.site = site.name
        return tuple(key_of(name, site.name) if name in direct else name for name in egresses)

    def sited(self, domain: str) -> None:
        """Its MX is known, or known anew."""
        for lane in self._of_domain.get(domain, ()):
            before, way = lane.egresses, lane.way
            if not (lane.unsited or lane.site):
                continue
            self._route(lane)
            if lane.egresses == before and way is not None:
                lane.way = way
                continue
            self._leave(lane, lane.detour or way)
            self._place(lane)

    def _leave(self, lane: Lane, way: Way | None = None) -> None:
        """The turns of its way, or of the one that it had; and the post at which it waits."""
        way = way or lane.detour or lane.way
        if lane.turn and way is not None:
            way.turns.leave(lane)
            if not way.turns:
                self._open.pop(way, None)
        if lane.post is not None:
            lane.post.queue.remove(lane)
        lane.post = lane.detour = None
        lane.posts.clear()

    def _place(self, lane: Lane) -> None:
        """Among the timers, where it can move at all and does not wait elsewhere already."""
        if lane.due_at is None or not (lane.way or lane.unsited) or lane.turn or lane.post:
            return
        heappush(self._timers, (lane.due_at, lane.id))
        if len(self._timers) > 2 * len(self.by_id) + _SLACK:  # a busy lane leaves one behind for each time it was due
            self._timers = [
                (x.due_at, x.id)
                for x in self.by_id.values()
                if x.due_at is not None and (x.way or x.unsited) and not x.turn
            ]
            heapify(self._timers)

    # -- what can move

    def ways(self, now: float) -> list[Way]:
        """Those that have something due and do not rest."""
        while self._timers and self._timers[0][0] <= now:
            due_at, number = heappop(self._timers)
            lane = self.by_id.get(number)
            if lane is None:
                continue
            if lane.due_at == due_at and (lane.site or lane.unsited):
                self.sites.look(lane.facts.destination)
            if lane.due_at == due_at and lane.way is not None and not lane.turn and not lane.post:
                self._enter(lane, lane.way)
        while self._posts and self._posts[0][0] <= now:
            *_, post = heappop(self._posts)
            post.awaited = False
            self._let_in(post, now)
        while self._rests and self._rests[0][0] <= now:
            *_, way = heappop(self._rests)
            way.rests = False
            if way.turns:
                self._open[way] = None
        return list(self._open)

    def _enter(self, lane: Lane, way: Way) -> None:
        self.order.enter(way.turns, lane)
        if not (way.rests or way.behind):
            self._open[way] = None

    # -- what a limit holds back, or the hours of its class

    def park(self, lane: Lane, post: Post, until: float, now: float) -> None:
        """Out of its turns, to wait at this post until then."""
        lane.post, lane.detour = post, None
        post.queue.append(lane)
        self._await(post, until, now)

    def _await(self, post: Post, until: float, now: float) -> None:
        """It is looked at again now and then, for what was spent may be given back."""
        if not post.awaited:
            post.awaited = True
            self._number += 1
            heappush(self._posts, (min(max(until, now), now + AGAIN), self._number, post))

    def _let_in(self, post: Post, now: float) -> None:
        """As many as have room; one whose way rests uses none of it."""
        room = post.room(now)
        while post.queue and room > 0:
            lane = post.queue.popleft()
            lane.post = None
            if lane.way is None or lane.due_at is None or lane.turn:
                continue
            self._enter(lane, lane.way)
            if lane.way in self._open:
                room -= 1
        if post.queue:
            self._await(post, now + max(NEXT, post.wait(now).seconds), now)

    def turn_aside(self, lane: Lane, egresses: tuple[str, ...]) -> None:
        """Out of its turns into those of a way by later egresses of its route: a limit keeps it from the first ones."""
        lane.detour = self._way(egresses)
        self._enter(lane, lane.detour)

    def come_back(self, way: Way) -> None:
        """Who is in the turns of another way than its own: that way rests, and its own may be free again."""
        for lane in [lane for lane in way.turns if lane.detour is way]:
            way.turns.leave(lane)
            lane.detour = None
            if lane.way is not None and lane.due_at is not None:
                heappush(self._timers, (lane.due_at, lane.id))

    @property
    def waiting(self) -> bool:
        """Whether something is due that may leave."""
        return bool(self._open or self._lines)

    def waits_for(self, egress: str) -> bool:
        """Whether something that is due could leave by it."""
        return any(not way.rests and way.turns for way in self._by.get(egress, ()))

    # -- for a place among the sessions of a direct entry

    def stand(self, way: Way, line: str) -> None:
        """At the end of the line."""
        self._open.pop(way, None)
        way.behind = line
        self._lines.setdefault(line, deque()).append(way)

    def lines(self) -> dict[str, int]:
        """Those in which somebody stands, with how many."""
        return {name: len(line) for name, line in self._lines.items()}

    def first(self, name: str) -> Way | None:
        """Takes the first out of a line; None: nobody stands there."""
        line = self._lines.get(name)
        while line:
            way = line.popleft()
            way.behind = ""
            if not line:
                del self._lines[name]
            if way.turns:
                self._open[way] = None
                return way
        return None

    def rest(self, way: Way, until: float, now: float) -> None:
        """None of its accounts may be dialled before that time, and nobody is at work who could learn better."""
        del self._open[way]
        way.rests = True
        self._number += 1
        heappush(self._rests, (min(until, now + self.again), self._number, way))

    def take(self, ways: Sequence[Way], egress: str = "") -> Iterator[Lane]:
        """Lanes out of these in their order, as long as somebody asks. Each has to be claimed and comes back by `found`, or is
        parked, or turned aside."""
        waiting = {id(way.turns): way for way in ways if way.turns}
        while waiting:
            turns, lane = self.order.first([way.turns for way in waiting.values()], egress)
            way = waiting[id(turns)]
            lane.detour = None
            # Emptied it is asked again once it has something; else after the others, for a claim may be full before its end.
            self._open.pop(way, None)
            if turns:
                self._open[way] = None
            else:
                del waiting[id(turns)]
            if lane.due_at is not None:
                yield lane

    def next_due(self) -> float | None:
        """When there may be more that can move; None: nothing waits for a time."""
        timers = self._timers
        while timers and ((lane := self.by_id.get(timers[0][1])) is None or lane.due_at != timers[0][0] or lane.turn):
            heappop(timers)
        times = [heap[0][0] for heap in (timers, self._rests, self._posts) if heap]
        return min(times, default=None)

    def stale(self) -> list[Lane]:
        return [lane for lane in self.by_id.values() if lane.stale]
