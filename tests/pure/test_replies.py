"""What a reply means: hints, clocks, and who suffers where a dictionary has a word on it."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.presets import generic, load_preset
from relay.policy.replies import LONGEST_HINT, ReplyRule, Turn, hint, judge
from relay.reply import Remedy, Reply, Result, Scope, Stage, classify
from tests.pace import within

NOW = datetime(2025, 10, 5, 19, 20, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Greylisted, try again in 60 seconds", 60),
        ("Please try again in 5 minutes", 300),
        ("Greylisting in effect, please come back in 00:04:59", 299),
        ("Please retry after 300 seconds.", 300),
        ("wait 4 minutes and 30 seconds", 270),
        ("try again in 3 hours, 5 min", 11100),
        ("Retry-After: 30", 30),
        ("greylisted for 298 seconds", 298),
        ("Recipient address rejected: Greylisted for 5 minutes", 300),
        ("Messages are temporarily deferred for 3600s", 3600),
        ("Account will be enabled in 341 seconds", 341),
        ("Relay quota will reset in 21.99 hours", 21.99 * 3600),
        ("try again after Sun, 05 Oct 2025 19:22:44 UTC", 164),
        ("try again after Sun, 05 Oct 2025 21:22:44 +0200", 164),
        ("come back later in 900000 secs", LONGEST_HINT),
        ("try again in 0 seconds", None),
        ("disabled until Tue, 23 Oct 2018 08:42:36 GMT", None),
        ("until Mon, 99 Oct 2025 19:22:44 UTC", None),
        ("try again later", None),
        ("Too many emails sent in the last 24 hours", None),
        ("You have sent 60 messages in 5 minutes", None),
        ("Domain x has exceeded the max emails per hour (151/150 (100%)) allowed", None),
        ("try again at 09:00", None),
        ("Visit https://example.com/wait?10 for more", None),
        ("4.7.0 wait4me12 minutes", None),
    ],
)
def test_a_hint(text: str, seconds: float | None) -> None:
    found = hint(text, NOW)
    assert found == (None if seconds is None else pytest.approx(seconds))


@given(st.text(max_size=500))
def test_no_text_is_more_than_a_day_or_less_than_nothing(text: str) -> None:
    found = hint("try again in " + text, NOW)
    assert found is None or 0 < found <= LONGEST_HINT


@pytest.mark.parametrize("piece", ["try again in ", "wait 5 minutes and ", "retry ", "1 s ", "wait ", "9" * 50])
def test_a_hint_is_found_soon_whatever_the_text(piece: str) -> None:
    within(0.2, lambda: hint((piece * 500)[:2000], NOW))


@pytest.mark.parametrize(
    ("text", "now", "after"),
    [
        ("00:00 UTC", "2026-12-01T13:00:00+00:00", "2026-12-02T00:00:00+00:00"),
        ("00:00 UTC", "2026-12-01T00:00:00+00:00", "2026-12-02T00:00:00+00:00"),
        ("08:30 Europe/Berlin", "2026-12-01T06:00:00+00:00", "2026-12-01T07:30:00+00:00"),
        # The nights on which clocks are put forward and back.
        ("00:00 America/Los_Angeles", "2026-03-08T09:30:00+00:00", "2026-03-09T07:00:00+00:00"),
        ("00:00 America/Los_Angeles", "2026-11-01T08:00:00+00:00", "2026-11-02T08:00:00+00:00"),
    ],
)
def test_a_turn_of_the_clock(text: str, now: str, after: str) -> None:
    turn = Turn.parse(text)
    assert str(turn) == text
    assert turn.after(datetime.fromisoformat(now).timestamp()) == datetime.fromisoformat(after).timestamp()


@pytest.mark.parametrize("text", ["midnight", "24:00 UTC", "00:00", "00:00 Mars", "00:00 ../etc/passwd", 5, None])
def test_what_is_no_turn(text: Any) -> None:
    with pytest.raises(ValueError, match="time of the day and a zone"):
        Turn.parse(text)


def rule(pattern: str, scope: Scope = Scope.EGRESS, **more: Any) -> ReplyRule:
    return ReplyRule(re.compile(pattern, re.IGNORECASE), scope, means="why", **more)


def test_the_first_rule_that_fits_decides_else_the_code() -> None:
    rules = [rule("^550 5.4.5", wait=3600.0), rule("^550", Scope.MESSAGE)]
    reply = Reply.parse("550 5.4.5 Daily sending quota exceeded")
    found = judge(rules, Stage.DOT, reply, NOW)
    assert (found.scope, found.result, found.wait, found.means) == (Scope.EGRESS, Result.SOFT, 3600.0, "why")
    assert judge(rules, Stage.DOT, Reply.parse("550 5.1.1 x"), NOW).scope is Scope.MESSAGE
    assert judge(rules, Stage.DOT, Reply.parse("554 5.7.1 x"), NOW) == classify(Stage.DOT, 554)


def test_a_rule_counts_at_its_stages_only() -> None:
    rules = [rule("^550", at=frozenset({Stage.DOT}))]
    assert judge(rules, Stage.RCPT, Reply(550, "x"), NOW) == classify(Stage.RCPT, 550)
    assert judge(rules, Stage.DOT, Reply(550, "x"), NOW).scope is Scope.EGRESS


@pytest.mark.parametrize("stage", [Stage.CONNECT, Stage.BANNER, Stage.EHLO, Stage.STARTTLS, Stage.AUTH])
@pytest.mark.parametrize("scope", [Scope.RECIPIENT, Scope.MESSAGE, Scope.DESTINATION])
def test_before_the_mail_nothing_is_said_about_the_mail(stage: Stage, scope: Scope) -> None:
    """A careless rule must not fail mail for a login that was refused."""
    rules = [rule("^5", scope, hard=scope is not Scope.DESTINATION)]
    assert judge(rules, stage, Reply(535, "no"), NOW) == classify(stage, 535)


def test_no_reply_is_no_word() -> None:
    assert judge([rule("")], Stage.DOT, Reply(0, "lost"), NOW).result is Result.DOUBT


def test_the_replys_own_time_wins_but_not_over_never() -> None:
    said = Reply.parse("451 4.7.1 slow down, try again in 10 minutes")
    assert judge([rule("^451", wait=60.0)], Stage.DOT, said, NOW).wait == 600
    assert judge([rule("^451", Scope.RECIPIENT, hard=True)], Stage.RCPT, said, NOW).wait is None
    assert judge([], Stage.RCPT, said, NOW).wait == 600
    assert judge([], Stage.RCPT, replace(said, code=551), NOW).wait is None  # a permanent one asks for no patience
    until = judge([rule("^451", until=Turn.parse("00:00 UTC"))], Stage.DOT, Reply(451, "x"), NOW)
    assert until.wait == pytest.approx(4 * 3600 + 40 * 60)


def test_what_helps_comes_with_it() -> None:
    found = judge([rule("^421", remedy=Remedy.SLOW, fail_over=False)], Stage.MAIL, Reply(421, "too fast"), NOW)
    assert (found.remedy, found.fail_over) == (Remedy.SLOW, False)


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        (
            Stage.RCPT,
            "450 4.1.1 <a@evil.example>: Recipient address rejected: unverified address: host mx.evil.example[192.0.2.1] "
            "said: 421 too many connections (in reply to RCPT TO command)",
        ),
        (Stage.RCPT, "550 Callout verification failed: 550 you have exceeded your sending limit"),
        (Stage.DOT, 'response to "RCPT TO:<a@evil.example>" from mx.evil.example was: 550 too many connections'),
        (Stage.DOT, "554 5.0.0 rejected by next hop (550 5.4.5 Daily user sending limit exceeded)"),
        (Stage.DOT, "451 4.4.0 [{LED=450 too many sessions};{MSG=}] Primary target IP address"),
        (Stage.RCPT, '550 5.1.1 <"you have reached your sending limit"@evil.example>: user unknown'),
        (Stage.RCPT, "550 5.1.1 <too many connections@evil.example"),
        (Stage.RCPT, '550 5.1.1 "too many connections"@evil.example: user unknown'),
    ],
)
@pytest.mark.parametrize("name", ["generic", "gmail", "microsoft365", "ses", "sendgrid", "mailgun"])
def test_an_account_does_not_suffer_from_words_that_are_only_quoted(name: str, stage: Stage, line: str) -> None:
    """Whoever has a mail server of his own, or makes up an address, could else stop everybody's mail."""
    code = int(line[:3]) if line[:3].isdigit() else 451
    found = judge((*load_preset(name).replies, *generic()), stage, Reply.of(code, line.removeprefix(f"{code} ")), NOW)
    assert found.scope in (Scope.RECIPIENT, Scope.MESSAGE) and not found.means, found


@pytest.mark.parametrize("line", ["try again in 0.0001 seconds", "retry after 0.5 s"])
def test_a_hint_is_a_second_at_least(line: str) -> None:
    assert hint(line, NOW) == 1.0


def test_a_turn_in_the_hour_that_comes_twice_is_never_past() -> None:
    turn, first = Turn.parse("01:30 America/New_York"), datetime(2025, 11, 2, 5, 0, tzinfo=UTC).timestamp()
    for minute in range(0, 180, 5):
        now = first + minute * 60
        assert 0 < turn.after(now) - now <= 25.5 * 3600, minute
    assert turn.after(first + 31 * 60) == first + 90 * 60  # its second coming
