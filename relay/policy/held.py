"""What a limit answers who asks whether mail may leave. Pure."""

from __future__ import annotations

from typing import NamedTuple


class Held(NamedTuple):
    """For so many `seconds` (0: it may leave now), `why` in words, and whether the route's next egress takes it over."""

    seconds: float
    why: str = ""
    passes: bool = False


FREE = Held(0.0)
