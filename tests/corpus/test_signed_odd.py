"""Odd and broken messages through the whole relay: each leaves signed, and what arrives is what came, but for what is told."""

from __future__ import annotations

import re
import time
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import dkim
from fakes import Upstream
from rig import running, write_config

from relay.signing.keys import generate

RSA, ED = generate("rsa"), generate("ed25519")
SENDER = "app@example.com"
# What only the one who broke it can mend; nothing else may be refused.
ALWAYS = {"mail_malformed_3": "a NUL in multipart/alternative whose boundary begins no part"}
SEVEN_BIT = {
    **ALWAYS,
    "utf8_headers.eml": "beyond ASCII",
    "mail_test_12": "beyond ASCII",
}
SLOWEST = 1.0  # seconds of CPU from the door to the next hop's


def dns(name: bytes, timeout: int = 5) -> bytes:
    return (RSA if name.startswith(b"s1.") else ED).record.encode()


def lines(content: bytes) -> bytes:
    if content and not content.endswith(b"\n"):
        content += b"\r\n"
    return re.sub(rb"\r\n|\r|\n", b"\r\n", content)


def contents(message: bytes) -> list[bytes]:
    """What people and programs get of each part, its own encoding undone."""
    return [_content(part) for part in message_from_bytes(message).walk() if not part.is_multipart()]


def _content(part: Message[str, str]) -> bytes:
    payload = part.get_payload(decode=True)
    return payload.strip() if isinstance(payload, bytes) else b""


async def relayed(
    folder: Path, up: Upstream, paths: list[Path]
) -> tuple[dict[str, tuple[bytes, bytes, Any]], dict[str, str]]:
    """({name: (as it came, as it arrived, its story)}, {name: why not})."""
    for name, key in (("s1", RSA), ("e1", ED)):
        (folder / f"{name}.pem").write_text(key.pem())
        (folder / f"{name}.pem").chmod(0o640)
    signing = "signing:\n" + "".join(
        f'  - {{domain: "*", selector: {name}, key: {{file: {name}.pem}}}}\n' for name in ("s1", "e1")
    )
    file = write_config(
        folder, {"main": f"port: {up.port}, tls: none"}, extra=signing, spool=", max_message_size: 50MB"
    )
    arrived: dict[str, tuple[bytes, bytes, Any]] = {}
    refused: dict[str, str] = {}
    async with running(file) as rig:
        for path in paths:
            content = lines(path.read_bytes())
            begun, before = time.process_time(), len(up.done)
            number = await rig.send(message=content, sender=SENDER)
            row = await rig.reaches(number, "delivered", "failed", "deferred", "held", deadline=20)
            assert time.process_time() - begun < SLOWEST, path
            if row["state"] != "delivered":
                refused[path.name] = row["last_reply"]
                continue
            assert len(up.done) == before + 1
            story = (await rig.message(number))["events"][-1]
            arrived[path.name] = content, up.done[-1].message, story
    return arrived, refused


def tell(refused: dict[str, str]) -> None:
    """Each with its reason, for `pytest -s`."""
    for name, why in refused.items():
        print(f"refused: {name}: {why}")


def check(name: str, came: bytes, got: bytes, story: Any) -> bool:
    """Whether it was signed."""
    parsed = dkim.DKIM(got)
    count = sum(field.lower() == b"dkim-signature" for field, _ in parsed.headers)
    done = "\n".join(story.get("prepared", ()))
    ours = [i for i in range(count) if i < 2 and "signed by" in done]
    for i in ours:
        assert dkim.DKIM(got).verify(idx=i, dnsfunc=dns), name
    if "->" not in done and "written anew" not in done:
        # Not a byte of its body is another one: it stands behind ours as it came.
        body = got.partition(b"\r\n\r\n")[2]
        assert came.endswith(body) or not body.strip(), name
    else:
        assert contents(got) == contents(came) or b"\0" in came or b":" not in came[:80], name
    return len(ours) == 2


async def test_every_odd_message_leaves_signed(tmp_path: Path, corpora: Path) -> None:
    paths = sorted(p for p in (corpora / "mime").rglob("*") if p.is_file())
    assert len(paths) == 188
    async with Upstream() as up:
        arrived, refused = await relayed(tmp_path, up, paths)
    tell(refused)
    assert (
        {name for name, why in refused.items() if ALWAYS[name] in why and "5.6.3" in why} == set(ALWAYS) == set(refused)
    )
    signed = {name for name, (came, got, story) in arrived.items() if check(name, came, got, story)}
    # Two have no address in From: nobody's key can sign for that.
    assert set(arrived) - signed == {"msg_05.txt", "msg_43.txt"}


async def test_and_by_a_next_hop_that_takes_seven_bits(tmp_path: Path, corpora: Path) -> None:
    paths = sorted(p for p in (corpora / "mime").rglob("*") if p.is_file())
    async with Upstream(extensions=("PIPELINING", "SIZE 100000000")) as up:
        arrived, refused = await relayed(tmp_path, up, paths)
        assert all(transaction.wire.isascii() for transaction in up.done)
        assert max(len(line) for t in up.done for line in t.wire.split(b"\r\n")) <= 998
    tell(refused)
    assert set(refused) == set(SEVEN_BIT) and all("5.6.3" in why for why in refused.values())
    signed = {name for name, (came, got, story) in arrived.items() if check(name, came, got, story)}
    assert set(arrived) - signed == {"msg_05.txt", "msg_43.txt"}
