"""The PROXY protocol, versions 1 and 2 (haproxy.org, proxy-protocol.txt): a load balancer tells who its client is.

Read off the raw socket before there is a session, and exactly: what follows the header may be a TLS handshake. Only from
networks that the listener's `proxy` names, and from them it is required, as §2 of the protocol asks.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
HEADER_TIMEOUT = 10.0  # seconds
MAX_V1 = 107  # §2.1
MAX_V2 = 4096  # addresses and TLVs


class BadProxy(Exception):
    """No header, or one that can't be read."""


async def read_header(sock: socket.socket) -> str:
    """The client's IP address, or "" where the balancer speaks for itself (LOCAL, UNKNOWN). Raises BadProxy, OSError."""
    first = await _exactly(sock, 12)
    if first == SIGNATURE:
        rest = await _exactly(sock, 4)
        length = int.from_bytes(rest[2:])
        if length > MAX_V2:
            raise BadProxy("header is too long")
        return parse_v2(rest, await _exactly(sock, length))
    if not first.startswith(b"PROXY "):
        raise BadProxy("no PROXY header")
    line = first
    while not line.endswith(b"\n"):
        if len(line) >= MAX_V1:
            raise BadProxy("header is too long")
        line += await _exactly(sock, 1)
    return parse_v1(line)


async def _exactly(sock: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        data = await asyncio.get_running_loop().sock_recv(sock, count - len(found))
        if not data:
            raise BadProxy("connection ended within the header")
        found += data
    return found


def parse_v1(line: bytes) -> str:
    """§2.1: `PROXY TCP4 source destination sport dport` CRLF."""
    if not line.endswith(b"\r\n"):
        raise BadProxy("header does not end with CRLF")
    words = line[:-2].split(b" ")
    if len(words) >= 2 and words[:2] == [b"PROXY", b"UNKNOWN"]:
        return ""
    if len(words) != 6 or words[0] != b"PROXY" or words[1] not in (b"TCP4", b"TCP6"):
        raise BadProxy("header is malformed")
    try:
        source = ipaddress.ip_address(words[2].decode("ascii"))
    except ValueError:
        raise BadProxy("header has no valid address") from None
    if source.version != int(words[1][3:]) or b"%" in words[2]:  # a zone is of the balancer's own link, and any text
        raise BadProxy("header names another family than its address")
    return str(source)


def parse_v2(fixed: bytes, body: bytes) -> str:
    """§2.2: `fixed` is version and command, family, and the length of `body`."""
    if fixed[0] >> 4 != 2:
        raise BadProxy("header has an unknown version")
    command, family = fixed[0] & 15, fixed[1]
    if command == 0:  # LOCAL: a health check of the balancer
        return ""
    if command != 1:
        raise BadProxy("header has an unknown command")
    size = {0x11: 4, 0x21: 16}.get(family)  # TCP over IPv4, over IPv6
    if size is None:
        return ""
    if len(body) < 2 * size + 4:
        raise BadProxy("header is too short for its addresses")
    return str(ipaddress.ip_address(body[:size]))
