"""The usual message, and the usual end of one, in one statement each.

One recipient, the body in the table, delivered at the first word: most mail is so, and is written to four tables when it
comes and to three when it goes. For each statement the writing thread lets go of the interpreter's lock three times, and
the loop is glad to have it. So a view takes what goes to all tables, and its trigger spreads it; both are of the connection,
not of the file.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from relay.recipient import State
from relay.spool import Change, Event, NewMessage, Settlement
from relay.spool.writer import Rows

_VIEWS = """
CREATE TEMP VIEW arrival (
  id, sender, header_from, user, class, tag, listener, client, priority, send_at, accepted_at, size, smtp, head,
  envid, ret, report, body, lane, state, due_at, expires_at, run, address, notify, orcpt
) AS SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
  NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL;

CREATE TEMP TRIGGER arrived INSTEAD OF INSERT ON arrival BEGIN
  INSERT INTO message (
    id, sender, header_from, user, class, tag, listener, client, priority, send_at, accepted_at, size, smtp, head, place,
    envid, ret, report
  ) VALUES (
    NEW.id, NEW.sender, NEW.header_from, NEW.user, NEW.class, NEW.tag, NEW.listener, NEW.client, NEW.priority,
    NEW.send_at, NEW.accepted_at, NEW.size, NEW.smtp, NEW.head, 0, NEW.envid, NEW.ret, NEW.report
  );
  INSERT INTO content (id, bytes) VALUES (NEW.id, NEW.body);
  INSERT INTO recipient (
    message, n, lane, state, priority, due_at, expires_at, run, address, notify, orcpt
  ) VALUES (
    NEW.id, 0, NEW.lane, NEW.state, NEW.priority, NEW.due_at, NEW.expires_at, NEW.run, NEW.address, NEW.notify, NEW.orcpt
  );
  INSERT INTO event (at, message, n, kind, egress, code, data)
    VALUES (NEW.accepted_at, NEW.id, NULL, 'accepted', '', 250, '{}');
END;

CREATE TEMP VIEW departure (
  message, n, at, attempts, in_doubt, egress, note, crashes, code, data
) AS SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL;

CREATE TEMP TRIGGER departed INSTEAD OF INSERT ON departure BEGIN
  UPDATE recipient SET state = 4, due_at = NEW.at, attempts = NEW.attempts, in_doubt = NEW.in_doubt, egress = NEW.egress,
    note = NEW.note, crashes = NEW.crashes WHERE message = NEW.message AND n = NEW.n;
  INSERT INTO event (at, message, n, kind, egress, code, data)
    VALUES (NEW.at, NEW.message, NEW.n, 'delivered', NEW.egress, NEW.code, NEW.data);
  DELETE FROM content WHERE id = NEW.message AND NOT EXISTS (
    SELECT 1 FROM recipient WHERE message = NEW.message AND (state <> 4 OR egress = 'capture')
  );
END;
"""
_ARRIVAL = Rows("INSERT INTO arrival VALUES {}", 26)
_DEPARTURE = Rows("INSERT INTO departure VALUES {}", 10)


def prepare(connection: sqlite3.Connection) -> None:
    """Once, on a connection that writes, when the schema is the present one."""
    connection.executescript(_VIEWS)


def comes(m: NewMessage) -> bool:
    """Whether `arrive` may write it. An empty body may be one that is not kept."""
    return (
        len(m.recipients) == 1 and m.recipients[0].state is State.QUEUED and isinstance(m.body, bytes) and bool(m.body)
    )


def arrive(connection: sqlite3.Connection, messages: Sequence[NewMessage], lanes: dict[str, int], run: int) -> None:
    """Message, body, recipient and event; `run` claims those that a Taker granted."""
    _ARRIVAL.run(connection, [_arrival(m, lanes, run) for m in messages])


def _arrival(m: NewMessage, lanes: dict[str, int], run: int) -> tuple[Any, ...]:
    (r,) = m.recipients
    return (
        m.id, m.sender, m.header_from, m.user, m.class_, m.tag, m.listener, m.client, m.priority, m.send_at, m.accepted_at,
        len(m.head) + m.body_size, m.smtp, m.head, m.envid, m.ret, m.report, m.body,
        lanes[r.facts], 2 if m.lane else 0, r.due_at, r.expires_at, run if m.lane else 0, r.address, r.notify, r.orcpt,
    )  # fmt: skip


def goes(s: Settlement, keep: str) -> bool:
    """Whether `depart` may write it: delivered, its story one word, and its body in the table and not kept."""
    return (
        s.inline and keep == "failed" and len(s.changes) == len(s.events) == 1 and s.changes[0].state is State.DELIVERED
    )


def depart(connection: sqlite3.Connection, settlements: Sequence[Settlement]) -> None:
    """State, event, and the body goes with the last recipient."""
    _DEPARTURE.run(connection, [_departure(s.changes[0], s.events[0]) for s in settlements])


def _departure(c: Change, e: Event) -> tuple[Any, ...]:
    return (
        c.message,
        c.n,
        c.due_at,
        c.attempts,
        int(c.in_doubt),
        c.egress,
        c.note,
        c.crashes,
        e.code,
        json.dumps(e.data),
    )
