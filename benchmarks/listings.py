#!/usr/bin/env python3
"""How long each listing of the API takes with many messages queued.

    .venv/bin/python -m benchmarks.listings [--messages 100000] [--lanes 200] [--times 5]

A spool is filled through its own API: users, tags, classes, keys, metadata, some with several recipients; their upstream is
dead, so that nothing moves. Then the relay runs as a process, and each question is asked over HTTP, by a token over TCP as
programs do. A figure is the slowest of some askings, in milliseconds, and beside it the processor's time that the relay took
for one of them, which does not hang on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from relay import clock
from relay.envelope import queue_id
from relay.recipient import State
from relay.spool import NewMessage, NewRecipient
from relay.spool.sqlite import SqliteSpool
from tests.service.support import ENV, ROOT, Relay, free_port

MOST = 300.0  # milliseconds
AT_ONCE = 2000  # messages that are handed in together
HEAD = (
    "Received: from app (localhost [127.0.0.1])\r\n\tby relay.example.com with ESMTP; Fri, 15 Jan 2027 08:00:00 +0000\r\n"
    "From: Shop <shop@example.com>\r\nTo: user{i}@example.net\r\nSubject: Your order {i}\r\nDate: Fri, 15 Jan 2027 08:00:00 +0000\r\n"
    "Message-ID: <{i}@relay.example.com>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
)
STATES = [State.QUEUED] * 6 + [State.DEFERRED] * 3 + [State.HELD]
HASH = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$Qh2lr6WXtkL0NDQr0lHRaTGxqfD0bmYmkE9IA/4RPA4"


def config(folder: Path, tcp: int, users: int) -> Path:
    named = "\n".join(f"  {user(i)}: {{password_hash: '{HASH}', tenant: t{i % 4}}}" for i in range(users))
    file = folder / "relay.yaml"
    file.write_text(
        f"""hostname: relay.test
listen: [{{name: local, address: "127.0.0.1:0"}}]
admin: {{socket: {folder}/admin.sock, address: "127.0.0.1:{tcp}"}}
spool: {{path: {folder}/spool/spool.db, reserve: 1MB}}
dsn: {{to: none}}
accounts:
  main: {{host: 127.0.0.1, port: {free_port()}, tls: none}}
  other: {{host: 127.0.0.1, port: {free_port()}, tls: none}}
tenants: {{{", ".join(f"t{i}: {{}}" for i in range(4))}}}
users:
{named}
classes: {{news: {{priority: low}}}}
routes:
  - {{name: even, match: {{user: "*0"}}, via: [other, main]}}
  - {{name: all, via: [main, other]}}
"""
    )
    return file


def user(i: int) -> str:
    return f"u{i:04}"


def message(spool: SqliteSpool, i: int, count: int, lanes: int, now: float) -> NewMessage:
    state, class_ = STATES[i % len(STATES)], "news" if i % 3 == 0 else "default"
    facts = f'{{"class":"{class_}","user":"{user(i % lanes)}"}}'
    due = now - 60.0 if state is State.QUEUED else now + 86400.0
    last = i == count - 1
    head = HEAD.format(i=i).encode()
    return NewMessage(
        id=spool.next_id(),
        sender="last@example.org" if last else f"shop{i % 7}@example.com",
        header_from="shop@example.com",
        user=user(i % lanes),
        class_=class_,
        tag="the-last" if last else f"campaign-{i % 50}" if i % 2 else "",
        listener="local",
        client="127.0.0.1",
        priority=2,
        accepted_at=now - 3600.0 + i / 1000,
        head=head,
        body=b"x" * 1500 + b"\r\n",
        body_size=1502,
        smtp=0,
        recipients=[
            NewRecipient(
                f"user{i}-{n}@{'last.example' if last else 'example.net'}", facts, state, due, now + 4 * 86400.0,
                why="held by a rule" if state is State.HELD else "",
            )
            for n in range(3 if i % 30 == 0 else 1)
        ],
        idempotency_key=f"order-{i}" if i % 2 else "",
        metadata=json.dumps({"order": i, "shop": "north"}) if i % 2 else "",
    )  # fmt: skip


async def fill(path: Path, count: int, lanes: int) -> list[str]:
    """The queue ids."""
    now, numbers = clock.now(), list[int]()
    spool = await SqliteSpool.open(path, now)
    try:
        for start in range(0, count, AT_ONCE):
            made = [message(spool, i, count, lanes, now) for i in range(start, min(count, start + AT_ONCE))]
            numbers += [number for number, _ in await asyncio.gather(*map(spool.accept, made))]
        await spool.probe(now)
    finally:
        await spool.close()
    return [queue_id(number) for number in numbers]


def questions(ids: list[str]) -> Iterator[tuple[str, str, bool]]:
    """(what, path, as a tenant)."""
    middle = ids[len(ids) // 2 | 1]
    filters = {
        "all": "", "nothing matches": "sender=nobody@*", "the last, by sender": "sender=last@*", "the last, by tag": "tag=the-last",
        "the last, by domain": "domain=last.example", "recipient": "recipient=user77777-*", "tag": "tag=campaign-7",
        "no such tag": "tag=none", "user": "user=u0003", "no such user": "user=nobody", "class": "class=news",
        "held": "state=held", "failed": "state=failed", "egress": "egress=main", "no such egress": "egress=none",
        "route": "route=even", "no such route": "route=none", "error": "error=held", "no such error": "error=none",
        "older": "older_than=3500", "older than all": "older_than=99999", "key": "key=order-77777", "no such key": "key=none",
        "id": f"id={middle}", "several": "tag=campaign-7&domain=example.net&class=news&state=held&sender=nobody*",
    }  # fmt: skip
    for path, more in (("/v1/queue", ""), ("/v1/messages", ""), ("/v1/messages", "&order=newest")):
        for name, given in filters.items():
            for limit in (100, 1000):
                yield f"{name}, {limit}", f"{path}?limit={limit}{more}{'&' if given else ''}{given}", False
    for path in ("/v1/queue", "/v1/messages"):
        for name in ("all", "nothing matches", "the last, by tag", "key"):
            yield f"{name}, of a tenant", f"{path}?limit=1000&{filters[name]}".rstrip("&"), True
    for tenant in (False, True):
        whose = ", of a tenant" if tenant else ""
        for path in ("/v1/lanes?limit=100", "/v1/lanes?limit=1000", "/v1/stats"):
            yield f"as it is{whose}", path, tenant
    yield "one", f"/v1/messages/{middle}", False
    yield "one, its story", f"/v1/messages/{middle}/trace", False
    yield "one, its bytes", f"/v1/messages/{middle}/raw", False


class Asking:
    def __init__(self, port: int) -> None:
        self.port, self.tokens = port, dict[bool, str]()

    def get(self, path: str, tenant: bool, method: str = "GET", body: str | None = None) -> tuple[float, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {"Authorization": f"Bearer {self.tokens[tenant]}"} if self.tokens else {}
        began = time.perf_counter()
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        took = (time.perf_counter() - began) * 1000
        connection.close()
        if answer.status >= 300:
            raise SystemExit(f"{path}: {answer.status} {data.decode()[:300]}")
        return took, data


def tokens(folder: Path) -> dict[bool, str]:
    os.environ["RELAY_ENDPOINT"] = str(folder / "admin.sock")
    from relay.cli.client import ask

    def made(**more: str) -> str:
        return str(ask("POST", "/v1/tokens", {"name": "bench", "scopes": ["read"], **more})["token"])

    return {False: made(), True: made(tenant="t1")}


def rows_in(path: str, data: bytes) -> str:
    if path.endswith("/raw"):
        return str(len(data))
    found = json.loads(data)
    rows = next((found[name] for name in ("messages", "recipients", "lanes") if name in found), None)
    return str(len(rows)) if isinstance(rows, list) else "1"


def main() -> int:
    parser = argparse.ArgumentParser(description="How long each listing takes with many messages queued.")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--lanes", type=int, default=200, help="users; each has a lane or two")
    parser.add_argument("--only", default="", help="questions with this in their name, or path")
    parser.add_argument("--times", type=int, default=5, help="that each is asked; the slowest counts")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="listings") as name:
        folder, port = Path(name), free_port()
        file = config(folder, port, asked.lanes)
        began = time.perf_counter()
        ids = asyncio.run(fill(folder / "spool" / "spool.db", asked.messages, asked.lanes))
        print(f"{len(ids)} messages in {time.perf_counter() - began:.1f} s", flush=True)
        with Relay(file, env=ENV | {"PYTHONPATH": str(ROOT)}) as relay:
            assert relay.process is not None
            asking = Asking(port)
            asking.tokens = tokens(folder)
            every = [one for one in questions(ids) if asked.only in one[0] or asked.only in one[1]]
            slow = measure(asking, relay.process.pid, every, asked.times)
    print(f"\n{slow} above {MOST:.0f} ms" if slow else f"\nall within {MOST:.0f} ms")
    return 1 if slow else 0


def spent(pid: int) -> float:
    """Milliseconds of the processor that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def measure(asking: Asking, pid: int, every: list[tuple[str, str, bool]], times: int) -> int:
    """How many took too long."""
    print("| question | path | rows | slowest, ms | median, ms | processor, ms |\n|---|---|---|---|---|---|")
    slow = 0
    for what, path, tenant in every:
        data = asking.get(path, tenant)[1]
        before = spent(pid)
        took = sorted(asking.get(path, tenant)[0] for _ in range(times))
        each = (spent(pid) - before) / times
        mark = " **" if took[-1] > MOST else ""
        slow += bool(mark)
        place, rows = path.split("?")[0], rows_in(path, data)
        print(
            f"| {what} | `{place}` | {rows} | {took[-1]:.0f}{mark} | {took[times // 2]:.0f} | {each:.0f} |", flush=True
        )
    return slow


if __name__ == "__main__":
    raise SystemExit(main())
