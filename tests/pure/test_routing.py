"""Which way out: first match, three-valued early decisions, what a lane remembers; and which class."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.policy.classes import DEFAULT_CLASS, TrafficClass, choose_class
from relay.policy.lanefacts import LaneFacts, lane_facts
from relay.policy.routing import CAPTURED, OVERRIDE, UNDECIDED, Action, Facts, Match, Question, Route, Table, glob


def q(fact: str, *patterns: str, bounds: tuple[tuple[str, float], ...] = ()) -> Question:
    return Question(fact, patterns, bounds)


def facts(sender: str = "a@corp.example", recipient: str = "b@x.example", **more: object) -> Facts:
    whole: dict[str, object] = {"from_": sender, "class_": "default", "tag": "", "size": 100, "headers": {}}
    return Facts(sender, recipient, **(whole | more))  # type: ignore[arg-type]


ANY = Match()


def via(name: str, match: Match = ANY, *egresses: str) -> Route:
    return Route(name, Action.VIA, match, egresses or (name,))


@pytest.mark.parametrize(
    ("pattern", "text", "holds"),
    [
        ("*@corp.example", "A@CORP.example", True),
        ("*@corp.example", "a@corp.example.org", False),
        ("a?@x", "ab@x", True),
        ("a[bc]@x", "ab@x", False),
        ("a@[192.0.2.1]", "a@[192.0.2.1]", True),
        ("*", "", True),
        ("a.c", "abc", False),
        ("a\nb", "a\nb", True),
        ("straße*", "STRAßE 1", True),
        ("strasse@*", "straße@x.example", False),
    ],
)
def test_globs(pattern: str, text: str, holds: bool) -> None:
    assert glob(pattern)(text) is holds


@pytest.mark.parametrize(
    ("question", "known", "answer"),
    [
        (q("sender", "a@*", "z@*"), facts(), True),
        (q("sender", "z@*"), facts(), False),
        (q("from", "*"), facts(from_=None), None),
        (q("recipient", "*@X.example"), facts(), True),
        (q("tag", "order-*"), facts(tag="order-7"), True),
        (q("tag", "order-*"), facts(tag=None), None),
        (q("listener", "local"), facts(listener="local"), True),
        (q("header", "Precedence: bulk"), facts(headers={"precedence": ("list", "BULK")}), True),
        (q("header", "Precedence: bulk"), facts(headers={}), False),
        (q("header", "Precedence: bulk"), facts(headers=None), None),
        (q("header", "X-A: *"), facts(headers={"x-a": ("",)}), True),
        (q("client", "10.0.0.0/8", "::1/128"), facts(client="10.1.2.3"), True),
        (q("client", "10.0.0.0/8"), facts(client="::ffff:10.1.2.3"), True),
        (q("client", "10.0.0.0/8"), facts(client="192.0.2.1"), False),
        (q("client", "::/0"), facts(client=""), False),
        (q("size", ">10", bounds=((">", 10),)), facts(size=10), False),
        (q("size", ">=10", bounds=((">=", 10),)), facts(size=10), True),
        (q("size", "<5", ">9", bounds=(("<", 5), (">", 9))), facts(size=10), True),
        (q("size", ">10", bounds=((">", 10),)), facts(size=None), None),
    ],
)
def test_questions(question: Question, known: Facts, answer: bool | None) -> None:
    assert question.ask(known) is answer


YES, NO, UNKNOWN = q("sender", "a@*"), q("sender", "z@*"), q("tag", "*")
ANSWERS: Mapping[str, bool | None] = {YES.key: True, NO.key: False, UNKNOWN.key: None}


@pytest.mark.parametrize("wanted", list(itertools.product([YES, NO, UNKNOWN], repeat=2)))
@pytest.mark.parametrize("unwanted", [(), (YES,), (NO,), (UNKNOWN,), (NO, UNKNOWN)])
def test_a_match_is_three_valued(wanted: tuple[Question, ...], unwanted: tuple[Question, ...]) -> None:
    def told(question: Question) -> bool | None:
        return ANSWERS[question.key]

    found = Match(wanted, unwanted).test(told)
    parts = [told(x) for x in wanted] + [None if told(x) is None else not told(x) for x in unwanted]
    assert found is (False if False in parts else None if None in parts else True)


def test_the_first_match_wins_and_nothing_is_nothing() -> None:
    table = Table((via("a", Match((q("sender", "z@*"),))), via("b", Match((q("sender", "a@*"),))), via("c")))
    assert table.pick_for(facts()) is table.by_name["b"]
    assert table.pick_for(facts("x@y")) is table.by_name["c"]
    assert Table(table.routes[:2]).pick_for(facts("x@y")) is None


def test_what_is_decided_before_the_content_is_known() -> None:
    early = facts(from_=None, class_=None, tag=None, size=None, headers=None)
    by_sender, by_header = Match((q("sender", "a@*"),)), Match((q("header", "X: *"),))
    both = Match((q("header", "X: *"), q("recipient", "*@no.example")))
    assert Table((via("s", by_sender), via("h", by_header))).pick_for(early).name == "s"  # type: ignore[union-attr]
    assert Table((via("h", by_header), via("s", by_sender))).pick_for(early) is UNDECIDED
    assert Table((via("n", both), via("s", by_sender))).pick_for(early).name == "s"  # type: ignore[union-attr]


EARLY_QUESTIONS = st.sampled_from(
    [
        q("sender", "a@*"),
        q("recipient", "b@*"),
        q("recipient", "z@*"),
        q("from", "a@*"),
        q("tag", "t"),
        q("class", "bulk"),
    ]
)
MATCHES = st.builds(
    Match, st.lists(EARLY_QUESTIONS, max_size=3).map(tuple), st.lists(EARLY_QUESTIONS, max_size=2).map(tuple)
)
TABLES = st.lists(MATCHES, max_size=5).map(lambda ms: Table(tuple(via(f"r{i}", m) for i, m in enumerate(ms))))


@given(TABLES, st.sampled_from(["a@x", "o@x"]), st.sampled_from(["", "t"]), st.sampled_from(["default", "bulk"]))
def test_an_early_decision_is_never_taken_back(table: Table, from_: str, tag: str, class_: str) -> None:
    early = table.pick_for(facts(from_=None, class_=None, tag=None, size=None, headers=None))
    late = table.pick_for(facts(from_=from_, tag=tag, class_=class_))
    assert late is not UNDECIDED
    if early is not UNDECIDED:
        assert early is late


@given(TABLES, st.sampled_from(["a@x", "o@x"]), st.sampled_from(["", "t"]), st.sampled_from(["default", "bulk"]))
def test_a_lane_is_routed_as_its_recipients_were(table: Table, from_: str, tag: str, class_: str) -> None:
    known = facts(from_=from_, tag=tag, class_=class_)
    text = lane_facts(table, known, lambda x: x.ask(known))
    lane = LaneFacts.parse(text)
    assert lane.covers(table.questions)
    assert lane.route_in(table) == table.pick_for(known)
    assert lane.with_overrides({}) == text


def test_a_question_that_was_never_asked_leaves_it_undecided() -> None:
    known = facts()
    lane = LaneFacts.parse(lane_facts(Table((via("a"),)), known, lambda x: x.ask(known)))
    new = Table((via("n", Match((q("header", "X: *"),))), via("a")))
    assert not lane.covers(new.questions)
    assert lane.route_in(new) is UNDECIDED
    assert lane.route_in(Table((via("b", Match((q("class", "default"),))),))).name == "b"  # type: ignore[union-attr]


def test_overrides() -> None:
    known = facts()
    held = Route("held", Action.HOLD, Match((q("sender", "a@*"),)))
    table = Table((held, via("rest"), via("other")), ways=frozenset({"up"}))
    lane = LaneFacts.parse(lane_facts(table, known, lambda x: x.ask(known)))

    def routed(**override: str | bool) -> object:
        return LaneFacts.parse(lane.with_overrides(override)).route_in(table)

    assert routed() is table.by_name["held"]
    assert routed(released=True) is table.by_name["rest"]
    assert routed(route="other") is table.by_name["other"]
    assert routed(route="gone") is table.by_name["held"]
    assert routed(via="up") == Route(OVERRIDE, Action.VIA, via=("up",))
    assert routed(via="gone") is table.by_name["held"]  # the account went with a reload
    again = LaneFacts.parse(lane.with_overrides({"via": "up", "released": True}))
    assert again.overrides == {"via": "up", "released": True}
    assert LaneFacts.parse(again.with_overrides({"via": ""})).overrides == {"released": True}


def test_capture_is_overridden_by_nothing() -> None:
    table = Table((via("a"),), capture=q("recipient", "*@example.com"))
    assert table.pick_for(facts(recipient="x@example.com")) is table.by_name["a"]
    known = facts(recipient="x@real.example")
    assert table.pick_for(known) is CAPTURED
    lane = LaneFacts.parse(lane_facts(table, known, lambda x: x.ask(known), {"route": "a"}))
    for override in ({"via": "up"}, {"route": "a"}, {"released": True}):
        assert LaneFacts.parse(lane.with_overrides(override)).route_in(table) is CAPTURED


def test_whom_an_account_may_send_as() -> None:
    table = Table((via("r", Match(), "m365", "ses"),), senders={"m365": q("sender", "*@corp.example")})
    route = table.routes[0]
    assert table.egresses(route, lambda x: x.ask(facts())) == ("m365", "ses")
    assert table.egresses(route, lambda x: x.ask(facts("a@else.example"))) == ("ses",)
    assert table.questions == (q("sender", "*@corp.example"),)


def test_why_a_rule_did_not_match() -> None:
    match = Match((q("sender", "a@*"), q("tag", "x", "y")), (q("recipient", "b@*"),))
    assert match.first_no(facts("o@x")) == "sender: a@*"
    assert match.first_no(facts()) == "tag: x, y"
    assert match.first_no(facts(tag="x")) == "not recipient: b@*"
    assert match.first_no(facts(tag="x", recipient="c@d")) == ""


def test_classes() -> None:
    bulk = TrafficClass("bulk", Match((q("header", "Precedence: bulk"),)))
    second = TrafficClass("second", Match((q("sender", "a@*"),)))
    plain = TrafficClass("plain")
    classes = {c.name: c for c in (plain, bulk, second)}
    assert choose_class(classes, "plain", facts(headers={"precedence": ("bulk",)})) is plain
    assert choose_class(classes, "", facts(headers={"precedence": ("bulk",)})) is bulk
    assert choose_class(classes, "nonsense", facts()) is second
    assert choose_class(classes, "", facts("o@x")) is DEFAULT_CLASS
    own = TrafficClass("default")
    assert choose_class(classes | {"default": own}, "", facts("o@x")) is own
