"""What became of the mail of the last day: shares of deferrals, bounces and complaints, and how sure they are. Pure.

Kept by key: `egress mx-1`, `destination gmail.com`, `sender example.com`, `class marketing`; of what left by MX also
`site google` and `way mx-1 to google`. The bounds of a share are those of
Wilson's score interval (E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22,
1927), which says something sensible of few mails and of shares near 0, where the textbook's normal interval does not.
"""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Literal, NamedTuple

HOUR = 3600.0
Z = 1.959963984540054  # of the normal distribution 95 % lie within so many standard deviations
KEYS = 10_000
STATED = 2_000  # keys that are kept over a restart: all of them would be megabytes
MAX_KEY = 320  # characters: a name may be a stranger's

# `returned`: it was delivered, and then a report came that it was not.
Kind = Literal["delivered", "deferred", "bounced", "complained", "returned"]
_PLACE: dict[Kind, int] = {"delivered": 0, "deferred": 1, "bounced": 2, "complained": 3, "returned": 4}
SITES = 10_000  # of which is remembered where mail for them went
# The score is 0 where 1 in 6 bounces, where 1 in 150 complains, or where everything is deferred.
_WEIGHTS = {"bounces": 6.0, "complaints": 150.0, "deferrals": 1.0}


class Share(NamedTuple):
    """0 to 1: what was seen, and between what it truly lies with 95 % confidence. Of nothing: 0, between 0 and 1."""

    low: float
    high: float
    rate: float


class Rates(NamedTuple):
    """Shares of what was tried: one for each recipient of each attempt that came to an end."""

    total: int
    bounces: Share
    complaints: Share
    deferrals: Share


def wilson(hits: int, total: int) -> Share:
    """`hits` of `total`, with the bounds of Wilson's score interval at 95 %."""
    if total <= 0:
        return Share(0.0, 1.0, 0.0)
    rate = hits / total
    spread = Z * Z / total
    centre = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(rate * (1 - rate) * spread + spread * spread / 4) / (1 + spread)
    # At the ends a bound is the end itself, which rounding misses.
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    return Share(low, 1.0 if hits == total else min(1.0, centre + half), rate)


class _Window:
    """Four counts in each of the last hours, and their sums."""

    __slots__ = ("counts", "hour", "sums")

    def __init__(self, hour: int, hours: int) -> None:
        self.hour = hour  # the newest
        self.counts = array("Q", bytes(8 * 4 * hours))
        self.sums = [0, 0, 0, 0]

    def forget(self, hour: int) -> None:
        """Go on to `hour`."""
        hours = len(self.counts) // 4
        for passed in range(max(self.hour + 1, hour - hours + 1), hour + 1):
            place = passed % hours * 4
            for kind in range(4):
                self.sums[kind] -= self.counts[place + kind]
                self.counts[place + kind] = 0
        self.hour = max(self.hour, hour)

    def add(self, hour: int, more: tuple[int, int, int, int]) -> None:
        hours = len(self.counts) // 4
        self.forget(hour)
        if hour <= self.hour - hours:
            return
        place = hour % hours * 4
        for kind, count in enumerate(more):
            self.counts[place + kind] += count
            self.sums[kind] += count

    def turn(self, count: int) -> int:
        """So many that were delivered have bounced: of the latest first. Returns how many there were."""
        hours, left = len(self.counts) // 4, min(count, self.sums[0])
        turned = left
        for hour in range(self.hour, self.hour - hours, -1):
            place = hour % hours * 4
            part = min(left, self.counts[place])
            self.counts[place] -= part
            self.counts[place + 2] += part
            left -= part
            if not left:
                break
        self.sums[0] -= turned
        self.sums[2] += turned
        return turned

    def rows(self) -> list[list[int]]:
        """[hour, counts ...] of each hour in which something happened."""
        hours = len(self.counts) // 4
        found = []
        for hour in range(self.hour - hours + 1, self.hour + 1):
            place = hour % hours * 4
            counts = self.counts[place : place + 4].tolist()
            if any(counts):
                found.append([hour, *counts])
        return found


@dataclass(slots=True)
class Reputation:
    """Rolling counts by key. `hours` buckets each, the present hour the last of them. Memory: about 1 kB a key.

    Of `keys` at most: then the key goes that was noted longest ago, of the kind (the key's first word) that has the most.
    Strangers choose destinations; however many they name, no egress and no sender is forgotten for that.
    """

    hours: int = 24
    keys: int = KEYS
    _kinds: dict[str, OrderedDict[str, _Window]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(of_kind) for of_kind in self._kinds.values())

    def __iter__(self) -> Iterator[str]:
        """The keys that something is known of."""
        return chain.from_iterable(list(self._kinds.values()))

    def of(self, kind: str) -> list[str]:
        """The keys whose first word this is."""
        return list(self._kinds.get(kind, ()))

    def note(self, key: str, delivered: int, deferred: int, bounced: int, complained: int, now: float) -> None:
        """So many more, as of `now`. What is older than the window is not counted.

        A complaint comes hours or days after its mail, and counts when it comes: it is the mail that leaves now which it warns of.
        """
        key = key[:MAX_KEY]
        of_kind = self._kinds.setdefault(key.partition(" ")[0], OrderedDict())
        window = of_kind.get(key)
        hour = int(now // HOUR)
        if window is None:
            if len(self) >= self.keys:
                max(self._kinds.values(), key=len).popitem(last=False)
            window = of_kind[key] = _Window(hour, self.hours)
        else:
            of_kind.move_to_end(key)
        window.add(hour, (delivered, deferred, bounced, complained))

    def turn(self, key: str, count: int, now: float) -> None:
        """So many of what was delivered came back: they were tried once, not twice. Of what left before the window the bounce
        counts as a try of its own: the other one is forgotten."""
        window = self._window(key, now)
        rest = count - (window.turn(count) if window is not None else 0)
        if rest:
            self.note(key, 0, 0, rest, 0, now)

    def rates(self, key: str, now: float) -> Rates:
        """Of the last `hours`; of a key that nobody noted: nothing."""
        window = self._window(key, now)
        delivered, deferred, bounced, complained = window.sums if window else (0, 0, 0, 0)
        total = delivered + deferred + bounced
        # More complaints than mail are about mail of before: they tell no share of this.
        complaints = wilson(complained, total) if complained <= total else wilson(0, 0)
        return Rates(total, wilson(bounced, total), complaints, wilson(deferred, total))

    def score(self, key: str, now: float) -> float:
        """0 to 1, where 1 is: nothing bad is known.

        The product over bounces, complaints and deferrals of 1 - weight * (lower bound of the share), none below 0. The
        weights are 6, 150 and 1. It is the lower bound, so that one bounce among ten mails condemns nobody: what little is
        known counts little.

            of 10,000 tried      score          of 10,000 tried      score
            nothing bad           1.00          0.1 % complaints      0.92
            1 % bounces           0.95          0.3 % complaints      0.68
            2 % bounces           0.90          0.5 % complaints      0.43
            5 % bounces           0.72          10 % deferrals        0.91
            10 % bounces          0.43          50 % deferrals        0.51
            17 % bounces          0.02          2 % bounces of 50     0.98
        """
        rates = self.rates(key, now)
        score = 1.0
        for kind, weight in _WEIGHTS.items():
            share: Share = getattr(rates, kind)
            score *= max(0.0, 1.0 - weight * share.low)
        return score

    def decay(self, now: float) -> None:
        """Forget the keys of which nothing is left within the window."""
        for kind, of_kind in list(self._kinds.items()):
            for key in [key for key in of_kind if not any((self._window(key, now) or of_kind[key]).sums)]:
                del of_kind[key]
            if not of_kind:
                del self._kinds[kind]

    def _window(self, key: str, now: float) -> _Window | None:
        key = key[:MAX_KEY]
        of_kind = self._kinds.get(key.partition(" ")[0])
        window = of_kind.get(key) if of_kind else None
        if window is not None:
            window.forget(int(now // HOUR))
        return window

    def state(self, most: int = STATED) -> dict[str, list[list[int]]]:
        """For JSON: key -> [hour, delivered, deferred, bounced, complained] rows, of those that were noted last, as many of
        each kind. Who is not among them begins anew after a restart."""
        found: dict[str, list[list[int]]] = {}
        for of_kind in self._kinds.values():
            for key in reversed(list(islice(reversed(of_kind), most // len(self._kinds)))):
                found[key] = of_kind[key].rows()
        return found

    def load(self, state: dict[str, Any], now: float) -> None:
        """What `state` gave, added. Hours that are not over yet, written under a clock that was ahead, are left out."""
        for key, rows in state.items():
            for hour, *counts in rows:
                if hour * HOUR <= now:
                    delivered, deferred, bounced, complained = counts
                    self.note(key, delivered, deferred, bounced, complained, hour * HOUR)


class Tally:
    """What the hot path counts in: one increment a recipient, until `fold`. Memory: of what differs between two folds."""

    __slots__ = ("_reputation", "_seen", "_sites")

    def __init__(self, reputation: Reputation) -> None:
        self._reputation = reputation
        self._seen: defaultdict[tuple[str, str, str, str, Kind, str], int] = defaultdict(int)
        self._sites: OrderedDict[tuple[str, str], str] = OrderedDict()  # where mail for a destination went last

    def add(self, egress: str, destination: str, sender: str, class_: str, kind: Kind, site: str = "") -> None:
        """One recipient. `sender` is a domain, `site` where it went by MX; what is not known is empty and not counted."""
        self._seen[egress, destination, sender, class_, kind, site] += 1

    def fold(self, now: float) -> None:
        """Into the reputation, as of `now`."""
        seen, self._seen = self._seen, defaultdict(int)
        counts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
        for (egress, destination, sender, class_, kind, site), count in seen.items():
            if site:
                self._went(egress, destination, site)
            else:  # a report does not know
                site = self._sites.get((egress, destination), "")
            named = [("egress", egress), ("destination", destination), ("sender", sender), ("class", class_)]
            if site:
                named += [("site", site), ("way", f"{egress} to {site}")]
            for what, name in named:
                if name:
                    counts[f"{what} {name}"][_PLACE[kind]] += count
        for key, (delivered, deferred, bounced, complained, returned) in counts.items():
            if delivered or deferred or bounced or complained:
                self._reputation.note(key, delivered, deferred, bounced, complained, now)
            if returned:
                self._reputation.turn(key, returned, now)

    def _went(self, egress: str, destination: str, site: str) -> None:
        self._sites[egress, destination] = site
        self._sites.move_to_end((egress, destination))
        if len(self._sites) > SITES:
            self._sites.popitem(last=False)
