"""When somebody may leave who has others before him. An estimate: all of them leave as soon as a limit lets them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from math import inf

from relay.policy.pace import Pace
from relay.policy.rate import Rate, Spent
from relay.policy.warmup import Ramp

STEPS = 3000  # of a warm-up that are looked ahead: some months of hours

Foreseen = tuple[float, str]  # seconds, and the limit by which it is so; 0 and empty: nothing holds it


def by_rate(rate: Rate, spent: Spent, count: int, now: float) -> float:
    """Seconds until the last of `count` (in what the rate counts) may leave, one after the other."""
    periods, last = divmod(max(1, count) - 1, rate.count)
    seconds = spent.wait(rate, last + 1, now) + periods * rate.period
    if rate.at_once < rate.count:
        first = spent.wait(rate, 1, now)
        before = count - 1 if first else count - min(rate.at_once, spent.left(rate, now))
        seconds = max(seconds, first + before * rate.interval)
    return seconds


def by_ramp(ramp: Ramp, count: int, now: float) -> float:
    """The same of a warm-up, whose days are earned as they are used; inf: not within what is looked ahead."""
    ahead, at = deepcopy(ramp), now
    for _ in range(STEPS):
        seconds = ahead.wait(at, 1).seconds
        if seconds <= 0:
            some = min(count, ahead.left(at))
            ahead.take(at, some)
            count -= some
            if count <= 0:
                return at - now
        else:
            at += seconds
    return inf


def counted(rate: Rate, messages: int, size: int) -> int:
    """What so many messages count, to one recipient each, of about `size` bytes."""
    return messages * max(1, size) if rate.unit == "bytes" else messages


def by_pace(pace: Pace, count: int, size: int, now: float, whose: str) -> Foreseen:
    """By all that binds an egress. `whose`: its name, for people."""
    return max(_of_pace(pace, count, size, now, whose), key=lambda found: found[0])


def _of_pace(pace: Pace, count: int, size: int, now: float, whose: str) -> Iterable[Foreseen]:
    seconds, why, _ = pace.wait(now, 1, size)
    yield seconds, f"{whose}: {why}" if why else ""
    for rate, spent in pace.counts():
        owner = f"{whose}'s" if pace.whose == "its" else pace.whose
        yield by_rate(rate, spent, counted(rate, count, size), now), f"{owner} limit of {rate}"
    if pace.rate is not None:
        yield seconds + (count - 1) / pace.rate, f"what {whose} is heard to take, {pace.shown}"
    if pace.throttle.until > now:
        yield seconds + (count - 1) / pace.throttle.rate, f"{whose} is slowed: {pace.throttle.why}"
    if pace.ramp is not None:
        yield by_ramp(pace.ramp, count, now), f"warm-up of {whose}"
    for other in pace.also:
        yield by_pace(other, count, size, now, whose)
