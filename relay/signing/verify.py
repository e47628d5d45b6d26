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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import dkim as dkimpy
from dkim.util import InvalidTagValueList, parse_tag_value

from relay.signing.canonical import Form, prefix_hashes
from relay.signing.dkim import canonical_fields, split_fields
from relay.signing.keys import SMALLEST
from relay.signing.records import BadRecord, DnsFunc, NoAnswer, PublicKey, Records

Result = Literal["pass", "fail", "policy", "neutral", "temperror", "permerror"]  # RFC 8601 §2.7.1
Tags = dict[bytes, bytes]
Field = tuple[bytes, bytes]  # name as written, value with its CRLF

MAX_SIGNATURES = 10  # RFC 6376 §6.1 leaves it to us
MAX_SETS = 50  # RFC 8617 §4.2.1
MAX_FIELD = 16 * 1024  # octets of one signature
MAX_NAMES = 500  # in one h=
MAX_SLOP = 300.0  # seconds that clocks may differ
_BLANKS = re.compile(rb"\s{100}")  # in a signature: dkimpy's expressions take the square of a run
_MANDATORY = (b"v", b"a", b"b", b"bh", b"d", b"h", b"s")
_DOMAIN = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62}))*")
_NUMBER = re.compile(rb"[0-9]{1,12}")
_INSTANCE = re.compile(rb"[1-9][0-9]?")
_AAR = re.compile(rb"\s{0,20}i\s{0,20}=\s{0,20}([1-9][0-9]?)\s{0,20};")
_NAME = re.compile(rb"[!-9;-~]+[ \t]*")
ARC_NAMES = (b"arc-authentication-results", b"arc-message-signature", b"arc-seal")  # in the order that a seal covers
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


@dataclass(slots=True)
class ArcSet:
    """The three fields of one instance, from the top of the message down."""

    fields: dict[bytes, Field] = field(default_factory=dict)
    tags: dict[bytes, Tags] = field(default_factory=dict)


class Broken(Exception):
    """Why an ARC chain, or what stands for one, can't be followed."""


class _Refused(Exception):
    def __init__(self, result: Result, why: str) -> None:
        super().__init__(why)
        self.result: Result = result
        self.why = why


def parts(message: bytes) -> tuple[bytes, bytes]:
    """(header block without the empty line that ends it, body) of a message from a file: its lines may end with LF."""
    message = re.sub(rb"\r?\n", b"\r\n", message)
    if message.startswith(b"\r\n"):
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

    def __init__(self, head: bytes, body: bytes | Path, dnsfunc: DnsFunc, now: float) -> None:
        """`now`: epoch seconds, for t= and x=."""
        self._fields = split_fields(head)
        self._body, self._records, self._now = body, Records(dnsfunc), now
        self._named: dict[bytes, list[Field]] = {}
        for name, value in self._fields:
            self._named.setdefault(name.rstrip(b" \t").lower(), []).append((name, value))
        self._lengths: set[int] = set()  # that some l= names
        self._hashes: dict[Form, tuple[int, dict[int, bytes]]] = {}

    def dkim(self) -> list[DkimResult]:
        """See dkim_results."""
        found = self._named.get(b"dkim-signature", [])[:MAX_SIGNATURES]
        read = [_attempt(_read, one, _MANDATORY, arc=False) for one in found]
        for tags in read:
            if isinstance(tags, dict) and b"l" in tags:
                self._lengths.add(int(tags[b"l"]))
        return [self._dkim(one, tags) for one, tags in zip(found, read, strict=True)]

    def _dkim(self, signature: Field, tags: Tags | _Refused) -> DkimResult:
        if isinstance(tags, _Refused):
            return DkimResult("", "", "", tags.result, _clean(tags.why))
        notes: list[str] = []
        key: list[PublicKey] = []
        refused = _attempt(self._check_dkim, signature, tags, notes, key)
        result: Result = "pass"
        if isinstance(refused, _Refused):
            result = refused.result
            notes.insert(0, refused.why)
        domain, selector = (_text(tags[name]) for name in (b"d", b"s"))
        return DkimResult(
            domain if _DOMAIN.fullmatch(domain) else "",
            selector if _DOMAIN.fullmatch(selector) else "",
            _clean(_text(tags[b"a"])),
            result,
            _clean("; ".join(notes)),
            key[0].bits if key else 0,
            re.sub(rb"\s+", b"", tags[b"b"])[:8].decode("ascii", "replace"),
        )

    def _check_dkim(self, signature: Field, tags: Tags, notes: list[str], key: list[PublicKey]) -> None:
        """Raises _Refused unless it is good; tells what else is to be known, and of which key."""
        names = _names(tags)
        authors = len(self._named.get(b"from", ()))
        if b"from" not in names:
            raise _Refused("permerror", "it does not sign From")
        if not authors:
            raise _Refused("permerror", "the message has no From")
        if any(not _NAME.fullmatch(name) and not value.startswith(b"From ") for name, value in self._fields):
            raise _Refused("permerror", "the header block has a line that is no field")
        self._check_times(tags)
        header_form, body_form = _forms(tags, b"simple/simple")
        unsigned = self._check_body(tags, body_form)
        record = self._key(tags)
        key.append(record)
        if record.testing:
            notes.append("the domain only tests DKIM (t=y)")
        if record.strict and tags.get(b"i", b"@" + tags[b"d"]).rpartition(b"@")[2].lower() != tags[b"d"].lower():
            raise _Refused("permerror", "i= is of another domain than d=, which its key forbids (t=s)")
        if not self._good(signature, tags, header_form, names, self._fields_for(names, signature), record):
            more = f"; the message has {authors} From fields" if authors > 1 else ""
            raise _Refused("fail", "the header was altered, or another key signed it" + more)
        if authors > 1:
            raise _Refused("policy", f"the message has {authors} From fields")
        if unsigned:
            raise _Refused("policy", f"l= leaves {unsigned} octets of the body unsigned")

    def arc(self) -> ArcResult:
        """See arc_result."""
        if not any(name in self._named for name in ARC_NAMES):
            return ArcResult("none", why="the message has no ARC chain")
        highest = _highest(self._named)
        try:
            chain = arc_sets(self._named)
        except Broken as broken:
            return ArcResult("fail", highest, _clean(str(broken)), ended=highest >= MAX_SETS)
        ended = any(one.tags[b"arc-seal"][b"cv"] == b"fail" for one in chain)
        try:
            self._check_chain(chain)
        except _Refused as refused:
            temporary = refused.result == "temperror"
            return ArcResult("fail", highest, _clean(refused.why), ended or highest >= MAX_SETS, temporary)
        return ArcResult("pass", highest, ended=highest >= MAX_SETS)

    def _check_chain(self, chain: Sequence[ArcSet]) -> None:
        for number, one in enumerate(chain, 1):
            said = _text(one.tags[b"arc-seal"][b"cv"])
            if said != ("none" if number == 1 else "pass"):
                raise _Refused("fail", f"seal {number} says cv={said}")
        newest = len(chain)
        refused = _attempt(self._check_message, chain[-1])
        if isinstance(refused, _Refused):
            raise _Refused(refused.result, f"ARC-Message-Signature {newest}: {refused.why}")
        for number in range(newest, 0, -1):
            refused = _attempt(self._check_seal, chain[:number])
            if isinstance(refused, _Refused):
                raise _Refused(refused.result, f"ARC-Seal {number}: {refused.why}")

    def _check_message(self, newest: ArcSet) -> None:
        """The ARC-Message-Signature: like DKIM's, without its rule for From (RFC 8617 §4.1.2)."""
        signature, tags = newest.fields[b"arc-message-signature"], newest.tags[b"arc-message-signature"]
        names = _names(tags)
        if b"arc-seal" in names:
            raise _Refused("fail", "it signs ARC-Seal")
        self._check_times(tags)
        header_form, body_form = _forms(tags, b"relaxed/relaxed")
        if self._check_body(tags, body_form):
            raise _Refused("policy", "l= leaves a part of the body unsigned")
        record = self._key(tags)
        if not self._good(signature, tags, header_form, names, self._fields_for(names, signature), record):
            raise _Refused("fail", "the header was altered, or another key signed it")

    def _check_seal(self, chain: Sequence[ArcSet]) -> None:
        """The newest seal of a part of the chain (RFC 8617 §5.1.1)."""
        signature, tags = chain[-1].fields[b"arc-seal"], chain[-1].tags[b"arc-seal"]
        covered = seal_scope(chain)[:-1]
        record = self._key(tags)
        names = [name.rstrip(b" \t").lower() for name, _ in covered]
        # dkimpy takes fields of one name from the bottom up.
        if not self._good(signature, tags, "relaxed", names, covered[::-1], record):
            raise _Refused("fail", "the chain was altered, or another key signed it")

    def _check_times(self, tags: Tags) -> None:
        """RFC 6376 §3.5, t= and x=; both are numbers."""
        signed_at, until = (int(tags[name]) if name in tags else None for name in (b"t", b"x"))
        if until is not None and until < (signed_at or 0):
            raise _Refused("neutral", "x= is before t=")
        if until is not None and self._now > until + MAX_SLOP:
            raise _Refused("fail", f"it has expired (x={until})")
        if signed_at is not None and signed_at > self._now + MAX_SLOP:
            raise _Refused("policy", f"it was signed in the future (t={signed_at})")

    def _check_body(self, tags: Tags, form: Form) -> int:
        """How many octets of the body l= leaves out. Raises _Refused where bh= does not fit."""
        if form not in self._hashes:
            self._hashes[form] = prefix_hashes(self._body, form, self._lengths)
        length, hashes = self._hashes[form]
        covered = int(tags[b"l"]) if b"l" in tags else length
        if covered > length:
            raise _Refused("permerror", f"l={covered} is more than the body's {length} octets")
        if _decoded(tags[b"bh"]) != hashes.get(covered):
            raise _Refused("fail", "the body was altered")
        return length - covered

    def _key(self, tags: Tags) -> PublicKey:
        for name in (b"d", b"s"):
            if not _DOMAIN.fullmatch(_text(tags[name])):
                raise _Refused("neutral", f"{name.decode()}= is no domain name")
        try:
            record = self._records.key(tags[b"s"], tags[b"d"])
        except NoAnswer as error:
            raise _Refused("temperror", str(error)) from None
        except BadRecord as error:
            raise _Refused("permerror", f"its key: {error}") from None
        algorithm = _text(tags[b"a"])
        if algorithm != f"{record.kind}-sha256":
            raise _Refused("permerror", f"its key is of kind {record.kind}, the signature says {algorithm}")
        if record.hashes is not None and b"sha256" not in record.hashes:
            raise _Refused("permerror", "its key does not allow sha256 (h=)")
        if record.kind == "rsa" and record.bits < SMALLEST:
            # RFC 8301 §3.2
            raise _Refused("policy", f"an RSA key of {record.bits} bits; less than {SMALLEST} is no proof")
        return record

    def _fields_for(self, names: Sequence[bytes], signature: Field) -> list[Field]:
        """Those fields that h= can mean, so that nothing else is canonicalised. A signature never signs itself."""
        found: list[Field] = []
        for name in set(names):
            there = [one for one in self._named.get(name, ()) if one is not signature]
            found += there[-names.count(name) - 1 :]  # one more: dkimpy wants to see a From that is not signed
        return found

    def _good(
        self,
        signature: Field,
        tags: Tags,
        form: Form,
        names: Sequence[bytes],
        fields: Sequence[Field],
        record: PublicKey,
    ) -> bool:
        """Does dkimpy find the signature over these fields good?"""
        check = dkimpy.DomainSigner(logger=_SILENT)
        check.headers = list(fields)
        check.pk, check.ktag, check.keysize = record.key, record.kind.encode(), record.bits
        # Without bh= it leaves the body to us.
        told = {name: value for name, value in tags.items() if name != b"bh"} | {b"c": form.encode()}
        name, value = signature
        if form == "relaxed":
            value = b" " + value  # its expression does not find a b= that follows the colon
        return bool(check.verify_sig_process(told, list(names), (name, value), None))


def arc_sets(named: dict[bytes, list[Field]]) -> list[ArcSet]:
    """The chain from i=1, whole and well-formed; nothing is verified yet. `named`: lower-case name -> fields. Raises Broken."""
    found: dict[int, ArcSet] = {}
    if sum(len(named.get(name, ())) for name in ARC_NAMES) > MAX_SETS * len(ARC_NAMES):
        raise Broken(f"more ARC fields than {MAX_SETS} sets have")
    for name in ARC_NAMES:
        for one in named.get(name, ()):
            tags: Tags = {}
            if name == b"arc-authentication-results":
                matched = _AAR.match(one[1])
                number = matched[1] if matched else b""
            else:
                mandatory = _MANDATORY[1:] if name == b"arc-message-signature" else (b"a", b"b", b"cv", b"d", b"s")
                read = _attempt(_read, one, (b"i", *mandatory), arc=True)
                if isinstance(read, _Refused):
                    raise Broken(f"{_text(name)}: {read.why}")
                tags, number = read, read[b"i"]
            if not _INSTANCE.fullmatch(number) or int(number) > MAX_SETS:
                raise Broken(f"{_text(name)}: i= is no number from 1 to {MAX_SETS}")
            if name == b"arc-seal" and b"h" in tags:
                raise Broken("arc-seal: it has h=")
            holder = found.setdefault(int(number), ArcSet())
            if name in holder.fields:
                raise Broken(f"{_text(name)} {int(number)} is there twice")
            holder.fields[name], holder.tags[name] = one, tags
    for number in range(1, max(found, default=0) + 1):
        if number not in found or len(found[number].fields) < len(ARC_NAMES):
            raise Broken(f"set {number} is not whole")
    return [found[number] for number in sorted(found)]


def seal_scope(chain: Iterable[ArcSet]) -> list[Field]:
    """The fields that a seal covers, in its order; the last one is the newest seal itself (RFC 8617 §5.1.1)."""
    return [one.fields[name] for one in chain for name in ARC_NAMES]


def _highest(named: dict[bytes, list[Field]]) -> int:
    """The highest instance that a chain claims, whole or not."""
    found = [one[1] for name in ARC_NAMES for one in named.get(name, ())]
    if len(found) > MAX_SETS * len(ARC_NAMES):
        return MAX_SETS
    numbers = [re.search(rb"(?:^|;)\s{0,20}i\s{0,20}=\s{0,20}([0-9]{1,9})\s{0,20}(?:;|$)", value) for value in found]
    return min(MAX_SETS, max((int(number[1]) for number in numbers if number), default=0))


def _read(signature: Field, mandatory: Sequence[bytes], arc: bool) -> Tags:
    """The tags of a signature, checked by dkimpy. Raises _Refused."""
    if len(signature[1]) > MAX_FIELD or _BLANKS.search(signature[1]):
        raise _Refused("neutral", "the signature is unreasonably large")
    try:
        tags: Tags = parse_tag_value(canonical_fields([(b"", signature[1])], "relaxed")[0][1:])
    except InvalidTagValueList as error:
        raise _Refused("neutral", f"the signature can't be read: {type(error).__name__}") from None
    if tags.get(b"a") == b"rsa-sha1":
        raise _Refused("policy", "rsa-sha1 is no proof any more (RFC 8301)")
    for name in (b"t", b"x", b"l"):
        if name in tags and not _NUMBER.fullmatch(tags[name]):
            raise _Refused("neutral", f"{_text(name)}= is no number")
    # dkimpy reads a clock of its own for these two, and lets ten hours pass.
    told = {name: value for name, value in tags.items() if name not in (b"t", b"x")}
    try:
        dkimpy.validate_signature_fields(told, list(mandatory), arc)
    except dkimpy.ValidationError as error:
        raise _Refused("neutral", str(error).replace("b'", "'")) from None
    except IndexError:
        raise _Refused("neutral", "i= has no @") from None
    return tags


def _names(tags: Tags) -> list[bytes]:
    """Of h=, in lower case and in its order. Raises _Refused."""
    names = [name.strip().lower() for name in tags[b"h"].split(b":")]
    if len(names) > MAX_NAMES:
        raise _Refused("neutral", f"it names more than {MAX_NAMES} fields")
    return names


def _forms(tags: Tags, default: bytes) -> tuple[Form, Form]:
    """(of fields, of the body). Raises _Refused."""
    header, _, body = tags.get(b"c", default).partition(b"/")
    if header not in (b"simple", b"relaxed") or body not in (b"", b"simple", b"relaxed"):
        raise _Refused("neutral", "c= names no canonical form that there is")
    return cast(Form, _text(header)), cast(Form, _text(body or b"simple"))


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(re.sub(rb"\s+", b"", text), validate=True)
    except binascii.Error:
        return b""


def _attempt(check: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What it returns, or why it refused. Whatever else a stranger's bytes may raise is a refusal as well."""
    try:
        return check(*arguments, **named)
    except _Refused as refused:
        return refused
    except OSError:
        raise  # the body's file
    except dkimpy.DKIMException as error:
        return _Refused("fail", str(error).replace("b'", "'"))
    except Exception as error:  # noqa: BLE001 - dkimpy lets through what its parsers raise
        return _Refused("neutral", f"it can't be read: {type(error).__name__}")


def _text(value: bytes) -> str:
    return value.decode("ascii", "replace")


def _clean(text: str) -> str:
    """Of what a stranger wrote: printable ASCII, not much of it, and nothing that ends a quoted string or a comment."""
    return re.sub(r"[^ !#-\[\]-~]|[()]", "?", text)[:200]
