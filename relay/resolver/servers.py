"""Which servers are asked: those of the configuration, or the system's, whose file may change while we run."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any

from relay.resolver.answers import PORT, DnsTrouble

SYSTEM = Path("/etc/resolv.conf")
ONE_TRY = 2.0  # seconds for one server, of those for the whole question
PAYLOAD = 1232  # bytes of an answer by UDP (EDNS) that no network breaks up: a record of RSA-2048 is about 500


class Stubs:
    """dnspython's resolvers, blocking and awaited; made anew where the system's file has changed."""

    def __init__(self, servers: tuple[str, ...], timeout: float, system: Path) -> None:
        """`servers`: as `server` reads them. Raises ValueError."""
        self._servers = [server(text) for text in servers]
        self._one_try, self._system = min(ONE_TRY, timeout / 2), system
        self._stubs: dict[type, tuple[tuple[int, int], Any]] = {}

    def __bool__(self) -> bool:
        """Somebody asked already."""
        return bool(self._stubs)

    def of(self, kind: type) -> Any:
        """Raises DnsTrouble."""
        import dns.flags
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
        stub.timeout = self._one_try
        stub.use_edns(0, 0, PAYLOAD)
        stub.flags = dns.flags.RD | dns.flags.AD  # whoever validates shall say so: RFC 6840 §5.7
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


def load() -> None:
    """What dnspython would load with the first answer, on the loop."""
    import dns.asyncbackend
    import dns.asyncresolver
    import dns.rdtypes.ANY.CNAME
    import dns.rdtypes.ANY.MX
    import dns.rdtypes.ANY.SOA
    import dns.rdtypes.ANY.TLSA
    import dns.rdtypes.ANY.TXT
    import dns.rdtypes.IN.A
    import dns.rdtypes.IN.AAAA

    # A digest of a wrong length is a record of no use (RFC 7672 §2.2); dnspython would take the whole answer for no answer.
    dns.rdtypes.ANY.TLSA.TLSA._cert_length_by_mtype = {}
    dns.asyncbackend.get_backend("asyncio")
