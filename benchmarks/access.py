#!/usr/bin/env python3
"""What programs bring with them, in numbers: tokens, tenants, audit records, keys, suppressions, consumers of reports.

    .venv/bin/python -m benchmarks.access [--scale 1.0] [--only audit]

A spool is filled through its own API, the configuration has 1,000 tenants with 10 users each, and the relay runs as a process.
Printed: how long it takes until it is ready, and its memory, beside one that has none of all that; what authentication costs
(the processor's time of a request by a token, beside the same over the socket); each listing over HTTP, with the time of the
processor that it takes and how late the loop came to its beats meanwhile; revocation; and the audit's pruning.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.drop import asked
from benchmarks.listings import HEAD
from benchmarks.process import cpu_seconds, memory_mib
from relay import clock
from relay.api.tokens import issue
from relay.policy.access import SCOPES, Token
from relay.policy.suppression import Suppression, Why
from relay.recipient import State
from relay.spool import NewMessage, NewRecipient
from relay.spool.access import Audit, Consumer
from relay.spool.feed import Learnt
from relay.spool.sqlite import SqliteSpool
from tests.service.support import Relay, free_port

AT_ONCE = 500
TENANTS, USERS, TOKENS, AUDITS, KEYS, LISTED, CONSUMERS = 1000, 10, 10_000, 100_000, 100_000, 100_000, 1000


def config(folder: Path, tcp: int, tenants: int) -> Path:
    file = folder / "relay.yaml"
    users = "".join(f"  u{t}x{n}: {{tenant: t{t}}}\n" for t in range(tenants) for n in range(USERS))
    file.write_text(
        f"""hostname: relay.test
listen: [{{name: local, address: "127.0.0.1:0"}}]
admin: {{socket: {folder}/admin.sock, address: "127.0.0.1:{tcp}"}}
spool: {{path: {folder}/spool/spool.db, reserve: 1MB}}
dsn: {{to: none}}
accounts: {{main: {{host: 127.0.0.1, port: {free_port()}, tls: none}}}}
routes: [{{name: all, via: main}}]
"""
        + (f"tenants: {{{', '.join(f't{t}: {{}}' for t in range(tenants))}}}\nusers:\n{users}" if tenants else "")
    )
    return file


def message(spool: SqliteSpool, i: int, now: float) -> NewMessage:
    facts = json.dumps({"class": "default", "user": f"u{i % TENANTS}x0"}, separators=(",", ":"))
    head = HEAD.format(i=i).encode()
    return NewMessage(
        id=spool.next_id(), sender="shop@example.com", header_from="shop@example.com", user=f"u{i % TENANTS}x0",
        class_="default", tag=f"campaign-{i % 50}", listener="api", client="127.0.0.1", priority=2, accepted_at=now,
        head=head, body=b"x\r\n", body_size=3, smtp=0,
        recipients=[NewRecipient(f"user{i}@example.net", facts, State.HELD, now, now + 86400.0, why="held by a rule")],
        idempotency_key=f"order-{i}", digest="0" * 64,
    )  # fmt: skip


async def fill(path: Path, scale: float) -> dict[str, str]:
    """Tokens' texts, by what they are."""
    now = clock.now()
    spool = await SqliteSpool.open(path, now)

    async def many(what: str, count: int, make: Any) -> None:
        began, count = time.perf_counter(), int(count * scale)
        for start in range(0, count, AT_ONCE):
            await asyncio.gather(*(make(i) for i in range(start, min(count, start + AT_ONCE))))
        print(f"{count} {what}: {time.perf_counter() - began:.1f} s", flush=True)

    async def token(i: int) -> None:
        made, _ = issue(Token("", "", f"application {i}", ("read",), "", f"t{i % TENANTS}", now, "uid 0"))
        await spool.keep_token(made)

    async def audit(i: int) -> None:
        said = {
            "scope": f"tenant:t{i % TENANTS}",
            "why": "asked by telephone",
            "entries": [{"address": f"u{i}@x.test"}] * 5,
        }
        at, who = now - 500 * 86400.0 * (1 - i / AUDITS), f"token {i:08x} (crm)"
        entry = Audit(at, who, f"t{i % 9}", f"{i:x}", "POST /v1/suppressions", said, 200)
        await spool.begin_audit(entry)

    async def listed(i: int) -> None:
        scope = f"tenant:t{i % TENANTS}" if i % 2 else ""
        await spool.learn(
            Learnt(suppressions=[Suppression(f"user{i}@example.net", scope, Why.MANUAL, "", "hand", now, 0.0, 0)])
        )

    async def consumer(i: int) -> None:
        await spool.acknowledge(Consumer(f"t{i}", "crm", 1, now))

    try:
        await many("tokens", TOKENS, token)
        await many("audit records", AUDITS, audit)
        await many("messages with a key", KEYS, lambda i: spool.accept(message(spool, i, now)))
        await many("suppressions", LISTED, listed)
        await many("consumers", CONSUMERS, consumer)
        texts = {}
        for name, tenant in (("whole", ""), ("tenant", "t7"), ("gone", "t8")):
            made, texts[name] = issue(Token("", "", name, tuple(SCOPES), "", tenant, now, "uid 0"))
            await spool.keep_token(replace(made))
    finally:
        await spool.close()
    return texts


QUESTIONS = {
    "whole": (
        "/v1/tokens", "/v1/audit?limit=100", "/v1/audit?limit=1000", "/v1/audit?limit=1000&who=*none*",
        "/v1/audit?limit=1000&act=*tokens*", "/v1/audit?since=9999999999", "/v1/suppressions?limit=1000",
        "/v1/suppressions?limit=1000&address=*none*", "/v1/suppressions?limit=1000&source=none",
        "/v1/suppressions?limit=1000&why=complaint", "/v1/messages?key=order-777", "/v1/messages?key=none",
        "/v1/stats", "/v1/lanes?limit=1000", "/v1/reports", "/v1/accounts", "/v1/limits", "/v1/changes",
        "/v1/events?limit=1000", "/v1/status",
    ),
    "tenant": (
        "/v1/suppressions?limit=1000", "/v1/suppressions?limit=1000&address=*9@*", "/v1/messages?key=order-777",
        "/v1/messages?limit=1000", "/v1/stats", "/v1/lanes?limit=1000", "/v1/reports", "/v1/reports/crm?limit=1000",
        "/v1/events?limit=1000",
    ),
}  # fmt: skip


class Asking:
    def __init__(self, port: int, socket: Path, pid: int, texts: dict[str, str]) -> None:
        self.socket, self.pid, self.texts = socket, pid, texts
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def ask(self, who: str, path: str, method: str = "GET", body: Any = None) -> tuple[int, bytes, float]:
        began = time.perf_counter()
        data = json.dumps(body) if body is not None else None
        self.connection.request(method, path, data, {"Authorization": f"Bearer {self.texts[who]}"})
        answer = self.connection.getresponse()
        found = answer.read()
        return answer.status, found, (time.perf_counter() - began) * 1000

    def late(self) -> float:
        """Milliseconds by which all beats together were late."""
        found = re.search(r"^relay_loop_lag_seconds_sum (\S+)$", asked(self.socket, "/metrics"), re.MULTILINE)
        return float(found[1]) * 1000 if found else 0.0


def listings(asking: Asking, only: str, times: int = 5) -> None:
    named = "question", "as", "status", "bytes", "slowest, ms", "median, ms", "processor, ms", "late, ms"
    print(f"| {' | '.join(named)} |\n|{'---|' * len(named)}")
    for who, path in ((who, path) for who, paths in QUESTIONS.items() for path in paths if only in path):
        asking.ask(who, path)
        before, late = cpu_seconds(asking.pid), asking.late()
        found = [asking.ask(who, path) for _ in range(times)]
        late = (asking.late() - late) / times
        spent = (cpu_seconds(asking.pid) - before) / times * 1000
        took = sorted(one[2] for one in found)
        print(
            f"| `{path}` | {who} | {found[0][0]} | {len(found[0][1])} | {took[-1]:.0f} | {took[times // 2]:.0f} | {spent:.0f} "
            f"| {late:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", default="", help="questions with this in their path")
    parser.add_argument("--keep", type=Path, help="a folder: what was filled stays there, and is taken from there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="access") as name:
        for tenants in (0, TENANTS):
            folder, port = (given.keep or Path(name)) / str(tenants), free_port()
            folder.mkdir(parents=True, exist_ok=True)
            file, made = config(folder, port, tenants), folder / "tokens.json"
            if not made.exists():
                texts = asyncio.run(fill(folder / "spool/spool.db", given.scale if tenants else 0.0))
                made.write_text(json.dumps(texts))
            texts = json.loads(made.read_text())
            began = time.perf_counter()
            with Relay(file) as relay:
                assert relay.process is not None
                pid = relay.process.pid
                print(
                    f"{tenants} tenants: ready after {time.perf_counter() - began:.2f} s "
                    f"({cpu_seconds(pid):.2f} s of a processor), {memory_mib(pid):.0f} MiB",
                    flush=True,
                )
                asking = Asking(port, folder / "admin.sock", pid, texts)
                authentication(asking)
                if tenants:
                    listings(asking, given.only)
                    revocation(asking)
                    print(f"memory after that: {memory_mib(pid):.0f} MiB")


def authentication(asking: Asking, times: int = 1000) -> None:
    for who, path in (("whole", "/v1/reports"), ("tenant", "/v1/reports")):
        if who == "tenant" and asking.ask(who, path)[0] != 200:
            continue
        before = cpu_seconds(asking.pid)
        for _ in range(times):
            asking.ask(who, path)
        print(
            f"{path} as {who}: {(cpu_seconds(asking.pid) - before) / times * 1e6:.0f} µs of a processor a request",
            flush=True,
        )


def revocation(asking: Asking) -> None:
    number = asking.texts["gone"].split("_")[1]
    status, _, took = asking.ask("whole", f"/v1/tokens/{number}", "DELETE")
    print(f"revoked ({status}) in {took:.0f} ms; the next request is {asking.ask('gone', '/v1/reports')[0]}")


if __name__ == "__main__":
    main()
