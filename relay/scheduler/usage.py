"""What binds mail now, for operators: limits and how much of them is spent, warm-ups, shaping, alarms, rates. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from itertools import chain
from typing import Any

from relay.policy.limits import Meter
from relay.policy.pace import Pace
from relay.scheduler.carry import Carriers
from relay.scheduler.standing import Standing

MOST = 500  # limits that are told, those that are nearest to their end first


class Usage:
    """`doors`: limits that are counted as mail is accepted, wherever that is."""

    def __init__(self, carriers: Carriers, standing: Standing) -> None:
        self.carriers, self.standing = carriers, standing
        self.doors: Callable[[], Iterable[Meter]] = lambda: ()

    def limits(self, now: float, whose: Container[str] | None = None) -> list[dict[str, Any]]:
        """A flat row for each limit of which something is spent. `wait`: seconds until one message more may leave. `whose`: of
        these alone, such as `user shop`."""
        found = (row for row in self._limits(now) if whose is None or row["whose"] in whose)
        return sorted(found, key=lambda row: (-row["share"], row["whose"]))[:MOST]

    def of_egress(self, name: str, now: float) -> list[dict[str, Any]]:
        """A row for each limit of an account or direct entry, spent or not."""
        egresses = self.carriers.egresses
        egress, trunk = egresses.get(name), egresses.trunks.get(name)
        pace = trunk.pace if trunk is not None else egress.pace if egress is not None else None
        return [] if pace is None else list(_of_pace(name, pace, now, all_=True))

    def _limits(self, now: float) -> Iterator[dict[str, Any]]:
        egresses = self.carriers.egresses
        paces = [(f"account {name}", egress.pace) for name, egress in egresses.items() if egress.direct is None]
        paces += [(f"{name} at its destination", egress.pace) for name, egress in egresses.items() if egress.direct]
        paces += [(f"direct {name}", trunk.pace) for name, trunk in egresses.trunks.items()]
        paces += [(pace.prefix, pace) for pace in egresses.shared]
        for whose, pace in paces:
            yield from _of_pace(whose, pace, now)
        for meter in chain(self.carriers.bounds.meters.all(), self.doors()):
            rate, spent = meter.limit.rate, meter.spent
            if not spent.empty(now):
                wait = meter.wait(now).seconds
                yield _row(meter.whose.removesuffix("'s"), str(rate), rate.unit, spent.total, rate.count, wait)

    def shaping(self, now: float) -> list[dict[str, Any]]:
        return self.carriers.blame.shaping.shaped.rows(now)

    def alarms(self) -> list[dict[str, Any]]:
        return self.carriers.blame.alarms.rows()

    def reputation(self, now: float) -> list[dict[str, Any]]:
        """Rolling rates of the last 24 hours, a row for each key; the lowest score first."""
        return self.standing.rows(now)


def _of_pace(whose: str, pace: Pace, now: float, *, all_: bool = False) -> Iterator[dict[str, Any]]:
    """Of its own limits those of which something is spent, or all."""
    for rate, spent in pace.spent:
        if not spent.empty(now) or all_:
            yield _row(whose, str(rate), rate.unit, spent.total, rate.count, spent.wait(rate, 1, now))
    if pace.ramp is not None:
        told, wait = pace.ramp.told(now), pace.ramp.wait(now).seconds
        left = pace.ramp.left(now)
        yield _row(whose, told, pace.ramp.unit, pace.ramp.count, pace.ramp.count + min(left, 1 << 30), wait)
    if pace.rate is not None:
        yield _row(whose, f"about {pace.shown}, learnt: {pace.why}", "messages", 0, 0, pace.wait(now).seconds)


def _row(whose: str, limit: str, unit: str, spent: int, count: int, wait: float) -> dict[str, Any]:
    return {
        "whose": whose,
        "limit": limit,
        "unit": unit,
        "spent": spent,
        "count": count,
        "share": round(spent / count, 4) if count else 0.0,
        "wait": round(wait, 2),
    }
