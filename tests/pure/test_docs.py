"""The documents are true: every verb is told, every link leads somewhere, the drawing of the states is the table's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from relay.cli import cli

ROOT = Path(__file__).parents[2]
TOLD = "".join((ROOT / name).read_text() for name in ("README.md", "docs/operations.md"))


def verbs(group: click.Group, above: str = "relay") -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from verbs(command, f"{above} {name}")
        else:
            yield f"{above} {name}"


def told(text: str) -> set[str]:
    """The verbs that a text names, `relay queue retry|hold` being two."""
    found = set()
    groups = "|".join(name for name, command in cli.commands.items() if isinstance(command, click.Group))
    for words in re.findall(rf"relay ((?:(?:{groups}) )?[a-z]+(?:\|[a-z]+)*)", text):
        *group, alternatives = words.split(" ")
        found |= {" ".join(["relay", *group, one]) for one in alternatives.split("|")}
    return found


@pytest.mark.parametrize("verb", sorted(verbs(cli)))
def test_every_verb_is_documented(verb: str) -> None:
    assert verb in told(TOLD), f"{verb} is in neither README.md nor docs/operations.md"


def test_no_verb_is_promised_that_does_not_exist() -> None:
    there = set(verbs(cli)) | {f"relay {name}" for name in cli.commands}
    console = "\n".join(a or b for a, b in re.findall(r"`(relay [^`]+)`|^(?:\$ )?(relay [a-z].+)$", TOLD, re.MULTILINE))
    assert told(console) - there == set()


@pytest.mark.parametrize(
    "document", sorted(str(p.relative_to(ROOT)) for p in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), f"{document} links to {target}"
