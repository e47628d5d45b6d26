"""What the builders share: the tree, the names in it, the folder of its paths, and the Report that they tell."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from relay.config.problems import Keys, Mark, Report, nearest
from relay.config.yamltree import Node, spell
from relay.secrets import Reference


@dataclass(frozen=True)
class Site:
    root: Node
    report: Report
    folder: Path  # of the main file: relative paths begin here

    def wrong(self, path: Keys, text: str, *, on_key: bool = False) -> None:
        self.report.wrong(self.root.mark_of_key(path) if on_key else self.mark(path), spell(path, self.root), text)

    def warn(self, path: Keys, text: str, *, on_key: bool = False) -> None:
        mark = self.root.mark_of_key(path) if on_key else self.mark(path)
        self.report.warn(mark, spell(path, self.root), text)

    def mark(self, path: Keys) -> Mark:
        """The place of the value at `path`; if nothing stands there, of the key of what should have held it."""
        if self.root.find(path):
            return self.root.mark_of(path)
        above = path[:-1]
        while above and not self.root.find(above):
            above = above[:-1]
        node = self.root.find(above)
        # `via: ses` stands for `via: [ses]`: the value itself is the place.
        return (
            self.root.mark_of_key(above)
            if above and node and isinstance(node.value, dict)
            else self.root.mark_of(above)
        )

    def names(self, *sections: str, also: tuple[str, ...] = ()) -> set[str] | None:
        """The keys of some sections, right or wrong as their values may be; None where a section is no map."""
        found = set(also)
        for section in sections:
            node = self.root.find((section,))
            if node is not None and not isinstance(node.value, dict):
                return None
            found |= set(node.keys) if node else set()
        return found

    def absent(self, section: str, keys: Iterable[str]) -> list[str]:
        """Which keys nobody has written. What stands there and is wrong is told at its own place."""
        return [key for key in keys if self.root.find((section, key)) is None]

    def known(self, path: Keys, what: str, pattern: str, known: set[str] | None) -> None:
        """That a name, if it is no pattern, names something; `known` None: nobody can say."""
        if known is None or "*" in pattern or "?" in pattern:
            return
        if pattern.casefold() not in {name.casefold() for name in known}:
            self.wrong(path, no_such(what, pattern, known))

    def length(self, section: str) -> int:
        node = self.root.find((section,))
        return len(node.value) if node and isinstance(node.value, list) else 0

    def numbered(self, section: str, prefix: str) -> list[tuple[str, Keys]]:
        """The names in a list of named maps, each with its path; `PREFIX-N` where an element has none."""
        node = self.root.find((section,))
        found: list[tuple[str, Keys]] = []
        for number, entry in enumerate(node.value if node and isinstance(node.value, list) else []):
            name = entry.child("name")
            if name is None:
                found.append((f"{prefix}-{number + 1}", (section, number)))
            elif isinstance(name.value, str):
                found.append((name.value, (section, number, "name")))
        return found

    def list_names(self, section: str, prefix: str) -> set[str] | None:
        node = self.root.find((section,))
        if node is None or not isinstance(node.value, list):
            return None
        return {name for name, _ in self.numbered(section, prefix)}

    def names_once(self, section: str, prefix: str) -> None:
        first: dict[str, Mark] = {}
        for name, path in self.numbered(section, prefix):
            mark = self.mark(path)
            if name in first:
                self.wrong(path, f"a second {prefix} named '{name}', the first at {first[name].seen_from(mark)}")
            first.setdefault(name, mark)

    def path(self, text: str | None) -> Path | None:
        """A path that the user wrote, made absolute."""
        return None if text is None else Path(os.path.normpath(self.folder / text))

    def existing(self, text: str | None, path: Keys) -> Path | None:
        """As `path`, of a file that must be there to be read."""
        file = self.path(text)
        if file is not None:
            try:
                with file.open("rb"):
                    pass
            except OSError as error:
                self.wrong(path, f"{file}: {error.strerror}")
        return file

    def reference(self, given: Reference | None, path: Keys) -> Reference | None:
        """A reference with its file made absolute; told as a problem if nothing can be read there now."""
        if given is None or given.kind == "plain":
            return given
        if given.kind == "file" or (given.kind == "command" and "/" in given.target):
            given = replace(given, target=str(self.path(given.target)))
        if problem := given.problem():
            self.wrong((*path, given.kind), problem)
        return given


def no_such(what: str, name: str, known: Iterable[str]) -> str:
    known = sorted(name for name in known if name)
    if near := nearest(name, known):
        return f"no {what} '{name}'; did you mean '{near}'?"
    more = f", … ({len(known)} of them)" if len(known) > 10 else ""
    return (
        f"no {what} '{name}'; there is {', '.join(known[:10])}{more}" if known else f"no {what} '{name}'; there is none"
    )
