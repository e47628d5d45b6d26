"""The verbs of `relay` against the real process: what is shown, what is changed, and the exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fakes import Upstream
from rig import ENV, Process, free_port, process, submit, write_config

from relay.cli import cli, service

TEXT = b"From: app@example.com\r\nSubject: t\r\n\r\nhello\r\n"
CLASSES = """  default: {retry: {schedule: [1h], give_up: 1d}}
  bulk: {match: {header: {Precedence: bulk}}, retry: {schedule: [1h], give_up: 1d}}"""
ROUTES = """  - {name: dead, match: {recipient: "*@dead.example"}, via: dead}
  - {name: parked, match: {recipient: "*@parked.example"}, hold: true}
  - {name: never, match: {recipient: "*@never.example"}, reject: "use the API"}
  - {name: live, via: live}"""
FIELDS = "queue_id recipient sender state lane egress attempts accepted_at due_at expires_at why last_reply tag class"


@dataclass
class Bench:
    relay: Process
    up: Upstream

    async def send(self, *recipients: str, sender: str = "app@example.com", message: bytes = TEXT) -> str:
        return (await submit(self.relay.port, [(sender, recipients, message)]))[0]

    async def cli(self, *arguments: str, code: int = 0) -> str:
        return await asyncio.to_thread(lambda: self.relay.cli(*arguments, code=code))

    async def json(self, *arguments: str) -> Any:
        return await asyncio.to_thread(self.relay.json, *arguments)

    async def listed(self, *arguments: str) -> set[str]:
        return {r["recipient"] for r in await self.json("queue", "list", *arguments)}

    async def state(self, number: str, *wanted: str) -> dict[str, Any]:
        """The first recipient of a message, once it is in one of the states."""
        end = time.monotonic() + 60
        while True:
            row: dict[str, Any] = (await self.json("queue", "show", number))["recipients"][0]
            if row["state"] in wanted:
                return row
            assert time.monotonic() < end, row


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with Upstream({"RCPT": lambda r: "550 5.1.1 nobody" if r.startswith("no") else "250 ok"}) as up:
        accounts = {"dead": f"port: {free_port()}, tls: none", "live": f"port: {up.port}, tls: none"}
        file = write_config(tmp_path, accounts, routes=ROUTES, classes=CLASSES)
        with process(file) as relay:
            yield Bench(relay, up)


async def test_list_and_its_filters(bench: Bench) -> None:
    tagged = b"X-Relay-Tag: order-7\r\n" + TEXT
    bulk = b"Precedence: bulk\r\n" + TEXT
    dead = await bench.send("a@dead.example", message=tagged)
    other = await bench.send("b@dead.example", sender="news@other.example", message=bulk)
    held = await bench.send("c@parked.example")
    failed = await bench.send("no@live.example")
    good = await bench.send("d@live.example")
    await bench.state(dead, "deferred")
    await bench.state(other, "deferred")
    await bench.state(failed, "failed")
    await bench.state(good, "delivered")
    waiting = {"a@dead.example", "b@dead.example", "c@parked.example"}
    assert await bench.listed() == waiting
    assert await bench.listed("--all") == waiting | {"no@live.example", "d@live.example"}
    table = {
        ("--sender", "news@*"): {"b@dead.example"},
        ("--recipient", "A@DEAD.*"): {"a@dead.example"},
        ("--domain", "parked.example"): {"c@parked.example"},
        ("--egress", "dead", "--state", "deferred"): {"a@dead.example", "b@dead.example"},
        ("--egress", "live", "--all"): {"no@live.example", "d@live.example"},
        ("--route", "parked"): {"c@parked.example"},
        ("--route", "live", "--all"): {"no@live.example", "d@live.example"},
        ("--class", "bulk"): {"b@dead.example"},
        ("--tag", "order-*"): {"a@dead.example"},
        ("--user", "nobody"): set(),
        ("--state", "held"): {"c@parked.example"},
        ("--state", "failed,delivered"): {"no@live.example", "d@live.example"},
        ("--error", "connection REFUSED"): {"a@dead.example", "b@dead.example"},
        ("--error", "nobody", "--all"): {"no@live.example"},
        ("--older-than", "1h"): set(),
        ("--sender", "*[*"): set(),
    }
    for arguments, recipients in table.items():
        assert await bench.listed(*arguments) == recipients, arguments
    for row in await bench.json("queue", "list", "--all"):
        assert set(FIELDS.split()) <= set(row)
        assert row["state"] == row["state"].lower()
        assert not any(isinstance(v, dict | list) for v in row.values())
        if row["state"] in ("queued", "deferred", "held"):
            assert row["why"] and (row["next_at"] or row["state"] == "held")
    plain = await bench.cli("queue", "list")
    assert len(plain.splitlines()) == 3 and held in plain
    shown = await bench.json("queue", "show", dead)
    assert [e["kind"] for e in shown["events"]] == ["accepted", "deferred"] and "Subject: t" in shown["head"]
    assert "Connection refused" in await bench.cli("queue", "show", dead)
    stats = await bench.json("queue", "stats")
    assert stats["states"]["held"] == 1 and {e["egress"] for e in stats["egresses"]} == {"dead", "live"}
    assert "default/dead" in await bench.cli("queue", "stats")


async def test_pages_of_more_than_a_thousand(bench: Bench) -> None:
    names = [f"r{i}@dead.example" for i in range(2100)]
    await submit(bench.relay.port, [("app@example.com", tuple(names[i : i + 700]), TEXT) for i in range(0, 2100, 700)])
    rows = await bench.json("queue", "list")
    assert [r["recipient"] for r in rows] == names
    assert len(await bench.json("queue", "list", "--limit", "1500")) == 1500
    found = await bench.json("queue", "hold", "--domain", "dead.example")
    assert found["recipients"] >= 2000  # but for those that are in flight just now


async def test_verbs(bench: Bench) -> None:
    first = await bench.send("a@dead.example")
    await bench.state(first, "deferred")
    for verb, more in (("retry", ()), ("hold", ()), ("cancel", ("--yes",)), ("reroute", ("--to", "live"))):
        found = await bench.json("queue", verb, first, *more, "--dry-run")
        assert (found["recipients"], found["dry_run"]) == (1, True)
        row = await bench.state(first, "deferred")
        assert row["attempts"] == 1
    # retry: tried now, not later
    await bench.cli("queue", "retry", first)
    await until_json(bench, first, lambda r: r["attempts"] == 2 and r["state"] == "deferred")
    # hold, release
    assert "hold: 1 recipient\n" in await bench.cli("queue", "hold", first)
    assert "release" in (await bench.state(first, "held"))["why"]
    await bench.cli("queue", "release", first)
    await until_json(bench, first, lambda r: r["attempts"] == 3 and r["state"] == "deferred")
    # what a `hold` route holds is let go by release
    parked = await bench.send("p@parked.example")
    assert "parked" in (await bench.state(parked, "held"))["why"]
    await bench.cli("queue", "release", parked)
    assert (await bench.state(parked, "delivered"))["egress"] == "live"
    # reroute: to an account, to a route, back to the rules
    await bench.cli("queue", "reroute", first, "--to", "live")
    assert (await bench.state(first, "delivered"))["egress"] == "live"
    second = await bench.send("b@dead.example")
    await bench.state(second, "deferred")
    await bench.cli("queue", "reroute", second, "--to", "parked")
    await bench.state(second, "held")
    await bench.cli("queue", "reroute", second, "--by-rules")
    assert (await bench.state(second, "deferred", "queued"))["route"] == "dead"
    await bench.cli("queue", "reroute", second, "--to", "live")
    await bench.state(second, "delivered")
    # cancel wants --yes
    third = await bench.send("c@dead.example")
    await bench.state(third, "deferred", "queued")
    done = await asyncio.to_thread(bench.relay.call, "queue", "cancel", third)
    assert done.returncode == 64 and done.stderr.startswith("Error: cancel would end 1 recipient; say --yes")
    assert len(done.stderr.splitlines()) == 1
    await bench.state(third, "deferred", "queued")
    await bench.cli("queue", "cancel", third, "--yes")
    assert "cancelled by an operator" in (await bench.state(third, "failed"))["why"]
    await bench.cli("queue", "retry", third, code=65)  # what is done stays done


async def until_json(bench: Bench, number: str, condition: Any) -> None:
    end = time.monotonic() + 60
    while True:
        row = (await bench.json("queue", "show", number))["recipients"][0]
        if condition(row):
            return
        assert time.monotonic() < end, row


async def test_export_and_resend(bench: Bench, tmp_path: Path) -> None:
    failed, good = await bench.send("no@live.example"), await bench.send("d@live.example")
    large = await bench.send("no@live.example", message=TEXT + b"0123456789\r\n" * 40_000)
    await bench.state(failed, "failed")
    await bench.state(large, "failed")
    await bench.state(good, "delivered")
    out = tmp_path / "one.eml"
    await bench.cli("queue", "export", failed, "-o", str(out))
    assert out.read_bytes().endswith(b"\r\n" + TEXT)
    assert "Subject: t" in await bench.cli("queue", "export", failed)
    await bench.cli("queue", "export", "--state", "failed", "-o", str(tmp_path / "many"))
    assert sorted(p.name for p in (tmp_path / "many").iterdir()) == sorted([f"{failed}.eml", f"{large}.eml"])
    assert (tmp_path / "many" / f"{large}.eml").read_bytes().endswith(b"0123456789\r\n" * 40_000)
    # one whose body was dropped: told, no empty file, the others are there
    done = await asyncio.to_thread(bench.relay.call, "queue", "export", failed, good, "-o", str(tmp_path / "some"))
    assert done.returncode == 65 and good in done.stderr and "Traceback" not in done.stderr
    assert [p.name for p in (tmp_path / "some").iterdir()] == [f"{failed}.eml"]
    await bench.cli("queue", "export", good, "-o", str(tmp_path / "gone.eml"), code=65)
    assert not (tmp_path / "gone.eml").exists()
    await bench.cli("queue", "export", failed, "-o", "/proc/no/such.eml", code=74)
    # resend
    before = len(await bench.json("queue", "list", "--all"))
    assert (await bench.json("queue", "resend", failed, "--dry-run"))["recipients"] == 1
    assert len(await bench.json("queue", "list", "--all")) == before
    bench.up.script = {}
    for number in (failed, large):
        fresh = (await bench.json("queue", "resend", number))["queue_id"]
        await bench.state(fresh, "delivered")
    assert bench.up.delivered() == ["d@live.example", "no@live.example", "no@live.example"]
    assert bench.up.done[-1].message.endswith(b"0123456789\r\n" * 40_000)
    await bench.cli("queue", "resend", good, code=65)
    await bench.cli("queue", "resend", failed, "--to", "stranger@live.example", code=64)


async def test_explain_and_status(bench: Bench) -> None:
    found = await bench.json(
        "explain", "--from", "a@example.com", "--to", "b@live.example", "--header", "Precedence: bulk"
    )
    assert (found["route"], found["class"]) == ("live", "bulk")
    assert [r["name"] for r in found["rules"]] == ["dead", "parked", "never", "live"]
    assert found["rules"][0]["verdict"] == "does not match: recipient: *@dead.example"
    assert found["origin"].startswith("relay.yaml:") or str(bench.relay.file) in found["origin"]
    assert found["origin"].rpartition(":")[2].isdecimal()
    (egress,) = found["egresses"]
    assert (egress["egress"], egress["when"], egress["wait"], egress["alignment"]) == ("live", "now", 0.0, "unsigned")
    text = await bench.cli("explain", "--from", "a@example.com", "--to", "b@never.example")
    assert "use the API" in text and "→ never" in text
    assert "dead" in await bench.cli(
        "explain", "--from", "a@example.com", "--to", "b@dead.example", "--config", str(bench.relay.file)
    )
    status = await bench.json("status")
    assert status["alive"] and status["accepting"] and status["config"] == str(bench.relay.file)
    told = await bench.cli("status")
    for line in (
        "accepting    yes",
        "leaving      yes",
        "waiting      0",
        f"listen       127.0.0.1:{bench.relay.port}",
    ):
        assert f"{line}\n" in told


async def test_check_and_backup_while_running(bench: Bench, tmp_path: Path) -> None:
    number = await bench.send("a@dead.example")
    assert "good" in await bench.cli("spool", "check")
    copy = tmp_path / "copy"
    found = await bench.json("spool", "backup", str(copy))
    assert found["waiting_recipients"] == 1 and (copy / "spool.db").stat().st_size > 0
    assert stat.S_IMODE((copy / "spool.db").stat().st_mode) == 0o600
    await bench.cli("spool", "backup", str(copy), code=65)
    assert (await bench.json("queue", "show", number))["queue_id"] == number


async def test_exit_codes(bench: Bench, tmp_path: Path) -> None:
    for arguments, code in {
        ("queue", "list", "--nonsense"): 64,
        ("queue", "list", "--older-than", "soon"): 64,
        ("queue", "list", "--state", "lost"): 64,
        ("queue", "show", "not an id"): 64,
        ("queue", "show", "ü/../x"): 64,
        ("queue", "show", "00000000001"): 65,
        ("queue", "retry"): 64,
        ("queue", "reroute", "00000000001"): 64,
        ("queue", "reroute", "00000000001", "--to", "nowhere"): 64,
        ("queue", "export"): 64,
        ("queue", "export", "--sender", "nobody@*", "-o", str(tmp_path)): 65,
        ("explain", "--from", "a@example.com", "--to", "nobody"): 64,
        ("check", "--config", str(bench.relay.file)): 0,
        ("check", "--config", str(tmp_path / "none.yaml")): 78,
        ("serve", "--config", str(tmp_path / "none.yaml")): 78,
        ("send", "--to", "x@never.example", "--server", f"127.0.0.1:{bench.relay.port}"): 65,
        ("send", "--to", "x@live.example", "--server", f"127.0.0.1:{free_port()}"): 69,
        ("send", "--to", "x@live.example", "--server", f"127.0.0.1:{bench.relay.port}"): 0,
    }.items():
        done = await asyncio.to_thread(bench.relay.call, *arguments)
        assert done.returncode == code, (arguments, done)
        assert "Traceback" not in done.stderr and (code == 0 or done.stderr), arguments
    bench.relay.socket = tmp_path / "nowhere.sock"
    await bench.cli("status", code=69)


def test_no_right_to_use_the_socket(tmp_path: Path) -> None:
    """77, as an ordinary user who is not the relay's."""
    if os.geteuid() != 0:
        pytest.skip("needs root to be another user for a moment")
    tmp_path.chmod(0o755)
    path = Path("/tmp") / f"relay-test-{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen()
        try:
            code = (
                "import os, sys; sys.argv = ['relay', 'status']; "
                "from relay.cli import main, client, service, show; os.setuid(65534); main()"
            )
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=False,
                env=ENV | {"RELAY_ENDPOINT": str(path)}, cwd="/",
            )  # fmt: skip
        finally:
            path.unlink()
    assert done.returncode == 77 and str(path) in done.stderr, done


def test_a_relay_that_hangs_is_not_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for health is told in time; not every supervisor ends what it asked with."""
    assert service.HEALTH_TIMEOUT < 10
    monkeypatch.setattr(service, "HEALTH_TIMEOUT", 0.2)
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(path))
        hung.listen()
        found = CliRunner().invoke(cli, ["status", "--health"], env={"RELAY_ENDPOINT": str(path)})
    assert found.exit_code == 69 and "timed out" in found.output


def test_check_tells_every_mistake(tmp_path: Path) -> None:
    file = write_config(tmp_path, {"main": "port: 1, tls: none"}, extra="nonsense: 1\nother: 2")
    done = subprocess.run(
        [sys.executable, "-m", "relay", "check", "--config", str(file), "--json"],
        capture_output=True, text=True, check=False, env=ENV,
    )  # fmt: skip
    assert done.returncode == 78
    told = json.loads(done.stdout)
    assert len(told) == 2 and all(t["level"] == "error" and f"{file}:" in t["text"] for t in told)


async def test_a_pipe_that_closes_is_no_traceback(bench: Bench) -> None:
    await submit(bench.relay.port, [("app@example.com", tuple(f"r{i}@dead.example" for i in range(900)), TEXT)])
    command = f"{sys.executable} -m relay queue list | head -1"
    done = await asyncio.to_thread(
        lambda: subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, check=False,
            env=ENV | {"RELAY_ENDPOINT": str(bench.relay.socket)},
        )
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 1 and done.stderr == ""
