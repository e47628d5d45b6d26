"""Limits that bind mail by what it is: who sends it, its class, where it goes. Pure: time is an argument.

Those of an account, a direct entry or a destination are `policy.pace`'s: they bind what leaves there, whatever it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from relay.policy.rate import Rate
from relay.policy.routing import Match

Per = Literal["sender", "from", "user", "tenant", "class", "destination", "egress"]


@dataclass(frozen=True, slots=True)
class Limit:
    """One rule. `per`: each value, or each combination of values, has a count of its own; empty: all that match share one.

    `sender` is the reverse-path, `from` the domain of the From header, `destination` the recipient's domain.
    """

    name: str
    rate: Rate
    match: Match = Match()
    per: tuple[Per, ...] = ()
    whose: str = ""  # for people, such as `user shop`; empty: `limit NAME`
    origin: str = ""  # file:line
