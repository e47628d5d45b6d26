"""`relay suspend` and `relay resume` over the socket: what is in force, what is kept, what is told, and the exit codes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from rig import ENV, Rig, free_port, running, write_config

from relay import clock
from relay.admin.pauses import Pausing
from relay.api.server import Admin
from relay.scheduler.pauses import Pauses
from relay.spool import Event, SpoolError

CLASSES = """  default: {retry: {schedule: [1h], give_up: 1d}}
  marketing: {match: {sender: "news@*"}, retry: {schedule: [1h], give_up: 1d}}"""
ROUTES = """  - {name: news, match: {class: marketing}, via: [dead, spare]}
  - {name: rest, via: dead}"""
EXTRA = """users: {shop: {password: {env: SHOP}}}
direct: {mx-1: {source: 127.0.0.1}}
pools: {bulk: {members: {dead: 1, spare: 1}}}
destinations: [{name: bank, match: {recipient: "*@bank.example"}}]"""


@dataclass
class Bench:
    rig: Rig
    pauses: Pauses
    socket: Path
    kept: dict[str, str] = field(default_factory=dict)
    changes: list[int] = field(default_factory=list)
    events: list[tuple[str, str, str]] = field(default_factory=list)
    sick: bool = False

    async def remember(self, documents: Mapping[str, str | None], events: Sequence[Event]) -> None:
        """As the spool does, up to its disk."""
        if self.sick:
            raise SpoolError("the disk is full")
        self.events += [(e.kind, e.data["what"], e.data.get("name", "")) for e in events]
        for key, text in documents.items():
            if text is None:
                self.kept.pop(key, None)
            else:
                self.kept[key] = text

    def changed(self) -> None:
        self.changes.append(len(self.pauses.in_force))

    async def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "relay", *arguments],
                capture_output=True, text=True, timeout=120, check=False, env=ENV | {"RELAY_ENDPOINT": str(self.socket)},
            )  # fmt: skip

        return await asyncio.to_thread(run)

    async def cli(self, *arguments: str, code: int = 0) -> str:
        done = await self.call(*arguments)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    async def json(self, *arguments: str) -> Any:
        return json.loads(await self.cli(*arguments, "--json"))


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("SHOP", "secret")
    accounts = {name: f"port: {free_port()}, tls: none" for name in ("dead", "spare")}
    file = write_config(tmp_path, accounts, routes=ROUTES, classes=CLASSES, extra=EXTRA)
    async with running(file) as rig:
        scheduler = rig.app.scheduler
        made = Bench(rig, None, tmp_path / "second.sock")  # type: ignore[arg-type]
        made.pauses = Pauses(
            scheduler.lanes.by_id,
            scheduler.egresses,
            rig.log,
            lambda found, events: made.remember(found, events),
            made.changed,
        )
        mine = Pausing(made.pauses, scheduler.outlook, rig.app)
        admin = Admin(replace(rig.app.admin.rooms, pausing=mine))
        await admin.open_socket(made.socket)
        try:
            yield made
        finally:
            await admin.close()


async def test_suspended_listed_and_resumed(bench: Bench) -> None:
    said = await bench.cli("suspend", "--class", "marketing", "--for", "2h", "--reason", "legal asks")
    assert said.startswith("suspended: class marketing until ") and "(in 119m)" in said
    blocked = bench.pauses.in_force.blocks("class", "marketing", clock.now())
    assert blocked is not None and 7100 < blocked[0] <= 7200
    assert blocked[1].endswith("by hand: legal asks, `relay resume --class marketing`")
    await bench.cli("suspend", "--sender", "")
    rows = await bench.json("suspend")
    assert [(r["kind"], r["value"], r["reason"]) for r in rows] == [
        ("class", "marketing", "legal asks"),
        ("sender", "", ""),
    ]
    assert rows[0]["left"] <= 7200 and rows[1]["until"] is None
    assert (await bench.cli("suspend", "--list")).splitlines()[1].split("\t")[:3] == ["sender", "<>", "resumed by hand"]
    assert await bench.cli("resume", "--class", "Marketing") == "resumed: class Marketing\n"
    assert await bench.json("resume", "--all") == {"resumed": 1, "asked_again": []}
    assert await bench.json("suspend", "--list") == []
    assert bench.changes == [1, 2, 1, 0]
    assert bench.kept == {}
    assert [f["filter"] for f in bench.rig.said("suspended")] == ["class=marketing", "sender="]
    assert [(f["filter"], f["by"]) for f in bench.rig.said("resumed")] == [
        ("class=Marketing", "hand"),
        ("sender=", "hand"),
    ]
    assert bench.events == [
        ("paused", "class", "marketing"),
        ("paused", "sender", ""),
        ("resumed", "class", "marketing"),
        ("resumed", "sender", ""),
    ]


async def test_it_is_told_what_stops(bench: Bench) -> None:
    await bench.rig.tried(await bench.rig.send("a@example.net"))
    await bench.rig.tried(await bench.rig.send("a@example.net", sender="news@example.com"))
    one = await bench.json("suspend", "--class", "marketing")
    assert one["notes"] == ["it stops 1 lane with mail waiting"]
    assert (await bench.json("suspend", "--class", "none-*"))["notes"] == ["it stops no lanes with mail waiting"]
    assert (await bench.json("suspend", "--egress", "dead"))["notes"] == [
        "it stops 1 lane with mail waiting",
        "1 lane with mail waiting may leave by the next egress of the route",
    ]
    assert (await bench.json("suspend", "--tag", "order-*"))["notes"] == [
        "it stops no lanes with mail waiting",
        "2 lanes with mail waiting are looked through for it",
    ]
    number = (await bench.rig.rows())[0]["lane_id"]
    assert (await bench.json("suspend", "--lane", str(number)))["notes"] == ["it stops 1 lane with mail waiting"]


async def test_a_resumed_egress_is_asked_again(bench: Bench) -> None:
    breaker = bench.rig.egress("dead").breaker
    breaker.rest(clock.now(), 3600, "550 5.4.5 quota", passes=True)
    assert await bench.cli("resume", "--egress", "dead") == (
        "egress dead was not suspended\n  dead rested; it is dialled again now\n"
    )
    assert breaker.wait(clock.now()) == 0
    assert bench.rig.said("asked_again")[0]["egress"] == "dead"
    assert await bench.cli("resume", "--egress", "spare") == "egress spare was not suspended, and does not rest\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("suspend --class marketting", 64, "no class 'marketting'; there are: default, marketing"),
        ("suspend --egress ded", 64, "no account or direct entry 'ded'; there are: dead, mx-1, spare"),
        ("suspend --egress bulk", 64, "bulk is a pool; suspend its members: dead, spare"),
        ("suspend --user nobody", 64, "no user 'nobody'; there are: shop"),
        ("suspend --destination bnak", 64, "no destination 'bnak'; there are: bank"),
        ("suspend --lane 4711", 64, "no lane 4711"),
        ("suspend --lane news", 64, "lane wants a number"),
        ("suspend --class marketing --tag x", 64, "one at a time: --class or --tag"),
        ("suspend --for 2h", 64, "suspend what?"),
        ("suspend --class marketing --for 2", 64, "expected a duration such as 5m"),
        ("suspend --class marketing --for 0s", 64, "at most ten years"),
        ("suspend --class marketing --for 90000000d", 64, "at most ten years"),
        ("suspend --class marketing --list", 64, "say it alone"),
        ("resume", 64, "resume wants one of --class"),
        ("resume --all --class x", 64, "resume wants one of --class"),
        ("resume --tag x", 65, "no suspension of tag x is in force; there are: none"),
        ("resume --egress ded", 64, "no account or direct entry 'ded'"),
    ],
)
async def test_a_slip_of_the_pen_is_told(bench: Bench, arguments: str, code: int, said: str) -> None:
    assert said in await bench.cli(*arguments.split(), code=code)
    assert not bench.pauses.in_force


@pytest.mark.parametrize(
    "selector",
    ["--class default", "--class later-*", "--egress mx-1", "--egress DEAD", "--user Shop", "--destination bank",
     "--destination example.org", "--tag anything"],
)  # fmt: skip
async def test_names_that_are_known_or_need_not_be(bench: Bench, selector: str) -> None:
    await bench.cli("suspend", *selector.split())
    assert len(bench.pauses.in_force) == 1


async def test_it_is_in_force_again_after_a_restart_and_ends_by_its_time(bench: Bench) -> None:
    await bench.pauses.suspend("class", "marketing", clock.now() + 3600, "")
    await bench.pauses.suspend("tag", "order-*", None, "")
    scheduler, rig = bench.rig.app.scheduler, bench.rig
    again = Pauses(scheduler.lanes.by_id, scheduler.egresses, rig.log, bench.remember, bench.changed)
    again.load(bench.kept)
    assert again.in_force.all() == bench.pauses.in_force.all()
    await again.tidy(clock.now())
    assert len(again.in_force) == 2
    await again.tidy(again.in_force.next_end())
    assert [s.kind for s in again.in_force.all()] == ["tag"]
    assert (rig.said("resumed")[-1]["filter"], rig.said("resumed")[-1]["by"]) == ("class=marketing", "its time is over")
    assert "marketing" not in bench.kept["suspensions"]


async def test_what_can_not_be_kept_is_not_said_to_be_suspended(bench: Bench) -> None:
    bench.sick = True
    assert "the disk is full" in await bench.cli("suspend", "--class", "marketing", code=65)
    assert not bench.pauses.in_force and bench.changes == [] and bench.rig.said("suspended") == []


async def test_a_document_that_is_damaged_is_told(bench: Bench) -> None:
    bench.pauses.load({"suspensions": "{"})
    assert not bench.pauses.in_force
    assert bench.rig.said("suspensions_lost")


@pytest.mark.parametrize(
    "body",
    ["[]", '{"kind": "class"}', '{"kind": ["class"], "value": "x"}', '{"kind": "class", "value": 5}',
     '{"kind": "class", "value": "default", "for": "2h"}', '{"kind": "class", "value": "default", "for": true}',
     '{"kind": "class", "value": "default", "for": NaN}', '{"kind": "class", "value": "default", "for": -5}'],
)  # fmt: skip
async def test_what_makes_no_sense_is_a_bad_request(bench: Bench, body: str) -> None:
    reader, writer = await asyncio.open_unix_connection(str(bench.socket))
    head = (
        f"POST /v1/suspend HTTP/1.0\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write((head + body).encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.split()[1] == b"400"
    assert not bench.pauses.in_force
