"""Section `suppression`: its defaults, what each key becomes, and what is wrong between them."""

from __future__ import annotations

from pathlib import Path

from relay.config.load import load
from relay.policy.suppression import SuppressionRule
from relay.settings import Config

HEAD = "accounts: {main: {host: smtp.example.com, port: 25}}\nroutes: [{via: main}]\n"
ALL = frozenset({"hard_bounce", "complaint", "unsubscribe"})
DAY = 86400.0


def loaded(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "relay.yaml"
    file.write_text(HEAD + text)
    return load(file)


def test_without_a_section_only_unsubscriptions_suppress(tmp_path: Path) -> None:
    found = loaded(tmp_path, "").suppression
    assert found == SuppressionRule() and found.on == {"unsubscribe"} and not found.learns


def test_a_section_learns_from_bounces_and_complaints(tmp_path: Path) -> None:
    found = loaded(tmp_path, "suppression: {}\n").suppression
    assert found == SuppressionRule(ALL) and found.learns and found.soft_count == 0


def test_every_key(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        "suppression: {on: [complaint], soft: {count: 3, within: 2d}, expire: null, scope: all, unsubscribe_scope: all, "
        "at_rcpt: accept}\n",
    ).suppression
    assert found == SuppressionRule(frozenset({"complaint"}), 3, 2 * DAY, None, "all", "all", "accept")


def test_soft_has_defaults_of_its_own(tmp_path: Path) -> None:
    found = loaded(tmp_path, "suppression: {soft: {}}\n").suppression
    assert (found.soft_count, found.soft_within) == (5, 7 * DAY)


def test_a_scope_of_tenants_without_any_is_told(tmp_path: Path) -> None:
    warned = loaded(tmp_path, "suppression: {scope: tenant}\n").warnings
    assert [w.partition("suppression")[2] for w in warned] == [".scope: there are no `tenants`, so it stops all mail"]
    assert not loaded(tmp_path, "suppression: {on: [complaint]}\n").warnings
