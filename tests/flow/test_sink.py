"""The sink keeps what it gets, byte for byte, and leaves nothing else behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from front import Client

from relay.settings import Address
from relay.sink import Kept, Sink, read_kept, subject


@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_what_arrives_is_kept(tmp_path: Path, size: int) -> None:
    arrived: list[Kept] = []
    sink = Sink(Address("127.0.0.1", 0), tmp_path / "sink", arrived.append)
    client = Client(*await asyncio.open_connection("127.0.0.1", await sink.open()))
    await client.reply()
    await client.say("EHLO x")
    content = b"X-Relay-Tag: stays\r\nSubject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n\r\n.dot\r\n" + b"x" * size + b"\r\n"
    assert (await client.mail(content, "a@x.example", "b@x.example"))[0] == 250
    (kept,) = arrived
    assert (kept.sender, kept.recipients, kept.subject) == ("app@example.com", ("a@x.example", "b@x.example"), "grüße")
    assert kept.size == len(content)
    assert read_kept(kept.path) == content
    assert b"X-Sink-To: a@x.example, b@x.example\r\n" in kept.path.read_bytes()
    await client.close()
    await sink.close()
    assert sink.door.intake.budget.used == 0
    assert [p.name for p in (tmp_path / "sink").iterdir() if p.is_file()] == [kept.path.name]
    assert list((tmp_path / "sink" / "content").iterdir()) == []


@pytest.mark.parametrize(
    ("head", "shown"),
    [
        (b"Subject: plain\r\n\r\n", "plain"),
        (b"\r\n", ""),
        (b"Subject: =?nonsense?q?x?=\r\n\r\n", "=?nonsense?q?x?="),
        (b"Subject: \xff\xfe\r\n\r\n", "\ufffd\ufffd"),
        (b"Subject: =?utf-8?b?!!!?=\r\n\r\n", None),
        (b"Subject: =?utf-8?b?a?=\r\n\r\n", "=?utf-8?b?a?="),
        (b"no header", ""),
    ],
)
def test_a_subject_is_shown_whatever_it_is(head: bytes, shown: str | None) -> None:
    found = subject(head)
    assert len(found) <= 100
    assert shown is None or found == shown
