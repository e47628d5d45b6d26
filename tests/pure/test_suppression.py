"""What suppresses, for whose mail and for how long; the index in memory against a dict."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from conftest import NOW
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from relay.policy import suppression
from relay.policy.suppression import Cause, Index, SuppressionRule, Why, learnt, plain, refusal, scope_of, scopes

ALL = SuppressionRule(frozenset({"hard_bounce", "complaint", "unsubscribe"}), 5)
DAY = 86400.0


def learn(rule: SuppressionRule, cause: Cause, address: str = "Ann@Example.NET"):  # type: ignore[no-untyped-def]
    return learnt(rule, cause, address, "bulk", "shop", "550 5.1.1 gone", "smtp", NOW, 7)


def test_a_hard_bounce_ends_after_a_time_and_a_persons_word_never() -> None:
    (bounced,), soft = learn(ALL, "hard_bounce")
    assert not soft
    assert bounced == suppression.Suppression(
        "ann@example.net", "tenant:shop", Why.HARD_BOUNCE, "550 5.1.1 gone", "smtp", NOW, NOW + 180 * DAY, 7
    )
    (complained,), _ = learn(ALL, "complaint")
    assert (complained.why, complained.scope, complained.until) == (Why.COMPLAINT, "tenant:shop", 0.0)
    (gone,), _ = learn(ALL, "unsubscribe")
    assert (gone.why, gone.scope, gone.until) == (Why.UNSUBSCRIBE, "class:bulk", 0.0)
    (ever,), _ = learn(replace(ALL, expire=None), "hard_bounce")
    assert ever.until == 0.0


def test_soft_bounces_are_counted_where_a_rule_says_how_many() -> None:
    none, (softly,) = learn(ALL, "soft_bounce")
    assert not none and (softly.count, softly.within) == (5, 7 * DAY)
    assert (softly.entry.why, softly.entry.until) == (Why.SOFT_BOUNCES, NOW + 180 * DAY)
    assert learn(replace(ALL, soft_count=0), "soft_bounce") == ([], [])


def test_without_a_section_only_an_unsubscription_counts() -> None:
    causes: tuple[Cause, ...] = ("hard_bounce", "soft_bounce", "complaint", "unsubscribe")
    assert [bool(learn(SuppressionRule(), cause)[0]) for cause in causes] == [False, False, False, True]


@pytest.mark.parametrize("address", ["", "@", "ann", "a@b\r\nX: y", "x" * 400 + "@b.example", "a b@c.example"])
def test_what_is_no_address_comes_to_nothing(address: str) -> None:
    assert learn(ALL, "hard_bounce", address) == ([], [])


def test_evidence_is_one_clean_line() -> None:
    (made,), _ = learnt(ALL, "complaint", "a@b.example", "", "", "spam\r\n\x1b[2J" + "x" * 9999, "ses", NOW)
    assert made.evidence.isprintable() and len(made.evidence) <= 500 and made.scope == "" and made.message == 0


def test_scopes() -> None:
    assert scope_of("all", "bulk", "shop") == "" and scope_of("tenant", "bulk", "") == ""
    assert scope_of("class", "", "shop") == "class:default" and scope_of("tenant", "bulk", "shop") == "tenant:shop"
    assert scopes("", "") == ("",) and scopes("bulk", "shop") == ("", "tenant:shop", "class:bulk")


def test_an_address_has_no_case_and_a_domain_one_writing() -> None:
    assert plain("Ann@BÜCHER.example") == plain("ann@xn--bcher-kva.EXAMPLE") == "ann@xn--bcher-kva.example"
    index = Index([("", "ann@xn--bcher-kva.example", Why.MANUAL)])
    assert index.find("ANN@bücher.example", ("",)) is Why.MANUAL


@pytest.mark.parametrize(
    ("written", "compared"),
    [
        ('"Ann"@x.example', "ann@x.example"),
        ('"a\\nn.b"@x.example', "ann.b@x.example"),
        ('"a b"@x.example', '"a b"@x.example'),
        ('"a\\ \\"b"@x.example', '"a \\"b"@x.example'),
        ('"a."@x.example', '"a."@x.example'),
        ('""@x.example', '""@x.example'),
        ('"a@b"@x.example', '"a@b"@x.example'),
    ],
)
def test_quotes_that_are_not_needed_are_no_other_mailbox(written: str, compared: str) -> None:
    assert plain(written) == compared == plain(compared)
    assert Index([("", compared, Why.MANUAL)]).find(written, ("",)) is Why.MANUAL


@given(st.text(max_size=40))
def test_any_text_is_plain_at_once(text: str) -> None:
    assert plain(plain(text)) == plain(text)


def test_what_a_client_hears() -> None:
    said = str(refusal("ann@example.net", Why.HARD_BOUNCE))
    assert said.startswith("550 5.7.1 <ann@example.net> is suppressed (hard bounce)")


SCOPES, ADDRESSES = ("", "tenant:shop", "class:bulk"), [f"a{n}@x.example" for n in range(12)]
KEYS = st.tuples(st.sampled_from(SCOPES), st.sampled_from(ADDRESSES))
WHYS = st.sampled_from(Why)


class Model(RuleBasedStateMachine):
    """The index beside a dict."""

    @initialize(entries=st.dictionaries(KEYS, WHYS))
    def load(self, entries: dict[tuple[str, str], Why]) -> None:
        self.model = entries
        self.index = Index((*key, why) for key, why in entries.items())

    @rule(key=KEYS, why=WHYS)
    def add(self, key: tuple[str, str], why: Why) -> None:
        self.model[key] = why
        self.index.add(*key, why)

    @rule(key=KEYS)
    def remove(self, key: tuple[str, str]) -> None:
        self.model.pop(key, None)
        self.index.remove(*key)

    @rule(address=st.sampled_from(ADDRESSES), asked=st.permutations(SCOPES), but=st.sets(WHYS))
    def find(self, address: str, asked: list[str], but: set[Why]) -> None:
        known = (self.model.get((scope, address)) for scope in asked)
        expected = next((why for why in known if why is not None and why not in but), None)
        assert self.index.find(address.upper(), asked, but) is expected

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "model"):
            assert len(self.index) == len(self.model) and bool(self.index) is bool(self.model)
            assert +self.index.counts == Counter(self.model.values())


TestIndex = Model.TestCase
TestIndex.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_million_take_eight_bytes_each_and_none_holds_up_the_loop() -> None:
    index = Index(("", f"r{n}@x.example", Why.HARD_BOUNCE) for n in range(100_000))
    assert sum(shard.itemsize * len(shard) for shard in index._shards) == 800_000
    assert max(len(shard) for shard in index._shards) < 100_000 / 256 * 1.5, "to add one moves a part of one of them"
    assert index.find("r99999@x.example", ("class:x", "")) is Why.HARD_BOUNCE
    assert not any(index.find(f"s{n}@x.example", ("", "class:x")) for n in range(10_000))
