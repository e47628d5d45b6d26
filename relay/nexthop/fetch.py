"""Fetching an MTA-STS policy over verified HTTPS (RFC 8461 §3.3). The address that is dialled is the one that was checked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from aiohttp.abc import AbstractResolver, ResolveResult

from relay import https
from relay.certificate import trusted
from relay.nexthop.stspolicy import LONGEST
from relay.policy.networks import is_public
from relay.reply import clean
from relay.resolver import DnsTrouble, Found, Kind, Resolver

PORT = 443
TIMEOUT = 60.0  # seconds for all of it, RFC 8461 §3.3
MAX_ADDRESSES = 8  # of each kind


async def fetch(domain: str, resolver: Resolver, allow_private: Callable[[str], bool]) -> bytes:
    """The policy as it stands there. Raises https.Unanswered."""
    try:
        context = await asyncio.to_thread(trusted)
    except OSError as error:  # an SSLError is one too
        raise https.Unanswered(f"the system's certificates can't be read: {error.strerror or error}") from None
    said = await https.ask(
        f"https://mta-sts.{domain}:{PORT}/.well-known/mta-sts.txt",
        context,
        accept="text/plain",
        seconds=TIMEOUT,
        most=LONGEST,
        resolver=_Addresses(resolver, allow_private),
    )
    if said.status != 200:
        redirect = ", a redirect, which is not followed" if 300 <= said.status < 400 else ""
        raise https.Unanswered(f"it answered {said.status}{redirect}")
    # RFC 8461 §3.2: on a host where anybody may leave an image, that is no policy.
    kind = said.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "text/plain":
        raise https.Unanswered(f"its Content-Type is {clean(kind)[:80] or 'missing'}, not text/plain")
    return said.body


class _Addresses(AbstractResolver):
    """Those that may be dialled, from our own resolver."""

    def __init__(self, resolver: Resolver, allow_private: Callable[[str], bool]) -> None:
        self._resolver, self._allow_private = resolver, allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises OSError."""
        kinds: tuple[Kind, ...] = ("AAAA", "A")
        answers = await asyncio.gather(*(self._resolver.look(host, kind) for kind in kinds), return_exceptions=True)
        found = [address for said in answers if isinstance(said, Found) for address in said.records[:MAX_ADDRESSES]]
        for said in answers:
            if isinstance(said, BaseException) and not (found and isinstance(said, DnsTrouble)):
                raise OSError(str(said)) if isinstance(said, DnsTrouble) else said
        good = [address for address in found if is_public(address) or self._allow_private(address)]
        if not good:
            raise OSError(
                f"{host} has only private addresses: {' '.join(found)}" if found else f"{host} has no address"
            )
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in good
        ]

    async def close(self) -> None:
        """The resolver is not ours."""
