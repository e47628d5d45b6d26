"""The breaker and the gate: what has just failed is not dialled, one probe asks again, and waiting has a reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.policy.breaker import COOL_DOWN, FAILURES, MAX_COOL_DOWN, Breaker
from relay.policy.gate import FOREVER, EgressView, Go, Wait, admit


def failing(breaker: Breaker, times: int, now: float = 0.0) -> Breaker:
    for _ in range(times):
        breaker.start()
        breaker.failed(now, "connection refused", 0.5)
    return breaker


def test_it_opens_at_the_fifth_failure_in_a_row() -> None:
    breaker = failing(Breaker(), FAILURES - 1)
    assert (breaker.is_open, breaker.wait(0)) == (False, 0)
    failing(breaker, 1)
    assert breaker.is_open
    assert breaker.wait(0) == pytest.approx(COOL_DOWN * 0.9)
    assert breaker.wait(breaker.until) == 0


def test_a_success_between_starts_the_count_anew() -> None:
    breaker = failing(Breaker(), FAILURES - 1)
    breaker.succeeded()
    failing(breaker, FAILURES - 1)
    assert not breaker.is_open


def test_one_probe_and_what_it_tells() -> None:
    breaker = failing(Breaker(), FAILURES)
    now = breaker.until
    breaker.start()
    assert breaker.wait(now) >= 1  # nobody else while it is on its way
    breaker.failed(now, "still", 0.0)
    assert breaker.wait(now) == pytest.approx(2 * COOL_DOWN * 0.8)
    now = breaker.until
    breaker.start()
    breaker.returned()
    assert breaker.wait(now) == 0  # as before it: the next one probes
    breaker.start()
    breaker.succeeded()
    assert (breaker.is_open, breaker.why, breaker.wait(now)) == (False, "", 0)


def test_the_pause_doubles_up_to_its_maximum() -> None:
    breaker, now, pauses = failing(Breaker(), FAILURES), 0.0, []
    for _ in range(30):
        pauses.append(breaker.until - now)
        now = breaker.until
        breaker.start()
        breaker.failed(now, "down", 1.0)
    assert pauses[1:7] == [120, 240, 480, 960, 1800, 1800]
    assert max(pauses) == MAX_COOL_DOWN


def test_who_asks_again_and_again_is_not_punished() -> None:
    breaker = failing(Breaker(), FAILURES)
    for now in (1.0, 2.0, 3.0, 4.0):
        breaker.ask_again(now)
        assert (breaker.is_open, breaker.wait(now)) == (True, 0)
        breaker.start()
        breaker.failed(now, "still", 1.0)
        assert breaker.wait(now) == 2 * COOL_DOWN


def test_sessions_that_were_under_way_do_not_make_the_pause_longer() -> None:
    breaker = failing(Breaker(), FAILURES)
    until = breaker.until
    failing(breaker, 20, now=1.0)
    assert breaker.until == until


def test_a_refused_login_opens_it_at_once_and_only_a_probe_closes_it() -> None:
    breaker = Breaker()
    breaker.start()
    breaker.failed(0.0, "535 no", 1.0, auth=True)
    assert (breaker.is_open, breaker.auth_failed) == (True, True)
    assert breaker.wait(0.0) == COOL_DOWN
    breaker.succeeded()  # an older session ends well
    assert breaker.is_open
    breaker.start()
    breaker.succeeded()
    assert not breaker.is_open


WHAT = st.sampled_from(["start", "succeeded", "returned", "failed", "auth", "time"])


@given(st.lists(WHAT, max_size=60), st.floats(0, 1, exclude_max=True))
def test_it_never_waits_longer_than_its_maximum_and_never_for_ever(steps: list[str], chance: float) -> None:
    breaker, now = Breaker(), 0.0
    for step in steps:
        match step:
            case "time":
                now += 37
            case "failed" | "auth":
                breaker.failed(now, "x", chance, auth=step == "auth")
            case other:
                getattr(breaker, other)()
        assert 0 <= breaker.wait(now) <= MAX_COOL_DOWN
    breaker.returned()
    assert breaker.wait(now + MAX_COOL_DOWN) == 0


def view(name: str, room: int = 5, wait: float = 0.0, *, probing: bool = False) -> EgressView:
    return EgressView(name, room, wait, f"{name} failed", probing)


def test_the_gate_takes_the_first_that_may_be_dialled() -> None:
    assert admit([view("a"), view("b")], 10.0) == Go("a", 5)
    assert admit([view("a", wait=30), view("b", 2)], 10.0) == Go("b", 2)
    assert admit([view("a", probing=True), view("b")], 10.0) == Go("a", 1)


def test_the_gate_waits_for_a_busy_one_and_says_so() -> None:
    assert admit([view("a", room=0), view("b")], 10.0) == Wait(FOREVER, "all connections of a are busy")


def test_the_gate_tells_until_when_and_why() -> None:
    found = admit([view("a", wait=30), view("b", wait=7)], 10.0)
    assert found == Wait(17.0, "a rests: a failed; b rests: b failed")
    nobody = admit([], 10.0)
    assert isinstance(nobody, Wait)
    assert nobody.until == FOREVER
    assert "may send as" in nobody.why
