"""Public keys as strangers publish them: the TXT records of DKIM (RFC 6376 §3.6.1), asked for and read within bounds.

dkimpy reads the key itself. It takes a key of any size, and the square of a large one's time: what is too large for any use
never reaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import dkim as dkimpy
from dkim.util import InvalidTagValueList, parse_tag_value

from relay.clock import monotonic
from relay.resolver import DnsTrouble, Resolver

MAX_RECORD = 8 * 1024  # octets; RSA of 16,384 bits needs 3 KiB
MAX_BITS = 8192
MAX_EXPONENT = 64  # bits
MAX_FAILURES = 2  # of the DNS for one message, then the others are not asked for
MAX_SECONDS = 10.0  # that one message may wait for the DNS
TIMEOUT = 5


class DnsFunc(Protocol):
    """How a TXT record is asked for: the strings of the first one joined, or None. Raises anything where nobody answers; the
    text of a NoAnswer is told."""

    def __call__(self, name: bytes, timeout: int = ...) -> bytes | None: ...


class NoAnswer(Exception):
    """The DNS did not say whether there is a record."""


class BadRecord(Exception):
    """Why a record holds no key that can be used."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One key record, read."""

    key: Any  # dkimpy's
    kind: str  # k=
    bits: int
    testing: bool  # t=y
    strict: bool  # t=s: i= and d= must be the same domain
    hashes: frozenset[bytes] | None  # h=; None: any


class Records:
    """The key records that one message needs, each asked for once."""

    def __init__(self, ask: DnsFunc, clock: Callable[[], float] = monotonic) -> None:
        self._ask, self._clock = ask, clock
        self._known: dict[bytes, bytes | None] = {}
        self._failures = 0
        self._spent = 0.0

    def key(self, selector: str, domain: str, kind: str = "") -> PublicKey:
        """`kind`: what the signature wants; the DNS has one key at a name. Raises NoAnswer, BadRecord."""
        name = f"{selector}._domainkey.{domain}.".encode()
        if name not in self._known:
            self._known[name] = self._asked(name)
        text = self._known[name]
        if not text:
            raise BadRecord("no key is published")
        return read_record(text)

    def _asked(self, name: bytes) -> bytes | None:
        if self._failures >= MAX_FAILURES or self._spent >= MAX_SECONDS:
            raise NoAnswer("the DNS did not answer before")
        begun = self._clock()
        try:
            return self._ask(name, timeout=TIMEOUT)
        except NoAnswer:
            self._failures += 1
            raise
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in there, nothing was said of the record
            self._failures += 1
            raise NoAnswer(f"the DNS did not answer: {type(error).__name__}") from None
        finally:
            self._spent += self._clock() - begun


class Given:
    """Records that were said instead of asked for: each is for the signatures of its kind, and of a selector where it has one."""

    def __init__(self, records: Iterable[tuple[str, bytes]]) -> None:
        """(selector or empty, text). Raises ValueError where two are for the same signatures."""
        self._texts: dict[tuple[str, str], bytes] = {}
        for selector, text in records:
            place = selector.lower(), _kind(text)
            if place in self._texts:
                raise ValueError(f"two {place[1] or 'unreadable'} keys are for {selector or 'any selector'}")
            self._texts[place] = text

    def key(self, selector: str, domain: str, kind: str) -> PublicKey:
        """Raises NoAnswer where none is for it, BadRecord."""
        ours = selector.lower()
        for place in ((ours, kind), ("", kind), (ours, ""), ("", "")):
            if place in self._texts:
                return read_record(self._texts[place])
        raise NoAnswer(f"no {kind} key for it was given")


def _kind(text: bytes) -> str:
    """Empty where it can't be read: then it is for any, and the fault is told."""
    try:
        return read_record(text).kind
    except BadRecord:
        return ""


def read_record(text: bytes) -> PublicKey:
    """Raises BadRecord."""
    if len(text) > MAX_RECORD:
        raise BadRecord("its record is too large")
    try:
        tags = parse_tag_value(text)
    except InvalidTagValueList:
        raise BadRecord("its record is no list of tags") from None
    if tags.get(b"v", b"DKIM1") != b"DKIM1":
        raise BadRecord("its record is of another version than DKIM1")
    if b"p" not in tags:
        raise BadRecord("its record has no p=")
    if not tags[b"p"]:
        raise BadRecord("it is revoked (empty p=)")
    if not {b"*", b"email"} & _listed(tags.get(b"s", b"*")):
        raise BadRecord("it is not for mail (s=)")
    kind = tags.get(b"k", b"rsa")
    flags = _listed(tags.get(b"t", b""))
    try:
        key, bits, _, _ = dkimpy.evaluate_pk(b"", b"v=DKIM1; k=" + kind + b"; p=" + tags[b"p"])
    except Exception:  # noqa: BLE001 - dkimpy lets through what its parsers of DER and base64 raise
        raise BadRecord("its record holds no key that can be read") from None
    if kind == b"rsa" and (bits > MAX_BITS or key["publicExponent"].bit_length() > MAX_EXPONENT):
        raise BadRecord(f"an RSA key that is too large: {bits} bits")
    return PublicKey(
        key, kind.decode("ascii"), bits, b"y" in flags, b"s" in flags, _listed(tags[b"h"]) if b"h" in tags else None
    )


def _listed(value: bytes) -> frozenset[bytes]:
    return frozenset(word.strip() for word in value.split(b":"))


def asking(resolver: Resolver, tells: bool = False) -> DnsFunc:
    """By the blocking side of a resolver, whose own timeout counts. `tells`: who was silent, which is no word for a mail."""

    def ask(name: bytes, timeout: int = TIMEOUT) -> bytes | None:
        asked = name.decode("ascii")
        try:
            found = resolver.txt_now(asked) or []
        except DnsTrouble as trouble:
            if not tells:
                raise
            raise NoAnswer(str(trouble).removeprefix(f"{asked}: ")) from None
        # RFC 6376 §6.1.2: of several records a verifier may choose; one that holds a key is of more use than one that does not.
        return next((record for record in found if b"p=" in record), found[0] if found else None)

    return ask
