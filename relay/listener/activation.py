"""Sockets that systemd opened for us (sd_listen_fds(3), systemd.socket(5)): by opt-in, `address: systemd:NAME`."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence

from relay.policy.networks import is_loopback
from relay.settings import Activated, Listen

FIRST = 3  # SD_LISTEN_FDS_START


class ListenError(Exception):
    """An address that cannot be listened on; the text says what to do."""


Sockets = Mapping[str, Sequence[socket.socket]]


def inherited(env: Mapping[str, str]) -> Sockets:
    """The listening sockets by FileDescriptorName, which several may share; none where they are meant for another process."""
    count = env.get("LISTEN_FDS", "")
    if env.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return {}
    names = env.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    for number in range(int(count)):
        name = names[number] if number < len(names) and names[number] else "unknown"
        os.set_inheritable(FIRST + number, False)
        found.setdefault(name, []).append(socket.socket(fileno=FIRST + number))
    return found


def activated(listen: Listen, address: Activated, sockets: Sockets) -> Sequence[socket.socket]:
    """The sockets of a listener; the rules for who may use it are those of the address that each really has."""
    found = sockets.get(address.descriptor)
    if not found:
        there = f"there is {', '.join(sockets)}" if sockets else "there is none: start it by relay.socket"
        raise ListenError(f"listener {listen.name}: systemd handed over no socket named {address.descriptor}; {there}")
    for one in found:
        _check(listen, address, one)
    return found


def _check(listen: Listen, address: Activated, one: socket.socket) -> None:
    one.setblocking(False)
    if one.type != socket.SOCK_STREAM:
        raise ListenError(f"listener {listen.name}: socket {address.descriptor} is no stream socket (ListenStream=)")
    if one.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        raise ListenError(f"listener {listen.name}: socket {address.descriptor} is neither TCP nor a UNIX socket")
    name = one.getsockname()
    if isinstance(name, bytes):
        raise ListenError(f"listener {listen.name}: an abstract UNIX socket lets everybody connect; give it a file")
    if not isinstance(name, tuple):
        return  # a UNIX socket: its file says who may connect
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if is_loopback(name[0]) and not listen.proxy:
        return
    if listen.auth != "required" and not listen.clients:
        raise ListenError(
            f"listener {listen.name}: {name[0]} is not loopback, and it would relay for everybody; "
            "say `auth: required`, or `clients`"
        )
    if listen.auth != "none" and listen.tls is None:
        raise ListenError(f"listener {listen.name}: logins would cross the network in clear; say `tls`")
