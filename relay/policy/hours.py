"""Hours of the day and days of the week, by the clock of a zone. Pure: time is an argument."""

from __future__ import annotations

from dataclasses import dataclass

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True, slots=True)
class Hours:
    """From `start` up to `end` on `days`. An `end` at or before `start` lies on the next day."""

    text: str  # as it was written, for people
    start: int = 0  # minutes after midnight
    end: int = 1440
    days: frozenset[int] = frozenset(range(7))  # on which it starts; 0: Monday
    timezone: str = "UTC"
