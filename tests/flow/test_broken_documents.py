"""What was learnt and cannot be read: another version wrote it, a sick disk, or a clock that was wrong. The relay starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import Upstream
from rig import running, write_config

KEYS = ("egress main", "shared destination d", "shared egress mx", "reputation", "shaping", "suppressed", "suspensions")
LEARNT = {"rate": "fast", "until": "never", "why": 5}
RAMP = {"level": -4, "allowance": "x", "day": "", "count": 0, "held": "", "bad": "", "cap": None, "halved": 0}
EXTRA = """direct: {mx: {source: 127.0.0.1, warm_up: {start: 2024-01-01, first: 5/d, until: 50/d}}}
destinations: [{name: d, match: {recipient: "*@d.example"}, per: relay, limits: [5/s]}]"""
BROKEN = (
    "{",
    "5",
    "null",
    "[]",
    '["x"]',
    '{"rows": 5}',
    '{"rows": "[5]"}',
    '{"rows": "[{\\"address\\": [], \\"why\\": 1, \\"at\\": 2, \\"until\\": 3}]"}',
    '{"pace": 5, "breaker": []}',
    json.dumps({"pace": LEARNT | {"warm-up": RAMP}} | LEARNT | {"warm-up": RAMP, "egress main": [["x"]]}),
    json.dumps({"pace": {"rate": 0, "until": 1e300, "warm-up": RAMP | {"level": 10**18}}}),
    '[{"kind": "class", "value": null, "until": null, "reason": "", "at": 0}]',
    '[{"kind": "class", "value": "x", "until": "x", "reason": "", "at": 0}]',
    '{"egress main": [[0, 99999999999999999999999, 0, 0, 0]], "sender x": [["x", 1, 1, 1, 1]]}',
)


@pytest.mark.parametrize("text", BROKEN)
async def test_it_starts_and_sends(tmp_path: Path, text: str) -> None:
    async with Upstream() as up:
        more = "warm_up: {start: 2024-01-01, first: 1000/d, until: 5000/d, spread: none}"
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none, {more}"}, extra=EXTRA)
        async with running(file) as rig:
            await rig.app.spool.remember(dict.fromkeys(KEYS, text))
            rig.app.scheduler.memory.sources.clear()
        async with running(file) as rig:
            if "1e+300" not in text:
                await rig.reaches(await rig.send(), "delivered")
            await rig.app.scheduler.remember()
