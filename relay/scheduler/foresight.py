"""When a recipient that waits will leave, about, and by which rule: for who asks about one message.

Who is before it is counted: in its own lane those that are claimed first, in others those that share a rule with it and get
their turns in between. The rule that lets so many go last is the one that binds. Nothing is changed, and no attempt fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import inf

from relay.deliver.pool import Egress, name_of
from relay.policy.eta import Foreseen, by_pace, by_rate, counted
from relay.scheduler.bounds import Post
from relay.scheduler.lanes import Lane, Lanes
from relay.scheduler.turns import LEVELS, WEIGHTS
from relay.scheduler.work import Work

Find = Callable[[str], Egress[Work] | None]


def sharing(lanes: Lanes, lane: Lane, now: float) -> list[int]:
    """The other lanes whose mail takes turns with a lane's: they leave by the same egress first, or are held at the same posts."""
    if not lane.egresses:
        return []
    mine = frozenset(lanes.bounds.of(lane, lane.egresses[0], now))
    return [
        other.id
        for other in lanes.by_id.values()
        if other is not lane and other.egresses and other.due_at is not None and other.movable
        if other.egresses[0] == lane.egresses[0] or not mine.isdisjoint(lanes.bounds.of(other, other.egresses[0], now))
    ]  # fmt: skip


def foresee(
    lanes: Lanes, find: Find, lane: Lane, before: int, waiting: Mapping[int, int], size: int, now: float
) -> Foreseen:
    """Seconds until the recipient of a lane leaves that has `before` others in front of it, and the rule; inf: nobody knows.

    `waiting`: recipients that are due, by lane, of those of `sharing`. `size`: its own, in bytes.
    """
    if not lane.egresses or not lane.movable:
        return inf, lane.why
    first = lane.egresses[0]
    others = [lanes.by_id[number] for number in waiting if number in lanes.by_id]
    mine = lanes.bounds.of(lane, first, now)
    found: list[Foreseen] = [(0.0, "")]
    for post in mine:
        with_it = [other for other in others if post in lanes.bounds.of(other, other.egresses[0], now)]
        found.append(_by_post(post, 1 + before + _between(lane, before, with_it, waiting), size, now))
    count = 1 + before + _between(lane, before, [other for other in others if other.egresses[0] == first], waiting)
    egress = find(first)
    if egress is not None:
        found += _by_egress(egress, count, size, now)
    return max(found, key=lambda one: one[0])


def _between(lane: Lane, before: int, others: Iterable[Lane], waiting: Mapping[int, int]) -> int:
    """How many of others leave until it is the turn of who has `before` in front: as `turns` shares."""
    sums = [0] * len(LEVELS)
    same, last = 0, 0
    for other in others:
        if other.level == lane.level:
            same += min(waiting[other.id], before)
            last += waiting[other.id] > before
        else:
            sums[other.level] += waiting[other.id]
    same += last // 2  # of the last round nobody knows who goes first
    if lane.level == 0:
        return same
    share = (1 + before + same) / WEIGHTS[lane.level]
    return same + sums[0] + sum(min(sums[level], round(share * WEIGHTS[level])) for level in LEVELS[1:] if sums[level])


def _by_post(post: Post, count: int, size: int, now: float) -> Foreseen:
    held = post.wait(now)
    if post.meter is None:
        return held.seconds, held.why
    rate = post.meter.limit.rate
    return by_rate(rate, post.meter.spent, counted(rate, count, size), now), post.meter.rule


def _by_egress(egress: Egress[Work], count: int, size: int, now: float) -> Iterable[Foreseen]:
    view, name = egress.view(now), name_of(egress.key)
    if view.wait > 0 and not view.passes:
        yield view.wait, f"{name}: {view.why}"
    yield by_pace(egress.pace, count, size, now, name)
    yield count / max(1, egress.connections) * egress.duration, f"the {egress.connections} connections of {name}"
