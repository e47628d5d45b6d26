"""The queue as a simulation wants it: what waits, page by page, with all that its turn hangs on.

Pages are short, so that a hundred thousand recipients hold nobody up. What moves meanwhile is told where it was found.
Simulated here it is in a process of its own, bounded in time and memory: `Workshop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from relay import clock
from relay.admin.ports import Outlook
from relay.recipient import State
from relay.returned.bounded import environment
from relay.settings import Config
from relay.spool import Filter, Spool

PAGE = 1000
LONGEST = 20.0  # seconds for one simulation, from its start
MEMORY = 1024  # MiB of its address space
NAMES = (
    *(
        "message",
        "n",
        "lane",
        "priority",
        "due_at",
        "expires_at",
        "recipient",
        "sender",
        "from",
        "user",
        "class",
        "tag",
    ),
    *("listener", "client", "size"),
)


Pages = Callable[[], AsyncIterator[dict[str, Any]]]


class Keeping(Protocol):
    """What the scheduler offers for it."""

    async def remember(self) -> None: ...
    def hosts(self) -> Mapping[str, tuple[str, ...]]: ...


class Simulated:
    def __init__(self, spool: Spool, keeping: Keeping, outlook: Outlook, config: Callable[[], Config]) -> None:
        self.spool, self.keeping, self.outlook = spool, keeping, outlook
        self.workshop = Workshop(self.pages, config)

    async def page(self, after: tuple[int, int] | None) -> dict[str, Any]:
        """The recipients behind a cursor; the first page has what was spent and learnt as well."""
        rows: list[dict[str, Any]] = []
        wanted = Filter(states=(State.QUEUED, State.DEFERRED))
        async for row in self.spool.find(wanted, after, PAGE + 1):
            rows.append({name: row[name] for name in NAMES})
            if len(rows) > PAGE:
                break
        more, rows = len(rows) > PAGE, rows[:PAGE]
        facts = ((number, self.outlook.lane_facts_of(number)) for number in {row["lane"] for row in rows})
        lanes = {str(number): found.with_overrides({}) for number, found in facts if found is not None}
        rows = [row for row in rows if str(row["lane"]) in lanes]
        last = rows[-1] if rows else {}
        page = {"recipients": rows, "lanes": lanes, "next": f"{last['message']}.{last['n']}" if more and last else None}
        return page if after else page | await self._state()

    async def _state(self) -> dict[str, Any]:
        await self.keeping.remember()  # what was spent since the last look is durable, and told
        return {
            "now": clock.now(),
            "spent": await self.spool.spent(),
            "documents": await self.spool.remembered(),
            "hosts": self.keeping.hosts(),
        }

    async def pages(self) -> AsyncIterator[dict[str, Any]]:
        """All of them."""
        after: tuple[int, int] | None = None
        while True:
            page = await self.page(after)
            yield page
            if not page["next"]:
                return
            message, _, n = page["next"].partition(".")
            after = int(message), int(n)


class Unready(Exception):
    """Not now, or not here; the text says why, and what to do."""


class Workshop:
    """Simulates, one at a time, in a process of its own: mail goes on meanwhile. The rules are those in force, and its answer is
    JSON as `relay.simulate.worker` has it."""

    def __init__(
        self, pages: Pages, config: Callable[[], Config], *, longest: float = LONGEST, memory: int = MEMORY
    ) -> None:
        self._pages, self._config, self._longest, self._memory = pages, config, longest, memory
        self._turn = asyncio.Lock()

    async def run(self, asked: Mapping[str, Any]) -> bytes:
        """`asked`: as the worker wants it. Raises Unready."""
        if self._turn.locked():
            raise Unready("another simulation is under way; try again when it has ended")
        async with self._turn:
            worker = await self._begun()
            try:
                async with asyncio.timeout(self._longest):
                    _, made = await asyncio.gather(self._hand(worker, asked), self._answer(worker))
                    code = await worker.wait()
            except TimeoutError:
                text = f"it takes longer than {self._longest:g} s; ask for less at once, or `relay simulate`"
                raise Unready(text) from None
            finally:
                if worker.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        worker.kill()
                    await worker.wait()
            if code or not made:
                raise Unready(f"the simulation broke off ({code}); ask for less at once, or `relay simulate`")
            return made

    async def _begun(self) -> Process:
        seconds = str(round(self._longest))
        command = (sys.executable, "-P", "-m", "relay.simulate.worker", str(self._memory), seconds)
        try:
            return await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment(), cwd="/", start_new_session=True
            )
        except OSError as error:
            raise Unready(f"no process can be started: {error.strerror}") from None

    async def _hand(self, worker: Process, asked: Mapping[str, Any]) -> None:
        pipe = worker.stdin
        assert pipe is not None
        with contextlib.suppress(ConnectionError):  # it has ended: its answer says of what
            pipe.write(pickle.dumps(self._config()))
            pipe.write(pickle.dumps({**asked, "now": clock.now()}))
            if asked["queue"]:
                async for page in self._pages():
                    pipe.write(pickle.dumps(page))
                    await pipe.drain()
            pipe.close()
            await pipe.wait_closed()

    @staticmethod
    async def _answer(worker: Process) -> bytes:
        assert worker.stdout is not None
        return await worker.stdout.read()
