"""Addresses and ports of hosts on loopback: a free one, one for many of them, and a host that does not answer."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import struct
import time
from collections.abc import Iterable, Iterator

# Below those that Linux gives to whoever asks for any (ip_local_port_range): between the moment that a port is found free and
# that it is listened at, nobody else is given it. Each process of a test run has a part of its own.
FIRST, EACH, PARTS = 10_000, 2_700, 8
_part = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % PARTS
_next = random.SystemRandom().randrange(EACH)


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens at."""
    global _next
    for _ in range(EACH):
        _next = (_next + 1) % EACH
        port = FIRST + _part * EACH + _next
        with _socket(host) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return port
    raise AssertionError("no port is free")


def common_port(hosts: Iterable[str]) -> int:
    """A TCP port that nobody listens on at any of these addresses."""
    first, *others = hosts
    for _ in range(50):
        port = free_port(first)
        with contextlib.ExitStack() as stack:
            try:
                for host in others:
                    sock = stack.enter_context(_socket(host))
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind((host, port))
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
        waiting = stack.enter_context(_socket(host))
        waiting.settimeout(30)
        waiting.connect((host, port))
        end = time.monotonic() + 30
        while not _full(listening):
            assert time.monotonic() < end, "the queue of connections is never full"
            time.sleep(0.001)
        yield port


def _full(listening: socket.socket) -> bool:
    """As the kernel asks before it answers a SYN; of a listener `tcp_info` has who waits as `unacked`, and the most as `sacked`."""
    unacked, sacked = struct.unpack_from("II", listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32), 24)
    return bool(unacked > sacked)
