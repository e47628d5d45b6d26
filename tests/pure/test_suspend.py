"""Suspensions: what they stop, for how long, in which words, and that they outlive a restart as they are."""

from __future__ import annotations

import json
import math
from datetime import datetime

import pytest

from relay.policy.lanefacts import LaneFacts, lane_facts
from relay.policy.routing import Action, Answers, Facts, Route, Table
from relay.policy.suspend import KINDS, MOST, Suspension, Suspensions

NOW = 1_800_000_000.0


def made(kind: str, value: str, until: float | None = None, reason: str = "") -> Suspension:
    return Suspension.of(kind, value, until, reason, NOW)


def lane(suspensions: Suspensions, recipient: str = "you@example.net", **facts: str) -> LaneFacts:
    """As intake writes it under a table that has their questions too."""
    table = Table((Route("all", Action.VIA, via=("main",)),), asked=suspensions.questions())
    given = Facts(facts.pop("sender", "app@example.com"), recipient, **facts)  # type: ignore[arg-type]
    return LaneFacts.parse(lane_facts(table, given, Answers(given)))


# -- what it stops


@pytest.mark.parametrize(
    ("kind", "pattern", "stopped", "free"),
    [
        ("egress", "main", "MAIN", "main-2"),
        ("egress", "mx-*", "mx-1 to google", "main"),
        ("egress", "mx-1", "mx-1 to google", "mx-10 to google"),
        ("egress", "mx-1 to google", "mx-1 to google", "mx-1 to example.net"),
        ("class", "market*", "Marketing", "transactional"),
        ("user", "shop", "shop", "shop2"),
        ("destination", "*.example", "a.example", "example"),
        ("destination", "bücher.example", "xn--bcher-kva.example", "buecher.example"),
        ("lane", "17", "17", "170"),
    ],
)
def test_a_value_is_stopped_by_its_kind_and_pattern(kind: str, pattern: str, stopped: str, free: str) -> None:
    found = Suspensions([made(kind, pattern)])
    assert found.blocks(kind, stopped, NOW) is not None
    assert found.blocks(kind, free, NOW) is None
    assert all(found.blocks(other, stopped, NOW) is None for other in KINDS if other != kind)


@pytest.mark.parametrize(
    ("kind", "pattern", "stopped", "free"),
    [
        ("tag", "order-*", {"tag": "order-7"}, {"tag": "letter"}),
        ("tag", "order-*", {"tag": "ORDER-7"}, {"tag": ""}),
        ("sender", "*@news.example", {"sender": "a@News.example"}, {"sender": "a@example.com"}),
        ("sender", "", {"sender": ""}, {"sender": "a@example.com"}),
        ("class", "bulk", {"class_": "bulk"}, {"class_": "default"}),
        ("user", "shop", {"user": "shop"}, {}),
        ("user", "*", {"user": "shop"}, {}),  # who did not log in is no user
        ("destination", "example.net", {}, {"recipient": "you@sub.example.net"}),
    ],
)
def test_a_lane_is_stopped_by_what_it_answers(
    kind: str, pattern: str, stopped: dict[str, str], free: dict[str, str]
) -> None:
    found = Suspensions([made(kind, pattern)])
    assert found.lane(lane(found, **stopped), 5, NOW) is not None
    assert found.lane(lane(found, **free), 5, NOW) is None


def test_a_lane_is_stopped_by_its_number_and_by_where_it_goes() -> None:
    numbered, placed = Suspensions([made("lane", "5")]), Suspensions([made("destination", "google")])
    facts = LaneFacts("default", destination="example.net")
    assert numbered.lane(facts, 5, NOW) and not numbered.lane(facts, 6, NOW)
    assert placed.lane(facts, 5, NOW, ("google",)) and not placed.lane(facts, 5, NOW, ("outlook",))


def test_lanes_that_lack_the_answers_are_those_to_route_anew() -> None:
    found = Suspensions(
        [made("tag", "order-*"), made("sender", "a@b.example"), made("class", "bulk"), made("egress", "m")]
    )
    assert {q.fact for q in found.questions()} == {"tag", "sender"}
    before = lane(Suspensions())
    assert not before.covers(found.questions())
    assert found.lane(before, 5, NOW) is None  # nobody knows yet
    assert lane(found).covers(found.questions())


def test_the_one_that_lasts_longest_is_told() -> None:
    found = Suspensions([made("class", "b*", NOW + 60, "short"), made("class", "bulk", NOW + 600, "long")])
    blocked = found.blocks("class", "bulk", NOW)
    assert blocked is not None and blocked[0] == 600 and "long" in blocked[1]
    found.add(made("class", "*"))
    blocked = found.blocks("class", "bulk", NOW)
    assert blocked is not None and blocked[0] == math.inf


# -- its end


def test_its_time_ends_it_to_the_moment() -> None:
    found = Suspensions([made("class", "bulk", NOW + 60), made("class", "other")])
    assert found.blocks("class", "bulk", NOW + 59.5) is not None
    assert found.blocks("class", "bulk", NOW + 60) is None
    assert found.over(NOW + 59.5) == []
    assert [s.value for s in found.over(NOW + 60)] == ["bulk"]
    assert found.next_end() == NOW + 60
    assert found.remove("class", "BULK") and not found.remove("class", "bulk")
    assert found.next_end() == math.inf
    assert found.blocks("class", "bulk", NOW) is None


def test_said_again_it_takes_the_place_of_the_first() -> None:
    found = Suspensions([made("class", "Bulk", NOW + 60, "one"), made("class", "bulk", None, "two")])
    assert [(s.value, s.until, s.reason) for s in found.all()] == [("bulk", None, "two")]


# -- its words


def test_why() -> None:
    soon = datetime.fromtimestamp(NOW + 7200).astimezone().strftime("%H:%M")
    late = datetime.fromtimestamp(NOW + 3 * 86400).astimezone().strftime("%Y-%m-%d %H:%M")
    assert made("class", "marketing", NOW + 7200, "legal\nasks").why == (
        f"suspended until {soon} by hand: legal asks, `relay resume --class marketing`"
    )
    assert made("tag", "order-*", NOW + 3 * 86400).why == (
        f"suspended until {late} by hand, `relay resume --tag 'order-*'`"
    )
    assert made("sender", "").why == "suspended by hand, `relay resume --sender ''`"


@pytest.mark.parametrize(
    ("kind", "value", "until", "said"),
    [
        ("colour", "red", None, "unknown selector 'colour'; there are egress, destination, class"),
        ("class", "", None, "class wants a name or a pattern"),
        ("class", "a\nb", None, "printable text of at most 320"),
        ("tag", "x" * 321, None, "printable text of at most 320"),
        ("lane", "marketing/shop", None, "lane wants a number"),
        ("lane", "²", None, "lane wants a number"),
        ("class", "bulk", NOW, "at most ten years"),
        ("class", "bulk", math.nan, "at most ten years"),
        ("class", "bulk", math.inf, "at most ten years"),
    ],
)
def test_a_mistake_is_told(kind: str, value: str, until: float | None, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        made(kind, value, until)
    assert said in str(caught.value)


def test_there_is_a_most() -> None:
    found = Suspensions(made("tag", f"t{n}") for n in range(MOST))
    with pytest.raises(ValueError, match="200 suspensions are in force"):
        found.add(made("tag", "one more"))
    found.add(made("tag", "t0", NOW + 5))  # in place of one that is there
    assert len(found) == MOST


# -- over a restart


def test_what_is_written_is_read_back() -> None:
    found = Suspensions([made("class", "bulk", NOW + 60, 'so "he" said'), made("sender", ""), made("tag", "Grüße-*")])
    again = Suspensions.load(found.state())
    assert again.all() == found.all()
    assert again.blocks("class", "bulk", NOW) == found.blocks("class", "bulk", NOW)
    assert not Suspensions.load(Suspensions().state())


@pytest.mark.parametrize("text", ["", "{", "5", '["x"]', '[{"kind": "class"}]'])
def test_what_is_no_list_of_them_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Suspensions.load(text)


def test_a_kind_of_a_later_version_is_left_out() -> None:
    rows = json.loads(Suspensions([made("class", "bulk"), made("tag", "t")]).state())
    rows[0]["kind"] = "weather"
    assert [s.kind for s in Suspensions.load(json.dumps(rows)).all()] == ["tag"]
