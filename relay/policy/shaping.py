"""What is done for a time when an upstream says certain words. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from relay.reply import Stage


@dataclass(frozen=True, slots=True)
class ShapingRule:
    """One entry of `shaping`. All of what is given must fit; each action lasts for `seconds`."""

    name: str
    pattern: re.Pattern[str]  # searched in the reply as one line: code, enhanced code, text
    egress: tuple[str, ...] = ()  # globs on its name; empty: any
    destination: tuple[str, ...] = ()  # globs on the recipient's domain, or the name of its destination
    class_: tuple[str, ...] = ()
    at: frozenset[Stage] = frozenset()  # empty: at any stage
    seconds: float = 1800.0
    slow: float | None = None  # to this share of what it sends now, 0 to 1
    connections: float | None = None  # at most so many sessions; below 1 this share of them
    pause: bool = False  # nothing leaves there
    drop: bool = False  # the session is ended
    suppress: bool = False  # the recipient gets nothing more
    next: bool = False  # its mail goes by the route's next egress
    alarm: bool = False
    origin: str = ""  # file:line, or the preset
