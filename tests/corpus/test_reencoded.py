"""Odd and broken messages re-encoded for a next hop: what they say stays, and what is refused is listed."""

from __future__ import annotations

import email
import re
from pathlib import Path

import pytest

from relay.outgoing.mime import Unconvertible, convert, convert_file, needs
from relay.submission import BadMessage, split
from tests.pace import within

# For a next hop without 8BITMIME. Nothing is refused where 8-bit content is taken.
REFUSED = {
    "mail_test_12": "an address is not ASCII|it has 8-bit octets",
    "utf8_headers.eml": "an address is not ASCII",
}


def samples(corpora: Path) -> list[tuple[str, bytes, bytes]]:
    """Name, head and body of each, as the spool keeps them."""
    found = []
    for folder in ("mime", "bounces", "not_bounces", "arf"):
        for path in sorted((corpora / folder).rglob("*")):
            if not path.is_file() or path.name in ("LICENSE", "expected.json"):
                continue
            content = re.sub(rb"\r\n|\r|\n", b"\r\n", path.read_bytes()).replace(b"\0", b"")
            try:
                start = split(content)
            except BadMessage:
                continue
            head = content[:start].removesuffix(b"\r\n").removesuffix(b"\r\n")
            found.append((path.name, head + b"\r\n\r\n" if head else b"\r\n", content[start:]))
    return found


def payloads(content: bytes) -> list[tuple[str, object]]:
    return [
        (part.get_content_type(), None if part.is_multipart() else part.get_payload(decode=True))
        for part in email.message_from_bytes(content).walk()
    ]


@pytest.mark.parametrize("seven_bit", [True, False])
def test_every_odd_message_says_what_it_said(corpora: Path, tmp_path: Path, seven_bit: bool) -> None:
    found = samples(corpora)
    assert len(found) >= 180
    changed = 0
    refused: dict[str, str] = {}
    for name, head, body in found:
        try:
            made = within(1.0, lambda head=head, body=body: convert(head, body, seven_bit=seven_bit), name)
        except Unconvertible as error:
            refused[name] = str(error)
            continue
        assert not needs(made.head, made.body, seven_bit=seven_bit), name
        assert payloads(made.head + made.body) == payloads(head + body), name
        again = convert(made.head, made.body, seven_bit=seven_bit)
        assert again.head is made.head and again.body is made.body, name
        if not made.done:
            assert made.head is head and made.body is body, name
            continue
        changed += 1
        (tmp_path / "source").write_bytes(body)
        (tmp_path / "target").unlink(missing_ok=True)
        new = convert_file(head, tmp_path / "source", tmp_path / "target", seven_bit=seven_bit)
        assert new == (made.head, made.done), name
        assert (tmp_path / "target").exists() == (made.body is not body), name
        assert made.body is body or (tmp_path / "target").read_bytes() == made.body, name
    assert changed >= (40 if seven_bit else 1)
    assert refused.keys() == (REFUSED.keys() if seven_bit else set())
    for name, why in refused.items():
        assert re.search(REFUSED[name], why), (name, why)
