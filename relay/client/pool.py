"""Connections of the synchronous client: kept alive, shared by threads, of the standard library.

A process that was forked opens its own: what its parent has open is not used by two.
"""

from __future__ import annotations

import http.client
import os
import select
import socket
import ssl
from collections import deque

from relay import clock
from relay.client.errors import RelayError, Unavailable
from relay.client.where import Where
from relay.client.wire import LARGEST, Answer, Request

IDLE = 8  # connections that are kept for whoever comes next
SLICE = 1 << 20
NO_HTTP = "what answers there speaks no HTTP; the API has the address of `admin.address`, a listener takes SMTP alone"


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Pool:
    def __init__(self, where: Where) -> None:
        self.where, self._context = where, where.context()
        # Without a lock: a deque's ends are safe to use from any thread, and a lock that is held at a fork stays so in the child.
        self._idle, self._owner = deque[http.client.HTTPConnection](), os.getpid()

    def exchange(self, request: Request, timeout: float) -> Answer:
        """Raises Unavailable; RelayError where a later try will not do."""
        connection = self._take() or self._opened(timeout)
        deadline = clock.monotonic() + timeout
        try:
            connection.sock.settimeout(timeout)
            path, headers = self.where.prefix + request.path, request.headers(self.where.token)
            connection.request(request.method, path, request.body, headers)
            response = connection.getresponse()
            body = _read(response, connection, deadline)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Unavailable(f"{self.where}: {_said(error) or 'the connection broke'}") from error
        except BaseException:  # such as KeyboardInterrupt: half an answer is still to come
            connection.close()
            raise
        told = Answer(
            response.status, body, response.getheader("Retry-After") or "", response.getheader("X-Request-Id") or ""
        )
        self._give(connection)
        return told

    def close(self) -> None:
        while connection := self._pop():
            connection.close()

    def _take(self) -> http.client.HTTPConnection | None:
        """One that is open still; the last one that was used is the likeliest."""
        if self._owner != os.getpid():
            self._idle, self._owner = deque(), os.getpid()
        while connection := self._pop():
            if not _stirs(connection.sock):
                return connection
            connection.close()
        return None

    def _pop(self) -> http.client.HTTPConnection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _give(self, connection: http.client.HTTPConnection) -> None:
        if connection.sock is not None and len(self._idle) < IDLE and self._owner == os.getpid():
            self._idle.append(connection)
        else:
            connection.close()

    def _opened(self, timeout: float) -> http.client.HTTPConnection:
        where = self.where
        connection: http.client.HTTPConnection
        if where.socket:
            connection = _Unix(where.socket, timeout)
        elif where.tls:
            connection = http.client.HTTPSConnection(where.host, where.port, timeout=timeout, context=self._context)
        else:
            connection = http.client.HTTPConnection(where.host, where.port, timeout=timeout)
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise unreachable(where, error) from error
        return connection


def unreachable(where: Where, error: OSError) -> RelayError:
    """No connection came about, so nothing was said."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return RelayError(
            f"{where}: its certificate is not trusted ({error.verify_message}); `ca` names a file that trusts it"
        )
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return RelayError(f"{where}: what answers there speaks no TLS; write http:// for a relay without `admin.tls`")
    if isinstance(error, PermissionError):
        return RelayError(f"{where}: no right to use it; be the user that the relay runs as, or use a token over HTTP")
    return Unavailable(f"{where}: {_said(error) or 'no answer'}; is the relay running?", sent=False)


def _said(error: BaseException) -> str:
    # RemoteDisconnected is one too, and says nothing but that the line was cut.
    if isinstance(error, http.client.BadStatusLine) and not isinstance(error, ConnectionError):
        return NO_HTTP
    return str(getattr(error, "strerror", None) or error)


def _read(response: http.client.HTTPResponse, connection: http.client.HTTPConnection, deadline: float) -> bytes:
    """Bounded in size and, over all of it, in time."""
    parts, size = list[bytes](), 0
    while data := response.read1(SLICE):
        parts.append(data)
        size += len(data)
        if size > LARGEST:
            raise http.client.HTTPException(f"the answer is larger than {LARGEST} bytes")
        left = deadline - clock.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        if connection.sock is not None:
            connection.sock.settimeout(left)
    if response.length:  # `read1` does not complain of it
        raise http.client.IncompleteRead(b"", response.length)
    response.close()  # nor does it end what is read to its end
    return b"".join(parts)


def _stirs(sock: socket.socket) -> bool:
    """What is readable while nothing was asked was closed."""
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(poll.poll(0))
