"""`-bp`, or by the name of mailq(1): the queue, for those who may see it.

Asks `relay queue list`, which knows where the relay is and who may ask it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

HEADING = "-Queue ID-   --Size-- ----Arrival Time---- -Sender/Recipient-------"
MARKS = {"active": "*", "held": "!"}


def show() -> int:
    command = [sys.executable, "-m", "relay", "queue", "list", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        return done.returncode
    lines = listing(json.loads(done.stdout))
    try:
        print(*lines, sep="\n", flush=True)
    except BrokenPipeError:  # `mailq | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def listing(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """As Postfix writes it; rows of one message follow one another."""
    lines: list[str] = []
    count = size = 0
    for number, group in groupby(rows, key=lambda row: row["queue_id"]):
        recipients = list(group)
        first = recipients[0]
        count, size = count + 1, size + first["size"]
        mark = next((m for state, m in MARKS.items() if any(r["state"] == state for r in recipients)), " ")
        at = time.strftime("%a %b %d %H:%M:%S", time.localtime(first["accepted_at"]))
        lines.append(f"{number}{mark} {first['size']:>8} {at:>20} {_clean(first['sender'] or 'MAILER-DAEMON')}")
        for row in recipients:
            why = row["last_reply"] or row["why"]
            lines += [f"({_clean(why)})"] if why and row["state"] != "active" else []
            lines.append(f"{'':43}{_clean(row['recipient'])}")
        lines.append("")
    if not count:
        return ["Mail queue is empty"]
    return [HEADING, *lines, f"-- {-(-size // 1024)} Kbytes in {count} Request{'s' if count > 1 else ''}."]


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
