"""What is known of destinations, while it is asked for and forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import until
from lab import lab
from rig import running

from relay.scheduler import sites as module


async def test_forgotten_while_it_is_asked_for_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer comes when nobody needs it any more; the next mail for it asks as for any other."""
    monkeypatch.setattr(module, "AGAIN", 0.0)
    async with lab(tmp_path, {"a.test": "127.0.1.1"}) as here:
        here.domain("a.test", "127.0.1.1", ttl=0)
        async with running(here.config()) as rig:
            await rig.reaches(await rig.send("x@a.test"), "delivered")
            sites = rig.app.scheduler.sites
            here.dns.told["a.test", "MX"].wait = 0.2  # type: ignore[union-attr]
            sites.look("a.test")
            assert sites._under_way
            sites.keep(set(), set())
            await until(lambda: not sites._under_way)
            sites.look("a.test")
            await rig.reaches(await rig.send("y@a.test"), "delivered")
