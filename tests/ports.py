"""Addresses and ports of hosts on loopback: one port for many of them, and a host that does not answer."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable, Iterator


def common_port(hosts: Iterable[str]) -> int:
    """A TCP port that nobody listens on at any of these addresses."""
    hosts = list(hosts)
    for _ in range(50):
        with contextlib.ExitStack() as stack:
            port = 0
            try:
                for host in hosts:
                    sock = stack.enter_context(_socket(host))
                    sock.bind((host, port))
                    port = sock.getsockname()[1]
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            return port
    raise AssertionError("no port is free at all of these addresses")


def _socket(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)


@contextlib.contextmanager
def blackhole(host: str, port: int = 0) -> Iterator[int]:
    """Connections to it time out, as to a machine that is gone: nobody accepts, and the queue of those who wait is full, so that
    Linux drops a further SYN. Yields the port."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(_socket(host))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(0)
        port = listening.getsockname()[1]
        for _ in range(10):
            waiting = stack.enter_context(_socket(host))
            waiting.settimeout(0.2)
            try:
                waiting.connect((host, port))
            except TimeoutError:
                waiting.close()  # it would go on to ask
                break
        else:
            raise AssertionError("the queue of connections is never full")
        yield port
