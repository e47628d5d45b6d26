"""Which member of a pool a message goes by: by weight, and always the same for one message. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b


def draw(members: Sequence[tuple[str, int]], key: bytes) -> str:
    def score(member: tuple[str, int]) -> float:
        name, weight = member
        number = int.from_bytes(blake2b(key, digest_size=8, key=name.encode()[:64]).digest())
        return -weight / math.log((number + 1) / (2**64 + 1))

    return max(members, key=score)[0]


def order(members: Sequence[tuple[str, int]], first: str) -> tuple[str, ...]:
    rest = sorted((m for m in members if m[0] != first), key=lambda m: (-m[1], m[0]))
    known = (first,) if any(name == first for name, _ in members) else ()
    return (*known, *(name for name, _ in rest))
