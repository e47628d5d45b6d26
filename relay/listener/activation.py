"""Sockets that systemd opened for us (sd_listen_fds(3), systemd.socket(5)): by opt-in, `address: systemd:NAME`."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from relay.policy.networks import is_loopback
from relay.settings import Activated, Listen

FIRST = 3  # SD_LISTEN_FDS_START


class ListenError(Exception):
    """An address that cannot be listened on; the text says what to do."""


def inherited(env: Mapping[str, str]) -> dict[str, socket.socket]:
    """The listening sockets by FileDescriptorName; none where they are meant for another process."""
    count = env.get("LISTEN_FDS", "")
    if env.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return {}
    names = env.get("LISTEN_FDNAMES", "").split(":")
    found = {}
    for number in range(int(count)):
        name = names[number] if number < len(names) and names[number] else "unknown"
        os.set_inheritable(FIRST + number, False)
        found[name] = socket.socket(fileno=FIRST + number)
    return found


def activated(listen: Listen, address: Activated, sockets: Mapping[str, socket.socket]) -> socket.socket:
    """The socket of a listener; the rules for who may use it are those of the address that it really has."""
    found = sockets.get(address.descriptor)
    if found is None:
        there = f"there is {', '.join(sockets)}" if sockets else "there is none: enable relay.socket and start by it"
        raise ListenError(f"listener {listen.name}: systemd handed over no socket named {address.descriptor}; {there}")
    found.setblocking(False)
    if found.type != socket.SOCK_STREAM:
        raise ListenError(f"listener {listen.name}: socket {address.descriptor} is no stream socket (ListenStream=)")
    name = found.getsockname()
    open_to_all = isinstance(name, tuple) and not is_loopback(name[0])
    if open_to_all and (listen.auth != "required" and not listen.clients):
        raise ListenError(
            f"listener {listen.name}: {name[0]} is not loopback, and it would relay for everybody; "
            "say `auth: required`, or `clients`"
        )
    if open_to_all and listen.auth != "none" and listen.tls is None:
        raise ListenError(f"listener {listen.name}: logins would cross the network in clear; say `tls`")
    if isinstance(name, tuple):
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found
