"""The lanes in memory: a pass looks at what can move, everybody comes to his turn, and nothing is forgotten."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
from conftest import NOW
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import write_config

from relay.config.load import load
from relay.maillog import MailLog
from relay.nexthop.mx import Mx
from relay.resolver import Resolver
from relay.scheduler import lanes as module
from relay.scheduler.bounds import Bounds
from relay.scheduler.lanes import Lane, Lanes, Way
from relay.scheduler.sites import Sites
from relay.settings import Config
from relay.spool import Head

ROUTES = "\n".join(
    [
        "  - {name: both, match: {user: 'both*'}, via: [one, two]}",
        "  - {name: two, match: {user: 'two*'}, via: two}",
        "  - {name: ended, match: {user: 'ended*'}, discard: true}",
        "  - {name: nowhere, match: {class: default, user: 'one*'}, via: one}",
    ]
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    ports = {"one": "port: 1, tls: none", "two": "port: 2, tls: none"}
    return load(write_config(tmp_path_factory.mktemp("lanes"), ports, routes=ROUTES))


def head(number: int, user: str, due_at: float | None = NOW) -> Head:
    return Head(number, f'{{"class":"default","user":"{user}"}}', due_at)


def lanes_of(config: Config) -> Lanes:
    return Lanes(config, Sites(Mx(Resolver()), config, MailLog(None)), Bounds(config, lambda key: ()))


def take(lanes: Lanes, ways: list[Way], most: int) -> list[Lane]:
    """As the planner takes them."""
    taken = list(islice(lanes.take(ways), most))
    for lane in taken:
        lane.asked = True
    return taken


def crowd(config: Config, count: int, user: str = "one", due_at: float = NOW) -> Lanes:
    made = lanes_of(config)
    made.update(head(i, f"{user}{i}", due_at) for i in range(count))
    return made


class Looked(Lane):
    """Counts how often somebody asks when it is due, or where it goes."""

    __slots__ = ()
    count = 0

    def __getattribute__(self, name: str) -> object:
        Looked.count += 1
        return super().__getattribute__(name)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> type[Looked]:
    monkeypatch.setattr(module, "Lane", Looked)
    Looked.count = 0
    return Looked


def test_a_pass_does_not_look_at_lanes_that_are_not_due(config: Config, looked: type[Looked]) -> None:
    lanes = crowd(config, 1000, due_at=NOW + 60)
    lanes.update([head(1000, "one1000")])
    looked.count = 0
    (way,) = lanes.ways(NOW)
    (lane,) = take(lanes, [way], 20)
    lanes.found(lane, None)
    assert (lanes.ways(NOW), lanes.next_due()) == ([], NOW + 60)
    assert looked.count < 50


def test_a_way_that_rests_costs_nothing(config: Config, looked: type[Looked]) -> None:
    lanes = crowd(config, 1000)
    (way,) = lanes.ways(NOW)
    lanes.rest(way, NOW + 3.0, NOW)
    looked.count = 0
    for _ in range(100):
        assert lanes.ways(NOW + 1) == []
        assert lanes.next_due() == NOW + 3.0
    assert looked.count == 0
    assert len(lanes.ways(NOW + 3.0)[0].turns) == 1000


def test_a_busy_way_costs_as_one(config: Config, looked: type[Looked]) -> None:
    lanes = crowd(config, 1000)
    lanes.ways(NOW)
    looked.count = 0
    assert len({id(lanes.ways(NOW)[0]) for _ in range(100)}) == 1
    assert looked.count == 0


def test_a_long_rest_is_looked_at_now_and_then(config: Config) -> None:
    lanes = crowd(config, 1)
    (way,) = lanes.ways(NOW)
    lanes.rest(way, float("inf"), NOW)
    assert lanes.ways(NOW + module.AGAIN - 0.1) == []
    assert lanes.ways(NOW + module.AGAIN) == [way]


def test_everybody_comes_to_his_turn(config: Config) -> None:
    """Seven hundred lanes by one account and three hundred by it or another: each is taken as often as any."""
    lanes = lanes_of(config)
    lanes.update(head(i, f"{'both' if i < 300 else 'one'}{i}") for i in range(1000))
    taken = Counter[int]()
    for _ in range(300):
        for lane in take(lanes, lanes.ways(NOW), 10):
            taken[lane.id] += 1
            lanes.found(lane, NOW)  # it has more
    assert set(taken.values()) == {3} and len(taken) == 1000


def test_those_that_were_not_reached_come_first(config: Config) -> None:
    lanes = lanes_of(config)
    lanes.update([head(1, "one1"), head(2, "two2"), head(3, "both3"), head(4, "one4")])
    first = [way.egresses for way in lanes.ways(NOW)]
    for lane in take(lanes, lanes.ways(NOW)[:1], 1):
        lanes.found(lane, NOW)
    assert lanes.ways(NOW)[-1].egresses == first[0]


def test_what_a_rule_ends_has_a_way_of_its_own(config: Config) -> None:
    lanes = crowd(config, 3, user="ended")
    (way,) = lanes.ways(NOW)
    assert way.egresses == ()
    assert [lane.id for lane in take(lanes, [way], 2)] == [0, 1]


def test_without_a_route_nothing_moves(config: Config) -> None:
    lanes = crowd(config, 3, user="stranger")
    assert (lanes.ways(NOW), lanes.next_due()) == ([], None)
    assert "no route" in lanes.by_id[0].why


def test_a_reload_ends_every_rest(config: Config) -> None:
    lanes = crowd(config, 3)
    (way,) = lanes.ways(NOW)
    lanes.rest(way, NOW + 1000, NOW)
    lanes.reload(replace(config))
    (way,) = lanes.ways(NOW)
    assert len(way.turns) == 3 and not way.rests


def test_a_busy_lane_leaves_no_trail(config: Config) -> None:
    """It has something for later and something new each time."""
    lanes = crowd(config, 10, due_at=NOW + 3600)
    for i in range(10_000):
        now = NOW + i / 100
        lanes.update([head(1, "one1", now)])
        for lane in take(lanes, lanes.ways(now), 1):
            lanes.found(lane, NOW + 3600)
    assert len(lanes._timers) < 100


DUE = st.one_of(st.none(), st.integers(0, 20))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("heads"), st.integers(0, 7), DUE),
        st.tuples(st.just("take"), st.integers(1, 4), DUE),
        st.tuples(st.just("rest"), st.integers(0, 10), st.none()),
        st.tuples(st.just("later"), st.integers(1, 5), st.none()),
        st.tuples(st.just("reload"), st.none(), st.none()),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(steps=STEPS)
def test_nothing_is_forgotten(config: Config, steps: list[tuple[str, int, int | None]]) -> None:
    """Whatever happens: what is due and may move is offered, nothing else is, and there is a time to come back for the rest."""
    lanes, now, due = lanes_of(config), NOW, dict[int, float | None]()
    names = ("one", "two", "both", "stranger")
    for what, a, b in steps:
        then = None if b is None else NOW + b
        if what == "heads":
            lanes.update([head(a, f"{names[a % 4]}{a}", then)])
            before = due.get(a)
            due[a] = then if before is None else before if then is None else min(before, then)
        elif what == "take":
            for lane in take(lanes, lanes.ways(now), a):
                at = due[lane.id]
                assert at is not None and at <= now
                lanes.found(lane, then)
                due[lane.id] = then
        elif what == "rest":
            for way in lanes.ways(now)[:1]:
                lanes.rest(way, now + a, now)
        elif what == "later":
            now += a
        else:
            lanes.reload(config)
        ready = {n for n, at in due.items() if at is not None and at <= now and n % 4 != 3}
        offered = {lane.id for way in lanes.ways(now) for lane in way.turns}
        resting = {lane.id for _, _, way in lanes._rests for lane in way.turns}
        assert ready == (offered | resting) and not offered & resting
        after = [at for n, at in due.items() if at is not None and at > now and n % 4 != 3]
        following = lanes.next_due()
        assert not (after or resting) or (following is not None and following <= min(after, default=following))
