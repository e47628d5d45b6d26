"""The event loop is never held for long: not by a large message nor by an odd one, on its way in or out.

Judged by the CPU time of each step of the loop, in seconds of a core that nothing else uses.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from asyncio.events import Handle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes import Upstream
from odd import ODD, hand_in
from rig import running, write_config

from tests.pace import yardsticks

LONGEST = 0.05  # seconds of a quiet core
TRIES = 5


class Steps:
    """The longest step of the loop since `forget`, and what it was."""

    def __init__(self) -> None:
        self.longest, self.what = 0.0, ""

    def forget(self) -> None:
        self.longest, self.what = 0.0, ""

    def measured(self, run: Callable[[Handle], None]) -> Callable[[Handle], None]:
        def measured_run(handle: Handle) -> None:
            began = time.thread_time()
            run(handle)
            if (took := time.thread_time() - began) > self.longest:
                self.longest, self.what = took, repr(handle)[:200]

        return measured_run


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    made = Steps()
    gc.collect()
    gc.freeze()  # as the service does; the tests' own objects are many
    monkeypatch.setattr(Handle, "_run", made.measured(Handle._run))
    yield made
    gc.unfreeze()


@pytest.mark.parametrize("name", ODD)
async def test_no_step_is_long(tmp_path: Path, steps: Steps, name: str) -> None:
    best, what = 1.0, "nothing"
    for number in range(TRIES):
        (tmp_path / str(number)).mkdir()
        before = yardsticks()
        spent, step = await longest(tmp_path / str(number), steps, name)
        best, what = min((best, what), (spent * 2 / (before + yardsticks()), step))
        if best < LONGEST:
            return
    raise AssertionError(f"{what} took {1000 * best:.0f} ms of a quiet core at best, wanted are {1000 * LONGEST:.0f}")


async def longest(folder: Path, steps: Steps, name: str) -> tuple[float, str]:
    message, recipients = ODD[name](), 1000 if "recipients" in name else 1
    async with Upstream() as up, running(write_config(folder, {"main": f"port: {up.port}, tls: none"})) as rig:
        await rig.send()
        steps.forget()
        answer = await asyncio.to_thread(hand_in, rig.port, message, recipients)
        held = steps.longest, steps.what  # until here: the upstream is ours, and runs on the same loop
        if os.environ.get("STORM_SHOW"):
            print(f"\n  {name}: {answer[:9]}, longest step {1000 * held[0]:.1f} ms, {held[1]}")
        assert answer[:3] in ("250", "552", "554"), answer
        await rig.settled(60)
        return held
