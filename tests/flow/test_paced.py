"""What an account's pace and its pauses must not do: spin, hold up what may leave, or touch who was not spoken of."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fakes import Upstream
from rig import running
from test_blame import rules

HOURLY = ", limits: [5/h]"


async def test_an_upstream_that_greets_with_too_fast_is_not_dialled_in_a_circle(tmp_path: Path) -> None:
    """The second complaint about connections is news as well: each makes the pause longer, and writes nothing meanwhile."""
    busy = '{reply: "^4.. .*too frequent connects", scope: account, then: slow, wait: 200ms, means: too many dials}'
    async with (
        Upstream({"BANNER": "450 4.7.1 too frequent connects"}) as up,
        running(rules(tmp_path, {"main": up}, busy)) as rig,
    ):
        number = await rig.send()
        await asyncio.sleep(1.5)
        assert 3 <= len(up.sessions) <= 9, len(up.sessions)
        assert (await rig.row(number))["attempts"] == 0
