"""The planner: who is held waits at what holds him, hides nobody, and goes when it opens."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import NOW
from planning import TWO, Exit, Queue, config_of
from rig import write_config

from relay.config.load import load
from relay.scheduler.lanes import AGAIN
from relay.scheduler.plan import MAX_ASKED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def limits(*rules: str) -> str:
    return "limits:\n" + "\n".join(f"  - {{name: l{n}, {rule}}}" for n, rule in enumerate(rules))


def test_a_lane_that_is_held_hides_nobody(folder: Path) -> None:
    queue = Queue(config_of(folder, limits("match: {user: 'slow*'}, rate: 5/h")))
    slow = [queue.lane("slow", count=100) for _ in range(10)]
    quick = [queue.lane(f"u{n}", count=100) for n in range(10)]
    queue.settle()
    assert (queue.sent(*slow), queue.sent(*quick)) == (5, 1000)


def test_what_is_reserved_for_a_claim_and_not_used_is_others(folder: Path) -> None:
    """A claim asks for as many as its lane may have. What comes to less must not make the others wait for an hour."""
    queue = Queue(config_of(folder, limits("rate: 5/h")))
    lanes = [queue.lane(f"u{n}") for n in range(5)]
    end = queue.run(NOW + 1)
    assert queue.sent(*lanes) == 5, end
    assert all(meter.reserved == 0 for meter in queue.bounds.meters.all())


def test_so_of_bytes(folder: Path) -> None:
    queue = Queue(config_of(folder, limits("rate: 1kB/h")))
    lanes = [queue.lane(f"u{n}") for n in range(20)]
    queue.run(NOW + 2)
    assert queue.sent(*lanes) == 10


def test_a_day_long_limit_opens_when_something_is_given_back(folder: Path) -> None:
    """What could not be sent is counted back: who waits for the end of the day need not."""
    queue = Queue(config_of(folder, limits("rate: 5/d")))
    lane = queue.lane(count=10)
    queue.settle()
    assert queue.sent(lane) == 5
    (meter,) = queue.bounds.meters.all()
    meter.take_back(NOW, 3, 100, 3)
    queue.run(NOW + AGAIN + 1)
    assert queue.sent(lane) == 8


def test_thousands_at_one_full_limit_cost_nothing_while_they_wait(folder: Path) -> None:
    queue = Queue(config_of(folder, limits("match: {user: 'slow*'}, rate: 10/h")))
    for n in range(5000):
        queue.lane(f"slow{n}")
    queue.settle()
    asked = 0
    of = queue.bounds.of

    def counted(*arguments: object) -> object:
        nonlocal asked
        asked += 1
        return of(*arguments)  # type: ignore[arg-type]

    queue.bounds.of = counted  # type: ignore[assignment, method-assign]
    quick = queue.lane("quick")
    queue.run(NOW + 60)
    assert queue.sent(quick) == 1
    assert asked < 50
    queue.run(NOW + 3700, NOW + 3590)
    assert queue.sent() == 21
    assert asked < 150


def test_a_pass_over_a_crowd_that_is_held_is_made_in_parts(folder: Path) -> None:
    """The event loop has other work."""
    queue = Queue(config_of(folder, limits("match: {user: 'slow*'}, rate: 10/h")))
    for n in range(5000):
        queue.lane(f"slow{n}")
    queue.plan()
    assert sum(lane.post is not None for lane in queue.lanes.by_id.values()) <= 1000
    queue.settle()
    assert queue.sent() == 10


def test_next_goes_by_the_later_egress_and_comes_back(folder: Path) -> None:
    queue = Queue(config_of(folder, limits("per: [egress], rate: 10/h, when_full: next")))
    lane = queue.lane("u", count=15)
    queue.settle()
    assert (queue.sent(lane, egress="one"), queue.sent(lane, egress="two")) == (10, 5)
    queue.run(NOW + 3700)
    queue.more(lane, 3, NOW + 3700)
    queue.settle(NOW + 3700)
    assert queue.sent(lane, egress="one") == 13


def test_next_waits_at_the_last_egress(folder: Path) -> None:
    queue = Queue(config_of(folder, limits("per: [egress], rate: 10/h, when_full: next")))
    lane = queue.lane("u", count=50)
    queue.settle()
    assert (queue.sent(lane, egress="one"), queue.sent(lane, egress="two")) == (10, 10)
    queue.run(NOW + 3700)
    assert queue.sent(lane) == 40


def test_next_where_the_later_egress_rests(folder: Path) -> None:
    """It waits for whichever is free first."""
    queue = Queue(config_of(folder, limits("per: [egress], rate: 10/h, when_full: next")))
    queue.exits["two"].wait = 7200.0
    lane = queue.lane("u", count=50)
    queue.run(NOW + 10)
    assert queue.sent(lane) == 10
    queue.run(NOW + 3700, NOW + 3500)
    assert (queue.sent(lane, egress="one"), queue.sent(lane, egress="two")) == (20, 0)


def test_who_is_let_in_while_his_egress_rests_keeps_nobody_waiting(folder: Path) -> None:
    """A limit over two routes: those of the egress that rests take none of what opens."""
    routes = "  - {name: a, match: {user: 'a*'}, via: one}\n  - {name: b, via: two}"
    queue = Queue(config_of(folder, limits("rate: 10/min"), routes=routes))
    first = [queue.lane(f"a{n}") for n in range(50)]
    queue.run(NOW + 1)
    assert queue.sent(*first) == 10
    queue.exits["one"].wait = 1e6
    second = [queue.lane(f"b{n}") for n in range(50)]
    queue.run(NOW + 62, NOW + 1)
    assert queue.sent(*second) == 10
    queue.run(NOW + 400, NOW + 62)
    assert queue.sent(*second) == 50


def test_hours(folder: Path) -> None:
    """NOW is a Friday, 08:00 UTC."""
    day_time, morning = "window: {hours: '09:00-17:00'}", "quiet: {hours: '07:00-08:30'}"
    classes = f"  default: {{}}\n  day: {{{day_time}}}\n  loud: {{{morning}}}"
    queue = Queue(config_of(folder, classes=classes))
    day, loud, other = (queue.lane("u", class_, count=3) for class_ in ("day", "loud", "default"))
    queue.settle()
    assert (queue.sent(day), queue.sent(loud), queue.sent(other)) == (0, 0, 3)
    queue.run(NOW + 1799)
    assert queue.sent(loud) == 0
    queue.run(NOW + 1801, NOW + 1799)
    assert (queue.sent(day), queue.sent(loud)) == (0, 3)
    queue.run(NOW + 3601, NOW + 3590)
    assert queue.sent(day) == 3


def test_a_limit_that_is_used_up_is_told_by_the_longest(folder: Path) -> None:
    queue = Queue(config_of(folder, limits("rate: 5/min", "per: [user], rate: 5/h")))
    lane = queue.lane(count=10)
    queue.settle()
    post = queue.lanes.by_id[lane].post
    assert post is not None
    assert post.meter is not None
    assert post.meter.limit.name == "l1"


def test_who_is_held_at_many_egresses_hides_nobody_at_the_last(folder: Path) -> None:
    """In one pass so many egresses are asked; where all of those are for who is held, the others come at once."""
    more = "\n".join(f"  e{n}: {{host: 127.0.0.1, port: 1, tls: none}}" for n in range(MAX_ASKED + 50))
    routes = "\n".join(f"  - {{name: r{n}, match: {{user: 'u{n}-*'}}, via: e{n}}}" for n in range(MAX_ASKED + 50))
    file = write_config(
        folder, TWO, classes="  default: {}\n  slow: {}", routes=routes, extra=limits("match: {class: slow}, rate: 1/d")
    )
    file.write_text(file.read_text().replace("accounts:\n", f"accounts:\n{more}\n"))
    config = load(file)
    queue = Queue(config, {name: Exit(name) for name in config.accounts})
    for n in range(MAX_ASKED + 10):
        queue.lane(f"u{n}-", "slow", count=2)
    queue.settle()
    for n in range(MAX_ASKED + 10):
        queue.lane(f"u{n}-", "slow", count=2)
    last = queue.lane(f"u{MAX_ASKED + 20}-", count=2)
    queue.settle()
    assert queue.sent(last) == 2


def test_what_leaves_fast_elsewhere_is_nobodys_debt_here(folder: Path) -> None:
    """A thousand turns at one egress made a user who was new at another one wait for all that had been there before him."""
    routes = "  - {name: a, match: {user: 'fast*'}, via: one}\n  - {name: b, via: two}"
    queue = Queue(config_of(folder, routes=routes))
    queue.exits["one"].room, queue.exits["two"].room = 1000, 1
    for _ in range(2000):
        queue.lane("fast")
    for _ in range(200):
        queue.lane("old")
    for _ in range(12):
        queue.plan()
    new, rounds = queue.lane("new"), 0
    while queue.waiting[new]:
        queue.plan()
        rounds += 1
    assert rounds <= 2
