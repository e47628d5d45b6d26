"""Rates: Wilson's bounds, what is forgotten, what a score says, and a route that asks for one."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.policy.lanefacts import LaneFacts, lane_facts
from relay.policy.reputation import HOUR, MAX_KEY, Kind, Reputation, Tally, wilson
from relay.policy.routing import UNDECIDED, Action, Facts, Match, Question, Route, Table

NOW = 1_800_000_000.0
KEY = "egress mx-1"


def noted(delivered: int = 0, deferred: int = 0, bounced: int = 0, complained: int = 0) -> Reputation:
    reputation = Reputation()
    reputation.note(KEY, delivered, deferred, bounced, complained, NOW)
    return reputation


# -- Wilson


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 10, 0.0179, 0.4042),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),  # this and those below: R. G. Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_printed_values(hits: int, total: int, low: float, high: float) -> None:
    share = wilson(hits, total)
    assert share == pytest.approx((low, high, hits / total), abs=5e-5)


def test_nothing_seen_is_nothing_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0, 0.0)


@given(st.integers(0, 10**9), st.integers(1, 10**9))
def test_the_share_lies_within_its_bounds(hits: int, more: int) -> None:
    share = wilson(hits, hits + more)
    assert 0.0 <= share.low <= share.rate <= share.high <= 1.0


# -- the score


@pytest.mark.parametrize(
    ("counts", "score"),
    [
        ((10_000,), 1.0),
        ((9_900, 0, 100), 0.95),
        ((9_800, 0, 200), 0.90),
        ((9_500, 0, 500), 0.72),
        ((9_000, 0, 1_000), 0.43),
        ((8_300, 0, 1_700), 0.02),
        ((10_000, 0, 0, 10), 0.92),
        ((10_000, 0, 0, 30), 0.68),
        ((10_000, 0, 0, 50), 0.43),
        ((9_000, 1_000), 0.91),
        ((5_000, 5_000), 0.51),
        ((49, 0, 1), 0.98),
        ((0, 0, 10_000), 0.0),
    ],
)
def test_the_table_of_scores(counts: tuple[int, ...], score: float) -> None:
    assert noted(*counts).score(KEY, NOW) == pytest.approx(score, abs=0.0055)


def test_little_known_counts_little() -> None:
    assert Reputation().score(KEY, NOW) == 1.0
    assert noted(9, 0, 1).score(KEY, NOW) > 0.89
    assert noted(9_000, 0, 1_000).score(KEY, NOW) < 0.5


def test_complaints_about_mail_of_before_tell_no_share() -> None:
    rates = noted(3, 0, 0, 5).rates(KEY, NOW)
    assert (rates.total, rates.complaints) == (3, (0.0, 1.0, 0.0))
    late = noted(10_000)
    late.note(KEY, 0, 0, 0, 20, NOW - 30 * HOUR)  # about mail of the day before yesterday
    assert late.rates(KEY, NOW).complaints.rate == 0
    late.note(KEY, 0, 0, 0, 20, NOW - 3 * HOUR)
    assert late.rates(KEY, NOW).complaints.rate == 0.002


# -- what is forgotten


def test_an_hour_is_forgotten_after_a_day() -> None:
    reputation = noted(90, 0, 10)
    reputation.note(KEY, 100, 0, 0, 0, NOW + 5 * HOUR)
    assert reputation.rates(KEY, NOW + 23 * HOUR).total == 200
    assert reputation.rates(KEY, NOW + 24 * HOUR).total == 100
    assert reputation.score(KEY, NOW + 24 * HOUR) == 1.0
    reputation.decay(NOW + 28 * HOUR)
    assert len(reputation) == 1
    assert reputation.rates(KEY, NOW + 29 * HOUR).total == 0
    reputation.decay(NOW + 29 * HOUR)
    assert len(reputation) == 0


NOTES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30), st.sampled_from([0, 1, 2])), max_size=60)


@settings(max_examples=200, deadline=None)
@given(NOTES)
def test_it_counts_what_a_list_of_all_counts(steps: list[tuple[int, int, int]]) -> None:
    reputation, every, hour = Reputation(), [], int(NOW // HOUR)
    for pause, count, kind in steps:
        hour += pause
        counts = [0, 0, 0]
        counts[kind] = count
        reputation.note(KEY, *counts, 0, hour * HOUR + 1)
        every.append((hour, kind, count))
        rates = reputation.rates(KEY, hour * HOUR + 2)
        seen: Counter[int] = Counter()
        for when, what, n in every:
            if when > hour - 24:
                seen[what] += n
        assert rates.total == seen.total()
        assert (rates.bounces, rates.deferrals) == (wilson(seen[2], rates.total), wilson(seen[1], rates.total))
        anew = Reputation()
        anew.load(json.loads(json.dumps(reputation.state())), hour * HOUR + 2)
        assert anew.rates(KEY, hour * HOUR + 2) == rates


def test_strangers_names_push_out_only_each_other() -> None:
    reputation = Reputation(keys=100)
    reputation.note(KEY, 1, 0, 0, 0, NOW)
    reputation.note("sender shop.example", 1, 0, 0, 0, NOW)
    for number in range(1000):
        reputation.note(f"destination d{number}.example", 1, 0, 0, 0, NOW)
    assert len(reputation) == 100
    for key in (KEY, "sender shop.example", "destination d999.example"):
        assert reputation.rates(key, NOW).total == 1
    assert reputation.rates("destination d0.example", NOW).total == 0


def test_a_long_name_is_cut() -> None:
    reputation = Reputation()
    reputation.note("sender " + "x" * 100_000, 7, 0, 0, 0, NOW)
    assert reputation.rates("sender " + "x" * 100_000, NOW).total == 7
    assert max(map(len, reputation.state())) == MAX_KEY


def test_a_clock_that_was_ahead_leaves_nothing_behind_after_a_restart() -> None:
    reputation, anew = noted(10), Reputation()
    reputation.note(KEY, 1000, 0, 0, 0, NOW + 10 * 365 * 24 * HOUR)
    anew.load(reputation.state(), NOW)
    anew.note(KEY, 5, 0, 0, 0, NOW)
    assert anew.rates(KEY, NOW).total == 5


def test_the_latest_are_stated() -> None:
    reputation = Reputation()
    for number in range(10):
        reputation.note(f"sender {number}", 1, 0, 0, 0, NOW)
        reputation.note(f"class {number}", 1, 0, 0, 0, NOW)
    reputation.note("sender 0", 1, 0, 0, 0, NOW)
    assert list(reputation.state(4)) == ["sender 9", "sender 0", "class 8", "class 9"]


# -- the tally


def test_a_tally_is_folded_once_into_all_keys() -> None:
    reputation = Reputation()
    tally = Tally(reputation)
    kinds: list[tuple[Kind, int]] = [("delivered", 90), ("deferred", 5), ("bounced", 5), ("complained", 2)]
    for kind, count in kinds:
        for _ in range(count):
            tally.add("mx-1", "google", "shop.example", "marketing", kind)
    tally.add("mx-1", "yahoo", "", "marketing", "delivered")
    assert reputation.rates(KEY, NOW).total == 0
    tally.fold(NOW)
    tally.fold(NOW)
    assert reputation.rates(KEY, NOW) == (101, wilson(5, 101), wilson(2, 101), wilson(5, 101))
    totals = {key: reputation.rates(key, NOW).total for key in reputation.state()}
    assert totals == {
        KEY: 101, "destination google": 100, "destination yahoo": 1, "sender shop.example": 100, "class marketing": 101,
    }  # fmt: skip


def test_a_late_bounce_is_no_second_try() -> None:
    reputation = Reputation()
    tally = Tally(reputation)
    for _ in range(50):
        tally.add("mx-1", "google.com", "shop.example", "marketing", "delivered", "google")
    for kind in ("returned", "complained"):
        tally.add("mx-1", "google.com", "shop.example", "marketing", kind)  # a report does not know the site
    tally.fold(NOW)
    for key in ("egress mx-1", "way mx-1 to google", "site google", "sender shop.example"):
        assert reputation.rates(key, NOW) == (50, wilson(1, 50), wilson(1, 50), wilson(0, 50))
    tally.add("mx-1", "google.com", "shop.example", "marketing", "returned")
    tally.fold(NOW + 5 * HOUR)  # the mail left in an earlier hour
    assert reputation.rates(KEY, NOW + 5 * HOUR) == (50, wilson(2, 50), wilson(1, 50), wilson(0, 50))
    again = Reputation()
    again.load(reputation.state(), NOW + 5 * HOUR)
    assert again.rates(KEY, NOW + 5 * HOUR) == reputation.rates(KEY, NOW + 5 * HOUR)


def test_a_bounce_of_what_is_forgotten_is_a_try() -> None:
    reputation = noted(3)
    reputation.turn(KEY, 2, NOW + 30 * HOUR)
    assert reputation.rates(KEY, NOW + 30 * HOUR) == (2, wilson(2, 2), wilson(0, 2), wilson(0, 2))
    reputation.turn("egress nobody", 1, NOW)
    assert reputation.rates("egress nobody", NOW).total == 1


def test_more_come_back_than_left() -> None:
    reputation = noted(3)
    reputation.turn(KEY, 5, NOW)
    assert reputation.rates(KEY, NOW) == (5, wilson(5, 5), wilson(0, 5), wilson(0, 5))
    assert reputation.state()[KEY] == [[int(NOW // HOUR), 0, 0, 5, 0]]


# -- a route that asks for it


@pytest.mark.parametrize(
    ("bound", "score", "answer"),
    [
        (("<", 0.7), 0.69, True),
        (("<", 0.7), 0.7, False),
        (("<=", 0.5), 0.5, True),
        (("<=", 0.5), 0.51, False),
        ((">=", 0.9), 0.9, True),
        ((">=", 0.9), 0.89, False),
        ((">", 0.9), 1.0, True),
        (("<", 0.7), None, None),
    ],
)
def test_a_question_for_the_reputation(bound: tuple[str, float], score: float | None, answer: bool | None) -> None:
    question = Question("reputation", (f"{bound[0]} {bound[1]}",), (bound,))
    assert question.ask(Facts("a@x.example", "b@y.example", reputation=score)) is answer


def test_a_lane_remembers_the_answer() -> None:
    poor = Question("reputation", ("< 0.7",), (("<", 0.7),))
    table = Table((Route("poor", Action.VIA, Match((poor,)), ("slow",)), Route("all", Action.VIA, via=("main",))))
    assert table.pick_for(Facts("a@x.example", "b@y.example")) is UNDECIDED
    for score, name in ((0.3, "poor"), (0.99, "all")):
        facts = Facts("a@x.example", "b@y.example", class_="default", reputation=score)
        stored = LaneFacts.parse(lane_facts(table, facts, lambda q, facts=facts: q.ask(facts)))  # type: ignore[misc]
        route = stored.route_in(table)
        assert isinstance(route, Route)
        assert route.name == name
    good = facts
    assert table.routes[0].match.first_no(good) == "reputation: < 0.7"
