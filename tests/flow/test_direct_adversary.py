"""A stranger's domain, its DNS, hosts and policy, against everybody else's mail: it harms nobody's but its own."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from fakes import SILENT
from lab import burst, lab, sites, soon
from rig import running
from simmx import SimMx

DAY = "  default: {retry: {schedule: [1h], give_up: 1d}}"
QUOTA = "450 4.7.1 this sender has exceeded its 24-hour sending limit"

# -- lanes


@pytest.mark.parametrize("says", [{"RCPT": QUOTA}, {"BANNER": "421 4.7.0 too many connections"}, {"BANNER": "554 no"}])
async def test_a_backup_of_a_strangers_speaks_for_no_lane_of_others(tmp_path: Path, says: dict[str, str]) -> None:
    """Its best host is a name of the victim's zone that leads nowhere, so that its backup, the stranger's own, takes part."""
    async with lab(tmp_path, {"victim.test": "127.0.1.1", "evil.test": "127.0.1.2"}) as here:
        here.dns.say("evil.test", "MX", "1 gone.victim.test.", "2 mx1.evil.test.")
        here.dns.say("gone.victim.test", "A")
        here.dns.say("gone.victim.test", "AAAA")
        here.mx["evil.test"].script |= says
        async with running(here.config(rules="name: own, match: {mx: '*.victim.test'}", classes=DAY)) as rig:
            await burst(rig, [f"u{n}@evil.test" for n in range(8)])
            await soon(lambda: here.mx["evil.test"].visits)
            await asyncio.sleep(0.3)
            await rig.reaches(await rig.send("x@victim.test"), "delivered", deadline=3)
            (way,) = (way for way in sites(rig) if way.site == "own")
            assert not way.breaker.failures and not way.pace.rate and not way.fewer
