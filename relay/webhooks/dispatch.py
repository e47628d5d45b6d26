"""All endpoints: a task each, so that none waits for another, and nothing of mail for any.

What one has not taken outlives it: an endpoint that is gone from the configuration keeps its place for as long as the stream
still holds what comes next for it, and finds it again if it is configured again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from relay import clock, metrics
from relay.maillog import MailLog
from relay.settings import Config
from relay.spool.errors import SpoolError
from relay.spool.feed import Feed, Parcel, Progress
from relay.webhooks.line import Line
from relay.webhooks.words import Verdict

TICK = 5.0  # seconds between two looks at the figures
FORGET = 3600.0  # seconds between two looks for what is configured no more
RESTART = 1.0  # seconds before a line that died is started again

LAG = metrics.Gauge("relay_webhook_lag_events", "Events of the stream after the last one taken", ["endpoint"])
AGE = metrics.Gauge("relay_webhook_lag_seconds", "Age of the oldest event that an endpoint has not taken", ["endpoint"])
PARCELS = metrics.Gauge("relay_webhook_parcels", "Events apart from the stream", ["endpoint", "state"])
UP = metrics.Gauge("relay_webhook_up", "0 while an endpoint is left alone after a failure", ["endpoint"])


class Unknown(LookupError):
    """No such endpoint; the text names those that there are."""


class Webhooks:
    """`run` in a supervised loop, `apply` at a reload, `stop`."""

    def __init__(self, spool: Feed, config: Callable[[], Config], log: MailLog) -> None:
        self.spool, self.config, self.log = spool, config, log
        self.lines: dict[str, Line] = {}
        self._tasks: dict[Line, asyncio.Task[None]] = {}
        self._newest = 0
        self._changed = asyncio.Event()
        self._stopping = False
        LAG.source = lambda: [((n,), float(max(0, self._newest - line.cursor))) for n, line in self._sorted()]
        AGE.source = lambda: [((n,), self._age(line)) for n, line in self._sorted()]
        UP.source = lambda: [((n,), float(not line.failures and not line.gone)) for n, line in self._sorted()]
        PARCELS.source = lambda: [
            ((n, state), float(count))
            for n, line in self._sorted()
            for state, count in (("waiting", line.waiting), ("dead", line.dead))
        ]

    def _sorted(self) -> Iterable[tuple[str, Line]]:
        return sorted(self.lines.items())

    @staticmethod
    def _age(line: Line) -> float:
        return max(0.0, clock.now() - line.head_at) if line.head_at else 0.0

    # -- the loop

    async def run(self) -> None:
        """Raises SpoolError; to be started again then."""
        forget_at = clock.monotonic()
        while True:
            self._changed.clear()
            await self._match()
            await self._count()
            if clock.monotonic() >= forget_at:
                await self._forget()
                forget_at = clock.monotonic() + FORGET
            try:
                async with asyncio.timeout(TICK):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def apply(self, config: Config) -> None:
        """A changed endpoint goes on where it is, from its next turn on."""
        for name, line in list(self.lines.items()):
            if name in config.webhooks:
                line.change(config.webhooks[name])
            else:
                line.end()
                del self.lines[name]
        self._changed.set()

    async def stop(self, timeout: float) -> None:
        """After `run` was cancelled. What is under way has so many seconds to end."""
        self._stopping = True
        tasks = list(self._tasks.values())
        for line in self._tasks:
            line.end()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def begin(self) -> None:
        """Before mail is let in: a new endpoint begins at the present end of the stream, and hears of the first message."""
        await self._placed(self.config().webhooks)

    async def _placed(self, names: Iterable[str]) -> None:
        cursors = await self.spool.cursors()
        for name in names:
            if name not in cursors:
                await self.spool.progress(Progress(name, await self.spool.last_event()))

    async def _match(self) -> None:
        """A line for each endpoint."""
        new = [endpoint for name, endpoint in self.config().webhooks.items() if name not in self.lines]
        if not new or self._stopping:
            return
        await self._placed(endpoint.name for endpoint in new)
        leaving = {line.name: task for line, task in self._tasks.items() if self.lines.get(line.name) is not line}
        for endpoint in new:
            if endpoint.name in leaving:
                continue  # its last turn is still under way; the next tick sees to it
            line = Line(endpoint, self.spool, self.log, lambda: self.config().tenant_of)
            self.lines[endpoint.name] = line
            task = asyncio.create_task(self._keep(line), name=f"webhook-{endpoint.name}")
            self._tasks[line] = task
            task.add_done_callback(partial(self._over, line))

    def _over(self, line: Line, _: asyncio.Task[None]) -> None:
        self._tasks.pop(line, None)
        self._changed.set()

    async def _keep(self, line: Line) -> None:
        while not line.ending:
            try:
                return await line.run()
            except SpoolError as error:
                self.log.warning("webhook_waits", endpoint=line.name, error=str(error))
            except Exception as error:  # noqa: BLE001 - one endpoint's trouble is not the others'
                self.log.error("webhook_died", endpoint=line.name, error=repr(error), restart_in=RESTART)
            await asyncio.sleep(RESTART)

    async def _count(self) -> None:
        counts = await self.spool.parcel_counts()
        self._newest = await self.spool.last_event()
        for name, line in self.lines.items():
            line.waiting, line.dead, _ = counts.get(name, (0, 0, None))

    async def _forget(self) -> None:
        """Endpoints of earlier configurations, once the stream has lost what came next for them."""
        first = await self.spool.events(0, 1)
        for name, cursor in (await self.spool.cursors()).items():
            if name not in self.config().webhooks and (not first or first[0].id > cursor + 1):
                waiting, dead, _ = (await self.spool.parcel_counts()).get(name, (0, 0, None))
                await self.spool.forget_endpoint(name)
                self.log.warning("webhook_forgotten", endpoint=name, waiting=waiting, dead=dead)

    # -- for operators

    def rows(self) -> list[dict[str, Any]]:
        """Flat, one for each endpoint."""
        now = clock.now()
        return [
            {
                "endpoint": name,
                "kind": "file" if line.endpoint.file else "command" if line.endpoint.command else "url",
                "state": "gone" if line.gone else "failing" if line.failures else "well",
                "cursor": line.cursor,
                "lag": max(0, self._newest - line.cursor),
                "lag_seconds": round(self._age(line), 1),
                "waiting": line.waiting,
                "dead": line.dead,
                "failures": line.failures,
                "failing_since": line.failing_since or None,
                "next_at": line.until if line.until > now else None,
                "error": line.why,
            }
            for name, line in self._sorted()
        ]

    async def dead(self, name: str, after: int, limit: int) -> list[Parcel]:
        """Raises Unknown."""
        return await self.spool.parcels(self._line(name).name, dead=True, after=after, limit=limit)

    async def replay(
        self, name: str, *, dead: bool = False, since: float | None = None, after: int = 0, dry_run: bool
    ) -> int:
        """How many events go out once more: dead letters, or at most so many of the stream, as its filter has them. Raises Unknown."""
        line = self._line(name)
        if dead:
            return (await self.spool.parcel_counts()).get(name, (0, 0, None))[1] if dry_run else await line.revive()
        cursor = after if since is None else await self.spool.event_at(since)
        first = await self.spool.events(0, 1)
        cursor = max(cursor, first[0].id - 1 if first else 0)
        count = max(0, await self.spool.last_event() - cursor)
        if count and not dry_run:
            await line.rewind(cursor)
        return count

    async def drop(self, name: str, *, dry_run: bool) -> int:
        """How many dead letters are forgotten. Raises Unknown."""
        line = self._line(name)
        return (await self.spool.parcel_counts()).get(name, (0, 0, None))[1] if dry_run else await line.drop()

    async def test(self, name: str) -> dict[str, Any]:
        """What came of one event more, and after how many seconds. Raises Unknown."""
        line, began = self._line(name), clock.monotonic()
        said = await line.test()
        taken = said.verdict is Verdict.TAKEN
        return {"endpoint": name, "taken": taken, "why": said.why, "seconds": round(clock.monotonic() - began, 3)}

    def _line(self, name: str) -> Line:
        try:
            return self.lines[name]
        except KeyError:
            there = ", ".join(sorted(self.lines)) or "none"
            raise Unknown(f"no webhook '{name}' is configured; there is {there}") from None
