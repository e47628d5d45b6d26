"""Odd and broken messages through the real listener: what is kept is our prefix and what came, byte for byte."""

from __future__ import annotations

import re
from pathlib import Path

from front import front

from relay.envelope import parse_queue_id

REFUSED_FOR_NUL = "554 5.6.0 message has a NUL byte; send it as base64 (RFC 5321 section 2.3.8)"
PREFIX = re.compile(
    rb"Received: from client\.example \(\[127\.0\.0\.1\]\)\r\n\tby relay\.test with ESMTP id [0-9A-Z]{11};\r\n\t[ -~]+\r\n"
    rb"(?:Date: [ -~]+\r\n)?(?:Message-ID: <[0-9a-z]{11}@relay\.test>\r\n)?"
)
# In the plainest words, apart from the code under test.
HEADER = re.compile(rb"[!-9;-~]+[ \t]*:|>?From ")
REMOVED = re.compile(rb"(?im)^(?:(?:resent-)?bcc|x-relay-[!-9;-~]*)[ \t]*:[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*")


def normalised(content: bytes) -> bytes:
    if content and not content.endswith(b"\r\n"):
        content += b"\r\n"  # a client has to end the line before its final dot
    return re.sub(rb"\r\n|\r|\n", b"\r\n", content)


def expected(content: bytes) -> bytes:
    """What is kept behind the prefix."""
    if content.startswith(b"\r\n"):
        return content
    if content and not HEADER.match(content):
        return b"\r\n" + content
    head, _, body = content.partition(b"\r\n\r\n")
    head = head.removesuffix(b"\r\n") + b"\r\n" if head else b""
    return REMOVED.sub(b"", head) + b"\r\n" + body


def samples(corpora: Path) -> list[Path]:
    folders = [corpora / "mime", corpora / "bounces", corpora / "not_bounces", corpora / "arf"]
    return [
        p for f in folders for p in sorted(f.rglob("*")) if p.is_file() and p.name not in ("LICENSE", "expected.json")
    ]


async def test_every_odd_message_is_kept_as_it_came(tmp_path: Path, corpora: Path) -> None:
    found = samples(corpora)
    assert sum("mime" in p.parts for p in found) >= 180
    refused: dict[str, str] = {}
    async with front(tmp_path) as relay, relay.session() as client:
        relay.spool.max_message_size = 50_000_000
        for path in found:
            raw = path.read_bytes()
            # As a client that knows lines sends it, and as one does that does not.
            for content in {normalised(raw), raw}:
                code, text = await client.mail(content)
                if code != 250:
                    refused[path.name] = f"{code} {text}"
                    assert b"\0" in content, (path, text)
                    continue
                kept = await relay.kept(parse_queue_id(text.rsplit(" ", 1)[1]))
                rest = expected(normalised(content))
                assert kept.endswith(rest), path
                assert PREFIX.fullmatch(kept[: -len(rest)]), path
        assert relay.told("session_error") == []
        # Pictures and sounds that lie among the messages, and one bounce with a NUL in its text.
        assert set(refused.values()) == {REFUSED_FOR_NUL}
        assert {name for name in refused if name.endswith((".eml", ".txt"))} <= {"lhost-x2-04.eml"}
