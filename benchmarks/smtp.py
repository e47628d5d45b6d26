"""The least of SMTP that a load needs: a client that waits for each reply."""

from __future__ import annotations

import asyncio
import base64
from types import TracebackType


class Refused(Exception):
    """A reply that is neither 2yz nor 3yz. The text is the reply."""


class Client:
    """A connection to a server on loopback; greeted when `async with` begins, QUIT and closed when it ends well."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Client:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        await self._reply()
        await self.say(b"EHLO app.example.org")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        try:
            if kind is None:
                await self.say(b"QUIT")
        finally:
            self._writer.close()

    async def _reply(self) -> bytes:
        while (line := await self._reader.readline())[3:4] == b"-":
            continue
        if line[:1] not in (b"2", b"3"):
            raise Refused(line.decode(errors="replace").strip() or "the connection was closed")
        return line

    async def say(self, line: bytes) -> bytes:
        """A line, and the last line of its reply. Raises Refused."""
        self._writer.write(line + b"\r\n")
        return await self._reply()

    async def login(self, user: str, password: str) -> None:
        await self.say(b"AUTH PLAIN " + base64.b64encode(f"\0{user}\0{password}".encode()))

    async def send(self, sender: str, recipient: str, content: bytes) -> None:
        """Returns with the 250 that ends DATA. `content` ends with CRLF and has no line that begins with a dot."""
        for line in (f"MAIL FROM:<{sender}>", f"RCPT TO:<{recipient}>", "DATA"):
            await self.say(line.encode())
        await self.say(content + b".")


def message(sender: str, size: int, number: int = 0) -> bytes:
    """A message of about `size` bytes that carries its number."""
    head = f"From: <{sender}>\r\nTo: <user@example.com>\r\nSubject: a load\r\nX-Bench-Id: {number}\r\n\r\n".encode()
    return head + (b"x" * 72 + b"\r\n") * (size // 74)
