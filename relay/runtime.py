"""One immutable configuration at a time, and the loops that run under it.

A reload is one assignment: the whole new file is read and checked first; a bad one changes nothing and says why. What is
changed at run time (`config.overlay`) is laid over the file: it is durable before it is in force, and stays over restarts and
reloads until the file says something else there, or it is taken back. It never stops a start. Loops are named and supervised:
one that dies is told, started again after a pause, and fails the watchdog until it runs.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from relay import clock, metrics
from relay.config import overlay
from relay.config.load import ConfigError, load, overlaid, under
from relay.config.overlay import DOCUMENT, Changes
from relay.maillog import MailLog
from relay.policy.routing import Question
from relay.settings import Config
from relay.spool import SpoolError

RESTART_AFTER = 1.0
MANY_DESCRIPTORS = 1 << 16

RELOADS = metrics.Counter("relay_config_reloads_total", "Reloads by result", ["result"])
LAST_RELOAD = metrics.Gauge("relay_config_last_reload_successful", "1 if the last reload was taken")
LOOPS = metrics.Gauge("relay_loop_up", "1 while a named loop runs", ["loop"])
RESTARTS = metrics.Counter("relay_loop_restarts_total", "Times that a named loop died and was started again", ["loop"])


class Runtime:
    """Holds the generation in force; `subscribers` hear of the next one.

    `keep`: writes documents of the spool, and is set before anything is changed. `by`: why this generation came.
    """

    def __init__(self, config: Config, log: MailLog) -> None:
        self.config, self.log = config, log
        self.started = config  # what a restart would change is told against this one
        self.generation = 1
        self.by = "start"
        self.last_error = ""
        self.subscribers: list[Callable[[Config], None]] = []
        self.changes: Changes = {}
        self.keep: Callable[[Mapping[str, str | None]], Awaitable[None]]
        self._changing = asyncio.Lock()  # one after the other
        self._unkept = asyncio.Event()  # the spool may know of other changes than those in force
        LAST_RELOAD.source = lambda: [((), float(not self.last_error))]

    def ask(self, suspended: tuple[Question, ...]) -> Config:
        """The same configuration, whose lanes answer these questions for what is suspended by hand."""
        self.config = replace(self.config, suspended=suspended)
        return self.config

    def reload(self) -> tuple[bool, list[str]]:
        """(was it taken, what to know). Keeps the old configuration where the new one is bad. What was changed at run time stays,
        but where the file says something else than it did."""
        fresh, lines = self._file()
        if fresh is None:
            return False, lines
        fresh, changes, dropped = under(fresh, self.changes.values())
        if dropped:
            self._unkept.set()
        return True, self._reloaded(fresh, changes, dropped)

    async def reset(self, who: str) -> tuple[bool, list[str]]:
        """As `reload`, and takes all back that was changed at run time. Raises SpoolError, and then nothing is."""
        async with self._changing:
            taken = False
            try:
                await self.keep({DOCUMENT: None})
                fresh, lines = self._file()
                if fresh is None:
                    return False, lines
                dropped = overlay.taken_back(self.changes, f"a reset by {who}")
                taken, lines = True, self._reloaded(fresh, {}, dropped)
                return True, lines
            finally:
                if not taken:
                    self._unkept.set()

    def _file(self) -> tuple[Config | None, list[str]]:
        """What the file says now; None, and what is wrong with it."""
        source = self.config.source
        if source is None:
            return None, ["there is no configuration file: the relay runs its built-in demonstration"]
        try:
            fresh = load(source)
        except ConfigError as error:
            self.last_error = str(error)
            RELOADS.inc(1, "refused")
            lines = str(error).splitlines()
            for line in lines:
                self.log.error("config_refused", problem=line)
            return None, lines
        self.last_error = ""
        RELOADS.inc(1, "taken")
        return fresh, []

    def _reloaded(self, fresh: Config, changes: Changes, dropped: list[str]) -> list[str]:
        """Takes it, and says what to know."""
        notes = [*dropped, *fresh.warnings, *_needs_restart(self.started, fresh)]
        self._take(fresh, changes, "reload")
        self.log.event("config_loaded", file=fresh.source, generation=self.generation)
        for note in notes:
            self.log.warning("config_note", note=note)
        return notes

    def _take(self, fresh: Config, changes: Changes, by: str) -> None:
        self.config = fresh = replace(fresh, suspended=self.config.suspended)
        self.changes, self.by = changes, by
        self.generation += 1
        for subscriber in self.subscribers:
            subscriber(fresh)

    # -- what is changed at run time

    def adopt(self, documents: Mapping[str, str]) -> None:
        """What the run before had changed, at a start. What is damaged, or no longer fits, is told and left out."""
        if DOCUMENT not in documents or self.config.source is None:
            return
        try:
            found = overlay.read(documents[DOCUMENT])
        except (TypeError, ValueError) as error:
            self.log.error("not_remembered", what=DOCUMENT, error=repr(error))
            return
        self.config, self.changes, dropped = under(self.config, found)
        for note in dropped:
            self.log.error("change_dropped", note=note)
        if dropped:
            self._unkept.set()

    async def change(self, section: str, name: str, wanted: Mapping[str, Any], who: str) -> list[str]:
        """Some keys of an entry, None takes one back; in force, and durable, when it returns with what to know.

        Raises LookupError where the file has no such entry, ConfigError for what it may not be (then nothing is changed),
        and SpoolError.
        """
        async with self._changing:
            try:
                while True:  # until no reload came between: it has another file, or other changes
                    before, changes = self.config, self.changes
                    fresh, changes = self._changed(before, changes, (section, name), wanted, who)
                    await self.keep({DOCUMENT: overlay.document(changes)})
                    if self.config.tree is before.tree:
                        break
                notes = [note for note in fresh.warnings if note not in before.warnings]
                self._take(fresh, changes, "change")
            except BaseException:
                self._unkept.set()
                raise
        return notes

    def _changed(
        self, config: Config, changes: Changes, owner: tuple[str, str], wanted: Mapping[str, Any], who: str
    ) -> tuple[Config, Changes]:
        """Raises LookupError, ConfigError."""
        if config.source is None:
            raise LookupError("there is no configuration file: the relay runs its built-in demonstration")
        if overlay.place_of(config.tree, owner) is None:
            raise LookupError(f"{'.'.join(owner)} is no entry of {config.source}, or none with a name")
        for key, value in wanted.items():
            changes = overlay.changed(config.tree, changes, (*owner, key), value, who, clock.now())
        return overlaid(config, changes), changes

    async def keep_changes(self) -> None:
        """A loop: what a reload dropped is forgotten by the spool too. Until it is cancelled."""
        while True:
            await self._unkept.wait()
            async with self._changing:
                self._unkept.clear()
                try:
                    await self.keep({DOCUMENT: overlay.document(self.changes)})
                except (SpoolError, OSError) as error:
                    self._unkept.set()
                    self.log.error("not_remembered", what=DOCUMENT, error=str(error))
            if self._unkept.is_set():
                await asyncio.sleep(RESTART_AFTER)


def _needs_restart(old: Config, new: Config) -> list[str]:
    pairs = {
        "listen": (old.listen, new.listen),
        "spool.path": (old.spool.path, new.spool.path),
        "admin": (replace(old.admin, audit=0.0), replace(new.admin, audit=0.0)),  # that one is taken at once
        "probes": (old.probes, new.probes),
        "hostname": (old.hostname, new.hostname),
    }
    return [f"{key}: changed; it takes effect with the next restart" for key, (a, b) in pairs.items() if a != b]


@dataclass(slots=True)
class Loop:
    name: str
    run: Callable[[], Awaitable[None]]
    task: asyncio.Task[None] | None = None
    up: bool = False
    restarts: int = 0
    error: str = ""


class Supervisor:
    """Runs named loops until `stop`."""

    def __init__(self, log: MailLog) -> None:
        self.log = log
        self.loops: dict[str, Loop] = {}
        LOOPS.source = lambda: [((loop.name,), float(loop.up)) for loop in self.loops.values()]

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        loop = self.loops[name] = Loop(name, run, up=True)  # so is one that has just been started
        loop.task = asyncio.get_running_loop().create_task(self._keep(loop), name=f"loop-{name}")

    async def _keep(self, loop: Loop) -> None:
        while True:
            loop.up = True
            try:
                await loop.run()
                loop.error = "it ended"
            except asyncio.CancelledError:
                loop.up = False
                raise
            except Exception as error:  # noqa: BLE001 - whatever killed the loop, mail must move again
                loop.error = repr(error)
            loop.up = False
            loop.restarts += 1
            RESTARTS.inc(1, loop.name)
            self.log.error("loop_died", loop=loop.name, error=loop.error, restart_in=RESTART_AFTER)
            await asyncio.sleep(RESTART_AFTER)

    @property
    def down(self) -> list[str]:
        return [loop.name for loop in self.loops.values() if not loop.up]

    async def stop(self, *names: str) -> None:
        """All, or those named."""
        tasks = []
        for loop in list(self.loops.values()):
            if not names or loop.name in names:
                del self.loops[loop.name]
                if loop.task is not None:
                    loop.task.cancel()
                    tasks.append(loop.task)
        await asyncio.gather(*tasks, return_exceptions=True)


def raise_descriptor_limit() -> int:
    """Descriptors that this process may have: as many as it is allowed to ask for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else MANY_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return min(wanted, MANY_DESCRIPTORS)


def notify(state: str) -> None:
    """One message to systemd, if it listens (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # A manager that does not read must not hold up mail: what it has no room for is lost on it.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(address)
            sock.send(state.encode())
        except OSError:
            return  # the manager is gone; there is nobody to tell


def watchdog_interval() -> float | None:
    """Half of what systemd allows between two pings, in seconds; None where it does not watch."""
    value = os.environ.get("WATCHDOG_USEC", "")
    return int(value) / 2e6 if value.isdecimal() and int(value) else None
