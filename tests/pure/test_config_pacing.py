"""Limits, warm-up, hours, breaker and shaping as users write them, and what becomes of them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config import pacevalues
from relay.config.load import load
from relay.policy.breaker import Health
from relay.policy.limits import Limit
from relay.policy.rate import Rate
from relay.policy.routing import Action, Match, Question, Route, Table
from relay.policy.warmup import HoldAbove, WarmUp
from relay.reply import Stage
from relay.settings import Config

Loader = Callable[[str], Config]
MAIN = "accounts: {main: {host: 127.0.0.1}}\nroutes: [{via: main}]\n"
SHOP = "listen: [{address: '127.0.0.1:0', auth: required}]\nusers: {shop: {password: {env: PATH}, MORE}}\n"


@pytest.fixture
def config(tmp_path: Path) -> Loader:
    def made(text: str) -> Config:
        file = tmp_path / "relay.yaml"
        file.write_text(text)
        return load(file, {"HOME": "/nowhere"})

    return made


def warnings(made: Config) -> list[str]:
    return [re.sub(r"^.*?relay\.yaml:", "", w) for w in made.warnings]


def bare(limit: Limit) -> Limit:
    return replace(limit, origin="")


def of(fact: str, *values: str) -> Match:
    return Match((Question(fact, values),))


# -- limits


def test_a_bare_rate_waits(config: Loader) -> None:
    made = config(
        "accounts: {main: {host: 127.0.0.1, limits: [14/s, {rate: 100/min, burst: 10, when_full: next}]}}\n"
        "routes: [{via: main}]\n"
    )
    plain, burst = made.accounts["main"].limits
    assert plain == Rate.parse("14/s")
    assert (plain.when_full, plain.burst) == ("defer", 0)
    assert burst == replace(Rate.parse("100/min"), burst=10, when_full="next")
    assert made.accounts["main"].recipients_per_message == 10  # more could never go at once
    assert made.limits == ()


def test_limits_of_mail(config: Loader) -> None:
    made = config(
        MAIN + "limits:\n"
        "  - 500000/d\n"
        "  - {name: mailbox, match: {recipient: '*@x.example', not: {tag: t}}, per: [sender, destination], rate: 30 messages/h,"
        " window: calendar, timezone: Europe/Berlin, burst: 5, when_full: next}\n"
        "  - {per: egress, rate: 9/s}\n"
    )
    first, second, third = made.limits
    assert bare(first) == Limit("limit-1", Rate.parse("500000/d"))
    assert first.origin.endswith("relay.yaml:4")
    rate = Rate(30, 3600.0, "messages", "30 messages/h", True, "Europe/Berlin", 5, "next")
    match = Match((Question("recipient", ("*@x.example",)),), (Question("tag", ("t",)),))
    assert bare(second) == Limit("mailbox", rate, match, ("sender", "destination"))
    assert (third.name, third.per, third.match) == ("limit-3", ("egress",), Match())


def test_limits_of_users_tenants_and_classes(config: Loader) -> None:
    made = config(
        MAIN
        + SHOP.replace("MORE", "tenant: retail, limits: [5000/d, 100/min, {rate: 9/d, window: calendar}, 7/d]")
        + "tenants: {retail: {limits: [20000/d]}, empty: {limits: [1/d]}}\n"
        "classes: {bulk: {limits: [{rate: 10/h, when_full: reject}]}}\n"
    )
    assert [(m.name, m.rate.text) for m in made.limits] == [
        ("user shop recipients/d", "5000/d"),
        ("user shop recipients/min", "100/min"),
        ("user shop recipients/d by the calendar", "9/d"),
        ("user shop recipients/d 2", "7/d"),
        ("tenant retail recipients/d", "20000/d"),
        ("class bulk recipients/h", "10/h"),
    ]
    assert [m.whose for m in made.limits] == ["user shop"] * 4 + ["tenant retail", "class bulk"]
    assert [m.match for m in made.limits] == [of("user", "shop")] * 5 + [of("class", "bulk")]
    assert made.limits[-1].rate.when_full == "reject"
    assert (made.tenants, made.tenant_of) == ({"retail": {"shop"}, "empty": frozenset()}, {"shop": "retail"})
    assert made.users["shop"].tenant == "retail"
    assert warnings(made) == ["5:40: tenants.empty: no user belongs to it: say `tenant` of one"]


def test_another_count_keeps_the_name(config: Loader) -> None:
    """What is spent is kept by the name, so `5000/d` that becomes `6000/d` does not begin anew."""
    first, second = (
        config(MAIN + SHOP.replace("MORE", f"limits: [{rate}]")).limits[0].name for rate in ("5000/d", "6000/d")
    )
    assert first == second


def test_a_header_that_a_limit_asks_for_is_read(config: Loader) -> None:
    assert not config(MAIN).asks_headers
    assert config(MAIN + "limits: [{rate: 1/s, match: {header: {X-Bulk: '*'}}}]\n").asks_headers


def test_per_tenant_without_tenants_warns(config: Loader) -> None:
    assert warnings(config(MAIN + "limits: [{rate: 1/s, per: tenant}]\n")) == [
        "3:27: limits[1].per: there are no `tenants`"
    ]


def test_reputation_is_a_bound(config: Loader) -> None:
    made = config(MAIN.replace("{via: main}", "{match: {reputation: ['< 0.7', '>= 1']}, via: main}, {via: main}"))
    (question,) = made.routes.routes[0].match.all_of
    assert question == Question("reputation", ("< 0.7", ">= 1"), (("<", 0.7), (">=", 1.0)))


# -- warm-up


def test_warm_up(config: Loader) -> None:
    made = config(
        "direct:\n"
        "  a: {}\n"
        "  b: {warm_up: {start: 2026-12-01, first: 100 messages/d, growth: 50%, max_step: 5000 messages/d,"
        " until: 50000 messages/d, spread: none, timezone: Europe/Berlin, overflow: a,"
        " hold_above: {bounces: 2%, complaints: 0.1%, deferrals: 20%}}}\n"
        "destinations: [{name: google, match: {mx: '*.google.com'}, warm_up: {start: 2026-12-01, first: 5/d, until: 10/d}}]\n"
        "accounts: {main: {host: 127.0.0.1, warm_up: {start: 2026-12-01, table: [100, 200/d]}}}\n"
        "routes: [{via: [b, main]}]\n"
    )
    above = HoldAbove(0.02, 0.001, 0.2)
    plan = WarmUp(date(2026, 12, 1), 100, 0.5, 5000, 50000, (), "messages", "none", "Europe/Berlin", "a", above)
    assert made.accounts["b"].warm_up == plan
    assert made.destinations[0].warm_up == WarmUp(date(2026, 12, 1), 5, until=10)
    assert made.destinations[0].origin.endswith("relay.yaml:4")
    assert made.accounts["main"].warm_up == WarmUp(date(2026, 12, 1), table=(100, 200))
    assert made.table.overflow == {"b": "a"}
    assert made.table.egresses(made.table.routes[0], lambda q: None) == ("b", "a", "main")
    assert made.warnings == ()  # `a` is used


def test_the_built_in_egress_takes_what_is_in_excess(config: Loader) -> None:
    made = config(
        "accounts: {main: {host: 127.0.0.1, warm_up: {start: 2026-12-01, table: [1], overflow: direct}}}\n"
        "routes: [{via: main}]\n"
    )
    assert made.accounts["direct"].source is not None
    assert made.table.by_mx(made.table.routes[0])  # so each destination is a lane of its own


def via(*names: str) -> Route:
    return Route("r", Action.VIA, via=names)


@pytest.mark.parametrize(
    ("names", "overflow", "found"),
    [
        (("a", "b"), {}, ("a", "b")),
        (("a", "b"), {"a": "c"}, ("a", "c", "b")),
        (("a", "b"), {"a": "b"}, ("a", "b")),
        (("a", "b", "c"), {"a": "c"}, ("a", "b", "c")),  # named by the route: it keeps its place
        (("a",), {"a": "b", "b": "c"}, ("a", "b", "c")),
        (("a", "d"), {"a": "b", "b": "d", "d": "c"}, ("a", "b", "c", "d")),
        (("a", "b"), {"a": "c", "b": "c"}, ("a", "c", "b")),
        (("a",), {"a": "x"}, ("a",)),  # x may not send as this sender
        (("p",), {"m": "c"}, ("m", "c", "n")),
        (("p",), {"m": "n"}, ("m", "n")),
        (("a",), {"a": "b", "b": "a"}, ("a", "b")),
    ],
)
def test_what_stands_behind_an_egress(names: tuple[str, ...], overflow: dict[str, str], found: tuple[str, ...]) -> None:
    table = Table(
        (via(*names),),
        senders={"x": Question("sender", ("*@other",))},
        overflow=overflow,
        pools={"p": (("m", 1), ("n", 1))},
    )
    assert table.egresses(table.routes[0], lambda q: False, {"p": "m"}) == found


# -- hours, breaker, shaping


def test_hours_of_a_class(config: Loader) -> None:
    made = config(
        MAIN + "classes:\n"
        "  a: {window: {days: mon-fri, hours: 08:00-20:00, timezone: Europe/Berlin}, quiet: {hours: 12:00 - 13:00}}\n"
        "  b: {window: {days: [sat, sun]}}\n"
        "  c: {quiet: {hours: 22:00-06:00}}\n"
    )
    a, b, c = (made.classes[name] for name in "abc")
    assert a.window is not None and b.window is not None and c.quiet is not None and a.quiet is not None
    assert (a.window.start, a.window.end, a.window.days) == (480, 1200, frozenset(range(5)))
    assert (a.window.timezone, a.quiet.timezone, a.quiet.start) == ("Europe/Berlin", "UTC", 720)
    assert (b.window.start, b.window.end, b.window.days, b.quiet) == (0, 1440, frozenset({5, 6}), None)
    assert (c.quiet.start, c.quiet.end, c.window) == (1320, 360, None)


def test_breaker(config: Loader) -> None:
    assert config(MAIN).breaker == Health()
    assert config(MAIN + "breaker: {failures: 3, cool_down: 10s, max: 1h}\n").breaker == Health(3, 10.0, 3600.0)


def test_shaping(config: Loader) -> None:
    made = config(
        MAIN + "classes: {bulk: {}}\n"
        "shaping:\n"
        "  - {name: fast, match: {reply: '^421 4\\.7\\.28', destination: google, egress: [main, 'mx-*'], class: bulk,"
        " at: [rcpt, dot]}, slow: 50%, connections: 25%, drop: true, next: true, alarm: true, for: 2h}\n"
        "  - {match: {reply: 'blocked'}, pause: true}\n"
        "  - {match: {reply: 'x'}, connections: 1, suppress: true}\n"
    )
    one, two, three = made.shaping
    assert (one.name, one.pattern.pattern, one.seconds) == ("fast", "^421 4\\.7\\.28", 7200.0)
    assert (one.egress, one.destination, one.class_) == (("main", "mx-*"), ("google",), ("bulk",))
    assert (one.at, one.slow, one.connections) == (frozenset({Stage.RCPT, Stage.DOT}), 0.5, 0.25)
    assert (one.drop, one.next, one.alarm, one.pause, one.suppress) == (True, True, True, False, False)
    assert one.origin.endswith("relay.yaml:5")
    assert (two.name, two.pause, two.seconds, two.slow, two.connections) == ("shaping-2", True, 1800.0, None, None)
    assert two.pattern.search("554 BLOCKED")
    assert (three.connections, three.suppress) == (1.0, True)


# -- values


@given(st.integers(1, 999_999))
def test_a_share_is_a_hundredth(number: int) -> None:
    assert pacevalues.parse_share(f"{number}%") == number / 100


PARSERS = [name for name in dir(pacevalues) if name.startswith("parse_") and name != "parse_size"]
JUNK = st.one_of(st.none(), st.booleans(), st.floats(), st.dictionaries(st.text(), st.text()), st.just(""), st.just([]))


@given(JUNK, st.sampled_from(PARSERS))
def test_junk_is_refused_in_words(value: object, name: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        getattr(pacevalues, name)(value)


@given(st.text(max_size=20), st.sampled_from(PARSERS))
def test_no_text_raises_anything_else(value: str, name: str) -> None:
    with contextlib.suppress(ValueError):
        getattr(pacevalues, name)(value)
