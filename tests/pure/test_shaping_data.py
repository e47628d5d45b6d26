"""The rules of `shaping` that are shipped: each fires on its own receiver's words, and on nobody's about a recipient or a message."""

from __future__ import annotations

import email
import json
import re
from pathlib import Path

import pytest
import yaml
from test_presets import ENTRIES

from relay.config.presets import FOLDER, RECEIVERS, load_preset, receivers
from relay.config.shaping import ACTIONS
from relay.nexthop.site import providers
from relay.policy.shaping import ShapingRule, fitting
from relay.reply import Reply, Stage

CORPUS = Path(__file__).parent.parent / "corpus" / "shaping"
# What the origin of the corpus calls a word about the sender's address, or about how much it sends.
ABOUT_US = {"blocked", "badreputation", "speeding", "toomanyconn", "rejected"}


RULES = list(receivers())
WORDS = yaml.safe_load((CORPUS / "ours.yaml").read_text())
OTHERS = yaml.safe_load((CORPUS / "others.yaml").read_text())
STAGES = (Stage.BANNER, Stage.MAIL, Stage.RCPT, Stage.DOT)


def fired(rules: list[ShapingRule], where: str, line: str, stages: tuple[Stage, ...] = STAGES) -> set[str]:
    """Names, at any of the stages; `where`: a provider or a domain."""
    sites, domain = ((where,), "example.net") if "." not in where else ((), where)
    text = str(Reply.parse(line))
    return {r.name for stage in stages for r in fitting(rules, "mx-1", {domain}, sites, "default", stage, text)}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_fires_on_its_own_words_and_no_other_does(rule: ShapingRule) -> None:
    for where in rule.destination or ("example.net",):
        for line in WORDS[rule.name]:
            assert fired(RULES, where, line) == {rule.name}, line


def test_every_rule_has_words_a_source_and_something_to_do() -> None:
    raw = yaml.safe_load(RECEIVERS.read_text())
    assert [rule.name for rule in RULES] == list(dict.fromkeys(rule.name for rule in RULES))
    assert set(WORDS) == {rule.name for rule in RULES}
    assert {entry["source"] for entry in raw["shaping"]} == set(raw["sources"]), "one that is missing, or not needed"
    known = {provider.name for provider in providers()}
    for entry, rule in zip(raw["shaping"], RULES, strict=True):
        assert set(ACTIONS) & set(entry), rule.name
        assert all(where in known or "." in where for where in rule.destination), rule.name
        assert rule.pattern.pattern.startswith("^"), f"{rule.name}: words deep in a reply may be anybody's"
    for source in raw["sources"].values():
        assert re.match(r"https?://|corpora ", source["url"])


@pytest.mark.parametrize("where", OTHERS)
def test_no_rule_fires_on_a_word_about_a_recipient_or_a_message(where: str) -> None:
    for line in OTHERS[where]:
        assert fired(RULES, where, line) == set(), line


def test_nobody_else_can_say_what_a_receiver_says() -> None:
    """A stranger's host that says Google's words is not Google's."""
    for rule in RULES:
        for line in WORDS[rule.name] if rule.destination else ():
            assert fired(RULES, "stranger.example", line) == set(), line


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("*.yaml")))
def test_what_a_preset_does_is_about_the_account(name: str) -> None:
    """By the table of real replies: a rule fires where the account is meant, and on at least one that is known."""
    rules = list(load_preset(name).shaping)
    seen: set[str] = set()
    for param in ENTRIES:
        provider, entry = param.values
        if provider in (name, name.partition("-")[0]):
            line, stage = entry["reply"], Stage(entry["at"])
            found = fired(rules, "example.net", line, (stage,))
            seen |= found
            assert not found or entry["scope"] == "account", (found, line)
    assert seen == {rule.name for rule in rules}


def test_the_corpus_of_bounces_fires_nothing_that_is_about_a_recipient_or_a_message(corpora: Path) -> None:
    """Every status line in 300 real bounces, as if any receiver had said it."""
    folder, heard, read_ = corpora / "bounces", set[str](), 0
    for file, rows in json.loads((folder / "expected.json").read_text()).items():
        reasons = {row["reason"] for row in rows}
        for line in lines(folder / file):
            for where in {w for rule in RULES for w in rule.destination} | {"example.net"}:
                found = fired(RULES, where, line)
                heard |= found
                assert not found or reasons & ABOUT_US, (file, reasons, found, line)
            read_ += 1
    assert read_ > 300 and {"yahoo-deferred", "microsoft-banned"} <= heard, (read_, heard)


def lines(file: Path) -> set[str]:
    text = file.read_bytes().decode("latin-1")
    found = {m[1] for m in re.finditer(r"(?m)^\s*(?:<<< )?([45]\d\d[ -][^\n]{5,})", text)}
    for part in email.message_from_string(text).walk():
        codes = part.get_all("Diagnostic-Code", [])
        found |= {re.sub(r"\s+", " ", str(code)).partition(";")[2].strip() for code in codes}
    return {re.sub(r"^(\d{3})-", r"\1 ", line) for line in found if re.match(r"[45]\d\d[ -]", line)}
