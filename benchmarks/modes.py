"""What is measured: a name for the command line, a title for people, and how."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import auth, latency, signed
from benchmarks.loads import Load, Sink, drive
from benchmarks.peers import PEERS
from benchmarks.process import Peak
from benchmarks.report import quantile

Values = dict[str, float]
Measure = Callable[[str, Path, int], Values]  # peer, a new folder, COUNT


@dataclass(frozen=True)
class Mode:
    title: str
    measure: Measure
    peers: tuple[str, ...] = ()  # whom it can be asked of; empty: everybody


def _warm(load: Load, count: int) -> int:
    """Messages before the clock starts: processes are forked, code paths taken, connections made."""
    return max(load.sessions, count // 10)


def rates(load: Load) -> Measure:
    """{accepted, relayed} in messages a second."""

    def measure(peer: str, folder: Path, count: int) -> Values:
        count = max(load.sessions, round(count * load.share))
        with Sink() as sink, PEERS[peer].start(folder, sink.port) as running:
            drive(running.port, sink, load, _warm(load, count))
            accepted, relayed = drive(running.port, sink, load, count)
        return {"accepted": accepted, "relayed": relayed}

    return measure


def memory(peer: str, folder: Path, count: int) -> Values:
    """{peak} in MiB of PSS. A run of its own: to read a hundred processes costs them time."""
    load = Load(50)
    with Sink() as sink, PEERS[peer].start(folder, sink.port) as running, Peak(running.pid) as peak:
        drive(running.port, sink, load, _warm(load, count))
        drive(running.port, sink, load, count)
    return {"peak": peak.mib}


def latencies(peer: str, folder: Path, count: int) -> Values:
    """{submit_p50, submit_p99, relay_p50, relay_p99} in milliseconds."""

    async def measured() -> tuple[list[float], list[float]]:
        upstream = latency.Upstream()
        async with await asyncio.start_server(upstream.session, "127.0.0.1", 0, limit=1 << 24) as server:
            starting = PEERS[peer].start(folder, server.sockets[0].getsockname()[1])
            running = await asyncio.to_thread(starting.__enter__)
            try:
                return await latency.measure(running.port, upstream, max(50, count * 2 // 15))
            finally:
                await asyncio.to_thread(starting.__exit__, None, None, None)

    submit, relay = asyncio.run(measured())
    return {
        f"{name}_p{q}": quantile(taken, q / 100) * 1000
        for name, taken in (("submit", submit), ("relay", relay))
        for q in (50, 99)
    }


def logins(peer: str, folder: Path, count: int) -> Values:
    """{accepted, relayed} in messages a second."""
    return auth.measure(folder, peer, max(1, count // 3))


MODES = {
    "kept10": Mode("10 kept sessions, 4 KiB", rates(Load(10))),
    "kept50": Mode("50 kept sessions, 4 KiB", rates(Load(50))),
    "fresh": Mode("a new connection each, 10 at once, 4 KiB", rates(Load(10, fresh=True))),
    "100k": Mode("10 kept sessions, 100 KiB", rates(Load(10, size=100 << 10, share=0.2))),
    "10m": Mode("10 kept sessions, 10 MB", rates(Load(10, size=10_000_000, share=0.01))),
    "signed": Mode("10 kept sessions, 4 KiB, RSA-2048", signed.rates(Load(10)), tuple(signed.STARTERS)),
    "signed50": Mode("50 kept sessions, 4 KiB, RSA-2048", signed.rates(Load(50)), tuple(signed.STARTERS)),
    "twice": Mode("10 kept sessions, 4 KiB, RSA-2048 and Ed25519", signed.rates(Load(10), ed25519=True), ("relay",)),
    "auth": Mode("1,000 users log in, limits; STARTTLS 20 ms away", logins, tuple(auth.STARTERS)),
    "latency": Mode("100 a second, a new connection each, 4 KiB", latencies),
    "memory": Mode("50 kept sessions, 4 KiB", memory),
}
# Once, of the relay alone: benchmarks/signing.py, benchmarks/backlog.py
ONCE = ("signs", "backlog")
