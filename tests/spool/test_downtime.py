"""A clock that jumps between two runs: nothing expires early, nothing waits for a time that never comes, ids stay unique."""

from __future__ import annotations

import pytest
from conftest import Spools
from hypothesis import given
from hypothesis import strategies as st
from making import DAY, NOW, claim, message, put, rows, settled

from relay.recipient import State
from relay.spool import downtime
from relay.spool.sqlite import SqliteSpool


@given(st.floats(0, 1e10), st.floats(-1e9, 1e9))
def test_small_gaps_are_no_gap(alive_at: float, passed: float) -> None:
    now = alive_at + passed
    passed = now - alive_at  # what is left of it where a float ends: at 300 s that decides
    found = downtime.gap(alive_at, now)
    assert found == pytest.approx(passed if not -60 <= passed <= 300 else 0.0, abs=1e-3)


def test_a_spool_that_remembers_nothing_moves_nothing() -> None:
    assert downtime.gap(None, NOW) == 0.0


async def _filled(spools: Spools) -> SqliteSpool:
    """One of each that waits, and one that is done."""
    spool = await spools.open()
    await put(spool, "done@example.net")
    await spool.record(settled(await claim(spool), State.DELIVERED))
    await put(spool, "deferred@example.net")
    await spool.record(settled(await claim(spool), State.DEFERRED, due=NOW + 600))
    await put(spool, "queued@example.net")
    await put(spool, "held@example.net", state=State.HELD)
    made = message(spool, "later@example.net", due=NOW + 6 * DAY, expires=NOW + 11 * DAY)
    made.send_at = NOW + 6 * DAY
    await spool.accept(made)
    return spool


async def _times(spool: SqliteSpool) -> dict[str, tuple[float, float]]:
    """(due, expires) in seconds from NOW."""
    return {r["recipient"].partition("@")[0]: (r["due_at"] - NOW, r["expires_at"] - NOW) for r in await rows(spool)}


async def test_while_the_relay_does_not_run_no_time_passes_for_mail(spools: Spools) -> None:
    spool = await _filled(spools)
    before = await _times(spool)
    await spool.probe(NOW + 100)
    await spools.close(spool)
    spool = await spools.open(now=NOW + 100 + 10 * DAY)
    after = await _times(spool)
    assert (spool.opened.gap, spool.opened.moved) == (10 * DAY, 4)
    for name in ("queued", "deferred", "held"):
        assert after[name] == (before[name][0], before[name][1] + 10 * DAY)
    assert after["done"] == before["done"]
    # It was to wait for six of those days anyway.
    assert after["later"] == (6 * DAY, pytest.approx(11 * DAY + 4 * DAY + 100))
    assert await spool.expired(NOW + 100 + 10 * DAY) == []


async def test_a_clock_that_was_set_back_makes_nothing_wait_for_it(spools: Spools) -> None:
    spool = await _filled(spools)
    before = await _times(spool)
    await spool.probe(NOW + 100)
    await spools.close(spool)
    spool = await spools.open(now=NOW + 100 - 10 * DAY)
    after = await _times(spool)
    assert (spool.opened.gap, spool.opened.moved) == (-10 * DAY, 4)
    for name in ("queued", "deferred", "held"):
        assert after[name] == (before[name][0] - 10 * DAY, before[name][1] - 10 * DAY)
    assert after["done"] == before["done"]
    assert after["later"][0] == 6 * DAY  # never before what was asked for
    assert all(r["accepted_at"] <= NOW + 100 - 10 * DAY for r in await rows(spool))
    # And forward again: what was taken is given back.
    await spools.close(spool)
    spool = await spools.open(now=NOW + 200)
    assert (await _times(spool))["held"][1] == pytest.approx(before["held"][1], abs=200)


async def test_a_restart_moves_nothing(spools: Spools) -> None:
    spool = await _filled(spools)
    before = await _times(spool)
    await spools.close(spool)
    spool = await spools.open(now=NOW + 299)
    assert (spool.opened.gap, spool.opened.moved) == (0.0, 0)
    assert await _times(spool) == before


async def test_ids_stay_unique_when_the_clock_goes_back(spools: Spools) -> None:
    seen: set[int] = set()
    for now in (NOW, NOW - 10 * DAY, NOW - 20 * DAY, NOW - 20 * DAY, NOW + DAY):
        spool = await spools.open(now=now)
        given_out = [spool.next_id() for _ in range(100)]
        stored = [await put(spool, at=now) for _ in range(3)]
        assert min(given_out) > max(seen, default=0)
        seen |= {*given_out, *stored}
        await spools.close(spool)
