"""Complaints: who, of which message, and what for."""

from __future__ import annotations

import base64

import pytest

from relay.outgoing import verp
from relay.returned import Finding, Kind
from relay.returned.arf import read_arf
from relay.returned.parts import read
from tests.pace import within

TOKEN = verp.make(b"k" * 16, 42, 0)

REPORT = """\
From: <abusedesk@example.com>
Date: Thu, 8 Mar 2005 17:40:36 -0400
Subject: FW: Earn money
To: <abuse@example.net>
MIME-Version: 1.0
Content-Type: multipart/report; report-type=feedback-report; boundary="b"

--b
Content-Type: text/plain

This is an email abuse report.

--b
Content-Type: message/feedback-report

{report}
--b
Content-Type: {returned}

{header}

Body
--b--
"""


def complaints(report: str, header: str = "To: x@example.com", returned: str = "message/rfc822") -> list[Finding]:
    raw = REPORT.format(report=report, header=header, returned=returned).replace("\n", "\r\n").encode()
    return read_arf(read(raw), raw)


def test_a_report_with_everything() -> None:
    (found,) = complaints(
        "Feedback-Type: abuse\nUser-Agent: SomeGenerator/1.0\nVersion: 1\nOriginal-Mail-From: <list@example.net>\n"
        "Original-Rcpt-To: <user@example.com>\nArrival-Date: Thu, 8 Mar 2005 14:00:00 -0400\nSource-IP: 192.0.2.1\n"
        "Reported-Domain: example.net\nReported-Uri: http://example.net/a\nReported-Uri: mailto:user@example.com\n",
        f"Return-Path: <bounce+{TOKEN}@b.example.net>\n"
        "Received: from a (a [192.0.2.9])\n\tby relay.example.net with ESMTPSA id 1PGWBZ00001;\n\tThu, 8 Mar 2005 14:00:00 -0400\n"
        "Message-ID: <a@example.net>\nSubject: Earn money\nTo: other@example.com",
    )
    assert (found.kind, found.reason, found.recipient) == (Kind.COMPLAINT, "abuse", "user@example.com")
    assert (found.queue_id, found.token, found.message_id) == ("1PGWBZ00001", TOKEN, "<a@example.net>")
    assert (found.sender, found.reporter, found.at) == ("list@example.net", "abusedesk@example.com", 1110318036.0)
    assert found.detail == {
        "user_agent": "SomeGenerator/1.0",
        "source_ip": "192.0.2.1",
        "reported_domain": "example.net",
        "reported_uri": ["http://example.net/a", "mailto:user@example.com"],
        "subject": "Earn money",
    }


def test_one_for_each_recipient() -> None:
    found = complaints("Feedback-Type: abuse\nOriginal-Rcpt-To: a@example.com\noriginal-rcpt-to: <b@example.com>\n"
                       "Original-Rcpt-To: a@example.com\n")  # fmt: skip
    assert [one.recipient for one in found] == ["a@example.com", "b@example.com"]


@pytest.mark.parametrize(
    ("report", "header", "recipient"),
    [
        ("Removal-Recipient: r@example.com", "To: x@example.com", "r@example.com"),
        ("Version: 1", "To: Jane <x@example.com>", "x@example.com"),
        ("Version: 1", "To: x@example.com, y@example.com", ""),
        ("Version: 1", "Delivered-To: y@example.com\nTo: x@example.com, y@example.com", "y@example.com"),
        ("Version: 1", "To: Undisclosed Recipients:;", ""),
        ("Original-Rcpt-To: [redacted]", "To: <x@example.com>", "x@example.com"),
        ("Original-Rcpt-To: redacted@", "X-HmXmrOriginalRecipient: h@example.com", "h@example.com"),
    ],
)
def test_who_complained(report: str, header: str, recipient: str) -> None:
    (found,) = complaints(f"Feedback-Type: abuse\n{report}\n", header)
    assert found.recipient == recipient


@pytest.mark.parametrize("local", ["redacted", "REDACTED", "xxxxx", "user-removed", "***"])
def test_an_address_that_is_not_the_real_one_is_told_apart(local: str) -> None:
    (found,) = complaints(f"Feedback-Type: abuse\nOriginal-Rcpt-To: {local}@example.com\n")
    assert found.recipient == f"{local}@example.com"
    assert found.detail["redacted"] is True


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("abuse", "abuse"), ("Fraud", "fraud"), ("VIRUS", "virus"), ("opt-out", "opt-out"), ("not-spam", "not-spam"),
        ("Not_Spam", "not-spam"),
        ("auth-failure", "auth-failure"), ("authentication-failure", "auth-failure"), ("other", "other"), ("", "other"),
        ("x" * 1000, "x" * 40), ("a b\tc<script>", "abcscript"),
    ],
)  # fmt: skip
def test_feedback_types(written: str, reason: str) -> None:
    assert complaints(f"Feedback-Type: {written}\n")[0].reason == reason


def test_a_failure_report_says_that_it_is_one() -> None:
    (found,) = complaints("Feedback-Type: auth-failure\nAuth-Failure: dmarc\nIdentity-Alignment: none\n")
    assert found.detail["report"] == "failure"
    assert found.detail["auth_failure"] == "dmarc"


@pytest.mark.parametrize(
    "returned", ["text/rfc822-headers", "text/rfc822-header", "message/global-headers", "message/rfc822"]
)
def test_how_the_message_is_returned(returned: str) -> None:
    (found,) = complaints("Feedback-Type: abuse\n", "Message-ID: <a@b.example>", returned)
    assert found.message_id == "<a@b.example>"


def test_a_report_as_text_is_one_where_the_mail_says_so() -> None:
    raw = REPORT.replace("message/feedback-report", "text/plain")
    for whole, count in ((raw, 1), (raw.replace("report-type=feedback-report; ", ""), 0)):
        mail = whole.format(
            report="Version: 1\nFeedback-Type: fraud\n", returned="message/rfc822", header="To: a@b.example"
        ).encode()
        assert len(read_arf(read(mail), mail)) == count


def test_an_encoded_report() -> None:
    report = base64.b64encode(b"Feedback-Type: abuse\r\nRemoval-Recipient: a@b.example").decode()
    raw = REPORT.replace("feedback-report\n", "feedback-report\nContent-Transfer-Encoding: base64\n")
    mail = raw.format(report=report, returned="message/rfc822", header="To: x@y.example").encode()
    assert [one.recipient for one in read_arf(read(mail), mail)] == ["a@b.example"]


def test_two_reports_in_one_mail() -> None:
    second = (
        "--b\nContent-Type: message/feedback-report\n\nFeedback-Type: virus\n\n"
        "--b\nContent-Type: message/rfc822\n\nTo: b@b.example\n\n--b--\n"
    )
    raw = (
        REPORT.format(report="Feedback-Type: abuse\n", returned="message/rfc822", header="To: a@b.example")
        .replace("--b--\n", second)
        .encode()
    )
    assert [(one.reason, one.recipient) for one in read_arf(read(raw), raw)] == [
        ("abuse", "a@b.example"),
        ("virus", "b@b.example"),
    ]


def test_microsofts_way() -> None:
    raw = (
        b"From: staff@hotmail.com\nSubject: complaint about message from 192.0.2.1\nContent-Type: multipart/mixed; boundary=b\n\n"
        b"--b\nContent-Type: message/rfc822\n\nX-HmXmrOriginalRecipient: who@example.com\nTo: list@example.com\n"
        b"Return-Path: <bounce+" + TOKEN.encode() + b"@b.example>\n\nbody\n--b--\n"
    )
    (found,) = read_arf(read(raw), raw)
    assert (found.kind, found.reason, found.recipient, found.token) == ("complaint", "abuse", "who@example.com", TOKEN)


def test_apples_unsubscription() -> None:
    raw = f"From: J <jane@icloud.com>\nTo: unsubscribe+{TOKEN}@example.com\nX-Apple-Unsubscribe: true\n\nunsubscribe".encode()
    (found,) = read_arf(read(raw), raw)
    assert (found.reason, found.recipient, found.token) == ("opt-out", "jane@icloud.com", TOKEN)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"From: a@b.example\nSubject: Feedback-Type: abuse\n\nFeedback-Type: abuse\n",
        b"From: a@b.example\nContent-Type: message/rfc822\n\nSubject: forwarded\n\nx",
        b"Subject: DMARC Forensics of last year\nContent-Type: text/html\n\nx",
    ],
)
def test_what_is_no_complaint(raw: bytes) -> None:
    assert read_arf(read(raw), raw) == []


@pytest.mark.parametrize(
    "report",
    [
        "Feedback-Type: abuse\n" + "Original-Rcpt-To: a@b.example\n" * 50_000,
        "Feedback-Type: abuse\n" + "".join(f"Original-Rcpt-To: a{i}@b.example\n" for i in range(50_000)),
        "Feedback-Type: " + "abuse" * 200_000,
        "A: b\n" * 200_000,
        "Feedback-Type: abuse\nArrival-Date: " + "1 " * 100_000,
        "Feedback-Type: abuse\nArrival-Date: Thu, 99 Mar 99999999999999 99:99:99 +9999999\n",
        "Feedback-Type: abuse\nOriginal-Rcpt-To: " + "(" * 100_000 + "\n",
        "Feedback-Type: abuse\nOriginal-Rcpt-To: " + "a@b, " * 50_000 + "\n",
    ],
    ids=["same", "recipients", "type", "fields", "date", "no date", "comments", "list"],
)  # fmt: skip
def test_nothing_takes_long(report: str) -> None:
    found = within(1.0, lambda: complaints(report))
    assert 1 <= len(found) <= 100
