"""A spool with a crowd in it: so many recipients in so many lanes, written as rows, for a million of them take a minute as mail.

What lies there is what the relay itself would have left: a message of its own for each recipient, its head and body, one
event that tells its acceptance, and one more for each that was tried.
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from relay.recipient import FINAL, State
from relay.spool import opening

DAY = 86400.0
_BLOCK = 50_000  # rows a transaction: the memory of the maker is not that of the crowd


@dataclass(frozen=True)
class Crowd:
    """`due_in` and `spread`: seconds from now to the first and from the first to the last; the same for `expires_in`."""

    recipients: int = 20_000
    lanes: int = 1_000
    state: State = State.DEFERRED
    due_in: float = 3600.0
    spread: float = 1800.0
    expires_in: float = 4 * DAY
    accepted_ago: float = 3600.0
    body: int = 500  # bytes
    sender: str = "app@example.com"
    alive_ago: float = 10.0  # when the relay that left it was last alive


def user_of(number: int) -> str:
    return f"app{number:05}"


def facts_of(number: int) -> str:
    """The facts of the lane of that number, as `policy.lanefacts.lane_facts` writes them where no rule asks a question."""
    return f'{{"class":"default","user":"{user_of(number)}"}}'


def make(path: Path, now: float, crowd: Crowd | None = None) -> int:
    """Write it into a new spool; the id of its first message, from which they are numbered one by one. Nothing may have it open."""
    asked = crowd or Crowd()
    opening.make_folder(path.parent)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        opening.migrate(connection, path)
        connection.execute("PRAGMA synchronous = OFF")  # it is made for a test, and made again if the power goes
        connection.execute("PRAGMA cache_size = -262144")
        first = int(now - asked.accepted_ago) << 20
        connection.executemany(
            "INSERT INTO lane (id, facts) VALUES (?, ?)", [(i + 1, facts_of(i)) for i in range(asked.lanes)]
        )
        for start in range(0, asked.recipients, _BLOCK):
            _block(connection, asked, now, first, start, min(start + _BLOCK, asked.recipients))
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.executemany(
            "INSERT INTO meta (key, value) VALUES (?, ?)",
            [("next_id", first + asked.recipients), ("run", 1), ("restored", 0), ("alive_at", now - asked.alive_ago)],
        )
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
    path.chmod(0o600)
    with path.open("rb") as file:
        os.fsync(file.fileno())  # now, not beside what is measured
    return first


_HEAD = (
    "Received: from app (localhost [127.0.0.1])\r\n\tby relay.example.com with ESMTP; Fri, 15 Jan 2027 08:00:00 +0000\r\n"
    "From: app@example.com\r\nSubject: an invoice\r\nMessage-ID: <%d@relay.example.com>\r\n"
    "Date: Fri, 15 Jan 2027 08:00:00 +0000\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
)
_NOTE = '{"why":"main rests: connect: refused","last_reply":"connect: refused"}'


def _block(connection: sqlite3.Connection, asked: Crowd, now: float, first: int, start: int, end: int) -> None:
    """The messages start … end - 1, in one transaction."""
    values = {
        "first": first, "start": start, "end": end, "lanes": asked.lanes, "state": int(asked.state),
        "accepted": now - asked.accepted_ago, "due": now + asked.due_in, "expires": now + asked.expires_in,
        "step": asked.spread / asked.recipients, "tried": int(asked.state is not State.QUEUED),
        "head": _HEAD, "body": asked.body, "text": b"x" * (asked.body - 2) + b"\r\n", "sender": asked.sender, "note": _NOTE,
    }  # fmt: skip
    numbers = "WITH RECURSIVE k(i) AS (SELECT :start UNION ALL SELECT i + 1 FROM k WHERE i + 1 < :end)"
    connection.execute("BEGIN")
    for statement in (
        "INSERT INTO message SELECT :first + i, :sender, :sender, printf('app%05d', i % :lanes), 'default', '', 'local', "
        "'127.0.0.1', 2, 0, :accepted + i * :step, length(printf(:head, i)) + :body, 0, "
        "cast(printf(:head, i) AS BLOB), 0, '', '', 0 FROM k",
        "INSERT INTO recipient (message, n, lane, state, priority, due_at, expires_at, attempts, address, egress, note) "
        "SELECT :first + i, 0, i % :lanes + 1, :state, 2, :due + i * :step, :expires + i * :step, :tried, "
        "printf('user%d@example.net', i), 'main', :note FROM k",
        "INSERT INTO event (at, message, n, kind, egress, code, data) "
        "SELECT :accepted + i * :step, :first + i, NULL, 'accepted', '', 250, '{}' FROM k",
    ):
        connection.execute(_with(numbers, statement), values)
    if asked.state not in FINAL:
        connection.execute(_with(numbers, "INSERT INTO content SELECT :first + i, :text FROM k"), values)
    if asked.state is not State.QUEUED:
        connection.execute(
            _with(
                numbers,
                "INSERT INTO event (at, message, n, kind, egress, code, data) "
                f"SELECT :accepted + i * :step, :first + i, 0, '{asked.state.label}', 'main', 0, :note FROM k",
            ),
            values,
        )
    connection.execute("COMMIT")


def _with(numbers: str, statement: str) -> str:
    """The rows of a statement, one for each number."""
    return f"{numbers} {statement}"
