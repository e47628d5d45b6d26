"""Who gets nothing more, why, and for whose mail. Pure: time is an argument.

An address is compared without regard to case: providers report it in lower case, and no receiver of today has two mailboxes
that differ in case alone. RFC 5321 §2.4 would let it.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from relay.envelope import AddressError, ascii_domain, parse_address
from relay.reply import Reply, clean


class Why(IntEnum):
    """Stored by these numbers; never renumber. At most 255."""

    HARD_BOUNCE = 1
    COMPLAINT = 2
    SOFT_BOUNCES = 3
    UNSUBSCRIBE = 4
    MANUAL = 5  # by hand, or imported
    SHAPING = 6  # a rule of `shaping` said so

    @property
    def word(self) -> str:
        return self.name.lower()

    @property
    def words(self) -> str:
        """For people."""
        return self.word.replace("_", " ")


Cause = Literal["hard_bounce", "soft_bounce", "complaint", "unsubscribe"]
Spread = Literal["all", "tenant", "class"]


_WHY: Mapping[str, Why] = {
    "hard_bounce": Why.HARD_BOUNCE,
    "soft_bounce": Why.SOFT_BOUNCES,
    "complaint": Why.COMPLAINT,
    "unsubscribe": Why.UNSUBSCRIBE,
}


@dataclass(frozen=True, slots=True)
class SuppressionRule:
    """Section `suppression`: what suppresses by itself. The default: nothing but an unsubscription."""

    on: frozenset[str] = frozenset({"unsubscribe"})  # Cause, but for soft_bounce, which `soft_count` is about
    soft_count: int = 0  # soft bounces within `soft_within` seconds; 0: they never do
    soft_within: float = 7 * 86400.0
    expire: float | None = 180 * 86400.0  # seconds; None: never. Of complaints and unsubscriptions: never in any case
    scope: Spread = "tenant"  # whose mail it stops
    unsubscribe_scope: Spread = "class"
    at_rcpt: Literal["reject", "accept"] = "reject"  # accept: it is taken, and that recipient fails at once

    @property
    def learns(self) -> bool:
        """Whether any bounce suppresses."""
        return "hard_bounce" in self.on or bool(self.soft_count)


@dataclass(frozen=True, slots=True)
class Suppression:
    address: str  # as `plain` has it
    scope: str  # "" all mail, `tenant:NAME`, `class:NAME`
    why: Why
    evidence: str  # the reply or report that it follows from, one clean line
    source: str  # who said so: smtp, bounce, a provider, unsubscribe, hand, import, shaping
    at: float  # epoch seconds
    until: float = 0.0  # 0: without an end
    message: int = 0  # which of ours it was about; 0: none, or not known

    @property
    def key(self) -> tuple[str, str]:
        return self.scope, self.address


_STRENGTH = (Why.SHAPING, Why.SOFT_BOUNCES, Why.HARD_BOUNCE, Why.UNSUBSCRIBE, Why.COMPLAINT, Why.MANUAL)


def outweighs(new: Suppression, old: Suppression) -> bool:
    """Whether `new` takes the place of `old`, which has the same key: the one that ends later stays.

    Of two that end at once, or never, that of the stronger cause: by hand, then a complaint, an unsubscription, a hard bounce,
    soft bounces, `shaping`. Of equals the first.
    """
    return _weight(new) > _weight(old)


def _weight(one: Suppression) -> tuple[float, int]:
    return one.until or float("inf"), _STRENGTH.index(one.why)


@dataclass(frozen=True, slots=True)
class Softly:
    """A soft bounce: the `count`th within `within` seconds makes `entry`."""

    entry: Suppression
    count: int
    within: float


_NEEDLESS = re.compile(r'"((?:[^"\\]|\\.)*)"')  # a local part in quotes, RFC 5321 §4.1.2
_BARE = re.compile(r"[^\s\"(),.:;<>@\[\\\]]+(?:\.[^\s\"(),.:;<>@\[\\\]]+)*")


def plain(address: str) -> str:
    """As it is compared: lower case, the domain in A-labels, no quotes where none are needed (RFC 5321 §4.1.2)."""
    local, at, domain = address.rpartition("@")
    if quoted := _NEEDLESS.fullmatch(local):
        bare = re.sub(r"\\(.)", r"\1", quoted[1])
        local = bare if _BARE.fullmatch(bare) else '"' + re.sub(r'(["\\])', r"\\\1", bare) + '"'
    return f"{local.lower()}{at}{ascii_domain(domain)}"


def learnt(
    rule: SuppressionRule,
    cause: Cause,
    address: str,
    class_: str,
    tenant: str,
    evidence: str,
    source: str,
    now: float,
    message: int = 0,
) -> tuple[list[Suppression], list[Softly]]:
    """What follows from a report that is believed, by the rule: the one owner of what suppresses.

    `cause`: of a bounce only where `relay.policy.bounces` says that it is about the mailbox. `address`: of anybody's
    writing; what is none comes to nothing. `evidence`: any length, any bytes. `class_` and `tenant`: of the message; empty where
    it is not known.
    """
    try:
        plainly = plain(parse_address(address))
    except AddressError:
        return [], []
    if cause == "soft_bounce":
        if not rule.soft_count:
            return [], []
    elif cause not in rule.on:
        return [], []
    scope = scope_of(rule.unsubscribe_scope if cause == "unsubscribe" else rule.scope, class_, tenant)
    # A person's word has no end; a mailbox may come back.
    ends = rule.expire is not None and cause in ("hard_bounce", "soft_bounce")
    until = now + rule.expire if ends and rule.expire is not None else 0.0
    made = Suppression(plainly, scope, _WHY[cause], clean(evidence), source, now, until, message)
    if cause == "soft_bounce":
        return [], [Softly(made, rule.soft_count, rule.soft_within)]
    return [made], []


def scope_of(spread: Spread, class_: str, tenant: str) -> str:
    """The scope of what is learnt from a message. Without a tenant: all mail."""
    if spread == "class":
        return f"class:{class_ or 'default'}"
    return f"tenant:{tenant}" if spread == "tenant" and tenant else ""


def scopes(class_: str, tenant: str) -> tuple[str, ...]:
    """Those that bind a message; an empty class: it is not known yet."""
    found = [""]
    if tenant:
        found.append(f"tenant:{tenant}")
    if class_:
        found.append(f"class:{class_}")
    return tuple(found)


# What a person said about our mail says nothing about reports on his own, which come from the null sender. That his mailbox is
# gone, or that an operator forbids it, does.
NOT_OF_REPORTS = frozenset({Why.COMPLAINT, Why.UNSUBSCRIBE})


def refusal(address: str, why: Why) -> Reply:
    """What a client hears. The mailbox may be well, it is we who do not deliver to it: RFC 3463 §3.8, X.7.1."""
    return Reply(550, f"<{address}> is suppressed ({why.words}); relay suppress list {address} tells more", "5.7.1")


_SHARDS = 256  # by the first byte of the hash: to add one moves a few KiB, of a million entries in all


class Index:
    """Which (scope, address) are suppressed, and why, in 8 bytes each: 56 bits of a hash and the Why.

    Of a million entries a stranger meets one by chance once in 10**10 questions.
    """

    def __init__(self, entries: Iterable[tuple[str, str, Why]] = ()) -> None:
        """`entries`: (scope, address as `plain` has it, why), each key once."""
        self._shards = [array("Q") for _ in range(_SHARDS)]
        for scope, address, why in entries:
            key = _hash(scope, address) | why
            self._shards[key >> 56].append(key)
        for n, shard in enumerate(self._shards):
            self._shards[n] = array("Q", sorted(shard))
        self.counts = Counter[Why]()
        for shard in self._shards:
            self.counts.update(Why(entry & 255) for entry in shard)
        self._size = self.counts.total()  # asked for by each message

    def __len__(self) -> int:
        return self._size

    def find(self, address: str, scopes: Sequence[str], but: Container[Why] = ()) -> Why | None:
        """`address` as anybody writes it. `but`: what does not count."""
        key = plain(address)
        for scope in scopes:
            shard, at, found = self._look(_hash(scope, key))
            if found and (why := Why(shard[at] & 255)) not in but:
                return why
        return None

    def add(self, scope: str, address: str, why: Why) -> None:
        """`address` as `plain` has it."""
        key = _hash(scope, address)
        shard, at, found = self._look(key)
        if found:
            self.counts[Why(shard[at] & 255)] -= 1
            shard[at] = key | why
        else:
            shard.insert(at, key | why)
            self._size += 1
        self.counts[why] += 1

    def remove(self, scope: str, address: str) -> None:
        shard, at, found = self._look(_hash(scope, address))
        if found:
            self.counts[Why(shard.pop(at) & 255)] -= 1
            self._size -= 1

    def _look(self, key: int) -> tuple[array[int], int, bool]:
        """(its shard, where in it, whether it is there)."""
        shard = self._shards[key >> 56]
        at = bisect_left(shard, key)
        return shard, at, at < len(shard) and shard[at] & ~255 == key


def _hash(scope: str, address: str) -> int:
    digest = hashlib.blake2b(f"{scope}\0{address}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") & ~255
