"""YAML text -> a tree of plain values that knows where each of them stands.

Owns: reading bytes and YAML syntax. The meaning is YAML 1.2's core schema: only `true` and `false` are booleans, `no`,
`22:22` and dates are strings, `0755` is 755, `0o17` is 15.
Promises: never a traceback; `read` tells a Report what is wrong, with line and column, and returns None if no tree came
of it. What it hands out is small (MAX_NODES), shallow (MAX_DEPTH) and free of cycles.
Refuses: duplicate keys, keys that are no strings, tags, `<<`, several documents, a top level that is no map, files that
are too large or not UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from relay.config.problems import SECRET_KEYS, Keys, Mark, Report, shorten

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_NODES = 100_000
_MAX_DIGITS = 100  # int() of a longer text is slow, and no setting is that large

# The C parser is about ten times as fast; libyaml is missing from some builds.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# YAML 1.2.2 §5.1: what may stand in a file at all.
_NON_PRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# YAML 1.2.2 §10.3.2, the core schema.
_NULL = re.compile(r"(?:null|Null|NULL|~)?")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_NAME = re.compile(r"[\w.-]{1,64}")
_KIND_TAGS = {"!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}

Scalar = str | int | float | bool | None


@dataclass(slots=True)
class Node:
    """A value and its place. `keys` holds the places of a map's keys."""

    mark: Mark
    value: Scalar | list[Node] | dict[str, Node]
    keys: dict[str, Mark] = field(default_factory=dict)
    size: int = 1  # nodes below and including this one, aliases expanded
    height: int = 1

    def plain(self) -> Any:
        """The value alone: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {name: child.plain() for name, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, key: str | int) -> Node | None:
        if isinstance(self.value, dict) and isinstance(key, str):
            return self.value.get(key)
        if isinstance(self.value, list) and isinstance(key, int) and key < len(self.value):
            return self.value[key]
        return None

    def find(self, path: Keys) -> Node | None:
        node: Node | None = self
        for key in path:
            node = node.child(key) if node else None
        return node

    def mark_of(self, path: Keys) -> Mark:
        """The place of the value at `path`, or of the nearest value above it that exists."""
        node = self
        for key in path:
            below = node.child(key)
            if below is None:
                break
            node = below
        return node.mark

    def mark_of_key(self, path: Keys) -> Mark:
        """The place of the last key of `path`; for a list's element, of the element."""
        parent = self.find(path[:-1])
        if parent and path and isinstance(path[-1], str) and path[-1] in parent.keys:
            return parent.keys[path[-1]]
        return self.mark_of(path)


def spell(path: Keys, root: Node | None = None) -> str:
    """`path` as a user reads it: `routes.shop.via`. Ends at a key that may hold a secret."""
    words: list[str] = []
    for depth, key in enumerate(path):
        if isinstance(key, int):
            node = root.find(path[: depth + 1]) if root else None
            name = node.child("name") if node else None
            if name and isinstance(name.value, str) and _NAME.fullmatch(name.value):
                words.append(name.value)
            elif words and (root is None or (node and isinstance(node.value, dict))):
                words[-1] += f"[{key + 1}]"
            continue
        words.append(shorten(key))
        if key in SECRET_KEYS:
            break
    return ".".join(words)


def read(file: Path, report: Report, *, may_be_empty: bool = False) -> Node | None:
    """The tree of one file, or None after telling `report` why there is none."""
    start = Mark(file, 1, 1)
    report.files.append(file)
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        report.wrong(start, "", f"cannot be read: {error.strerror}")
        return None
    except ValueError:  # a NUL in the name
        report.wrong(start, "", "cannot be read: no such name is possible")
        return None
    if len(raw) > MAX_BYTES:
        report.wrong(start, "", f"the file is larger than {MAX_BYTES >> 20} MiB; no configuration is")
        return None
    return parse(raw, file, report, may_be_empty=may_be_empty)


def parse(raw: bytes, file: Path, report: Report, *, may_be_empty: bool = False) -> Node | None:
    """As `read`, from bytes that are at hand."""
    text = _decode(raw, file, report)
    if text is None:
        return None
    start = Mark(file, 1, 1)
    try:
        node = _Builder(text, file, report).document()
    except yaml.MarkedYAMLError as error:
        mark, wording = _reworded(error, text, file)
        report.wrong(mark, "", wording)
        return None
    except yaml.YAMLError:
        report.wrong(start, "", "not valid YAML")
        return None
    except _Refused as error:
        report.wrong(error.mark, spell(error.path), error.text)
        return None
    if node is None:
        if may_be_empty:
            return Node(start, {})
        report.wrong(start, "", "the file says nothing; the least is an account and `routes: [{via: NAME}]`")
        return None
    if not isinstance(node.value, dict):
        report.wrong(node.mark, "", "the top level must be a map, such as `routes: […]`")
        return None
    return node


def _decode(raw: bytes, file: Path, report: Report) -> str | None:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8", "replace")
        report.wrong(_place(before, len(before), file), "", "not UTF-8 text; save the file as UTF-8")
        return None
    if bad := _NON_PRINTABLE.search(text):
        code = ord(bad[0])
        report.wrong(
            _place(text, bad.start(), file), "", f"the character U+{code:04X} may not stand in YAML; remove it"
        )
        return None
    return text


def _place(text: str, index: int, file: Path) -> Mark:
    before = text[:index]
    return Mark(file, before.count("\n") + 1, index - (before.rfind("\n") + 1) + 1)


class _Refused(Exception):
    """Ends the reading of a file: going on would be unsafe or of no use."""

    def __init__(self, mark: Mark, path: Keys, text: str) -> None:
        super().__init__(text)
        self.mark, self.path, self.text = mark, path, text


class _Builder:
    """Builds the tree from the parser's events, so that depth and size are checked before anything is built."""

    def __init__(self, text: str, file: Path, report: Report) -> None:
        self.events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self.file = file
        self.report = report
        self.anchors: dict[str, Node | None] = {}  # None: not finished yet
        self.nodes = 0

    def document(self) -> Node | None:
        root: Node | None = None
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    raise _Refused(self.mark(event), (), "a second document; one file holds one configuration")
                root = self.node(next(self.events), (), 1)
        return root if root is None or root.value is not None else None

    def mark(self, event: Any) -> Mark:
        return Mark(self.file, event.start_mark.line + 1, event.start_mark.column + 1)

    def node(self, event: Any, path: Keys, depth: int) -> Node:
        mark = self.mark(event)
        if depth > MAX_DEPTH:
            raise _Refused(mark, path[:3], f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, mark, path, depth)
        if event.anchor:
            self.anchors[event.anchor] = None
        if event.tag and event.tag not in _KIND_TAGS:
            text = "a tag (`!…`) has no meaning here; remove it, or quote a text that begins with !"
            self.report.wrong(mark, spell(path), text)
            self.report.tainted.add(path)
        if isinstance(event, yaml.ScalarEvent):
            node = Node(mark, self.scalar(event, mark, path))
            self.grow(1, mark, path)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self.sequence(mark, path, depth)
        else:
            node = self.mapping(mark, path, depth)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def alias(self, event: Any, mark: Mark, path: Keys, depth: int) -> Node:
        # The name is not repeated: an unquoted secret may begin with *.
        if event.anchor not in self.anchors:
            raise _Refused(mark, path, "no such anchor before this line; quote a text that begins with *")
        node = self.anchors[event.anchor]
        if node is None:
            raise _Refused(mark, path, "an anchor within itself; a configuration has no cycles")
        if depth + node.height > MAX_DEPTH + 1:
            raise _Refused(mark, path[:3], f"nested deeper than {MAX_DEPTH} levels by its aliases")
        self.grow(node.size, mark, path)
        return node

    def grow(self, nodes: int, mark: Mark, path: Keys) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise _Refused(mark, path[:3], f"more than {MAX_NODES} values once its aliases are written out")

    def sequence(self, mark: Mark, path: Keys, depth: int) -> Node:
        self.grow(1, mark, path)
        items: list[Node] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event, (*path, len(items)), depth + 1))
        return _sized(Node(mark, items), items)

    def mapping(self, mark: Mark, path: Keys, depth: int) -> Node:
        self.grow(1, mark, path)
        items: dict[str, Node] = {}
        keys: dict[str, Mark] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key_mark = self.mark(event)
            name = self.key(event, path, depth)
            value = self.node(next(self.events), path if name is None else (*path, name), depth + 1)
            if name is None:
                continue
            if name in items:
                first = keys[name].line
                self.report.wrong(key_mark, spell((*path, name)), f"given twice, first on line {first}; remove one")
                continue
            items[name], keys[name] = value, key_mark
        return _sized(Node(mark, items, keys), list(items.values()))

    def key(self, event: Any, path: Keys, depth: int) -> str | None:
        """The key's name; None, and a problem told, if it is no name."""
        node = self.node(event, path, depth + 1)
        if not isinstance(node.value, str):
            self.report.wrong(node.mark, spell(path), "a key must be a string; put it in quotes")
            return None
        if node.value == "<<":
            text = "merge keys (`<<`) are not part of YAML 1.2; repeat the keys, or use an alias for the whole value"
            self.report.wrong(node.mark, spell(path), text)
            self.report.tainted.add(path)
            return None
        return node.value

    def scalar(self, event: Any, mark: Mark, path: Keys) -> Scalar:
        text: str = event.value
        if event.tag or not event.implicit[0]:  # tagged or quoted
            return text
        if _NULL.fullmatch(text):
            return None
        if _BOOL.fullmatch(text):
            return text.lower() == "true"
        if _INT.fullmatch(text):
            if len(text) > _MAX_DIGITS:
                self.report.wrong(mark, spell(path), f"a number of more than {_MAX_DIGITS} digits")
                return 0
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if _FLOAT.fullmatch(text):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return text


def _sized(node: Node, children: list[Node]) -> Node:
    node.size = 1 + sum(child.size for child in children)
    node.height = 1 + max((child.height for child in children), default=0)
    return node


# What libyaml and PyYAML say -> what was meant, and whether the place is where the construct began.
# None of the texts repeats what the file says there: it may be a secret.
_MEANT: tuple[tuple[str, str, bool], ...] = (
    ("scanning an alias", 'a text that begins with * must be quoted, as in "*@example.com"', False),
    ("scanning an anchor", "a text that begins with & must be quoted", False),
    ("scanning a quoted scalar", "a quote is opened here and never closed", True),
    ("unknown escape", "in double quotes \\ begins an escape; use single quotes", False),
    ("expected escape sequence", "in double quotes \\ begins an escape; use single quotes", False),
    ("parsing a flow sequence", "the list that begins here lacks its ] or a comma", True),
    ("parsing a flow mapping", "the map that begins here lacks its } or a comma", True),
    ("tag", "a tag (`!…`) has no meaning here; quote a text that begins with !", False),
    ("directive", "a line that begins with % is no setting; remove it", False),
    ("cannot start any token", "this character cannot begin a value; put the value in quotes", False),
    ("mapping values are not allowed", "a ':' where no key can be; check the indentation, or quote the text", False),
    ("find expected ':'", "a key without its ':'; write `key: value`", True),
    ("expected ':'", "a key without its ':'; write `key: value`", True),
    ("block scalar", "what follows | or > must be a new line", False),
    ("'-' indicator", "list items must begin with `- ` in the same column", False),
    ("parsing a block collection", "list items must begin with `- ` in the same column", False),
    ("block sequence entries", "a list item cannot begin here; put it on its own line", False),
    ("expected key", "does not fit what stands above; check the indentation, and quote a text with [ or {", False),
    ("parsing a block mapping", "does not fit what stands above; check the indentation and quotes", False),
    ("document start", "text after the end of the configuration", False),
)


def _reworded(error: yaml.MarkedYAMLError, text: str, file: Path) -> tuple[Mark, str]:
    place = error.problem_mark or error.context_mark
    if place is None:
        return Mark(file, 1, 1), "not valid YAML"
    lines = text.split("\n")
    line = lines[place.line] if place.line < len(lines) else ""
    indent = line[: len(line) - len(line.lstrip())]
    if "\t" in indent:
        return Mark(file, place.line + 1, indent.index("\t") + 1), "a tab in the indentation; indent with spaces"
    said = f"{error.context or ''}: {error.problem or ''}"
    if "document start" in said:  # names no construct: the text behind the value is at fault
        return Mark(file, place.line + 1, place.column + 1), "text after the end of the configuration"
    for words, wording, at_start in _MEANT:
        if words in said:
            if "scanning a quoted" in words and "escape" in said:
                continue
            begun = error.context_mark if at_start else None
            where = begun or place
            return Mark(file, where.line + 1, where.column + 1), wording
    return Mark(file, place.line + 1, place.column + 1), "not valid YAML here; check the indentation and the quotes"
