"""Which key signs when, and the times that a signature says: over a rotation, and for what waited for long."""

from __future__ import annotations

import re

import pytest

from relay import clock
from relay.prepare.message import Outbound, Ready
from relay.prepare.signatures import LONG, sign
from relay.signing.keys import generate
from relay.signing.rules import Rule, Rules

KEYS = [generate("ed25519") for _ in range(3)]
HEAD = b"From: a@example.com\r\n\r\n"
NOW = 1_800_000_000.0
DAY = 86400.0


def signed(waited: float, *rules: Rule, domain: str = "example.com") -> Ready:
    head = HEAD.replace(b"example.com", domain.encode())
    out = Outbound(1, 1, "a@example.com", "b@example.net", head, b"hi\r\n", 99, 0, NOW - waited)
    ready = Ready(out.sender, out.head, out.body, out.size, out.needs)
    sign(ready, out, Rules(rules), "all", lambda rule, domain: False)
    return ready


def tag(ready: Ready, name: str) -> int:
    found = re.search(rf"\b{name}=(\d+)".encode(), ready.head)
    assert found
    return int(found[1])


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", lambda: NOW)


def test_of_several_whose_time_is_over_the_last_one_stays() -> None:
    a = Rule("example.com", "a", KEYS[0], not_after=NOW - 99 * DAY)
    b = Rule("example.com", "b", KEYS[1], not_after=NOW - DAY)
    c = Rule("example.com", "c", KEYS[2], when_published=True)
    for order in ((a, b, c), (c, b, a)):
        assert signed(0, *order).signed == ("b._domainkey.example.com",)


@pytest.mark.parametrize("waited", [0.0, 60.0, 3599.0, 3600.0, 7 * DAY, 365 * DAY])
@pytest.mark.parametrize("expires", [3600.0, 14 * DAY])
def test_no_signature_leaves_that_is_about_to_expire(waited: float, expires: float) -> None:
    ready = signed(waited, Rule("example.com", "a", KEYS[0], expires=expires))
    assert tag(ready, "x") - tag(ready, "t") == expires
    assert tag(ready, "t") <= NOW and tag(ready, "x") - NOW >= expires / 2


def test_what_was_held_for_a_month_is_signed_by_the_key_of_today() -> None:
    old = Rule("example.com", "old", KEYS[0], not_after=NOW - 10 * DAY)
    new = Rule("example.com", "new", KEYS[1], not_before=NOW - 20 * DAY)
    assert signed(30 * DAY, old, new).signed == ("new._domainkey.example.com",)


def test_tries_within_the_usual_time_are_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Rule("example.com", "a", KEYS[0])
    first = signed(0, rule).head
    for later in (60.0, DAY, LONG - 1):
        monkeypatch.setattr(clock, "now", lambda later=later: NOW + later)
        assert signed(0, rule).head == first
    monkeypatch.setattr(clock, "now", lambda: NOW - DAY)  # the clock was set back
    assert signed(0, rule).head == first


def test_what_no_dns_name_is_becomes_no_tag() -> None:
    assert signed(0, Rule("*", "a", KEYS[0]), domain=".".join(["a" * 60] * 20)).signed == ()
