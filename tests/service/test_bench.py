"""`make bench`, as short as it can be, and the spool that its backlog is made of."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from benchmarks import backlog, signed
from benchmarks.bench import workplace
from benchmarks.loads import Load, Sink, Stuck, drive
from relay.recipient import State
from relay.signing.canonical import body_hash
from relay.signing.dkim import Fields, signature
from relay.signing.keys import generate
from relay.signing.rules import Rule
from relay.spool import Ask
from relay.spool.sqlite import SqliteSpool

from .support import ENV, ROOT, find, needs, needs_root, run

NOW = 1_800_000_000.0


@needs("smtp-source", "smtp-sink")
def test_bench_of_the_relay_alone(tmp_path: Path) -> None:
    options = ["--rounds", "1", "--count", "300", "--peers", "", "--modes", "kept10 fresh latency signed twice signs"]
    env = ENV | {"PYTHONPATH": str(ROOT)}
    done = run(sys.executable, "-m", "benchmarks.bench", *options, "--out", tmp_path, cwd=ROOT, env=env, timeout=240)
    kept = json.loads((tmp_path / "bench.json").read_text())
    modes = ("kept10", "fresh", "latency", "signed", "twice")
    assert [(r["mode"], r["peer"]) for r in kept["runs"]] == [(m, "relay") for m in modes]
    assert all(v > 0 for r in kept["runs"] for v in r["values"].values())
    assert {g["met"] for g in kept["goals"]} == {None}
    assert kept["failures"] == []
    assert kept["facts"]["cores"] >= 1
    assert [s["threads"] for s in kept["signs"]] == ([1, 2] if find("openssl") else [])
    text = (tmp_path / "bench.md").read_text()
    assert text.splitlines()[0].startswith("|  | load | measure | relay |")
    assert text in done.stdout


def test_what_arrives_unsigned_is_found() -> None:
    """A signature that is missing, one too few, or one that is not good ends a run."""
    found = {signed.SELECTOR: generate("rsa", 1024)}
    rule = Rule(signed.DOMAIN, signed.SELECTOR, found[signed.SELECTOR])
    head, body = b"From: app@example.org\r\n\r\n", b"hello\r\n"
    made = signature(rule.recipe(signed.DOMAIN, time.time()), Fields(head), body_hash(body, "relaxed"))
    signed.prove([made + head + body], found)
    with pytest.raises(Stuck, match="0 signatures instead of 1"):
        signed.prove([made + head + body, head + body], found)
    with pytest.raises(Stuck, match="1 signatures instead of 2"):
        signed.prove([made + head + body], found | {signed.SECOND: generate("ed25519")})
    with pytest.raises(Stuck, match="not good"):
        signed.prove([made + head + b"other\r\n"], found)


@needs("smtp-source", "smtp-sink")
def test_a_sink_keeps_what_arrives() -> None:
    with workplace() as folder, Sink() as sink:
        with sink.keeping(folder / "kept") as kept:
            drive(sink.port, sink, Load(2), 5)
        arrived = signed.messages(kept.read_text())
        assert [m.partition(b"\r\n")[0] for m in arrived] == [b"From: <app@example.org>"] * 5
        drive(sink.port, sink, Load(2), 3)
        assert sink.count == 3


@needs("smtp-source", "smtp-sink", "postfix", "opendkim")
@needs_root
def test_postfix_with_opendkim_signs() -> None:
    with workplace() as folder:
        values = signed.rates(Load(2))("postfix", folder / "run", 20)
    assert values["relayed"] > 0


def test_bench_knows_its_words(tmp_path: Path) -> None:
    env = ENV | {"PYTHONPATH": str(ROOT), "MODES": "kept10 kept11"}
    done = run(sys.executable, "-m", "benchmarks.bench", cwd=ROOT, env=env, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("MODES: there is no kept11; there is: kept10, kept50")


async def test_a_backlog_is_a_spool(tmp_path: Path) -> None:
    """Sound by its own check, all of it due, each recipient in a lane that the configuration's rules can route."""
    config = backlog.write_config(tmp_path, 2525)
    path = backlog.make(config, 600, 20, NOW)
    spool = await SqliteSpool.open(path, NOW)
    try:
        assert await spool.check() == []
        assert spool.counts[State.QUEUED] == spool.queued == 600
        heads = await spool.heads()
        assert len(heads) == 20
        assert {head.due_at for head in heads} <= {NOW - backlog.AGE + n * backlog.AGE / 2 / 600 for n in range(20)}
        claims, due = await spool.claim([Ask(head.lane, 100, NOW) for head in heads])
        assert sum(len(claim.recipients) for claim in claims) == 600
        assert set(due.values()) == {None}
        assert len({claim.message for claim in claims}) == 600
        assert max(claim.message for claim in claims) < spool.next_id()
        body = await spool.read(claims[-1].message, claims[-1].place)
        assert body == backlog._BODY
    finally:
        await spool.close()
