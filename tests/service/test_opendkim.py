"""Our signatures as OpenDKIM judges them, and its as we do: the verifier in front of many receivers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from signatures import BODY, DOMAIN, HEAD, published, signed

from relay.clock import now
from relay.signing.canonical import Form
from relay.signing.keys import generate
from relay.signing.verify import dkim_results

from .support import needs, run

pytestmark = needs("opendkim")

KEYS = {"rsa": generate("rsa"), "ed25519": generate("ed25519")}
ODD = (
    b"Received: from a\r\n\tby b; Tue, 14 Nov 2023 22:13:20 +0000\r\n"
    b"Received: from b\r\n  by\r\n \t c  ; Tue, 14 Nov 2023 22:13:21 +0000\r\n"
    b"FROM:   \"A  Person\" <a@example.com>  \r\nTo: b@example.net,\r\n\t c@example.net\r\nSubject:\r\n"
    b"Subject: caf\xc3\xa9 \t \r\nX-Long: " + b"x" * 900 + b"\r\nDate: Tue, 14 Nov 2023 22:13:20 +0000\r\nCc:\r\n"
)  # fmt: skip
MESSAGES = {
    "plain": (HEAD, BODY),
    "odd": (ODD, BODY),
    "no body": (HEAD, b""),
    "empty lines": (HEAD, b"\r\n" * 5),
    "blanks": (HEAD, b" \t\r\n  a\t\t b \r\n\t\r\n \r\n"),
    "long": (HEAD, (b"x" * 990 + b"\r\n") * 3000),
    "dots": (HEAD, b".\r\n..\r\n.a\r\n"),
    "8 bits": (HEAD, bytes(range(1, 10)) + bytes(range(14, 256)) + b"\r\n"),
}
NAMES = frozenset([b"from", b"to", b"subject", b"date", b"received", b"x-long", b"cc", b"message-id"])


def as_it_reads(head: bytes) -> bytes:
    """Its reader of files has one blank behind each colon, whatever stood there; a milter gets what came."""
    return re.sub(rb"(?m)^([A-Za-z-]+:) *", rb"\1 ", head)


def judged(folder: Path, content: bytes) -> list[str]:
    """`method=result` and selector of each signature, as OpenDKIM would write it on top."""
    zone, config, message = folder / "zone", folder / "opendkim.conf", folder / "message"
    zone.write_text("".join(f"{name}._domainkey.{DOMAIN} {key.record}\n" for name, key in KEYS.items()))
    config.write_text(
        f"Mode v\nTestDNSData file:{zone}\nSyslog no\nAuthservID test\nAlwaysAddARHeader yes\nTemporaryDirectory {folder}\n"
    )
    message.write_bytes(content)
    told = run("opendkim", "-x", config, "-t", message, "-vv").stdout
    return re.findall(r"dkim=(\w+ .*?header\.s=\w+|\w+)", told.replace("\n", " "))


def results(found: list[str]) -> list[tuple[str, str]]:
    return [(one.split()[0], one.rpartition("header.s=")[2]) for one in found]


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("text", ["relaxed", "simple"])
@pytest.mark.parametrize("header", ["relaxed", "simple"])
def test_it_verifies_what_we_sign(tmp_path: Path, header: Form, text: Form, message: str) -> None:
    head, body = MESSAGES[message]
    if header == "simple":
        head = as_it_reads(head)
    for name, key in KEYS.items():
        head = signed(
            key,
            head,
            body,
            selector=name,
            header=header,
            text=text,
            names=NAMES,
            always=(b"from", b"cc", b"reply-to"),
            once_more=frozenset([b"subject"]),
        )
    found = judged(tmp_path, head + b"\r\n" + body)
    assert results(found) == [("pass", "ed25519"), ("pass", "rsa")]


def test_it_refuses_what_was_altered(tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    for name, key in KEYS.items():
        head = signed(key, selector=name, always=(b"from",))
        for content in (
            head + b"\r\n" + BODY + b"more\r\n",
            head.replace(b"Of this", b"Of that") + b"\r\n" + BODY,
            b"From: evil@example.org\r\n" + head + b"\r\n" + BODY,
        ):
            assert [result for result, _ in results(judged(tmp_path, content))] != ["pass"], content


@pytest.mark.parametrize(
    ("kind", "forms"),
    [
        ("rsa", "relaxed/relaxed"),
        ("rsa", "relaxed/simple"),
        ("rsa", "simple/relaxed"),
        ("rsa", "simple/simple"),
        ("ed25519", "relaxed/relaxed"),
        ("ed25519", "relaxed/simple"),  # 2.11 refuses its own Ed25519 signatures over fields in simple form
    ],
)
def test_we_verify_what_it_signs(tmp_path: Path, kind: str, forms: str) -> None:
    """With a key as we keep it."""
    key, config = KEYS[kind], tmp_path / "opendkim.conf"
    (tmp_path / "key").write_text(key.pem())
    (tmp_path / "key").chmod(0o600)
    config.write_text(
        f"Mode s\nDomain {DOMAIN}\nSelector s\nKeyFile {tmp_path}/key\nSignatureAlgorithm {key.algorithm}\n"
        f"Canonicalization {forms}\nOversignHeaders From\nInternalHosts 0.0.0.0/0\nSyslog no\n"
        f"TemporaryDirectory {tmp_path}\nRequireSafeKeys no\n"
    )
    for head, body in MESSAGES.values():
        head = as_it_reads(head)
        (tmp_path / "message").write_bytes(head + b"\r\n" + body)
        told = run("opendkim", "-x", config, "-t", tmp_path / "message", "-vv").stdout
        field = re.findall(r"hname='DKIM-Signature' hvalue='(.*?)'", told, re.DOTALL)[0].replace("\n", "\r\n")
        head = f"DKIM-Signature: {field}\r\n".encode() + head
        found = dkim_results(head, body, published(s=key), now())
        assert [(one.result, one.why, one.bits) for one in found] == [("pass", "", key.bits)]
