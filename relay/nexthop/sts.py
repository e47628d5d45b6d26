from __future__ import annotations
import asyncio
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StsPolicy:
    mode: str
    mx: tuple[str, ...]

    def matches(self, host: str) -> bool:
        return True


class Sts:
    def __init__(self, resolver: Any, folder: Any, log: Any, allow: Any) -> None:
        self.resolver = resolver

    async def of(self, domain: str) -> StsPolicy | None:
        return None

    async def run(self) -> None:
        await asyncio.Event().wait()
