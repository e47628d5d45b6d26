"""One immutable configuration at a time, and the loops that run under it.

A reload is one assignment: the whole new file is read and checked first; a bad one changes nothing and says why. Loops are
named and supervised: one that dies is told, started again after a pause, and fails the watchdog until it runs.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from relay import metrics
from relay.config.load import ConfigError, load
from relay.maillog import MailLog
from relay.policy.routing import Question
from relay.settings import Config

RESTART_AFTER = 1.0
MANY_DESCRIPTORS = 1 << 16

RELOADS = metrics.Counter("relay_config_reloads_total", "Reloads by result", ["result"])
LAST_RELOAD = metrics.Gauge("relay_config_last_reload_successful", "1 if the last reload was taken")
LOOPS = metrics.Gauge("relay_loop_up", "1 while a named loop runs", ["loop"])
RESTARTS = metrics.Counter("relay_loop_restarts_total", "Times that a named loop died and was started again", ["loop"])


class Runtime:
    """Holds the generation in force; `subscribers` hear of the next one."""

    def __init__(self, config: Config, log: MailLog) -> None:
        self.config, self.log = config, log
        self.started = config  # what a restart would change is told against this one
        self.generation = 1
        self.last_error = ""
        self.subscribers: list[Callable[[Config], None]] = []
        LAST_RELOAD.source = lambda: [((), float(not self.last_error))]

    def ask(self, suspended: tuple[Question, ...]) -> Config:
        """The same configuration, whose lanes answer these questions for what is suspended by hand."""
        self.config = replace(self.config, suspended=suspended)
        return self.config

    def reload(self) -> tuple[bool, list[str]]:
        """(was it taken, what to know). Keeps the old configuration where the new one is bad."""
        source = self.config.source
        if source is None:
            return False, ["there is no configuration file: the relay runs its built-in demonstration"]
        try:
            fresh = load(source)
        except ConfigError as error:
            self.last_error = str(error)
            RELOADS.inc(1, "refused")
            lines = str(error).splitlines()
            for line in lines:
                self.log.error("config_refused", problem=line)
            return False, lines
        self.last_error = ""
        RELOADS.inc(1, "taken")
        notes = [*fresh.warnings, *_needs_restart(self.started, fresh)]
        self.config = fresh = replace(fresh, suspended=self.config.suspended)
        self.generation += 1
        for subscriber in self.subscribers:
            subscriber(fresh)
        self.log.event("config_loaded", file=source, generation=self.generation)
        for note in notes:
            self.log.warning("config_note", note=note)
        return True, notes


def _needs_restart(old: Config, new: Config) -> list[str]:
    pairs = {
        "listen": (old.listen, new.listen),
        "spool.path": (old.spool.path, new.spool.path),
        "admin": (old.admin, new.admin),
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
