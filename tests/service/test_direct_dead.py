"""Direct delivery by processes, as `python -m benchmarks.direct` measures it, small: who is dead or slow keeps nobody else waiting."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from benchmarks.lab import Plan, run, shuffled

from .support import needs

KINDS = ("live",) * 7 + ("slow", "refuses", "silent")


@needs("knotd")
def test_the_live_ones_do_not_wait_for_the_dead(tmp_path: Path) -> None:
    plan = Plan(KINDS, domains=50, messages=500)
    # Alone they take half a second, on a busy machine some more. That a refused one is tried again takes a minute, and to give up
    # a silent one five: who waited for either would be missing.
    done = run(plan, shuffled(range(plan.messages), 1), tmp_path, limit=60)
    assert (done.missing, done.lost, done.doubled) == (0, 0, 0)
    slow, refuses, silent = ({plan.recipient(m) for m in plan.to(plan.those(kind))} for kind in KINDS[-3:])
    rows = {row["recipient"]: row for row in done.rows}
    live = set(rows) - slow - refuses - silent
    assert len(live) == 350
    assert Counter(rows[who]["state"] for who in live) == {"delivered": 350}
    assert all(rows[who]["attempts"] == 1 for who in live)
    # Of the dead nothing was sent, nothing failed, and nothing was tried again and again meanwhile.
    dead = [rows[who] for who in refuses | silent]
    assert {row["state"] for row in dead} <= {"queued", "active", "deferred"}
    assert {rows[who]["attempts"] for who in silent} == {0}
    assert max(row["attempts"] for row in dead) <= 2
    refused = [row for row in dead if row["state"] == "deferred"]
    assert refused and all("Connection refused" in row["last_reply"] for row in refused)
    assert {rows[who]["state"] for who in slow} <= {"queued", "active", "delivered"}
    assert all(done.hosts[number]["most"] <= plan.connections for number in done.hosts)
