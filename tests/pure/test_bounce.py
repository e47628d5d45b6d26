"""The report as programs and people read it, and that nobody who is quoted in it can write a word of his own."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage, Message
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.bounce import HEAD_LIMIT, About, Original, Written, write
from relay.envelope import EIGHT_BIT, UTF8, parse_queue_id, xtext
from relay.recipient import News
from relay.reply import Reply

NOW = 1_800_000_000.0
NUMBER = parse_queue_id("1PGWBZ00002")
GONE = Reply(550, "no such user", "5.1.1")
LATER = Reply(451, "greylisted", "4.7.1")
HEAD = b"Received: from app\r\nSubject: hello\r\nMessage-ID: <1@app.example>\r\n\r\n"
HOSTILE = st.text(st.characters(exclude_categories=("Cs",))) | st.sampled_from(
    [
        "a\r\nX-Evil: 1",
        "a\r\n\r\n--=_TOKEN\r\nContent-Type: text/html\r\n\r\n<b>",
        "\n\nFinal-Recipient: rfc822; evil@example.net\nAction: delivered\nStatus: 2.0.0",
        "\r\n.\r\nMAIL FROM:<evil@example.net>",
        "\x85\x0b\x0c\u2028\u2029\x1c\x1dX-Evil: 1",
        "--=_TOKEN--",
        "\u202egnp.exe",
    ]
)


def original(**more: Any) -> Original:
    known = {"subject": "hello", "message_id": "<1@app.example>"} | more
    return Original(parse_queue_id("1PGWBZ00001"), NOW - 3600, known.pop("head", HEAD), **known)


def about(address: str = "gone@example.net", reply: Reply = GONE, **more: Any) -> About:
    return About(address, reply, **({"remote": "mx.example.net", "tried_at": NOW} | more))


def made(*abouts: About, news: News = News.FAILED, to: str = "app@example.com", **more: Any) -> Written:
    return write(
        news,
        original(**more),
        abouts or (about(),),
        to=to,
        hostname="relay.test",
        number=NUMBER,
        now=NOW,
        token="T" * 32,
    )


def read(written: Written) -> EmailMessage:
    """By the stdlib's parser, which must find nothing wrong."""
    found = email.message_from_bytes(written.head + written.body, policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    assert found.get_content_type() == "multipart/report" and not found.defects
    return found


def parts(written: Written) -> tuple[str, list[Message], EmailMessage]:
    """The text, the groups of fields, and the part that quotes."""
    text, status, quoted = read(written).iter_parts()
    assert status.get_content_type() == "message/delivery-status"
    groups = status.get_payload()
    assert isinstance(groups, list)
    return " ".join(text.get_content().split()), groups, quoted  # type: ignore[return-value]


def test_header() -> None:
    found = read(made())
    assert found["From"] == "Mail Delivery System <MAILER-DAEMON@relay.test>"
    assert found["To"] == "app@example.com"
    assert found["Subject"] == "Undelivered mail (1PGWBZ00001)"
    assert found["Message-ID"] == "<1pgwbz00002@relay.test>"
    assert found["References"] == "<1@app.example>"
    assert found["Auto-Submitted"] == "auto-replied"
    assert found["MIME-Version"] == "1.0"
    assert parsedate_to_datetime(found["Date"]).timestamp() == NOW
    assert found.get_param("report-type") == "delivery-status"


def test_fields_of_a_failure() -> None:
    _, (message, fate), _ = parts(made(about(orcpt="rfc822;old+2Bname@example.net"), envid="QQ 314"))
    assert message["Reporting-MTA"] == "dns; relay.test"
    assert message["Original-Envelope-Id"] == "QQ 314"
    assert parsedate_to_datetime(message["Arrival-Date"]).timestamp() == NOW - 3600
    assert fate["Original-Recipient"] == "rfc822; old+name@example.net"
    assert fate["Final-Recipient"] == "rfc822; gone@example.net"
    assert (fate["Action"], fate["Status"]) == ("failed", "5.1.1")
    assert fate["Remote-MTA"] == "dns; mx.example.net"
    assert fate["Diagnostic-Code"] == "smtp; 550 5.1.1 no such user"
    assert parsedate_to_datetime(fate["Last-Attempt-Date"]).timestamp() == NOW
    assert fate["Will-Retry-Until"] is None


def test_of_a_delay() -> None:
    text, (_, fate), _ = parts(made(about(reply=LATER, retry_until=NOW + 86400), news=News.DELAYED))
    assert (fate["Action"], fate["Status"]) == ("delayed", "4.7.1")
    assert parsedate_to_datetime(fate["Will-Retry-Until"]).timestamp() == NOW + 86400
    assert "has not been delivered yet" in text and "You need not do anything" in text


def test_of_what_was_passed_on() -> None:
    text, (_, fate), _ = parts(made(about(reply=Reply(250, "Ok", "2.0.0")), news=News.RELAYED))
    assert (fate["Action"], fate["Status"]) == ("relayed", "2.0.0")
    assert "does not promise to report" in text


@pytest.mark.parametrize(
    ("news", "fate", "status"),
    [
        (News.FAILED, about(reply=Reply(550, "no")), "5.0.0"),
        (News.FAILED, about(reply=Reply(550, "odd", "4.2.2")), "5.0.0"),
        (News.FAILED, about(reply=LATER, expired=True), "4.7.1"),
        (News.FAILED, about(reply=Reply(451, "later"), expired=True), "4.4.7"),
        (News.FAILED, about(reply=Reply(0, "connection refused"), expired=True), "4.4.7"),
        (News.FAILED, about(reply=Reply(535, "bad login", "5.7.8"), expired=True), "5.7.8"),
        (News.FAILED, about(reply=Reply(0, "use the API"), by_rule=True), "5.7.1"),
        (News.FAILED, about(reply=Reply(0, "timed out"), in_doubt=True), "4.4.2"),
        (News.FAILED, about(reply=GONE, in_doubt=True), "5.1.1"),
        (News.DELAYED, about(reply=Reply(0, "timed out")), "4.4.1"),
        (News.DELAYED, about(reply=Reply(450, "busy")), "4.0.0"),
        (News.RELAYED, about(reply=Reply(250, "ok")), "2.0.0"),
    ],
)
def test_status(news: News, fate: About, status: str) -> None:
    _, (_, found), _ = parts(made(fate, news=news))
    assert found["Status"] == status


def test_in_doubt_says_that_it_may_have_been_delivered() -> None:
    text, (_, fate), _ = parts(made(about(reply=Reply(0, "timed out"), in_doubt=True)))
    assert "may have been delivered all the same" in text
    assert "Ask the recipient whether it arrived" in text
    assert fate["Remote-MTA"] is None  # nobody said anything
    assert fate["Diagnostic-Code"] == "x-relay; timed out"


def test_expired_without_a_word_from_anybody() -> None:
    text, (_, fate), _ = parts(made(about(reply=Reply(0, ""), remote="", tried_at=0.0, expired=True)))
    assert "Its time to be delivered is over." in text
    assert (fate["Diagnostic-Code"], fate["Last-Attempt-Date"], fate["Remote-MTA"]) == (None, None, None)


def test_the_text_tells_what_why_and_what_to_do() -> None:
    text, _, _ = parts(made(about(), about("other@example.net", Reply(552, "mailbox is full", "5.2.2"))))
    for words in (
        "could not be delivered to these recipients",
        "<gone@example.net>",
        "mx.example.net refused it",
        "550 5.1.1 no such user",
        "<other@example.net>",
        "552 5.2.2 mailbox is full",
        "Check the address",
        "hello",
        "1PGWBZ00001 at relay.test",
    ):
        assert words in text
    assert text.count("Check the address") == 1


def test_one_group_a_recipient_in_order() -> None:
    _, groups, _ = parts(made(*(about(f"r{n}@example.net") for n in range(50))))
    assert [g["Final-Recipient"] for g in groups[1:]] == [f"rfc822; r{n}@example.net" for n in range(50)]


# -- the original


def test_the_header_block_is_quoted_byte_for_byte() -> None:
    head = b"Subject:   odd\r\n\tfolding \r\nX-Long: " + b"x" * 2000 + b"\r\nnot a field\r\n\r\n"
    written = made(head=head)
    assert b"Content-Type: text/rfc822-headers\r\n\r\n" + head[:-2] + b"\r\n--=_T" in written.body


def test_eight_bit_is_quoted_as_it_is_and_asks_for_8bitmime() -> None:
    written = made(head=b"Subject: \xe4\xff\r\n\r\n")
    assert b"\r\nSubject: \xe4\xff\r\n" in written.body
    assert written.needs == EIGHT_BIT
    _, _, quoted = parts(written)
    assert quoted["Content-Transfer-Encoding"] == "8bit"
    assert made().needs == 0 and made().body.isascii()


def test_the_whole_message_where_asked_for() -> None:
    written = made(body=b"Line\r\n.\r\n--=_\r\nno end of line")
    _, _, quoted = parts(written)
    assert quoted.get_content_type() == "message/rfc822"
    assert HEAD + b"Line\r\n.\r\n--=_\r\nno end of line\r\n\r\n--=_T" in written.body


def test_too_large_to_be_returned_says_so() -> None:
    text, _, quoted = parts(made(too_large=True))
    assert "too large" in text
    assert quoted.get_content_type() == "text/rfc822-headers"


def test_a_long_header_block_is_cut_between_fields() -> None:
    head = b"".join(b"X-%d: a\r\n  folded\r\n" % n for n in range(5000)) + b"\r\n"
    written = made(head=head)
    assert len(written.body) < HEAD_LIMIT + 5000
    quoted = written.body.partition(b"text/rfc822-headers\r\n\r\n")[2].partition(b"\r\n--=_T")[0]
    assert head.startswith(quoted) and quoted.endswith(b"  folded\r\n")


def test_addresses_beyond_ascii() -> None:
    written = made(about("jürgen@bücher.example", orcpt="utf-8;j\\x{FC}rgen@b.example"), to="ä@example.com", utf8=True)
    _, (_, fate), quoted = parts(written)
    assert fate["Final-Recipient"] == "utf-8; j\\x{FC}rgen@b\\x{FC}cher.example"
    assert fate["Original-Recipient"] == "utf-8; j\\x{FC}rgen@b.example"
    assert quoted.get_content_type() == "message/global-headers"
    assert written.needs == EIGHT_BIT | UTF8
    assert "jürgen@bücher.example" in parts(written)[0]


# -- nobody writes a word of his own

FIELDS = {
    *("Reporting-MTA", "Original-Envelope-Id", "Arrival-Date", "X-Relay-Queue-Id", "Original-Recipient"),
    *("Final-Recipient", "Action", "Status", "Remote-MTA", "Diagnostic-Code", "Last-Attempt-Date", "Will-Retry-Until"),
}


@given(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, st.sampled_from(list(News)))
def test_what_strangers_say_starts_nothing(
    said: str, remote: str, envid: str, orcpt: str, subject: str, message_id: str, news: News
) -> None:
    fate = about(reply=Reply(550, said, "5.1.1"), remote=remote, orcpt=orcpt)
    written = made(fate, news=news, envid=envid, subject=subject, message_id=message_id)
    whole = written.head + written.body
    found = read(written)
    assert len(list(found.iter_parts())) == 3
    names = [
        "Date",
        "From",
        "To",
        "Subject",
        "Message-ID",
        "References",
        "Auto-Submitted",
        "MIME-Version",
        "Content-Type",
    ]
    assert [n for n in found if n != "References"] == [n for n in names if n != "References"]
    _, groups, quoted = parts(written)
    assert len(groups) == 2
    assert {name for group in groups for name in group} <= FIELDS
    for group in groups:
        assert len(set(group)) == len(list(group))
    assert [g["Action"] for g in groups[1:]] == [news.value]
    assert [g["Final-Recipient"] for g in groups[1:]] == ["rfc822; gone@example.net"]
    # Lines end with CRLF alone, none is longer than RFC 5321 §4.5.3.1.6 takes, and only the text may be beyond ASCII.
    assert whole.count(b"\n") == whole.count(b"\r") == whole.count(b"\r\n")
    assert max(map(len, whole.split(b"\r\n"))) <= 998
    assert b"\0" not in whole and written.body.isascii()
    assert quoted.get_content_type() == "text/rfc822-headers"


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=150))
def test_orcpt_comes_back_as_it_was_meant(address: str) -> None:
    _, (_, fate), _ = parts(made(about(orcpt=f"rfc822;{xtext(address)}")))
    assert fate["Original-Recipient"] == f"rfc822; {address}"


@given(st.binary(max_size=300))
def test_no_header_block_ends_its_part(head: bytes) -> None:
    whole = made(head=head)
    boundary = b"--=_" + b"T" * 32
    assert whole.body.count(boundary) == 4
    assert (head.removesuffix(b"\r\n") if head.endswith(b"\r\n\r\n") else head) in whole.body
