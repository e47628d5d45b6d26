"""The clock between two runs. Within one, time neither jumps nor runs back (relay.clock); between two the machine's clock may.

The spool remembers when the relay was last alive. What that says at the next start:

- long ago: the relay did not run, or the clock was set forward. Nobody could have delivered anything in that time: it is
  added to the time that mail may still take.
- in the future: the clock was set back. What is due then would wait for it: it moves back by as much. So does when what was
  spent of a rate is forgotten, or nothing more would fit for so long. It never moves forward: nothing was spent meanwhile.
"""

from __future__ import annotations

import sqlite3

from relay.spool import counts, queries

AHEAD = 300.0  # seconds without a sign of life that are told; a restart takes less
BACK = -60.0
PULSE = 30.0  # seconds between two signs of life, at most


def gap(alive_at: float | None, now: float) -> float:
    """Seconds by which times in the spool must move; 0: none. Negative: the clock was set back. Pure."""
    passed = 0.0 if alive_at is None else now - alive_at
    return passed if passed > AHEAD or passed < BACK else 0.0


def close(connection: sqlite3.Connection, seconds: float, now: float) -> int:
    """Move what is not final by that gap, in the open transaction; returns how many recipients."""
    if seconds > 0:
        # What is to be sent later, and waited for that, has lost nothing.
        change = (
            "expires_at = expires_at + min(?1, max(0, ?2 - (SELECT send_at FROM message WHERE id = recipient.message)))"
        )
    else:
        # Never before a `send_at` that lies ahead: that is a wish in the world's time.
        change = (
            "expires_at = expires_at + ?1, due_at = max(due_at + ?1, coalesce("
            "(SELECT send_at FROM message WHERE id = recipient.message AND send_at > ?2), 0))"
        )
    sql = f"UPDATE recipient SET {change} WHERE state < 4 AND message > ?3 AND message <= ?4"
    # In parts: of each statement SQLite keeps what it is to change in memory.
    moved = sum(connection.execute(sql, (seconds, now, *part)).rowcount for part in queries.parts(connection))
    if seconds < 0:
        counts.move(connection, seconds)
        # Accepted in a future that never was: its age would be unknown for so long, and nothing after it be forgotten.
        connection.execute("UPDATE message SET accepted_at = ?1 WHERE accepted_at > ?1", (now,))
        connection.execute("UPDATE event SET at = ?1 WHERE at > ?1", (now,))
        connection.execute("UPDATE parcel SET due_at = due_at + ? WHERE dead = 0", (seconds,))
    return moved


def told(seconds: float) -> str:
    """What it means, for the log."""
    if seconds > 0:
        return "the relay did not run, or the clock was set forward: this time does not count against mail that waits"
    return "the clock was set back: what waits is due and expires by so much sooner, and nothing waits for the old time"
