"""How mail is received, counted over real sessions: by whom it is asked, and what a warm-up makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lab import burst, lab, trunk
from rig import Rig, running
from test_deliver_login import metric

from relay import clock
from relay.reply import Stage
from relay.scheduler.standing import JUDGE_EVERY

HOSTS = {"a.test": "127.0.1.1", "b.test": "127.0.1.2"}
WARM_UP = "warm_up: {start: 2020-01-01, first: 1000/d, until: 5000/d, spread: none, hold_above: {bounces: 2%}}"
DIRECT = "  - {name: all, via: mx-1}"


def ramp(rig: Rig, rule: str) -> Any:
    """Of the entry, of the rule for all egresses, or of the one way that there is."""
    egresses = rig.app.scheduler.egresses
    if rule == "per: relay":
        return egresses.shared[0].ramp
    return trunk(rig, "mx-1").pace.ramp if rule == "per: mx" else next(iter(egresses.of("mx-1"))).pace.ramp


@pytest.mark.parametrize("rule", ["per: mx", "per: egress", "per: relay"])
async def test_bounces_hold_the_warm_up_of_what_leaves_by_mx(tmp_path: Path, rule: str) -> None:
    """It is one for all destinations of an entry, or of a rule; each destination's mail was counted for itself alone."""
    async with lab(tmp_path, HOSTS, {"RCPT": "550 5.1.1 no such user"}) as here:
        own = rule == "per: mx"
        file = here.config(
            rule if own else f"{rule}, {WARM_UP}",
            direct=f"mx-1: {{{f'source: 127.0.2.1, {WARM_UP}' if own else 'source: 127.0.2.1'}}}",
            routes=DIRECT,
        )
        async with running(file) as rig:
            for number in await burst(rig, [f"u{i}@{name}" for i in range(15) for name in HOSTS]):
                await rig.reaches(number, "failed")
            assert not ramp(rig, rule).held
            rig.app.scheduler.standing.look(clock.now() + JUDGE_EVERY)
            assert ramp(rig, rule).held.startswith("bounces 100.00%")
            assert "bounces 100.00%" in rig.said("warm_up")[0]["what"]


async def test_the_score_of_an_egress_is_over_all_its_destinations(tmp_path: Path) -> None:
    direct = "mx-1: {source: 127.0.2.1}, mx-2: {source: 127.0.2.2}"
    async with lab(tmp_path, HOSTS) as here, running(here.config(direct=direct, routes=DIRECT)) as rig:
        here.mx["b.test"].script = {Stage.RCPT.name: "550 5.1.1 no such user"}
        for name, state in (("a.test", "delivered"), ("b.test", "failed")):
            for number in await burst(rig, [f"u{i}@{name}" for i in range(10)]):
                await rig.reaches(number, state)
        standing = rig.app.scheduler.standing
        rows = {(row["what"], row["name"]): row["tried"] for row in standing.rows(clock.now())}
        assert rows["egress", "mx-1"] == 20
        assert rows["way", "mx-1 to lab/mx1.a.test"] == rows["site", "lab/mx1.b.test"] == 10
        assert metric("relay_reputation_score", egress="mx-1") == 0.0
        with pytest.raises(ValueError, match="not enough values"):
            metric("relay_reputation_score", egress="mx-2")  # nothing was tried by it
