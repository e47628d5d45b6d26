"""How much a new address may send from day to day, until it is known. Pure: time is an argument."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal


@dataclass(frozen=True, slots=True)
class HoldAbove:
    """Shares, 0 to 1, of what was tried; None: not looked at."""

    bounces: float | None = None
    complaints: float | None = None
    deferrals: float | None = None


@dataclass(frozen=True, slots=True)
class WarmUp:
    """The plan. A day is the clock's in `timezone`. On day n (0: `start`) it may send `first` grown n times by `growth`, by
    `max_step` at most each day, up to `until`, after which it has no limit by this; or what `table` says of the day."""

    start: date
    first: int = 0
    growth: float = 0.2  # 0.2: a fifth more each day
    max_step: int = 0  # 0: as much as `growth` gives
    until: int = 0
    table: tuple[int, ...] = ()  # instead of the four; after its last day it has no limit by this
    unit: Literal["messages", "recipients"] = "recipients"
    spread: Literal["hourly", "none"] = "hourly"
    timezone: str = "UTC"
    overflow: str = ""  # the egress that takes what is in excess; empty: it waits
    hold_above: HoldAbove = HoldAbove()
