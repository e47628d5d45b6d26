"""Odd and broken messages through the real listener: what is kept is our prefix and what came, byte for byte, but for a
header block that readers would not agree on: that is put right by the rules of docs/adr/0010-malformed-headers.md.
"""

from __future__ import annotations

import re
from pathlib import Path

import dkim
from front import front

from relay.envelope import parse_queue_id

PREFIX = re.compile(
    rb"Received: from client\.example \(\[127\.0\.0\.1\]\)\r\n\tby relay\.test with ESMTP id [0-9A-Z]{11};\r\n\t[ -~]+\r\n"
    rb"(?:Date: [ -~]+\r\n)?(?:Message-ID: <[0-9a-z]{11}@relay\.test>\r\n)?"
    rb"(?:From: <app@example\.com>\r\n)?"
)
# In the plainest words, apart from the code under test.
NAME = re.compile(rb"([!-9;-~]+)[ \t]*:")
REMOVED = re.compile(rb"bcc|resent-bcc|x-relay-.*")
LISTS = (b"to", b"cc", b"reply-to")
ONCE = (b"from", b"sender", b"date", b"message-id", b"in-reply-to", b"references", b"subject", b"mime-version", b"content-type",
        b"content-transfer-encoding", *LISTS)  # fmt: skip


def normalised(content: bytes) -> bytes:
    if content and not content.endswith(b"\r\n"):
        content += b"\r\n"  # a client has to end the line before its final dot
    return re.sub(rb"\r\n|\r|\n", b"\r\n", content)


def expected(content: bytes) -> bytes:
    """What is kept behind the prefix."""
    lines = content.split(b"\r\n")
    at = 0
    while re.match(rb">?From ", lines[at]) and not NAME.match(lines[at]):
        at += 1  # of an mbox file
    if not NAME.match(lines[at]):  # no header at all
        return b"\r\n" + content.removeprefix(b"\r\n")
    fields: list[list[bytes]] = []
    while lines[at][:1] in (b" ", b"\t") or NAME.match(lines[at]):
        if lines[at][:1] not in (b" ", b"\t"):
            fields.append([re.sub(rb"[ \t]*:", b":", lines[at], count=1)])
        elif lines[at].strip():
            fields[-1].append(lines[at])
        at += 1
    ended = at if lines[at] or at == len(lines) - 1 else at + 1  # an empty line ends it, or what is no field
    kept = once(fields)
    return b"".join(line + b"\r\n" for field in kept for line in field) + b"\r\n" + b"\r\n".join(lines[ended:])


def once(fields: list[list[bytes]]) -> list[list[bytes]]:
    kept: list[list[bytes]] = []
    for field in fields:
        name, value = field[0].split(b":", 1)[0].lower(), b"".join(field).split(b":", 1)[1].split()
        first = next((k for k in kept if k[0].lower().startswith(name + b":")), None) if name in ONCE else None
        if REMOVED.fullmatch(name) or (name == b"from" and not value):
            continue
        if first is None:
            kept.append(field)
        elif b"".join(first).split(b":", 1)[1].split() == value:
            continue
        elif name in LISTS:
            first[-1] += b","
            first += [b" " + field[0].split(b":", 1)[1].strip(), *field[1:]]
        else:
            kept.append([b"X-Original-" + field[0], *field[1:]])
    return kept


def samples(corpora: Path) -> list[Path]:
    folders = [corpora / "mime", corpora / "bounces", corpora / "not_bounces", corpora / "arf"]
    return [
        p for f in folders for p in sorted(f.rglob("*")) if p.is_file() and p.name not in ("LICENSE", "expected.json")
    ]


async def test_every_odd_message_is_kept_as_it_came_or_put_right(tmp_path: Path, corpora: Path) -> None:
    found = samples(corpora)
    assert sum("mime" in p.parts for p in found) >= 180
    refused: dict[str, str] = {}
    repaired: dict[str, list[str]] = {}
    async with front(tmp_path) as relay, relay.session() as client:
        relay.spool.max_message_size = 50_000_000
        for path in found:
            raw = path.read_bytes()
            # As a client that knows lines sends it, and as one does that does not.
            for content in {normalised(raw), raw}:
                code, text = await client.mail(content)
                if code != 250:
                    refused[path.name] = f"{code} {text}"
                    continue
                kept = await relay.kept(parse_queue_id(text.rsplit(" ", 1)[1]))
                rest = expected(normalised(content))
                assert kept.endswith(rest), path
                assert PREFIX.fullmatch(kept[: -len(rest)]), path
                dkim.rfc822_parse(kept)
                repaired[path.name] = sorted({event["what"] for event in relay.told("repaired")})
                assert relay.told("session_error") == []
                relay.events.clear()
        assert relay.told("session_error") == []
        assert refused == {}
        # Most have a sound header, and of it nothing is touched; these are the ones that are odd in more than their ends.
        assert sum(not what for what in repaired.values()) >= 420
        ends = {"mbox_line", "no_from", "not_a_field"}
        touched = {name: sorted(set(what) - ends) for name, what in repaired.items() if set(what) - ends}
        assert touched == {
            "bad_subject.eml": ["blank_line"],
            "example13.eml": ["blank_before_colon"],
            "example14.eml": ["blank_line"],
            "lhost-kddi-02.eml": ["renamed"],
            "msg_20.txt": ["merged"],
            "msg_25.txt": ["merged"],
            "multiple_content_types.eml": ["renamed"],
            "multiple_references_with_one_invalid.eml": ["renamed"],
            "new_line_in_to_header.eml": ["blank_line"],
            "raw_email_with_binary_encoded.eml": ["renamed"],
            "raw_email_with_multipart_mixed_quoted_boundary.eml": ["renamed"],
        }
