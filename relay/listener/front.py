"""The doors: one for each configured listener; who may come in, and how long a silent client may stay."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, cast

from relay import clock, metrics
from relay.intake import Intake
from relay.listener.activation import ListenError, Sockets, activated
from relay.listener.guard import Guard
from relay.listener.limits import Allowance
from relay.listener.reception import Reception
from relay.listener.sasl import MECHANISMS
from relay.listener.tls import EXPIRES, Certificate
from relay.maillog import MailLog
from relay.policy.networks import client_key
from relay.settings import Activated, Address, Listen, User

if TYPE_CHECKING:
    from relay.listener.session import Session
    from relay.listener.wire import Wire

__all__ = ["Door", "ListenError", "watch"]

CROWDED = 0.8  # of max_connections.total
CROWDED_IDLE = 30.0  # seconds

CONNECTIONS = metrics.Gauge("relay_listener_connections", "Open client connections", ["listener"])
OVERDUE = metrics.Counter("relay_listener_overdue_total", "Clients cut for being silent or too slow", ["listener"])
THROTTLED = metrics.Counter("relay_listener_throttled_total", "Messages answered 450 by a rate", ["listener"])
TURNED_AWAY = metrics.Counter("relay_listener_turned_away_total", "Connections answered 421", ["listener"])


class Door:
    """One listening address and the sessions that came through it."""

    mechanisms: Sequence[str] = MECHANISMS

    def __init__(self, listen: Listen, intake: Intake, log: MailLog, hostname: str, guard: Guard | None = None) -> None:
        self.listen, self.intake, self.log, self.hostname = listen, intake, log, hostname
        self.guard = guard or Guard(log)
        self.sessions: set[Session] = set()
        self.stopping = ""
        self.where = str(listen.address)
        self.port = listen.address.port if isinstance(listen.address, Address) else 0
        self.greeting = f"220 {hostname} ESMTP relay\r\n".encode()
        self.certificate = Certificate(listen.name, listen.tls, log) if listen.tls else None
        self._clients: Counter[str] = Counter()
        self._servers: list[asyncio.Server | Reception] = []
        self._empty = asyncio.Event()
        self._ehlo: dict[tuple[bool, bool], bytes] = {}
        self.dsn = False
        self.advertise()

    # -- what is offered

    def advertise(self) -> None:
        """The EHLO replies, each extension once it is true."""
        self._ehlo = {(tls, login): self._offer(tls, login) for tls in (False, True) for login in (False, True)}

    def ehlo(self, encrypted: bool, login: bool) -> bytes:
        return self._ehlo[encrypted, login]

    def _offer(self, encrypted: bool, login: bool) -> bytes:
        # Who is told `dsn: {to: none}` would wait for a report in vain.
        self.dsn = self.intake.reports
        lines = [self.hostname, *self.extensions()]
        if self.offers_starttls and not encrypted:
            lines.append("STARTTLS")
        if login:
            lines.append(f"AUTH {' '.join(self.mechanisms)}")
        last = len(lines) - 1
        return "".join(f"250{' ' if i == last else '-'}{line}\r\n" for i, line in enumerate(lines)).encode()

    def extensions(self) -> list[str]:
        """What every client is offered."""
        size = f"SIZE {self.intake.spool.max_message_size}"
        found = ["PIPELINING", size, "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"]
        return [*found, "DSN"] if self.dsn else found

    @property
    def implicit_tls(self) -> bool:
        return self.listen.tls is not None and self.listen.tls.mode == "implicit"

    @property
    def offers_starttls(self) -> bool:
        return self.listen.tls is not None and self.listen.tls.mode == "starttls"

    @property
    def tls_context(self) -> ssl.SSLContext | None:
        return self.certificate.context if self.certificate else None

    def allowances(self, user: User | None, client: str) -> tuple[Allowance, ...]:
        """What this client and user may send at most."""
        found = []
        if self.listen.client_rate:
            found.append(Allowance(f"client {client_key(client) or 'local'}", self.listen.client_rate))
        if user is not None and self.listen.user_rate:
            found.append(Allowance(f"user {user.name}", self.listen.user_rate))
        return tuple(found)

    def count_turned_away(self) -> None:
        TURNED_AWAY.inc(1, self.listen.name)

    def count_throttled(self) -> None:
        THROTTLED.inc(1, self.listen.name)

    # -- open and close

    async def open(self, inherited: Sockets = MappingProxyType({})) -> bool:
        """Listen; False where an optional address family is missing. Raises ListenError."""
        if self.certificate:
            await self.certificate.refresh()
            if self.certificate.context is None:
                raise ListenError(
                    f"listener {self.listen.name} has no certificate that can be used: see the line before"
                )
        address = self.listen.address
        bound = activated(self.listen, address, inherited) if isinstance(address, Activated) else self._bind(address)
        for listening in bound:
            await self._serve(listening)
        return bool(bound)

    def session(self, client: str | None = None) -> Session:
        """One for each connection; `client`: who it is, where that is known beforehand."""
        from relay.listener.session import Session

        return Session(self, client)

    async def _serve(self, listening: socket.socket) -> None:
        if self.listen.proxy or self.implicit_tls:
            self._servers.append(Reception(self, listening))
        else:
            loop, unix = asyncio.get_running_loop(), listening.family == socket.AF_UNIX
            create = loop.create_unix_server if unix else loop.create_server
            self._servers.append(await create(self.session, sock=listening, backlog=self.guard.backlog))
        name = listening.getsockname()
        host, self.port = (name[0], name[1]) if isinstance(name, tuple) else (str(name), 0)
        self.where = str(Address(host, self.port)) if self.port else host
        self.log.event("listening", listener=self.listen.name, address=host, port=self.port)

    def _bind(self, address: Address) -> list[socket.socket]:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        listening = None
        try:
            listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Replies are small and written once for each group of commands: never wait for an ACK. It is inherited.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind((address.host, address.port))
            listening.listen(self.guard.backlog)
        except OSError as error:
            if listening is not None:
                listening.close()
            if self.listen.optional and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                self.log.warning("listener_skipped", listener=self.listen.name, address=address, why=error.strerror)
                return []
            hint = "is another relay running? `relay serve --config` with another `listen.address` starts a second one"
            why = hint if error.errno == errno.EADDRINUSE else "choose another `listen.address`"
            raise ListenError(f"cannot listen on {address}: {error.strerror or error}; {why}") from None
        return [listening]

    def admit(self, session: Wire) -> bytes:
        """Count a client in, or the 421 that turns it away."""
        if self.stopping:
            return b"421 4.3.2 shutting down\r\n"
        key = client_key(session.client)
        if len(self.sessions) >= self.listen.max_connections_total or self.guard.inside >= self.guard.room:
            TURNED_AWAY.inc(1, self.listen.name)
            return b"421 4.7.0 too many connections, try again later\r\n"
        if self._clients[key] >= self.listen.max_connections_client:
            TURNED_AWAY.inc(1, self.listen.name)
            return b"421 4.7.0 too many connections from you, try again later\r\n"
        self.sessions.add(cast("Session", session))
        self.guard.inside += 1
        self._clients[key] += 1
        return b""

    def leave(self, session: Wire) -> None:
        found = cast("Session", session)
        if found in self.sessions:
            self.sessions.discard(found)
            self.guard.inside -= 1
            key = client_key(session.client)
            self._clients[key] -= 1
            if not self._clients[key]:
                del self._clients[key]
            if not self.sessions:
                self._empty.set()

    def sweep(self) -> None:
        """Cut who is overdue; near the limit a silent client has to make room sooner."""
        now = clock.monotonic()
        crowded = len(self.sessions) > CROWDED * self.listen.max_connections_total
        idle = min(self.listen.idle_timeout, CROWDED_IDLE) if crowded else self.listen.idle_timeout
        for session in list(self.sessions):
            why = session.overdue(now, idle)
            if why:
                OVERDUE.inc(float(not session.leaving), self.listen.name)
                session.cut(why)

    async def refresh(self) -> None:
        """Take a certificate that was renewed."""
        if self.certificate:
            await self.certificate.refresh()

    def stop(self) -> None:
        """No new clients; who is idle hears 421; who is inside DATA may finish."""
        self.stopping = "the relay is stopping"
        for server in self._servers:
            server.close()
        for session in list(self.sessions):
            if session.shaking:
                session.hang_up()
            elif not session.unfinished:
                session.close_with(421, "4.3.2", "shutting down")

    async def emptied(self, timeout: float) -> None:
        """Wait until every session has ended, `timeout` seconds at most."""
        if self.sessions:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._empty.wait()

    async def drain(self, timeout: float) -> None:
        """Wait for the sessions inside DATA; then cut what is left."""
        await self.emptied(timeout)
        for session in list(self.sessions):
            session.hang_up()


def watch(doors: Callable[[], Iterable[Door]]) -> None:
    """`doors` returns those that are open."""
    CONNECTIONS.source = lambda: [((d.listen.name,), float(len(d.sessions))) for d in doors()]
    EXPIRES.source = lambda: [((d.listen.name,), d.certificate.expires) for d in doors() if d.certificate]


async def sweep(doors: Sequence[Door]) -> None:
    """Ends what has been silent for too long, each second."""
    while True:
        await asyncio.sleep(1.0)
        for door in doors:
            door.sweep()


class Certified(Protocol):
    async def refresh(self) -> None: ...


async def renew(servers: Sequence[Certified], asked: asyncio.Event) -> None:
    """A renewed certificate counts at once after a reload, else within a minute."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(60.0):
                await asked.wait()
        asked.clear()
        for server in servers:
            await server.refresh()
