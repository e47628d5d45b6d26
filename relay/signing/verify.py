"""Verification of what arrives: DKIM signatures (RFC 6376 §6) and ARC chains (RFC 8617 §5.2).

dkimpy reads tags, checks them, and checks the signature over the fields. All else is bounded before it gets there, for a
stranger wrote it: a body is hashed here, in linear time and never whole in memory; only fields that a signature names are
canonicalised; sizes and white space have ends. No input raises. Blocks while it asks the DNS: run it in a thread.
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import dkim as dkimpy

from relay.signing import chain
from relay.signing.canonical import Form, prefix_hashes
from relay.signing.dkim import split_fields
from relay.signing.keys import SMALLEST
from relay.signing.records import BadRecord, DnsFunc, Given, NoAnswer, PublicKey, Records
from relay.signing.tags import (
    MANDATORY,
    NUMBER,
    Field,
    Refused,
    Result,
    Tags,
    attempt,
    check,
    clean,
    domain_name,
    field_names,
    forms,
    parse,
    text,
)

MAX_SIGNATURES = 10  # RFC 6376 §6.1 leaves it to us
MAX_SLOP = 3600.0  # seconds that clocks may differ: a chain that failed is lost for good
_NAME = re.compile(rb"[!-9;-~]+[ \t]*")
_SILENT = logging.Logger("dkimpy")  # what it says is said in `why`
_SILENT.disabled = True


@dataclass(frozen=True, slots=True)
class DkimResult:
    """What one DKIM-Signature is worth. All its texts are printable ASCII, whoever wrote the message."""

    domain: str  # d=, or empty where it is none
    selector: str
    algorithm: str
    result: Result
    why: str  # for people; with pass: what else there is to know
    bits: int = 0  # of the key
    mark: str = ""  # the first 8 characters of b=, which tell it from others (RFC 6008)


@dataclass(frozen=True, slots=True)
class ArcResult:
    """What the chain is worth (RFC 8617 §4.4)."""

    cv: Literal["none", "pass", "fail"]
    instance: int = 0  # the highest that was found
    why: str = ""
    ended: bool = False  # a seal says cv=fail already, or there is no room: nobody may add another (§5.1.2)
    temporary: bool = False  # it failed because the DNS did not answer


def parts(message: bytes) -> tuple[bytes, bytes]:
    """(header block without the empty line that ends it, body) of a message from a file: its lines may end with LF."""
    message = re.sub(rb"\r?\n", b"\r\n", message)
    if not message or message.startswith(b"\r\n"):
        return b"", message[2:]
    head, _, body = message.partition(b"\r\n\r\n")
    return head.removesuffix(b"\r\n") + b"\r\n", body


def dkim_results(head: bytes, body: bytes | Path, dnsfunc: DnsFunc, now: float) -> list[DkimResult]:
    """One for each signature, from the top, MAX_SIGNATURES at most. Lines end with CRLF. Raises OSError."""
    return Verifier(head, body, dnsfunc, now).dkim()


def arc_result(head: bytes, body: bytes | Path, dnsfunc: DnsFunc, now: float) -> ArcResult:
    """Raises OSError."""
    return Verifier(head, body, dnsfunc, now).arc()


class Verifier:
    """One message. Asks for each record once and reads the body once for each canonical form."""

    def __init__(self, head: bytes, body: bytes | Path, source: DnsFunc | Given, now: float) -> None:
        """`source`: of the keys. `now`: epoch seconds, for t= and x=."""
        self._body, self._now = body, now
        self._records = source if isinstance(source, Given) else Records(source)
        fields = split_fields(head)
        mbox = bool(fields) and (fields[0][0] or fields[0][1]).startswith((b"From ", b">From "))
        self._odd = not all(_NAME.fullmatch(name) for name, _ in fields[mbox:])
        self._named: dict[bytes, list[Field]] = {}
        for one in fields:
            self._named.setdefault(one[0].rstrip(b" \t").lower(), []).append(one)
        found = self._named.get(b"dkim-signature", [])[:MAX_SIGNATURES]
        self._signatures: list[tuple[Field, Tags | Refused]] = [(one, attempt(parse, one)) for one in found]
        said = [tags.get(b"l", b"") for _, tags in self._signatures if isinstance(tags, dict)]
        self._lengths = {int(length) for length in said if NUMBER.fullmatch(length)}
        self._hashes: dict[Form, tuple[int, dict[int, bytes]]] = {}

    def dkim(self) -> list[DkimResult]:
        """See dkim_results."""
        return [self._dkim(one, tags) for one, tags in self._signatures]

    def _dkim(self, signature: Field, tags: Tags | Refused) -> DkimResult:
        if isinstance(tags, Refused):
            return DkimResult("", "", "", tags.result, clean(tags.why))
        notes: list[str] = []
        found: list[PublicKey] = []
        refused = attempt(self._check_dkim, signature, tags, notes, found)
        if isinstance(refused, Refused):
            notes.insert(0, refused.why)
        return DkimResult(
            domain_name(tags.get(b"d", b"")),
            domain_name(tags.get(b"s", b"")),
            clean(text(tags.get(b"a", b""))),
            refused.result if isinstance(refused, Refused) else "pass",
            clean("; ".join(notes)),
            found[0].bits if found else 0,
            clean(text(re.sub(rb"\s+", b"", tags.get(b"b", b""))[:8])),
        )

    def _check_dkim(self, signature: Field, tags: Tags, notes: list[str], found: list[PublicKey]) -> None:
        """Raises Refused unless it is good; adds what else is to be known, and the key."""
        if missing := [f"{text(name)}=" for name in MANDATORY if name not in tags]:
            raise Refused("neutral", f"the signature can't be read: it has no {', '.join(missing)}")
        check(tags, MANDATORY, False)
        names, (header_form, body_form) = field_names(tags), forms(tags, b"simple/simple")
        authors = len(self._named.get(b"from", ()))
        if b"from" not in names:
            raise Refused("permerror", "it does not sign From")  # RFC 6376 §6.1.1
        if not authors:
            raise Refused("permerror", "the message has no From")
        if self._odd:
            raise Refused("permerror", "the header block has a line that is no field")
        notes += self._check_times(tags)
        unsigned = self._check_body(tags, body_form)
        key = self._key(tags)
        found.append(key)
        if key.testing:
            notes.append("the domain only tests DKIM (t=y)")
        if key.strict and tags.get(b"i", b"@" + tags[b"d"]).rpartition(b"@")[2].lower() != tags[b"d"].lower():
            raise Refused("permerror", "i= is of another domain than d=, which its key forbids (t=s)")
        if not _good(signature, tags, header_form, names, self._fields_for(names, signature), key):
            more = f"; the message has {authors} From fields" if authors > 1 else ""
            raise Refused("fail", "the header was altered, or another key signed it" + more)
        if authors > 1:
            raise Refused("policy", f"the message has {authors} From fields")
        if unsigned:
            raise Refused("policy", f"l= leaves {unsigned} octets of the body unsigned")

    def arc(self) -> ArcResult:
        """See arc_result."""
        if not chain.present(self._named):
            return ArcResult("none", why="the message has no ARC chain")
        highest, ended = chain.highest(self._named), chain.over(self._named)
        try:
            self._check_chain(chain.sets(self._named))
        except chain.Broken as broken:
            return ArcResult("fail", highest, clean(str(broken)), ended)
        except Refused as refused:
            return ArcResult("fail", highest, clean(refused.why), ended, refused.result == "temperror")
        return ArcResult("pass", highest, "", ended)

    def _check_chain(self, sets: Sequence[chain.ArcSet]) -> None:
        """RFC 8617 §5.2. Raises Refused."""
        for number, one in enumerate(sets, 1):
            said = text(one.tags[chain.SEAL][b"cv"])
            if said != ("none" if number == 1 else "pass"):
                raise Refused("fail", f"ARC-Seal {number} says cv={said}")
        refused = attempt(self._check_message, sets[-1])
        if isinstance(refused, Refused):
            raise Refused(refused.result, f"ARC-Message-Signature {len(sets)}: {refused.why}")
        for number in range(len(sets), 0, -1):
            refused = attempt(self._check_seal, sets[:number])
            if isinstance(refused, Refused):
                raise Refused(refused.result, f"ARC-Seal {number}: {refused.why}")

    def _check_message(self, newest: chain.ArcSet) -> None:
        """The ARC-Message-Signature: like DKIM's, without its rule for From (RFC 8617 §4.1.2)."""
        signature, tags = newest.fields[chain.MESSAGE], newest.tags[chain.MESSAGE]
        names, (header_form, body_form) = field_names(tags), forms(tags, b"relaxed/relaxed")
        if chain.SEAL in names:
            raise Refused("fail", "it signs ARC-Seal")
        self._check_times(tags)
        if self._check_body(tags, body_form):
            raise Refused("policy", "l= leaves a part of the body unsigned")
        if not _good(signature, tags, header_form, names, self._fields_for(names, signature), self._key(tags)):
            raise Refused("fail", "the header was altered, or another key signed it")

    def _check_seal(self, sets: Sequence[chain.ArcSet]) -> None:
        """The newest seal of a chain, or of what it was before (RFC 8617 §5.1.1)."""
        signature, tags = sets[-1].fields[chain.SEAL], sets[-1].tags[chain.SEAL]
        covered = chain.scope(sets)[:-1]
        names = [name.rstrip(b" \t").lower() for name, _ in covered]
        # dkimpy takes fields of one name from the bottom up.
        if not _good(signature, tags, "relaxed", names, covered[::-1], self._key(tags)):
            raise Refused("fail", "the chain was altered, or another key signed it")

    def _check_times(self, tags: Tags) -> list[str]:
        """RFC 6376 §3.5, t= and x=; both are numbers. Returns what is to be known of one that is good. Raises Refused."""
        signed_at, until = (int(tags[name]) if name in tags else None for name in (b"t", b"x"))
        if until is not None and until < (signed_at or 0):
            raise Refused("neutral", "x= is before t=")
        if until is not None and self._now > until + MAX_SLOP:
            raise Refused("fail", f"it has expired (x={until})")
        if signed_at is not None and signed_at > self._now + MAX_SLOP:
            raise Refused("policy", f"it was signed in the future (t={signed_at})")
        return [f"expired {int(self._now - until)}s ago"] if until is not None and self._now >= until + 1 else []

    def _check_body(self, tags: Tags, form: Form) -> int:
        """How many octets of the body l= leaves out. Raises Refused where bh= does not fit."""
        if form not in self._hashes:
            self._hashes[form] = prefix_hashes(self._body, form, self._lengths)
        length, hashes = self._hashes[form]
        covered = int(tags[b"l"]) if b"l" in tags else length
        if covered > length:
            raise Refused("permerror", f"l={covered} is more than the body's {length} octets")
        if _decoded(tags[b"bh"]) != hashes.get(covered):
            raise Refused("fail", "the body was altered")
        return length - covered

    def _key(self, tags: Tags) -> PublicKey:
        domain, selector, algorithm = domain_name(tags[b"d"]), domain_name(tags[b"s"]), text(tags[b"a"])
        if not domain or not selector:
            raise Refused("neutral", f"{'s' if domain else 'd'}= is no domain name")
        try:
            key = self._records.key(selector, domain, algorithm.partition("-")[0])
        except NoAnswer as error:
            raise Refused("temperror", str(error)) from None
        except BadRecord as error:
            raise Refused("permerror", f"its key: {error}") from None
        if algorithm != f"{key.kind}-sha256":
            raise Refused("permerror", f"its key is of kind {key.kind}, the signature says {algorithm}")
        if key.hashes is not None and b"sha256" not in key.hashes:
            raise Refused("permerror", "its key does not allow sha256 (h=)")
        if key.kind == "rsa" and key.bits < SMALLEST:  # RFC 8301 §3.2
            raise Refused("policy", f"an RSA key of {key.bits} bits; less than {SMALLEST} is no proof")
        return key

    def _fields_for(self, names: Sequence[bytes], signature: Field) -> list[Field]:
        """Those fields that h= can mean, so that nothing else is canonicalised. A signature never signs itself."""
        found: list[Field] = []
        for name in set(names):
            # From the bottom up; one more, for dkimpy wants to see a From that is not signed, and one for the signature.
            there = self._named.get(name, [])[-names.count(name) - 2 :]
            found += [one for one in there if one is not signature]
        return found


def _good(
    signature: Field, tags: Tags, form: Form, names: Sequence[bytes], fields: Sequence[Field], key: PublicKey
) -> bool:
    """Does dkimpy find the signature over these fields good? Raises Refused where it can't say."""
    checker = dkimpy.DomainSigner(logger=_SILENT)
    checker.headers = list(fields)
    checker.pk, checker.ktag, checker.keysize = key.key, key.kind.encode(), key.bits
    # Without bh= it leaves the body to us.
    told = {name: value for name, value in tags.items() if name != b"bh"} | {b"c": form.encode()}
    name, value = signature
    if form == "relaxed":
        value = b" " + value  # its expression does not find a b= that follows the colon
    try:
        return bool(checker.verify_sig_process(told, list(names), (name, value), None))
    except Exception as error:  # noqa: BLE001 - dkimpy lets through what its parsers raise
        raise Refused("fail", f"the signature can't be checked: {type(error).__name__}") from None


def _decoded(value: bytes) -> bytes:
    try:
        return base64.b64decode(re.sub(rb"\s+", b"", value), validate=True)
    except binascii.Error:
        return b""
