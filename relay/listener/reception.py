"""Accepts for a door whose connections begin with something else than SMTP: a PROXY header, or a TLS handshake.

Not left to the loop's own server, because what comes first is not for the session: uvloop reads from a new connection
before `pause_reading` within `connection_made` takes effect, and a client says its ClientHello at once.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from relay.listener.proxy import HEADER_TIMEOUT, BadProxy, read_header
from relay.listener.tls import HANDSHAKE_TIMEOUT, why
from relay.policy.networks import in_networks

if TYPE_CHECKING:
    from relay.listener.front import Door
    from relay.listener.session import Session


class Reception:
    """Hands each connection over once it is known who it is, and encrypted where it must be."""

    def __init__(self, door: Door, listening: socket.socket) -> None:
        self._door, self._listening = door, listening
        self._tasks: set[asyncio.Task[None]] = set()
        self._unknown = 0  # connections that no session counts yet
        self._accepting = asyncio.get_running_loop().create_task(self._accept(), name=f"accept-{door.listen.name}")

    def close(self) -> None:
        self._accepting.cancel()
        for task in self._tasks:
            task.cancel()
        self._listening.close()

    async def _accept(self) -> None:
        loop, guard = asyncio.get_running_loop(), self._door.guard
        while True:
            try:
                sock, peer = await loop.sock_accept(self._listening)
            except OSError as error:  # out of descriptors, or a client that has gone again
                self._door.log.error("accept_failed", listener=self._door.listen.name, error=error.strerror)
                await asyncio.sleep(1.0)
                continue
            if self._unknown >= self._door.listen.max_connections_total or guard.inside + self._unknown >= guard.room:
                self._door.count_turned_away()
                sock.close()
                continue
            self._unknown += 1
            task = loop.create_task(self._introduce(sock, peer[0] if isinstance(peer, tuple) else ""))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _introduce(self, sock: socket.socket, peer: str) -> None:
        try:
            try:
                client = await self._client(sock, peer) if self._door.listen.proxy else peer
            finally:
                self._unknown -= 1
            session = self._door.session(client)
            if self._door.implicit_tls:
                await self._encrypt(session, sock)
            else:
                await asyncio.get_running_loop().connect_accepted_socket(lambda: session, sock)
        except (BadProxy, OSError, TimeoutError) as error:
            sock.close()
            text = str(error) or "no PROXY header came in time"
            kind = "proxy_refused" if self._door.listen.proxy else "accept_failed"
            self._door.log.warning(kind, listener=self._door.listen.name, client=peer, why=text)
        except BaseException:
            sock.close()
            raise

    async def _client(self, sock: socket.socket, peer: str) -> str:
        """Whom the header names. Raises BadProxy, OSError, TimeoutError."""
        if not in_networks(peer, self._door.listen.proxy):
            raise BadProxy("it is not in `proxy` of this listener")
        async with asyncio.timeout(HEADER_TIMEOUT):
            return await read_header(sock) or peer

    async def _encrypt(self, session: Session, sock: socket.socket) -> None:
        """It counts as a session before its handshake; one that is too many hears nothing, for it would be in clear."""
        door = self._door
        if door.admit(session):
            return sock.close()
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: session, sock, ssl=door.tls_context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            door.log.warning("tls_failed", listener=door.listen.name, client=session.client, why=why(error))
            sock.close()
        finally:
            if session.transport is None:
                door.leave(session)
