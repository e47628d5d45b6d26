"""The doors by which comes in what came back: opened with the relay, changed by a reload, closed first of all at a stop.

A door of the configuration that cannot be opened ends a start; at a reload it is told, and tried again until it opens.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from relay import clock, metrics
from relay.feedback.heard import Heard
from relay.feedback.http import Public
from relay.feedback.imap import Poller
from relay.feedback.smtp import FeedbackListener
from relay.listener.activation import ListenError, Sockets
from relay.maillog import MailLog
from relay.settings import Address, Config, Mailbox

TICK = 1.0  # seconds between two looks at who is silent
RENEW = 60.0  # seconds between two looks at a certificate, and tries to open what could not be

IMAP_UP = metrics.Gauge("relay_imap_up", "1 while a mailbox of feedback can be read", ["mailbox"])


class Doors:
    """`open`, `run` as a supervised loop, `stop` and `drain`. `apply` hears of a reload."""

    def __init__(self, config: Config, heard: Heard, log: MailLog, sockets: Sockets) -> None:
        self._config, self._heard, self._log, self._sockets = config, heard, log, sockets
        self.smtp: FeedbackListener | None = None
        self._left: list[FeedbackListener] = []  # closed by a reload; who is inside may finish
        self._pollers: dict[str, tuple[Poller, asyncio.Task[None]]] = {}
        self.public = Public(lambda: self._config, heard, heard.spool, log)
        self._news = asyncio.Event()
        self._told: dict[str, str] = {}
        IMAP_UP.source = lambda: [((n,), float(p.up)) for n, (p, _) in self._pollers.items() if p.up is not None]

    @property
    def listeners(self) -> list[FeedbackListener]:
        return [*self._left, *([self.smtp] if self.smtp else [])]

    def standing(self) -> list[dict[str, Any]]:
        """Each way in: {door, address, up, why}. `up` None: a mailbox that was not looked into yet; `why` it fails."""
        smtp, http = self.smtp, self.public.site
        open_ = {
            "smtp": smtp.where if smtp else "",
            "http": str(Address(http.settings.address.host, http.port)) if http else "",
        }
        wanted = {"smtp": self._config.feedback.smtp, "http": self._config.feedback.http}
        rows = [
            {"door": door, "address": where, "up": bool(where), "why": self._told.get(name, "")}
            for (door, where), name in zip(open_.items(), ("feedback", "feedback.http"), strict=True)
            if wanted[door]
        ]
        return rows + [
            {"door": f"imap:{name}", "address": str(poller.mailbox.host), "up": poller.up, "why": poller.why}
            for name, (poller, _) in sorted(self._pollers.items())
        ]

    async def open(self) -> None:
        """Raises ListenError."""
        try:
            await self._open_smtp()
        except ListenError as error:
            raise ListenError(f"feedback.smtp: {error}") from None
        await self.public.open()
        self._follow_mailboxes()

    def apply(self, config: Config) -> None:
        self._config = config
        self._news.set()

    async def run(self) -> None:
        """Ends only by cancellation."""
        due = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK):
                    await self._news.wait()
            now = clock.monotonic()
            if self._news.is_set() or now >= due:
                for poller, _ in self._pollers.values() if self._news.is_set() else ():
                    poller.hurry()
                self._news.clear()
                due = now + RENEW
                await self._follow()
            self._left = [door for door in self._left if door.sessions]
            for door in self.listeners:
                door.sweep()

    async def _follow(self) -> None:
        """What the configuration in force wants is open, and nothing else."""
        for name, follow in (("feedback", self._follow_smtp), ("feedback.http", self.public.follow)):
            try:
                await follow()
                self._told.pop(name, None)
            except ListenError as error:
                if str(error) != self._told.get(name):
                    self._told[name] = str(error)
                    self._log.error("listener_failed", listener=name, why=str(error))
        self._follow_mailboxes()

    async def _follow_smtp(self) -> None:
        """Raises ListenError."""
        await self._open_smtp()
        if self.smtp is not None:
            await self.smtp.refresh()

    async def _open_smtp(self) -> None:
        """Raises ListenError."""
        wanted = self._config.feedback.smtp
        if self.smtp is not None and self.smtp.settings != wanted:
            self.smtp.stop()
            self._left.append(self.smtp)
            self.smtp = None
        if wanted is not None and self.smtp is None:
            door = FeedbackListener(wanted, self._heard, self._log, self._config.hostname)
            if await door.open(self._sockets):
                self.smtp = door

    def _follow_mailboxes(self) -> None:
        wanted = self._config.feedback.imap
        for name, (poller, task) in list(self._pollers.items()):
            if wanted.get(name) != poller.mailbox:
                task.cancel()
                del self._pollers[name]
        for name in wanted.keys() - self._pollers.keys():
            self._pollers[name] = self._started(wanted[name])

    def _started(self, mailbox: Mailbox) -> tuple[Poller, asyncio.Task[None]]:
        poller = Poller(mailbox, self._heard, self._log)
        return poller, asyncio.get_running_loop().create_task(poller.run(), name=mailbox.login)

    def stop(self) -> None:
        """No new clients, no look into a mailbox; who is inside DATA may finish."""
        for door in self.listeners:
            door.stop()
        self.public.stop()
        for _, task in self._pollers.values():
            task.cancel()

    async def drain(self, timeout: float) -> None:
        await asyncio.gather(
            *(door.drain(timeout) for door in self.listeners),
            self.public.close(timeout),
            *(task for _, task in self._pollers.values()),
            return_exceptions=True,
        )
        self._pollers.clear()
