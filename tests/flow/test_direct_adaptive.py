"""How much mail by MX goes where at once: places shared by all destinations, limits, hosts that are busy, dead or greylist."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from fakes import Later
from lab import Lab, burst, lab, sites, soon, trunk
from rig import running

TEN = {f"d{n}.test": f"127.0.1.{n}" for n in range(1, 11)}


def watched(here: Lab) -> list[int]:
    """The most sessions that all hosts had at once, kept up to date."""
    most = [0]
    for host in here.mx.values():
        before = host.action

        def action(command: str, argument: str, otherwise: object, before=before) -> object:  # type: ignore[no-untyped-def]
            most[0] = max(most[0], here.open)
            return before(command, argument, otherwise)

        host.action = action  # type: ignore[method-assign]
    return most


async def test_three_places_for_ten_destinations(tmp_path: Path) -> None:
    async with lab(tmp_path, TEN) as here:
        most = watched(here)
        file = here.config(direct="mx-1: {connections: 3}", routes="  - {name: all, via: mx-1}")
        async with running(file) as rig:
            began = asyncio.get_running_loop().time()
            await burst(rig, [f"u{i}@{name}" for i in range(6) for name in TEN])
            await rig.settled(20)
            assert asyncio.get_running_loop().time() - began < 8
            assert Counter(r.partition("@")[2] for r in here.delivered) == dict.fromkeys(TEN, 6)
            assert most[0] <= 3
            assert trunk(rig, "mx-1").sessions == here.open
        assert trunk(rig, "mx-1").sessions == 0
        assert all(way.sessions == 0 for way in sites(rig, "mx-1"))


async def test_a_destination_with_much_mail_starves_nobody(tmp_path: Path) -> None:
    """Two places, and one destination has mail without end: the others come to their turn within seconds."""
    hosts = {f"d{n}.test": f"127.0.1.{n}" for n in range(1, 4)}
    async with lab(tmp_path, hosts) as here:
        here.mx["d1.test"].script["DOT"] = lambda _: Later(0.05, "250 2.0.0 ok")
        file = here.config(direct="mx-1: {connections: 2}", routes="  - {name: all, via: mx-1}")
        async with running(file) as rig:
            await burst(rig, [f"u{i}@d1.test" for i in range(1000)])
            await soon(lambda: here.mx["d1.test"].open == 2)
            late = await burst(rig, ["x@d2.test", "x@d3.test"])
            for number in late:
                await rig.reaches(number, "delivered", deadline=9)
            assert rig.app.spool.queued > 500
