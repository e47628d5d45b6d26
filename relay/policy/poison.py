"""What takes the process down while it is in flight, again and again: it is set aside, and the others are kept. Pure.

A crash does not say who caused it: all that was in flight is under suspicion, and is cleared by any ordinary end of an
attempt. So innocents must not stay in step with the one that is not: after a second crash each goes at a moment of its own.
"""

from __future__ import annotations

MOST = 3  # crashes in a row
SPREAD = 10.0  # seconds over which those go that were there at two crashes

WHAT_TO_DO = "look at it with `relay queue export`, mend the cause, then `relay queue release`; or `relay queue cancel`"


def why_held(last: str) -> str:
    """For the operator; `last` says what happened the last time."""
    return f"{MOST} times in a row its delivery crashed or met an internal error (the last time: {last}); {WHAT_TO_DO}"


def due_after(crashes: int, now: float, message: int, chance: float) -> float:
    """When it is tried again after so many crashes. `chance` in [0, 1): one for all, spread evenly over the messages."""
    if crashes < 2:
        return now
    return now + SPREAD * ((chance + (message * 0x9E3779B1 & 0xFFFFFFFF) / 2**32) % 1.0)
