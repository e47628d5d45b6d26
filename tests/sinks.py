"""Sinks that behave as a profile or a script says, in the loop of a test."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from front import Client

from relay.settings import Address
from relay.sink import Kept, Profile, Sink, named, read_script


class Bench:
    """One sink, what it told, and clients for it."""

    def __init__(self, folder: Path, profile: Profile, **more: Any) -> None:
        self.kept: list[Kept] = []
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.sink = Sink(
            Address("127.0.0.1", 0),
            folder / "kept",
            self.kept.append,
            profile=profile,
            told=lambda kind, fields: self.told.append((kind, fields)),
            **more,
        )
        self._clients: list[Client] = []

    @property
    def port(self) -> int:
        return self.sink.door.port

    async def client(self, login: str = "", *, tls: ssl.SSLContext | None = None, greet: bool = True) -> Client:
        made = Client(*await asyncio.open_connection("127.0.0.1", self.port, ssl=tls))
        self._clients.append(made)
        if greet:
            assert (await made.reply())[0] == 220
            assert (await made.say("EHLO client.example"))[0] == 250
            if login:
                assert (await made.log_in(login, "secret"))[0] == 235
        return made

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        await self.sink.close()


@contextlib.asynccontextmanager
async def sink(folder: Path, script: str | Profile, speed: float = 1, **more: Any) -> AsyncIterator[Bench]:
    """`script`: a profile, its name, or the text of a script."""
    if isinstance(script, Profile):
        profile = script
    elif script.isalnum():
        profile = named(script)
    else:
        file = folder / "script.yaml"
        file.write_text(script)
        profile = read_script(file)
    bench = Bench(folder, profile.faster(speed), **more)
    await bench.sink.open()
    try:
        yield bench
    finally:
        await bench.close()
