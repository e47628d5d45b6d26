"""YAML's meaning and its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from relay.config import yamltree
from relay.config.problems import Report
from relay.config.yamltree import Node, parse

FILE = Path("relay.yaml")


def tree(text: str) -> Node:
    report = Report()
    node = parse(text.encode(), FILE, report)
    assert report.problems == []
    assert node is not None
    return node


def refused(text: str) -> list[str]:
    report = Report()
    parse(text.encode(), FILE, report)
    return [str(p).removeprefix("relay.yaml:") for p in report.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("FALSE", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("~", None),
        ("null", None),
        ("", None),
        ("none", "none"),
        ("0755", 755),
        ("0o17", 15),
        ("0x1f", 31),
        ("+12", 12),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("22:22", "22:22"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", float("-inf")),
        ("2026-12-01", "2026-12-01"),
        ("=", "="),
        ("'5'", "5"),
        ('"true"', "true"),
        ("!!str 5", "5"),
        ("! 5", "5"),
        ("127.0.0.1:2525", "127.0.0.1:2525"),
    ],
)
def test_core_schema(text: str, value: Any) -> None:
    found = tree(f"a: {text}\n").plain()["a"]
    assert found == value
    assert type(found) is type(value)


def test_places() -> None:
    root = tree('a:\n  b: [1, {c: "x"}]\né: 2\n')
    marks = {path: root.mark_of(path) for path in [("a",), ("a", "b", 0), ("a", "b", 1, "c"), ("a", "z")]}
    assert [(m.line, m.column) for m in marks.values()] == [(2, 3), (2, 7), (2, 14), (2, 3)]
    assert (root.mark_of_key(("a", "b")).line, root.mark_of_key(("a", "b")).column) == (2, 3)
    assert (root.mark_of_key(("a", "b", 1)).line, root.mark_of_key(("a", "b", 1)).column) == (2, 10)
    assert root.mark_of(("é",)).column == 4


def test_an_alias_is_its_anchor() -> None:
    root = tree("a: &x [1, 2]\nb: *x\n")
    assert root.plain() == {"a": [1, 2], "b": [1, 2]}
    assert root.mark_of(("b", 1)).line == 1


def test_byte_order_mark_and_crlf() -> None:
    report = Report()
    node = parse(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n", FILE, report)
    assert node is not None
    assert node.plain() == {"a": 1, "b": 2}
    assert node.mark_of_key(("a",)).column == 1


def test_all_duplicates_are_told() -> None:
    assert refused("a: 1\na: 2\nb: {c: 1, c: 2}\na: 3\n") == [
        "2:1: a: given twice, first on line 1; remove one",
        "3:11: b.c: given twice, first on line 3; remove one",
        "4:1: a: given twice, first on line 1; remove one",
    ]


def test_limits() -> None:
    assert "nested deeper" in refused("a: " + "[" * 100_000)[0]
    assert "nested deeper" in refused("a: &a " + "[" * 40 + "]" * 40 + "\nb: " + "[" * 20 + "*a" + "]" * 20)[0]
    assert "digits" in refused(f"a: {'9' * 5000}")[0]


def test_files_that_are_none(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (yamltree.MAX_BYTES + 1))
    for file, told in ((large, "1 MiB"), (tmp_path, "Is a directory"), (tmp_path / "none", "No such file")):
        report = Report()
        assert yamltree.read(file, report) is None
        assert told in report.problems[0].text


@pytest.mark.parametrize("loader", [yaml.SafeLoader, yaml.CSafeLoader])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a:\n\tb: 1\n", "2:1: a tab in the indentation; indent with spaces"),
        ("a:\n  b: 1\n\tc: 2\n", "3:1: a tab in the indentation; indent with spaces"),
        ("a: 'x\nb: 1\n", "1:4: a quote is opened here and never closed"),
        ("a: [1, 2\nb: 1\n", "1:4: the list that begins here lacks its ] or a comma"),
        ("a: {b: 1\n", "1:4: the map that begins here lacks its } or a comma"),
        ("a: *@x\n", '1:5: a text that begins with * must be quoted, as in "*@example.com"'),
        ("a: @x\n", "1:4: this character cannot begin a value; put the value in quotes"),
        ("a: b: c\n", "1:5: a ':' where no key can be; check the indentation, or quote the text"),
        ("a: 1\n---\nb: 1\n", "2:1: a second document; one file holds one configuration"),
    ],
)
def test_both_parsers_say_the_same(text: str, told: str, loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yamltree, "_LOADER", loader)
    assert refused(text) == [told]


@given(st.text(max_size=200) | st.text(alphabet="ab:-[]{}&*!|>'\"#%@`\t\n ,?~<", max_size=60))
def test_any_text_gives_a_tree_or_problems(text: str) -> None:
    report = Report()
    node = parse(text.encode("utf-8", "surrogatepass"), FILE, report)
    assert node is not None or report.problems


@given(st.binary(max_size=200))
def test_any_bytes_give_a_tree_or_problems(raw: bytes) -> None:
    report = Report()
    node = parse(raw, FILE, report)
    assert node is not None or report.problems
