"""The shape's verdict in plain English: pydantic's errors become problems with a place and a way out."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError

import relay
from relay.config.problems import Keys, Report, nearest, shorten
from relay.config.shape import File
from relay.config.types import Section
from relay.config.values import describe
from relay.config.yamltree import Node, spell

NOT_BUILT = f"not built yet in relay {relay.__version__} (planned); remove it"
_EXPECTED = {
    "string_type": "a string",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
    "greater_than": ("gt", "over"),
}


def told(error: ValidationError, root: Node, report: Report, shape: type[Section] = File) -> set[Keys]:
    """Tells `report` every error, and returns where they are. `shape`: what the file should have been."""
    places: set[Keys] = set()
    for item in error.errors(include_url=False, include_input=False):
        path: Keys = item["loc"]
        on_key = path[-1:] == ("[key]",)
        if on_key:
            path = path[:-1]
        places.add(path)
        if report.is_tainted(path):
            continue
        kind, context = item["type"], item.get("ctx", {})
        node = root.find(path)
        if kind == "extra_forbidden":
            report.wrong(root.mark_of_key(path), spell(path, root), _extra(path, shape))
        elif kind == "missing":
            mark = root.mark_of_key(path[:-1])
            report.wrong(mark, spell(path[:-1], root), f"'{path[-1]}' is missing")
        else:
            mark = root.mark_of_key(path) if on_key else root.mark_of(path)
            # `x: one` may stand for `x: [one]` or `x: {mode: one}`: then the value is the nearest above.
            found = node if node else _nearest(root, path)
            report.wrong(mark, spell(path, root), _worded(kind, context, found.plain(), item["msg"]))
    return places


def _nearest(root: Node, path: Keys) -> Node:
    node = root
    for key in path:
        below = node.child(key)
        if below is None:
            break
        node = below
    return node


def _worded(kind: str, context: dict[str, Any], found: object, message: str) -> str:
    if found is None:
        return "has no value; give it one or remove the key"
    if kind == "value_error":
        return str(context["error"])
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, found {describe(found)}"
    if kind == "literal_error":
        return _choice(context["expected"], found)
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"must be {words} {context[name]}, found {describe(found)}"
    if kind in ("model_type", "dict_type"):
        # Only its kind: whoever writes `accounts: {ses: smtp://user:secret@host}` shall not find that in a log.
        return f"expected a map, found {'a string' if isinstance(found, str) else describe(found)}"
    return message


def _choice(expected: str, found: object) -> str:
    names = expected.replace(" or ", ", ").replace("'", "").split(", ")
    text = f"expected one of {', '.join(names)}, found {describe(found)}"
    return text + _meant(found, names) if isinstance(found, str) else text


def _extra(path: Keys, shape: type[Section]) -> str:
    section, key = section_at(path[:-1], shape), str(path[-1])
    if key in section.planned:
        return NOT_BUILT
    known = [field.alias or name for name, field in section.model_fields.items()]
    shown = f"unknown key '{shorten(key)}'"
    return shown + (_meant(key, [*known, *section.planned]) or f"; known here: {', '.join(known)}")


def _meant(text: str, names: Iterable[str]) -> str:
    return f"; did you mean '{near}'?" if (near := nearest(text, names)) else ""


def section_at(path: Keys, shape: type[Section] = File) -> type[Section]:
    """The section whose keys stand at `path` of a file."""
    current: Any = shape
    for key in path:
        current = bare(current)
        if isinstance(current, type) and issubclass(current, Section):
            fields = {field.alias or name: field for name, field in current.model_fields.items()}
            current = fields[str(key)].annotation
        else:  # dict[name, X] or tuple[X, ...]
            arguments = get_args(current)
            current = arguments[1] if get_origin(current) is dict else arguments[0]
    section = bare(current)
    assert isinstance(section, type)
    assert issubclass(section, Section)
    return section


def bare(annotation: Any) -> Any:
    """`annotation` without Annotated and without `| None`."""
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation = get_args(annotation)[0]
        elif origin is Union or origin is types.UnionType:
            annotation = next(a for a in get_args(annotation) if a is not type(None))
        else:
            return annotation
