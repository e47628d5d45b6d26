"""Presets: the data is whole and sourced; each real reply is understood as it is meant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.config.load import load
from relay.config.presets import FOLDER, GENERIC, generic, load_preset, names, of_host
from relay.policy.replies import judge
from relay.reply import Reply, Result, Scope, Stage

TABLE = Path(__file__).parent.parent / "corpus" / "replies"
NOW = 1_790_000_000.0
PROMISED = {
    "gmail", "microsoft365", "ses", "sendgrid", "mailgun", "postmark", "brevo", "mailjet", "smtp2go", "fastmail", "sparkpost",
    "zoho", "ovh",
}  # fmt: skip


def entries() -> list[Any]:
    """Every reply of the table, with the provider that said it."""
    found = []
    for file in sorted(TABLE.glob("*.yaml")):
        for number, entry in enumerate(yaml.safe_load(file.read_text())):
            found.append(pytest.param(file.stem, entry, id=f"{file.stem}-{number}"))
    return found


ENTRIES = entries()


def test_the_promised_ones_are_there() -> None:
    assert set(names()) >= PROMISED
    assert GENERIC not in names()


@pytest.mark.parametrize("name", [*names(), GENERIC])
def test_a_preset_is_whole_and_every_fact_has_a_source_that_is_used(name: str) -> None:
    preset = load_preset(name)
    raw = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    used = {fact["source"] for fact in raw.get("facts", {}).values()} | {
        r["source"] for key in ("replies", "shaping") for r in raw.get(key, [])
    }
    assert used == set(raw["sources"]), "a source that nothing needs, or one that is missing"
    assert all(re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(s["seen"])) for s in raw["sources"].values())
    if name == GENERIC:
        return
    assert preset.host or preset.regions
    assert preset.port and preset.tls
    assert "{" not in preset.host or preset.regions
    assert all(host and "{" not in host for host in preset.regions.values())
    assert not preset.region or preset.region in preset.regions


def test_the_table_is_large_enough_and_every_reply_says_where_it_was_seen() -> None:
    assert len(ENTRIES) >= 60
    for param in ENTRIES:
        assert re.match(r"https?://|corpora ", param.values[1]["source"]), param.values[1]


@pytest.mark.parametrize(("name", "entry"), ENTRIES)
def test_a_real_reply_has_the_scope_that_is_meant(name: str, entry: dict[str, Any]) -> None:
    rules = generic() if name == GENERIC else load_preset(name).replies + generic()
    found = judge(rules, Stage(entry["at"]), Reply.parse(entry["reply"]), NOW)
    scope = {Scope.EGRESS: "account", Scope.NEXT_HOP: "next_hop"}.get(found.scope, found.scope.value)
    verdict = "permanent" if found.result is Result.HARD else "temporary"
    assert (scope, verdict) == (entry["scope"], entry["verdict"]), found
    if "then" in entry:
        assert found.remedy.value == entry["then"]
    if "wait" in entry:
        assert found.wait == pytest.approx(entry["wait"])


@pytest.mark.parametrize("name", [*names(), GENERIC])
def test_no_rule_of_a_dictionary_stands_there_twice(name: str) -> None:
    """The second would never be asked."""
    rules = load_preset(name).replies
    patterns = [rule.pattern.pattern for rule in rules]
    assert len({(p, rule.at) for p, rule in zip(patterns, rules, strict=True)}) == len(patterns)


@pytest.mark.parametrize("port", [25, 2525, 465])
def test_another_port_of_a_provider_is_not_spoken_to_in_clear(tmp_path: Path, port: int) -> None:
    """A relay that knows us by our address needs no login: then nothing else would ask for TLS."""
    file = tmp_path / "relay.yaml"
    file.write_text(f"accounts: {{main: {{preset: gmail-relay, port: {port}}}}}\nroutes: [{{via: main}}]\n")
    assert load(file).accounts["main"].tls.mode == ("implicit" if port == 465 else "starttls")


def test_the_host_of_a_provider_is_known() -> None:
    for host, name in {
        "SMTP.gmail.com.": "gmail",
        "email-smtp.eu-west-1.amazonaws.com": "ses",
        "mail.example.com": None,
    }.items():
        found = of_host(host)
        assert (found.name if found else None) == name


def test_a_providers_host_without_its_preset_is_told(tmp_path: Path) -> None:
    file = tmp_path / "relay.yaml"
    file.write_text("accounts: {main: {host: smtp.office365.com}}\nroutes: [{via: main}]\n")
    (warning,) = load(file).warnings
    assert "accounts.main.host: this is Microsoft 365 (Exchange Online): `preset: microsoft365` knows" in warning
