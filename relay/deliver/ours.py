"""Which hosts of a domain are this relay: mail for them would only come back."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Protocol

from relay.envelope import ascii_domain
from relay.policy.networks import parse
from relay.settings import Address, Listen


class Ours(Protocol):
    """Which addresses and names are this relay."""

    def hears(self, address: str, port: int) -> bool: ...
    def is_named(self, host: str) -> bool: ...


class Here:
    """Ours: by the listeners of the configuration and the names that we greet with."""

    def __init__(self, listen: Sequence[Listen], names: Sequence[str]) -> None:
        self._places: set[tuple[str, int]] = set()
        for one in listen:
            if isinstance(one.address, Address):
                self._places.add((str(ipaddress.ip_address(one.address.host)), one.address.port))
        self._names = {ascii_domain(name) for name in names}

    def hears(self, address: str, port: int) -> bool:
        found = str(parse(address))  # an IPv4 address within IPv6 leads to the same place
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(found, found)  # as connect(2) takes them
        every = "::" if ":" in address else "0.0.0.0"
        if (address, port) in self._places:
            return True
        return ((every, port) in self._places or ("::", port) in self._places) and _is_local(address)

    def is_named(self, host: str) -> bool:
        return host in self._names


def _is_local(address: str) -> bool:
    """Whether this machine has it: only then a socket can be bound to it."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
    return True
