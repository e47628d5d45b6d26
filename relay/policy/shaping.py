"""What is done for a time when an upstream says certain words. Pure.

Every rule that fits a reply acts: their actions add up. A rule that fires again within its time only makes that longer: half
of half is not what it says, and sessions under way hear the same reply. Two rules at once: the slower rate and the fewer
connections bind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from relay.policy.replies import own_words
from relay.policy.routing import matches_any
from relay.reply import Stage

MOST = 10_000  # actions in force: strangers' domains are among their keys
LONGEST = 600  # characters of a reply that are remembered


@dataclass(frozen=True, slots=True)
class ShapingRule:
    """One entry of `shaping`. All of what is given must fit; each action lasts for `seconds`.

    `slow`, `connections` and `drop` are always about the egress (by MX: its lane to those hosts). So are `pause` and `next`,
    but of an account's mail they hold up only the recipient's domain where the rule names a `destination`.
    """

    name: str
    pattern: re.Pattern[str]  # searched in the reply as one line: code, enhanced code, text
    egress: tuple[str, ...] = ()  # globs on its name; empty: any
    destination: tuple[str, ...] = ()  # globs on the recipient's domain, or the name of its destination
    class_: tuple[str, ...] = ()
    at: frozenset[Stage] = frozenset()  # empty: at any stage
    seconds: float = 1800.0
    slow: float | None = None  # to this share of what it sends now, 0 to 1
    connections: float | None = None  # at most so many sessions; below 1 this share of them
    pause: bool = False  # nothing leaves there
    drop: bool = False  # the session is ended
    suppress: bool = False  # the recipient gets nothing more
    next: bool = False  # its mail goes by the route's next egress
    alarm: bool = False
    origin: str = ""  # file:line, or the preset

    @property
    def lasts(self) -> bool:
        """Whether it leaves something in force; `drop` and `suppress` are done at once."""
        return self.slow is not None or self.connections is not None or self.pause or self.next or self.alarm

    @property
    def shown(self) -> str:
        """For operators: what it is called and where it stands."""
        return f"{self.name} ({self.origin})" if self.name and self.origin else self.name or self.origin or "shaping"

    def fits(
        self,
        egress: str,
        destinations: Collection[str],
        sites: Collection[str],
        class_: str,
        stage: Stage,
        line: str,
        own: str,
    ) -> bool:
        """`destinations`: the domains that the reply is about, all of which must fit; `sites`: what else their destination is
        called, its rule's name and its provider's. `own`: of `line` what the upstream says itself. Nobody else's words make
        an egress suffer: only a rule that does nothing but suppress the recipient is asked about the whole line.
        """
        if self.at and stage not in self.at:
            return False
        if self.egress and not matches_any(self.egress, egress):
            return False
        if self.class_ and not matches_any(self.class_, class_):
            return False
        if self.destination and not self._there(destinations, sites):
            return False
        return self.pattern.search(own if self.lasts or self.drop else line) is not None

    def _there(self, destinations: Collection[str], sites: Collection[str]) -> bool:
        if any(matches_any(self.destination, site) for site in sites):
            return True
        return bool(destinations) and all(matches_any(self.destination, domain) for domain in destinations)


def fitting(
    rules: Iterable[ShapingRule],
    egress: str,
    destinations: Collection[str],
    sites: Collection[str],
    class_: str,
    stage: Stage,
    line: str,
) -> list[ShapingRule]:
    """All that fit, in their order: each of them acts."""
    own = own_words(line)
    return [rule for rule in rules if rule.fits(egress, destinations, sites, class_, stage, line, own)]


@lru_cache(maxsize=4096)
def key_of(rule: ShapingRule) -> str:
    """Which rule it is, over restarts: by what it says, not by where it stands."""
    said = {f.name: getattr(rule, f.name) for f in fields(rule) if f.name not in ("pattern", "origin")}
    said["at"] = sorted(rule.at)
    text = json.dumps([rule.pattern.pattern, said])
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=9).hexdigest()


@dataclass(slots=True)
class InForce:
    """What one rule does to an egress, or to what it sends to one domain, for now."""

    rule: str  # its key
    egress: str  # the key of an account, or of a lane of direct delivery
    destination: str  # of an account's mail only that to this domain; empty: all
    since: float
    until: float
    why: str  # the reply, and the rule
    rate: float | None = None  # messages a second at most: its share of what the egress sent then
    share: float | None = None
    connections: float | None = None
    pause: bool = False
    next: bool = False
    alarm: bool = False

    @property
    def what(self) -> str:
        """For operators: `slow to 50%, at most 2 connections, alarm`."""
        fewer = self.connections
        return ", ".join(
            filter(
                None,
                (
                    "" if self.share is None else f"slow to {self.share:.0%}",
                    "" if fewer is None else f"{fewer:.0%} of its connections" if fewer < 1 else f"at most {fewer:.0f} connections",
                    "pause" if self.pause else "",
                    "next" if self.next else "",
                    "alarm" if self.alarm else "",
                ),
            )
        )  # fmt: skip


class Shaped:
    """All that is in force, by egress (its key) and destination ("": whatever it is). Times are epoch seconds."""

    def __init__(self) -> None:
        self._by: dict[tuple[str, str], dict[str, InForce]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def apply(
        self, rule: ShapingRule, egress: str, destination: str, line: str, now: float, measured: float = 0.0
    ) -> InForce | None:
        """It fired. What is in force by it if that is news; None: it was already, and lasts for longer now.

        `measured`: messages a second that the egress sent of late.
        """
        if not rule.lasts:
            return None
        known = self._by.get((egress, destination), {}).get(key_of(rule))
        if known is not None and known.until > now:
            known.until = max(known.until, now + rule.seconds)
            return None
        made = InForce(
            key_of(rule),
            egress,
            destination,
            now,
            now + rule.seconds,
            f"{line[:LONGEST]} ({rule.shown})",
            None if rule.slow is None else rule.slow * measured,
            rule.slow,
            rule.connections,
            rule.pause,
            rule.next,
            rule.alarm,
        )
        self._put(made)
        return made

    def _put(self, made: InForce) -> None:
        """The oldest go where there are too many."""
        place = self._by.setdefault((made.egress, made.destination), {})
        self._count += made.rule not in place
        place[made.rule] = made
        while self._count > MOST:
            first = min(self.all(), key=lambda found: found.since)
            self._drop(first)

    def _drop(self, gone: InForce) -> None:
        place = self._by[gone.egress, gone.destination]
        del place[gone.rule]
        self._count -= 1
        if not place:
            del self._by[gone.egress, gone.destination]

    def all(self) -> list[InForce]:
        return [found for place in self._by.values() for found in place.values()]

    def of(self, egress: str, destination: str, now: float) -> list[InForce]:
        return [found for found in self._by.get((egress, destination), {}).values() if found.until > now]

    # -- what that comes to

    def slow(self, egress: str, now: float) -> float:
        """The share of what it sent; 1.0: it is not slowed."""
        return min((f.share for f in self.of(egress, "", now) if f.share is not None), default=1.0)

    def rate(self, egress: str, now: float) -> tuple[float, float, str] | None:
        """(messages a second at most, until when, why); None: it is not slowed."""
        found = [(f.rate, f.until, f.why) for f in self.of(egress, "", now) if f.rate is not None]
        return min(found, default=None)

    def sessions(self, egress: str, most: int, now: float) -> tuple[int, float, str]:
        """(how many of `most` it may have, until when, why)."""
        found = [
            (max(1, int(f.connections * most)) if f.connections < 1 else min(most, int(f.connections)), f.until, f.why)
            for f in self.of(egress, "", now)
            if f.connections is not None
        ]
        return min(found, default=(most, 0.0, ""))

    def paused(self, egress: str, destination: str, now: float) -> tuple[float, str]:
        """(until when, why) nothing leaves there; 0: it does."""
        return self._longest(egress, destination, now, lambda found: found.pause)

    def next(self, egress: str, destination: str, now: float) -> tuple[float, str]:
        """(until when, why) the route's next egress takes its mail; 0: it does itself."""
        return self._longest(egress, destination, now, lambda found: found.next)

    def _longest(self, egress: str, destination: str, now: float, does: Callable[[InForce], bool]) -> tuple[float, str]:
        places = {"", destination}
        found = [(f.until, f.why) for place in places for f in self.of(egress, place, now) if does(f)]
        return max(found, default=(0.0, ""))

    # -- seldom

    def over(self, now: float) -> list[InForce]:
        """What has come to its end, and is forgotten now."""
        gone = [found for found in self.all() if found.until <= now]
        for found in gone:
            self._drop(found)
        return gone

    def keep(self, rules: Callable[[str], Iterable[ShapingRule]]) -> list[InForce]:
        """After a reload: of rules that an egress (by its key) has no more the actions end. Returns those."""
        known: dict[str, set[str]] = {}
        gone = []
        for found in self.all():
            if found.egress not in known:
                known[found.egress] = {key_of(rule) for rule in rules(found.egress)}
            if found.rule not in known[found.egress]:
                gone.append(found)
                self._drop(found)
        return gone

    def rows(self, now: float) -> list[dict[str, Any]]:
        """For operators, what ends first first. `for`: seconds that are left."""
        found = sorted((f for f in self.all() if f.until > now), key=lambda f: f.until)
        return [
            {
                "egress": f.egress,
                "destination": f.destination,
                "what": f.what,
                "since": f.since,
                "until": f.until,
                "for": round(f.until - now, 1),
                "why": f.why,
            }
            for f in found
        ]

    def state(self) -> str:
        """JSON, for `load`."""
        return json.dumps([asdict(found) for found in self.all()], separators=(",", ":"))

    def load(self, text: str) -> None:
        """What `state` made, in the place of what is known. Raises ValueError where it is something else."""
        try:
            found = [InForce(**row) for row in json.loads(text)]
        except TypeError as error:
            raise ValueError(f"not what was remembered of shaping: {error}") from None
        self._by, self._count = {}, 0
        for made in found[-MOST:]:
            self._put(made)
