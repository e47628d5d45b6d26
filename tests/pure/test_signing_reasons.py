"""Why nobody signs for a From domain, and what to do about it, by the entry that comes nearest."""

from __future__ import annotations

import pytest

from relay.policy.alignment import verdict
from relay.signing.keys import generate
from relay.signing.rules import Rule, Rules, bound, why_not

KEY = generate("ed25519")
NOV20 = 1_795_132_800.0  # 2026-11-20, midnight UTC
NOW = NOV20 + 86400.0


def entry(domain: str, line: int, **more: object) -> Rule:
    return Rule(domain, f"s{line}", KEY, origin=f"/etc/relay/relay.yaml:{line}", **more)  # type: ignore[arg-type]


def why(*entries: Rule, domain: str = "example.org", user: str = "crm", seen: bool | None = False) -> str:
    return why_not(Rules(entries), domain, user, "all", NOW, lambda rule, d: seen)


@pytest.mark.parametrize(
    ("entries", "domain", "expected"),
    [
        ([], "example.org", "add `signing` for example.org"),
        ([entry("other.example", 9)], "example.org", "add `signing` for example.org"),
        (
            [entry("example.org", 17, when_published=True)],
            "example.org",
            "publish s17._domainkey.example.org (relay dkim dns example.org)",
        ),
        (
            [entry("*", 17, when_published=True, sign_as="")],
            "shop.example",
            "publish s17._domainkey.shop.example (relay dkim dns shop.example)",
        ),
        (
            [entry("example.org", 17, not_after=NOV20)],
            "example.org",
            "its only key is over since 2026-11-20 (relay.yaml:17); give it a successor",
        ),
        (
            [entry("example.org", 16, not_after=NOV20 - 86400), entry("example.org", 17, not_after=NOV20)],
            "example.org",
            "its last key is over since 2026-11-20 (relay.yaml:17); give it a successor",
        ),
        (
            [entry("example.org", 16, not_after=NOV20), entry("example.org", 18, not_before=NOW + 3600)],
            "example.org",
            "its next key signs from 2026-11-21T01:00:00Z on (relay.yaml:18); set `not_before` earlier",
        ),
        (
            [entry("example.org", 24, users=("shop",))],
            "example.org",
            "relay.yaml:24 signs for user shop only; add `signing` for example.org, or widen that entry",
        ),
        (
            [entry("example.org", 24, routes=("news", "bulk")), entry("example.org", 25, users=("shop",))],
            "example.org",
            "relay.yaml:24 signs for route news or bulk only, and 1 more for others; add `signing` for example.org, or widen "
            "that entry",
        ),
        (
            [entry("example.org", 32)],
            "sub.example.org",
            "add `signing` for sub.example.org, or `subdomains: true` at relay.yaml:32",
        ),
        (
            [entry("*.example.org", 25)],
            "example.org",
            "add `signing` for example.org: relay.yaml:25 is for domains below example.org, not example.org itself",
        ),
        (
            [entry("example.org", 40, sign_as="other.example")],
            "example.org",
            "relay.yaml:40 signs it as other.example; add `signing` for example.org without `as`",
        ),
        ([entry("example.org", 40)], "example.org", ""),
        ([entry("*", 40)], "", ""),
    ],
)
def test_the_reason_is_the_nearest_entry(entries: list[Rule], domain: str, expected: str) -> None:
    assert why(*entries, domain=domain) == expected


def test_a_key_of_which_nobody_knows_yet_is_not_called_unpublished() -> None:
    rule = entry("example.org", 17, when_published=True)
    expected = "whether s17._domainkey.example.org is published is not known yet (relay dkim dns example.org)"
    assert why(rule, seen=None) == expected
    choices = [Rules((rule,)).choose("example.org", "", "all", NOW, lambda r, d, s=s: s) for s in (None, False)]  # type: ignore[misc]
    assert [c.waiting[0][1] for c in choices] == [
        "waits: the DNS has not answered yet (when_published)",
        "waits: its record has not been seen (when_published)",
    ]


def test_entries_for_others_are_those_of_the_closest_domain() -> None:
    near, far = entry("example.org", 24, users=("shop",)), entry("*", 25, users=("shop",))
    assert bound(Rules((far, near)), "example.org", "crm", "all") == [(near, "user shop")]
    assert bound(Rules((far, near)), "example.org", "shop", "all") == []


def test_the_verdict_takes_the_advice() -> None:
    found = verdict("example.org", [], "example.net")
    better = found.mended_by("publish s1._domainkey.example.org (relay dkim dns example.org)")
    assert better.why.endswith("or quarantine it; publish s1._domainkey.example.org (relay dkim dns example.org)")
    assert found.mended_by("") is found
    good = verdict("example.org", ["example.org"], "")
    assert good.mended_by("x") is good
