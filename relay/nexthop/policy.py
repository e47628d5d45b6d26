"""What a session with one host must be before mail is said on it: DANE before MTA-STS before what can be had.

A rule of the configuration decides alone. Else DANE (RFC 7672) where the DNS proves the domain's MX, the host's addresses and
its TLSA records; else the domain's MTA-STS policy (RFC 8461); else TLS where the host offers it, with any certificate.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from relay.nexthop.dane import Tlsa, usable
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
    tests: bool = False  # MTA-STS testing: what `enforce` would refuse is told, and delivered


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

    async def of(self, domain: str) -> StsPolicy | None: ...


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
        return DomainPolicy(hops, rule, await self._sts.of(hops.domain))

    async def of_host(self, policy: DomainPolicy, host: str, addresses: Addresses) -> Requirement:
        """Raises Unsafe."""
        rule, hops = policy.rule, policy.hops
        if rule.tls is not None:
            return _by_rule(rule)
        # RFC 7672 §2.2.1: an MX that somebody may have forged names no host worth proving.
        proven = hops.secure and addresses.secure and not hops.literal
        if proven and (found := await self._dane(hops.domain, host, addresses, rule.port)):
            return found
        sts = policy.sts
        if sts is None or sts.mode == "none":
            return Requirement(Level.MAY, _OPPORTUNISTIC)
        if sts.mode == "testing":
            return Requirement(Level.MAY, _OPPORTUNISTIC, "MTA-STS testing", tests=True)
        if not sts.matches(host):
            raise Unsafe(f"{host} is none of the hosts that the MTA-STS policy of {hops.domain} allows")
        return Requirement(Level.VERIFY, _VERIFIED, "MTA-STS enforce")

    async def _dane(self, domain: str, host: str, addresses: Addresses, port: int) -> Requirement | None:
        """None: there are no TLSA records. Raises Unsafe."""
        # RFC 7672 §2.2.3: of an alias the name at its end first, then the one that MX says.
        for base in dict.fromkeys((addresses.canonical or host, host)):
            try:
                found = await self._resolver.look(f"_{port}._tcp.{base}", "TLSA")
            except DnsTrouble as error:
                # RFC 7672 §2.1.1: who makes this question fail must not get mail by it.
                raise Unsafe(f"DANE: the TLSA records of {base} can't be looked up: {error}") from None
            if not found.records or not found.secure:
                continue
            records = usable(found.records)
            if not records:  # §2.2: all that is asked for is TLS
                return Requirement(Level.ENCRYPT, _ANY_CERTIFICATE, "DANE, none of whose records can be used")
            names = tuple(dict.fromkeys((base, host, domain)))
            return Requirement(Level.DANE, _ANY_CERTIFICATE, "DANE", records, names)
        return None


def _by_rule(rule: Destination) -> Requirement:
    tls = rule.tls
    assert tls is not None
    by = f"destinations rule {rule.name}"
    if tls.mode == "none":
        return Requirement(Level.NONE, tls, by)
    if tls.mode == "opportunistic":
        return Requirement(Level.MAY, tls, by)
    return Requirement(Level.VERIFY if tls.verify or tls.pin else Level.ENCRYPT, tls, by)
