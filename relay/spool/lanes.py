"""Which number a lane has. On both threads: see `Lanes`."""

from __future__ import annotations

import sqlite3


class Lanes:
    """The dictionary of lanes, and the numbers that outlive a row.

    Filled and emptied on the loop alone. The writing thread reads it too, always by one `get`, which nobody can interrupt.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.by_facts: dict[str, int] = {f: i for i, f in connection.execute("SELECT id, facts FROM lane")}
        self.reserved = 0  # message numbers below this one are reserved
        self.used: set[int] | None = None  # those of rows written since `watch`, while lanes are being forgotten

    def intern(self, connection: sqlite3.Connection, facts: set[str]) -> dict[str, int]:
        """The ids of these facts, for rows of this transaction; unknown ones are inserted. Remembered by `learn` once it has
        committed."""
        ids = {text: number for text in facts if (number := self.of(text)) is not None}
        for text in sorted(facts - ids.keys()):
            row = connection.execute(
                "INSERT INTO lane (facts) VALUES (?) ON CONFLICT (facts) DO UPDATE SET facts = facts RETURNING id",
                (text,),
            ).fetchone()
            ids[text] = row[0]
            self._use(row[0])
        return ids

    def of(self, facts: str) -> int | None:
        """On the writing thread: a lane that is known already, for a row of this transaction."""
        found = self.by_facts.get(facts)
        if found is not None:
            self._use(found)
        return found

    def _use(self, lane: int) -> None:
        used = self.used
        if used is not None:
            used.add(lane)

    def learn(self, ids: dict[str, int]) -> None:
        """On the loop: what `intern` found."""
        self.by_facts.update(ids)

    def watch(self) -> None:
        """On the writing thread: rows that are not committed yet will be seen in `used`."""
        self.used = set()
