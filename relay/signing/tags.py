"""The tags of one DKIM-Signature, ARC-Message-Signature or ARC-Seal that a stranger wrote (RFC 6376 §3.2, §3.5).

dkimpy reads and checks them; its expressions take the square of a run of blanks or more, so the bounds come first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import dkim as dkimpy
from dkim.util import InvalidTagValueList, parse_tag_value

from relay.signing.canonical import Form
from relay.signing.dkim import canonical_fields

Result = Literal["pass", "fail", "policy", "neutral", "temperror", "permerror"]  # RFC 8601 §2.7.1
Tags = dict[bytes, bytes]
Field = tuple[bytes, bytes]  # name as written, value with its CRLF

MAX_FIELD = 16 * 1024  # octets of one signature
MAX_NAMES = 500  # in one h=
MANDATORY = (b"v", b"a", b"b", b"bh", b"d", b"h", b"s")
_BLANKS = re.compile(rb"\s{100}")
NUMBER = re.compile(rb"[0-9]{1,12}")
_BRACKETS = str.maketrans("()", "[]")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})"
_DOMAIN = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")


class Refused(Exception):
    """Why a signature does not pass, and what that is called."""

    def __init__(self, result: Result, why: str) -> None:
        super().__init__(why)
        self.result: Result = result
        self.why = why


def attempt(check: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns, or its Refused. Whatever else a stranger's bytes may raise in dkimpy refuses as well. Raises OSError."""
    try:
        return check(*arguments)
    except Refused as refused:
        return refused
    except OSError:
        raise  # the body's file, not the message's fault
    except Exception as error:  # noqa: BLE001 - dkimpy lets through what its parsers raise
        return Refused("neutral", f"it can't be read: {type(error).__name__}")


def parse(signature: Field) -> Tags:
    """Whatever it says, unchecked. Raises Refused."""
    if len(signature[1]) > MAX_FIELD or _BLANKS.search(signature[1]):
        raise Refused("neutral", "the signature is unreasonably large")
    try:
        return cast(Tags, parse_tag_value(canonical_fields([(b"", signature[1])], "relaxed")[0][1:]))
    except InvalidTagValueList as error:
        raise Refused("neutral", f"the signature can't be read: {type(error).__name__}") from None


def check(tags: Tags, mandatory: Sequence[bytes], arc: bool) -> None:
    """Raises Refused where a tag is missing or holds what it must not. d= and s= are looked at by `domain_name`."""
    if tags.get(b"a") == b"rsa-sha1":
        raise Refused("policy", "rsa-sha1 is no proof any more (RFC 8301)")
    for name in (b"t", b"x", b"l"):
        if name in tags and not NUMBER.fullmatch(tags[name]):
            raise Refused("neutral", f"{text(name)}= is no number")
    # dkimpy reads a clock of its own for these two, and lets ten hours pass.
    told = {name: value for name, value in tags.items() if name not in (b"t", b"x")}
    if arc and tags.get(b"a") == b"ed25519-sha256":
        told[b"a"] = b"rsa-sha256"  # the only one that it knows for ARC
    try:
        dkimpy.validate_signature_fields(told, list(mandatory), arc)
    except dkimpy.ValidationError as error:
        raise Refused("neutral", re.sub(r"\bb'", "'", str(error))) from None
    except IndexError:
        raise Refused("neutral", "i= has no @") from None


def field_names(tags: Tags) -> list[bytes]:
    """Of h=, in lower case and in its order. Raises Refused."""
    names = [name.strip().lower() for name in tags[b"h"].split(b":")]
    if len(names) > MAX_NAMES:
        raise Refused("neutral", f"it names more than {MAX_NAMES} fields")
    return names


def forms(tags: Tags, default: bytes) -> tuple[Form, Form]:
    """(of fields, of the body). Raises Refused."""
    header, _, body = tags.get(b"c", default).partition(b"/")
    if header not in (b"simple", b"relaxed") or body not in (b"", b"simple", b"relaxed"):
        raise Refused("neutral", "c= names no canonical form that there is")
    return cast(Form, text(header)), cast(Form, text(body or b"simple"))


def domain_name(value: bytes) -> str:
    """As the DNS knows it (RFC 8616 §4), or the empty string."""
    try:
        name = value.decode("ascii") if value.isascii() else value[:253].decode().encode("idna").decode()
    except UnicodeError:
        return ""
    return name if _DOMAIN.fullmatch(name) else ""


def text(value: bytes) -> str:
    return value.decode("ascii", "replace")


def clean(words: str) -> str:
    """Of what a stranger wrote: printable ASCII, not much of it, and nothing that ends a quoted string or a comment."""
    return re.sub(r"[^ !#-\[\]-~]", "?", words.translate(_BRACKETS))[:200]
