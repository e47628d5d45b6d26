"""The relay in front of a sink that misbehaves: all arrives, nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from rig import running, write_config
from sinks import sink

COUNT = 60


@pytest.mark.parametrize(("profile", "speed"), [("flaky", 100), ("greylist", 100), ("slow", 20)])
async def test_all_arrives_once(tmp_path: Path, profile: str, speed: float) -> None:
    async with sink(tmp_path, profile, speed, seed=1) as bench:
        file = write_config(tmp_path, {"main": f"port: {bench.port}, tls: none"})
        async with running(file) as rig:
            await rig.send_many(
                ("app@example.com", (f"r{n}@example.net",), b"Subject: t\r\nMessage-ID: <%d@x.example>\r\n\r\n" % n)
                for n in range(COUNT)
            )
            await rig.settled(150)  # five failures in a row, which chance may bring, make it rest for a minute
            states = {row["state"] for row in await rig.rows()}
        tally = bench.sink.tally
        assert (tally.kept, len(tally.message_ids), tally.doubled) == (COUNT, COUNT, {})
        assert states == {"delivered"}
        assert profile == "slow" or tally.refused()
