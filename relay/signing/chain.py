"""The sets of an ARC chain as they stand in a message, before anything is verified (RFC 8617 §4)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from relay.signing.tags import MANDATORY, Field, Refused, Tags, attempt, check, parse, text

MAX_SETS = 50  # §4.2.1
RESULTS, MESSAGE, SEAL = b"arc-authentication-results", b"arc-message-signature", b"arc-seal"
NAMES = (RESULTS, MESSAGE, SEAL)  # in the order that a seal covers
_MANDATORY = {MESSAGE: (b"i", *MANDATORY[1:]), SEAL: (b"i", b"a", b"b", b"cv", b"d", b"s")}
_INSTANCE = re.compile(rb"[1-9][0-9]?")
_FIRST = re.compile(rb"\s{0,20}i\s{0,20}=\s{0,20}([1-9][0-9]?)\s{0,20};")
_ANYWHERE = re.compile(rb"(?:^|;)\s{0,20}i\s{0,20}=\s{0,20}([0-9]{1,9})\s{0,20}(?:;|\s?$)")
_FAILED = re.compile(rb"(?:^|;)\s{0,20}cv\s{0,20}=\s{0,20}fail\s{0,20}(?:;|\s?$)")

Named = Mapping[bytes, Sequence[Field]]  # lower-case name -> fields, from the top


class Broken(Exception):
    """Why what stands for a chain is none."""


@dataclass(slots=True)
class ArcSet:
    """One instance: its three fields, and the tags of two of them."""

    fields: dict[bytes, Field] = field(default_factory=dict)
    tags: dict[bytes, Tags] = field(default_factory=dict)


def present(named: Named) -> bool:
    """Whether there is anything of ARC at all."""
    return any(named.get(name) for name in NAMES)


def sets(named: Named) -> list[ArcSet]:
    """From i=1 upwards, each whole and well-formed. Raises Broken."""
    found: dict[int, ArcSet] = {}
    if _count(named) > MAX_SETS * len(NAMES):
        raise Broken(f"more ARC fields than {MAX_SETS} sets have")
    for name in NAMES:
        for one in named.get(name, ()):
            tags, number = _read(name, one)
            holder = found.setdefault(number, ArcSet())
            if name in holder.fields:
                raise Broken(f"{text(name)} {number} is there twice")
            holder.fields[name], holder.tags[name] = one, tags
    for number in range(1, max(found, default=0) + 1):
        if number not in found or len(found[number].fields) < len(NAMES):
            raise Broken(f"set {number} is not whole")
    return [found[number] for number in sorted(found)]


def _read(name: bytes, one: Field) -> tuple[Tags, int]:
    tags: Tags = {}
    if name == RESULTS:
        first = _FIRST.match(one[1])
        number = first[1] if first else b""
    else:
        read = attempt(_tags, name, one)
        if isinstance(read, Refused):
            raise Broken(f"{text(name)}: {read.why}")
        tags, number = read, read[b"i"]
    if not _INSTANCE.fullmatch(number) or int(number) > MAX_SETS:
        raise Broken(f"{text(name)}: i= is no number from 1 to {MAX_SETS}")
    if name == SEAL and b"h" in tags:
        raise Broken(f"{text(name)}: it has h=")
    return tags, int(number)


def _tags(name: bytes, one: Field) -> Tags:
    tags = parse(one)
    check(tags, _MANDATORY[name], True)
    return tags


def scope(chain: Iterable[ArcSet]) -> list[Field]:
    """The fields that a seal covers, in its order; the last one is the newest seal itself (§5.1.1)."""
    return [one.fields[name] for one in chain for name in NAMES]


def highest(named: Named) -> int:
    """The highest instance that is claimed, whole or not; MAX_SETS at most."""
    if _count(named) > MAX_SETS * len(NAMES):
        return MAX_SETS
    numbers = (_ANYWHERE.search(one[1]) for name in NAMES for one in named.get(name, ()))
    return min(MAX_SETS, max((int(number[1]) for number in numbers if number), default=0))


def over(named: Named) -> bool:
    """Whether nobody may add a set: one says already that the chain failed (§5.1.2), or all numbers are used."""
    return highest(named) >= MAX_SETS or any(_FAILED.search(one[1]) for one in named.get(SEAL, ()))


def _count(named: Named) -> int:
    return sum(len(named.get(name, ())) for name in NAMES)
