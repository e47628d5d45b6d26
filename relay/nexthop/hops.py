"""What is known of where a domain's mail goes. Values; pure but for what they are made of."""

from __future__ import annotations

from dataclasses import dataclass

from relay.reply import Reply


@dataclass(frozen=True, slots=True)
class Addresses:
    """Of one host. `secure`: the DNS proved them, or that there are none (DNSSEC), to a resolver that we trust for it."""

    v4: tuple[str, ...] = ()
    v6: tuple[str, ...] = ()
    secure: bool = False
    canonical: str = ""  # the name at the end of its aliases; empty: it is no alias


@dataclass(frozen=True, slots=True)
class Hops:
    """The hosts of one domain (RFC 5321 §5.1), as ASCII names in lower case without a dot at the end.

    `hosts`: groups of one preference, the best first; inside a group there is no order. An address literal is its own only
    host, in brackets as it was written. `refusal`: nobody there takes mail, now (4xx) or ever (5xx); then there are no hosts.
    """

    domain: str
    hosts: tuple[tuple[str, ...], ...] = ()
    implicit: bool = False  # there is no MX: the domain itself is the host
    secure: bool = False  # the DNS proved the MX records, or that there are none
    refusal: Reply | None = None
    expires: float = 0.0  # by clock.monotonic()
    literal: str = ""  # the IP address of an address literal

    @property
    def names(self) -> tuple[str, ...]:
        """All hosts, the best first."""
        return tuple(name for group in self.hosts for name in group)
