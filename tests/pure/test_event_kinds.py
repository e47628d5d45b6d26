"""The kinds of events: a closed list, all of which is written somewhere, told in one shape, and chosen by filters."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import NOW, ROOT

from relay.events import KINDS, Kind, Row, Wanted, absorbed, told

TENANTS = {"shop": "retail"}


def written() -> set[str]:
    """Kinds that stand as a literal where events are made: in a module that names `Event`, the journal or the table."""
    found: set[str] = set()
    for path in (ROOT / "relay").rglob("*.py"):
        text = path.read_text()
        if path.name == "events.py" and path.parent.name in ("relay", "cli"):
            continue
        if not re.search(
            r"\bEvent\(|journal\.note\(|\bmade\(|INSERT INTO event|spool\.change\(|-> tuple\[Verb, Kind", text
        ):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= {node.value} | (set(re.findall(r"'(\w+)'", node.value)) if "INSERT" in node.value else set())
    return found | {absorbed("discard"), absorbed("capture")}


def test_the_list_is_the_type() -> None:
    """So mypy refuses an event of a kind that is not in it."""
    assert set(KINDS) == set(get_args(Kind))
    assert all(KINDS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_written_somewhere(kind: str) -> None:
    assert kind in written()


def test_the_document_has_the_table() -> None:
    text = (ROOT / "docs" / "events.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text.partition("## The fields")[0], re.MULTILINE)
    assert dict(rows) == dict(KINDS)


def test_nothing_but_the_first_three_is_told_of_nothing() -> None:
    assert told(Row(7, NOW + 0.12345, "paused"), TENANTS) == {"id": 7, "at": NOW + 0.123, "event": "paused"}
    data = {"why": "manual", "evidence": "", "recipients": [], "due_at": None, "until": 0.0, "late": False}
    known = {key: value for key, value in told(Row(7, NOW, "x", data=data), {}).items() if key in data}
    assert known == {"why": "manual", "until": 0.0, "late": False}


def test_one_is_told_flat() -> None:
    data = {"class": "hard", "status": "5.1.1", "sender": "a stranger says so", "id": 99}
    row = Row(
        7,
        NOW,
        "bounced",
        1,
        0,
        "ses",
        550,
        data,
        "a@shop.example",
        "b@shop.example",
        "you@example.net",
        "shop",
        "news",
        "t1",
    )
    assert told(row, TENANTS) == {
        "id": 7, "at": NOW, "event": "bounced", "queue_id": told(row, {})["queue_id"], "recipient": "you@example.net",
        "sender": "a@shop.example", "from": "b@shop.example", "tag": "t1", "class": "news", "user": "shop",
        "tenant": "retail", "egress": "ses", "code": 550, "bounce_class": "hard", "status": "5.1.1",
    }  # fmt: skip
    assert "tenant" not in told(row, {})


@pytest.mark.parametrize(
    ("egress", "kind"), [("discard", "discarded"), ("capture", "captured"), ("ses", "delivered"), ("", "delivered")]
)
def test_what_has_no_next_hop_is_not_delivered(egress: str, kind: str) -> None:
    assert absorbed(egress) == kind


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        (Wanted(), True),
        (Wanted(kinds=frozenset({"bounced", "failed"})), True),
        (Wanted(kinds=frozenset({"failed"})), False),
        (Wanted(tag=("order-*",)), True),
        (Wanted(tag=("news", "ORDER-1")), True),
        (Wanted(tag=("news",)), False),
        (Wanted(class_=("bulk",), user=("SHOP",), tenant=("retail",)), True),
        (Wanted(class_=("bulk",), user=("shop",), tenant=("other",)), False),
        (Wanted(sender=("*@shop.example",), recipient=("you@*",)), True),
        (Wanted(domain=("xn--mnchen-3ya.example",)), True),
        (Wanted(domain=("example",)), False),
        (Wanted(egress=("mx-?",)), True),
        (Wanted(message=7), True),
        (Wanted(message=8), False),
    ],
)  # fmt: skip
def test_filters(wanted: Wanted, taken: bool) -> None:
    more: dict[str, Any] = {"egress": "mx-1", "sender": "a@shop.example", "recipient": "you@München.example"}
    row = Row(1, NOW, "bounced", 7, 0, **more, user="shop", class_="bulk", tag="order-1")
    assert wanted.takes(row, TENANTS) is taken
    assert (wanted.takes(Row(2, NOW, "paused"), TENANTS)) is (wanted == Wanted())


def test_the_reading_of_this_test_finds_what_is_there() -> None:
    assert {"accepted", "delivered", "config_changed", "rerouted"} <= written()
    assert Path(__file__).name not in {path.name for path in (ROOT / "relay").rglob("*.py")}
