"""Questions to the DNS. Owns: which servers are asked and for how long; tells absence from trouble.

dnspython speaks the protocol: it asks again over TCP for what was cut off, and takes no answer but the one to its question. It is
loaded with the first question, away from the loop: that takes 50 ms and 7 MiB.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relay import clock

if TYPE_CHECKING:
    import dns.message
    import dns.name
    import dns.resolver

SYSTEM = Path("/etc/resolv.conf")
PORT = 53
ONE_TRY = 2.0  # seconds for one server, of those for the whole question
AT_ONCE = 64  # questions; each is a socket
PAYLOAD = 1232  # bytes of an answer by UDP (EDNS) that no network breaks up: a record of RSA-2048 is about 500
MAX_ALIASES = 8
GRACE = 0.5  # seconds: dnspython, which can say who was silent, goes by the wall clock; we end what it does not


class DnsTrouble(Exception):
    """Nobody knows what the DNS holds: no server answered, or none could. The text says which and why."""


class Resolver:
    """Asks `servers` in their order; without any those of the system, whose file may change while we run."""

    def __init__(self, servers: tuple[str, ...] = (), timeout: float = 5.0, system: Path = SYSTEM) -> None:
        """`servers`: as `server` reads them; `timeout`: seconds for a question, with all its tries. Raises ValueError."""
        self._servers = [server(text) for text in servers]
        self._timeout, self._system = timeout, system
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._stubs: dict[type, tuple[tuple[int, int], Any]] = {}

    async def txt(self, name: str) -> list[bytes] | None:
        """The TXT records of a name, the strings of each in one; None: it surely has none.

        Aliases (CNAME) are followed. Raises DnsTrouble.
        """
        if not self._stubs:
            await asyncio.to_thread(_load)
        import dns.asyncbackend
        import dns.asyncresolver

        asked, hops = _parsed(name), self._hops(name)
        try:
            async with asyncio.timeout(self._timeout + GRACE), self._gate:
                stub = self._stub(dns.asyncresolver.Resolver)
                backend = dns.asyncbackend.get_backend("asyncio")
                while asked is not None:
                    try:
                        found = await stub.resolve(asked, "TXT", lifetime=next(hops), search=False, backend=backend)
                        return _texts(found)
                    except dns.exception.DNSException as error:
                        asked = _alias(error, name, asked)
        except TimeoutError:
            raise DnsTrouble(f"{name}: no answer within {self._timeout:g} s") from None
        return None

    def txt_now(self, name: str) -> list[bytes] | None:
        """As `txt`, for threads and the command line: it blocks."""
        import dns.exception
        import dns.resolver

        asked, hops = _parsed(name), self._hops(name)
        stub = self._stub(dns.resolver.Resolver)
        while asked is not None:
            try:
                return _texts(stub.resolve(asked, "TXT", lifetime=next(hops), search=False))
            except dns.exception.DNSException as error:
                asked = _alias(error, name, asked)
        return None

    def _hops(self, name: str) -> Iterator[float]:
        """For each name on the way the seconds that are left. Raises DnsTrouble where there are too many."""
        deadline = clock.monotonic() + self._timeout
        for _ in range(MAX_ALIASES):
            yield max(0.01, deadline - clock.monotonic())
        raise DnsTrouble(f"{name}: more than {MAX_ALIASES} aliases, one after the other")

    def _stub(self, kind: type) -> Any:
        """dnspython's resolver, made anew where the system's file has changed. Raises DnsTrouble."""
        import dns.nameserver
        import dns.resolver

        stamp = (0, 0) if self._servers else self._stamp()
        known = self._stubs.get(kind)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            stub = kind(filename=str(self._system), configure=not self._servers)
        except dns.resolver.NoResolverConfiguration:
            raise DnsTrouble(f"{self._system} names no server; `dns.servers` may") from None
        except ValueError as error:
            raise DnsTrouble(f"{self._system}: {error}") from None
        if self._servers:
            stub.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in self._servers]
        stub.timeout = min(ONE_TRY, self._timeout / 2)
        stub.use_edns(0, 0, PAYLOAD)
        self._stubs[kind] = stamp, stub
        return stub

    def _stamp(self) -> tuple[int, int]:
        try:
            found = os.stat(self._system)
        except OSError:
            return 0, 0
        return found.st_mtime_ns, found.st_ino


def server(text: str) -> tuple[str, int]:
    """`127.0.0.1`, `::1`, `127.0.0.1:5353` or `[::1]:5353` -> (address, port). Raises ValueError."""
    host, port = text, str(PORT)
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if rest.startswith(":") else (port if closed and not rest else "")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        address = ipaddress.ip_address(host)
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536) or (text[0] == "[") > (
            address.version == 6
        ):
            raise ValueError
    except ValueError:
        raise ValueError(f"expected a DNS server such as 127.0.0.1 or [::1]:5353, found {text!r}") from None
    return str(address), int(port)


def _load() -> None:
    import dns.asyncbackend
    import dns.asyncresolver
    import dns.rdtypes.ANY.TXT  # with the first answer it would be, on the loop

    dns.asyncbackend.get_backend("asyncio")


def _parsed(name: str) -> dns.name.Name | None:
    """None: there can be no such name."""
    import dns.exception
    import dns.name

    try:
        return dns.name.from_text(name)
    except (dns.exception.DNSException, UnicodeError):
        return None


def _texts(answer: dns.resolver.Answer) -> list[bytes]:
    _must_be_whole(answer.response)
    return [b"".join(record.strings) for record in answer]


def _alias(error: Exception, name: str, asked: dns.name.Name) -> dns.name.Name | None:
    """Where to ask now that nothing was found; None: nowhere, there is nothing. Raises DnsTrouble.

    A server that follows no alias into another zone names it, and holds nothing itself.
    """
    import dns.rdatatype
    import dns.resolver

    if isinstance(error, dns.resolver.NXDOMAIN):
        return None
    if isinstance(error, dns.resolver.NoAnswer):
        response: dns.message.QueryMessage = error.kwargs["response"]
        _must_be_whole(response)
        alias = response.canonical_name()
        if alias != asked:
            return alias
        kinds = {found.rdtype for found in response.authority}
        if dns.rdatatype.NS in kinds and dns.rdatatype.SOA not in kinds:
            raise DnsTrouble(
                f"{name}: the server sends us on to others; it must ask them itself (a recursive resolver)"
            )
        return None
    raise DnsTrouble(f"{name}: {_why(error)}") from None


def _must_be_whole(response: dns.message.Message) -> None:
    import dns.flags

    if response.flags & dns.flags.TC:
        raise DnsTrouble(f"{response.question[0].name}: the answer is cut off, over TCP as well")


def _why(error: Exception) -> str:
    """What each server said last."""
    import dns.exception

    said: dict[str, str] = {}
    for server_, _, port, found, _ in getattr(error, "kwargs", {}).get("errors") or ():
        host = str(server_).removeprefix("Do53:").rpartition("@")[0]
        where = host if port == PORT else f"{host} port {port}"
        if isinstance(found, dns.exception.Timeout):
            said[where] = "no answer"
        else:
            said[where] = " ".join((getattr(found, "strerror", None) or str(found)).split())
    return "; ".join(f"{where}: {what or 'no answer'}" for where, what in said.items()) or "no answer"
