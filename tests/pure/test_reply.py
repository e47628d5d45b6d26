"""Replies as values, whom a failure concerns, and the next hop's own queue id."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.reply import MAX_TEXT, Reply, Result, Scope, Stage, Trouble, classify, clean, remote_id

NEXT_HOP = (Stage.RESOLVE, Stage.CONNECT, Stage.BANNER, Stage.EHLO, Stage.STARTTLS)
CODES = (0, 220, 400, 421, 450, 451, 452, 454, 500, 501, 530, 535, 550, 552, 554)


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("code", CODES)
def test_who_suffers(stage: Stage, code: int) -> None:
    """The table of docs/flow.md, said again."""
    found = classify(stage, code)
    if stage is Stage.AUTH:
        expected = (Scope.EGRESS, Result.SOFT)
    elif stage is Stage.DOT and code == 0:
        expected = (Scope.MESSAGE, Result.DOUBT)
    elif stage in NEXT_HOP or code in (0, 421):
        expected = (Scope.NEXT_HOP, Result.SOFT)
    elif code == 530:
        expected = (Scope.EGRESS, Result.SOFT)
    else:
        scope = Scope.RECIPIENT if stage is Stage.RCPT else Scope.MESSAGE
        temporary = code < 500 or (stage is Stage.RCPT and code == 552)
        expected = (scope, Result.SOFT if temporary else Result.HARD)
    assert (found.scope, found.result) == expected


def test_only_a_5xx_about_the_mail_itself_ends_it() -> None:
    hard = {(s, c) for s in Stage for c in range(600) if classify(s, c).result is Result.HARD}
    assert {s for s, _ in hard} == {Stage.PREPARE, Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.BODY, Stage.DOT}
    assert all(500 <= c < 600 and c not in (530,) for _, c in hard)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2.0.0 Ok: queued as 4X7Lr51Fqkz9rw", "4X7Lr51Fqkz9rw"),  # Postfix, long ids
        ("Ok: queued as 1A2B3C4D5E", "1A2B3C4D5E"),
        pytest.param("OK id=1rXyZ0-0004Ab-2C", "1rXyZ0-0004Ab-2C"),
        ("2.0.0 OK  1732250000 d9443c01a7336-21f0a1b2c3dsi12345678.123 - gsmtp", ""),  # Gmail
        (
            "2.6.0 <abc@example.com> [InternalId=123, Hostname=AM0P.EURPRD.PROD.OUTLOOK.COM] 9000 bytes in 0.1, "
            "87 KB/sec Queued mail for delivery",
            "",
        ),
        (
            "Ok 0102018f5d5f6a7b-1a2b3c4d-5e6f-7a8b-9c0d-1e2f3a4b5c6d-000000",
            "0102018f5d5f6a7b-1a2b3c4d-5e6f-7a8b-9c0d-1e2f3a4b5c6d-000000",
        ),
        ("2.0.0 4AB1c2D3004567 Message accepted for delivery", ""),  # Sendmail
        ("Ok: queued as QUEUED1.", "QUEUED1"),
        ("Queued!", ""),
        ("", ""),
    ],
)
def test_remote_ids(text: str, found: str) -> None:
    known = remote_id(Reply.of(250, text).text)
    if found:
        assert known == found
    else:
        assert " " not in known


@given(st.text(max_size=200))
def test_a_remote_id_is_a_word_out_of_the_reply(text: str) -> None:
    found = remote_id(text)
    assert found in text
    assert found.isascii()
    assert not any(c.isspace() for c in found)


@given(st.text(max_size=MAX_TEXT * 5))
def test_whatever_a_peer_says_becomes_one_printable_line(text: str) -> None:
    reply = Reply.of(250, text)
    for part in (reply.text, reply.enhanced, clean(text)):
        assert len(part) <= MAX_TEXT
        assert not any(c < " " or "\x7f" <= c <= "\x9f" for c in part)
        part.encode()


def test_enhanced_codes() -> None:
    assert Reply.of(550, "5.1.1 no such user") == Reply(550, "no such user", "5.1.1")
    assert Reply.of(550, "5.7.1 one\n5.7.1 two") == Reply(550, "one two", "5.7.1")
    assert Reply.of(250, "2.0.0") == Reply(250, "", "2.0.0")
    assert Reply.of(250, "5.1.1x no") == Reply(250, "5.1.1x no")
    assert Reply.of(250, "3.1.1 no") == Reply(250, "3.1.1 no")
    assert str(Reply(550, "gone", "5.1.1")) == "550 5.1.1 gone"
    assert str(Reply(0, "connection lost")) == "connection lost"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(550, "no such user", "5.1.1"),
        Reply(421, "closing"),
        Reply(0, "timed out"),
        Reply(0, "1234 things"),
        Reply(250, ""),
    ],
)
def test_what_was_written_is_read_back(reply: Reply) -> None:
    assert Reply.parse(str(reply)) == reply


def test_a_login_that_worked_is_not_doubted_for_the_null_sender() -> None:
    assert classify(Stage.MAIL, 530).scope is Scope.EGRESS
    assert classify(Stage.MAIL, 530, null_sender=True) == Trouble(Scope.MESSAGE, Result.HARD)
    assert classify(Stage.AUTH, 530, null_sender=True).scope is Scope.EGRESS
