"""What is changed at run time, as values laid over the tree of the file before anything is checked.

Owns: what a change is, and when it is out of date: once the file says something else at its key
than it did, or no longer holds its owner. An entry of a list (`limits`, `destinations`) is known by its `name`, and by nothing
else: its number is another's as soon as one is put before it. `direct` itself is built in, and always there. The shape and
the builder see the tree with the changes in it, so that a changed value is checked, and
told of, as if it stood in the file. Pure. None of these keys may hold a secret.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from relay.config.changeable import KEYS
from relay.config.problems import Keys, Mark, Problem
from relay.config.yamltree import Node, spell

BUILT_IN = ("direct", "direct")  # delivery by MX for who has no entry of his own
DOCUMENT = "changes"  # their key in the spool
PLACE = Mark(Path("changed at run time"), 1, 1)  # where a changed value stands


@dataclass(frozen=True, slots=True)
class Change:
    """One key of one named thing."""

    section: str
    name: str
    key: str
    value: Any  # as in the file
    file: Any  # what the file says there; None: nothing
    who: str
    at: float

    @property
    def path(self) -> Keys:
        return self.section, self.name, self.key

    @property
    def text(self) -> str:
        return spell(self.path)

    def row(self) -> dict[str, Any]:
        return {"path": self.text, **asdict(self)}

    def has(self, problem: Problem) -> bool:
        """Whether it is about what this one says."""
        return problem.path == self.text or problem.path.startswith((f"{self.text}.", f"{self.text}["))


Changes = Mapping[Keys, Change]


def place_of(root: Node, path: Keys) -> Keys | None:
    """Where it is in the tree; None: the file has no such entry, or the entry no such name."""
    section, name, *key = path
    node = root.find((section,))
    if node is not None and isinstance(node.value, list):
        for number, entry in enumerate(node.value):
            if (found := entry.child("name")) is not None and found.value == name:
                return (section, number, *key)
        return None
    owner = root.find((section, name))
    there = (section, name) == BUILT_IN if owner is None else isinstance(owner.value, dict)
    return path if there else None


def of_file(root: Node, path: Keys) -> Any:
    """What the file says there; None: nothing."""
    place = place_of(root, path)
    found = root.find(place) if place is not None else None
    return None if found is None else found.plain()


def changed(root: Node, changes: Changes, path: tuple[str, str, str], value: Any, who: str, at: float) -> Changes:
    """With one more change, or one less: None, or what the file says there, takes it back."""
    section, name, key = path
    file, rest = of_file(root, path), {known: change for known, change in changes.items() if known != path}
    if value is None or value == file:
        return rest
    return rest | {path: Change(section, name, key, value, file, who, at)}


def standing(root: Node, changes: Iterable[Change]) -> tuple[Changes, list[str]]:
    """Those that are still meant, now that this is the file; and why each of the others is dropped."""
    kept: dict[Keys, Change] = {}
    dropped = []
    for change in changes:
        says = of_file(root, change.path)
        if place_of(root, change.path) is None:
            dropped.append(_dropped(change, f"{spell(change.path[:-1])} is no more"))
        elif says != change.file:
            dropped.append(_dropped(change, f"the file says {told(says)} there now, it said {told(change.file)}"))
        else:
            kept[change.path] = change
    return kept, dropped


def without(changes: Changes, problems: Iterable[Problem]) -> tuple[Changes, list[str]]:
    """Without those that these problems are about; of all of them if they are about none: together they do not fit the file."""
    found: dict[Keys, str] = {}
    for problem in problems:
        for path, change in changes.items():
            if change.has(problem):
                found.setdefault(path, f"it does not fit the file: {problem.path}: {problem.text}")
    found = found or dict.fromkeys(changes, "it does not fit the file")
    return {p: c for p, c in changes.items() if p not in found}, [_dropped(changes[p], why) for p, why in found.items()]


def taken_back(changes: Changes, why: str) -> list[str]:
    """All of them."""
    return [_dropped(change, why) for change in changes.values()]


def _dropped(change: Change, why: str) -> str:
    return f"{change.text}: {told(change.value)}, changed by {change.who}, is dropped: {why}"


def told(value: Any) -> str:
    """As it is written on the command line: rates with commas between them."""
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return (
            ", ".join(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in value) or "none"
        )
    return json.dumps(value, ensure_ascii=False)


# -- on the tree


def laid(root: Node, changes: Changes) -> Node:
    """A new tree: the one of the file is as it was."""
    for change in changes.values():
        place = place_of(root, change.path)
        assert place is not None  # what stands has one
        root = _with(root, place, _grown(change.value))
    return root


def _with(node: Node, path: Keys, value: Node) -> Node:
    """Along the path everything is new: below an alias of YAML another place may show the same node."""
    first, *rest = path
    held = node.child(first)
    if held is None or held.value is None:
        held = Node(PLACE, {})  # of what is built in the file says nothing
    below = _with(held, tuple(rest), value) if rest else value
    if isinstance(node.value, list):
        return replace(node, value=[below if n == first else one for n, one in enumerate(node.value)])
    assert isinstance(node.value, dict)
    assert isinstance(first, str)
    keys = node.keys if first in node.keys else node.keys | {first: PLACE}
    return replace(node, value=node.value | {first: below}, keys=keys)


def _grown(value: Any) -> Node:
    if isinstance(value, dict):
        return Node(PLACE, {key: _grown(one) for key, one in value.items()}, dict.fromkeys(value, PLACE))
    if isinstance(value, list):
        return Node(PLACE, [_grown(one) for one in value])
    return Node(PLACE, value)


# -- made durable


def document(changes: Changes) -> str | None:
    """For the spool; None: there is none."""
    return json.dumps([asdict(change) for change in changes.values()]) if changes else None


def read(text: str) -> list[Change]:
    """What `document` gave. Raises ValueError or TypeError for anything else."""
    found = json.loads(text)
    if not isinstance(found, list):
        raise TypeError("no list")
    changes = [Change(**entry) for entry in found]
    for change in changes:
        words = (change.section, change.name, change.key, change.who)
        if not all(isinstance(word, str) for word in words) or not isinstance(change.at, int | float):
            raise TypeError("a change of another form")
        if change.key not in KEYS.get(change.section, ()):
            raise ValueError(f"{change.text} is no key that is changed at run time")
    return changes
