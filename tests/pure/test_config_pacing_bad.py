"""Mistakes in limits, warm-up, hours, breaker and shaping: each told once, at its place, with what was meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from relay.config.load import ConfigError, load

Problems = Callable[[str], list[str]]
END = "accounts: {main: {host: 127.0.0.1}}\nroutes: [{via: main}]\n"


@pytest.fixture
def problems(tmp_path: Path) -> Problems:
    def told(text: str) -> list[str]:
        file = tmp_path / "relay.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load(file, {"HOME": "/nowhere"})
        return [f"{p.line}:{p.column}: {p.path}: {p.text}" for p in caught.value.problems]

    return told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{rate: 5/d, burst: 0}", "1:29: limits[1].burst: expected how many may go at once, from 1 up, found the number 0"),
        ("{rate: 5/d, burst: 5MB}", "1:29: limits[1].burst: expected a number of recipients"),
        ("{rate: 5 connections/d}", "1:17: limits[1].rate: this rate counts mail; connections are limited at accounts, direct "
         "entries and destinations"),
        ("{rate: 5/d, when_full: wait}", "1:33: limits[1].when_full: expected one of defer, reject, next, found the string "
         "'wait'"),
        ("{rate: 5/d, per: egress, when_full: reject}", "1:46: limits[1].when_full: nobody knows yet by what it will leave "
         "when mail is handed in; with `per: egress` use defer or next"),
        ("{rate: 5/d, per: [user, user]}", "1:34: limits[1].per: 'user' is named twice"),
        ("{rate: 5/d, per: account}", "1:27: limits[1].per: expected one of sender, from, user, tenant, class, destination, "
         "egress, found the string 'account'"),
        ("{rate: 5/d, timezone: 5}", "1:32: limits[1].timezone: expected a time zone such as Europe/Berlin, or UTC, found the "
         "number 5"),
        ("{rate: 5/d, match: {user: nobody}}", "1:36: limits[1].match.user: no user 'nobody'; there is none"),
        ("{rate: 5/d, match: {reputation: 0.7}}", "1:42: limits[1].match.reputation: expected a bound such as \"< 0.7\" with one "
         "of > >= < <= and 0 to 1, found the number 0.7"),
        ("{rate: 5/d, match: {reputation: '< 1.5'}}", "1:42: limits[1].match.reputation: expected a bound such as \"< 0.7\" with "
         "one of > >= < <= and 0 to 1, found the string '< 1.5'"),
        ("{per: user}", "1:10: limits[1]: 'rate' is missing"),
        ("{name: a, rate: 5/d}, {name: a, rate: 6/d}", "1:39: limits.a.name: a second limit named 'a', the first at line 1"),
    ],
)  # fmt: skip
def test_a_limit_that_is_refused(problems: Problems, text: str, told: str) -> None:
    assert problems(f"limits: [{text}]\n{END}") == [told]


DAILY = "expected how much a day, such as 100/d or 100 messages/d, found"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("first: 5/d, until: 9/d", "1:14: direct.a.warm_up: 'start' is missing"),
        ("start: tomorrow, table: [1]", "1:31: direct.a.warm_up.start: expected a date such as 2026-12-01, found the string "
         "'tomorrow'"),
        ("start: 2026-02-30, table: [1]", "1:31: direct.a.warm_up.start: expected a date such as 2026-12-01, found the string "
         "'2026-02-30'; the calendar has no such day"),
        ("start: 2026-12-01, first: 100, until: 9/d", f"1:50: direct.a.warm_up.first: {DAILY} the bare number 100; write 100/d"),
        ("start: 2026-12-01, first: 5/h, until: 9/d", f"1:50: direct.a.warm_up.first: {DAILY} '5/h'; a warm-up goes by days"),
        ("start: 2026-12-01, first: 5 connections/d, until: 9/d", f"1:50: direct.a.warm_up.first: {DAILY} '5 connections/d'; a "
         "warm-up counts recipients or messages"),
        ("start: 2026-12-01, first: 5/d", "1:14: direct.a.warm_up: 'until' is missing: where the warm-up ends"),
        ("start: 2026-12-01, until: 5/d", "1:14: direct.a.warm_up: 'first' is missing: how much on the first day, or a `table`"),
        ("start: 2026-12-01, first: 5/d, until: 4/d", "1:62: direct.a.warm_up.until: `until` (4/d) is less than `first` (5/d)"),
        ("start: 2026-12-01, first: 5/d, until: 9 messages/d", "1:62: direct.a.warm_up.until: counts messages, where the others "
         "count recipients; say the same of all"),
        ("start: 2026-12-01, table: [5, 9 messages/d]", "1:54: direct.a.warm_up.table: counts messages, where the others "
         "count recipients; say the same of all"),
        ("start: 2026-12-01, table: []", "1:50: direct.a.warm_up.table: an empty table; say how much on each day, or remove the "
         "key"),
        ("start: 2026-12-01, table: [0]", "1:51: direct.a.warm_up.table: expected how much a day, from 1 up, found the number "
         "0"),
        ("start: 2026-12-01, table: [1], growth: 5%", "1:63: direct.a.warm_up.growth: `table` says how much on each day already; "
         "remove it or `growth`"),
        ("start: 2026-12-01, first: 5/d, until: 9/d, growth: 0%", "1:75: direct.a.warm_up.growth: expected by how much it grows "
         "each day, over 0% and up to 1000%, found the string '0%'"),
        ("start: 2026-12-01, first: 5/d, until: 9/d, growth: 20", "1:75: direct.a.warm_up.growth: expected a share such as 20%, "
         "found the number 20; write the % too"),
        ("start: 2026-12-01, table: [1], hold_above: {bounces: 101%}", "1:77: direct.a.warm_up.hold_above.bounces: expected a "
         "share up to 100%, found the string '101%'"),
        ("start: 2026-12-01, table: [1], overflow: a", "1:65: direct.a.warm_up.overflow: 'a' cannot take its own excess; name "
         "another egress, or remove the key"),
        ("start: 2026-12-01, table: [1], overflow: mian", "1:65: direct.a.warm_up.overflow: no account 'mian'; did you mean "
         "'main'?"),
        ("start: 2026-12-01, table: [1], overflow: p", "1:65: direct.a.warm_up.overflow: 'p' is a pool; name one account or "
         "direct entry"),
    ],
)  # fmt: skip
def test_a_warm_up_that_is_refused(problems: Problems, text: str, told: str) -> None:
    found = problems(f"direct: {{a: {{warm_up: {{{text}}}}}}}\npools: {{p: {{members: [main]}}}}\n{END}")
    assert found == [told]


def test_overflows_that_come_round(problems: Problems) -> None:
    plan = "warm_up: {start: 2026-12-01, table: [1], overflow: "
    text = f"direct:\n  a: {{{plan}b}}}}\n  b: {{{plan}c}}}}\n  c: {{{plan}b}}}}\n{END}"
    assert problems(text) == [
        "3:58: direct.b.warm_up.overflow: comes round: b to c to b; one of them must wait",
        "4:58: direct.c.warm_up.overflow: comes round: c to b to c; one of them must wait",
    ]


def test_a_destination_overflows_nowhere(problems: Problems) -> None:
    text = "destinations: [{warm_up: {start: 2026-12-01, table: [1], overflow: main}}]\nroutes: [{via: direct}]\n"
    assert problems(text) == [
        "1:68: destinations[1].warm_up.overflow: what a destination has in excess waits; `overflow` is of the warm-up of an "
        "account or direct entry"
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("window: {}", "1:23: classes.c.window: says neither `days` nor `hours`; say one, or remove the key"),
        ("window: {hours: 8-20}", "1:31: classes.c.window.hours: expected hours such as 08:00-20:00, found '8-20'"),
        ("window: {hours: 08:60-20:00}", "1:31: classes.c.window.hours: 08:60-20:00: a day's times are 00:00 to 24:00"),
        ("window: {hours: 24:00-08:00}", "1:31: classes.c.window.hours: 24:00-08:00: a day's times are 00:00 to 24:00"),
        ("window: {hours: 08:00-08:00}", "1:31: classes.c.window.hours: 08:00-08:00: is that no time at all, or a whole day? All "
         "day is 00:00-24:00"),
        ("window: {days: mo-fr}", "1:30: classes.c.window.days: no day 'mo'; expected days such as mon-fri or mon,wed,sat: mon, "
         "tue, wed, thu, fri, sat, sun"),
        ("window: {days: 5}", "1:30: classes.c.window.days: expected days such as mon-fri, or a list of them, found the number 5"),
        ("quiet: {hours: 00:00-24:00}", "1:22: classes.c.quiet: quiet always: nothing of this class could ever leave"),
        ("limits: [{rate: 1/s, when_full: x}]", "1:47: classes.c.limits[1].when_full: expected one of defer, reject, next, found "
         "the string 'x'"),
    ],
)  # fmt: skip
def test_a_class_that_is_refused(problems: Problems, text: str, told: str) -> None:
    assert problems(f"classes: {{c: {{{text}}}}}\n{END}") == [told]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{cool_down: 0s}", "1:22: breaker.cool_down: `cool_down` must be longer than nothing"),
        ("{cool_down: 1h}", "1:22: breaker.cool_down: `max` (30m) is shorter than `cool_down` (1h)"),
        ("{failures: 0}", "1:21: breaker.failures: must be at least 1, found the number 0"),
    ],
)
def test_a_breaker_that_is_refused(problems: Problems, text: str, told: str) -> None:
    assert problems(f"breaker: {text}\n{END}") == [told]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("match: {}, pause: true", "1:12: shaping[1].match: 'reply' is missing"),
        ("pause: true", "1:11: shaping[1]: 'match' is missing"),
        ("match: {reply: '('}, pause: true", "1:27: shaping[1].match.reply: not a regular expression: missing ), unterminated "
         "subpattern at position 0"),
        ("match: {reply: x}, slow: 100%", "1:37: shaping[1].slow: expected a share over 0% and below 100%, found the string "
         "'100%'; `pause` lets nothing leave"),
        ("match: {reply: x}, slow: 0.5", "1:37: shaping[1].slow: expected a share such as 20%, found the number 0.5; write the % "
         "too"),
        ("match: {reply: x}, connections: 0", "1:44: shaping[1].connections: expected how many sessions, such as 5, or a share of "
         "them such as 50%, found the number 0"),
        ("match: {reply: x}, connections: 100%", "1:44: shaping[1].connections: expected how many sessions, such as 5, or a share "
         "of them such as 50%, found the string '100%'"),
        ("match: {reply: x}, pause: false", "1:38: shaping[1].pause: expected true, found false; to do nothing, remove the key"),
        ("match: {reply: x}, pause: true, slow: 50%", "1:50: shaping[1].slow: while it pauses nothing leaves there; remove `slow` "
         "or `pause`"),
        ("match: {reply: x}, alarm: true, for: 0s", "1:49: shaping[1].for: `for` must be longer than nothing"),
        ("match: {reply: x, class: c}, alarm: true", "1:37: shaping[1].match.class: no class 'c'; there is default"),
        ("match: {reply: x, egress: mian}, alarm: true", "1:38: shaping[1].match.egress: no account 'mian'; did you mean 'main'?"),
        ("match: {reply: x, at: [lunch]}, alarm: true", "1:35: shaping[1].match.at: expected one of banner, ehlo, starttls, auth, "
         "mail, rcpt, data, dot, found the string 'lunch'"),
    ],
)  # fmt: skip
def test_shaping_that_is_refused(problems: Problems, text: str, told: str) -> None:
    assert problems(f"shaping: [{{{text}}}]\n{END}") == [told]


def test_all_at_once(problems: Problems) -> None:
    text = (
        f"{END}limits: [{{rate: 5/d, burst: 9}}, 5]\n"
        "breaker: {max: 0s}\n"
        "shaping: [{match: {reply: x}}, {match: {}, pause: true}]\n"
        "tenants: {t: {limits: [x]}}\n"
        "classes: {c: {quiet: {}}}\n"
    )
    assert [told.split(": ")[0] for told in problems(text)] == [
        "3:29", "3:33", "4:16", "5:11", "5:33", "6:24", "7:22",
    ]  # fmt: skip
