"""What a session with one host must be before mail is said on it: DANE before MTA-STS before what can be had.

A rule of the configuration decides alone. Else DANE (RFC 7672) where the DNS proves the domain's MX, the host's addresses and
its TLSA records; else the domain's MTA-STS policy (RFC 8461); else TLS where the host offers it, with any certificate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from relay.nexthop.dane import TA, Tlsa, usable
from relay.nexthop.hops import Addresses, Hops
from relay.nexthop.sts import StsPolicy
from relay.reply import Reply
from relay.resolver import DnsTrouble, Found, Kind
from relay.settings import Destination, Tls


class Level(StrEnum):
    """How much is asked for."""

    NONE = "none"  # clear text, as a rule wants
    MAY = "opportunistic"
    ENCRYPT = "encrypted"  # with any certificate
    VERIFY = "verified"  # by the authorities that we trust, and by its name
    DANE = "dane"


@dataclass(frozen=True, slots=True)
class Requirement:
    """Equal ones are met by the same session. `by`: who asks for it, for operators."""

    level: Level
    tls: Tls
    by: str = ""
    records: tuple[Tlsa, ...] = ()
    names: tuple[str, ...] = ()  # that a certificate of DANE-TA may be for (RFC 7672 §3.2.2)
    base: str = ""  # the name whose TLSA records they are, which the server is asked for (SNI, RFC 7671 §3)
    tests: bool = False  # MTA-STS testing: what `enforce` would refuse is told, and delivered
    refused: str = ""  # what that is already, without a session


class Unsafe(Exception):
    """This host may not be used for this domain: what its TLS must be can't be met, or not be known."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(451, text, "4.7.5")


class Asks(Protocol):
    """The resolver."""

    async def look(self, name: str, kind: Kind) -> Found: ...


class Policies(Protocol):
    """MTA-STS."""

    async def of(self, domain: str, private: bool = True) -> StsPolicy | None: ...

    def meanwhile(self, domain: str) -> tuple[StsPolicy | None] | None: ...


@dataclass(frozen=True, slots=True)
class DomainPolicy:
    """What holds for all hosts of a domain."""

    hops: Hops
    rule: Destination
    sts: StsPolicy | None = None

    @property
    def told(self) -> str:
        """For operators."""
        if self.rule.tls is not None:
            return f"destinations rule {self.rule.name}"
        return f"MTA-STS {self.sts.mode}" if self.sts else "opportunistic"


_ANY_CERTIFICATE = Tls("starttls", verify=False)
_OPPORTUNISTIC = Tls("opportunistic", verify=False)
_VERIFIED = Tls("starttls")


class Security:
    """Knows what to require."""

    def __init__(self, resolver: Asks, sts: Policies) -> None:
        self._resolver, self._sts = resolver, sts

    async def of_domain(self, hops: Hops, rule: Destination) -> DomainPolicy:
        if rule.tls is not None or hops.literal:
            return DomainPolicy(hops, rule)
        return DomainPolicy(hops, rule, await self._sts.of(hops.domain, rule.allow_private))

    def meanwhile(self, hops: Hops, rule: Destination) -> DomainPolicy | None:
        """What held before `of_domain` asked again, which takes too long; None: nobody knew."""
        known = self._sts.meanwhile(hops.domain)
        return DomainPolicy(hops, rule, *known) if known is not None else None

    async def of_host(self, policy: DomainPolicy, host: str, addresses: Addresses) -> Requirement:
        """Raises Unsafe."""
        rule, hops = policy.rule, policy.hops
        if rule.tls is not None:
            return _by_rule(rule)
        least = Requirement(Level.MAY, _OPPORTUNISTIC)
        # RFC 7672 §2.2.1: an MX that somebody may have forged names no host worth proving.
        if hops.secure and not hops.literal:
            least = await self._dane(hops.domain, host, addresses, rule.port) or least
        # Records of no use prove nothing: then it is not DANE that would be overridden (RFC 8461 §2).
        return least if least.level is Level.DANE else _by_sts(policy, host, least)

    async def _dane(self, domain: str, host: str, addresses: Addresses, port: int) -> Requirement | None:
        """None: there are no TLSA records. Raises Unsafe."""
        for base in await self._bases(host, addresses):
            found = await self._proved(f"_{port}._tcp.{base}", "TLSA", f"the TLSA records of {base}")
            if not found.records or not found.secure:
                continue
            records = tuple(sorted(usable(found.records)))  # servers rotate them
            if not records:  # §2.2: all that is asked for is TLS
                return Requirement(
                    Level.ENCRYPT, _ANY_CERTIFICATE, "DANE, none of whose records can be used", base=base
                )
            # Without an authority no name counts, and domains at the same host share its sessions.
            named = any(record.usage == TA for record in records)
            names = tuple(dict.fromkeys((base, host, domain))) if named else ()
            return Requirement(Level.DANE, _ANY_CERTIFICATE, "DANE", records, names, base)
        return None

    async def _bases(self, host: str, addresses: Addresses) -> Sequence[str]:
        """The names that may have TLSA records which count; none: the DNS does not prove who the host is. Raises Unsafe."""
        if addresses.secure:
            # RFC 7672 §2.2.3: of an alias the name at its end first, then the one that MX says.
            return tuple(dict.fromkeys((addresses.canonical or host, host)))
        # §2.2.2: an alias may be proven though it leads to where nothing is.
        alias = await self._proved(host, "CNAME", f"the alias {host}") if addresses.canonical else None
        return (host,) if alias is not None and alias.records and alias.secure else ()

    async def _proved(self, name: str, kind: Kind, what: str) -> Found:
        """Raises Unsafe."""
        try:
            return await self._resolver.look(name, kind)
        except DnsTrouble as error:
            # RFC 7672 §2.1.1: who makes this question fail must not get mail by it.
            raise Unsafe(f"DANE: {what} can't be looked up: {error}") from None


def _by_sts(policy: DomainPolicy, host: str, least: Requirement) -> Requirement:
    """`least`: what is required in any case. Raises Unsafe."""
    sts = policy.sts
    if sts is None or sts.mode == "none":
        return least
    refused = ""
    if not sts.matches(host):
        refused = f"{host} is none of the hosts that the MTA-STS policy of {policy.hops.domain} allows"
    if sts.mode == "testing":
        by = f"{least.by}; MTA-STS testing" if least.by else "MTA-STS testing"
        return replace(least, by=by, tests=True, refused=refused)
    if refused:
        raise Unsafe(refused)
    return Requirement(Level.VERIFY, _VERIFIED, "MTA-STS enforce")


def _by_rule(rule: Destination) -> Requirement:
    tls = rule.tls
    assert tls is not None
    by = f"destinations rule {rule.name}"
    if tls.mode == "none":
        return Requirement(Level.NONE, tls, by)
    if tls.mode == "opportunistic" and not tls.pin:
        return Requirement(Level.MAY, tls, by)
    return Requirement(Level.VERIFY if tls.verify or tls.pin else Level.ENCRYPT, tls, by)
