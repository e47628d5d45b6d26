"""What becomes of a claimed transaction whose account lets it go only later. Pure: time is an argument."""

from __future__ import annotations

from typing import NamedTuple

from relay.policy.pace import Pace

NOT_LONG = 1.0  # seconds that claimed work waits for the pace of its account; what would wait longer goes back


class Turn(NamedTuple):
    """`wait` 0: it goes now. Else it is asked again so many seconds later with the first `fit` of its recipients, the others go
    back; `fit` 0: all of them do, to wait for `alone` seconds by themselves where that is not 0."""

    wait: float
    why: str = ""
    fit: int = 0
    alone: float = 0.0


def turn(pace: Pace, now: float, recipients: int, size: int, end: float) -> Turn:
    """Of one message of so many bytes to so many recipients, which waits until `end` at the latest.

    Where some of its recipients need not wait the others go back: a list is no reason to keep the account for itself.
    """
    wait, why, _ = pace.wait(now, recipients, size)
    if wait <= 0:
        return Turn(0.0, fit=recipients)
    if now + wait <= end:
        return Turn(wait, why, recipients)
    fit = pace.recipients(now)
    if 0 < fit < recipients:
        return Turn(0.0, why, fit)
    # One that is too large for what is left waits alone: smaller ones may go.
    return Turn(wait, why, 0, wait if pace.wait(now, recipients).seconds <= 0 else 0.0)
