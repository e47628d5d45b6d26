#!/usr/bin/env python3
"""How many messages of 4 KiB the relay's code signs by RSA-2048 in a second, beside what OpenSSL makes of the key alone.

    .venv/bin/python -m benchmarks.signing [--rounds 5]

The two take turns, a second each, so that whatever else the machine does befalls both; medians are told. Ours is the whole
signature: the header read, the body hashed, the field written. `openssl speed` signs a hash. With two, two threads of ours and
two processes of OpenSSL.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.peers import output
from relay.signing.canonical import body_hash
from relay.signing.dkim import Fields, signature
from relay.signing.keys import generate
from relay.signing.rules import Rule

SECONDS = 1
GOAL = 1.3  # OpenSSL's by ours, with one thread
HEAD = b"""\
Received: from app (localhost [127.0.0.1])\r
\tby relay.example.org (relay) with ESMTP id 6MMFBRMQEDRN;\r
\tSun, 22 Nov 2026 13:25:08 +0000\r
From: <app@example.org>\r
To: <user@example.com>\r
Date: Sun, 22 Nov 2026 13:25:08 +0000 (UTC)\r
Message-Id: <5f33.0008.4e16@app>\r
\r
"""
BODY = b"".join(b"%-78d\r\n" % n for n in range(10, 61)).replace(
    b" ", b"X"
)  # 4 KiB, in lines as smtp-source writes them


@dataclass(frozen=True)
class Seen:
    """Signatures a second."""

    threads: int
    ours: float
    openssl: float

    @property
    def ratio(self) -> float:
        """OpenSSL's by ours: less is better, and 1 would be for nothing."""
        return self.openssl / self.ours


def ours(threads: int) -> float:
    """Signatures a second, all threads together."""
    rule = Rule("example.org", "s1", generate("rsa"))

    def sign(_: int) -> int:
        signature(rule.recipe("example.org", time.time()), Fields(HEAD), body_hash(BODY, "relaxed"))  # loads, parses
        made, until = 0, time.monotonic() + SECONDS
        while time.monotonic() < until:
            signature(rule.recipe("example.org", time.time()), Fields(HEAD), body_hash(BODY, "relaxed"))
            made += 1
        return made

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(sign, range(threads))) / SECONDS


def openssl(processes: int) -> float:
    """Signatures a second by `openssl speed`, 0 where it is missing."""
    multi = ["-multi", str(processes)] if processes > 1 else []
    told = output("openssl", "speed", "-seconds", str(SECONDS), *multi, "rsa2048")
    found = re.search(r"^rsa 2048 bits +\S+s +\S+s +([\d.]+)", told, re.MULTILINE)
    return float(found[1]) if found else 0.0


def measure(rounds: int, progress: Callable[[str], None]) -> list[Seen]:
    """With one thread and with two; nothing where there is no openssl to compare with."""
    seen: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for number in range(rounds):
        for threads, found in seen.items():
            progress(f"signatures: {threads}, round {number + 1}")
            found.append((ours(threads), openssl(threads)))
    medians = {n: [statistics.median(values) for values in zip(*found, strict=True)] for n, found in seen.items()}
    return [Seen(n, made, other) for n, (made, other) in medians.items() if other]


def table(seen: Sequence[Seen]) -> str:
    """Markdown."""
    lines = ["| RSA-2048, 4 KiB, signatures/s | relay | openssl speed | openssl : relay |", "|---|---:|---:|---:|"]
    for s in seen:
        met = f" (goal ≤ {GOAL:g}, {'met' if s.ratio <= GOAL else 'not met'})" if s.threads == 1 else ""
        who = "one thread" if s.threads == 1 else f"{s.threads} threads"
        lines.append(f"| {who} | {s.ours:,.0f} | {s.openssl:,.0f} | {s.ratio:.2f}{met} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(table(measure(given.rounds, lambda text: print(f"  {text}", flush=True))))


if __name__ == "__main__":
    main()
