"""Client addresses and the networks that rules name. Pure."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_SITE = 64  # bits of an IPv6 address that are one client: it has all the others to itself


@lru_cache(maxsize=4096)
def in_networks(client: str, networks: tuple[str, ...]) -> bool:
    address = parse(client)
    return address is not None and any(address in _network(n) for n in networks)


@lru_cache(maxsize=4096)
def client_key(client: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 that an IPv6 address lies in."""
    address = parse(client)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, _SITE), strict=False))
    return client if address is None else str(address)


def is_loopback(client: str) -> bool:
    """Also of a UNIX socket, which has no address."""
    address = parse(client)
    return not client or (address is not None and address.is_loopback)


def is_public(text: str) -> bool:
    """Whether an address is one of the public network: not private, of this machine or link, reserved, or a group's.

    What carries an IPv4 address inside (NAT64, 6to4, Teredo, ISATAP, mapped) is as public as that.
    """
    address = parse(text)
    if address is None or any(address in network for network in _RESERVED):
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.sixtofour or (address.teredo[1] if address.teredo else None)
        if address in _NAT64 or int(address) >> 32 & 0xFDFFFFFF == _ISATAP:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if address not in _GLOBAL:
            return False
    return address.is_global and not address.is_multicast


def is_local(text: str) -> bool:
    """Whether it is of this machine, or of a private network as its operator may have one.

    Never a link-local address, nor one by which clouds hand out credentials to whoever asks from inside.
    """
    address = parse(text)
    return address is not None and address not in _METADATA and any(address in network for network in _LOCAL)


def may_dial(text: str, *, allow_private: bool, clear: bool = False) -> bool:
    """Whether a URL of a configuration may lead there. `clear`: without TLS, which is for local networks alone.

    An address with a zone (RFC 4007 §11) leads to one link of ours, whatever it says before the `%`.
    """
    if "%" in text:
        return False
    return (allow_private and is_local(text)) or (not clear and is_public(text))


_LOCAL = [
    ipaddress.ip_network(text)
    for text in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "::1/128", "fc00::/7")
]
_METADATA = {ipaddress.ip_address(text) for text in ("100.100.100.200", "fd00:ec2::254", "fd20:ce::254")}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052 §2.1
_ISATAP = 0x00005EFE  # RFC 5214 §6.1: of an interface identifier, with or without the bit "universal"
_GLOBAL = ipaddress.ip_network("2000::/3")  # RFC 4291 §2.4: all else that is not special is nobody's yet
# Python knows parts of the first, and not the others: IETF protocols (RFC 6890), relays of 6to4 (RFC 7526), examples (RFC 9637).
_RESERVED = [ipaddress.ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20")]


def parse(client: str) -> Address | None:
    """An IPv4 address that comes in IPv6 clothes is an IPv4 address; None where it is no address at all."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return None  # a UNIX socket or nothing: no network holds it
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


@lru_cache(maxsize=1024)
def _network(text: str) -> Network:
    return ipaddress.ip_network(text, strict=False)
