"""`relay simulate` beside a real relay: what it foretells is what happens, and what it prints can be read by programs."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fakes import Later, Upstream
from rig import ENV, Rig, running, until, write_config

from relay import clock
from relay.admin.simulation import Simulated
from relay.config.load import load
from relay.recipient import State
from relay.settings import Config
from relay.simulate.run import Left, Simulation
from relay.simulate.snapshot import Snapshot
from relay.simulate.traffic import Traffic, Wave

LIMITS = "limits: [{name: each, rate: 5/s, per: sender}]"
TAKES = 0.05  # seconds for a message, at the sink
INTERVALS = {"20/s": 1 / 20, "5/s": 1 / 5, "": 1 / 20}


class Watched(Upstream):
    """Tells when each recipient was named to it."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        super().__init__({"RCPT": self._rcpt, "DOT": Later(TAKES, "250 2.0.0 Ok")})

    def _rcpt(self, address: str) -> str:
        self.at[address.strip("<>")] = clock.now()
        return "250 2.1.5 Ok"


def interval(left: Left) -> float:
    """The longest of the rules that bound it."""
    return max(length for rate, length in INTERVALS.items() if any(rate in rule for rule in left.held) or not rate)


def mail(count: int) -> list[tuple[str, tuple[str, ...], bytes]]:
    """A third by one sender, whom his own limit binds; the others by ten, whom the account's does."""
    return [
        (
            "a@example.com" if i % 3 == 0 else f"s{i % 10}@example.com",
            (f"u{i}@example.net",),
            b"Subject: t\r\n\r\nx\r\n",
        )
        for i in range(count)
    ]


class Delay:
    """How long the loop was late, all in all, on a machine that stands still now and then: whatever is sent one after the other
    comes later by as much."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            if (late := time.monotonic() - began - 0.01) > 0.005:  # many small ones make out as much as a long one
                self.seconds += late

    def end(self) -> float:
        self._task.cancel()
        return self.seconds


def compare(found: list[tuple[str, Left]], real: dict[str, float], late: float = 0.5) -> list[float]:
    """How far each was foretold wrong, in seconds: by an interval, what the machine is late, and the 2 % of what passed that the
    parts of a limit may make out."""
    first = min(left.at for _, left in found)
    off = []
    for address, left in found:
        wrong = real[address] - left.at
        off.append(wrong)
    for (address, left), wrong in zip(found, off, strict=True):
        assert abs(wrong) <= interval(left) + 0.02 * (left.at - first) + late, (address, wrong, left)
    return off


async def test_each_message_leaves_when_it_was_foretold(tmp_path: Path) -> None:
    """300 messages through a relay with two limits, and the same by the simulation, from the times of their acceptance."""
    async with Watched() as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none, limits: [20/s]"}, extra=LIMITS)
        async with running(file) as rig:
            sent = mail(300)
            delay = Delay()
            ids = await rig.send_many(sent)
            accepted = {row["queue_id"]: row["accepted_at"] for row in await rig.rows()}
            await rig.settled(120)
            late = delay.end()
        waves = [Wave(accepted[n], 1, sender, ((to[0], 1),)) for n, (sender, to, _) in zip(ids, sent, strict=True)]
        simulation = Simulation(load(file), waves[0].at, TAKES)
        left = list(simulation.run(Traffic(simulation).arrivals(waves)))
        numbers = {one.message: one for one in left}
        first = min(numbers)
        found = [(to[0], numbers[first + i]) for i, (_, to, _) in enumerate(sent)]
        assert len(numbers) == 300
        off = compare(found, up.at, 1.0 + late)
        assert abs(sum(off)) / len(off) < 1.0 + late  # three percent of what the last ones waited


async def test_the_queue_leaves_when_it_was_foretold(tmp_path: Path) -> None:
    """From the middle of it: what was spent so far counts, and what is in flight is not told twice."""
    async with Watched() as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none, limits: [20/s]"}, extra=LIMITS)
        async with running(file) as rig:
            delay = Delay()
            await rig.send_many(mail(240))
            await until(lambda: len(up.at) >= 50)
            found = await asked(rig, load(file))
            assert 10 < len(found) < 200
            await rig.settled(120)
            late = delay.end()
        # As after a restart, what is spaced begins with its next turn: never too early, and a few turns late.
        compare(found, up.at, 1.2 + late)


async def asked(rig: Rig, config: Config) -> list[tuple[str, Left]]:
    """(recipient, how it would leave) of all that waits."""
    simulated = Simulated(rig.app.spool, rig.app.scheduler, rig.app.scheduler.outlook, lambda: rig.app.config)
    snapshot = Snapshot.of([await simulated.page(None)])
    simulation = Simulation(config, snapshot.now, TAKES, snapshot.spent, snapshot.documents, snapshot.hosts)
    snapshot.put(simulation)
    addresses = {row["message"]: row["recipient"] for row in snapshot.recipients}
    return [(addresses[left.message], left) for left in simulation.run()]


# -- the command line


async def cli(folder: Path, *arguments: str, code: int = 0) -> str:
    made = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "relay", "simulate", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=ENV | {"RELAY_ENDPOINT": str(folder / "admin.sock"), "RELAY_CONFIG": str(folder / "relay.yaml")},
    )  # fmt: skip
    out, err = await asyncio.wait_for(made.communicate(), 60)
    assert made.returncode == code, (out, err)
    assert b"Traceback" not in err
    return (out if not code else err).decode()


async def rows(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(await cli(folder, *arguments, "--json"))
    return found


async def test_the_queue_of_a_running_relay(tmp_path: Path) -> None:
    async with Upstream() as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none, limits: [10/h]"}, extra=LIMITS)
        async with running(file) as rig:
            ids = await rig.send_many(mail(14))
            counts = rig.app.spool.counts
            await until(lambda: counts[State.DELIVERED] == 10 and not counts[State.ACTIVE])
            waiting = {row["queue_id"] for row in await rig.rows() if row["state"] in ("queued", "deferred")}
            found = await rows(tmp_path, "--queue")
            assert {row["queue_id"] for row in found} == waiting and waiting < set(ids) and len(waiting) == 4
            assert all(3500 < row["time"] - clock.now() < 3700 for row in found)
            assert {row["why"] for row in found} == {"main waits: its limit of 10/h is used up"}
            other = tmp_path / "other"
            other.mkdir()
            faster = write_config(other, {"main": f"port: {up.port}, tls: none, limits: [10/s]"}, extra=LIMITS)
            found = await rows(tmp_path, "--queue", "--with", str(faster))
            assert len(found) == 4 and all(row["time"] < clock.now() + 30 for row in found)
            both = await rows(tmp_path, "--queue", "--send", "5")
            assert sum(row["queue_id"] == "" for row in both) == 5 and len(both) == 9
            assert len(await rows(tmp_path, "--queue", "--until", "+1m")) == 0


async def test_a_plan_as_table_csv_and_picture(tmp_path: Path) -> None:
    write_config(
        tmp_path, {"a": "port: 25, tls: none, limits: [{rate: 60/h, when_full: next}]", "b": "port: 25, tls: none"}
    )
    plan, table, picture = tmp_path / "plan.csv", tmp_path / "out.csv", tmp_path / "out.svg"
    plan.write_text("time,count,sender,recipient,spread\n2026-12-01T09:00Z,300,news@example.com,gmail.com=2,2h\n")
    out = await cli(tmp_path, "--plan", str(plan), "--csv", str(table), "--plot", str(picture))
    assert "taken at its first try" in out and out.count("\n") >= 3
    with table.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 300 and {row["egress"] for row in found} == {"a", "b"}
    root = ElementTree.parse(picture).getroot()
    assert root.tag.endswith("svg") and len(root.findall(".//{http://www.w3.org/2000/svg}rect")) > 20
    flat = await rows(tmp_path, "--plan", str(plan))
    assert [row["time"] for row in flat] == sorted(row["time"] for row in flat)
    assert set(flat[0]) >= {"time", "count", "class", "egress", "waited", "why"}


async def test_mistakes_are_told_with_their_exit_codes(tmp_path: Path) -> None:
    write_config(tmp_path, {"a": "port: 25, tls: none"})
    plan = tmp_path / "plan.csv"
    plan.write_text("time,recipient\nnever,you@example.net\n")
    assert "plan.csv: line 2: expected a time" in await cli(tmp_path, "--plan", str(plan), code=65)
    assert "--queue, --plan FILE or --send COUNT" in await cli(tmp_path, code=64)
    assert ".svg" in await cli(tmp_path, "--send", "3", "--plot", "x.png", code=64)
    assert "no relay" in await cli(tmp_path, "--queue", code=69)
    assert "expected a duration" in await cli(tmp_path, "--send", "3", "--over", "long", code=64)
    (tmp_path / "relay.yaml").write_text("nonsense: true\n")
    await cli(tmp_path, "--send", "3", code=78)


# -- `relay queue show`


async def shown(rig: Rig, number: str) -> dict[str, Any]:
    found: dict[str, Any] = (await rig.message(number))["recipients"][0]
    return found


async def test_each_waiting_recipient_tells_when_it_leaves_and_by_which_rule(tmp_path: Path) -> None:
    day = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")[(datetime.now(UTC).weekday() + 3) % 7]  # never today
    night = f"window: {{days: {day}, hours: '03:00-03:01', timezone: UTC}}"
    classes = f"  default: {{}}\n  night: {{match: {{sender: 'night@*'}}, {night}}}"
    async with Watched() as up:
        file = write_config(
            tmp_path, {"main": f"port: {up.port}, tls: none, limits: [20/s]"}, extra=LIMITS, classes=classes
        )
        async with running(file) as rig:
            sent = mail(240)
            delay = Delay()
            ids = await rig.send_many(sent)
            night = await rig.send(sender="night@example.com")
            began = clock.now()
            # The last first: of those most are waiting, however long it takes to ask for all.
            told = {to[0]: await shown(rig, n) for n, (_, to, _) in reversed([*zip(ids, sent, strict=True)])}
            waits = await shown(rig, night)
            assert waits["why"].startswith("outside its hours") and waits["eta"] > began
            assert waits["rule"].startswith(f"outside its hours {day} 03:00-03:01 UTC")
            await until_left(up, 240)
            late = delay.end()
        waiting = {address: row for address, row in told.items() if row["state"] == "queued"}
        assert len(waiting) > 20
        rules = {row["rule"] for row in waiting.values()}
        assert "main's limit of 20/s" in rules and "limit each (a@example.com) of 5/s" in rules
        for address, row in waiting.items():
            # Several rules one after the other come to more than each of them alone, which is what is told.
            real, eta = up.at[address] - began, row["eta"] - began
            assert real - 0.5 * real - 0.5 - late < eta < real + 0.25 * real + 0.75, (address, real, eta, row["rule"])


async def until_left(up: Watched, count: int) -> None:
    await until(lambda: len(up.at) >= count, 120)
