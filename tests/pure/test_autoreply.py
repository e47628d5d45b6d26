"""Auto-replies: what machines answer for people is told apart from people, and from mail systems."""

from __future__ import annotations

import pytest

from relay.outgoing import verp
from relay.returned import Kind
from relay.returned.autoreply import read_auto_reply
from relay.returned.parts import read
from tests.pace import within

TOKEN = verp.make(b"k" * 16, 42, 0)
FROM = "From: Jane <jane@example.com>\nTo: x@y.example\n"


def answer(head: str, body: str = "Hello") -> str | None:
    found = read_auto_reply(read(f"{FROM}{head}\n\n{body}".encode()))
    return found.reason if found else None


def test_who_answers_and_to_what() -> None:
    found = read_auto_reply(
        read(
            f"From: Jane <jane@example.com>\nTo: bounce+{TOKEN}@b.example\nDate: Thu, 8 Mar 2005 17:40:36 -0400\nSubject: Re: hello\n"
            "Auto-Submitted: auto-replied (vacation)\nIn-Reply-To: <1pgwbz00001@relay.example>\n\nI am out of the office.\n".encode()
        )
    )
    assert found is not None
    assert (found.kind, found.recipient, found.reason) == (Kind.AUTO_REPLY, "jane@example.com", "vacation")
    assert (found.token, found.queue_id, found.message_id) == (TOKEN, "1PGWBZ00001", "<1pgwbz00001@relay.example>")
    assert found.at == 1110318036.0


@pytest.mark.parametrize(
    "head",
    [
        "Auto-Submitted: auto-replied",
        "auto-submitted:  Auto-Replied; owner-email=x",
        "Precedence: auto_reply",
        "Precedence: auto-reply",
        "X-Autoreply: yes",
        "X-Autorespond: hello",
        "X-Auto-Reply-From: x@y.example",
    ],
)
def test_what_says_that_it_is_one(head: str) -> None:
    assert answer(head) == "auto_reply"


def test_apple_and_vacation_programs() -> None:
    assert answer("X-Apple-Action: vacation") == answer("X-Vacation: yes") == "vacation"


SUBJECTS = [
    "Automatic reply: Your order",
    "Auto: Your order",
    "Autoreply: x",
    "Auto-Reply x",
    "Auto Response: x",
    "[Autoreply] x",
    "Out of Office: x",
    "Out of Office AutoReply: x",
    "Automatische Antwort: Ihre Bestellung",
    "Abwesenheitsnotiz: x",
    "Abwesend x",
    "Autoantwort x",
    "Réponse automatique : x",
    "Absence du bureau : x",
    "Respuesta automática: x",
    "Fuera de la oficina: x",
    "Risposta automatica: x",
    "Fuori sede: x",
    "Resposta automática: x",
    "Automatisch antwoord: x",
    "Afwezig: x",
    "Autosvar: x",
    "Automatiskt svar: x",
    "Automatisk svar: x",
    "Frånvaro: x",
    "Automaattinen vastaus: x",
    "Autoodpowiedź: x",
    "Odpowiedź automatyczna: x",
    "Automatická odpověď: x",
    "Automatikus válasz: x",
    "Автоответ: x",
    "Автоматический ответ: x",
    "自动回复: x",
    "自動返信: x",
    "【自動返信】x",
    "不在通知",
    "자동 회신: x",
    "Otomatik yanıt: x",
    "Αυτόματη απάντηση: x",
]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_subjects_of_many_languages(subject: str) -> None:
    for sign in (
        "X-Auto-Response-Suppress: All",
        "Return-Path: <>",
        "Precedence: bulk",
        "Auto-Submitted: auto-generated",
    ):
        assert answer(f"Subject: {subject}\n{sign}") in ("vacation", "auto_reply")
    assert answer(f"Subject: {subject}") is None  # a person may write so
    assert answer(f"Subject: Re: {subject}\nPrecedence: bulk") is None
    assert answer(f"Subject: {subject}\nPrecedence: bulk\nList-Id: <a.example>") is None


@pytest.mark.parametrize(
    "head",
    [
        "Subject: hello",
        "Auto-Submitted: no\nSubject: Out of office",
        "Auto-Submitted: auto-generated\nSubject: Your invoice",
        "Precedence: bulk\nSubject: Our newsletter",
        "X-Auto-Response-Suppress: All\nSubject: Ticket 5 was closed",
        "X-Autoreply: no",
        "Return-Path: <>\nSubject: hello",
        "Auto-Submitted: auto-replied\nX-Failed-Recipients: x@y.example",
        "Auto-Submitted: auto-replied\nContent-Type: multipart/report; report-type=delivery-status; boundary=b",
        "Auto-Submitted: auto-replied\nContent-Type: message/delivery-status",
        "Subject: Autobahn\nPrecedence: bulk",
        "Subject: Automatic gates: our offers\nPrecedence: bulk",
    ],
)
def test_what_is_none(head: str) -> None:
    assert answer(head) is None


@pytest.mark.parametrize(
    "who",
    ["MAILER-DAEMON@x.example", "postmaster@x.example", "Mailer-Daemon+x@x.example", "bounce@x.example", "", "<>"],
)
def test_what_a_mail_system_says_is_none(who: str) -> None:
    assert (
        read_auto_reply(read(f"From: {who}\nAuto-Submitted: auto-replied\nSubject: Undelivered\n\nx".encode())) is None
    )


@pytest.mark.parametrize("word", ["auto", "automatic ", "автоматическ", "<[(*", "away from ", "-"])
def test_nothing_takes_long(word: str) -> None:
    fields = f"Subject: {word * 20_000}\nPrecedence: bulk\nAuto-Submitted: {word * 20_000}"
    within(0.5, lambda: answer(fields, word * 100_000))
