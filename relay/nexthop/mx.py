"""Which hosts take a domain's mail, and at which addresses: RFC 5321 §5.1, RFC 7505. Asks the DNS; connects to nobody."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from itertools import groupby

from relay import clock
from relay.envelope import ascii_domain
from relay.nexthop.hops import Addresses, Hops
from relay.reply import Reply, clean
from relay.resolver import DnsTrouble, Found, Kind, Resolver

MAX_HOSTS = 100  # of a domain
KEPT = 20_000  # domains
TROUBLE = 10.0  # seconds after which the DNS is asked again
ALWAYS = 86400.0  # seconds; what no answer can change
NO_DOMAIN, NO_HOST, DNS_TROUBLE, NULL_MX = "5.1.2", "5.4.4", "4.4.3", "5.1.10"

_LABEL = re.compile(r"[a-z0-9_-]{1,63}")


class Mx:
    """Remembers the hosts of domains for as long as their MX records hold, and after that until somebody asks again."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._known: dict[str, Hops] = {}

    def known(self, domain: str) -> Hops | None:
        """What was found last, without asking; its `expires` may have passed."""
        return self._known.get(ascii_domain(domain))

    def forget(self) -> None:
        """All of it, and what the resolver remembers: a reload asks anew."""
        self._known = {}
        self._resolver.clear()

    async def find(self, domain: str) -> Hops:
        """The hosts of a domain, or of an address literal in brackets. Never raises: what can't be found is a `refusal`."""
        domain, known = ascii_domain(domain), self._known
        kept = known.get(domain)
        if kept is not None and kept.expires > clock.monotonic():
            return kept
        found = await self._find(domain)
        known.pop(domain, None)
        known[domain] = found
        if len(known) > KEPT:
            del known[next(iter(known))]
        return found

    async def addresses(self, host: str) -> Addresses:
        """Of one of `Hops.hosts`; perhaps none. Raises DnsTrouble."""
        return (await self._addresses(host))[0]

    async def _find(self, domain: str) -> Hops:
        if domain.startswith("["):
            return _of_literal(domain)
        if not _is_host(domain):
            return _refused(domain, 550, NO_DOMAIN, f"{domain} can't be a domain", clock.monotonic() + ALWAYS)
        try:
            found = await self._resolver.look(domain, "MX")
            if found.records:
                return _of_records(domain, found)
            if found.exists:
                return await self._implicit(domain, found)
        except DnsTrouble as error:
            why = f"the DNS can't tell where mail for {domain} goes: {error}"
            return _refused(domain, 451, DNS_TROUBLE, why, clock.monotonic() + TROUBLE)
        alias = f", of which {domain} is an alias" if found.canonical else ""
        why = f"no such domain: {found.canonical or domain}{alias}"
        return _refused(domain, 550, NO_DOMAIN, why, found.expires, found.secure)

    async def _implicit(self, domain: str, found: Found) -> Hops:
        """There is no MX, so the domain itself is the host, if it is one. Raises DnsTrouble."""
        there, expires = await self._addresses(domain)
        if there.v4 or there.v6:
            return Hops(domain, ((domain,),), implicit=True, secure=found.secure, expires=found.expires)
        why = f"{domain} has neither MX nor address"
        return _refused(domain, 550, NO_HOST, why, min(found.expires, expires), found.secure)

    async def _addresses(self, host: str) -> tuple[Addresses, float]:
        """And until when they hold. Raises DnsTrouble.

        Where one kind is in trouble the other one alone says whether the name is secure: else whoever can disturb an answer
        could make a proven name an unproven one, and DANE would be left out (RFC 7672 §2.1.1).
        """
        if host.startswith("["):
            return _literal(host), clock.monotonic() + ALWAYS
        both = await asyncio.gather(self._look(host, "A"), self._look(host, "AAAA"))
        said = [found for found in both if isinstance(found, Found)]
        for trouble in both:
            if isinstance(trouble, DnsTrouble) and not any(found.records for found in said):
                raise trouble
        v4, v6 = (found.records if isinstance(found, Found) else () for found in both)
        canonical = next((found.canonical for found in said if found.canonical), "")
        secure, expires = all(found.secure for found in said), min(found.expires for found in said)
        return Addresses(v4, v6, secure, canonical), expires

    async def _look(self, host: str, kind: Kind) -> Found | DnsTrouble:
        try:
            return await self._resolver.look(host, kind)
        except DnsTrouble as error:
            return error


def _of_records(domain: str, found: Found) -> Hops:
    best: dict[str, int] = {}  # a host that is named twice counts where it is preferred
    for preference, host in sorted(found.records):
        if _is_host(host):
            best.setdefault(host, preference)
    hosts = list(best.items())[:MAX_HOSTS]
    if hosts:
        groups = tuple(tuple(host for host, _ in group) for _, group in groupby(hosts, key=lambda item: item[1]))
        return Hops(domain, groups, secure=found.secure, expires=found.expires)
    wrong = next((host for _, host in sorted(found.records) if host), "")
    if wrong:
        why = f"the MX of {domain} names {wrong}, which is no host"
        return _refused(domain, 550, NO_HOST, why, found.expires, found.secure)
    # A root beside hosts says nothing: RFC 7505 §3.
    why = f"{domain} accepts no mail (null MX, RFC 7505)"
    return _refused(domain, 556, NULL_MX, why, found.expires, found.secure)


def _of_literal(domain: str) -> Hops:
    found, expires = _literal(domain), clock.monotonic() + ALWAYS
    for address in found.v4 + found.v6:
        return Hops(domain, ((domain,),), expires=expires, literal=address)
    why = f"{domain} is no address literal such as [192.0.2.1] or [IPv6:2001:db8::1]"
    return _refused(domain, 550, NO_DOMAIN, why, expires)


def _literal(text: str) -> Addresses:
    """The address in brackets; none where it is malformed, or of another kind of network: RFC 5321 §4.1.3."""
    inside = text.removeprefix("[").removesuffix("]").lower()
    try:
        if text.endswith("]") and inside.startswith("ipv6:") and "%" not in inside:
            return Addresses(v6=(str(ipaddress.IPv6Address(inside.removeprefix("ipv6:"))),))
        if text.endswith("]"):
            return Addresses(v4=(str(ipaddress.IPv4Address(inside)),))
    except ValueError:
        return Addresses()
    return Addresses()


def _is_host(name: str) -> bool:
    """Whether it can be one; the text of an address is none, though it can be a name of the DNS (RFC 1123 §2.1)."""
    labels = name.split(".")
    return len(name) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()


def _refused(domain: str, code: int, enhanced: str, why: str, expires: float, secure: bool = False) -> Hops:
    plain = clean(why.encode("ascii", "backslashreplace").decode())  # a domain may have letters that nobody sees
    return Hops(domain, secure=secure, refusal=Reply(code, plain, enhanced), expires=expires)
