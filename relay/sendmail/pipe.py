"""`-bs`: SMTP on standard input and output, as some programs speak it, passed on to the relay byte for byte."""

from __future__ import annotations

import os
import select
import socket
import sys

from relay.sendmail.options import TEMPORARY

SLICE = 1 << 16


def pipe(host: str, port: int) -> int:
    """Until the relay has closed; the end of our input is passed on, and its last words are still told."""
    try:
        relay = socket.create_connection((host, port), timeout=30.0)
    except OSError as error:
        why = error.strerror or str(error)
        _say(b"421 4.3.2 no relay answers, try again later\r\n")
        print(f"sendmail: no relay answers at {host} port {port}: {why}; try again later", file=sys.stderr)
        return TEMPORARY
    with relay:
        relay.settimeout(None)
        listen = [relay.fileno(), 0]
        while True:
            ready, _, _ = select.select(listen, [], [])
            if 0 in ready:
                if said := os.read(0, SLICE):
                    relay.sendall(said)
                else:
                    relay.shutdown(socket.SHUT_WR)
                    listen.remove(0)
            if relay.fileno() in ready:
                if not (said := relay.recv(SLICE)):
                    return 0
                _say(said)


def _say(said: bytes) -> None:
    while said:
        said = said[os.write(1, said) :]
