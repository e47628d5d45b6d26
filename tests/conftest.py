"""What every room of the tests shares: free ports, a deadline instead of a sleep, and the corpora."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import hypothesis
import pytest
import uvloop

from relay.spool.sqlite import SqliteSpool
from tests.ports import free_port

# How long a test takes says what else the machine has to do.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

NOW = 1_800_000_000.0  # the time of every test that takes it as an argument
ROOT = Path(__file__).resolve().parent.parent
_CORPORA = Path(os.environ.get("RELAY_CORPORA", ROOT.parent / "shared" / "corpora"))


async def until(condition: Callable[[], object], deadline: float = 60.0) -> None:
    """Wait for a condition, not for a time; fails with its name."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"not true within {deadline} s: {condition}"
        await asyncio.sleep(0.005)


# Where several run at once, files that take minutes come first, so that none is left over at the end.
ORDER = ("service", "faults", "flow", "fuzz", "corpus", "spool", "pure")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {ROOT / "tests" / name: number for number, name in enumerate(ORDER)}
    items.sort(key=lambda item: place.get(item.path.parent, len(place)))


LONGEST = 600  # seconds that a test may take where several run at once, which no storm does


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"this test takes longer than {LONGEST} s")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """One that hangs fails, and tells where: else nobody would hear of the others."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LONGEST)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pytest_collection_finish() -> None:
    """What was collected stays: a round of the garbage collector over it takes as long as what some tests measure."""
    gc.collect()
    gc.freeze()


@pytest.fixture(name="free_port")
def _free_port() -> Callable[[], int]:
    return free_port


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of real-world samples; a test that needs it is skipped without."""
    if not _CORPORA.is_dir():
        pytest.skip(f"no corpora at {_CORPORA}: set RELAY_CORPORA to the folder that holds them")
    return _CORPORA


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The product runs on uvloop where there is one: a module that says BOTH_LOOPS runs on either."""
    both = getattr(getattr(item, "module", None), "BOTH_LOOPS", False)
    return {"asyncio": asyncio.new_event_loop} | ({"uvloop": uvloop.new_event_loop} if both else {})


class Spools:
    """Opens spools of one implementation, each in a folder of its own, and closes what a test left open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: list[SqliteSpool] = []

    def path(self, name: str = "spool") -> Path:
        return self.folder / name / "spool.db"

    async def open(self, name: str = "spool", now: float = NOW) -> SqliteSpool:
        spool = await SqliteSpool.open(self.path(name), now)
        spool.reserve = 0
        self._open.append(spool)
        return spool

    async def close(self, spool: SqliteSpool) -> None:
        self._open.remove(spool)
        await spool.close()

    async def close_all(self) -> None:
        while self._open:
            await self.close(self._open[-1])


@pytest.fixture(params=["sqlite"])
async def spools(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Spools]:
    """Every implementation of the spool's protocol: a further one joins the conformance suite here."""
    assert request.param == "sqlite"
    made = Spools(tmp_path)
    yield made
    await made.close_all()
