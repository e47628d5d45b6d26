"""Which member of a pool a message goes by: by weight, and always the same one. Pure.

Weighted rendezvous hashing (Thaler and Ravishankar 1998; the weights as Schindelhauer and Schomaker 2005, "logarithmic
method"): each member draws a number from the hash of its name and the message's key, and the greatest wins. A member that
comes or goes, or whose weight changes, moves its own share alone: all other messages keep their way out, with the address
that a greylisting destination has seen before. Nothing is stored, and the choice is the same in each process, after a
restart, and in each version: a change here moves mail, and breaks a test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b


def draw(members: Sequence[tuple[str, int]], key: bytes) -> str:
    """The member, of (name, weight), that `key` goes by; ValueError where there is none. A weight of 0 is drawn by nobody."""
    return max((_score(name, weight, key), name) for name, weight in members)[1]


def order(members: Sequence[tuple[str, int]], first: str) -> tuple[str, ...]:
    """All of them as they take over from `first`: by falling weight, equal ones as they were written."""
    others = sorted((m for m in members if m[0] != first), key=lambda member: -member[1])
    return (first, *(name for name, _ in others))


def _score(name: str, weight: int, key: bytes) -> float:
    """With u uniform in (0, 1), weight / -ln u: the greatest of several is a member's with chance weight / all weights."""
    digest = blake2b(name.encode() + b"\0" + key, digest_size=8, person=b"relay.draw").digest()
    # 52 bits and a half: neither 0 nor 1, and exact in a float, so the logarithm is never 0.
    uniform = ((int.from_bytes(digest, "big") >> 12) + 0.5) / 2**52
    return weight / -math.log(uniform)
