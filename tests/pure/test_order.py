"""Who goes first: strictly what is immediate, then by weight, users alike, and nobody starves or is lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from conftest import NOW
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.policy.lanefacts import LaneFacts
from relay.scheduler import turns as module
from relay.scheduler.lanes import Lane
from relay.scheduler.turns import WEIGHTS, Order, Turns, share

IMMEDIATE, HIGH, NORMAL, LOW = range(4)


@dataclass
class Field:
    """Lanes that always have more, unless they are taken away."""

    order: Order = field(default_factory=Order)
    turns: Turns = field(default_factory=Turns)
    count: int = 0

    def lane(self, level: int, user: str = "u", class_: str = "c") -> Lane:
        self.count += 1
        made = Lane(self.count, LaneFacts.parse(f'{{"class":"{class_}","user":"{user}"}}'), NOW)
        made.level, made.flow = level, (level, class_, user)
        self.order.enter(self.turns, made)
        return made

    def serve(self, times: int, egress: str = "e", count: int = 1, *, back: bool = True) -> Counter[Lane]:
        """Messages by lane. Who was served comes back at once."""
        served: Counter[Lane] = Counter()
        for _ in range(times):
            _, lane = self.order.first([self.turns], egress)
            served[lane] += count
            self.order.served(lane, egress, count)
            if back:
                self.order.enter(self.turns, lane)
        return served


def test_immediate_goes_before_all() -> None:
    field = Field()
    for level in (LOW, HIGH, NORMAL):
        field.lane(level)
    field.serve(100)
    first = field.lane(IMMEDIATE)
    assert field.serve(50) == {first: 50}


def test_sixteen_to_four_to_one() -> None:
    field = Field()
    high, normal, low = (field.lane(level) for level in (HIGH, NORMAL, LOW))
    served = field.serve(2100)
    assert (served[high], served[normal], served[low]) == (
        pytest.approx(1600, abs=16),
        pytest.approx(400, abs=4),
        pytest.approx(100, abs=1),
    )


def test_so_where_each_is_given_many_at_once() -> None:
    field = Field()
    high, normal, low = (field.lane(level) for level in (HIGH, NORMAL, LOW))
    served = field.serve(2100, count=10)
    assert served[high] / served[low] == pytest.approx(16, rel=0.05)
    assert served[normal] / served[low] == pytest.approx(4, rel=0.05)


def test_each_egress_has_shares_of_its_own() -> None:
    field = Field()
    for level in (HIGH, LOW):
        field.lane(level)
    field.serve(1700, "busy")
    served = field.serve(170, "other")
    assert sorted(served.values()) == [pytest.approx(10, abs=1), pytest.approx(160, abs=1)]


@pytest.mark.parametrize("count", [1, 50])
def test_a_level_that_was_alone_owes_nothing_for_it(count: int) -> None:
    """It had what nobody else wanted."""
    field = Field()
    low = field.lane(LOW)
    high = field.lane(HIGH)
    field.serve(17)
    field.turns.leave(high)
    field.serve(10_000, count=count)
    field.order.enter(field.turns, high)
    assert field.serve(170)[low] == pytest.approx(10, abs=1)


def test_a_level_that_was_away_saves_nothing_up() -> None:
    field = Field()
    high, low = field.lane(HIGH), field.lane(LOW)
    field.serve(100)
    field.turns.leave(low)
    normal = field.lane(NORMAL)
    field.serve(10_000)
    field.order.enter(field.turns, low)
    served = field.serve(210)
    assert (served[high], served[normal], served[low]) == (
        pytest.approx(160, abs=2),
        pytest.approx(40, abs=2),
        pytest.approx(10, abs=2),
    )


def test_users_share_alike_whatever_they_have() -> None:
    field = Field()
    many = [field.lane(NORMAL, "many") for _ in range(500)]
    few = field.lane(NORMAL, "few")
    alone = field.lane(NORMAL, "alone", "other")
    served = field.serve(3000)
    assert served[few] == pytest.approx(1000, abs=520)  # its 500 lanes were there first
    again = field.serve(3000)
    assert (again[few], again[alone]) == (pytest.approx(1000, abs=10), pytest.approx(1000, abs=10))
    each = [again[lane] for lane in many]
    assert max(each) - min(each) <= 1


def test_a_user_who_comes_is_not_behind_all_that_waits() -> None:
    field = Field()
    for _ in range(10_000):
        field.lane(NORMAL, "many")
    field.serve(50)
    new = field.lane(NORMAL, "new")
    assert new in field.serve(2)


def test_a_user_who_was_away_saves_nothing_up() -> None:
    field = Field()
    first, second = field.lane(NORMAL, "first"), field.lane(NORMAL, "second")
    field.serve(10)
    field.turns.leave(second)
    field.serve(10_000)
    field.order.enter(field.turns, second)
    served = field.serve(100)
    assert (served[first], served[second]) == (pytest.approx(50, abs=1), pytest.approx(50, abs=1))


def test_who_was_held_is_not_charged_for_it() -> None:
    """A thousand lanes of a user are looked at, and wait at a limit: he has had nothing, and neither has his level."""
    field = Field()
    held = [field.lane(NORMAL, "held") for _ in range(1000)]
    low = field.lane(LOW, "low")
    normal = field.lane(NORMAL, "normal")
    taken: list[Lane] = []
    for _ in range(1001):  # all but one of them, in one pass
        taken.append(field.order.first([field.turns], "e")[1])
        field.order.served(taken[-1], "e", 0 if taken[-1] in held else 1)
    field.turns.leave(next(iter(field.turns)))
    for lane in (normal, low):
        field.order.enter(field.turns, lane)
    field.order.enter(field.turns, held[0])
    served = field.serve(150)
    assert (served[held[0]], served[normal], served[low]) == (
        pytest.approx(60, abs=2),
        pytest.approx(60, abs=2),
        pytest.approx(30, abs=2),
    )


def test_shares_of_a_room() -> None:
    field = Field()
    lanes = [field.lane(level) for level in (HIGH, HIGH, NORMAL, LOW)]
    for lane in lanes:
        field.turns.leave(lane)
        assert share([field.turns], lane, 0) == 1
        field.order.enter(field.turns, lane)
    _, first = field.order.first([field.turns], "e")
    assert share([field.turns], first, 42) == 16
    urgent = field.lane(IMMEDIATE)
    field.turns.leave(urgent)
    assert share([field.turns], urgent, 42) == 42


def test_a_flow_more_costs_the_same_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty thousand users who all wait: which of them may be forgotten is asked now and then, not for each."""
    looked = 0

    class Counted(dict[object, float]):
        def items(self) -> object:  # type: ignore[override]
            nonlocal looked
            looked += len(self)
            return super().items()

    monkeypatch.setattr(module, "MANY", 100)
    field = Field()
    field.turns.clock.most = 100
    for n in range(2000):
        field.turns.clock.next = Counted(field.turns.clock.next)  # type: ignore[arg-type]
        field.lane(NORMAL, f"u{n}")
    assert looked < 10_000


STEPS = st.lists(
    st.tuples(st.sampled_from(["come", "serve", "leave", "back", "held"]), st.integers(0, 30), st.integers(1, 40)),
    max_size=200,
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_no_lane_is_lost_and_the_sizes_are_right(steps: list[tuple[str, int, int]]) -> None:
    field, away, waiting = Field(), list[Lane](), list[Lane]()
    for what, number, count in steps:
        if what == "come":
            waiting.append(field.lane(number % 4, f"u{number % 3}", f"c{number % 2}"))
        elif what in ("serve", "held") and waiting:
            turns, lane = field.order.first([field.turns], f"e{number % 2}")
            assert turns is field.turns
            assert lane.level == 0 or not any(other.level == 0 for other in waiting)
            field.order.served(lane, f"e{number % 2}", count if what == "serve" else 0)
            waiting.remove(lane)
            away.append(lane)
        elif what == "leave" and waiting:
            lane = waiting.pop(number % len(waiting))
            field.turns.leave(lane)
            away.append(lane)
        elif what == "back" and away:
            lane = away.pop(number % len(away))
            field.order.enter(field.turns, lane)
            waiting.append(lane)
        assert len(field.turns) == len(waiting)
        assert {lane.id for lane in field.turns} == {lane.id for lane in waiting}
    found = [field.order.first([field.turns], "e")[1].id for _ in range(len(waiting))]
    assert sorted(found) == sorted(lane.id for lane in waiting)
    assert not field.turns


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), min_size=1, max_size=30), st.integers(1, 60))
def test_nobody_starves(lanes: list[tuple[int, int]], count: int) -> None:
    """Whatever is there and however much each is given at once, everybody is served in time."""
    field = Field()
    for level, user in lanes:
        field.lane(level, f"u{user}")
    field.serve(500, count=count)
    weights = sum(WEIGHTS[level] for level in {level for level, _ in lanes})
    rounds = int(weights + 1) * len(lanes) * (len({user for _, user in lanes}) + 1)
    assert len(field.serve(rounds, count=count)) == len(lanes)
