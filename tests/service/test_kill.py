"""kill -9 at random moments under load: nothing that was answered 250 is lost, and only what was in flight comes twice.

Short as part of the tests; `make storm` runs it long. STORM_KILLS, STORM_MAILS, STORM_STOPS and STORM_SEED set the size.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from .storm import Storm


@pytest.mark.storm
async def test_nothing_is_lost(tmp_path: Path) -> None:
    kills = int(os.environ.get("STORM_KILLS", "6"))
    mails = int(os.environ.get("STORM_MAILS", "1500"))
    seed = int(os.environ.get("STORM_SEED") or random.SystemRandom().randrange(1 << 32))
    show = bool(os.environ.get("STORM_SHOW"))
    storm = Storm(tmp_path, kills, mails, seed, show)
    await storm.run()
    result = storm.result()
    told = f"seed {seed}\n{result.table()}"
    if show:
        print(f"\n{told}")
    assert result.kills == kills, told
    assert result.accepted >= mails, told
    assert result.refused == [], told
    assert result.unknown == 0, told
    assert result.lost == 0, told
    assert result.damaged == 0, told
    assert result.unexplained == 0, told
    assert result.duplicates <= result.in_flight, told
    # The storm must have blown: else the above says little.
    assert result.both >= kills // 2, told


@pytest.mark.storm
async def test_restarts_send_nothing_twice(tmp_path: Path) -> None:
    """SIGTERM under the same load: what has sent its final dot is awaited, what has not goes back; each ends with 0."""
    stops = int(os.environ.get("STORM_STOPS", "3"))
    seed = int(os.environ.get("STORM_SEED") or random.SystemRandom().randrange(1 << 32))
    storm = Storm(tmp_path, stops, 200 * stops, seed, bool(os.environ.get("STORM_SHOW")), gentle=True)
    await storm.run()
    result = storm.result()
    told = f"seed {storm.seed}\n{result.table()}"
    if storm.show:
        print(f"\n{told}")
    assert result.accepted >= 200 * stops, told
    assert result.held == 0, told
    assert (result.lost, result.damaged, result.unknown, result.refused) == (0, 0, 0, []), told
    assert result.duplicates == 0, told
    assert any(k.awaiting_dot for k in storm.kills), told
