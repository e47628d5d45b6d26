"""What comes back is read: reports as RFC 3464 has them, as they are, as others write them; and what only quotes one is none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.bounce import About, Original, write
from relay.envelope import parse_queue_id
from relay.outgoing import verp
from relay.recipient import News
from relay.reply import Reply
from relay.returned import Finding, Kind
from relay.returned.understand import understand
from tests import returned as tools
from tests.pace import within

NUMBER = parse_queue_id("1PGWBZ00001")
TOKEN = verp.make(b"k" * 32, NUMBER, 0)
HEAD = (
    b"Received: from app (local)\r\n\tby relay.example with ESMTP id 1PGWBZ00001;\r\n\tMon, 23 Nov 2026 01:00:00 +0000\r\n"
    b"From: Shop <shop@example.com>\r\nTo: gone@example.net\r\nSubject: hello\r\nMessage-ID: <1@app.example>\r\n"
)


def only(raw: bytes) -> Finding:
    (found,) = understand(raw)
    return found


def report(fields: str, *, text: str = "", to: str = "shop@example.com", head: bytes = HEAD, more: str = "") -> bytes:
    return (
        (
            f"From: MAILER-DAEMON@mx.example\r\nTo: {to}\r\nSubject: Undelivered Mail\r\n{more}"
            'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\r\n\r\n'
            f"--b\r\n\r\n{text}\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n{fields}\r\n"
            "--b\r\nContent-Type: text/rfc822-headers\r\n\r\n"
        ).encode()
        + head
        + b"\r\n--b--\r\n"
    )


FAILED = "Final-Recipient: rfc822; gone@example.net\r\nAction: failed\r\nStatus: 5.1.1\r\n"
WHOLE = (
    f"Reporting-MTA: dns; mx.example\r\n\r\n{FAILED}"
    + "Remote-MTA: dns; mx.example.net\r\nDiagnostic-Code: smtp; 550 5.1.1 no such user\r\n"
)


def test_a_report_and_what_of_ours_it_returns() -> None:
    found = only(report(WHOLE + "Last-Attempt-Date: Mon, 23 Nov 2026 01:00:00 +0000\r\n"))
    assert (found.kind, found.recipient, found.status, found.class_) == (
        Kind.BOUNCE,
        "gone@example.net",
        "5.1.1",
        "hard",
    )
    assert (found.reason, found.action, found.diagnostic) == ("user_unknown", "failed", "550 5.1.1 no such user")
    assert (found.remote, found.reporter, found.at) == ("mx.example.net", "mx.example", 1795395600.0)
    assert (found.queue_id, found.message_id, found.sender) == ("1PGWBZ00001", "<1@app.example>", "shop@example.com")


@pytest.mark.parametrize("news", list(News))
def test_our_own_reports_are_read(news: News) -> None:
    about = About("gone@example.net", Reply(550, "no such user", "5.1.1"), remote="mx.example.net")
    made = write(news, Original(NUMBER, 1.8e9, HEAD), [about], to="a@b.example", hostname="relay.example", number=2, now=1.8e9,
                 token="T" * 32)  # fmt: skip
    found = only(made.head + made.body)
    assert (found.kind, found.recipient, found.queue_id) == (Kind.BOUNCE, "gone@example.net", "1PGWBZ00001")
    assert found.class_ == {News.FAILED: "hard", News.DELAYED: "soft", News.RELAYED: ""}[news]


@pytest.mark.parametrize("where", ["To", "Delivered-To", "X-Original-To"])
def test_a_token_is_found_wherever_the_report_went(where: str) -> None:
    path = f"bounce+{TOKEN.upper()}@bounces.example"
    assert only(report(WHOLE, more=f"{where}: {path}\r\n", to=path if where == "To" else "x@y.example")).token == TOKEN


def test_a_token_is_found_in_the_return_path_of_the_original() -> None:
    head = f"Return-Path: <bounce+{TOKEN}@bounces.example>\r\n".encode() + HEAD
    assert only(report(WHOLE, head=head)).token == TOKEN


def test_a_message_id_of_ours_names_its_message() -> None:
    assert only(report(WHOLE, head=b"Message-ID: <1pgwbz00001@relay.example>\r\n")).queue_id == "1PGWBZ00001"


@pytest.mark.parametrize(
    "fields",
    [
        FAILED,  # no fields of the message
        f"Reporting-MTA: dns; mx.example\r\n{FAILED}",  # no empty line
        "final-recipient :  RFC822 ;  <gone@example.net>\r\naction:\tFAILED\r\nSTATUS:  5.1.1 (bad mailbox)\r\n",
        "Original-Recipient: rfc822;gone@example.net\r\nAction: failed\r\nStatus: 5.1.1\r\n",
        "Final-Recipient: rfc822;@relay.example:gone@example.net\r\n\r\nAction: failed\r\nStatus: 5 . 1 . 1\r\n",  # torn apart
        "Final-Recipient: utf-8; gone@example.net\r\nAction: failed\r\nDiagnostic-Code: smtp;\r\n 550-5.1.1 User\r\n 550 5.1.1 unknown",
        "Final-Recipient: gone@example.net\r\nStatus: 5.1.1",
    ],
)
def test_fields_as_they_are_written(fields: str) -> None:
    found = only(report(fields))
    assert (found.recipient, found.class_, found.reason, found.status, found.action) == (
        *("gone@example.net", "hard", "user_unknown", "5.1.1", "failed"),
    )


def test_each_recipient_has_his_own() -> None:
    late = "Final-Recipient: rfc822; late@example.net\r\nAction: delayed\r\nStatus: 4.2.2\r\n"
    done = "Final-Recipient: rfc822; done@example.net\r\nAction: delivered\r\nStatus: 2.0.0\r\n"
    found = understand(report(f"Reporting-MTA: dns; x\r\n\r\n{FAILED}\r\n{late}{done}\r\n{FAILED}"))
    assert [(one.recipient, one.class_, one.reason, one.action) for one in found] == [
        ("gone@example.net", "hard", "user_unknown", "failed"),
        ("late@example.net", "soft", "mailbox_full", "delayed"),
        ("done@example.net", "", "delivered", "delivered"),
    ]


def test_a_recipient_that_was_rewritten_keeps_both_names() -> None:
    found = only(report("Original-Recipient: rfc822; a@example.com\r\n" + FAILED))
    assert (found.recipient, found.original_recipient) == ("gone@example.net", "a@example.com")


def test_half_a_character_makes_no_address() -> None:
    found = only(
        report(
            "Final-Recipient: utf-8; \\x{D800}\\x{110000}\\x{FC}x@example.net\r\nAction: failed\r\nStatus: 5.1.1\r\n"
        )
    )
    assert found.recipient == "üx@example.net"
    json.dumps(found.row(), ensure_ascii=False).encode()


def test_words_for_people_tell_what_the_fields_do_not() -> None:
    fields = "Final-Recipient: rfc822; gone@example.net\r\nAction: failed\r\nStatus: 5.0.0\r\n"
    found = only(report(fields, text="gone@example.net: Domain does not exist\r\n"))
    assert (found.class_, found.reason) == ("hard", "host_unknown")


def test_what_a_program_there_says_to_itself_is_its_trouble() -> None:
    fields = FAILED + "Diagnostic-Code: x-unix; procmail: no such user\r\n"
    assert only(report(fields)).reason == "system"


def mail(text: str, **fields: str) -> bytes:
    given = {"From": "Mail Delivery System <MAILER-DAEMON@mx.example>", "To": "shop@example.com"} | {
        name.replace("_", "-"): value for name, value in fields.items()
    }
    return "".join(f"{name}: {value}\r\n" for name, value in given.items()).encode() + b"\r\n" + text.encode()


QMAIL = """Hi. This is the qmail-send program at mx.example.
I'm afraid I wasn't able to deliver your message to the following addresses.
This is a permanent error; I've given up. Sorry it didn't work out.

<gone@example.net>:
192.0.2.1 does not like recipient.
Remote host said: 550 5.1.1 no such user
Giving up on 192.0.2.1.

<full@example.net>:
192.0.2.1 does not like recipient.
Remote host said: 552 5.2.2 mailbox full
Giving up on 192.0.2.1.

--- Below this line is a copy of the message.

Return-Path: <shop@example.com>
"""
EXIM = """This message was created automatically by mail delivery software.

A message that you sent could not be delivered to one or more of its
recipients. This is a permanent error. The following address(es) failed:

  gone@example.net
    host mx.example.net [192.0.2.1]
    SMTP error from remote mail server after RCPT TO:<gone@example.net>:
    550 no such user here

------ This is a copy of the message, including all the headers. ------

Return-path: <shop@example.com>
"""
EXCHANGE = """Your message

  To:      gone@example.net
  Subject: hello
  Sent:    Mon, 23 Nov 2026 01:00:00 +0000

did not reach the following recipient(s):

gone@example.net on Mon, 23 Nov 2026 01:00:01 +0000
    The recipient name is not recognized
    The MTS-ID of the original message is: c=us;a= ;p=example;l=MX
    MSEXCH:IMS:Example:MX:MX 0 (000C05A6) Unknown Recipient
"""
SENDMAIL = """The original message was received at Mon, 23 Nov 2026 01:00:00 GMT

   ----- The following addresses had permanent fatal errors -----
<gone@example.net>
    (reason: 550 5.1.1 <gone@example.net>... User unknown)

   ----- Transcript of session follows -----
... while talking to mx.example.net.:
>>> DATA
<<< 550 5.1.1 <gone@example.net>... User unknown
550 5.1.1 <gone@example.net>... User unknown
<<< 503 5.0.0 Need RCPT (recipient)

   ----- Original message follows -----

"""
DOMINO = """Your message

  Subject: hello

was not delivered to:

  gone@example.net

because:

  User gone (gone@example.net) not listed in Domino Directory
"""
COURIER = """This is a delivery status notification from mx.example,
running the Courier mail server, version 0.65.2.

                           UNDELIVERABLE MAIL

Your message to the following recipients cannot be delivered:

<gone@example.net>:
    mx.example.net [192.0.2.1]:
>>> RCPT TO:<gone@example.net>
<<< 550 5.1.1 <gone@example.net>... User Unknown

---------------------------------------------------------------------------
"""


@pytest.mark.parametrize("text", [EXIM, EXCHANGE, SENDMAIL, DOMINO, COURIER, QMAIL.replace("full@", "none@")])
def test_transcripts_of_systems_without_fields(text: str) -> None:
    found = understand(mail(text + HEAD.decode(), Subject="failure notice"))[0]
    assert (found.kind, found.recipient, found.class_, found.reason) == (
        Kind.BOUNCE,
        "gone@example.net",
        "hard",
        "user_unknown",
    )
    assert found.action == "failed"
    assert "user" in found.diagnostic.lower() or "recipient" in found.diagnostic.lower()


def test_a_transcript_returns_ours_too() -> None:
    found = only(mail(EXIM + HEAD.decode(), Subject="Mail delivery failed: returning message to sender"))
    assert (found.queue_id, found.message_id, found.sender) == ("1PGWBZ00001", "<1@app.example>", "shop@example.com")


def test_each_of_a_transcript_has_his_own_words() -> None:
    found = understand(mail(QMAIL, Subject="failure notice"))
    assert [(one.recipient, one.class_, one.reason, one.status) for one in found] == [
        ("gone@example.net", "hard", "user_unknown", "5.1.1"),
        ("full@example.net", "soft", "mailbox_full", "5.2.2"),
    ]


def test_a_warning_is_soft() -> None:
    text = "Warning: could not send message for past 4 hours\n\n<gone@example.net>... User unknown\n"
    found = only(mail(text, Subject="Warning: could not send message for past 4 hours"))
    assert (found.class_, found.action, found.recipient) == ("soft", "delayed", "gone@example.net")


def test_a_field_of_failed_recipients_is_enough() -> None:
    found = only(mail("Groups are closed.", From="x@example.net", X_Failed_Recipients="gone@example.net"))
    assert (found.kind, found.recipient) == (Kind.BOUNCE, "gone@example.net")


SES = {
    "notificationType": "Bounce",
    "bounce": {
        "bounceType": "Permanent",
        "bouncedRecipients": [
            {"emailAddress": "gone@example.net", "action": "failed", "status": "5.1.1", "diagnosticCode": "smtp; 550 5.1.1 user unknown"}
        ],
        "timestamp": "2026-11-23T01:00:00.000Z",
        "reportingMTA": "dns; mx.amazonses.example",
    },
    "mail": {"source": "shop@example.com", "messageId": "0100", "commonHeaders": {"messageId": "<1@app.example>"}},
}  # fmt: skip


@pytest.mark.parametrize("wrapped", [json.dumps(SES), json.dumps({"Type": "Notification", "Message": json.dumps(SES)})])
def test_notifications_by_mail(wrapped: str) -> None:
    text = f"{wrapped}\n\n--\nIf you wish to stop receiving notifications, click\n"
    found = only(mail(text, From="AWS <no-reply@sns.amazonaws.com>", Subject="AWS Notification Message"))
    assert (found.kind, found.recipient, found.class_, found.status) == (
        Kind.BOUNCE,
        "gone@example.net",
        "hard",
        "5.1.1",
    )
    assert (found.message_id, found.reporter, found.at) == ("<1@app.example>", "mx.amazonses.example", 1795395600.0)


@pytest.mark.parametrize(
    "raw",
    [
        mail("Thanks, I'll look.\n\n> " + EXIM.replace("\n", "\n> "), From="Ann <ann@example.net>", Subject="Re: Undelivered Mail"),
        mail(EXIM, From="Ann <ann@example.net>", Subject="Fwd: Mail delivery failed: returning message to sender"),
        mail(f"How to read a bounce. An example:\n\n{EXIM}", From="News <news@example.net>", Subject="Undeliverable mail explained"),
        mail(f"Bounces, explained:\n\n{QMAIL}", From="News <no-reply@example.net>", Subject="This week", List_Unsubscribe="<mailto:x@y>"),
        mail("Your order could not be delivered to gone@example.net. Call us.", From="Post <orders@example.net>", Subject="Your parcel"),
        mail("Lunch?", From="Ann <ann@example.net>", Subject="Returned mail"),
        mail("Please reset your password: 550 5.1.1", From="no-reply@example.net", Subject="Password"),
        b"",
        b"\0\xff" * 1000,
        b"<html>" * 1000,
    ],
)  # fmt: skip
def test_what_only_quotes_a_bounce_is_none(raw: bytes) -> None:
    assert only(raw).kind is Kind.OTHER


LINE = st.sampled_from(
    [
        *("Final-Recipient: rfc822; a@b.example", "Action: failed", "Status: 5.1.1", "Diagnostic-Code: smtp; 550 no", "", "--b", " folded"),
        *("Content-Type: message/delivery-status", "<a@b.example>: 550 5.1.1", ">>> DATA", "<<< 550 no", "------ Original message ------"),
        *("Received: from x by y", "Delivery to the following recipient failed permanently:", "a@b.example", "(reason: 550)", "\x00"),
    ]
) | st.text(max_size=60)  # fmt: skip


@given(st.lists(LINE, max_size=60))
def test_no_text_breaks_it(lines: list[str]) -> None:
    for raw in (
        mail("\n".join(lines), Subject="Undelivered Mail"),
        report("\r\n".join(lines), text="\n".join(lines[::-1])),
        "\n".join(lines).encode("utf-8", "replace"),
    ):
        found = understand(raw)
        assert found
        json.dumps([one.row() for one in found], ensure_ascii=False).encode()


HEADED = "From: MAILER-DAEMON@x.example\r\nSubject: Undelivered Mail\r\n\r\n"
MANY = "".join(
    f"Final-Recipient: rfc822; u{n}@b.example\r\nAction: failed\r\nStatus: 5.0.0\r\n\r\n" for n in range(20_000)
)


@pytest.mark.parametrize(
    "raw",
    [
        (HEADED + "> " * 900_000).encode(),
        (HEADED + ("> " * 900 + "\n") * 1000).encode(),
        (HEADED + "\n \n" * 500_000).encode(),
        (HEADED + "!" * 2_000_000).encode(),
        (HEADED + ("a@b.example " * 100 + "\n") * 1000).encode(),
        (HEADED + "".join(f"<u{n}@b.example>: 550 x\n" for n in range(20_000))).encode(),
        (HEADED + ">>> DATA\n" + "<<< 550 x\n" * 50_000).encode(),
        report(MANY),
        report(
            MANY, text="".join(f"<u{n}@b.example>: host said 550 5.0.0 is not what the sender\n" for n in range(20_000))
        ),
        report("Final-Recipient: rfc822; u@b.example\r\nDiagnostic-Code: smtp; 550 x\r\n" + " y z\r\n" * 200_000),
        report("Final-Recipient: utf-8; " + "\\x{61}" * 100_000 + "@b.example\r\nStatus: 5.1.1\r\n"),
        (HEADED + '{"notificationType": "Bounce", "a":' + "[" * 100_000).encode(),
        ("From: MAILER-DAEMON@x\r\nContent-Type: text/html\r\n\r\n" + "<p>a@b " * 200_000).encode(),
    ],
    ids=range(13),
)
def test_none_takes_long(raw: bytes) -> None:
    found = within(1.0, lambda: understand(raw))
    assert 0 < len(found) <= 100


ADVICE = (
    "If the recipient address does not exist, please remove it from your list.",
    "Possible reasons: the user may be unknown, or the mailbox is invalid.",
    "Please check that the address is valid and the user not unknown.",
)


@pytest.mark.parametrize("advice", ADVICE)
@pytest.mark.parametrize("diagnostic", ["smtp; 550 Rejected", ""])
def test_advice_says_nothing_of_a_recipient(advice: str, diagnostic: str) -> None:
    raw = tools.dsn("you@example.net", status="5.0.0", diagnostic=diagnostic)
    raw = raw.replace(b"could not be delivered.", b"could not be delivered. " + advice.encode())
    (found,) = understand(raw)
    assert (found.kind, found.class_) == (Kind.BOUNCE, "undetermined")
    (found,) = understand(
        b"From: MAILER-DAEMON@mx.example\nSubject: Undelivered mail\nReturn-Path: <>\n\n"
        b"Your message could not be delivered to the following recipient:\n\n  you@example.net\n\n550 Rejected\n\n"
        + advice.encode()
    )
    assert (found.kind, found.class_, found.recipient) == (Kind.BOUNCE, "undetermined", "you@example.net")


def test_the_other_server_s_own_status_outweighs_that_of_the_report() -> None:
    (found,) = understand(tools.dsn("you@example.net", status="5.1.1", diagnostic="smtp; 554 5.7.26 not taken"))
    assert (found.class_, found.reason) == ("soft", "authentication")
    (found,) = understand(tools.dsn("you@example.net", status="5.1.1", diagnostic="smtp; 550 5.1.1 not taken"))
    assert found.class_ == "hard"
