"""What binds a lane beside its egress: the limits of what its mail is, and the hours of its class.

A lane that is held back waits at the post that holds it, not in the turns of its way, so nobody stands behind it. A post
that opens lets in as many as have room, and a little later the next ones: what one of them does not use another may.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol
from weakref import WeakValueDictionary

from relay.deliver.pool import name_of
from relay.policy.classes import TrafficClass
from relay.policy.held import FREE, Held
from relay.policy.hours import Clockwork
from relay.policy.limits import ANY, Meter, Meters, Per
from relay.settings import Config
from relay.spool import Claim, Claimed

if TYPE_CHECKING:
    from relay.scheduler.lanes import Lane


@dataclass(slots=True, eq=False, weakref_slot=True)
class Post:
    """A meter, or the hours of a class, with the lanes that wait there."""

    meter: Meter | None = None
    hours: Clockwork | None = None
    queue: deque[Lane] = field(default_factory=deque)
    awaited: bool = False  # it is known when it opens

    def wait(self, now: float, size: int = 1) -> Held:
        if self.meter is not None:
            return self.meter.wait(now, 1, size)
        return Held(*self.hours.waits(now)) if self.hours is not None else FREE

    def room(self, now: float, size: int = 1) -> int:
        """Messages to one recipient each that may pass now; where bytes count, of that size."""
        if self.meter is not None:
            return self.meter.room(now, size)
        return 0 if self.wait(now).seconds else ANY


class Charged(Protocol):
    """What is counted: a message, or the share of its recipients that goes in one transaction."""

    @property
    def claim(self) -> Claim: ...
    @property
    def recipients(self) -> Sequence[Claimed]: ...
    @property
    def charged(self) -> dict[Meter, float]: ...
    @property
    def shared(self) -> frozenset[Meter]: ...


class Bounds:
    """Finds the posts of a lane."""

    def __init__(self, config: Config, kept: Callable[[str], Sequence[tuple[float, int]]]) -> None:
        """`kept`: see `policy.limits.Meters`."""
        self.meters = Meters(config.limits, kept)
        self._posts: WeakValueDictionary[str, Post] = WeakValueDictionary()  # by their meters' keys
        self._hours: dict[str, Post | None] = {}
        self.apply(config)

    def apply(self, config: Config) -> None:
        self.config = config
        self.meters.reload(config.limits)
        self._posts.clear()
        self._hours = {name: _hours(class_) for name, class_ in config.classes.items()}
        self.none = not any(self._hours.values()) and all(limit.at_the_door for limit in config.limits)

    def of(self, lane: Lane, egress: str, now: float) -> tuple[Post, ...]:
        """The posts of a lane on its way by an egress (its key). They are the same until a reload."""
        if self.none:
            return ()
        name = name_of(egress)
        found = lane.posts.get(name)
        if found is None:
            found = lane.posts[name] = self._find(lane, name, now)
        return found

    def _find(self, lane: Lane, egress: str, now: float) -> tuple[Post, ...]:
        hours = self._hours.get(lane.facts.class_)
        found = [hours] if hours is not None else []
        for meter in self.meters.of(lane.facts.ask, self.values(lane, egress), now):
            post = self._posts.get(meter.key)
            if post is None:
                post = self._posts[meter.key] = Post(meter)
            found.append(post)
        return tuple(found)

    def values(self, lane: Lane, egress: str) -> Mapping[Per, str]:
        facts = lane.facts
        return {
            "sender": facts.sender or "",
            "from": facts.from_ or "",
            "user": facts.user,
            "tenant": self.config.tenant_of.get(facts.user, ""),
            "class": facts.class_,
            "destination": facts.destination,
            "egress": egress,
        }

    def meters_of(self, lane: Lane, egress: str, now: float) -> tuple[Meter, ...]:
        return tuple(post.meter for post in self.of(lane, egress, now) if post.meter is not None)

    def charge(self, lane: Lane, egress: str, work: Charged, now: float, note: Callable[[Meter], None]) -> Held:
        """Counts it against the limits that bind it on this way, or says how long it is held: then it was counted nowhere new.
        `note`: told of each meter whose count changed."""
        count, size = len(work.recipients), work.claim.size
        meters = self.meters_of(lane, egress, now)
        for meter in work.charged.keys() - set(meters):  # of the egress that it comes from
            # The message stays counted there with those of its recipients that stayed.
            meter.take_back(work.charged.pop(meter), count, *(0, 0) if meter in work.shared else (size, 1))
            note(meter)
        new = [meter for meter in meters if meter not in work.charged]
        lane.size = size if any(meter.limit.rate.unit == "bytes" for meter in meters) else 1
        for meter in new:
            held = meter.wait(now, count, size)
            if held.seconds > 0:
                return held
        for meter in new:
            meter.take(now, count, size)
            work.charged[meter] = now
            note(meter)
        lane.size = 1
        return FREE


def _hours(class_: TrafficClass) -> Post | None:
    if class_.window is None and class_.quiet is None:
        return None
    return Post(hours=Clockwork(class_.window, class_.quiet))
