"""Rules of shaping: which fit, what is in force and until when, what is remembered; the throttle."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from conftest import NOW
from hypothesis import example, given
from hypothesis import strategies as st

from relay.policy import shaping
from relay.policy.held import FREE
from relay.policy.pace import Pace
from relay.policy.shaping import Shaped, ShapingRule, fitting, key_of
from relay.policy.throttle import Throttle
from relay.reply import Stage


def rule(name: str = "r", reply: str = "^421 4.7.28", **more: object) -> ShapingRule:
    return replace(ShapingRule(name, re.compile(reply, re.IGNORECASE), slow=0.5, origin="relay.yaml:9"), **more)  # type: ignore[arg-type]


LINE = "421 4.7.28 unusual rate of mail"


def fits(one: ShapingRule, line: str = LINE, **asked: object) -> bool:
    facts: dict[str, object] = {
        "egress": "mx-1", "destinations": {"gmail.com"}, "sites": ("google",), "class_": "bulk", "stage": Stage.DOT,
    }  # fmt: skip
    return bool(fitting([one], line=line, **(facts | asked)))  # type: ignore[arg-type]


def test_all_that_is_given_must_fit() -> None:
    assert fits(rule())
    assert not fits(rule(reply="^451"))
    assert fits(rule(egress=("mx-*",))) and not fits(rule(egress=("ses",)))
    assert fits(rule(destination=("google",))) and fits(rule(destination=("GMAIL.*",)))
    assert not fits(rule(destination=("yahoo",)))
    assert fits(rule(class_=("bulk",))) and not fits(rule(class_=("default",)))
    assert fits(rule(at=frozenset({Stage.DOT}))) and not fits(rule(at=frozenset({Stage.RCPT})))


def test_a_word_about_a_message_to_several_domains_is_said_of_a_destination_only_where_all_fit() -> None:
    at_gmail = rule(destination=("gmail.com", "*.google"))
    assert fits(at_gmail, destinations={"gmail.com", "a.google"}, sites=())
    assert not fits(at_gmail, destinations={"gmail.com", "example.net"}, sites=())
    assert not fits(at_gmail, destinations=set(), sites=())


def test_nobody_elses_words_make_an_egress_suffer() -> None:
    quoted = "450 4.1.1 <a@b.example>: rejected: host mx.b.example[192.0.2.1] said: 421 4.7.28 unusual rate"
    named = "550 5.1.1 <unusual-rate@b.example>: no such user"
    assert not fits(rule(reply="unusual rate"), quoted) and not fits(rule(reply="unusual-rate"), named)
    alone = ShapingRule("s", re.compile("unusual.rate"), suppress=True)
    assert fits(alone, quoted) and fits(alone, named)
    assert not fits(replace(alone, drop=True), quoted)


def test_every_rule_that_fits_acts() -> None:
    both = [rule("a"), rule("b", slow=None, alarm=True), rule("c", reply="^550")]
    assert [r.name for r in fitting(both, "mx-1", {"x"}, (), "default", Stage.DOT, LINE)] == ["a", "b"]


# -- in force


def test_a_rule_that_fires_again_lasts_longer_and_goes_no_deeper() -> None:
    shaped = Shaped()
    first = shaped.apply(rule(), "mx-1 to google", "", LINE, NOW, measured=10.0)
    assert first is not None and first.why == f"{LINE} (r (relay.yaml:9))"
    assert shaped.slow("mx-1 to google", NOW) == 0.5 and shaped.rate("mx-1 to google", NOW)[0] == 5.0  # type: ignore[index]
    assert shaped.apply(rule(), "mx-1 to google", "", LINE, NOW + 600, measured=5.0) is None
    assert shaped.rate("mx-1 to google", NOW + 601) == (5.0, NOW + 2400, first.why)
    assert shaped.slow("mx-1 to google", NOW + 2401) == 1.0 and shaped.slow("mx-1 to yahoo", NOW) == 1.0
    again = shaped.apply(rule(), "mx-1 to google", "", LINE, NOW + 2401, measured=5.0)
    assert again is not None and again.rate == 2.5, "its time was over: it is news"


def test_of_two_rules_the_stricter_binds() -> None:
    shaped = Shaped()
    shaped.apply(rule("a", slow=0.5, connections=0.5), "e", "", LINE, NOW, 10.0)
    shaped.apply(rule("b", slow=0.25, connections=2.0, seconds=60.0), "e", "", LINE, NOW, 10.0)
    assert shaped.slow("e", NOW) == 0.25 and shaped.sessions("e", 10, NOW)[0] == 2
    assert shaped.slow("e", NOW + 61) == 0.5 and shaped.sessions("e", 10, NOW + 61)[0] == 5
    assert shaped.sessions("e", 1, NOW + 61)[0] == 1, "one session is left of however few"
    assert shaped.sessions("other", 10, NOW) == (10, 0.0, "")


def test_a_pause_of_one_domain_is_none_of_another() -> None:
    shaped = Shaped()
    shaped.apply(rule(slow=None, pause=True), "ses", "gmail.com", LINE, NOW)
    assert shaped.paused("ses", "gmail.com", NOW)[0] == NOW + 1800 and shaped.paused("ses", "x.example", NOW)[0] == 0
    shaped.apply(rule("n", slow=None, next=True), "ses", "", LINE, NOW)
    assert shaped.next("ses", "x.example", NOW)[0] == NOW + 1800 and shaped.paused("ses", "", NOW)[0] == 0


def test_what_is_done_at_once_leaves_nothing_in_force() -> None:
    shaped = Shaped()
    assert shaped.apply(rule(slow=None, drop=True, suppress=True), "e", "", LINE, NOW) is None and not len(shaped)


def test_strangers_make_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shaping, "MOST", 10)
    shaped = Shaped()
    for i in range(25):
        shaped.apply(rule(), f"mx-1 to d{i}.example", "", LINE, NOW + i)
    assert len(shaped) == len(shaped.all()) == 10
    assert shaped.slow("mx-1 to d24.example", NOW + 25) == 0.5 and shaped.slow("mx-1 to d0.example", NOW + 25) == 1.0


def test_what_is_over_is_forgotten_and_told() -> None:
    shaped = Shaped()
    shaped.apply(rule(), "a", "", LINE, NOW)
    shaped.apply(rule(seconds=60.0), "b", "", LINE, NOW)
    assert [row["egress"] for row in shaped.rows(NOW)] == ["b", "a"] and shaped.rows(NOW)[0]["what"] == "slow to 50%"
    assert [gone.egress for gone in shaped.over(NOW + 60)] == ["b"] and len(shaped) == 1


def test_it_survives_a_restart_and_a_rule_that_is_gone_ends() -> None:
    shaped, after = Shaped(), Shaped()
    shaped.apply(rule(), "a", "gmail.com", LINE, NOW, 3.0)
    shaped.apply(rule("x", alarm=True), "b", "", LINE, NOW)
    after.load(shaped.state())
    assert after.rows(NOW) == shaped.rows(NOW) and after.state() == shaped.state()
    moved = [rule(origin="relay.yaml:77")]  # the same on another line
    assert [gone.egress for gone in after.keep(lambda egress: moved)] == ["b"]
    assert [f.egress for f in after.all()] == ["a"]
    after.keep(lambda egress: [rule(slow=0.4)])
    assert not len(after), "a rule that says something else is another one"
    for bad in ("{", "[1]", '[{"a": 1}]', "3"):
        with pytest.raises(ValueError, match=r"."):
            after.load(bad)


def test_a_rule_is_known_by_what_it_says() -> None:
    assert key_of(rule()) == key_of(rule(origin="elsewhere")) != key_of(rule(seconds=1.0))
    assert key_of(rule(at=frozenset({Stage.RCPT, Stage.DOT}))) == key_of(rule(at=frozenset({Stage.DOT, Stage.RCPT})))


# -- the throttle


def test_a_share_of_what_it_took_in_the_last_minute_at_even_distances() -> None:
    throttle = Throttle()
    for i in range(120):
        throttle.taken(NOW + i)
    now = NOW + 119
    assert 0.9 <= throttle.measured(now) <= 1.05
    throttle.slow(0.5, now + 60, "busy", now)
    sent = []
    for tick in range(6000):
        at = now + tick / 100
        if throttle.wait(at)[0] <= 0:
            throttle.take(at)
            sent.append(at)
    assert 29 <= len(sent) <= 31 and all(1.9 < b - a < 2.1 for a, b in pairwise(sent))
    assert throttle.wait(now + 61) == (0.0, "") and throttle.room(now + 61) is None
    assert throttle.wait(sent[-1] + 0.1)[1] == "it is slowed to 30.0/min: busy"


def test_it_is_never_slower_than_one_a_minute_and_never_waits_beyond_its_end() -> None:
    throttle = Throttle()
    throttle.slow(0.0, NOW + 1800, "busy", NOW)
    assert throttle.wait(NOW)[0] == pytest.approx(60)
    throttle.take(NOW + 60)
    assert throttle.wait(NOW + 60)[0] == pytest.approx(60)
    throttle.slow(0.0, NOW + 70, "busy", NOW + 60)
    assert throttle.wait(NOW + 60)[0] == pytest.approx(10)


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans()), max_size=200), st.floats(0.02, 50))
@example([(0.02, False)] * 200, 50.0)
def test_no_span_has_more_than_its_rate(steps: list[tuple[float, bool]], rate: float) -> None:
    throttle, now, sent = Throttle(), NOW, []
    throttle.slow(rate, NOW + 10_000, "", NOW)
    for gap, again in steps:
        now += gap
        if again:
            throttle.slow(rate, NOW + 10_000, "", now)
        if throttle.wait(now)[0] <= 0:
            throttle.take(now)
            sent.append(now)
    for i, first in enumerate(sent):
        for j in range(i + 1, len(sent)):
            exact = sent[j] - first + (j - i) * math.ulp(NOW)  # each may be early by what a time of today is rounded to
            assert j - i <= exact * rate + 1e-6


def test_a_clock_that_is_set_back_does_no_harm() -> None:
    throttle = Throttle()
    for at in (NOW, NOW - 3600, NOW + 1):
        throttle.taken(at)
    assert throttle.measured(NOW + 1) == pytest.approx(3 / 60)


def test_a_pace_that_is_slowed_binds_and_is_kept_over_a_reload() -> None:
    pace = Pace()
    assert pace.free
    pace.throttle.slow(1.0, NOW + 60, "busy", NOW)
    assert not pace.free and pace.room(NOW) == 0 and pace.wait(NOW)[0] == pytest.approx(1.0) and not pace.unspent(NOW)
    after = Pace()
    after.keep(pace)
    after.take(NOW + 1, 1)
    assert pace.wait(NOW + 1)[0] == pytest.approx(1.0), "who is still at work by the old one counts"
    assert after.wait(NOW + 60) == FREE and after.unspent(NOW + 60)
    after.throttle.taken(NOW + 61)
    assert after.free
