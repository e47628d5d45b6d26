"""Opening a spool: folder and file modes, the lock, migrations, and what a dead process left.

Refuses with a sentence that tells the operator what to do.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from relay.maillog import MailLog
from relay.recipient import State
from relay.spool import SpoolBusy, SpoolCorrupt, SpoolError, SpoolNewer, downtime, hot, keep, queries, stream, usual
from relay.spool.content import make_folder
from relay.spool.lanes import Lanes

_APPLICATION_ID = 0x72656C79  # "rely": tells a spool from any other SQLite file
CHECK_LIMIT = 256 << 20  # bytes; a larger file is looked at by `relay spool check` alone: a start must not take minutes
LEFT = "it was left as it is: keep a copy of its folder, then see `relay spool salvage` (docs/operations.md)"
MINIMUM_SQLITE = (3, 35, 0)  # RETURNING


@dataclass(slots=True)
class Opened:
    run: int
    next_id: int
    lanes: Lanes
    counts: dict[State, int]
    migrated_from: int
    restored: int  # recipients that were held because this is a restored backup
    gap: float  # seconds by which times were moved (spool.downtime)
    moved: int  # recipients whose times those were
    strays: list[str] = field(default_factory=list)  # what lacks its other half


def migrations() -> list[tuple[int, str]]:
    """(version, SQL) of every numbered file in `schema/`, in order."""
    folder = resources.files("relay.spool") / "schema"
    found = [(int(f.name[:4]), f.read_text()) for f in folder.iterdir() if f.name.endswith(".sql")]
    return sorted(found)


def prepare(path: Path) -> int:
    """Folder 0700, file 0600, and the lock; returns its descriptor, to be held for life. Raises SpoolError."""
    if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
        raise SpoolError(f"SQLite {sqlite3.sqlite_version} is too old: 3.35 or newer is needed")
    try:
        _make_folder(path.parent)
        # Never unlinked: a second process would lock another file of the same name.
        lock = os.open(path.parent / "spool.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SpoolError(
            f"spool folder {path.parent}: {error.strerror}; set spool.path to one that we may write"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise SpoolBusy(
            f"spool {path} is in use by another relay (pid {owner or 'unknown'}); stop that one first"
        ) from None
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.chmod(path, 0o600)
    except OSError as error:
        os.close(lock)
        raise SpoolError(f"spool {path}: {error.strerror}; set spool.path to a file that we may write") from None
    return lock


def _make_folder(folder: Path) -> None:
    """0700 where it is ours alone. What others put there stays reachable: `spool.path: /var/lib/spool.db` must not close /var/lib."""
    if make_folder(folder):
        return
    if folder.stat().st_mode & stat.S_IWOTH:
        raise SpoolError(f"spool folder {folder} is writable by everybody; give the spool a folder of its own")
    if not any(folder.iterdir()):
        folder.chmod(0o700)


def explained(path: Path, error: BaseException) -> BaseException:
    if isinstance(error, sqlite3.OperationalError):  # of the disk or of access, not of what is in the file
        return SpoolError(f"spool {path} cannot be opened: {error}")
    if isinstance(error, OSError):
        return SpoolError(f"spool {path}: {error}")
    if isinstance(error, sqlite3.DatabaseError | ValueError):  # text that is no UTF-8
        return SpoolCorrupt(f"{path} is no spool or is damaged ({' '.join(str(error).split())}); {LEFT}")
    return error


def check(connection: sqlite3.Connection, path: Path) -> list[str]:
    """What lacks its other half. Before anything is written, on a connection that only reads. Raises SpoolCorrupt."""
    if path.stat().st_size > CHECK_LIMIT:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return []
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise SpoolCorrupt(f"{path} is damaged ({' '.join(found.split())}); {LEFT}")
    ours = connection.execute("PRAGMA application_id").fetchone()[0] == _APPLICATION_ID
    if not ours:
        return []
    for (state,) in connection.execute("SELECT DISTINCT state FROM recipient").fetchall():
        State(state)  # one that cannot be is damage that no page tells
    return queries.strays(connection)


def open_on_thread(connection: sqlite3.Connection, path: Path, now: float) -> Opened:
    """Pragmas, migrations, a new run. On the connection's thread."""
    _refuse_foreign(connection, path)  # before the first word that writes
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # with NORMAL a power cut lost 50 of 50 commits, with FULL none
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # spool.writer does it
    before = migrate(connection, path)
    usual.prepare(connection)
    connection.execute("BEGIN IMMEDIATE")
    meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
    # Above every id that was given, and above what a restored backup may not know of.
    next_id = max(int(meta.get("next_id", 0)), int(now) << 20)
    run = int(meta.get("run", 0)) + 1
    stream.lift(connection, now, bool(meta.get("restored")))
    restored = _hold_all(connection, now) if meta.get("restored") else 0
    connection.executemany(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        [("next_id", next_id), ("run", run), ("restored", 0), ("alive_at", now)],
    )
    gap = downtime.gap(meta.get("alive_at"), now)
    moved = downtime.close(connection, gap, now) if gap else 0
    hot.reserve_ids(connection, next_id)
    connection.execute("COMMIT")
    return Opened(run, next_id, Lanes(connection), keep.counts(connection), before, restored, gap, moved)


def _refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    application: int = connection.execute("PRAGMA application_id").fetchone()[0]
    tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and application != _APPLICATION_ID:
        raise SpoolCorrupt(f"{path} is a database, but not a relay's spool; set spool.path to another file")


def migrate(connection: sqlite3.Connection, path: Path) -> int:
    """Brings the schema up to date, a copy taken first; returns the version it had, 0 where nothing was to be done."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    steps = migrations()
    latest = steps[-1][0]
    if version > latest:
        raise SpoolNewer(
            f"spool {path} has schema {version}, written by a newer relay; this one knows up to {latest}: install that version"
        )
    todo = [(number, sql) for number, sql in steps if number > version]
    if todo and version:
        copy = path.with_name(f"{path.name}.schema-{version}")
        copy.unlink(missing_ok=True)
        connection.execute("VACUUM INTO ?", (str(copy),))
        os.chmod(copy, 0o600)
    for number, sql in todo:
        # One transaction a step: executescript would commit in between.
        connection.execute("BEGIN IMMEDIATE")
        for statement in _statements(sql):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    return version if todo else 0


def _statements(sql: str) -> list[str]:
    found, text = [], ""
    for line in sql.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            found.append(text)
            text = ""
    return found


def _hold_all(connection: sqlite3.Connection, now: float) -> int:
    """A restored backup does not know what was sent after it was taken: nothing moves until an operator looked."""
    note = '{"why":"restored from a backup: compare with what was sent since it was taken"}'
    held = 0
    for part in queries.parts(connection):
        among = "state < 3 AND message > ? AND message <= ?"
        connection.execute(
            "INSERT INTO event (at, message, n, kind, egress, code, data) "
            f"SELECT ?, message, n, 'held', '', 0, ? FROM recipient WHERE {among}",
            (now, note, *part),
        )
        held += connection.execute(f"UPDATE recipient SET state = 3, note = ? WHERE {among}", (note, *part)).rowcount
    return held


def tell(opened: Opened, log: MailLog) -> None:
    """What a start found that an operator should know."""
    if opened.restored:
        log.error(
            "restored_backup",
            held=opened.restored,
            hint="compare with what was sent since, then relay queue release --error 'restored from a backup'",
        )
    for problem in opened.strays:
        log.error(
            "spool_stray",
            problem=problem,
            hint="some of the spool was lost; see docs/operations.md, The spool is damaged",
        )
    if opened.gap:
        log.warning("clock_gap", seconds=opened.gap, recipients=opened.moved, meaning=downtime.told(opened.gap))
    if opened.migrated_from:
        log.event("spool_migrated", from_schema=opened.migrated_from)
