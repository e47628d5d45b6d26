"""What an attempt comes to: each result under each rule of its class, and the edge of its time."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.policy.backoff import Retry
from relay.policy.classes import InDoubt, TrafficClass
from relay.recipient import News, State
from relay.reply import Reply, Result, Stage
from relay.settle import Outcome, settle
from relay.spool import Change, Claim, Claimed, Event, Notify, Settlement, Tell

NOW = 1_000_000.0
CLASS = TrafficClass("default", retry=Retry(first=60, factor=2, cap=3600))
OK = Reply(250, "Ok: queued as ABC123", "2.0.0")
LATER = Reply(451, "later", "4.3.0")


def recipient(n: int = 0, attempts: int = 0, expires: float = NOW + 1000, *, doubt: bool = False) -> Claimed:
    return Claimed(n, f"r{n}@example.net", State.QUEUED, attempts, expires, 7, doubt)


def settled(
    outcome: Outcome, r: Claimed | None = None, class_: TrafficClass = CLASS, chance: float = 0.5
) -> tuple[Change, list[Event], dict[str, object]]:
    r = r or recipient()
    claim = Claim(42, "app@example.com", class_.name, "", "", NOW - 5, 100, 0, b"", 0, [r])
    found = settle(claim, [(r, outcome)], class_, NOW, chance)
    (change,) = found.changes
    assert (change.message, change.n, change.lane) == (42, r.n, 7)
    return change, found.events, json.loads(change.note)


def outcome(result: Result, reply: Reply = LATER, stage: Stage = Stage.DOT, **more: object) -> Outcome:
    return Outcome(result, "ses", stage, reply, **more)  # type: ignore[arg-type]


def test_delivered() -> None:
    change, (event,), note = settled(outcome(Result.DELIVERED, OK, seconds=0.12345))
    assert (change.state, change.attempts, change.egress, change.in_doubt) == (State.DELIVERED, 1, "ses", False)
    assert note == {"last_reply": "250 2.0.0 Ok: queued as ABC123", "remote_id": "ABC123", "settled_at": NOW}
    assert (event.kind, event.code, event.egress) == ("delivered", 250, "ses")
    assert (event.data["seconds"], event.data["attempt"], event.data["stage"]) == (0.123, 1, "dot")


def test_rejected() -> None:
    change, (event,), note = settled(outcome(Result.HARD, Reply(550, "no such user", "5.1.1"), Stage.RCPT))
    assert (change.state, event.kind, event.code) == (State.FAILED, "failed", 550)
    assert note["why"] == "rejected: ses: 550 5.1.1 no such user"
    assert note["settled_at"] == NOW


def test_deferred() -> None:
    change, (event,), note = settled(outcome(Result.SOFT), recipient(attempts=2))
    assert (change.state, change.attempts, change.due_at) == (State.DEFERRED, 3, NOW + 120)
    assert (event.kind, event.data["due_at"]) == ("deferred", NOW + 120)
    assert note == {"last_reply": "451 4.3.0 later", "why": "ses: 451 4.3.0 later"}


def test_what_goes_back_unsaid_keeps_its_place() -> None:
    """At the end of its lane it would wait for all that came after it; what was due later than now was due now."""
    for due_at, place in ((NOW - 30, NOW - 30), (NOW + 5, NOW), (0.0, NOW)):
        r = recipient()
        r.due_at = due_at
        assert settled(outcome(Result.RETURNED), r)[0].due_at == place


@pytest.mark.parametrize("result", [Result.RETURNED, Result.HELD])
def test_what_was_never_tried_counts_no_attempt(result: Result) -> None:
    change, events, note = settled(outcome(result, Reply(0, "stopping")), recipient(attempts=4, doubt=True))
    assert (change.attempts, change.in_doubt, change.egress) == (4, True, "")
    assert change.state is (State.QUEUED if result is Result.RETURNED else State.HELD)
    assert [e.kind for e in events] == ([] if result is Result.RETURNED else ["held"])
    assert note["why"] == "stopping"


@pytest.mark.parametrize(
    ("rule", "state"), [(InDoubt.RETRY, State.DEFERRED), (InDoubt.HOLD, State.HELD), (InDoubt.FAIL, State.FAILED)]
)
def test_in_doubt_by_the_rule_of_the_class(rule: InDoubt, state: State) -> None:
    class_ = TrafficClass("x", in_doubt=rule)
    change, (event,), note = settled(outcome(Result.DOUBT, Reply(0, "connection lost")), class_=class_)
    assert (change.state, change.in_doubt, change.attempts) == (state, True, 1)
    assert event.kind == "in_doubt"
    assert "connection lost" in str(note["why"])
    assert ("settled_at" in note) is (state is State.FAILED)


def test_a_doubt_stays_with_what_comes_after_it() -> None:
    for result in (Result.DELIVERED, Result.HARD, Result.SOFT):
        assert settled(outcome(result), recipient(doubt=True))[0].in_doubt


@pytest.mark.parametrize("result", [Result.SOFT, Result.DOUBT])
@pytest.mark.parametrize(("left", "over"), [(0.001, False), (0.0, True), (-5.0, True)])
def test_the_edge_of_its_time(result: Result, left: float, over: bool) -> None:
    change, events, note = settled(outcome(result), recipient(expires=NOW + left))
    if over:
        assert (change.state, events[-1].kind) == (State.FAILED, "expired")
        assert note["settled_at"] == NOW
    else:
        assert change.state is State.DEFERRED
        assert NOW < change.due_at <= NOW + 1.0  # the last try falls on the end of its time


def test_success_and_rejection_do_not_ask_for_the_time() -> None:
    late = recipient(expires=NOW - 100)
    assert settled(outcome(Result.DELIVERED, OK), late)[0].state is State.DELIVERED
    assert settled(outcome(Result.HARD), late)[1][0].kind == "failed"


def test_attempts_that_are_used_up() -> None:
    class_ = TrafficClass("x", retry=Retry(schedule=(10.0,), attempts=3))
    assert settled(outcome(Result.SOFT), recipient(attempts=1), class_)[0].state is State.DEFERRED
    change, (event,), note = settled(outcome(Result.SOFT), recipient(attempts=2), class_)
    assert (change.state, event.kind) == (State.FAILED, "expired")
    assert str(note["why"]).startswith("expired after 3 attempts; the last one: ses: 451")


def test_trouble_of_our_own_three_times_in_a_row_holds_it() -> None:
    trouble = outcome(Result.SOFT, Reply(0, "internal trouble: KeyError"), crashed=True)
    for before in (0, 1):
        r = recipient()
        r.crashes = before
        change, (event,), _ = settled(trouble, r)
        assert (change.state, change.crashes, event.kind) == (State.DEFERRED, before + 1, "deferred")
    r.crashes = 2
    change, (event,), note = settled(trouble, r)
    assert (change.state, change.crashes, event.kind) == (State.HELD, 3, "held")
    assert "internal trouble: KeyError" in str(note["why"])
    assert "relay queue release" in str(note["why"])


def test_any_ordinary_end_counts_anew_and_being_given_back_does_not() -> None:
    r = recipient()
    r.crashes = 2
    for result in Result:
        assert settled(outcome(result), r)[0].crashes == (2 if result in (Result.RETURNED, Result.LATER) else 0)
    r.expires_at = NOW
    assert settled(outcome(Result.SOFT, crashed=True), r)[0].state is State.FAILED  # its time is over all the same


def test_what_was_tried_before_is_told() -> None:
    _, events, _ = settled(outcome(Result.DELIVERED, OK, tried=(("a", "421 busy"), ("b", "refused"))))
    assert [(e.kind, e.egress, e.data.get("why")) for e in events] == [
        ("failed_over", "a", "421 busy"),
        ("failed_over", "b", "refused"),
        ("delivered", "ses", None),
    ]


@given(
    st.lists(st.tuples(st.sampled_from(Result), st.integers(0, 9), st.floats(-10, 1e6)), min_size=1, max_size=20),
    st.sampled_from(InDoubt),
    st.floats(0, 1, exclude_max=True),
)
def test_every_recipient_is_settled_once_and_together(
    results: list[tuple[Result, int, float]], rule: InDoubt, chance: float
) -> None:
    class_ = TrafficClass("x", in_doubt=rule, retry=Retry(attempts=8))
    pairs = [(recipient(n, attempts, NOW + left), outcome(r)) for n, (r, attempts, left) in enumerate(results)]
    claim = Claim(1, "", "x", "", "", NOW, 0, 0, b"", 0, [r for r, _ in pairs])
    found: Settlement = settle(claim, pairs, class_, NOW, chance)
    assert [c.n for c in found.changes] == list(range(len(results)))
    for change, (r, _) in zip(found.changes, pairs, strict=True):
        assert change.state is not State.ACTIVE
        assert r.attempts <= change.attempts <= r.attempts + 1
        if change.state is State.DEFERRED:
            assert NOW < change.due_at <= max(r.expires_at, NOW + 1)
        json.loads(change.note)


# -- what senders may have to be told


def tells(
    outcome_: Outcome, notify: int = 0, sender: str = "app@example.com", report: int = 0, age: float = 5.0
) -> list[Tell]:
    r = recipient()
    r.notify = notify
    claim = Claim(42, sender, "default", "", "", NOW - age, 100, 0, b"", 0, [r], report=report)
    return settle(claim, [(r, outcome_)], CLASS, NOW, 0.5, 3600.0).tells


def test_a_failure_is_news() -> None:
    (tell,) = tells(outcome(Result.HARD, Reply(550, "no"), Stage.RCPT))
    assert tell == Tell(42, 0, News.FAILED, NOW, tried=True)
    assert tells(outcome(Result.HARD, Reply(550, "no")), Notify.NEVER) == []
    assert tells(outcome(Result.HARD, Reply(550, "no")), Notify.SUCCESS) == []


def test_what_expires_is_told_as_such() -> None:
    r = recipient(expires=NOW)
    claim = Claim(42, "app@example.com", "default", "", "", NOW - 5, 100, 0, b"", 0, [r])
    (tell,) = settle(claim, [(r, outcome(Result.SOFT))], CLASS, NOW, 0.5).tells
    assert (tell.news, tell.expired) == (News.FAILED, True)


@pytest.mark.parametrize(
    ("notify", "passed_on", "stage", "told"),
    [
        (Notify.SUCCESS, False, Stage.DOT, True),
        (Notify.SUCCESS, True, Stage.DOT, False),
        (Notify.FAILURE, False, Stage.DOT, False),
        (0, False, Stage.DOT, False),
        (Notify.SUCCESS, False, Stage.RESOLVE, False),  # `discard` and `capture`: it went nowhere
    ],
)
def test_a_success_is_news_where_nobody_else_tells(notify: int, passed_on: bool, stage: Stage, told: bool) -> None:
    found = tells(outcome(Result.DELIVERED, OK, stage, passed_on=passed_on), notify)
    assert [t.news for t in found] == [News.RELAYED] * told


@pytest.mark.parametrize(
    ("age", "notify", "sender", "told"),
    [
        (3599.0, 0, "a@b.c", False),
        (3600.0, 0, "a@b.c", True),
        (3600.0, Notify.TOLD, "a@b.c", False),
        (3600.0, Notify.FAILURE, "a@b.c", False),
        (3600.0, Notify.DELAY, "a@b.c", True),
        (3600.0, 0, "", False),
    ],
)
def test_a_delay_is_news_once_it_is_long(age: float, notify: int, sender: str, told: bool) -> None:
    found = tells(outcome(Result.SOFT), notify, sender, age=age)
    assert [t.news for t in found] == [News.DELAYED] * told


@pytest.mark.parametrize("result", [Result.RETURNED, Result.HELD])
def test_what_was_not_tried_is_no_news(result: Result) -> None:
    assert tells(outcome(result), age=9000.0) == []


def test_a_report_refused_at_mail_says_what_to_do() -> None:
    r, no = recipient(), Reply(550, "null sender", "5.7.1")
    large = Reply(552, "too large", "5.3.4")
    for sender, report, stage, reply, told in (
        ("", 1, Stage.MAIL, no, True),
        ("", 1, Stage.MAIL, large, False),
        ("", 1, Stage.RCPT, no, False),
        ("", 1, Stage.DOT, Reply(554, "SendAsDenied; <> not allowed", "5.2.252"), True),
        ("", 1, Stage.DOT, Reply(550, "not allowed to send as", "5.7.60"), True),
        ("", 1, Stage.DOT, Reply(554, "looks like spam", "5.6.0"), False),
        ("", 0, Stage.MAIL, no, False),
        ("a@b.c", 0, Stage.MAIL, no, False),
    ):
        claim = Claim(42, sender, "default", "", "", NOW - 5, 100, 0, b"", 0, [r], report=report)
        kinds = [e.kind for e in settle(claim, [(r, outcome(Result.HARD, reply, stage))], CLASS, NOW, 0.5).events]
        assert kinds == ["failed", "dsn_refused"][: 1 + told]


def test_a_rule_is_named_to_the_operator_alone() -> None:
    change, _, note = settled(
        outcome(Result.HARD, Reply(550, "use the API", "5.7.1"), Stage.RESOLVE, rule="route old x:9")
    )
    assert note["last_reply"] == "550 5.7.1 use the API"
    assert str(note["why"]).endswith("use the API (route old x:9)") and change.state is State.FAILED
