"""One message's content while it arrives: bounded in memory, the rest in a staged file."""

from __future__ import annotations

from relay.spool import INLINE_LIMIT, Spool, Staging
from relay.submission import BadMessage, split

IN_FLIGHT_LIMIT = 64 << 20  # bytes of messages that are arriving, over all sessions
MAX_PARTS = 256  # pieces of one message: a byte in a piece of its own takes forty times its size


class Budget:
    """Bytes in flight over all sessions."""

    def __init__(self, limit: int = IN_FLIGHT_LIMIT) -> None:
        self.limit, self.used = limit, 0

    def take(self, count: int) -> bool:
        if self.used + count > self.limit:
            return False
        self.used += count
        return True


class Incoming:
    """One message's content while it arrives: in memory up to INLINE_LIMIT, then in a staged file."""

    def __init__(self, spool: Spool, budget: Budget) -> None:
        self._spool, self._budget = spool, budget
        self._parts: list[bytes] = []
        self._held = 0  # bytes of the budget
        self._staged: Staging | None = None
        self.id = spool.next_id()
        self.size = 0
        self.head = b""
        self.refusal: BadMessage | None = None

    def feed(self, data: bytes) -> bool:
        """Take clean bytes. True: call and await `spill` before more is fed."""
        self.size += len(data)
        if self.refusal:
            return False
        limit = self._spool.max_message_size
        if self.size > limit:
            self.refuse(BadMessage(552, "5.3.4", f"message is larger than {limit} bytes"))
        elif not self._budget.take(len(data)):
            self.refuse(BadMessage(452, "4.3.1", "too much mail is arriving at once; try again"))
        else:
            self._held += len(data)
            self._parts.append(data)
            if len(self._parts) > MAX_PARTS:
                self._parts = [b"".join(self._parts)]
            return self._held > INLINE_LIMIT
        return False

    def refuse(self, why: BadMessage) -> None:
        """Remember the first reason; nothing more is kept, the rest is read and dropped."""
        self.refusal = self.refusal or why
        self.release()

    async def spill(self) -> None:
        """Write what is held to the staged file; the head stays in memory."""
        parts, self._parts = self._parts, []
        if self._staged is None:
            data = b"".join(parts)
            try:
                start = split(data, complete=False)
            except BadMessage as error:
                return self.refuse(error)
            self.head, parts = data[:start], [data[start:]]
            self._staged = self._spool.stage(self.id)
        await self._staged.write(*parts)
        self._give(self._held - len(self.head))

    async def finish(self) -> tuple[bytes, bytes | Staging]:
        """(header block, body): both normalised. Raises BadMessage."""
        if self._staged is None and self._held > INLINE_LIMIT:
            await self.spill()  # its end came with what made it large
        if self.refusal:
            raise self.refusal
        if self._staged is None:
            content = b"".join(self._parts)
            start = split(content)
            return content[:start], content[start:]
        await self._staged.write(*self._parts)
        await self._staged.finish()
        return self.head, self._staged

    def release(self) -> None:
        """Give the memory back, and the file where it was not taken over."""
        self._parts = []
        self._give(self._held)
        if self._staged is not None:
            self._staged.abandon()
            self._staged = None

    def keep(self) -> None:
        """The spool owns the file now."""
        self._staged = None

    def _give(self, count: int) -> None:
        self._budget.used -= count
        self._held -= count
