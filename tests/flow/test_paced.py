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


async def test_who_is_refused_for_good_with_the_session_takes_nobody_with_him(tmp_path: Path) -> None:
    """A 421 to one RCPT ends the session; what it says of that address is not said of those that were not asked."""
    dead = '{reply: "no such user", at: [rcpt], scope: recipient, verdict: permanent, means: the address is dead}'
    script = {"RCPT": lambda a: "421 4.1.1 no such user, closing" if "dead" in a else "250 Ok"}
    for pipelining in (False, True):
        async with Upstream(script, extensions=("PIPELINING",) if pipelining else ()) as up:
            folder = tmp_path / str(pipelining)
            folder.mkdir()
            async with running(rules(folder, {"main": up}, dead)) as rig:
                number = await rig.send("a@example.net", "dead@example.net", "b@example.net")
                await rig.settled()
                rows = {r["recipient"][0]: (r["state"], r["attempts"]) for r in await rig.rows(number)}
                assert rows == {"a": ("delivered", 1), "d": ("failed", 1), "b": ("delivered", 1)}
                assert sorted(up.delivered()) == ["a@example.net", "b@example.net"]
