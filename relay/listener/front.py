"""The doors: one for each configured listener; who may come in, and how long a silent client may stay."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections import Counter
from typing import TYPE_CHECKING

from relay import clock, metrics
from relay.intake import Intake
from relay.maillog import MailLog
from relay.settings import Listen

if TYPE_CHECKING:
    from relay.listener.session import Session

IDLE_TIMEOUT = 300.0  # seconds; RFC 5321 §4.5.3.2.7
BACKLOG = 512

CONNECTIONS = metrics.Gauge("relay_listener_connections", "Open client connections", ["listener"])
TURNED_AWAY = metrics.Counter("relay_listener_turned_away_total", "Connections answered 421", ["listener"])


class ListenError(Exception):
    """An address that cannot be listened on; the text says what to do."""


class Door:
    """One listening address and the sessions that came through it."""

    def __init__(self, listen: Listen, intake: Intake, log: MailLog, hostname: str) -> None:
        self.listen, self.intake, self.log, self.hostname = listen, intake, log, hostname
        self.idle_timeout = IDLE_TIMEOUT
        self.sessions: set[Session] = set()
        self.stopping = ""
        self._clients: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._empty = asyncio.Event()
        self.port = listen.address.port
        self.greeting = f"220 {hostname} ESMTP relay\r\n".encode()
        self.ehlo = b""
        self.advertise()

    def advertise(self) -> None:
        """The EHLO reply, each extension once it is true."""
        lines = [
            self.hostname,
            "PIPELINING",
            f"SIZE {self.intake.spool.max_message_size}",
            "8BITMIME",
            "SMTPUTF8",
            "ENHANCEDSTATUSCODES",
        ]
        last = len(lines) - 1
        self.ehlo = "".join(f"250{' ' if i == last else '-'}{line}\r\n" for i, line in enumerate(lines)).encode()

    async def open(self) -> bool:
        """Listen; False where an optional address family is missing. Raises ListenError."""
        from relay.listener.session import Session

        address = self.listen.address
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: Session(self), address.host, address.port, backlog=BACKLOG, reuse_address=True
            )
        except OSError as error:
            if self.listen.optional and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                self.log.warning("listener_skipped", listener=self.listen.name, address=address, why=error.strerror)
                return False
            hint = "is another relay running? `relay serve --config` with another `listen.address` starts a second one"
            why = hint if error.errno == errno.EADDRINUSE else "choose another `listen.address`"
            raise ListenError(f"cannot listen on {address}: {error.strerror or error}; {why}") from None
        self.port = self._server.sockets[0].getsockname()[1]
        for listening in self._server.sockets:
            # Replies are small and written once for each group of commands: never wait for an ACK (TCP_NODELAY is inherited).
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.log.event("listening", listener=self.listen.name, address=f"{address.host}", port=self.port)
        return True

    def admit(self, session: Session) -> bytes:
        """Count a client in, or the 421 that turns it away."""
        if self.stopping:
            return b"421 4.3.2 shutting down\r\n"
        if len(self.sessions) >= self.listen.max_connections_total:
            TURNED_AWAY.inc(1, self.listen.name)
            return b"421 4.7.0 too many connections, try again later\r\n"
        if self._clients[session.client] >= self.listen.max_connections_client:
            TURNED_AWAY.inc(1, self.listen.name)
            return b"421 4.7.0 too many connections from you, try again later\r\n"
        self.sessions.add(session)
        self._clients[session.client] += 1
        return b""

    def leave(self, session: Session) -> None:
        if session in self.sessions:
            self.sessions.discard(session)
            self._clients[session.client] -= 1
            if not self._clients[session.client]:
                del self._clients[session.client]
            if not self.sessions:
                self._empty.set()

    def sweep(self) -> None:
        """Cut who was silent for too long; one timer for all sessions, since one each costs 7 µs a command."""
        now = clock.monotonic()
        for session in list(self.sessions):
            if session.deadline < now:
                session.time_out()

    def stop(self) -> None:
        """No new clients; who is idle hears 421; who is inside DATA may finish."""
        self.stopping = "the relay is stopping"
        if self._server is not None:
            self._server.close()
        for session in list(self.sessions):
            if not session.in_data:
                session.close_with(421, "4.3.2", "shutting down")

    async def drain(self, timeout: float) -> None:
        """Wait for the sessions inside DATA; then cut what is left."""
        if self.sessions:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._empty.wait()
        for session in list(self.sessions):
            if session.transport is not None:
                session.transport.abort()


def watch(doors: list[Door]) -> None:
    CONNECTIONS.source = lambda: [((d.listen.name,), float(len(d.sessions))) for d in doors]
