"""What a reply teaches of its recipient: who is suppressed by it, who is counted, and what never does either."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relay.policy.classes import TrafficClass
from relay.policy.suppression import SuppressionRule, Why
from relay.recipient import State
from relay.reply import Reply, Result, Scope, Stage, classify
from relay.settle import SUPPRESSED, Outcome, learn, settle
from relay.spool import Claim, Claimed, Settlement

NOW = 1_000_000.0
DAY = 86400.0
RULE = SuppressionRule(frozenset({"hard_bounce", "complaint", "unsubscribe"}), 5)


def claim(sender: str = "app@example.com", recipients: int = 1) -> Claim:
    found = [Claimed(n, f"R{n}@Example.net", State.QUEUED, 0, NOW + DAY, 7, False) for n in range(recipients)]
    return Claim(42, sender, "bulk", "web", "", NOW - 5, 100, 0, b"", 0, found)


def outcome(stage: Stage, line: str, **more: object) -> Outcome:
    reply = Reply.parse(line)
    trouble = classify(stage, reply.code)
    return Outcome(trouble.result, "up", stage, reply, scope=trouble.scope, **more)  # type: ignore[arg-type]


def taught(*outcomes: Outcome, rule: SuppressionRule = RULE, sender: str = "app@example.com") -> Settlement:
    made = claim(sender, len(outcomes))
    pairs = list(zip(made.recipients, outcomes, strict=True))
    found = settle(made, pairs, TrafficClass("bulk"), NOW, 0.5)
    learn(found, made, pairs, rule, "shop", NOW)
    return found


HARD = (
    "550 5.1.1 <r0@example.net>: Recipient address rejected: User unknown in virtual mailbox table",
    "550 5.1.1 The email account that you tried to reach does not exist. Please try double-checking the address",
    "550 5.5.0 Requested action not taken: mailbox unavailable (S2017062302) user unknown",
    "550 No such user here",
    "551 5.1.6 User has moved; no forwarding address",
    "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup",
    "550 5.1.2 Host unknown",
)
SOFT = (
    "452 4.2.2 The email account that you tried to reach is over quota",
    "552 5.2.2 Mailbox full",
    "450 4.2.2 mailbox is full",
    "450 4.1.1 <r0@example.net>: Recipient address rejected: User unknown in local recipient table",
    "550 5.2.1 The email account that you tried to reach is disabled",
)
NOTHING = (
    "451 4.7.1 Greylisting in action, please come back later",
    "450 4.7.1 try again later",
    "550 5.7.1 Service unavailable, Client host [192.0.2.1] blocked using Spamhaus",
    "550 5.7.1 Message rejected due to your reputation",
    "554 5.7.1 The message was identified as spam",
    "550 5.7.26 This mail is unauthenticated, which poses a security risk to the sender: SPF and DKIM did not pass",
    "550 5.7.1 Relaying denied",
    "421 4.7.28 Our system has detected an unusual rate of unsolicited mail",
    "452 4.5.3 Too many recipients",
    "450 4.3.2 System not accepting network messages",
    "451 4.3.0 Temporary lookup failure",
    "451 4.4.1 connection timed out",
    "550 5.4.5 Daily user sending limit exceeded",
    "554 5.7.9 Message not accepted for policy reasons",
    "550 5.1.8 Sender address rejected: Domain not found",
    "550 5.1.7 Invalid sender",
    "552 5.3.4 Message size exceeds fixed limit",
    "550 5.6.0 Message content rejected",
    "550 5.0.0 refused",
    "530 5.7.0 Authentication required",
    "535 5.7.8 Bad credentials",
)


@pytest.mark.parametrize("line", HARD)
def test_who_is_not_there_is_suppressed(line: str) -> None:
    found = taught(outcome(Stage.RCPT, line))
    (made,) = found.suppressions
    assert not found.softly and made.address == "r0@example.net" and made.scope == "tenant:shop"
    assert (made.why, made.source, made.message) == (Why.HARD_BOUNCE, "smtp", 42)
    assert (made.at, made.until, made.evidence) == (NOW, NOW + 180 * DAY, str(Reply.parse(line)))


@pytest.mark.parametrize("line", SOFT)
def test_who_cannot_take_it_now_is_counted(line: str) -> None:
    found = taught(outcome(Stage.RCPT, line))
    (softly,) = found.softly
    assert not found.suppressions and (softly.count, softly.entry.why) == (5, Why.SOFT_BOUNCES)
    assert softly.entry.message == 42, "of one message it is one bounce, however often it was tried"
    assert taught(outcome(Stage.RCPT, line), rule=replace(RULE, soft_count=0)).softly == []


@pytest.mark.parametrize("line", NOTHING)
@pytest.mark.parametrize("stage", [Stage.RCPT, Stage.DOT, Stage.DATA, Stage.MAIL])
def test_what_is_not_about_a_mailbox_teaches_nothing(line: str, stage: Stage) -> None:
    found = taught(outcome(stage, line))
    assert found.suppressions == [] and found.softly == []


@pytest.mark.parametrize("line", [*HARD, *SOFT])
@pytest.mark.parametrize("stage", [Stage.CONNECT, Stage.BANNER, Stage.EHLO, Stage.STARTTLS, Stage.AUTH, Stage.MAIL])
def test_before_rcpt_nobody_was_spoken_of(line: str, stage: Stage) -> None:
    found = taught(outcome(stage, line))
    assert found.suppressions == [] and found.softly == []


def test_after_the_content_only_the_one_it_was_for() -> None:
    full = outcome(Stage.DOT, "552 5.2.2 Mailbox full")
    assert len(taught(full).softly) == 1
    assert taught(full, full).softly == [], "whose mailbox?"
    refused = outcome(Stage.RCPT, "550 5.1.1 no such user")
    both = taught(refused, full)
    assert [one.address for one in both.suppressions] == ["r0@example.net"]
    assert [one.entry.address for one in both.softly] == ["r1@example.net"]


@pytest.mark.parametrize("scope", [Scope.EGRESS, Scope.DESTINATION, Scope.NEXT_HOP])
def test_what_is_anybody_elses_trouble_teaches_nothing(scope: Scope) -> None:
    """A provider's dictionary says that it is about the account, whatever the words look like."""
    said = outcome(Stage.RCPT, "552 5.2.2 over quota")
    said.scope = scope
    assert taught(said).softly == []


def test_words_of_ours_and_reports_teach_nothing() -> None:
    gone = outcome(Stage.RCPT, HARD[0])
    assert taught(gone, sender="").suppressions == []
    assert taught(Outcome(Result.HARD, "up", Stage.RESOLVE, Reply(0, "no such user"))).suppressions == []


def test_without_a_section_nothing_is_learnt() -> None:
    found = taught(outcome(Stage.RCPT, HARD[0]), outcome(Stage.RCPT, SOFT[0]), rule=SuppressionRule())
    assert found.suppressions == [] and found.softly == []


def test_a_rule_of_shaping_counts_without_a_section() -> None:
    said = outcome(Stage.RCPT, "450 4.2.1 never", rule="suppressed by gone (relay.yaml:9)", suppress=3600.0)
    (made,) = taught(said, rule=SuppressionRule()).suppressions
    assert (made.why, made.source, made.until) == (Why.SHAPING, "shaping", NOW + 3600)
    assert made.evidence == "450 4.2.1 never (gone (relay.yaml:9))"


def test_who_is_suppressed_fails_without_an_attempt() -> None:
    said = Outcome(Result.HARD, "", Stage.RESOLVE, Reply(0, "hard bounce"), rule=SUPPRESSED)
    found = taught(said)
    (change,), (event,), (tell,) = found.changes, found.events, found.tells
    assert (change.state, change.attempts, event.kind) == (State.FAILED, 0, "suppressed")
    assert event.data == {"why": "suppressed: hard bounce"} and not tell.tried
    assert not found.suppressions
