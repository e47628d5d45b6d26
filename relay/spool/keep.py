"""What operators and housekeeping change, as functions on the writing connection's thread."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay.envelope import queue_id
from relay.events import Kind
from relay.policy import poison
from relay.policy.classes import InDoubt
from relay.recipient import FINAL, READY, WAITING, News, State, Verb, move, states_before
from relay.spool import Event, Head, Place, SpoolError, Tell, hot, reports
from relay.spool.content import sync
from relay.spool.hot import Write, Written
from relay.spool.lanes import Lanes
from relay.spool.rows import Rows

PAGE = 200  # rows that are looked for at once; how many go into a transaction is for `slices` to say

_ACT = Rows(
    "WITH v(m, i, state, lane, due, note, crashes) AS (VALUES {}) "
    "UPDATE recipient SET state = v.state, lane = v.lane, due_at = v.due, note = v.note, crashes = "
    "recipient.crashes * v.crashes FROM v WHERE message = v.m AND n = v.i",
    7,
)
_RELANE = Rows(
    "WITH v(m, i, lane) AS (VALUES {}) UPDATE recipient SET lane = v.lane FROM v WHERE message = v.m AND n = v.i", 3
)

_EVENT_OF: Mapping[Verb, Kind] = {
    Verb.HOLD: "held",
    Verb.RELEASE: "released",
    Verb.RETRY: "retried",
    Verb.EXPIRE: "expired",
    Verb.CANCEL: "cancelled",
    Verb.SUPPRESS: "suppressed",
}


@dataclass(frozen=True, slots=True)
class Action:
    keys: Sequence[tuple[int, int]]
    verb: Verb
    now: float
    why: str
    facts: Mapping[int, str]  # lane -> the facts of the lane that its recipients move to
    kind: Kind | None = None  # of the event, where it is not the verb's
    owner: str = ""  # whose token asked (policy.access); empty: somebody of the whole relay


def touch(now: float, connection: sqlite3.Connection) -> None:
    """The relay is alive at `now` (spool.downtime); and a write, so that a sick disk says so."""
    connection.execute("UPDATE meta SET value = ? WHERE key = 'alive_at'", (now,))


def counts(connection: sqlite3.Connection) -> dict[State, int]:
    """One pass over all rows; to group them would be to sort them, in memory."""
    sums = ", ".join(f"count(*) FILTER (WHERE state = {int(s)})" for s in State)
    return dict(zip(State, connection.execute(f"SELECT {sums} FROM recipient").fetchone(), strict=True))


@dataclass(slots=True)
class Acted:
    changed: list[tuple[State, State]]  # before and after, of each that changed
    files: list[int]  # messages whose body file may go
    lanes: dict[str, int]
    heads: list[Head]  # lanes that now have something due
    told: Written


def act(lanes: Lanes, keep_bodies: str, write: Write, connection: sqlite3.Connection, action: Action) -> Acted:
    ids = lanes.intern(connection, set(action.facts.values()))
    # What is in flight belongs to its delivery: `expire` looks at it when it settles.
    before_it = [s for s in states_before(action.verb) if s in WAITING]
    wanted, values = hot.keyed(list(dict.fromkeys(action.keys)))
    rows = connection.execute(
        f"{wanted} SELECT message, n, lane, state, due_at, note, send_at FROM v "
        "CROSS JOIN recipient ON message = v.m AND n = v.i JOIN message ON id = message "
        f"WHERE state IN ({_list(before_it)})",
        values,
    ).fetchall()
    changed, written, events, tells, done, moved = [], [], [], [], set(), dict[int, float]()
    for message, n, lane, number, due_at, text, send_at in rows:
        before = State(number)
        after = move(before, action.verb)
        note = _unheld(json.loads(text)) | {"why": action.why} | ({"settled_at": action.now} if after in FINAL else {})
        if action.verb is Verb.HOLD and action.owner:
            note["held_by"] = action.owner
        lane_after = ids[action.facts[lane]] if lane in action.facts else lane
        if after in READY:
            due_at = max(action.now, send_at)  # what is to be sent later is not sent sooner by the way
            moved[lane_after] = min(due_at, moved.get(lane_after, due_at))
        # Who releases it has looked at it: it starts anew.
        crashes = int(action.verb is not Verb.RELEASE)
        written.append((message, n, int(after), lane_after, due_at, json.dumps(note), crashes))
        kind = action.kind or _EVENT_OF[action.verb]
        events.append(Event(action.now, message, n, kind, data={"why": action.why}))
        changed.append((before, after))
        if action.verb is Verb.EXPIRE:  # what an operator cancels he tells himself
            tells.append(Tell(message, n, News.FAILED, action.now, expired=True))
        if after in FINAL:
            done.add(message)
    _ACT.run(connection, written)
    hot.insert_events(connection, events)
    # Read here: the lane may be one that an earlier job of this transaction made.
    heads = [
        Head(lane, facts, moved[lane])
        for lane, facts in connection.execute(
            "SELECT id, facts FROM lane WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(moved)),)
        )
    ]
    told = write(connection, tells)
    return Acted(changed, hot.drop_bodies(connection, done, keep_bodies), ids, heads, told)


def _unheld(note: dict[str, Any]) -> dict[str, Any]:
    """Who held it last says nothing of the next hold."""
    note.pop("held_by", None)
    return note


def tell_delays(write: Write, now: float, connection: sqlite3.Connection, keys: Sequence[tuple[int, int]]) -> Written:
    """Tells the senders of those that still wait."""
    return write(connection, reports.waiting(connection, keys, now))


def relane(
    lanes: Lanes, connection: sqlite3.Connection, moves: Sequence[tuple[int, int, int, str]]
) -> tuple[dict[str, int], list[tuple[int, str, float | None]]]:
    """Moves those that still wait in the lane they were seen in; returns lanes and (lane, facts, due if ready)."""
    ids = lanes.intern(connection, {facts for *_, facts in moves})
    to = {(message, n, lane): facts for message, n, lane, facts in moves}
    wanted, values = hot.keyed([(message, n) for message, n, _ in to])
    rows = connection.execute(
        f"{wanted} SELECT message, n, lane, state, due_at FROM v CROSS JOIN recipient ON message = v.m AND n = v.i "
        "WHERE state IN (0, 1, 3)",
        values,
    ).fetchall()
    found = [(m, n, to[m, n, lane], state, due_at) for m, n, lane, state, due_at in rows if (m, n, lane) in to]
    _RELANE.run(connection, [(m, n, ids[facts]) for m, n, facts, *_ in found])
    announced = [(ids[facts], facts, due_at if State(state) in READY else None) for *_, facts, state, due_at in found]
    return ids, announced


def recover(
    in_doubt: Mapping[str, InDoubt], now: float, chance: float, write: Write, connection: sqlite3.Connection
) -> tuple[int, list[int], Written]:
    """Whatever an earlier run left ACTIVE may have been delivered: a doubt that is shown and settled by class.

    (how many there were, messages that are held because this happened too often, the reports of those that failed).
    """
    rows = connection.execute(
        "SELECT r.message, r.n, r.note, r.attempts, r.crashes + 1, m.class FROM recipient r "
        "JOIN message m ON m.id = r.message WHERE r.state = ?",
        (int(State.ACTIVE),),
    ).fetchall()
    events: list[Event] = []
    tells: list[Tell] = []
    held: dict[int, None] = {}
    for message, n, text, attempts, crashes, class_ in rows:
        rule = in_doubt.get(class_, InDoubt.RETRY)
        verb = {InDoubt.RETRY: Verb.RECOVER, InDoubt.HOLD: Verb.PARK, InDoubt.FAIL: Verb.HARD}[rule]
        why = "in doubt: the relay stopped while it was in flight, so it may have been delivered"
        if verb is Verb.RECOVER and crashes >= poison.MOST:
            verb, why = (
                Verb.PARK,
                poison.why_held("the relay died while it was in flight, so it may have been delivered"),
            )
            held[message] = None
        after = move(State.ACTIVE, verb)
        note = json.loads(text) | {"why": why} | ({"settled_at": now} if after in FINAL else {})
        due_at = poison.due_after(crashes, now, message, chance)
        connection.execute(
            "UPDATE recipient SET state = ?, due_at = ?, attempts = ?, in_doubt = 1, crashes = ?, note = ? "
            "WHERE message = ? AND n = ?",
            (int(after), due_at, attempts + 1, crashes, json.dumps(note), message, n),
        )
        events.append(Event(now, message, n, "in_doubt", data={"why": why, "state": after.label}))
        if after is State.FAILED:
            tells.append(Tell(message, n, News.FAILED, now))
    hot.insert_events(connection, events)
    return len(rows), list(held), write(connection, tells)


def purge(connection: sqlite3.Connection, messages: Sequence[int]) -> tuple[list[int], list[State]]:
    """Forgets messages whole; returns those whose body is a file, and the states of their recipients."""
    ids = json.dumps(list(messages))
    among = "IN (SELECT value FROM json_each(?))"
    files = [
        row[0]
        for row in connection.execute(f"SELECT id FROM message WHERE place = ? AND id {among}", (int(Place.FILE), ids))
    ]
    gone = connection.execute(f"DELETE FROM recipient WHERE message {among} RETURNING state", (ids,)).fetchall()
    # The newest event stays: SQLite would give its id, which is a cursor of many, to the next one.
    connection.execute(f"DELETE FROM event WHERE message {among} AND id < (SELECT max(id) FROM event)", (ids,))
    for table, column in (
        ("content", "id"),
        ("idempotency", "message"),
        ("metadata", "message"),
        ("message", "id"),
    ):
        connection.execute(f"DELETE FROM {table} WHERE {column} {among}", (ids,))
    return files, [State(row[0]) for row in gone]


def watch_lanes(lanes: Lanes, connection: sqlite3.Connection) -> None:
    """What was committed before is there to be read; what comes is seen in `used`."""
    lanes.watch()


def forget_lanes(lanes: Lanes, connection: sqlite3.Connection, ids: Sequence[int]) -> list[int]:
    """Of lanes that no recipient was of, those that none has become of since. The highest number stays: SQLite would give it
    to another lane, and who still knows the old one would take it for that."""
    gone = connection.execute(
        "DELETE FROM lane WHERE id IN (SELECT value FROM json_each(?)) AND id < (SELECT max(id) FROM lane) RETURNING id",
        (json.dumps([number for number in ids if number not in (lanes.used or ())]),),
    )
    return [row[0] for row in gone.fetchall()]


def backup(connection: sqlite3.Connection, folder: Path, content: Path) -> dict[str, Any]:
    """A copy of the spool as `folder/spool.db` and `folder/content/`; marked, so that it starts with everything held.

    Runs on the reading connection: one snapshot, writers go on. Body files that are delivered meanwhile are gone by then
    and are not needed. Raises SpoolError.
    """
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise SpoolError(f"{folder} exists already; a backup wants a new folder") from None
    except OSError as error:
        raise SpoolError(f"{folder}: {error.strerror}") from None
    copy = folder / "spool.db"
    connection.execute("VACUUM INTO ?", (str(copy),))
    os.chmod(copy, 0o600)
    marked = sqlite3.connect(copy, isolation_level=None)
    try:
        marked.execute("INSERT INTO meta VALUES ('restored', 1) ON CONFLICT (key) DO UPDATE SET value = 1")
        waiting = f"SELECT id FROM message WHERE place = {int(Place.FILE)}"
        needed = [row[0] for row in marked.execute(waiting)]
        recipients = marked.execute("SELECT count(*) FROM recipient WHERE state < 4").fetchone()[0]
    finally:
        marked.close()
    target = folder / "content"
    target.mkdir(mode=0o700)
    copied = 0
    for source in (content / queue_id(number) for number in needed):
        try:
            shutil.copy2(source, target / source.name)
            copied += 1
        except FileNotFoundError:
            continue
    for path in (*folder.rglob("*"), folder, folder.parent):
        sync(path)
    return {"folder": str(folder), "bytes": copy.stat().st_size, "waiting_recipients": recipients, "body_files": copied}


def _list(states: Sequence[State]) -> str:
    return ",".join(str(int(s)) for s in states)
