"""A laboratory of direct delivery: MX hosts, some of them slow or dead, domains that point at them, a relay, and a load.

The domains are names of one zone, with Knot DNS as the server that the relay asks. Each has one host, and the hosts take turns:
domain 0 is at host 1, domain 1 at host 2. Nobody has two messages, so that a recipient's address tells which message it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import smtp
from benchmarks.loads import ROOT, Stuck
from benchmarks.mx_hosts import address
from benchmarks.process import cpu_seconds
from tests.knotd import knot
from tests.ports import common_port
from tests.service.support import ENV, Relay, until

ZONE = "lab.example"
SENDER = f"app@{ZONE}"
CLIENTS = 8  # connections that hand in
SIZE = 2048  # bytes
RECORDED = 30.0  # seconds at most until the queue knows what the hosts told
PATIENCE, SLOWEST_INTAKE = 3, 400  # seconds, and messages a second: what we reckon with until all is stored

CONFIG = """\
hostname: relay.{zone}
listen:
  - {{name: local, address: "127.0.0.1:0"}}
admin: {{socket: {folder}/admin.sock, address: null}}
spool: {{path: {folder}/spool/spool.db, reserve: 1MB}}
dsn: {{to: none}}
dns: {{servers: ["{server}"]}}
destinations:
  - {{name: lab, per: mx, allow_private: true, port: {port}, connections: {connections}}}
routes:
  - {{name: all, via: direct}}
"""


@dataclass(frozen=True)
class Plan:
    """`kinds`: of the hosts, as in mx_hosts.KINDS."""

    kinds: tuple[str, ...]
    domains: int
    messages: int
    connections: int = 20  # that the relay may have to a host

    def host(self, message: int) -> int:
        """1, 2, …"""
        return message % self.domains % len(self.kinds) + 1

    def recipient(self, message: int) -> str:
        return f"user{message}@d{message % self.domains:03}.{ZONE}"

    def those(self, *kinds: str) -> list[int]:
        """The hosts of these kinds."""
        return [number for number, kind in enumerate(self.kinds, 1) if kind in kinds]

    def to(self, hosts: Sequence[int]) -> list[int]:
        """The messages to these hosts."""
        return [message for message in range(self.messages) if self.host(message) in hosts]

    def records(self) -> list[str]:
        """Of the zone."""
        hosts = [f"mx{number:02} A {address(number)}" for number, _ in enumerate(self.kinds, 1)]
        return hosts + [f"d{domain:03} MX 10 mx{self.host(domain):02}" for domain in range(self.domains)]


@dataclass
class Outcome:
    """One run. Times are seconds from the first submission, or from the moment that all was due."""

    accepted: float  # the last message was handed in
    seconds: float  # the last message at a live host
    last: dict[int, float]  # the same, by live host
    cpu: float  # seconds of the relay's, until then
    hosts_cpu: float  # and of the hosts'
    arrived: Counter[str]  # recipient -> how often, at any host
    rows: list[dict[str, Any]]  # of the queue then, once that is recorded, with all that is done
    missing: int  # messages to live hosts that never came
    lost: int  # recipients that neither a host nor the queue knows
    hosts: dict[int, dict[str, int]] = field(default_factory=dict)  # {connections, most} of each that listened

    @property
    def doubled(self) -> int:
        return sum(times - 1 for times in self.arrived.values())


class Hosts:
    """benchmarks/mx_hosts.py as a process, and what it tells."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.port = common_port([address(number) for number, _ in enumerate(plan.kinds, 1)])
        self._output, self._at = folder / "hosts.jsonl", 0
        command = [sys.executable, "-m", "benchmarks.mx_hosts", str(self.port), *plan.kinds]
        with self._output.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, env=ENV | {"PYTHONPATH": str(ROOT)}, cwd=ROOT)

    def __enter__(self) -> Hosts:
        until(self._ready, what="the hosts listen")
        return self

    def _ready(self) -> bool:
        if self._process.poll() is not None:
            raise Stuck("the hosts ended at their start")
        return self._output.read_bytes().startswith(b"ready\n")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    @property
    def pid(self) -> int:
        return self._process.pid

    def told(self) -> list[dict[str, Any]]:
        """What came since the last time."""
        with self._output.open("rb") as file:
            file.seek(self._at)
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._at += len(whole)
        return [json.loads(line) for line in whole.splitlines() if line != b"ready"]


@contextlib.contextmanager
def relay(plan: Plan, folder: Path, port: int, config: str = CONFIG) -> Iterator[Relay]:
    """A relay that delivers by the MX of a name server, which it is started with. It must end well."""
    with knot(folder / "knot") as authority:
        authority.run({ZONE: plan.records()}, ttl=300)
        home = folder / "relay"
        home.mkdir()
        file = home / "relay.yaml"
        file.write_text(
            config.format(zone=ZONE, folder=home, server=authority.server, port=port, connections=plan.connections)
        )
        with Relay(file) as running:
            yield running
            assert running.stop(60) == 0, running.log()[-2000:]
            assert "Traceback" not in running.log(), running.log()


def run(
    plan: Plan,
    messages: Sequence[int],
    folder: Path,
    *,
    stored: bool = False,
    limit: float = 300.0,
    config: str = CONFIG,
) -> Outcome:
    """Hands these messages in, in this order, and waits until those to live hosts have come, for `limit` seconds at most.

    `stored`: all of them are to leave at one moment (X-Relay-Send-At), when they have all been handed in; the clock starts then.
    Raises Stuck, and TimeoutError where they could not be handed in.
    """
    live, refusing = set(plan.those("live")), plan.those("refuses")
    wanted = {plan.recipient(message) for message in messages if plan.host(message) in live}
    arrived: Counter[str] = Counter()
    last = dict.fromkeys(sorted(live), 0.0)
    with Hosts(plan, folder) as hosts, relay(plan, folder, hosts.port, config) as running:
        assert running.process is not None
        pids = running.process.pid, hosts.pid
        wait = math.ceil(PATIENCE + len(messages) / SLOWEST_INTAKE) if stored else 0
        began, due = time.monotonic() + wait, time.time() + wait
        end = began + limit

        def come() -> bool:
            """Whether all have, that we wait for."""
            for told in hosts.told():
                arrived.update(told["recipients"])
                if told["host"] in live:
                    last[told["host"]] = told["at"] - began
            wanted.difference_update(arrived)
            return not wanted

        before = [cpu_seconds(pid) for pid in pids]
        asyncio.run(_hand_in(running.port, plan, messages, due if stored else None, end))
        accepted = time.monotonic()
        if stored:
            if accepted > began:
                raise Stuck(f"to hand them in took {accepted - began:.1f} s longer than was reckoned with")
            time.sleep(began - accepted)
            before = [cpu_seconds(pid) for pid in pids]
        while not come() and time.monotonic() < end:
            time.sleep(0.02)
        cpu, hosts_cpu = (cpu_seconds(pid) - used for pid, used in zip(pids, before, strict=True))
        rows = _queue(running, set(arrived), {plan.recipient(m) for m in messages if plan.host(m) in refusing})
    ended: dict[int, dict[str, int]] = {}
    for told in hosts.told():
        if "most" in told:
            ended[told.pop("host")] = told
        else:
            arrived.update(told["recipients"])
    known = {row["recipient"] for row in rows} | set(arrived)
    lost = sum(plan.recipient(message) not in known for message in messages)
    return Outcome(accepted - began, max(last.values()), last, cpu, hosts_cpu, arrived, rows, len(wanted), lost, ended)


def _queue(running: Relay, arrived: set[str], refused: set[str]) -> list[dict[str, Any]]:
    """With all that is done. The hosts know sooner than the queue does what has arrived, or whom they refused."""
    end = time.monotonic() + RECORDED
    while True:
        rows: list[dict[str, Any]] = json.loads(running.cli("queue", "list", "--json", "--all", timeout=120))
        active = {row["recipient"] for row in rows if row["state"] == "active"}
        tried = not refused or any(row["state"] == "deferred" for row in rows if row["recipient"] in refused)
        if (tried and not active & arrived) or time.monotonic() > end:
            return rows
        time.sleep(0.1)


async def _hand_in(port: int, plan: Plan, messages: Sequence[int], due: float | None, end: float) -> None:
    """`due`: epoch seconds when they are to leave; None: now. `end`: by time.monotonic()."""
    todo = iter(messages)
    head = f"X-Relay-Send-At: {datetime.fromtimestamp(due, UTC).isoformat()}\r\n".encode() if due is not None else b""

    async def client() -> None:
        async with smtp.Client(port) as connection:
            for message in todo:
                await connection.send(SENDER, plan.recipient(message), head + smtp.message(SENDER, SIZE, message))

    async with asyncio.timeout(end - time.monotonic()):
        await asyncio.gather(*(client() for _ in range(CLIENTS)))


def shuffled(messages: Sequence[int], seed: int) -> list[int]:
    order = list(messages)
    random.Random(seed).shuffle(order)
    return order
