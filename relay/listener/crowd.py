"""Who is connected to a server of HTTP: so many together, and of one client, at most."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from relay.policy.networks import client_key, in_networks

LOOPBACK = ("127.0.0.0/8", "::1/128")


class Crowd:
    """`near`: networks of whose addresses one may be many clients: this machine's own always are."""

    def __init__(self, most: int, most_of_client: int, near: Sequence[str] = ()) -> None:
        self._most, self._most_of_client = most, most_of_client
        self._near = (*near, *LOOPBACK)
        self._clients: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._clients.total()

    def enter(self, peer: str) -> bool:
        """Whether there is room. Who enters is to `leave`, also where there was none."""
        key = client_key(peer)
        self._clients[key] += 1
        if self._clients.total() > self._most:
            return False
        return self._clients[key] <= self._most_of_client or in_networks(peer, self._near)

    def leave(self, peer: str) -> None:
        key = client_key(peer)
        self._clients[key] -= 1
        if self._clients[key] <= 0:
            del self._clients[key]


def peer(transport: asyncio.BaseTransport | None) -> str:
    """The address at the other end; empty where it has none."""
    found = transport.get_extra_info("peername") if transport is not None else None
    return str(found[0]) if isinstance(found, tuple) and found else ""
