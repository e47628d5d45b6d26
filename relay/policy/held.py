"""What a limit says when it is asked. Pure."""

from __future__ import annotations

from typing import NamedTuple


class Held(NamedTuple):
    """`seconds` until so much may leave, 0: now; `why`, for operators; whether the route's next egress may take it meanwhile."""

    seconds: float
    why: str
    passes: bool = False


FREE = Held(0.0, "")
