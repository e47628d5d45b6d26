"""What is changed at run time, over the tree of the file: what is in force, what is out of date, what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relay.config import overlay
from relay.config.load import ConfigError, load, overlaid, under
from relay.config.overlay import Change
from relay.settings import Config

FILE = """accounts:
  main: {host: 127.0.0.1, limits: [10/s], connections: 4}
  twin: &twin {host: 127.0.0.2, limits: [7/s]}
  copy: *twin
direct: {mx: {}}
tenants: {shop: {limits: [9/d]}}
users: {app: {password: {env: HOME}, tenant: shop}}
routes: [{via: [main, twin, copy, mx]}]
"""
Loader = Callable[[str], Config]


@pytest.fixture
def config(tmp_path: Path) -> Loader:
    def made(text: str) -> Config:
        file = tmp_path / "relay.yaml"
        file.write_text(text)
        return load(file, {"HOME": "/nowhere"})

    return made


def change(path: str, value: Any, file: Any = None) -> Change:
    section, name, key = path.split(".")
    return Change(section, name, key, value, file, "uid 0", 1.0)


def laid(config: Config, *changes: Change) -> Config:
    return overlaid(config, {c.path: c for c in changes})


def rates(config: Config, name: str) -> list[str]:
    return [str(rate) for rate in config.accounts[name].limits]


def test_what_is_changed_is_in_force_and_the_tree_of_the_file_is_as_it_was(config: Loader) -> None:
    filed = config(FILE)
    made = laid(
        filed,
        change("accounts.main.limits", ["14/s", {"rate": "50000/d", "window": "calendar"}]),
        change("accounts.main.recipients_per_message", 3),
        change("direct.mx.connections", 2),
        change("tenants.shop.limits", []),
        change("users.app.limits", ["5/h"]),
    )
    assert [r.text for r in made.accounts["main"].limits] == ["14/s", "50000/d"]
    main, mx = made.accounts["main"], made.accounts["mx"]
    assert (main.connections, main.recipients_per_message, mx.connections) == (4, 3, 2)
    assert [(limit.whose, str(limit.rate)) for limit in made.limits] == [("user app", "5/h")]
    assert made.tree is filed.tree and made.tree.plain()["accounts"]["main"]["limits"] == ["10/s"]
    assert made.sections["accounts"] != filed.sections["accounts"]
    assert rates(laid(made), "main") == ["10/s"]


def test_an_alias_shows_nothing_of_it(config: Loader) -> None:
    made = laid(config(FILE), change("accounts.copy.limits", ["1/s"]))
    assert (rates(made, "copy"), rates(made, "twin")) == (["1/s"], ["7/s"])


@pytest.mark.parametrize(
    ("path", "value", "where", "words"),
    [
        ("accounts.main.limits", ["14/fortnight"], "accounts.main.limits", "expected a rate"),
        ("accounts.main.limits", [{"rate": "5/h", "burst": 9}], "accounts.main.limits[1].burst", "more at once than"),
        (
            "accounts.main.limits",
            [{"rate": "5/h", "brust": 1}],
            "accounts.main.limits[1].brust",
            "did you mean 'burst'",
        ),
        ("accounts.main.connections", 0, "accounts.main.connections", "at least 1"),
        ("accounts.main.connections", "5", "accounts.main.connections", "whole number"),
        ("direct.mx.messages_per_connection", 5, "direct.mx.messages_per_connection", "unknown key"),
    ],
    ids=["rate", "burst", "unknown", "few", "text", "not-of-direct"],
)
def test_what_may_not_be_is_told_in_the_words_of_the_file(
    config: Loader, path: str, value: Any, where: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        laid(config(FILE), change(path, value))
    (problem,) = caught.value.problems
    assert problem.path.startswith(where) and words in problem.text, problem
    assert change(path, value).has(problem)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("limits: [20/s]", "the file says 20/s there now, it said 10/s"),
        ("limits: [14/s]", "the file says 14/s there now"),
        ("", "the file says nothing there now"),
    ],
    ids=["other", "the-same", "gone"],
)
def test_dropped_once_the_file_says_something_else_there(config: Loader, text: str, why: str) -> None:
    fresh = config(FILE.replace("limits: [10/s]", text or "port: 25"))
    made, kept, notes = under(fresh, [change("accounts.main.limits", ["14/s"], ["10/s"])])
    assert not kept and made is fresh
    assert len(notes) == 1 and why in notes[0] and "accounts.main.limits" in notes[0] and "uid 0" in notes[0]


def test_stays_where_the_file_changed_elsewhere(config: Loader) -> None:
    fresh = config(FILE.replace("connections: 4", "connections: 9"))
    made, kept, notes = under(fresh, [change("accounts.main.limits", ["14/s"], ["10/s"])])
    assert (len(kept), notes, rates(made, "main"), made.accounts["main"].connections) == (1, [], ["14/s"], 9)


def test_dropped_with_its_owner(config: Loader) -> None:
    fresh = config(FILE.replace("direct: {mx: {}}\n", "").replace(", mx]", "]"))
    _, kept, notes = under(fresh, [change("direct.mx.connections", 2), change("accounts.main.connections", 5, 4)])
    assert [c.text for c in kept.values()] == ["accounts.main.connections"]
    assert "direct.mx is no more" in notes[0]


def test_what_is_built_in_has_no_entry_in_the_file(config: Loader) -> None:
    """The same words in the file are refused: there another entry is to be made."""
    fresh = config(FILE.replace("direct: {mx: {}}\n", "").replace(", mx]", ", direct]"))
    made, kept, notes = under(fresh, [change("direct.direct.limits", ["5/min"])])
    assert (rates(made, "direct"), len(kept), notes) == (["5/min"], 1, [])
    assert "direct" not in fresh.tree.plain()
    with pytest.raises(ConfigError) as caught:
        config(FILE.replace("direct: {mx: {}}", "direct: {direct: {limits: [5/min]}}"))
    assert any("choose another" in problem.text for problem in caught.value.problems)


def test_what_is_built_in_and_unused_is_no_entry_to_warn_of(config: Loader) -> None:
    made, kept, _ = under(config(FILE), [change("direct.direct.limits", ["5/min"])])
    assert len(kept) == 1 and not any("direct.direct" in warning for warning in made.warnings)


def test_an_entry_of_a_list_is_known_by_its_name(config: Loader) -> None:
    fresh = config(FILE + "limits: [5/h, {name: a, rate: 6/h}, {rate: 7/h}]\n")
    made, kept, notes = under(fresh, [change("limits.a.rate", "1/h", "6/h"), change("limits.limit-1.rate", "2/h")])
    assert [limit.rate.text for limit in made.limits] == ["5/h", "1/h", "7/h", "9/d"]
    assert [c.text for c in kept.values()] == ["limits.a.rate"] and "limits.limit-1 is no more" in notes[0]
    with pytest.raises(ConfigError) as caught:
        laid(fresh, change("limits.a.rate", "often"))
    assert [problem.path for problem in caught.value.problems] == ["limits.a.rate"]


def test_what_no_longer_fits_is_dropped_and_the_rest_stays(config: Loader) -> None:
    fit, not_fit = change("accounts.main.connections", 5, 4), change("accounts.main.limits", ["x"], ["10/s"])
    made, kept, notes = under(config(FILE), [fit, not_fit])
    assert list(kept.values()) == [fit] and made.accounts["main"].connections == 5
    assert "does not fit the file: accounts.main.limits" in notes[0]


def test_null_or_what_the_file_says_takes_it_back(config: Loader) -> None:
    root = config(FILE).tree
    path = ("accounts", "main", "connections")
    changes = overlay.changed(root, {}, path, 7, "uid 0", 1.0)
    assert [(c.value, c.file) for c in changes.values()] == [(7, 4)]
    assert [c.value for c in overlay.changed(root, changes, path, 8, "uid 1", 2.0).values()] == [8]
    assert not overlay.changed(root, changes, path, None, "uid 1", 2.0)
    assert not overlay.changed(root, changes, path, 4, "uid 1", 2.0)


def test_kept_as_a_document() -> None:
    changes = {c.path: c for c in (change("accounts.main.limits", ["14/s"], ["10/s"]), change("users.ä.limits", []))}
    text = overlay.document(changes)
    assert text is not None and overlay.read(text) == list(changes.values())
    assert overlay.document({}) is None


@pytest.mark.parametrize(
    "text",
    [
        "{}", "[1]", "nonsense", '[{"section": "accounts"}]',
        '[{"section": "accounts", "name": "m", "key": "password", "value": 1, "file": 1, "who": "", "at": 1}]',
        '[{"section": [], "name": "m", "key": "limits", "value": 1, "file": 1, "who": "", "at": 1}]',
    ],
    ids=["map", "number", "no-json", "short", "another-key", "no-text"],
)  # fmt: skip
def test_a_damaged_document_is_refused(text: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        overlay.read(text)
