"""A sink that listens: what `relay sink` runs, and what a test runs in its own loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relay.settings import Address, Listen, ServerTls
from relay.sink.keep import Folder, Keeper, Kept
from relay.sink.login import Logins
from relay.sink.profile import Profile, Rule
from relay.sink.session import SinkDoor
from relay.sink.tally import Tally

CROWD = 10_000  # connections that may be open; a profile says what it wants less


def _nobody(kind: str, fields: dict[str, Any]) -> None:
    """Hears of what happens."""


class Sink:
    """One listening sink. `open`, then `close`; `tally` may be read at any time.

    `arrived` hears of each message that was kept, `told` of each refusal: its kind (refused, throttled, greylisted,
    dropped, stalled) and its fields. `delay`: seconds before each reply to a final dot.
    """

    def __init__(
        self,
        address: Address,
        folder: Path,
        arrived: Callable[[Kept], None],
        *,
        profile: Profile | None = None,
        delay: float = 0.0,
        max_message_size: int | None = None,
        tls: ServerTls | None = None,
        logins: Logins | None = None,
        seed: int = 0,
        told: Callable[[str, dict[str, Any]], None] = _nobody,
    ) -> None:
        made = profile or Profile()
        if delay:
            made = made.model_copy(update={"rules": (Rule.model_construct(at="dot", delay=delay), *made.rules)})
        if max_message_size is not None:
            made = made.model_copy(update={"max_message_size": max_message_size})
        self.folder = folder
        spool = Folder(folder, made.max_message_size)
        self._content = spool.content
        listen = Listen(
            "sink",
            address,
            auth="optional" if made.login.mechanisms else "none",
            tls=tls,
            max_recipients=CROWD,
            max_connections_total=CROWD,
            max_connections_client=CROWD,
        )
        keeper = Keeper(spool, "DSN" in made.offers)
        self.door = SinkDoor(listen, keeper, made, seed=seed, logins=logins or Logins(), arrived=arrived, told=told)

    @property
    def tally(self) -> Tally:
        return self.door.tally

    async def open(self) -> int:
        """Returns the port. Raises ListenError."""
        await self.door.open()
        return self.door.port

    async def close(self, patience: float = 0.0) -> None:
        """`patience`: seconds that clients may take to leave by themselves, before they hear 421."""
        await self.door.emptied(patience)
        self.door.stop()
        await self.door.drain(1.0)
        await asyncio.to_thread(self._content.close)
