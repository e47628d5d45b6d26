"""Does what the DNS holds belong to a key? By RFC 6376 §3.6.1, and by what receivers make of mistakes. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cryptography.hazmat.primitives import serialization
from dkim.util import InvalidTagValueList, parse_tag_value

from relay.signing.key import SigningKey

Verdict = Literal[
    "ok",
    "absent",
    "several",
    "bad syntax",
    "revoked",
    "wrong key",
    "wrong k=",
    "wrong h=",
    "wrong s=",
]
_MEANT = re.compile(rb'["\s]*(?:v\s*=\s*)?DMARC1', re.IGNORECASE)
_DMARC = re.compile(r"v\s*=\s*DMARC1")
_TAG = re.compile(r"\w+\s*=")
_POLICY = re.compile(r"p\s*=\s*(none|quarantine|reject)", re.IGNORECASE)
SHOWN = 40  # characters of a record that is quoted


@dataclass(frozen=True, slots=True)
class Published:
    """Whether signatures of a key verify by its record; `text` says why not and what to do, or, where they do, what to know."""

    verdict: Verdict
    text: str = ""

    @property
    def good(self) -> bool:
        return self.verdict == "ok"


def place(selector: str, domain: str) -> str:
    """The name that the record of a key stands at."""
    return f"{selector}._domainkey.{domain}"


def compare(key: SigningKey, records: Sequence[bytes] | None) -> Published:
    """A key and the TXT records at its place; None or none: there is no such name, or it has none."""
    if not records:
        return Published("absent", "publish the record; until then no signature of this key verifies")
    if len(records) > 1:
        return Published(
            "several", f"{len(records)} TXT records stand there, and a receiver takes any: leave one, ours"
        )
    (record,) = records
    tags = _tags(record)
    return _syntax(record) if tags is None else _wrong_tag(key, tags) or _wrong_key(key, tags) or _good(tags)


def _tags(record: bytes) -> dict[bytes, bytes] | None:
    try:
        tags: dict[bytes, bytes] = parse_tag_value(record)
    except InvalidTagValueList:
        return None
    version = b"v" not in tags or next(iter(tags.items())) == (b"v", b"DKIM1")  # it has to stand first
    return tags if b"p" in tags and version else None


def _syntax(record: bytes) -> Published:
    if b'"' in record or b"\\" in record:
        return Published(
            "bad syntax",
            "quotes or backslashes are part of the value: enter it without them, they belong to a zone file",
        )
    text = record.decode("ascii", "replace")[:SHOWN]
    return Published("bad syntax", f"what stands there is no record of a key: {text!r}; publish ours in its place")


def _wrong_tag(key: SigningKey, tags: dict[bytes, bytes]) -> Published | None:
    """All but `p=`: what an absent tag means is in RFC 6376 §3.6.1."""
    if not tags[b"p"]:
        return Published("revoked", "p= is empty, so the key is withdrawn: make a new one with a selector of its own")
    kind = tags.get(b"k", b"rsa").decode("ascii", "replace")
    if kind != key.kind:
        stands = f"k={kind}" if b"k" in tags else "no k=, which means rsa,"
        return Published("wrong k=", f"{stands} stands there, and the key is {key.kind}: publish our record")
    if b"h" in tags and b"sha256" not in _list(tags[b"h"]):
        return Published("wrong h=", "h= does not name sha256, the only hash that is in use: leave h= out")
    if b"s" in tags and not {b"*", b"email"} & set(_list(tags[b"s"])):
        return Published("wrong s=", "s= names neither email nor *: the record is not for mail; leave s= out")
    return None


def _wrong_key(key: SigningKey, tags: dict[bytes, bytes]) -> Published | None:
    given = b"".join(tags[b"p"].split())
    ours = key.public.encode()
    if given == ours:
        return None
    if ours.startswith(given):
        return Published(
            "wrong key",
            f"p= is cut off after {len(given)} of {len(ours)} characters: a string of a TXT record holds 255, so enter two",
        )
    try:
        raw = base64.b64decode(given, validate=True)
    except binascii.Error:
        return Published("bad syntax", "p= is no base64: enter the value anew, without anything in between")
    if raw in _other_forms(key):
        if key.kind == "rsa":
            return None  # RFC 6376 §3.6.1 asks for this form, nobody writes it, and verifiers take either
        return Published("wrong key", "p= holds our key as openssl writes it; RFC 8463 wants its last 32 bytes alone")
    return Published(
        "wrong key", "another key stands there: publish our record, or sign with the key that belongs to it"
    )


def _other_forms(key: SigningKey) -> list[bytes]:
    raw = base64.b64decode(key.public)
    if key.kind == "ed25519":
        return [bytes.fromhex("302a300506032b6570032100") + raw]  # SubjectPublicKeyInfo (RFC 8410 §4)
    public = serialization.load_der_public_key(raw)
    return [public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)]


def _good(tags: dict[bytes, bytes]) -> Published:
    flags = _list(tags.get(b"t", b""))
    if b"y" in flags:
        return Published("ok", "t=y says that the domain tests DKIM, and receivers think nothing of it: take it out")
    if b"s" in flags:
        return Published("ok", "t=s: not for i= of a sub-domain, which we never write")
    return Published("ok")


def _list(value: bytes) -> list[bytes]:
    return [one.strip() for one in value.split(b":")]


def meant_for_dmarc(record: bytes) -> bool:
    """Whether a TXT record at `_dmarc` wants to be a policy, well-formed or not."""
    return bool(_MEANT.match(record))


def dmarc_remark(record: str) -> str:
    """Why receivers don't take it as it stands (RFC 7489 §6.3, §6.4); empty: they do."""
    first, *tags = [tag.strip() for tag in record.split(";") if tag.strip()]
    if not _DMARC.fullmatch(first) or not all(_TAG.match(tag) for tag in tags):
        return "receivers can't read this, and take it for none: `;` stands between tags, such as v=DMARC1; p=none"
    if not any(_POLICY.fullmatch(tag) for tag in tags):
        return "it has no policy that there is: p=none, p=quarantine or p=reject"
    return ""
