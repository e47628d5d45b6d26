"""The scheduler: retries and expiry by class, the order, fair turns, and nothing forgotten when a part of it fails."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from statistics import quantiles
from typing import Any

import pytest
from fakes import Later, Upstream
from rig import Rig, free_port, running, until, write_config

from relay import clock
from relay.recipient import State
from relay.scheduler import housekeeping, loop
from relay.spool import SpoolError, SpoolFull

TEXT = b"Subject: t\r\n\r\nhello\r\n"
AT_ONCE = "breaker: {failures: 1}"


def one(up: Upstream, more: str = "") -> dict[str, str]:
    return {"main": f"port: {up.port}, tls: none{more}"}


async def test_retries_until_it_is_taken_and_keeps_the_story(tmp_path: Path) -> None:
    script = {"DOT": ["451 4.3.0 one", "452 4.3.1 two", "250 2.0.0 three"]}
    async with Upstream(script) as up, running(write_config(tmp_path, one(up))) as rig:
        number = await rig.send()
        row = await rig.reaches(number, "delivered")
        assert row["attempts"] == 3 and row["last_reply"] == "250 2.0.0 three"
        events = (await rig.message(number))["events"]
        assert [(e["kind"], e["code"]) for e in events] == [
            ("accepted", 250), ("deferred", 451), ("deferred", 452), ("delivered", 250),
        ]  # fmt: skip
        assert [e.get("attempt") for e in events[1:]] == [1, 2, 3]
        assert [e.get("last_reply") for e in events[1:3]] == ["451 4.3.0 one", "452 4.3.1 two"]
        assert all(e["due_at"] > e["at"] for e in events[1:3])


async def test_exponential_backoff_grows_with_full_jitter(tmp_path: Path) -> None:
    classes = "  default: {retry: {first: 2s, factor: 1.5, cap: 3s, give_up: 1d}}"
    async with (
        Upstream({"DOT": "451 4.3.0 no"}) as up,
        running(write_config(tmp_path, one(up), classes=classes)) as rig,
    ):
        ids = await rig.send_many([("a@example.com", (f"r{i}@example.net",), TEXT) for i in range(40)])
        await until(lambda: rig.app.spool.counts[1] == 40)
        waits = [
            e["due_at"] - e["at"] for i in ids for e in (await rig.message(i))["events"] if e["kind"] == "deferred"
        ]
        assert len(waits) >= 40 and all(1.0 <= w <= 3.0 for w in waits)
        assert len({round(w, 4) for w in waits}) > 5  # what failed together does not come back together


async def test_gives_up_after_its_attempts(tmp_path: Path) -> None:
    classes = "  default: {retry: {schedule: [50ms], attempts: 3, give_up: 1d}}"
    async with (
        Upstream({"RCPT": "450 4.2.1 full"}) as up,
        running(write_config(tmp_path, one(up), classes=classes)) as rig,
    ):
        number = await rig.send()
        row = await rig.reaches(number, "failed")
        assert row["attempts"] == 3
        assert row["why"] == "expired after 3 attempts; the last one: main: 450 4.2.1 full"
        assert (await rig.story(number))[-1] == "expired"


async def test_gives_up_when_its_time_is_over(tmp_path: Path) -> None:
    """The last try falls on the end of its time, not after it."""
    classes = "  default: {retry: {schedule: [400ms], give_up: 1s}}"
    async with (
        Upstream({"RCPT": "450 4.2.1 full"}) as up,
        running(write_config(tmp_path, one(up), classes=classes)) as rig,
    ):
        row = await rig.reaches(await rig.send(), "failed")
        assert row["why"].startswith("expired after")
        assert row["expires_at"] - 0.01 <= row["settled_at"] < row["expires_at"] + 15


async def test_expires_while_its_account_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "EXPIRE_EVERY", 0.1)
    classes = "  default: {retry: {schedule: [500ms], give_up: 4s}}"
    file = write_config(tmp_path, {"main": f"port: {free_port()}, tls: none"}, classes=classes, extra=AT_ONCE)
    async with running(file) as rig:
        number = await rig.send()
        row = await rig.reaches(number, "failed")
        assert row["why"].startswith("expired") and row["attempts"] == 1


async def test_what_was_spent_is_forgotten_when_it_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the spool would keep a row for every minute of every rate."""
    monkeypatch.setattr(housekeeping, "PURGE_EVERY", 0.1)
    async with Upstream() as up, running(write_config(tmp_path, one(up))) as rig:
        now = clock.now()
        await rig.app.spool.spend([("limit old", now - 1, 5), ("limit new", now + 3600, 7)])
        end = time.monotonic() + 30
        while True:
            if "limit old" not in (left := await rig.app.spool.spent()) or time.monotonic() > end:
                break
            await asyncio.sleep(0.05)
        assert left == {"limit new": [(now + 3600, 7)]}


async def test_priority_goes_first(tmp_path: Path) -> None:
    gate = asyncio.Event()
    more = ", connections: 1"
    script = {"DOT": [Later(0, "250 ok", gate), "250 ok"]}
    async with Upstream(script) as up, running(write_config(tmp_path, one(up, more))) as rig:
        await rig.send("first@example.net")
        await until(lambda: up.transactions)
        await rig.send("claimed@example.net")
        await until(lambda: rig.egress().busy == 2)  # what is claimed already keeps its turn
        for name in ("low", "normal", "high", "immediate"):
            await rig.send(f"{name}@example.net", message=b"X-Relay-Priority: %s\r\n" % name.encode() + TEXT)
        gate.set()
        await rig.settled()
        order = [r.partition("@")[0] for r in up.delivered()]
        assert order == ["first", "claimed", "immediate", "high", "normal", "low"]


async def test_send_at(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, one(up))) as rig:
        at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=6)
        number = await rig.send(message=b"X-Relay-Send-At: " + format_datetime(at).encode() + b"\r\n" + TEXT)
        row = await rig.row(number)
        assert row["state"] == "queued" and row["why"] == "it is to be sent later"
        assert row["next_at"] == pytest.approx(at.timestamp(), abs=0.01)
        await rig.settled()
        settled = (await rig.row(number))["settled_at"]
        assert at.timestamp() <= settled < at.timestamp() + 4.0  # dispatch looks round every five seconds in any case


async def test_dead_account_does_not_slow_a_live_one(tmp_path: Path) -> None:
    """2,000 for a dead account, 300 for a live one: accept to delivered at the 95th percentile, with and without."""
    with_dead = await _p95(tmp_path / "a", dead=2000, live=300)
    without = await _p95(tmp_path / "b", dead=0, live=300)
    assert with_dead < max(2 * without, 0.5), (with_dead, without)


@pytest.mark.storm
async def test_dead_account_does_not_slow_a_live_one_at_length(tmp_path: Path) -> None:
    with_dead = await _p95(tmp_path / "a", dead=10_000, live=1000)
    without = await _p95(tmp_path / "b", dead=0, live=1000)
    assert with_dead < max(2 * without, 0.5), (with_dead, without)


async def _p95(folder: Path, dead: int, live: int) -> float:
    folder.mkdir()
    routes = '  - {match: {recipient: "*@dead.example"}, via: dead}\n  - {via: live}'
    async with Upstream() as up:
        made = {"dead": f"port: {free_port()}, tls: none", "live": f"port: {up.port}, tls: none"}
        async with running(write_config(folder, made, routes=routes)) as rig:
            if dead:
                await rig.send_many([("a@example.com", (f"r{i}@dead.example",), TEXT) for i in range(dead)])
                await until(lambda: rig.egress("dead").breaker.opened)
            ids = []
            for i in range(live):  # one by one, as applications do
                ids += await rig.send_many([("a@example.com", (f"r{i}@live.example",), TEXT)])
            await until(lambda: len(up.done) == len(rig.said("delivered")) == live)
            await until(lambda: rig.app.spool.counts[State.DELIVERED] == live)
            times = []
            for start in range(0, live, 100):
                for row in await rig.rows(*ids[start : start + 100]):
                    assert row["state"] == "delivered"
                    times.append(row["settled_at"] - row["accepted_at"])
            return quantiles(times, n=20)[-1]


@pytest.mark.parametrize(
    ("keep", "delivered", "failed"), [("none", False, False), ("failed", False, True), ("all", True, True)]
)
@pytest.mark.parametrize("size", [10, 400_000], ids=["inline", "file"])
async def test_bodies_are_dropped_as_configured(
    tmp_path: Path, keep: str, delivered: bool, failed: bool, size: int
) -> None:
    def answer(recipient: str) -> str:
        return "550 5.1.1 nobody" if recipient.startswith("bad") else "250 ok"

    text = TEXT + b"x" * 70 + b"\r\n" * 1
    text += (b"y" * 70 + b"\r\n") * (size // 72)
    file_config = write_config(tmp_path, {"main": "PORT"}, spool=f", keep_bodies: {keep}")
    async with Upstream({"RCPT": answer}) as up:
        file_config.write_text(file_config.read_text().replace("PORT", f"port: {up.port}, tls: none"))
        async with running(file_config) as rig:
            good, bad = (
                await rig.send("good@example.net", message=text),
                await rig.send("bad@example.net", message=text),
            )
            mixed = await rig.send("good@example.net", "bad@example.net", message=text)
            await rig.settled()
            for number, kept in ((good, delivered), (bad, failed), (mixed, failed)):
                assert (await rig.message(number))["body"] == ("kept" if kept else "dropped")
            # A file goes behind the transaction that says so.
            wanted = sum((delivered, failed, failed)) if size > 256 * 1024 else 0
            content = tmp_path / "spool" / "content"
            await until(lambda: len([f for f in content.iterdir() if f.is_file()]) == wanted)


# -- when a part fails


class Sick:
    """The spool's own method, which fails so many times first; the rest is the real one."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException, times: int) -> None:
        self.real, self.error, self.left = getattr(rig.app.spool, name), error, times
        monkeypatch.setattr(rig.app.spool, name, self)

    async def __call__(self, *arguments: Any) -> Any:
        if self.left:
            self.left -= 1
            raise self.error
        return await self.real(*arguments)


@pytest.mark.parametrize(
    "error", [SpoolFull("the disk of the spool is full"), RuntimeError("a bug")], ids=["disk", "bug"]
)
async def test_what_could_not_be_recorded_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A delivery that happened is not forgotten, also when the loop dies of it and no other mail comes to wake it."""
    async with Upstream() as up, running(write_config(tmp_path, one(up))) as rig:
        Sick(rig, monkeypatch, "record", error, 2)
        number = await rig.send()
        await until(lambda: up.done)
        row = await rig.reaches(number, "delivered")
        assert row["attempts"] == 1 and len(up.done) == 1
        assert await rig.story(number) == ["accepted", "delivered"]
        assert bool(rig.said("record_failed")) is isinstance(error, SpoolError)


async def test_a_claim_that_fails_kills_no_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is told by the spool; an orchestrator must not restart us for it."""
    async with Upstream() as up, running(write_config(tmp_path, one(up))) as rig:
        Sick(rig, monkeypatch, "claim", SpoolFull("the disk of the spool is full"), 2)
        number = await rig.send()
        await until(lambda: rig.said("claim_failed"))
        assert rig.app.health()["alive"]
        await rig.reaches(number, "delivered")
        assert not rig.said("loop_died") and len(up.done) == 1


async def test_a_loop_that_dies_is_told_shown_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Upstream() as up, running(write_config(tmp_path, one(up))) as rig:
        Sick(rig, monkeypatch, "claim", RuntimeError("a bug"), 1)
        number = await rig.send()
        await until(lambda: rig.said("loop_died"))
        health = rig.app.health()
        assert not health["alive"] and "dispatch" in health["why"]
        assert health["accepting"]
        await rig.reaches(number, "delivered")
        await until(lambda: rig.app.health()["alive"])
        assert rig.app.health()["loops"]["dispatch"]["restarts"] == 1
        assert rig.said("loop_died")[0]["loop"] == "dispatch"


async def test_resting_lane_does_not_spin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane whose account rests is looked at when something happens, not all the time."""
    file = write_config(tmp_path, {"main": f"port: {free_port()}, tls: none"}, extra=AT_ONCE)
    async with running(file) as rig:
        await rig.send_many([("a@example.com", (f"r{i}@example.net",), TEXT) for i in range(50)])
        await until(lambda: rig.egress().breaker.is_open and rig.egress().busy == 0)
        await until(lambda: rig.app.scheduler.recorder.unrecorded == 0)
        passes = 0
        real = rig.app.scheduler._pass

        async def counted(now: float) -> bool:
            nonlocal passes
            passes += 1
            return await real(now)

        monkeypatch.setattr(rig.app.scheduler, "_pass", counted)
        begin = clock.monotonic()
        await until(lambda: clock.monotonic() > begin + 1.0)
        assert passes < 20


async def test_counts_come_back_to_nothing(tmp_path: Path) -> None:
    """Whatever the upstream did, no carrier, session or reservation is left over."""
    answers = ["250 ok", "451 4.3.0 no", "421 4.3.2 bye", "550 5.0.0 no"]
    turn = 0

    def answer(_: str) -> str:
        nonlocal turn
        turn += 1
        return answers[turn % 4] if turn < 150 else "250 ok"

    script = {"MAIL": answer, "DOT": answer}
    async with Upstream(script) as up, running(write_config(tmp_path, one(up, ", connections: 4"))) as rig:
        await rig.send_many([("a@example.com", (f"r{i}@example.net",), TEXT) for i in range(120)])
        egress = rig.egress()
        end = time.monotonic() + 60
        while rig.app.spool.queued and time.monotonic() < end:
            egress.breaker.until = 0.0  # its pauses are no part of this
            rig.app.spool.wake()
            await asyncio.sleep(0.02)
        assert rig.app.spool.queued == 0
        await until(lambda: egress.busy == 0)
        assert egress.carriers == 0 and not egress.backlog
        assert egress.sessions == len(egress._idle) <= 4
        await until(lambda: up.open == egress.sessions)
        assert not rig.app.scheduler.carriers.at_work
        rows = [r async for r in rig.app.spool.find(rig.app.admin.service.parse_filter({"state": "delivered"}))]
        assert sorted(r["recipient"] for r in rows) == sorted(up.delivered())


def test_the_bound_of_what_is_not_recorded() -> None:
    assert 0 < loop.MAX_UNRECORDED <= 10_000
