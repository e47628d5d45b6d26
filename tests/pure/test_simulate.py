"""The simulation: small cases whose answer is known by hand. It asks the relay's own planner, so they hold for both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import NOW
from rig import write_config

from relay.config.load import load
from relay.policy.pace import Pace
from relay.policy.suspend import Suspension, Suspensions
from relay.settings import Config
from relay.simulate.plans import BadPlan, moment, read, recipients
from relay.simulate.run import Left, Simulation
from relay.simulate.traffic import Traffic, Wave
from relay.simulate.waits import Waits, rule_of

MIDNIGHT = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
HOUR, DAY = 3600.0, 86400.0


def made(folder: Path, *, classes: str = "  default: {}", extra: str = "", routes: str = "", **accounts: str) -> Config:
    given = {name: f"port: 25, tls: none{', ' + rest if rest else ''}" for name, rest in accounts.items()}
    return load(write_config(folder, given, classes=classes, extra=extra, routes=routes))


def run(config: Config, *waves: Wave, start: float = NOW, until: float = float("inf")) -> list[Left]:
    simulation = Simulation(config, start)
    return list(simulation.run(Traffic(simulation).arrivals(waves), until))


def times(left: Sequence[Left], start: float = NOW) -> list[float]:
    return [round(one.at - start, 3) for one in left]


def test_by_the_second_they_leave_at_even_distances(tmp_path: Path) -> None:
    left = run(made(tmp_path, ses="limits: [10/s]"), Wave(NOW, 31))
    assert times(left) == pytest.approx([i * 0.1 for i in range(31)], abs=0.03)
    assert left[-1].held == {"ses waits: its limit of 10/s is used up": pytest.approx(3.0, abs=0.03)}


def test_by_the_minute_they_leave_at_once_and_then_wait(tmp_path: Path) -> None:
    left = run(made(tmp_path, main="limits: [100/min], connections: 50"), Wave(NOW, 250))
    first, second, third = times(left)[:100], times(left)[100:200], times(left)[200:]
    assert (
        max(first) < 1.0 and 60.0 <= min(second) <= max(second) <= 61.5 and 120.0 <= min(third) <= max(third) <= 123.0
    )
    for i in range(100, 250):
        assert left[i].at - left[i - 100].at >= 60.0


def test_what_waits_for_longer_than_its_class_gives_it_expires(tmp_path: Path) -> None:
    config = made(tmp_path, main="limits: [10/h]", classes="  default: {retry: {give_up: 90m}}")
    simulation = Simulation(config, NOW)
    left = list(simulation.run(Traffic(simulation).arrivals([Wave(NOW, 35)]), float("inf")))
    assert (len(left), simulation.shelf.expired, simulation.shelf.waiting) == (20, 15, 0)


def test_a_calendar_day_turns_at_midnight_where_it_says(tmp_path: Path) -> None:
    config = made(tmp_path, main="limits: [{rate: 5/d, window: calendar, timezone: Europe/Berlin}]")
    start = MIDNIGHT - 2 * HOUR  # 23:00 in Berlin
    left = run(config, Wave(start, 12), start=start)
    assert [round(one.at - start) for one in left] == [0] * 5 + [HOUR] * 5 + [HOUR + DAY] * 2


def test_a_warm_up_by_the_hour_gives_its_excess_to_the_warm_egress(tmp_path: Path) -> None:
    warm = "warm_up: {start: 2026-12-01, first: 48/d, growth: 100%, until: 1000/d, overflow: old}"
    config = made(tmp_path, new=warm, old="", routes="  - {name: all, via: new}")
    left = run(config, Wave(MIDNIGHT, 10), Wave(MIDNIGHT + HOUR, 5), start=MIDNIGHT)
    assert [one.egress for one in left if one.at < MIDNIGHT + HOUR].count("new") == 2  # 48 a day are 2 an hour
    assert [one.egress for one in left if one.at >= MIDNIGHT + HOUR].count("new") == 2
    assert max(one.at - one.due_at for one in left) < 2.0


def test_a_warm_up_without_overflow_waits_for_its_days(tmp_path: Path) -> None:
    config = made(tmp_path, new="warm_up: {start: 2026-12-01, table: [10, 20, 40], spread: none}")
    left = run(config, Wave(MIDNIGHT, 100), start=MIDNIGHT)
    days = [int((one.at - MIDNIGHT) // DAY) for one in left]
    assert [days.count(day) for day in range(4)] == [10, 20, 40, 30]
    assert max(left[-1].held, key=left[-1].held.__getitem__) == "new waits: warm-up of new"


def test_a_class_leaves_in_its_hours(tmp_path: Path) -> None:
    classes = "  default: {}\n  news: {window: {hours: '08:00-20:00', timezone: UTC}}"
    left = run(
        made(tmp_path, main="", classes=classes), Wave(MIDNIGHT, 3, class_="news"), Wave(MIDNIGHT, 2), start=MIDNIGHT
    )
    assert times([one for one in left if one.class_ == "default"], MIDNIGHT) == [0.0, 0.0]
    news = [one for one in left if one.class_ == "news"]
    assert all(8 * HOUR <= one.at - MIDNIGHT < 8 * HOUR + 1 for one in news)
    assert list(news[0].held) == ["outside its hours 08:00-20:00 UTC"]


def test_what_is_urgent_passes_and_the_others_share_by_weight(tmp_path: Path) -> None:
    classes = "  now: {priority: immediate}\n  high: {priority: high}\n  low: {priority: low}\n  default: {}"
    config = made(tmp_path, main="limits: [10/s], connections: 1", classes=classes)
    left = run(
        config, Wave(NOW, 400, class_="high"), Wave(NOW, 400, class_="low"), Wave(NOW + 5, 20, class_="now", spread=20)
    )
    assert max(one.at - one.due_at for one in left if one.class_ == "now") < 0.6
    first = [one.class_ for one in left[:200]]
    assert first.count("high") / first.count("low") == pytest.approx(16, rel=0.25)


def test_a_limit_that_passes_on_sends_the_excess_by_the_next(tmp_path: Path) -> None:
    config = made(tmp_path, first="limits: [{rate: 10/h, when_full: next}]", second="")
    left = run(config, Wave(NOW, 30))
    assert [one.egress for one in left].count("first") == 10 and max(one.at for one in left) < NOW + 2


def test_one_sender_at_its_limit_holds_nobody_else_back(tmp_path: Path) -> None:
    extra = "limits: [{name: each, rate: 5/min, per: sender}]"
    left = run(made(tmp_path, main="", extra=extra), Wave(NOW, 12, "a@example.com"), Wave(NOW, 3, "b@example.com"))
    assert [round((one.at - NOW) // 60) for one in left] == [0] * 8 + [1] * 5 + [2] * 2
    assert list(left[-1].held) == ["limit each (a@example.com) of 5/min is used up"]


def test_what_a_limit_refuses_at_the_door_is_told(tmp_path: Path) -> None:
    extra = "limits: [{name: day, rate: 10/d, when_full: reject}]"
    simulation = Simulation(made(tmp_path, main="", extra=extra), NOW)
    traffic = Traffic(simulation)
    assert len(list(simulation.run(traffic.arrivals([Wave(NOW, 25)])))) == 10
    assert traffic.turned_away == {"refused: 452 limit day of 10/d is used up": 15}


def test_by_mx_each_site_has_its_sessions(tmp_path: Path) -> None:
    extra = """direct: {mx-1: {source: 127.0.0.1, connections: 4}}
destinations: [{name: google, match: {mx: "*.google.com"}, limits: [2/s], connections: 2}]"""
    config = made(tmp_path, extra=extra, routes="  - {name: all, via: mx-1}")
    to = recipients("gmail.com=50,one.example=25,two.example=25")
    left = run(config, Wave(NOW, 100, recipients=to))
    google = [one for one in left if one.site == "google"]
    assert len(google) == 50 and google[-1].at - NOW == pytest.approx(24.5, abs=1.0)
    assert max(one.at for one in left if one.site != "google") < NOW + 6
    assert {one.site for one in left} == {"google", "one.example", "two.example"}


def test_a_suspension_holds_until_its_end(tmp_path: Path) -> None:
    kept = {"suspensions": f'[{{"kind":"egress","value":"main","until":{NOW + 600},"reason":"","at":{NOW}}}]'}
    simulation = Simulation(made(tmp_path, main=""), NOW, documents=kept)
    left = list(simulation.run(Traffic(simulation).arrivals([Wave(NOW, 3)])))
    assert all(600 <= one.at - NOW < 602 for one in left) and len(left) == 3


def test_what_an_upstream_asked_to_wait_for_outlives_a_start(tmp_path: Path) -> None:
    """By the relay's own egresses: only after a reload, where somebody may have mended something, are they asked again at once."""
    pace = Pace()
    pace.hold(NOW, 600, "450 slow down")
    kept = {"egress main": json.dumps({"pace": pace.state()})}
    simulation = Simulation(made(tmp_path, main=""), NOW, documents=kept)
    (left,) = simulation.run(Traffic(simulation).arrivals([Wave(NOW)]))
    assert 600 <= left.at - NOW < 601 and list(left.held) == ["main waits: 450 slow down"]


def test_what_was_spent_before_counts(tmp_path: Path) -> None:
    """`kept` is what a running relay has spent: 8 of 10, until in an hour."""
    config = made(tmp_path, main="limits: [10/h]")
    kept = {"egress main recipients in 3600s": [(NOW + HOUR / 2, 8)]}
    simulation = Simulation(config, NOW, kept=kept)
    left = list(simulation.run(Traffic(simulation).arrivals([Wave(NOW, 5)])))
    assert [round(one.at - NOW, -1) for one in left] == [0, 0, 1800, 1800, 1800]


def test_what_never_leaves_ends_the_simulation(tmp_path: Path) -> None:
    simulation = Simulation(made(tmp_path, main="senders: ['*@ours.example']"), NOW)
    traffic = Traffic(simulation)
    assert list(simulation.run(traffic.arrivals([Wave(NOW, 3, "a@theirs.example")]))) == []
    assert sum(traffic.turned_away.values()) == 3
    slow = Simulation(made(tmp_path, main="limits: [1/d]"), NOW)
    assert len(list(slow.run(Traffic(slow).arrivals([Wave(NOW, 5)]), NOW + 2.5 * DAY))) == 3
    assert slow.shelf.waiting == 2 and dict(slow.stuck()) == {"main waits: its limit of 1/d is used up": 2}


# -- plans


def test_a_plan_is_read_by_its_header() -> None:
    text = "time,recipient,count,ignored,spread,class\n+10m,gmail.com=3,40,x,2h,news\n2026-12-01T09:00+01:00,you@example.net,,,,\n"
    first, second = read(text.splitlines(True), NOW)
    assert (first.at, first.count, first.spread, first.class_) == (NOW + 600, 40, 7200.0, "news")
    assert first.recipients == (("someone@gmail.com", 3),)
    assert (second.at, second.count) == (MIDNIGHT + 8 * HOUR, 1) and second.recipients == (("you@example.net", 1),)


def test_bad_rows_are_told_by_their_line() -> None:
    with pytest.raises(BadPlan) as caught:
        read(["time,recipient,count\n", "soon,you@example.net,1\n", "+1m,you@example.net,none\n", "+1m,,1\n"], NOW)
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["line 2", "line 3", "line 4"]
    with pytest.raises(BadPlan, match="header that names time and recipient"):
        read(["a,b\n"], NOW)


@pytest.mark.parametrize("text", ["", "a b@c", "gmail.com=x", "@", "gmail.com=0"])
def test_recipients_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        recipients(text)


def test_moments() -> None:
    assert moment("now", NOW) == NOW and moment("+2h", NOW) == NOW + 7200 and moment("1800000000.5", 0) == NOW + 0.5
    with pytest.raises(ValueError):
        moment("tomorrow", NOW)


def test_shares_are_spread_evenly() -> None:
    to = [address for _, address, _ in Wave(NOW, 10, recipients=(("a@x", 3), ("b@x", 2))).times()]
    assert to.count("a@x") == 6 and to[:5].count("a@x") == 3


# -- why


def test_waits_are_added_up_by_rule() -> None:
    waits = Waits()
    waits.add(0.0, 10.0, "a")
    waits.add(10.0, 15.0, "a")
    waits.add(15.0, 20.0, "b")
    assert waits.between(5.0, 20.0) == {"a": 10.0, "b": 5.0}
    assert waits.between(17.0, 20.0) == {"b": 3.0}
    waits.add(30.0, 34.0, "b")  # nothing was due between
    assert waits.between(16.0, 34.0) == {"b": 8.0} and waits.between(32.0, 34.0) == {"b": 2.0}
    assert waits.between(34.0, 34.0) == {}


def test_a_rule_is_named_without_what_changes() -> None:
    assert rule_of("outside its hours 08:00-20:00 UTC, until Mon 08:00 UTC") == "outside its hours 08:00-20:00 UTC"
    assert (
        rule_of("a waits: warm-up of a: day 3, 7 of 9 recipients today; next at 09:00 UTC") == "a waits: warm-up of a"
    )
    assert rule_of("a waits: its limit of 5/s is used up") == "a waits: its limit of 5/s is used up"


def test_what_is_suspended_without_an_end_ends_the_simulation(tmp_path: Path) -> None:
    suspended = Suspensions([Suspension.of("egress", "main", None, "", NOW)])
    simulation = Simulation(made(tmp_path, main=""), NOW, documents={"suspensions": suspended.state()})
    left = list(simulation.run(Traffic(simulation).arrivals([Wave(NOW, 3)]), float("inf")))
    assert (left, simulation.shelf.waiting) == ([], 3)


def test_a_user_sends_as_nobody_else(tmp_path: Path) -> None:
    config = made(tmp_path, extra="users: {shop: {password: {env: PATH}, senders: ['*@shop.example']}}", main="")
    simulation = Simulation(config, NOW)
    traffic = Traffic(simulation)
    waves = [Wave(NOW, 2, sender="a@shop.example", user="shop"), Wave(NOW, 3, sender="z@evil.example", user="shop")]
    assert len(list(simulation.run(traffic.arrivals(waves), float("inf")))) == 2
    assert traffic.turned_away == {"refused: 553 user shop may not send as <z@evil.example>": 3}


def test_of_two_rules_that_hold_one_after_the_other_each_has_its_part(tmp_path: Path) -> None:
    classes = "  default: {quiet: {hours: '22:00-07:00'}}"
    config = made(
        tmp_path, classes=classes, extra="limits: [{name: day, rate: 10/d, window: calendar}]", main="connections: 50"
    )
    left = run(config, Wave(MIDNIGHT + 8 * HOUR, 20), start=MIDNIGHT + 8 * HOUR)
    assert len(left) == 20 and left[-1].at == pytest.approx(MIDNIGHT + DAY + 7 * HOUR, abs=2)
    day, quiet = (
        left[-1].held["limit day of 10/d by the calendar of UTC is used up"],
        sum(held for rule, held in left[-1].held.items() if rule.startswith("in its quiet hours")),
    )
    assert day + quiet == pytest.approx(23 * HOUR, abs=2) and min(day, quiet) > 6 * HOUR


def test_a_suspension_with_an_end_is_told_as_what_held(tmp_path: Path) -> None:
    suspended = Suspensions([Suspension.of("class", "default", NOW + HOUR, "a break", NOW)])
    simulation = Simulation(made(tmp_path, main=""), NOW, documents={"suspensions": suspended.state()})
    left = list(simulation.run(Traffic(simulation).arrivals([Wave(NOW, 3)]), float("inf")))
    assert len(left) == 3
    assert all("a break" in rule for one in left for rule, held in one.held.items() if held > 60)
    assert min(sum(one.held.values()) for one in left) == pytest.approx(HOUR, abs=1)
