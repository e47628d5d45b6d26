"""The usual message and its usual end, many of both in one statement that is a transaction of its own.

One recipient, the body in the table, delivered at the first word, nobody to be told: most mail is so, and is written to
four tables when it comes and to three when it goes. At each statement, and at BEGIN and COMMIT, the writing thread lets go
of the interpreter's lock three times, and the loop is glad to have it: that was half the time of a transaction. So a view
takes what goes to all tables, and its triggers spread it; they are of the connection, not of the file.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any

from relay.recipient import State
from relay.spool import NewMessage, Settlement
from relay.spool.access import owner_of_key
from relay.spool.rows import MOST, Rows

Row = tuple[Any, ...]

_COMES = (
    "id", "sender", "header_from", "user", "class", "tag", "listener", "client", "priority", "send_at", "at", "size",
    "smtp", "head", "envid", "ret", "report", "body", "lane", "state", "due_at", "expires_at", "run", "address", "notify",
    "orcpt",
)  # fmt: skip
_GOES = ("n", "attempts", "in_doubt", "egress", "note", "crashes", "code", "data")
_COLUMNS = (*_COMES, *_GOES)
_BESIDE = ("owner", "key", "digest", "metadata")


def _view(name: str, columns: Sequence[str]) -> str:
    return f"""
CREATE TEMP VIEW {name} ({", ".join(columns)}) AS SELECT {", ".join(["NULL"] * len(columns))};

CREATE TEMP TRIGGER {name}_comes INSTEAD OF INSERT ON {name} WHEN NEW.n < 0 BEGIN
  INSERT INTO message (
    id, sender, header_from, user, class, tag, listener, client, priority, send_at, accepted_at, size, smtp, head, place,
    envid, ret, report
  ) VALUES (
    NEW.id, NEW.sender, NEW.header_from, NEW.user, NEW.class, NEW.tag, NEW.listener, NEW.client, NEW.priority,
    NEW.send_at, NEW.at, NEW.size, NEW.smtp, NEW.head, 0, NEW.envid, NEW.ret, NEW.report
  );
  INSERT INTO content (id, bytes) VALUES (NEW.id, NEW.body);
  INSERT INTO recipient (
    message, n, lane, state, priority, due_at, expires_at, run, address, notify, orcpt
  ) VALUES (
    NEW.id, 0, NEW.lane, NEW.state, NEW.priority, NEW.due_at, NEW.expires_at, NEW.run, NEW.address, NEW.notify, NEW.orcpt
  );
  INSERT INTO event (at, message, n, kind, egress, code, data) VALUES (NEW.at, NEW.id, NULL, 'accepted', '', 250, '{{}}');
END;

CREATE TEMP TRIGGER {name}_goes INSTEAD OF INSERT ON {name} WHEN NEW.n >= 0 BEGIN
  UPDATE recipient SET state = {int(State.DELIVERED)}, due_at = NEW.at, attempts = NEW.attempts, in_doubt = NEW.in_doubt,
    egress = NEW.egress, note = NEW.note, crashes = NEW.crashes WHERE message = NEW.id AND n = NEW.n;
  INSERT INTO event (at, message, n, kind, egress, code, data)
    VALUES (NEW.at, NEW.id, NEW.n, 'delivered', NEW.egress, NEW.code, NEW.data);
  DELETE FROM content WHERE id = NEW.id AND NOT EXISTS (
    SELECT 1 FROM recipient WHERE message = NEW.id AND (state <> {int(State.DELIVERED)} OR egress = 'capture')
  );
END;
"""


# What has a key or metadata goes by a view of its own: a trigger costs each row that is written, whether it has work or not.
_VIEWS = f"""{_view("usual", _COLUMNS)}{_view("described", (*_COLUMNS, *_BESIDE))}
CREATE TEMP TRIGGER described_known INSTEAD OF INSERT ON described WHEN NEW.key IS NOT NULL BEGIN
  INSERT INTO idempotency (user, key, message, digest) VALUES (NEW.owner, NEW.key, NEW.id, NEW.digest);
END;

CREATE TEMP TRIGGER described_told INSTEAD OF INSERT ON described WHEN NEW.metadata IS NOT NULL BEGIN
  INSERT INTO metadata (message, data) VALUES (NEW.id, NEW.metadata);
END;
"""
_USUAL = Rows("INSERT INTO usual VALUES {}", len(_COLUMNS))
_DESCRIBED = Rows("INSERT INTO described VALUES {}", len(_COLUMNS) + len(_BESIDE))
_NOT_DESCRIBED = (None,) * len(_BESIDE)
# Numbers stand where nobody looks: for each None `sqlite3` asks whether it has to be adapted, and that takes longer than all
# the rest of its row.
_NOT_GONE = (-1,) + (0,) * (len(_GOES) - 1)
_NOT_COME = (0,) * (len(_COMES) - 11)


def prepare(connection: sqlite3.Connection) -> None:
    """Once, on a connection that writes, when the schema is the present one."""
    connection.executescript(_VIEWS)


def write(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """What `coming` and `going` made. Up to MOST rows are one statement. Raises IntegrityError for a key that is known."""
    for start in range(0, len(rows), MOST):
        block, way = rows[start : start + MOST], _USUAL
        if max(map(len, block)) > len(_COLUMNS):
            block, way = [row if len(row) > len(_COLUMNS) else (*row, *_NOT_DESCRIBED) for row in block], _DESCRIBED
        # `execute` would let go of the lock once more, to ask for an id that nobody wants.
        connection.executemany(way.text(len(block)), [list(chain.from_iterable(block))])


def coming(m: NewMessage, lanes: dict[str, int], run: int) -> Row | None:
    """Message, body, recipient, event, and its key and metadata where it has them; `run` claims it where a Taker granted it.
    None: it is not usual.

    An empty body may be one that is not kept.
    """
    r = m.recipients[0]
    if len(m.recipients) > 1 or r.state is not State.QUEUED or not isinstance(m.body, bytes) or not m.body:
        return None
    return (
        m.id, m.sender, m.header_from, m.user, m.class_, m.tag, m.listener, m.client, m.priority, m.send_at, m.accepted_at,
        len(m.head) + m.body_size, m.smtp, m.head, m.envid, m.ret, m.report, m.body, lanes[r.facts], 2 if m.lane else 0,
        r.due_at, r.expires_at, run if m.lane else 0, r.address, r.notify, r.orcpt, *_NOT_GONE,
        *(_beside(m) if m.idempotency_key or m.metadata else ()),
    )  # fmt: skip


def _beside(m: NewMessage) -> Row:
    key = (owner_of_key(m.user, m.sender), m.idempotency_key, m.digest) if m.idempotency_key else (None,) * 3
    return *key, m.metadata or None


def going(s: Settlement, keep: str) -> Row | None:
    """State, event, and the body goes with the last recipient. None: it is not usual, or its body may be kept."""
    if not (s.inline and keep == "failed" and len(s.changes) == len(s.events) == 1):
        return None
    c, e = s.changes[0], s.events[0]
    if c.state is not State.DELIVERED or e.kind != "delivered" or s.suppressions or s.softly:
        return None
    return (
        c.message, 0, 0, 0, 0, 0, 0, 0, 0, 0, c.due_at, *_NOT_COME,
        c.n, c.attempts, int(c.in_doubt), c.egress, c.note, c.crashes, e.code, json.dumps(e.data),
    )  # fmt: skip
