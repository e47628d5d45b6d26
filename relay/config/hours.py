"""`08:00-20:00` on `mon-fri` by a zone's clock -> Hours. Pure."""

from __future__ import annotations

import re

from relay.config.problems import shorten
from relay.policy.hours import DAYS, Hours

_HOURS = re.compile(r"([0-9]{2}):([0-9]{2}) ?- ?([0-9]{2}):([0-9]{2})", re.ASCII)


def parse_hours(hours: str, days: str, timezone: str) -> Hours:
    """Raises ValueError with what was expected."""
    found = _HOURS.fullmatch(hours)
    numbers = [int(text) for text in found.groups()] if found else []
    start, end = (numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]) if numbers else (0, 0)
    if not numbers or max(numbers[1], numbers[3]) > 59 or start >= 1440 or end > 1440:
        raise ValueError(f"expected hours such as 08:00-20:00, found '{shorten(hours)}'")
    if start == end:
        raise ValueError(f"'{shorten(hours)}' begins when it ends; the whole day is 00:00-24:00")
    text = " ".join(part for part in (days, hours, timezone) if part)
    return Hours(text, start, end, _days(days), timezone)


def _days(text: str) -> frozenset[int]:
    """`mon-fri`, `mon,wed`, `sat-mon`."""
    found: set[int] = set()
    for part in text.lower().split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if first not in DAYS or last not in DAYS:
            raise ValueError(f"expected days such as mon-fri, or of {', '.join(DAYS)}, found '{shorten(text)}'")
        start = DAYS.index(first)
        found |= {day % 7 for day in range(start, start + (DAYS.index(last) - start) % 7 + 1)}
    return frozenset(found)
