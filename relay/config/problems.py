"""What is wrong with a configuration, and where. A leaf: everything else in this room imports it.

A problem is one line, `FILE:LINE:COLUMN: path.to.key: what is wrong; what was meant`. It never holds a secret: a path
ends at the first key that may hold one, and no text repeats a value that stood below such a key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

# A path into a configuration: names of keys and 0-based places in lists.
Keys = tuple[str | int, ...]
SECRET_KEYS = frozenset(
    {"password", "key", "secret", "token", "client_secret", "token_key", "signing_key", "password_hash"}
)


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def shorten(text: str, limit: int = 60) -> str:
    """`text` on one line, and not too much of it."""
    text = _CONTROL.sub("?", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def nearest(text: str, names: Iterable[str]) -> str:
    """The name that `text` was probably meant to be, or nothing."""
    # Long texts are no misspelt names, and difflib is slow on them.
    close = difflib.get_close_matches(text.lower(), sorted(names), n=1) if len(text) <= 80 else []
    return close[0] if close else ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file; line and column count from 1."""

    file: Path
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def seen_from(self, other: Mark) -> str:
        """How a message at `other` refers to this place."""
        return f"line {self.line}" if self.file == other.file else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Problem:
    file: Path
    line: int
    column: int
    path: str  # empty: the file as a whole
    text: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}"
        return f"{where}: {self.path}: {self.text}" if self.path else f"{where}: {self.text}"


class ConfigError(Exception):
    """A configuration that is refused, with every problem that it has, in the order of the files."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


@dataclass
class Report:
    """Collects problems and warnings while a configuration is read."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)  # in the order in which they were read
    tainted: set[Keys] = field(default_factory=set)  # values that YAML refused: more about them would be noise

    def is_tainted(self, path: Keys) -> bool:
        return any(path[:length] in self.tainted for length in range(1, len(path) + 1))

    def wrong(self, mark: Mark, path: str, text: str) -> None:
        self._add(self.problems, Problem(mark.file, mark.line, mark.column, path, text))

    def warn(self, mark: Mark, path: str, text: str) -> None:
        self._add(self.warnings, Problem(mark.file, mark.line, mark.column, path, text))

    @staticmethod
    def _add(to: list[Problem], problem: Problem) -> None:
        if problem not in to:  # an anchor used twice tells its problem once
            to.append(problem)

    def ordered(self, problems: Iterable[Problem]) -> list[Problem]:
        order = {file: n for n, file in enumerate(self.files)}
        return sorted(problems, key=lambda p: (order.get(p.file, -1), p.line, p.column, p.path, p.text))

    def check(self) -> None:
        """Raises ConfigError if there is any problem."""
        if self.problems:
            raise ConfigError(self.ordered(self.problems))
