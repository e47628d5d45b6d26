"""What of a message's header finds it again when the header comes back."""

from __future__ import annotations

import pytest

from relay.envelope import queue_id
from relay.outgoing import verp
from relay.returned.original import Original, mailbox, mailboxes
from relay.returned.parts import header_fields
from relay.submission import Head
from relay.trace import prefix
from tests.pace import within

KEY = b"k" * 16
TOKEN = verp.make(KEY, 123456789, 7)


def original(head: str) -> Original:
    return Original.read(header_fields(head.encode()))


def test_our_own_trace_is_read_back() -> None:
    head = Head(b"", "", False, False, False, 0, {}, ())
    written = prefix(
        head,
        queue_id=queue_id(987654321987),
        hostname="relay.example.com",
        helo="app.example.com",
        client="2001:db8::1",
        protocol="ESMTPSA",
        now=1_700_000_000,
    )
    found = Original.read(header_fields(b"Received: from a by b; now\r\n" + written))
    assert found.queue_id == queue_id(987654321987)
    assert found.message_id == f"<{found.queue_id.lower()}@relay.example.com>"


def test_a_message_id_of_ours_is_enough() -> None:
    found = original("Message-Id: <1pgwbz00001@relay.example.com>\n")
    assert found.queue_id == "1PGWBZ00001"


@pytest.mark.parametrize(
    "line",
    [
        "Received: from a.example (a.example [192.0.2.1]) by b.example (Postfix) with ESMTPS id 4ABCDEFGHJK;",
        "Received: from a.example ([192.0.2.1]) by b.example with ESMTPS id 4abcdefghjk;",
        "Received: from a.example ([192.0.2.1]) by b.example with ESMTPS id 4ABCDEFGHJKM;",
        "Received: from a.example ([192.0.2.1]) by b.example with ESMTPS id 4ABCDEFGHJU;",
        "Message-ID: <20240101.00000000001@b.example>",
    ],
)
def test_ids_of_others_are_not_ours(line: str) -> None:
    assert original(line).queue_id == ""


@pytest.mark.parametrize(
    "line",
    [
        f"Return-Path: <bounce+{TOKEN}@bounces.example.com>",
        f"Return-Path: <SRS0=abcd=XY=bounces.example.com=bounce+{TOKEN.upper()}@forward.example>",
        f"Received: from x (y [192.0.2.1]) by z with esmtp (Exim) (envelope-from <bounce+{TOKEN}@b.example>) id 1;",
        f"Authentication-Results: mx; spf=pass smtp.mailfrom=bounce+{TOKEN}@b.example",
        f"List-Unsubscribe: <https://example.com/unsubscribe/{TOKEN}>, <mailto:x@y.example>",
        f"List-Unsubscribe: <mailto:unsubscribe+{TOKEN}@example.com>",
        f"List-Unsubscribe: <https://example.com/unsubscribe?t={TOKEN}>",
    ],
)
def test_tokens_are_found_where_they_are_quoted(line: str) -> None:
    found = original(line)
    assert found.token == TOKEN
    assert verp.read(KEY, found.token) == (123456789, 7)


@pytest.mark.parametrize(
    "line",
    [
        f"Return-Path: <bounce+{TOKEN}a@bounces.example.com>",
        f"Return-Path: <bounce+{TOKEN[:-1]}@bounces.example.com>",
        f"Subject: https://example.com/unsubscribe/{TOKEN}",
    ],
)
def test_what_looks_like_a_token_is_none(line: str) -> None:
    assert original(line).token == ""


def test_people() -> None:
    found = original(
        "Return-Path: <>\n"
        'From: "Doe, Jane" <jane@example.com>\n'
        "To: team: a@example.com, Bob (the other) <b@EXAMPLE.com>;\n"
        "Cc: <a@example.com>, =?utf-8?q?J=C3=B6rg?= <j@example.com>\n"
        "Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\n"
    )
    assert found.sender == found.author == "jane@example.com"
    assert found.recipients == ("a@example.com", "b@example.com", "j@example.com")
    assert found.subject == "Grüße"


def test_a_returned_part_may_begin_with_empty_lines() -> None:
    assert Original.of(b"\r\n\r\nMessage-ID: <a@b>\r\nTo: x@y.example\r\n\r\nMessage-ID: <c@d>").message_id == "<a@b>"


def test_addresses_that_break_the_rules() -> None:
    assert mailboxes("<<a@b.example> foo, (c@d.example") == ["a@b.example", "c@d.example"]
    assert mailbox("Undisclosed Recipients:;") == mailbox("<>") == mailbox("redacted@") == mailbox("[redacted]") == ""


@pytest.mark.parametrize(
    "mark", ["@", "<", "(", '"', "a@", "a@b,", "\\", "[", "=?", "bounce+" + "a" * 40, ") by a with b id "]
)
def test_no_value_takes_long(mark: str) -> None:
    value = (mark * 100_000)[:200_000]
    fields = [(name, value) for name in ("to", "received", "message-id", "list-unsubscribe")]
    within(0.2, lambda: Original.read(fields))
