"""The composition root: the only module that names implementations. Start and stop order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from relay import __version__, clock, recovery
from relay.admin.events import Stream
from relay.admin.pauses import Pausing
from relay.admin.service import Service
from relay.admin.simulation import Simulated
from relay.admin.suppress import Suppressing
from relay.api.rooms import Rooms
from relay.api.server import Admin
from relay.api.tokens import Tokens
from relay.attachments import Attaching
from relay.deliver.network import Network
from relay.drop.watch import Drops
from relay.feedback.doors import Doors
from relay.feedback.heard import Heard
from relay.generations import Generations
from relay.intake import Intake
from relay.listener.activation import inherited
from relay.listener.front import Door, ListenError, renew, sweep, watch
from relay.listener.guard import Guard, room_for_clients
from relay.maillog import MailLog
from relay.notices import Reports
from relay.prepare.preparer import Preparer
from relay.pulse import Pulse
from relay.quotas import Quotas
from relay.resolver import Resolver
from relay.returned.bounded import Understanding
from relay.runtime import Runtime, Supervisor, notify, raise_descriptor_limit, watchdog_interval
from relay.scheduler.housekeeping import Housekeeper
from relay.scheduler.loop import Scheduler
from relay.scheduler.memory import Memory
from relay.settings import Activated, Config
from relay.signing.rules import Rule
from relay.signing.watch import Watch
from relay.spool import SpoolError, opening
from relay.spool.sqlite import SqliteSpool
from relay.webhooks.dispatch import Webhooks

STUCK_AFTER = 30.0  # seconds without a round of dispatch or a word of the writing thread


class StartError(Exception):
    """Why the relay cannot start; the text says what to do."""


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What the spool says against a start."""
    try:
        yield
    except SpoolError as error:
        raise StartError(str(error)) from None


class App:
    """One relay. `start`, `run` until a signal, `stop`."""

    def __init__(self, config: Config, log: MailLog) -> None:
        self.runtime = Runtime(config, log)
        self.log = log
        self.supervisor = Supervisor(log)
        self.doors: list[Door] = []
        self._stop = asyncio.Event()
        self._second = asyncio.Event()
        self._renew = asyncio.Event()

    @property
    def config(self) -> Config:
        return self.runtime.config

    # -- start, in order: what is needed to keep mail, what lets it in, what moves it

    async def start(self) -> None:
        """Raises StartError."""
        config = self.config
        self._descriptors = raise_descriptor_limit()
        self.log.event(
            "starting",
            version=__version__,
            config=config.source,
            spool=config.spool.path,
            descriptors=self._descriptors,
        )
        kept, documents = await self._wake(config)
        config = self.config  # with what is changed at run time
        watch, network = self._compose(config, kept, documents)
        with _told():
            await self.webhooks.begin()
        await self._open_admin(config)
        await self._open_doors(config)
        await self._open_feedback(config)
        # Last: a start that fails, and is tried again and again, must not have claimed or sent anything.
        for name, loop in self._loops(watch, network).items():
            self.supervisor.start(name, loop)
        self.housekeeper.reloaded()
        self.log.event("ready", listeners=len(self.doors))
        notify("READY=1\nSTATUS=accepting and delivering mail")
        if (interval := watchdog_interval()) is not None:
            self.supervisor.start("watchdog", self._watchdog(interval))

    async def _wake(self, config: Config) -> tuple[dict[str, list[tuple[float, int]]], dict[str, str]]:
        """The spool, and what earlier runs left in it: (what was spent, documents). Raises StartError."""
        with _told():
            self.spool = await SqliteSpool.open(config.spool.path, clock.now())
            # First of all: what died in flight may be told to its sender.
            self.spool.reporter = Reports(
                lambda: self.runtime.config, self.spool.next_id, lambda: secrets.token_hex(16), self.log
            )
            opening.tell(self.spool.opened, self.log)
            await recovery.recover(self.spool, config, self.log)
            kept, documents = await self.spool.spent(), await self.spool.remembered()
            self.suppressions = await recovery.suppressions(
                self.spool, lambda: self.runtime.config, self.log, documents
            )
            self.tokens = Tokens(self.spool, lambda: self.runtime.config)
            await self.tokens.load()
        self.runtime.keep = self.spool.remember
        self.runtime.adopt(documents)
        return kept, documents

    def _compose(
        self, config: Config, kept: dict[str, list[tuple[float, int]]], documents: dict[str, str]
    ) -> tuple[Watch, Network]:
        """The rooms, each knowing those that it asks; nothing runs yet."""
        self._limits(config)
        watch = Watch(self.log, Resolver(config.dns.servers, config.dns.timeout))
        self.preparer = Preparer(config, watch, self.log)
        network = Network(config, self.log)
        memory = Memory(self.spool, documents, self.log)
        self.spool.taker = self.scheduler = Scheduler(
            self.spool, config, self.preparer, network, self.log, kept, memory, self.suppressions
        )
        quotas = Quotas(config, self.scheduler.ledger.kept, self.scheduler.full)
        self.scheduler.usage.doors = quotas.meters
        self.intake = Intake(
            self.spool, lambda: self.runtime.config, self.log, quotas, self.scheduler, self.suppressions
        )
        self.drops = Drops(config, self.intake, self.log)
        self.housekeeper = Housekeeper(self.spool, self.scheduler, self.log, self.suppressions)
        self.webhooks = Webhooks(self.spool, lambda: self.runtime.config, self.log)
        self.scheduler.ask = self.runtime.ask
        self.scheduler.pauses.load(documents)
        generations = Generations(self.scheduler.journal, documents, config, lambda: self.runtime.by)
        self.runtime.subscribers += [
            self._limits,
            quotas.apply,
            self.scheduler.apply,
            lambda _: self.housekeeper.reloaded(),
            generations.apply,
            self.webhooks.apply,
            lambda _: self.tokens.reloaded(),
            self.drops.apply,
        ]
        return watch, network

    def _loops(self, watch: Watch, network: Network) -> dict[str, Callable[[], Awaitable[None]]]:
        """Whatever runs from the start to the stop, by the name that health tells it by."""
        return {
            "dispatch": self.scheduler.dispatch,
            "record": self.scheduler.recorder.run,
            "journal": self.scheduler.journal.run,
            "changes": self.runtime.keep_changes,
            "relane": self.housekeeper.relane,
            "housekeeping": self.housekeeper.tick,
            "pulse": Pulse().run,
            "feedback": self.feedback.run,
            "retention": self.housekeeper.forget,
            "published": watch.run,
            "tokens": self.scheduler.carriers.keeper.run,
            "sts": network.sts.run,
            "webhooks": self.webhooks.run,
            "drop": self.drops.run,
        }

    def _limits(self, config: Config) -> None:
        spool = config.spool
        self.spool.max_queued, self.spool.reserve = spool.max_queued, spool.reserve
        self.spool.max_message_size = spool.max_message_size
        self.spool.keep, self.spool.keep_bodies = spool.keep, spool.keep_bodies
        self.log.format, self.log.redact = config.log.format, config.log.redact
        self.spool.check_room()
        for door in self.doors:
            door.advertise()

    async def _open_admin(self, config: Config) -> None:
        scheduler = self.scheduler
        self.admin = Admin(
            Rooms(
                *(self.spool, self.intake, scheduler.outlook, self, self.log),
                service=Service(self.spool, self.intake, scheduler.outlook, self, self.log),
                pausing=Pausing(scheduler.pauses, scheduler.outlook, self),
                usage=scheduler.usage,
                simulated=Simulated(self.spool, scheduler, scheduler.outlook, lambda: self.runtime.config),
                hooks=self.webhooks,
                suppressing=Suppressing(self.spool, self.suppressions, self, self.log),
                tokens=self.tokens,
                attaching=Attaching(lambda: self.runtime.config.attachments, config.spool.path.parent / "attachments"),
                drops=self.drops,
                stream=Stream(self.spool, lambda: self.runtime.config.tenant_of),
                changing=self.runtime,
            )
        )
        try:
            await self.admin.open_socket(config.admin.socket)
        except OSError as error:
            raise StartError(
                f"admin.socket {config.admin.socket}: {error.strerror or error}; set one that we may create"
            ) from None
        for what, address, open_at in (
            ("admin.address", config.admin.address, lambda at: self.admin.open_tcp(at, config.admin.tls)),
            ("probes.address", config.probes, self.admin.open_probes),
        ):
            if address is None:
                continue
            try:
                port = await open_at(address)
            except OSError as error:
                why = error.strerror or str(error)
                raise StartError(
                    f"{what} {address}: {why}; set another one, or `{what.split('.')[0]}: {{address: null}}`"
                ) from None
            self.log.event("serving", what=what, address=address.host, port=port)

    async def _open_doors(self, config: Config) -> None:
        upstream = sum(account.connections for account in config.accounts.values())
        room, backlog = room_for_clients(self._descriptors, upstream, len(config.listen))
        guard = Guard(self.log, lambda: self.runtime.config.users, room, backlog)
        self.runtime.subscribers.append(lambda _: guard.logins.forget())
        self._sockets = sockets = inherited(os.environ)
        addresses = [li.address for li in config.listen] + [d.address for d in (config.feedback.smtp,) if d]
        wanted = {address.descriptor for address in addresses if isinstance(address, Activated)}
        for name in sockets.keys() - wanted:
            hint = (
                f"who connects to it waits in vain: say `address: systemd:{name}` in `listen`, or stop its socket unit"
            )
            self.log.warning("socket_unused", descriptor=name, hint=hint)
        for listen in config.listen:
            door = Door(listen, self.intake, self.log, config.hostname, guard)
            try:
                if await door.open(sockets):
                    self.doors.append(door)
            except ListenError as error:
                raise StartError(str(error)) from None
        if not self.doors:
            raise StartError("no listener could be opened; see the warnings before this line")
        self.runtime.subscribers.append(lambda _: self._renew.set())
        self.supervisor.start("sweep", lambda: sweep(self.doors))
        self.supervisor.start("certificates", lambda: renew([*self.doors, self.admin], self._renew))

    async def _open_feedback(self, config: Config) -> None:
        self.understanding = Understanding()
        count = self.scheduler.standing.came_back
        heard = Heard(self.spool, lambda: self.runtime.config, self.understanding.read, self.log, count)
        self.feedback = Doors(config, heard, self.log, self._sockets)
        watch(lambda: [*self.doors, *self.feedback.listeners])
        self.runtime.subscribers.append(self.feedback.apply)
        try:
            await self.feedback.open()
        except ListenError as error:
            raise StartError(str(error)) from None

    def _watchdog(self, interval: float) -> Callable[[], Any]:
        async def ping() -> None:
            while True:
                if self.health()["alive"]:
                    notify("WATCHDOG=1")
                await asyncio.sleep(interval)

        return ping

    # -- run

    async def run(self) -> None:
        """Until SIGTERM or SIGINT; SIGHUP reloads. A second SIGTERM ends the wait for what is in flight."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        await self._stop.wait()
        await self.stop()

    def _signalled(self) -> None:
        (self._second if self._stop.is_set() else self._stop).set()

    def reload(self) -> tuple[bool, list[str]]:
        notify(f"RELOADING=1\nMONOTONIC_USEC={int(clock.monotonic() * 1e6)}")
        try:
            return self.runtime.reload()
        finally:
            notify("READY=1")

    # -- stop, the other way round

    async def stop(self) -> None:
        """Let nobody in, send nothing new, wait for what is past the point of no return, close."""
        notify("STOPPING=1")
        timeout = self.config.stop_timeout
        self.log.event("stopping", timeout=timeout)
        for door in self.doors:
            door.stop()
        self.feedback.stop()
        await self.supervisor.stop("dispatch", "feedback", "webhooks", "drop")
        self.scheduler.sites.stop()
        work: asyncio.Future[Any] = asyncio.gather(
            *(door.drain(min(5.0, timeout)) for door in self.doors),
            self.feedback.drain(min(5.0, timeout)),
            self.scheduler.carriers.stop(max(0.1, timeout - 1.0)),
            self.webhooks.stop(max(0.1, timeout - 1.0)),
        )
        second: asyncio.Future[Any] = asyncio.ensure_future(self._second.wait())
        await asyncio.wait({work, second}, return_when=asyncio.FIRST_COMPLETED)
        second.cancel()
        if not work.done():
            await self.scheduler.carriers.stop(0.0)
            await self.webhooks.stop(0.0)
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
        await self.understanding.close()
        await self.supervisor.stop()
        try:
            # Behind all that waits to commit: what is claimed by it goes back, and is recorded with the rest.
            await self.spool.probe(clock.now())
        except SpoolError as error:
            self.log.error("spool_refused", error=str(error))
        await self.scheduler.recorder.finish()
        await self.scheduler.remember()
        await self.scheduler.journal.finish()
        self.preparer.close()
        await self.admin.close()
        await self.spool.close()
        self.log.event("stopped")
        self.log.flush()

    async def abort(self) -> None:
        """A start that failed half-way: give back what was taken."""
        for door in self.doors:
            door.stop()
        if hasattr(self, "feedback"):
            self.feedback.stop()
            await self.feedback.drain(1.0)
            await self.understanding.close()
        await self.supervisor.stop()
        if hasattr(self, "preparer"):
            self.preparer.close()
        if hasattr(self, "admin"):
            await self.admin.close()
        if hasattr(self, "spool"):
            await self.spool.close()

    def listening(self) -> list[str]:
        """The addresses that are really listened on."""
        return [door.where for door in self.doors]

    def coming_back(self) -> list[dict[str, Any]]:
        return self.feedback.standing() if hasattr(self, "feedback") else []

    def published(self, rule: Rule, domain: str) -> bool | None:
        """Whether the DNS has been seen to hold the key of an entry of `signing`; None: nobody knows yet."""
        return self.preparer.watch.seen(rule, domain)

    def health(self) -> dict[str, Any]:
        """`alive`: the loops run. `accepting`: mail can be accepted durably. `leaving`: it is being delivered."""
        now = clock.monotonic()
        down = self.supervisor.down
        quiet = {"dispatch": now - self.scheduler.last_progress, "spool": now - self.spool.alive_at}
        stuck = [name for name, seconds in quiet.items() if seconds > STUCK_AFTER]
        resting = [row["egress"] for row in self.scheduler.outlook.egress_rows() if row["down"]]
        age = self.housekeeper.oldest_age(clock.now())
        return {
            "alive": not down and not stuck,
            "accepting": not self.spool.refusal and not self._stop.is_set(),
            "leaving": not resting,
            "why": self.spool.refusal or (f"{', '.join(down + stuck)} does not run" if down or stuck else ""),
            "stopping": self._stop.is_set(),
            "resting": resting,
            "alarms": len(self.scheduler.usage.alarms()),
            "suspended": len(self.scheduler.pauses.suspensions()),
            "queued": self.spool.queued,
            "oldest_age": round(age, 1),
            "loops": {loop.name: {"up": loop.up, "restarts": loop.restarts} for loop in self.supervisor.loops.values()},
            "config_error": self.runtime.last_error,
        }
