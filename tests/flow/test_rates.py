"""Limits over a real session: as fast as the limit says, evenly, and what is too large holds nobody up."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from fakes import Later, Upstream
from rig import running, until
from test_blame import many, quiet, rules

from relay import clock
from tests.pace import jerks


async def test_a_speed_by_the_second_is_reached_and_even_though_each_reply_takes_long(tmp_path: Path) -> None:
    """Three sessions at 300 ms could do ten a second; eight are let go."""
    begun: list[float] = []

    def mail(_: str) -> str:
        begun.append(clock.monotonic())
        return "250 ok"

    script = {"MAIL": mail, "DOT": lambda _: Later(0.3, "250 ok")}
    async with (
        Upstream(script) as up,
        running(rules(tmp_path, {"main": up}, more=", limits: [8/s]")) as rig,
        jerks() as felt,
    ):
        await rig.send_many(many(50))
        await until(lambda: len(begun) == 50, 60.0)
        # One after the other would be three times as slow; a disk that stands still for a moment is not.
        # What the loop was held up for is made up for by a few that follow at once, and not all of it.
        early_by = 2 * felt.worst
        assert 49 / 8 * 0.99 - early_by <= begun[-1] - begun[0] <= 49 / 8 / 0.6 + felt.lost
        assert all(late - early > 0.99 - early_by for early, late in zip(begun, begun[8:], strict=False))
        apart = sorted(late - early for early, late in pairwise(begun))
        assert apart[min(5 + 2 * felt.count, 30)] > 0.05 - early_by  # not in bursts
        await rig.settled()


async def test_a_message_too_large_for_what_is_left_waits_alone(tmp_path: Path) -> None:
    """Nor is it claimed in a circle: it waits until its size is left."""
    async with Upstream() as up, running(rules(tmp_path, {"main": up}, more=", limits: [100kB/h]")) as rig:
        large = b"Subject: x\r\n\r\n" + b"x" * 70 + b"\r\n" + (b"y" * 70 + b"\r\n") * 900
        await rig.send_many([("a@example.com", (f"first{i}@example.net",), large) for i in range(2)])
        await until(lambda: len(up.delivered()) == 1)
        await rig.send_many(many(10))
        await until(lambda: len(up.delivered()) == 11)
        await quiet(rig)
        rows = [row for row in await rig.rows() if row["state"] != "delivered"]
        assert len(rows) == 1 and rows[0]["attempts"] == 0
        assert "limit of 100kB/h is used up" in rows[0]["why"] and 3500 < rows[0]["next_at"] - clock.now() < 3700
