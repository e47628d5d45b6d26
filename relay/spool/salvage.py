"""What can still be read of a damaged spool, in a new one. Offline, on a copy; the damaged one is never written to.

Messages are read one by one, so that a bad page loses its own rows and no others. Their numbers are found in every table
that has them, from both ends of each: what one table lost another may still know, and so can be told by its queue id.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relay.envelope import parse_queue_id, queue_id
from relay.recipient import FINAL, State
from relay.spool import Place, SpoolBusy, SpoolCorrupt, SpoolError, opening
from relay.spool.content import make_folder, sync

# Where numbers of messages stand, each in an order that an index gives.
_NUMBERS = (
    ("message", "id"),
    ("content", "id"),
    ("recipient", "message"),
    ("event", "message"),
    ("idempotency", "message"),
    ("metadata", "message"),
)
# Tables that stand alone, and their keys.
_ALONE = {
    "spent": ("key", "until"),
    "kept": ("key",),
    "suppression": ("scope", "address"),
    "softly": ("scope", "address", "at", "message"),
    "heard": ("key",),
    "endpoint": ("name",),
    "parcel": ("endpoint", "event"),
    "token": ("id",),
    "audit": ("id",),
    "consumer": ("tenant", "name"),
}
_PAGE = 500
_GAP = 1 << 14  # numbers between two readable ends that are tried one by one
_COLUMNS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "message": {"id": int, "sender": str, "class": str, "user": str, "head": bytes, "accepted_at": (int, float), "size": int},
    "recipient": {"n": int, "lane": int, "due_at": (int, float), "expires_at": (int, float), "address": str, "attempts": int},
    "spent": {"key": str, "until": (int, float), "count": int},
    "kept": {"key": str, "value": str},
    "suppression": {
        "scope": str, "address": str, "why": int, "evidence": str, "source": str, "at": (int, float), "until": (int, float),
        "message": int,
    },
    "softly": {"scope": str, "address": str, "at": (int, float), "until": (int, float), "message": int},
    "heard": {"key": str, "at": (int, float)},
    "endpoint": {"name": str, "cursor": int},
    "parcel": {
        "endpoint": str, "event": int, "message": int, "dead": int, "attempts": int, "due_at": (int, float),
        "first_at": (int, float), "why": str, "body": str,
    },
    "token": {
        "id": str, "digest": str, "name": str, "scopes": str, "user": str, "tenant": str, "created_at": (int, float),
        "created_by": str, "expires_at": (int, float), "revoked_at": (int, float),
    },
    "audit": {
        "id": int, "at": (int, float), "who": str, "tenant": str, "request": str, "act": str, "asked": str, "status": int,
        "result": str,
    },
    "consumer": {"tenant": str, "name": str, "cursor": int, "at": (int, float)},
}  # fmt: skip
_OBJECTS = {"audit": ("asked", "result")}  # columns of JSON, each an object: one that is none would hide all others


class Row(dict[str, Any]):
    """A column whose name is spoilt in the list of the tables is not there, and so has no value."""

    def __missing__(self, name: str) -> None:
        return None


UNREADABLE = (sqlite3.Error, ValueError)  # the latter: text, also in SQLite's own messages, that is no UTF-8


@dataclass
class Salvaged:
    messages: int = 0
    recipients: int = 0
    waiting: int = 0
    events_lost: int = 0
    errors: set[str] = field(default_factory=set)  # of SQLite, where a table could not be read to its end
    lost: list[dict[str, str]] = field(default_factory=list)  # queue_id, what, recipients


def salvage(source: Path, target: Path, progress: Callable[[int, int], None]) -> Salvaged:
    """`source` and `target` are folders. Raises SpoolError."""
    if not (source / "spool.db").is_file():
        raise SpoolError(f"{source}: there is no spool.db in it; name the folder of the damaged spool")
    if target.exists():
        raise SpoolError(f"{target} exists already; salvage wants a new folder")
    lock = _lock(source)
    copy = target.with_name(f"{target.name}.reading")
    try:
        make_folder(target)
        make_folder(copy)
        for name in ("spool.db", "spool.db-wal"):
            if (source / name).exists():
                shutil.copyfile(source / name, copy / name)
        with closing(_connect(copy / "spool.db")) as old, closing(_connect(target / "spool.db")) as new:
            done = _Salvage(old, new, source / "content", target / "content").run(progress)
    except SpoolCorrupt:
        shutil.rmtree(target)  # nothing is in it, and it would be in the way of the next try
        raise
    except OSError as error:
        raise SpoolError(f"{error.filename}: {error.strerror}") from None
    finally:
        shutil.rmtree(copy, ignore_errors=True)
        os.close(lock)
    for path in (*target.rglob("*"), target):
        sync(path)
    return done


def _lock(source: Path) -> int:
    """Raises SpoolBusy where a relay runs on it. Nothing is made there."""
    descriptor = os.open(
        source / "spool.lock" if (source / "spool.lock").exists() else source, os.O_RDONLY | os.O_CLOEXEC
    )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SpoolBusy(f"a relay runs on {source}; stop it first") from None
    return descriptor


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


class _Salvage:
    def __init__(self, old: sqlite3.Connection, new: sqlite3.Connection, content: Path, target: Path) -> None:
        self.old, self.new, self.content, self.target = old, new, content, target
        self.done = Salvaged()
        self.lanes: dict[int, str] = {}
        self.made: dict[str, int] = {}

    def run(self, progress: Callable[[int, int], None]) -> Salvaged:
        try:
            self.known = {t: self._names(self.old, t) for t in (*dict(_NUMBERS), *_ALONE)}
        except UNREADABLE as error:
            raise SpoolCorrupt(f"not even the list of its tables can be read ({error}); restore a backup") from None
        if not self.known["message"]:
            raise SpoolCorrupt("it is not a relay's spool, or the list of its tables is lost; restore a backup")
        opening.migrate(self.new, Path("new"))
        self.names = {t: self._names(self.new, t) for t in self.known}
        make_folder(self.target)
        self.lanes = {i: facts for i, facts in self._scan("lane", "id", "id, facts") if isinstance(facts, str)}
        numbers = self._numbers()
        for i, number in enumerate(numbers):
            if i % _PAGE == 0:
                if i:
                    self.new.execute("COMMIT")
                self.new.execute("BEGIN")
                progress(i, len(numbers))
            self._message(number)
        if numbers:
            self.new.execute("COMMIT")
        self._events(0)
        for table, key in _ALONE.items():
            self._table(table, *key)
        # What waits for an endpoint of which all else is lost: it goes on after that.
        self.new.execute("INSERT OR IGNORE INTO endpoint SELECT endpoint, max(event) FROM parcel GROUP BY endpoint")
        self._meta(max(numbers, default=0))
        progress(len(numbers), len(numbers))
        return self.done

    # -- finding

    @staticmethod
    def _names(connection: sqlite3.Connection, table: str) -> list[str]:
        return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]

    def _scan(self, table: str, key: str, columns: str, gaps: list[range] | None = None) -> list[tuple[Any, ...]]:
        """Rows from the lowest key up to the first bad page, and from the highest down to it."""
        found: list[tuple[Any, ...]] = []
        ends = []
        for order, sign, start in (("ASC", ">", -1), ("DESC", "<", 1 << 62)):
            at = start
            try:
                while rows := self.old.execute(
                    f"SELECT {columns} FROM {table} WHERE {key} {sign} ? GROUP BY {key} ORDER BY {key} {order} LIMIT {_PAGE}",
                    (at,),
                ).fetchall():
                    found += rows
                    last = rows[-1][0]
                    if not isinstance(last, int) or (last <= at if sign == ">" else last >= at):
                        break  # out of order: it would go round for ever
                    at = last
                else:
                    return found
            except UNREADABLE as error:
                self.done.errors.add(" ".join(str(error).split()))
            ends.append(at)
        if gaps is not None and 0 <= ends[0] < ends[1] < 1 << 62:
            gaps.append(range(ends[0] + 1, ends[1]))
        return found

    def _numbers(self) -> list[int]:
        """Of all messages that any table, or a body's file, knows of."""
        gaps: list[range] = []
        found = {row[0] for table, key in _NUMBERS if self.known[table] for row in self._scan(table, key, key, gaps)}
        for gap in gaps:
            if len(gap) <= _GAP:
                found.update(gap)
        for path in self.content.iterdir() if self.content.is_dir() else ():
            try:
                found.add(parse_queue_id(path.name))
            except ValueError:
                continue
        return sorted(n for n in found if isinstance(n, int) and 0 < n < 1 << 55)

    # -- reading one

    def _rows(self, table: str, where: str, *values: Any) -> list[Row]:
        cursor = self.old.execute(f"SELECT * FROM {table} WHERE {where}", values)
        names = [d[0] for d in cursor.description]
        return [Row(zip(names, row, strict=True)) for row in cursor]

    def _try(self, table: str, where: str, *values: Any) -> tuple[list[Row], bool]:
        """(rows, could they be read)."""
        try:
            return self._rows(table, where, *values), True
        except UNREADABLE:
            return [], False

    def _recipients(self, number: int) -> tuple[list[Row], bool]:
        found, whole = self._try("recipient", "message = ?", number)
        if not whole:
            # One by one, until nothing more can be there.
            n = misses = 0
            while misses < 3 and n < _GAP:
                rows, _ = self._try("recipient", "message = ? AND n = ?", number, n)
                n, misses = n + 1, 0 if rows else misses + 1
                found += rows
        # A page out of order may give another's.
        good = [r for r in found if r["message"] == number and _sound("recipient", r) and r["state"] in list(State)]
        return good, whole and len(good) == len(found)

    def _message(self, number: int) -> None:
        rows, readable = self._try("message", "id = ?", number)
        recipients, whole = self._recipients(number)
        if not rows and not recipients and readable and whole:
            if (self.content / queue_id(number)).exists() or not self._try("content", "id = ?", number)[0]:
                return  # an orphan, or a number that only history knows
            return self._lose(number, "all but its body", [])
        if not rows or not _sound("message", rows[0]):
            return self._lose(number, "its row, with sender and header", recipients)
        if not recipients:
            return self._lose(number, "its recipients", [])
        if not whole:
            self._lose(number, "some of its recipients", [])
        waits = any(State(r["state"]) not in FINAL for r in recipients)
        self.new.execute("SAVEPOINT one")
        try:
            lost = self._body(rows[0], number)
            if not (lost and waits):
                lost = ""
                self._copy(rows[0], recipients, number)
        except UNREADABLE:
            lost = "a value that cannot be"
        if lost:
            self.new.execute("ROLLBACK TO one")
            self._lose(number, lost, recipients)
        self.new.execute("RELEASE one")

    def _body(self, row: Row, number: int) -> str:
        """Copies it; what is lost of it, if anything."""
        if row["place"] == Place.FILE:
            try:
                shutil.copyfile(self.content / queue_id(number), self.target / queue_id(number))
            except OSError as error:
                row["place"] = int(Place.DROPPED)
                return f"its body ({error.strerror})"
            (self.target / queue_id(number)).chmod(0o600)
            return ""
        rows, _ = self._try("content", "id = ?", number)
        if not rows or not isinstance(rows[0]["bytes"], bytes):
            return "its body" if row["place"] == Place.TABLE else ""
        self._insert("content", rows[0])
        return ""

    # -- writing

    def _copy(self, row: Row, recipients: list[Row], number: int) -> None:
        self._insert("message", row)
        for r in recipients:
            self._insert("recipient", Row(r, lane=self._lane(r["lane"], row), note=_json(r["note"])))
        self._events(number)
        for key in self._try("idempotency", "message = ?", number)[0]:
            self._insert("idempotency", key, "OR IGNORE")
        for said in self._try("metadata", "message = ?", number)[0]:
            self._insert("metadata", Row(said, data=_json(said["data"])), "OR IGNORE")
        self.done.messages += 1
        self.done.recipients += len(recipients)
        self.done.waiting += sum(State(r["state"]) not in FINAL for r in recipients)

    def _events(self, number: int) -> None:
        """Those of one message, or of none: 0. They keep their ids, which are cursors of many."""
        events, readable = self._try("event", "message = ?", number)
        self.done.events_lost += not readable
        for event in events:
            try:
                if not isinstance(event["id"], int) or not 0 < event["id"] < 1 << 55:
                    raise ValueError("an id that cannot be")
                self._insert("event", Row(event, data=_json(event["data"])))
            except UNREADABLE:
                self.done.events_lost += 1

    def _lane(self, number: int, row: Row) -> int:
        """One whose facts are lost gets the plainest; it is routed anew at the start."""
        facts = _json(self.lanes.get(number, ""))
        if facts == "{}":
            facts = json.dumps({"class": row["class"], "user": row["user"]}, separators=(",", ":"))
        if facts not in self.made:
            self.made[facts] = self.new.execute(
                "INSERT INTO lane (facts) VALUES (?) RETURNING id", (facts,)
            ).fetchone()[0]
        return self.made[facts]

    def _insert(self, table: str, row: Row, otherwise: str = "") -> None:
        """Raises sqlite3.IntegrityError where a value cannot be."""
        names = [n for n in self.names[table] if n in row]
        marks = ",".join("?" * len(names))
        self.new.execute(
            f"INSERT {otherwise} INTO {table} ({','.join(names)}) VALUES ({marks})", [row[n] for n in names]
        )

    def _lose(self, number: int, what: str, recipients: list[Row]) -> None:
        self.done.lost.append(
            {
                "queue_id": queue_id(number),
                "lost": what,
                "recipients": " ".join(_shown(r["address"]) for r in recipients),
            }
        )

    def _table(self, name: str, *key: str) -> None:
        """A small one, as it is: from its first row up to the first bad page, and from its last down to it."""
        if not self.known[name]:
            return  # of an older schema
        self.new.execute("BEGIN")
        for order in ("ASC", "DESC"):
            by = ", ".join(f"{column} {order}" for column in key)
            try:
                for values in self.old.execute(f"SELECT * FROM {name} ORDER BY {by}"):
                    row = Row(zip(self.known[name], values, strict=True))
                    if _sound(name, row):
                        row |= {column: _json(row[column]) for column in _OBJECTS.get(name, ())}
                        self._insert(name, row, "OR IGNORE")
                break
            except UNREADABLE as error:
                self.done.errors.add(" ".join(str(error).split()))
        self.new.execute("COMMIT")

    def _meta(self, highest: int) -> None:
        kept, _ = self._try("meta", "key IN ('next_id', 'run', 'alive_at')")
        meta = {row["key"]: row["value"] for row in kept if isinstance(row["value"], int | float)}
        meta["next_id"] = max(int(meta.get("next_id", 0)), highest) + (1 << 16)
        meta["restored"] = 1
        self.new.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())


def _sound(table: str, row: Row) -> bool:
    """Whether what is reckoned with is of the kind that it must be."""
    return all(isinstance(row.get(name), kind) for name, kind in _COLUMNS[table].items())


def _shown(text: str) -> str:
    """Of a damaged row, for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _json(text: Any) -> str:
    try:
        return str(text) if isinstance(json.loads(text), dict) else "{}"
    except (TypeError, ValueError):
        return "{}"
