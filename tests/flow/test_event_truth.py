"""Events are the truth: each change of state is told by one event, in its transaction; over kill -9 too.

SQLite itself bears witness: triggers write down, in order, each state that a recipient leaves and each event.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import aiohttp
from fakes import DROP, Later, Upstream
from receiver import Events, Receiver
from rig import Process, submit, until, write_config

from relay.recipient import State

TRIGGERS = """
CREATE TABLE witness (n INTEGER PRIMARY KEY, message INTEGER, recipient INTEGER, old INTEGER, new INTEGER, kind TEXT, data TEXT);
CREATE TRIGGER moved AFTER UPDATE OF state ON recipient WHEN NEW.state <> OLD.state BEGIN
  INSERT INTO witness (message, recipient, old, new) VALUES (NEW.message, NEW.n, OLD.state, NEW.state); END;
CREATE TRIGGER made AFTER INSERT ON recipient BEGIN
  INSERT INTO witness (message, recipient, old, new) VALUES (NEW.message, NEW.n, -1, NEW.state); END;
CREATE TRIGGER said AFTER INSERT ON event WHEN NEW.message > 0 BEGIN
  INSERT INTO witness (message, recipient, kind, data) VALUES (NEW.message, NEW.n, NEW.kind, NEW.data); END;
"""
# The states that an event of a recipient tells; None: that of its `state`. Others tell no change.
TELLS: dict[str, tuple[State, ...] | None] = {
    "deferred": (State.DEFERRED,),
    "delivered": (State.DELIVERED,),
    "discarded": (State.DELIVERED,),
    "captured": (State.DELIVERED,),
    "failed": (State.FAILED,),
    "expired": (State.FAILED,),
    "suppressed": (State.FAILED,),
    "cancelled": (State.FAILED,),
    "held": (State.HELD,),
    "released": (State.QUEUED, State.DEFERRED),
    "rerouted": (State.QUEUED, State.DEFERRED),
    "in_doubt": None,
}
# What an operator does to one that is where he wants it already changes nothing.
IDLE = ("rerouted", "released", "held")
# A row that is new and waits, or is claimed at once; a claim; and one that was given back before anything was said.
UNTOLD = {(-1, 0), (-1, 1), (-1, 2), (0, 2), (1, 2), (2, 0)}
ROUTES = """  - {name: keep, match: {recipient: "*@keep.example"}, hold: true}
  - {name: gone, match: {recipient: "*@gone.example"}, discard: true}
  - {name: no, match: {recipient: "*@no.example"}, reject: "not here"}
  - {name: all, via: [main]}"""
CLASSES = "  default: {in_doubt: retry, retry: {schedule: [300ms], give_up: 4s}}"
DOMAINS = ("keep.example", "gone.example", "no.example", "x.example", "x.example", "x.example", "kept.example")
TEXT = b"From: app@example.com\r\nX-Relay-Tag: storm\r\nSubject: t\r\n\r\nhello\r\n"


def upstream(dice: random.Random) -> Upstream:
    def one(*replies: Any) -> Any:
        return lambda _: dice.choice(replies)

    return Upstream(
        {
            "RCPT": one(None, None, None, None, "550 5.1.1 no such user", "452 4.2.2 mailbox full"),
            "DOT": one(None, None, None, DROP, "554 5.7.1 no", "451 4.3.0 later", Later(0.2, "250 2.0.0 ok")),
        }
    )


async def post(relay: Process, path: str, body: dict[str, Any]) -> None:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(relay.socket))) as session,
        session.post(f"http://localhost{path}", json=body) as response,
    ):
        assert response.status in (200, 404), await response.text()


async def operate(relay: Process, dice: random.Random) -> None:
    """Whatever operators do, until the relay is killed."""
    while relay.popen.poll() is None:
        await asyncio.sleep(0.03)
        verb = dice.choice(["hold", "release", "retry", "cancel", "reroute", "suppress"])
        who = f"u{dice.randrange(40)}@*"
        with contextlib.suppress(aiohttp.ClientError, OSError):
            if verb == "suppress":
                entry = {"address": f"u{dice.randrange(40)}@x.example", "until": None}
                await post(relay, "/v1/suppressions", {"entries": [entry]})
            else:
                to = {"to": "main"} if verb == "reroute" else {}
                await post(relay, f"/v1/queue/{verb}", {"filter": {"recipient": who}, **to})


async def storm(relay: Process, dice: random.Random, seconds: float) -> None:
    operator = asyncio.create_task(operate(relay, dice))
    clients = [asyncio.create_task(client(relay, dice)) for _ in range(2)]
    await asyncio.sleep(seconds)
    relay.popen.kill()
    await asyncio.to_thread(relay.popen.wait)
    for task in (operator, *clients):
        task.cancel()
    ended = await asyncio.gather(operator, *clients, return_exceptions=True)
    assert not [one for one in ended if isinstance(one, Exception) and not isinstance(one, OSError)]


async def client(relay: Process, dice: random.Random) -> None:
    while relay.popen.poll() is None:
        to = tuple({f"u{dice.randrange(40)}@{dice.choice(DOMAINS)}" for _ in range(dice.choice([1, 1, 3]))})
        with contextlib.suppress(OSError, AssertionError, TimeoutError):
            await submit(relay.port, [("app@example.com", to, TEXT)] * 5)
        await asyncio.sleep(0.01)


def watch(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file, timeout=10)) as spool:
        spool.executescript(TRIGGERS)


def wrong(file: Path) -> list[Any]:
    """Where a change of state and an event are not a pair."""
    with contextlib.closing(sqlite3.connect(file, timeout=10)) as spool:
        seen = spool.execute("SELECT message, recipient, old, new, kind, data FROM witness ORDER BY n").fetchall()
        now = {(message, n): state for message, n, state in spool.execute("SELECT message, n, state FROM recipient")}
    whole = Counter((message, kind) for message, n, _, _, kind, _ in seen if n is None)
    steps = defaultdict[tuple[int, int], list[tuple[Any, ...]]](list)
    for message, n, *step in seen:
        if n is not None:
            steps[message, n].append(tuple(step))
    found: list[Any] = [(key, odd, steps[key]) for key in steps if (odd := unpaired(steps[key]))]
    found += [(key, "told", whole[key[0], "accepted"]) for key in steps if whole[key[0], "accepted"] != 1]
    return found + [(key, "is", state) for key, state in now.items() if last_of(steps[key]) != state]


def last_of(steps: list[tuple[Any, ...]]) -> int | None:
    return next((new for _, new, kind, _ in reversed(steps) if not kind), None)


def unpaired(steps: list[tuple[Any, ...]]) -> list[Any]:
    """Of one recipient: (old, new, kind, data). A change and what tells it stand side by side."""
    left: list[Any] = []
    for old, new, kind, data in steps:
        if not kind and (old, new) in UNTOLD:
            left = [one for one in left if isinstance(one, State) or one[0] not in IDLE]
            continue
        if kind and kind not in TELLS:
            continue
        step = (kind, json.loads(data)) if kind else State(new)
        if left and pair(left[-1], step):
            left.pop()
        else:
            left.append(step)
    return [one for one in left if isinstance(one, State) or one[0] not in IDLE]


def pair(one: Any, other: Any) -> bool:
    if isinstance(one, State) == isinstance(other, State):
        return False
    state, (kind, data) = (one, other) if isinstance(one, State) else (other, one)
    told = TELLS[kind]
    return state.label == data.get("state") if told is None else state in told


async def test_each_change_is_told_once_in_its_transaction(tmp_path: Path) -> None:
    dice = random.Random(9)

    def behave(events: Events) -> int:
        return dice.choice([200, 200, 500, 503, 0])

    async with upstream(dice) as up, Receiver(behave) as receiver:
        hook = f"webhooks:\n  crm: {{url: {receiver.url}, allow_private: true, cap: 100ms, timeout: 2s}}\n"
        file = write_config(
            tmp_path,
            {"main": f"port: {up.port}, tls: none"},
            routes=ROUTES,
            classes=CLASSES,
            extra=hook + 'capture: {allow: ["*@x.example", "*@keep.example", "*@no.example", "*@gone.example"]}\n',
        )
        for number in range(3):
            relay = Process(file)
            await asyncio.to_thread(relay.ready)
            if not number:
                watch(tmp_path / "spool" / "spool.db")
            await storm(relay, dice, 1.0 + dice.random())
            assert wrong(tmp_path / "spool" / "spool.db") == []
            relay.close()
        receiver.behave = lambda events: 200
        relay = Process(file)
        try:
            await asyncio.to_thread(relay.ready)
            await post(relay, "/v1/queue/release", {"filter": {"recipient": "*"}})
            with contextlib.closing(sqlite3.connect(tmp_path / "spool" / "spool.db", timeout=10)) as spool:
                for_all = "SELECT count(*) FROM recipient WHERE state < 3"
                await until(lambda: spool.execute(for_all).fetchone()[0] == 0, 60)
                ids = [row[0] for row in spool.execute("SELECT id FROM event WHERE kind <> '' ORDER BY id")]
            assert wrong(tmp_path / "spool" / "spool.db") == []
            await until(lambda: receiver.ids, 60)
            begin = min(receiver.ids)
            await until(lambda: set(receiver.ids) >= {id_ for id_ in ids if id_ >= begin}, 60)
        finally:
            relay.close()
    told: dict[int, Any] = {}
    last: dict[str, int] = {}
    for event in receiver.taken:
        if event["id"] not in told and (message := event.get("queue_id")):
            assert event["id"] > last.get(message, 0)
            last[message] = event["id"]
        assert told.setdefault(event["id"], event) == event
    assert not set(told) - set(ids)
