"""What a sink keeps: a folder of .eml files, in the place of the spool."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from relay import clock
from relay.envelope import queue_id
from relay.incoming import Budget
from relay.intake import Envelope
from relay.spool import Staging
from relay.spool.content import Content
from relay.submission import BadMessage, Head, decoded, read_head

MAX_SUBJECT = 100  # characters that are shown


@dataclass(frozen=True, slots=True)
class Kept:
    """One message that arrived."""

    id: str
    path: Path
    sender: str
    recipients: tuple[str, ...]
    subject: str
    size: int
    message_id: str = ""
    account: str = ""  # who logged in


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
    """Stands where intake does, as far as a door sees it. `reports`: whether DSN is offered."""

    def __init__(self, folder: Folder, reports: bool = False) -> None:
        self.spool, self.budget, self.reports = folder, Budget(), reports

    async def keep(self, number: int, envelope: Envelope, head: bytes, body: bytes | Staging) -> Kept:
        """Writes the message to the folder. Raises OSError."""
        name = queue_id(number)
        path = self.spool.folder / f"{name}.eml"
        to = ", ".join(envelope.recipients)
        first = f"X-Sink-From: <{envelope.sender}>\r\nX-Sink-To: {to}\r\nX-Sink-Client: {envelope.helo}\r\n"
        content = body if isinstance(body, bytes) else await asyncio.to_thread(body.path.read_bytes)
        await asyncio.to_thread(path.write_bytes, first.encode("utf-8", "replace") + head + content)
        found = read(head)
        return Kept(
            name,
            path,
            envelope.sender,
            tuple(envelope.recipients),
            _first(found, b"subject")[:MAX_SUBJECT],
            len(head) + len(content),
            _first(found, b"message-id").strip(),
            envelope.user.name if envelope.user else "",
        )


def read(head: bytes) -> Head | None:
    """None where the header block is too large to be looked at."""
    try:
        return read_head(head)
    except BadMessage:
        return None


def _first(head: Head | None, name: bytes) -> str:
    return decoded(next((value for field, value in head.fields if field == name), b"")) if head else ""


def subject(head: bytes) -> str:
    """The Subject as a person reads it, for showing."""
    return _first(read(head), b"subject")[:MAX_SUBJECT]


def read_kept(path: Path) -> bytes:
    """A kept message without the X-Sink lines: the bytes that went over the wire."""
    raw = path.read_bytes()
    while raw.startswith(b"X-Sink-"):
        raw = raw[raw.index(b"\r\n") + 2 :]
    return raw
