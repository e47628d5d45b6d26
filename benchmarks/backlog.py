#!/usr/bin/env python3
"""A million recipients that wait in a thousand lanes, and mail to a live account beside them.

    .venv/bin/python -m benchmarks.backlog [--count 1000000] [--lanes 1000] [--load 3000]     measures
    .venv/bin/python -m benchmarks.backlog --make FOLDER                                      leaves such a spool there

Whose accounts are dead is due at once and cannot move: each lane belongs to a user whose route leads to one of ten accounts
where nobody listens, which soon rest. Measured with the queue empty and with it full: the start until mail is taken, what
the process does while nothing arrives (its share of a core, how late its event loop is), how large it is, and the rates of a
load to an account that lives.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.loads import Load, Sink, drive
from benchmarks.process import Metrics, cpu_seconds, memory_mib
from relay.config.load import load as load_config
from relay.policy.lanefacts import lane_facts
from relay.policy.routing import Facts, Table
from relay.recipient import State
from relay.spool import NewMessage, NewRecipient, hot, opening, usual
from tests.service.support import Relay, free_port, until

DEAD = 10  # accounts where nobody listens
AGE = 3600.0  # seconds since the first of the backlog was accepted
QUIET = 5.0  # seconds during which nothing arrives
KEPT = Load(10)

# One key more than is shipped: `max_queued` is a million by default, and mail beside a million would be refused.
_CONFIG = """\
hostname: relay.example.org
listen:
  - {{name: local, address: "127.0.0.1:0"}}
admin: {{socket: {folder}/admin.sock, address: null}}
spool: {{path: {folder}/spool/spool.db, max_queued: {most}}}
accounts:
  sink: {{host: 127.0.0.1, port: {sink}, tls: none}}
{accounts}
routes:
{routes}
  - {{name: all, via: sink}}
"""
_HEAD = b"""\
Received: from app.example.org ([127.0.0.1])
\tby relay.example.org with ESMTP id %011d;
\tTue, 1 Dec 2026 08:00:00 +0000
From: app@example.org
To: user@example.net
Subject: one of many
Date: Tue, 1 Dec 2026 08:00:00 +0000
Message-ID: <%d@relay.example.org>

"""
_BODY = b"This waits for a server that does not answer.\r\n" * 4


def write_config(folder: Path, sink: int, most: int = 2_000_000) -> Path:
    """`folder`/relay.yaml: mail of nobody goes to the sink at that port, that of the users of `user_of` to a dead account."""
    dead = free_port()
    file = folder / "relay.yaml"
    file.write_text(
        _CONFIG.format(
            folder=folder,
            sink=sink,
            most=most,
            accounts="\n".join(f"  dead{n}: {{host: 127.0.0.1, port: {dead}, tls: none}}" for n in range(DEAD)),
            routes="\n".join(f'  - {{name: dead{n}, match: {{user: "{n}-*"}}, via: dead{n}}}' for n in range(DEAD)),
        )
    )
    return file


def user_of(lane: int) -> str:
    return f"{lane % DEAD}-{lane:04}"


def seed(table: Table, first: int, lane: int, at: float) -> NewMessage:
    user, address = user_of(lane), f"user{lane}@example.net"
    facts = Facts("app@example.org", address, listener="local", client="127.0.0.1", user=user, from_="app@example.org")
    text = lane_facts(table, facts, lambda question: question.ask(facts))
    head = (_HEAD % (lane, lane)).replace(b"\n", b"\r\n")
    recipient = NewRecipient(address, text, State.QUEUED, at, at + 5 * 86400)
    return NewMessage(
        id=first + lane,
        sender="app@example.org",
        header_from="app@example.org",
        user=user,
        class_="default",
        tag="",
        listener="local",
        client="127.0.0.1",
        priority=2,
        accepted_at=at,
        head=head,
        body=_BODY,
        body_size=len(_BODY),
        smtp=0,
        recipients=[recipient],
    )


def make(
    config: Path,
    count: int,
    lanes: int,
    now: float,
    progress: Callable[[str], None] = lambda _: None,
    seed: Callable[[Table, int, int, float], NewMessage] = seed,
) -> Path:
    """The spool of that configuration, not yet there, with `count` messages of one recipient each, spread over `lanes` lanes;
    returns its path.

    One message a lane, as `seed` makes it of the table, the first id, the lane's number and a time, is stored by the relay's
    own code; SQL multiplies those rows, whatever columns they have. `now` is in epoch seconds; what the operating system has
    not yet written is written when this returns.
    """
    known = load_config(config)
    path = known.spool.path
    path.parent.mkdir(mode=0o700)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -262144"):
            connection.execute(f"PRAGMA {pragma}")
        opening.migrate(connection, path)
        usual.prepare(connection)
        connection.execute("BEGIN")
        first = int(now - AGE) << 20
        connection.execute("INSERT INTO meta (key, value) VALUES ('next_id', ?)", (first + count,))
        seeds = [seed(known.table, first, lane, now - AGE) for lane in range(lanes)]
        for start in range(0, lanes, 100):
            hot.store(hot.Lanes(connection), connection, seeds[start : start + 100])
        for table, moved in _MOVED.items():
            progress(f"{count:,} recipients: {table}")
            _multiply(connection, table, moved, lanes, count // lanes, AGE / 2 / count)
        connection.execute("COMMIT")
    finally:
        connection.close()
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


# What differs between a row and its copy: the column of the message's number, and those of times. None: it numbers itself.
_MOVED: dict[str, dict[str, str | None]] = {
    "message": {"id": "number", "accepted_at": "time"},
    "content": {"id": "number"},
    "recipient": {"message": "number", "due_at": "time", "expires_at": "time"},
    "event": {"id": None, "message": "number", "at": "time"},
}


def _multiply(
    connection: sqlite3.Connection, table: str, moved: dict[str, str | None], lanes: int, times: int, step: float
) -> None:
    """Each row of the table `times` times, in the order of the messages' numbers; `step` seconds between two messages."""
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})") if moved.get(row[1], "") is not None]
    by = {"number": f" + k.n * {lanes}", "time": f" + k.n * {lanes * step!r}"}
    values = ", ".join(f"s.{c}{by.get(moved.get(c) or '', '')}" for c in columns)
    key = next(c for c, kind in moved.items() if kind == "number")
    connection.execute(f"CREATE TEMP TABLE seed AS SELECT * FROM {table} ORDER BY {key}")
    connection.execute(
        f"INSERT INTO {table} ({', '.join(columns)}) "
        "WITH RECURSIVE k(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM k WHERE n + 1 < ?) "
        f"SELECT {values} FROM k CROSS JOIN seed s WHERE k.n < ?",
        (times, times),
    )
    connection.execute("DROP TABLE seed")


@dataclass(frozen=True)
class Seen:
    """One measurement. Times in seconds, sizes in MiB, rates in messages a second, `idle` in shares of one core."""

    recipients: int
    ready: float  # from the start until mail is taken
    resting: float  # … until every dead account has been found to be dead; 0 where none is asked for
    idle: float  # while nothing arrives
    lag: float  # the most that the event loop was late in that time
    accepted: float
    relayed: float
    memory: float  # PSS at the end


def measure(folder: Path, count: int, lanes: int, load: int, progress: Callable[[str], None]) -> Seen:
    """With `count` recipients waiting in a new folder, or with none. `load`: messages to the live account."""
    folder.mkdir()
    with Sink() as sink:
        config = write_config(folder, sink.port, 2 * count + 1_000_000)
        if count:
            make(config, count, lanes, time.time(), progress)
        progress(f"{count:,} recipients: start")
        relay = Relay(config)
        begin = time.monotonic()
        try:
            relay.start(timeout=300)
            ready = time.monotonic() - begin
            assert relay.process is not None
            pid, metrics = relay.process.pid, Metrics(folder / "admin.sock")
            if count:
                until(lambda: metrics.sum("relay_breaker_state") >= DEAD, 300, "the dead accounts rest")
            resting = time.monotonic() - begin if count else 0.0
            progress(f"{count:,} recipients: at rest")
            idle, lag = _quiet(pid, metrics)
            progress(f"{count:,} recipients: load")
            drive(relay.port, sink, KEPT, max(1, load // 10))
            accepted, relayed = drive(relay.port, sink, KEPT, load)
            seen = Seen(count, ready, resting, idle, lag, accepted, relayed, memory_mib(pid))
            relay.stop(timeout=60)
        finally:
            relay.__exit__()
    shutil.rmtree(folder)
    return seen


def _quiet(pid: int, metrics: Metrics) -> tuple[float, float]:
    """(share of a core, seconds that the event loop was late at most) while nothing arrives."""
    lags, before, begin = [], cpu_seconds(pid), time.monotonic()
    while (passed := time.monotonic() - begin) < QUIET:
        time.sleep(min(1.0, QUIET - passed))
        lags.append(metrics.sum("relay_loop_lag_seconds"))
    return (cpu_seconds(pid) - before) / (time.monotonic() - begin), max(lags)


def table(seen: Sequence[Seen]) -> str:
    """A row for each measurement."""
    lines = [
        "| waiting | start, s | accounts rest, s | at rest, % of a core | loop late, ms | accepted/s | relayed/s | MiB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for s in seen:
        resting = f"{s.resting:.1f}" if s.resting else ""
        lines.append(
            f"| {s.recipients:,} | {s.ready:.1f} | {resting} | {s.idle * 100:.1f} | {s.lag * 1000:.0f} "
            f"| {s.accepted:.0f} | {s.relayed:.0f} | {s.memory:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="recipients that wait")
    parser.add_argument("--lanes", type=int, default=1000)
    parser.add_argument("--load", type=int, default=int(os.environ.get("COUNT") or 3000), help="messages beside them")
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="make the spool and its configuration, and end")
    given = parser.parse_args()

    def progress(text: str) -> None:
        print(f"  {text}", flush=True)

    if given.make:
        given.make.mkdir(parents=True, exist_ok=True)
        config = write_config(given.make.resolve(), 2526, 2 * given.count + 1_000_000)
        print(make(config, given.count, given.lanes, time.time(), progress))
        return
    with tempfile.TemporaryDirectory(prefix="backlog-", dir=os.environ.get("BENCH_FOLDER")) as name:
        folder = Path(name)
        seen = [measure(folder / str(count), count, given.lanes, given.load, progress) for count in (0, given.count)]
    print(table(seen))
    print([asdict(s) for s in seen])


if __name__ == "__main__":
    main()
