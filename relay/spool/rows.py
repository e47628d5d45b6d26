"""Statements of many rows, few texts of which are prepared."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

MOST = 32  # rows of one statement


@dataclass(frozen=True, slots=True)
class Rows:
    """Multi-row statements: a constant number of them whatever the batch, since each begs for the GIL.

    `template` has `{}` where `(?,?,…),(?,?,…)` goes. Up to MOST rows go in one statement of just that length: the texts of
    all lengths stay in the statement cache.
    """

    template: str
    width: int

    def run(self, connection: sqlite3.Connection, rows: Sequence[Sequence[Any]], *before: Any) -> None:
        """`before`: parameters that stand before the rows in the template."""
        for start in range(0, len(rows), MOST):
            block = rows[start : start + MOST]
            connection.execute(self.text(len(block)), [*before, *chain.from_iterable(block)])

    def ask(self, connection: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> Iterator[Any]:
        """What the statement finds for these rows."""
        for start in range(0, len(rows), MOST):
            block = rows[start : start + MOST]
            yield from connection.execute(self.text(len(block)), [*chain.from_iterable(block)])

    def text(self, size: int) -> str:
        key = (self.template, size)
        text = _TEXTS.get(key)
        if text is None:
            row = "(" + ",".join("?" * self.width) + ")"
            text = _TEXTS[key] = self.template.replace("{}", ",".join([row] * size))
        return text


_TEXTS: dict[tuple[str, int], str] = {}
