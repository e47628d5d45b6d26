"""The values that users write about pace: shares, days of a warm-up, bursts, hours, bounds. See values.py. Pure."""

from __future__ import annotations

import re
from datetime import date

from relay.config.values import CONTROL, describe, parse_size
from relay.policy.hours import Hours
from relay.policy.rate import PERIODS, Rate, known_timezone

MAX_DAYS = 60  # characters
_SHARE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,4})?) ?%", re.ASCII)
_BOUND = re.compile(r"(>=|<=|>|<) ?([01]|[01]?\.[0-9]{1,6})", re.ASCII)


def parse_share(value: object) -> float:
    """`20%` -> 0.2."""
    if isinstance(value, str) and (found := _SHARE.fullmatch(value)):
        return float(found[1]) / 100
    hint = "; write the % too" if isinstance(value, int | float) and not isinstance(value, bool) else ""
    raise ValueError(f"expected a share such as 20%, found {describe(value)}{hint}")


def parse_part(value: object) -> float:
    """A share from 0% to 100%."""
    if (share := parse_share(value)) > 1:
        raise ValueError(f"expected a share up to 100%, found {describe(value)}")
    return share


def parse_growth(value: object) -> float:
    if not 0 < (share := parse_share(value)) <= 10:
        raise ValueError(f"expected by how much it grows each day, over 0% and up to 1000%, found {describe(value)}")
    return share


def parse_slower(value: object) -> float:
    if not 0 < (share := parse_share(value)) < 1:
        raise ValueError(
            f"expected a share over 0% and below 100%, found {describe(value)}; `pause` lets nothing leave"
        )
    return share


def parse_sessions(value: object) -> float:
    """So many, from 1 up; or below 1 a share of those that there are."""
    if type(value) is int and 1 <= value <= 2**31:
        return float(value)
    if isinstance(value, str) and 0 < (share := parse_share(value)) < 1:
        return share
    raise ValueError(f"expected how many sessions, such as 5, or a share of them such as 50%, found {describe(value)}")


def parse_daily(value: object) -> Rate:
    """`100/d`, `100 messages/d`: how much on one day of a warm-up."""
    wanted = "expected how much a day, such as 100/d or 100 messages/d"
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"{wanted}, found the bare number {describe(value)[11:]}; write {describe(value)[11:]}/d")
    rate = Rate.parse(value)
    if rate.period != PERIODS["d"]:
        raise ValueError(f"{wanted}, found '{rate.text}'; a warm-up goes by days")
    if rate.unit not in ("recipients", "messages"):
        raise ValueError(f"{wanted}, found '{rate.text}'; a warm-up counts recipients or messages")
    return rate


def parse_table_day(value: object) -> Rate:
    """As `parse_daily`; a bare number counts recipients."""
    if type(value) is int:
        if not 1 <= value <= 10**12:
            raise ValueError(f"expected how much a day, from 1 up, found {describe(value)}")
        return Rate.parse(f"{value}/d")
    return parse_daily(value)


def parse_burst(value: object) -> tuple[int, bool]:
    """`5`, or of a rate of bytes `10MB` -> (count, whether it is a size)."""
    if type(value) is int and value >= 1:
        return value, False
    if isinstance(value, str) and (size := parse_size(value)) >= 1:
        return size, True
    raise ValueError(f"expected how many may go at once, from 1 up, found {describe(value)}")


def parse_date(value: object) -> date:
    wanted = "expected a date such as 2026-12-01"
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value, re.ASCII):
        raise ValueError(f"{wanted}, found {describe(value)}")
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise ValueError(f"{wanted}, found {describe(value)}; the calendar has no such day") from None


def parse_timezone(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a time zone such as Europe/Berlin, or UTC, found {describe(value)}")
    if not known_timezone(value):
        raise ValueError(f"no time zone {describe(value)[11:]}; one is such as Europe/Berlin, or UTC")
    return value


def parse_clock_hours(value: object) -> str:
    """`08:00-20:00`, as it was written."""
    if not isinstance(value, str) or not value or len(value) > 20 or CONTROL.search(value):
        raise ValueError(f"expected hours such as 08:00-20:00, found {describe(value)}")
    Hours.parse(hours=value)
    return value


def parse_days(value: object) -> str:
    """`mon-fri`, `mon,wed`, or a list of such -> one text."""
    if isinstance(value, list) and value and all(isinstance(day, str) for day in value):
        value = ",".join(value)
    if not isinstance(value, str) or not value or len(value) > MAX_DAYS or CONTROL.search(value):
        raise ValueError(f"expected days such as mon-fri, or a list of them, found {describe(value)}")
    Hours.parse(days=value)
    return value


def parse_reputation(value: object) -> tuple[str, str, float]:
    """`< 0.7` -> (as written, operator, bound)."""
    found = _BOUND.fullmatch(value) if isinstance(value, str) else None
    if not found or float(found[2]) > 1:
        raise ValueError(f'expected a bound such as "< 0.7" with one of > >= < <= and 0 to 1, found {describe(value)}')
    return found[0], found[1], float(found[2])
