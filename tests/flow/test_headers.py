"""Malformed headers through the real listener: put right and told where it repairs, refused where it rejects."""

from __future__ import annotations

import re
from email import message_from_bytes
from pathlib import Path
from typing import Any

import dkim
import pytest
from front import Front, front

from relay.intake import REPAIRED
from relay.policy.classes import TrafficClass
from relay.policy.routing import Match, Question
from relay.resend import resend
from relay.settings import Address, Listen
from relay.spool import INLINE_LIMIT
from relay.submission import BadMessage

HERE = Address("127.0.0.1", 0)
DOORS = (Listen("mends", HERE), Listen("strict", HERE, headers="reject"))
FROM = b"From: a@b.example\r\n"
LARGE = (b"x" * 76 + b"\r\n") * (2 * INLINE_LIMIT // 78)


def behind_prefix(kept: bytes) -> bytes:
    """Without Received, Date and Message-ID, which stand in front."""
    return re.sub(rb"\AReceived: .*\r\n(?:\t.*\r\n)+(?:Date: .*\r\n)?(?:Message-ID: .*\r\n)?", b"", kept)


async def both(relay: Front, said: bytes, **more: Any) -> tuple[bytes, list[dict[str, Any]], str]:
    """What the first door keeps, what it tells, and how the second one refuses it."""
    relay.events.clear()
    kept = await relay.kept(await relay.send(said, **more))
    told = relay.told("repaired") + relay.told("odd_header")
    async with relay.session(1) as client:
        code, text = await client.mail(said, **more)
        assert code == 554 and text.startswith("5.6.0 "), text
    theirs, _ = dkim.rfc822_parse(kept)  # it refuses what is malformed
    parsed = message_from_bytes(kept)
    assert not parsed.defects
    assert [name.decode() for name, _ in theirs] == parsed.keys()
    return behind_prefix(kept), told, text


@pytest.mark.parametrize("body", [b"small\r\n", LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("said", "kept", "what", "refusal"),
    [
        (b"From me Mon Jan 1\r\n" + FROM, FROM, "mbox_line", "line 1: the 'From ' line of an mbox file; leave it out"),
        (FROM + b"To : x\r\n", FROM + b"To: x\r\n", "blank_before_colon", "line 2: white space between To and its colon"),
        (FROM + b"To: x\r\n \t\r\n y\r\n", FROM + b"To: x\r\n y\r\n", "blank_line", "line 3: To goes on with a line of white"),
        (FROM + b"To: \x1b[31mx\r\n", FROM + b"To:  [31mx\r\n", "control_character", "line 2: To has the control character 0x1B"),
        (FROM + FROM, FROM, "repeated", "line 2: a second From; send one (RFC 5322 section 3.6)"),
        (FROM + b"To: x\r\nTO: y\r\n", FROM + b"To: x,\r\n y\r\n", "merged", "line 3: a second TO; send one"),
        (FROM + b"Subject: x\r\nSubject: y\r\n", FROM + b"Subject: x\r\nX-Original-Subject: y\r\n", "renamed", "line 3: a second Subj"),
        (b"Subject: x\r\n", b"From: <app@example.com>\r\nSubject: x\r\n", "no_from", "the header has no From"),
        (b"Subject: x\r\nFrom: \r\n", b"From: <app@example.com>\r\nSubject: x\r\n", "no_from", "the header has no From"),
        (FROM + b"oops\r\nTo: x\r\n", FROM + b"\r\noops\r\nTo: x\r\n", "not_a_field", "line 2: no header field, nor empty"),
        (FROM + b"T\xc3\xb6: x\r\n", FROM + b"\r\nT\xc3\xb6: x\r\n", "not_a_field", "line 2: no header field, nor empty"),
    ],
)  # fmt: skip
async def test_repaired_or_refused(
    tmp_path: Path, body: bytes, said: bytes, kept: bytes, what: str, refusal: str
) -> None:
    async with front(tmp_path, *DOORS) as relay:
        before = REPAIRED.values.get((what,), 0)
        found, (told,), text = await both(relay, said + b"\r\n" + body)
        assert found == kept + b"\r\n" + body
        assert text.startswith("5.6.0 " + refusal)
        assert (told["what"], told["listener"], told["sender"], told["count"]) == (what, "mends", "app@example.com", 1)
        assert "5.6.0 " + told["why"] == text
        assert REPAIRED.values[(what,)] == before + 1
        assert len(await relay.rows()) == 1


@pytest.mark.parametrize("body", [b"small\r\n", LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    "said", [b" x\r\n" + FROM + b"\r\n", b"Hello!\r\n", b"From here on it is\r\nall text\r\n", b"\r\n", b"\r\n\r\n"]
)
async def test_no_header_at_all(tmp_path: Path, said: bytes, body: bytes) -> None:
    async with front(tmp_path, *DOORS) as relay:
        found, told, _ = await both(relay, said + body)
        assert found == b"From: <app@example.com>\r\n\r\n" + said.removeprefix(b"\r\n") + body
        assert [event["what"] for event in told] == ["not_a_field"] * (said[:1] != b"\r") + ["no_from"]


@pytest.mark.parametrize("door", [0, 1])
@pytest.mark.parametrize("body", [b"small\r\n", LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("said", "refusal"),
    [
        (FROM + b"From: x@y.example\r\n", "line 2: a second From that names somebody else; send one"),
        (FROM + b"Sender: a@b.example\r\nSender: c@b.example\r\n", "line 3: a second Sender that names somebody else"),
        (FROM + b"oops\r\nBcc: x@y.example\r\n", "line 2 is no header field, so Bcc in line 3 would be text that all see"),
        (FROM + b"oops\r\nX-Relay-Send-At: x\r\n", "line 2 is no header field, so X-Relay-Send-At in line 3 would be text"),
        (b"\r\n" + FROM + b"bcc: x@y.example\r\n", "line 1 is no header field, so bcc in line 3 would be text"),
    ],
)  # fmt: skip
async def test_refused_in_both_modes(tmp_path: Path, door: int, said: bytes, body: bytes, refusal: str) -> None:
    async with front(tmp_path, *DOORS) as relay, relay.session(door) as client:
        code, text = await client.mail(said + b"\r\n" + body)
        assert (code, text[: len(refusal) + 6]) == (554, "5.6.0 " + refusal)
        assert (await client.mail(FROM + b"\r\n" + body))[0] == 250  # the session goes on
        assert len(await relay.rows()) == 1
        assert relay.told("repaired") == []


async def test_a_sound_header_is_kept_as_it_came_by_both(tmp_path: Path) -> None:
    said = (
        b"Received: x\r\nReceived: x\r\nDate: Mon, 1 Jan 2024 00:00:00 +0000\r\nMessage-ID: <a@b>\r\n" + FROM + b"To: x,\r\n\ty \r\n"
        b"Subject:\r\n \xc3\xa4\tb\r\nX:y\r\nx:y\r\nReply-To:\r\n\r\nFrom: c@d.example\r\n \r\nBcc: x\r\n\x1b\r\n"
    )  # fmt: skip
    async with front(tmp_path, *DOORS) as relay:
        for door in (0, 1):
            assert behind_prefix(await relay.kept(await relay.send(said, door=door))) == said
        assert relay.told("repaired") == []


async def test_who_wrote_it_counts_as_if_it_had_been_said(tmp_path: Path) -> None:
    classes = {
        "app": TrafficClass("app", Match((Question("from", ("app@example.com",)),))),
        "daemon": TrafficClass("daemon", Match((Question("header", ("From: *mailer-daemon@relay.test*",)),))),
    }
    async with front(tmp_path, *DOORS, classes=classes) as relay:
        for sender, author, class_ in [
            ("app@example.com", "app@example.com", "app"),
            ("", "MAILER-DAEMON@relay.test", "daemon"),
            ('"a b"@example.com', '"a b"@example.com', "default"),
        ]:
            number = await relay.send(b"Subject: x\r\n\r\nx\r\n", sender=sender)
            row = await relay.spool.message(number)
            assert row is not None
            assert behind_prefix(row["head"]) == f"From: <{author}>\r\nSubject: x\r\n\r\n".encode()
            assert (row["header_from"], row["class"]) == (author, class_)
        async with relay.session() as client:
            said = await client.mail(b"Subject: x\r\n\r\nx\r\n", sender="é@example.com", options=" SMTPUTF8")
            assert said[0] == 250
        row = await relay.spool.message((await relay.rows())[-1]["message"])
        assert row is not None
        assert "From: <é@example.com>\r\n".encode() in row["head"]
        assert row["smtp"] & 2


@pytest.mark.parametrize("author", [b"root", b"root (Cron Daemon)", b"MAILER-DAEMON <>", b"<>", b"@"])
async def test_an_author_without_an_address_stays(tmp_path: Path, author: bytes) -> None:
    said = b"From: " + author + b"\r\n\r\nx\r\n"
    async with front(tmp_path, *DOORS) as relay:
        found, (told,), text = await both(relay, said)
        assert found == said
        assert told["what"] == "unread_from"
        assert text.startswith("5.6.0 From names no address that can be read; write it as name@domain")
        assert relay.told("repaired") == []


async def test_thousands_of_faults_are_a_line_of_each_kind(tmp_path: Path) -> None:
    said = (
        FROM + b"".join(b"To : a%d@b.example\r\n \r\nSubject: %d\x01\r\n" % (i, i) for i in range(1600)) + b"\r\nx\r\n"
    )
    async with front(tmp_path, *DOORS) as relay:
        found, told, text = await both(relay, said)
        assert {event["what"]: event["count"] for event in told} == {
            "blank_before_colon": 1600,
            "blank_line": 1600,
            "control_character": 1600,
            "merged": 1599,
            "renamed": 1599,
        }
        assert text.startswith("5.6.0 line 2: white space between To and its colon")
        assert found.count(b"@b.example") == 1601 and found.count(b"X-Original-Subject") == 1599


async def test_a_long_body_without_an_empty_line_before_it(tmp_path: Path) -> None:
    """Ten thousand lines of it are no header of ten thousand lines."""
    async with front(tmp_path, *DOORS) as relay:
        for body in (b"hello\r\n" * 10_000, b"hello\r\n" * 100_000):
            found, told, _ = await both(relay, FROM + body)
            assert found == FROM + b"\r\n" + body
            assert [event["what"] for event in told] == ["not_a_field"]


async def test_what_an_older_version_kept_is_put_right_when_it_is_sent_again(tmp_path: Path) -> None:
    async with front(tmp_path) as relay:
        for body in (b"small\r\n", LARGE):
            number = await relay.send(FROM + b"\r\n" + body)
            row = await relay.spool.message(number)
            assert row is not None
            for head, kept in [
                (b"X : y\r\n" + FROM + b"\r\n", b"X: y\r\n" + FROM + b"\r\n"),
                (b"X: y\r\n\r\n", b"From: <app@example.com>\r\nX: y\r\n\r\n"),
            ]:
                old = {**row, "head": head, "size": row["size"] - len(row["head"]) + len(head)}
                again = await resend(relay.intake, old, ["new@example.net"])
                assert await relay.kept(again) == kept + body
                found = await relay.spool.message(again)
                assert found is not None
                assert found["size"] == len(kept + body)
                assert found["header_from"] == ("a@b.example" if b"X : y" in head else "app@example.com")
            for head in (FROM + b"oops\r\n\r\n", FROM + b"From: x@y.example\r\n\r\n"):
                with pytest.raises(BadMessage, match=r"header block is broken|names somebody else"):
                    await resend(relay.intake, {**row, "head": head}, ["new@example.net"])
