"""Stand-in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class Unconvertible(Exception):
    pass


@dataclass(slots=True)
class Converted:
    head: bytes
    body: bytes
    done: tuple[str, ...]


def long_line(data: bytes) -> bool:
    return False


def needs(head: bytes, body: bytes, *, seven_bit: bool) -> bool:
    return seven_bit and not (head.isascii() and body.isascii())


def convert(head: bytes, body: bytes, *, seven_bit: bool) -> Converted:
    raise Unconvertible("no")


def convert_file(head: bytes, source: Path, target: Path, *, seven_bit: bool) -> tuple[bytes, tuple[str, ...]]:
    return head, ()
