"""`relay sink`: a small upstream that keeps what it gets, as one .eml file a message. For trying things out and for tests.

It stands behind the same front door as the relay, with a folder in the place of the spool: nothing is sent on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from relay import clock
from relay.envelope import queue_id
from relay.incoming import Budget, Incoming
from relay.intake import Envelope
from relay.listener.front import Door
from relay.maillog import MailLog
from relay.settings import Address, Listen
from relay.spool.content import Content
from relay.submission import BadMessage, decoded, read_head


@dataclass(frozen=True, slots=True)
class Kept:
    """One message that arrived."""

    id: str
    path: Path
    sender: str
    recipients: tuple[str, ...]
    subject: str
    size: int


class Folder:
    """Stands where the spool does: gives ids and takes large bodies."""

    refusal = ""

    def __init__(self, folder: Path, max_message_size: int) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder, self.max_message_size = folder, max_message_size
        self.content = Content(folder / "content")
        self.content.open()
        self._next = (int(clock.now()) << 20) + (1 << 19)  # so that its ids differ from those of a relay before it

    def next_id(self) -> int:
        self._next += 1
        return self._next

    def stage(self, message: int) -> object:
        return self.content.stage(message)


class Keeper:
    """Stands where intake does: writes each message to the folder and tells `arrived`."""

    def __init__(self, folder: Folder, arrived: Callable[[Kept], None], delay: float = 0.0) -> None:
        self.spool, self.budget, self._arrived, self._delay = folder, Budget(), arrived, delay

    reports = False

    def refuse_now(self) -> str:
        return ""

    def refuse_sender(self, envelope: Envelope) -> BadMessage | None:
        return None

    def refuse_recipient(self, envelope: Envelope, recipient: str) -> BadMessage | None:
        return None

    async def accept(self, envelope: Envelope, incoming: Incoming, *, needs: int) -> tuple[int, bool]:
        head, body = await incoming.finish()
        name = queue_id(incoming.id)
        path = self.spool.folder / f"{name}.eml"
        to = ", ".join(envelope.recipients)
        first = f"X-Sink-From: <{envelope.sender}>\r\nX-Sink-To: {to}\r\nX-Sink-Client: {envelope.helo}\r\n"
        content = body if isinstance(body, bytes) else await asyncio.to_thread(body.path.read_bytes)
        await asyncio.to_thread(path.write_bytes, first.encode("utf-8", "replace") + head + content)
        if self._delay:
            await asyncio.sleep(self._delay)
        self._arrived(
            Kept(name, path, envelope.sender, tuple(envelope.recipients), subject(head), len(head) + len(content))
        )
        return incoming.id, True


class Sink:
    """One listening sink. `open`, then `close`."""

    def __init__(
        self,
        address: Address,
        folder: Path,
        arrived: Callable[[Kept], None],
        *,
        delay: float = 0.0,
        max_message_size: int = 100_000_000,
    ) -> None:
        kept = Folder(folder, max_message_size)
        keeper = Keeper(kept, arrived, delay)
        self.folder, self._content = folder, kept.content
        self.door = Door(Listen("sink", address), keeper, MailLog(), "sink.localdomain")  # type: ignore[arg-type]

    async def open(self) -> int:
        """Returns the port. Raises ListenError."""
        await self.door.open()
        return self.door.port

    async def close(self) -> None:
        self.door.stop()
        await self.door.drain(1.0)
        await asyncio.to_thread(self._content.close)


def subject(head: bytes) -> str:
    """The Subject as a person reads it, for showing."""
    try:
        fields = read_head(head).fields
    except BadMessage:
        return ""
    return decoded(next((value for name, value in fields if name == b"subject"), b""))[:100]


def read_kept(path: Path) -> bytes:
    """A kept message without the X-Sink lines: the bytes that went over the wire."""
    raw = path.read_bytes()
    while raw.startswith(b"X-Sink-"):
        raw = raw[raw.index(b"\r\n") + 2 :]
    return raw
