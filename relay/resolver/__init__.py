"""Questions to the DNS. Owns: which servers are asked, for how long, and what is remembered; tells absence from trouble.

dnspython speaks the protocol: it asks again over TCP for what was cut off, and takes no answer but the one to its question. It is
loaded with the first question, away from the loop: that takes 50 ms and 7 MiB.

`servers` says who is asked, `answers` what they say, `memory` keeps it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from relay import clock
from relay.metrics import Counter
from relay.resolver.answers import MAX_ALIASES, Chase, DnsTrouble, Found, Kind
from relay.resolver.memory import Failed, Memory
from relay.resolver.servers import SYSTEM, Stubs, load, server

__all__ = ["MAX_ALIASES", "SYSTEM", "DnsTrouble", "Found", "Kind", "Resolver", "server"]

AT_ONCE = 64  # questions; each is a socket
GRACE = 0.5  # seconds: dnspython, which can say who was silent, goes by the wall clock; we end what it does not
TROUBLE = 8.0  # seconds: who asks again so soon hears the same

_QUESTIONS = Counter(
    "relay_dns_questions_total",
    "Questions to the DNS by their end: ok, none, nxdomain, trouble.",
    ("type", "result"),
)
_CACHED = Counter("relay_dns_cached_total", "Questions to the DNS that were known, or being asked already.", ("type",))


class Resolver:
    """Asks `servers` in their order; without any those of the system, whose file may change while we run."""

    def __init__(
        self, servers: tuple[str, ...] = (), timeout: float = 5.0, system: Path = SYSTEM, trust_ad: bool = False
    ) -> None:
        """`servers`: as `server` reads them; `timeout`: seconds for a question, with all its tries. Raises ValueError.

        `trust_ad`: the servers validate, and nobody can change what they say on its way to us.
        """
        self._stubs = Stubs(servers, timeout, system)
        self._timeout, self._trust_ad = timeout, trust_ad
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._memory = Memory()
        self._asking: dict[tuple[str, str], asyncio.Task[Found | Failed]] = {}

    async def look(self, name: str, kind: Kind) -> Found:
        """What there is of one kind under a name, from memory while its TTL lasts. Aliases (CNAME) are followed.

        Who asks the same at the same time shares one question, which goes on when one of them gives up. Raises DnsTrouble,
        for a few seconds without asking again.
        """
        name = name.lower()
        answer = self._memory.get(name, kind)
        task = self._asking.get((name, kind))
        if answer is not None or task is not None:
            _CACHED.inc(1, kind)
        if answer is None:
            if task is None or task.done():
                task = self._asking[name, kind] = asyncio.create_task(self._learn(name, kind, self._asking))
            answer = await asyncio.shield(task)
        if isinstance(answer, Failed):
            raise DnsTrouble(answer.text)
        return answer

    def clear(self) -> None:
        """Forgets all; what is being asked is still told to those who wait for it, and not kept."""
        self._memory.clear()
        self._asking = {}

    async def _learn(self, name: str, kind: Kind, asking: dict[tuple[str, str], Any]) -> Found | Failed:
        answer: Found | Failed
        try:
            await self._load()
            answer = await self._ask(name, kind)
        except DnsTrouble as error:
            answer = Failed(str(error), clock.monotonic() + TROUBLE)
        finally:
            del asking[name, kind]
        if asking is self._asking:
            self._memory.put(name, kind, answer)
        return answer

    async def txt(self, name: str) -> list[bytes] | None:
        """The TXT records of a name, the strings of each in one; None: it surely has none.

        Asked anew each time. Aliases (CNAME) are followed. Raises DnsTrouble.
        """
        await self._load()
        try:
            async with asyncio.timeout(self._timeout + GRACE):  # the wait for its turn too
                found = await self._ask(name, "TXT")
        except TimeoutError:
            raise self._silence(name) from None
        return list(found.records) or None

    def txt_now(self, name: str) -> list[bytes] | None:
        """As `txt`, for threads and the command line: it blocks."""
        import dns.exception
        import dns.resolver

        chase, deadline = Chase(name, "TXT"), clock.monotonic() + self._timeout
        stub = self._stubs.of(dns.resolver.Resolver)
        while chase.found is None:
            chase.step()
            left = max(0.01, deadline - clock.monotonic())
            try:
                answer = stub.resolve(chase.asked, "TXT", lifetime=left, search=False, raise_on_no_answer=False)
            except dns.exception.DNSException as error:
                chase.failed(error)
            else:
                chase.answered(answer)
        return list(chase.found.records) or None

    async def _ask(self, name: str, kind: Kind) -> Found:
        """Raises DnsTrouble. Waits for its turn first: that is no silence of the servers."""
        chase = Chase(name, kind, self._trust_ad)
        if chase.found is not None:
            return chase.found
        try:
            async with self._gate, asyncio.timeout(self._timeout + GRACE):
                found = await self._follow(chase)
        except (TimeoutError, DnsTrouble) as error:
            _QUESTIONS.inc(1, kind, "trouble")
            raise (self._silence(name) if isinstance(error, TimeoutError) else error) from None
        _QUESTIONS.inc(1, kind, "ok" if found.records else "none" if found.exists else "nxdomain")
        return found

    async def _follow(self, chase: Chase) -> Found:
        import dns.asyncbackend
        import dns.asyncresolver
        import dns.exception

        deadline = clock.monotonic() + self._timeout
        stub = self._stubs.of(dns.asyncresolver.Resolver)
        backend = dns.asyncbackend.get_backend("asyncio")
        while chase.found is None:
            chase.step()
            left = max(0.01, deadline - clock.monotonic())
            try:
                answer = await stub.resolve(
                    chase.asked, chase.kind, lifetime=left, search=False, raise_on_no_answer=False, backend=backend
                )
            except dns.exception.DNSException as error:
                chase.failed(error)
            else:
                chase.answered(answer)
        return chase.found

    async def _load(self) -> None:
        if not self._stubs:
            await asyncio.to_thread(load)

    def _silence(self, name: str) -> DnsTrouble:
        return DnsTrouble(f"{name}: no answer within {self._timeout:g} s")
