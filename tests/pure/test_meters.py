"""Meters: one count for each combination of values, the same after a reload, forgotten when nothing counts."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace

import pytest
from conftest import NOW

from relay.policy import limits as module
from relay.policy.limits import Limit, Meter, Meters, Per
from relay.policy.rate import Rate
from relay.policy.routing import Match, Question

VALUES: dict[Per, str | None] = {
    "sender": "a@x.example", "from": "x.example", "user": "u", "tenant": "", "class": "c", "destination": "d.example",
    "egress": "main",
}  # fmt: skip


def limit(rate: str = "5/h", *per: Per, name: str = "one", match: Match | None = None, **more: str) -> Limit:
    return Limit(name, replace(Rate.parse(rate), **more), match or Match(), per)  # type: ignore[arg-type]


def of(meters: Meters, now: float = NOW, *, door: bool = False, **values: str | None) -> tuple[Meter, ...]:
    mine: Mapping[Per, str | None] = {**VALUES, **values}  # type: ignore[dict-item]
    return meters.of(lambda q: q.matches(mine[q.fact]), mine, now, door=door)  # type: ignore[index, arg-type]


def made(*limits: Limit) -> Meters:
    return Meters(limits, lambda key: ())


def test_one_for_each_combination() -> None:
    meters = made(limit("5/h", "sender", "destination"))
    (first,) = of(meters)
    assert of(meters) == (first,)
    assert of(meters, sender="b@x.example") != (first,)
    assert of(meters, destination="e.example") != (first,)
    assert of(meters, user="other") == (first,)


def test_without_per_all_share_one() -> None:
    meters = made(limit("5/h"))
    assert of(meters) == of(meters, sender="b@x.example", user="other")


def test_who_it_does_not_match() -> None:
    meters = made(limit(match=Match((Question("user", ("u",)),))))
    assert len(of(meters)) == 1
    assert of(meters, user="other") == ()


def test_what_is_not_known_is_not_asked() -> None:
    assert of(made(limit("5/h", "from")), **{"from": None}) == ()


def test_at_the_door_and_on_the_way_are_two() -> None:
    meters = made(limit(), limit(name="two", when_full="reject"))
    assert [m.limit.name for m in of(meters)] == ["one"]
    assert [m.limit.name for m in of(meters, door=True)] == ["two"]


@pytest.mark.parametrize(
    ("text", "recipients", "size", "count"), [("5/h", 3, 9, 3), ("5 messages/h", 3, 9, 1), ("5kB/h", 3, 9, 9)]
)
def test_what_it_counts(text: str, recipients: int, size: int, count: int) -> None:
    (meter,) = of(made(limit(text)))
    meter.take(NOW, recipients, size)
    assert meter.spent.total == count
    meter.take_back(NOW, recipients, size)
    assert meter.spent.total == 0


def test_more_than_the_whole_limit_leaves_when_nothing_else_was_spent() -> None:
    (meter,) = of(made(limit()))
    assert meter.wait(NOW, 50).seconds == 0
    meter.take(NOW, 50, 1)
    assert meter.wait(NOW).seconds == pytest.approx(3600, abs=30)
    assert meter.room(NOW) <= 0


def test_what_is_reserved_is_not_free_and_comes_back_soon() -> None:
    (meter,) = of(made(limit()))
    meter.reserved = 5
    assert meter.room(NOW) <= 0
    assert 0 < meter.wait(NOW).seconds < 1
    meter.take(NOW, 2, 1)
    meter.reserved = 0
    assert (meter.room(NOW), meter.wait(NOW).seconds) == (3, 0)


def test_a_reload_that_changes_numbers_keeps_the_count() -> None:
    meters = made(limit("5/h", "user"))
    (before,) = of(meters)
    before.take(NOW, 5, 1)
    meters.reload([limit("7/h", "user")])
    (after,) = of(meters)
    assert after.room(NOW) == 2
    before.take(NOW, 1, 1)  # by who was on his way
    assert after.room(NOW) == 1


@pytest.mark.parametrize("other", [limit("5/d", "user"), limit("5/h", "sender"), limit("5/h", "user", name="two")])
def test_a_reload_that_counts_something_else_begins_anew(other: Limit) -> None:
    meters = made(limit("5/h", "user"))
    of(meters)[0].take(NOW, 5, 1)
    meters.reload([other])
    assert of(meters)[0].room(NOW) == 5


def test_a_restart_keeps_the_count() -> None:
    meters = made(limit("5/h", "user"))
    (meter,) = of(meters)
    meter.take(NOW, 4, 1)
    rows = meter.rows()
    assert meter.rows() == []
    kept: dict[str, list[tuple[float, int]]] = {}
    for key, until, count in rows:
        kept.setdefault(key, []).append((until, count))
    again = Meters([limit("5/h", "user")], lambda key: kept.get(key, ()))
    assert [m.room(NOW + 1) for m in (*of(again, NOW + 1), *of(again, NOW + 1, user="other"))] == [1, 5]


def test_what_counts_is_not_forgotten_and_what_does_not_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANY", 10)
    meters = made(limit("5/h", "user"))
    meters._most = 10
    for n in range(100):
        of(meters, user=f"u{n}")[0].take(NOW, 1, 1)
    gc.collect()
    assert len(list(meters.all())) == 100
    for n in range(100, 400):
        of(meters, NOW + 4000, user=f"u{n}")[0].take(NOW + 4000, 1, 1)
    gc.collect()
    assert len(list(meters.all())) == 300


def test_of_who_holds_one_there_is_no_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane keeps its meters; another lane of the same user, that comes later, is counted by the same."""
    monkeypatch.setattr(module, "MANY", 10)
    meters = made(limit("5/h", "user"))
    meters._most = 10
    (held,) = of(meters, user="held")
    held.take(NOW, 1, 1)
    for n in range(100):
        of(meters, NOW + 4000, user=f"u{n}")[0].take(NOW + 4000, 1, 1)
    assert of(meters, NOW + 4000, user="held") == (held,)
    held.take(NOW + 4000, 5, 1)
    del held
    gc.collect()
    assert of(meters, NOW + 4000, user="held")[0].room(NOW + 4000) <= 0


def test_a_new_one_costs_the_same_however_many_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who still counts is asked now and then, not for each."""
    monkeypatch.setattr(module, "MANY", 100)
    meters = made(limit("5/h", "user"))
    meters._most = 100
    asked = 0
    empty = module.Spent.empty

    def counted(spent: module.Spent, now: float) -> bool:
        nonlocal asked
        asked += 1
        return empty(spent, now)

    monkeypatch.setattr(module.Spent, "empty", counted)
    for n in range(5000):
        of(meters, user=f"u{n}")[0].take(NOW, 1, 1)
    assert asked < 10_000


def test_a_limit_that_comes_back_with_a_later_reload_has_its_count() -> None:
    meters = made(limit("5/h", "user"))
    of(meters)[0].take(NOW, 5, 1)
    meters.reload([])
    gc.collect()
    meters.reload([limit("5/h", "user")])
    assert of(meters)[0].room(NOW) == 0
