"""Simulated MX hosts on loopback: `fakes.Upstream` as a domain's own server, which also keeps who came and how; and dead ones.

    async with SimMx("127.0.1.1", port, identity=certs.right("mx1.example.com")) as mx:
        ... mx.accepted[0].recipients, mx.visits[0].tls

What is said to whom is a script, as in `fakes`. Any address of 127.0.0.0/8 will do, and `ports.common_port` finds a port
that is free at each, for the relay has one number for all hosts of a rule.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from certificates import Identity
from fakes import SILENT, Upstream

# -- what a script may say beside what `fakes` has


def greylist(seconds: float = 0.0, reply: str = "450 4.2.0 Greylisted, try again later") -> Callable[[str], str | None]:
    """For RCPT: refuses each recipient until so long after its first try; 0: only the first."""
    first: dict[str, float] = {}

    def action(recipient: str) -> str | None:
        now = time.monotonic()
        if recipient in first and now - first[recipient] >= seconds:
            return None
        first.setdefault(recipient, now)
        return reply

    return action


def after(count: int, action: Any, before: Any = None) -> list[Any]:
    """`before` so many times, for all sessions together, then `action` for ever."""
    return [before] * count + [action]


@dataclass
class Visit:
    """One connection. Times are of time.monotonic()."""

    source: str  # the client's address
    began: float
    ended: float = 0.0
    tls: str = ""  # version; empty: it was never encrypted
    sni: str | None = None
    number: int = 0
    sessions: list[list[str]] = field(default_factory=list, repr=False)  # of the host, by number

    @property
    def commands(self) -> list[str]:
        return self.sessions[self.number]

    @property
    def helo(self) -> str:
        """What the client last called itself."""
        said = [line for line in self.commands if line[:4].upper() in ("EHLO", "HELO")]
        return said[-1].partition(" ")[2] if said else ""


@dataclass(frozen=True)
class Accepted:
    """A message that got 250 to its final dot."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    parameters: str  # the whole argument of MAIL
    visit: Visit
    at: float


class SimMx(Upstream):
    """`identity`: what it shows in TLS; without, it offers no STARTTLS. `most`: sessions at once, one more hears 421.

    `visits` are all connections, in order; `most_open` the most of them at once.
    """

    def __init__(
        self,
        host: str,
        port: int = 0,
        script: dict[str, Any] | None = None,
        *,
        identity: Identity | None = None,
        most: int | None = None,
        **more: Any,
    ) -> None:
        self.visits: list[Visit] = []
        self._most = most
        self._names: dict[int, str | None] = {}  # by the identity of the TLS object that heard it
        self._visit_of: dict[asyncio.StreamWriter, Visit] = {}
        if identity is not None:
            more["tls"] = identity.context
        super().__init__(script, host=host, port=port, **{"name": "mx.example"} | more)
        if self.tls is not None:
            self.tls.sni_callback = self._heard_name

    @property
    def accepted(self) -> list[Accepted]:
        return [
            Accepted(t.sender, tuple(t.accepted), t.message, t.mail, self.visits[t.session], t.answered_at)
            for t in self.done
        ]

    def _heard_name(self, tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        self._names[id(tls)] = name

    def action(self, command: str, argument: str, otherwise: Any) -> Any:
        if command == "BANNER" and self._most is not None and self.open > self._most:
            return "421 4.7.0 Too many connections, try again later"
        return super().action(command, argument, otherwise)

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = writer.get_extra_info("peername")[0]
        visit = Visit(source, time.monotonic(), number=len(self.sessions), sessions=self.sessions)
        self.visits.append(visit)
        self._visit_of[writer] = visit
        try:
            await super()._session(reader, writer)
        finally:
            visit.ended = time.monotonic()

    def _saw_tls(self, writer: asyncio.StreamWriter) -> None:
        super()._saw_tls(writer)
        visit = self._visit_of[writer]
        visit.tls = self.tls_versions[-1]
        visit.sni = self._names.pop(id(writer.get_extra_info("ssl_object")), None)


def silent(host: str, port: int = 0) -> SimMx:
    """Accepts connections and never greets."""
    return SimMx(host, port, {"BANNER": SILENT})
