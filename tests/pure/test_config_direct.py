"""Delivery by MX as users write it: `direct`, `pools`, `destinations`, `dns.trust_ad`."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.config import presets
from relay.config.load import ConfigError, load
from relay.policy.rate import Rate
from relay.policy.routing import Match, Question
from relay.reply import Scope
from relay.secrets import Reference
from relay.settings import ANYWHERE, Account, Config, Destination, Dns, Pool, Source, Tls

Loader = Callable[[str], Config]
NO_ADDRESS = "203.0.113.5"  # RFC 5737: nobody has it


@pytest.fixture
def config(tmp_path: Path) -> Loader:
    def made(text: str) -> Config:
        file = tmp_path / "relay.yaml"
        file.write_text(text)
        return load(file, {"HOME": "/nowhere"})

    return made


def problems(config: Loader, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(text)
    return [f"{p.line}:{p.column}: {p.path}: {p.text}" for p in caught.value.problems]


def warnings(made: Config) -> list[str]:
    return [re.sub(r"^.*?relay\.yaml:", "", w) for w in made.warnings]


# What it becomes


def test_direct_is_there_without_being_written(config: Loader) -> None:
    made = config("routes: [{via: direct}]\n")
    assert made.accounts == {
        "direct": Account(
            "direct",
            Reference("plain", "mx"),
            25,
            Tls("opportunistic", verify=False),
            connections=200,
            replies=presets.generic(),
            shaping=presets.receivers(),
            source=Source(),
        )
    }
    assert (made.pools, made.destinations, made.warnings) == ({}, (), ())


@pytest.mark.parametrize(
    ("more", "there"),
    [
        ("routes: [{via: main}]", False),
        ("routes: [{via: [main, direct]}]", True),
        ("routes: [{via: main}]\ndsn: {via: direct}", True),
        ("routes: [{via: [main, p]}]\npools: {p: [direct]}".replace("[direct]", "{members: [direct]}"), True),
    ],
)
def test_only_where_something_names_it(config: Loader, more: str, there: bool) -> None:
    made = config(f"accounts: {{main: {{host: 127.0.0.1}}}}\n{more}\n")
    assert ("direct" in made.accounts) is there
    assert made.warnings == ()


def test_an_entry_with_all_that_it_may_say(config: Loader) -> None:
    made = config(
        "direct:\n"
        "  mx-1:\n"
        "    source: ['::1', 127.0.0.1]\n"
        "    hostname: mx1.example.com\n"
        "    senders: ['*@a.example', '']\n"
        "    connections: 7\n"
        "    limits: [40/min, 9 connections/s, {rate: 60/d, window: calendar, timezone: Europe/Berlin}]\n"
        "    replies: [{reply: '^550 own', scope: destination}]\n"
        "routes: [{via: mx-1}]\n"
    )
    one = made.accounts["mx-1"]
    assert one.source == Source("127.0.0.1", "::1", "mx1.example.com")
    assert (one.senders, one.connections, one.signs) == (("*@a.example", ""), 7, False)
    berlin = Rate(60, 86400.0, "recipients", "60/d", True, "Europe/Berlin")
    assert one.limits == (Rate.parse("40/min"), Rate.parse("9 connections/s"), berlin)
    assert one.recipients_per_message == 40  # a transaction of more could never leave; connections are no recipients
    own, *others = one.replies
    assert (own.pattern.pattern, own.scope) == ("^550 own", Scope.DESTINATION)
    assert tuple(others) == presets.generic()
    assert made.table.senders == {"mx-1": Question("sender", ("*@a.example", ""))}
    assert made.warnings == ()


def test_one_address_alone_is_one_family(config: Loader) -> None:
    made = config("direct: {a: {source: 127.0.0.1}, b: {source: '0:0::1'}}\nroutes: [{via: [a, b]}]\n")
    assert made.accounts["a"].source == Source("127.0.0.1")
    assert made.accounts["b"].source == Source(v6="::1")


def test_a_short_name_in_ehlo_only_warns(config: Loader) -> None:
    made = config("direct: {a: {hostname: mx1}, b: {hostname: mx1.example.com}}\nroutes: [{via: [a, b]}]\n")
    text = "'mx1' is not fully qualified (RFC 5321 §2.3.5): many receivers refuse it in EHLO"
    assert warnings(made) == [f"1:24: direct.a.hostname: {text}"]


def test_an_address_that_is_not_here_only_warns(config: Loader) -> None:
    made = config(f"direct: {{mx-1: {{source: [{NO_ADDRESS}]}}}}\nroutes: [{{via: mx-1}}]\n")
    assert warnings(made) == [
        f"1:26: direct.mx-1.source: this machine has no address {NO_ADDRESS} now; nothing leaves from it until it has"
    ]


def test_an_address_in_use_is_here(config: Loader) -> None:
    with socket.create_server(("127.0.0.1", 0)):
        assert config("direct: {a: {source: 127.0.0.1}}\nroutes: [{via: a}]\n").warnings == ()


def test_pools(config: Loader) -> None:
    made = config(
        "accounts: {main: {host: 127.0.0.1}}\n"
        "direct: {mx-1: {}}\n"
        "pools:\n"
        "  bulk: {members: {mx-1: 3, main: 1, direct: 1000}, sticky: message}\n"
        "  even: {members: [main, mx-1]}\n"
        "routes: [{via: [bulk, even]}]\n"
        "dsn: {via: bulk}\n"
    )
    assert made.pools == {
        "bulk": Pool("bulk", (("mx-1", 3), ("main", 1), ("direct", 1000))),
        "even": Pool("even", (("main", 1), ("mx-1", 1))),
    }
    assert list(made.accounts) == ["main", "mx-1", "direct"]
    assert made.routes.routes[0].via == ("bulk", "even")
    assert made.warnings == ()


def test_destinations(config: Loader, tmp_path: Path) -> None:
    made = config(
        "routes: [{via: direct}]\n"
        "destinations:\n"
        "  - {name: google, match: {mx: '*.google.com.'}, connections: 5, limits: [30/min, 10 connections/min]}\n"
        "  - match: {mx: [a.example, b.example], recipient: '*@x.example', not: {recipient: 'vip@*', mx: c.example}}\n"
        "    per: domain\n"
        "    messages_per_connection: 1\n"
        "    recipients_per_message: 2\n"
        "    port: 2525\n"
        "    allow_private: true\n"
        "  - {match: {}, per: relay}\n"
    )
    google, second, third = made.destinations
    assert google == Destination(
        "google",
        Match((Question("mx", ("*.google.com",)),)),
        connections=5,
        recipients_per_message=30,
        limits=(Rate.parse("30/min"), Rate.parse("10 connections/min")),
        origin=f"{tmp_path}/relay.yaml:3",
    )
    assert second == Destination(
        "destination-2",
        Match(
            (Question("mx", ("a.example", "b.example")), Question("recipient", ("*@x.example",))),
            (Question("mx", ("c.example",)), Question("recipient", ("vip@*",))),
        ),
        "domain",
        messages_per_connection=1,
        recipients_per_message=2,
        port=2525,
        allow_private=True,
        origin=f"{tmp_path}/relay.yaml:4",
    )
    assert (third.name, third.match, third.per, third.origin[-3:]) == ("destination-3", Match(), "relay", ":10")
    assert made.warnings == ()
    assert (ANYWHERE.per, ANYWHERE.tls) == ("mx", None)


PIN = "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("none", Tls("none", verify=False)),
        ("opportunistic", Tls("opportunistic", verify=False)),
        ("starttls", Tls("starttls")),
        ("{mode: starttls, minimum: 1.3}", Tls("starttls", minimum="1.3")),
        ("{verify: true}", Tls("starttls")),
        ("{ca: /etc/hostname}", Tls("starttls", ca=Path("/etc/hostname"))),
        (f"{{pin: '{PIN}'}}", Tls("starttls", pin=(PIN,))),
        (f"{{verify: false, pin: '{PIN}'}}", Tls("starttls", verify=False, pin=(PIN,))),
    ],
)
def test_tls_of_a_destination(config: Loader, said: str, meant: Tls) -> None:
    made = config(f"routes: [{{via: direct}}]\ndestinations: [{{tls: {said}}}]\n")
    assert made.destinations[0].tls == meant
    assert made.warnings == ()


def test_tls_of_a_destination_that_anybody_could_pose_as(config: Loader) -> None:
    made = config("routes: [{via: direct}]\ndestinations: [{tls: {verify: false}}]\n")
    assert made.destinations[0].tls == Tls("starttls", verify=False)
    assert warnings(made) == [
        "2:31: destinations[1].tls.verify: any server can pose as this one; trust its certificate by `ca` or `pin`"
    ]


@pytest.mark.parametrize(
    ("dns", "told"),
    [
        ("{servers: [127.0.0.1, '::1', '127.0.0.53:5353', '[::1]:5353'], trust_ad: true}", ""),
        ("{servers: [9.9.9.9]}", ""),
        ("{trust_ad: true}", "the servers of /etc/resolv.conf"),
        ("{servers: [127.0.0.1, '9.9.9.9:53'], trust_ad: true}", "9.9.9.9:53"),
        ("{servers: ['[2620:fe::fe]:53'], trust_ad: true}", "[2620:fe::fe]:53"),
    ],
)
def test_whose_ad_bit_counts(config: Loader, dns: str, told: str) -> None:
    made = config(f"routes: [{{via: direct}}]\ndns: {dns}\n")
    assert made.dns.trust_ad is ("trust_ad" in dns)
    assert [w.partition(": ")[2] for w in warnings(made)] == [
        f"dns.trust_ad: anybody between us and {told} could set the AD bit (RFC 4035 §4.9.3); "
        "name a validating resolver on this machine, such as servers: [127.0.0.1]"
    ] * bool(told)


def test_it_does_not_count_unasked(config: Loader) -> None:
    assert config("routes: [{via: direct}]\n").dns == Dns(trust_ad=False)


def test_accounts_are_asked_for_connections_too(config: Loader) -> None:
    text = "accounts: {main: {host: 127.0.0.1, limits: [10 connections/min, 5 messages/s]}}\nroutes: [{via: main}]\n"
    assert config(text).accounts["main"].limits == (Rate.parse("10 connections/min"), Rate.parse("5 messages/s"))
    assert config(text).accounts["main"].recipients_per_message == 100


# What nothing uses, and who may report


def test_what_nothing_uses(config: Loader) -> None:
    made = config(
        "accounts: {main: {host: 127.0.0.1}}\n"
        "direct:\n"
        "  mx-1: {}\n"
        "  mx-2: {}\n"
        "pools:\n"
        "  bulk: {members: [mx-2]}\n"
        "destinations: [{name: all}, {match: {mx: x.example}}]\n"
        "routes: [{via: main}]\n"
    )
    assert warnings(made) == [
        "3:3: direct.mx-1: no route uses this entry",
        "6:3: pools.bulk: no route uses this pool",
        "7:1: destinations: no route leaves by MX, so nothing uses them",
        "7:29: destinations[2]: unreachable: destination 'all' before it takes everything",
    ]


@pytest.mark.parametrize("via", ["mx-1", "bulk", "direct"])
def test_destinations_that_something_uses(config: Loader, via: str) -> None:
    made = config(
        "accounts: {main: {host: 127.0.0.1}}\n"
        "direct: {mx-1: {}}\n"
        "pools: {bulk: {members: [mx-1]}}\n"
        f"destinations: [{{port: 26}}]\nroutes: [{{via: main}}]\ndsn: {{via: {via}}}\n"
    )
    assert not any("by MX" in w for w in made.warnings)


@pytest.mark.parametrize(
    ("senders", "via", "told"),
    [
        ("'*@a.example'", "mx-1", ["'mx-1' may not send reports, which have the null sender; add \"\" to direct.mx-1.senders"]),
        ("['*@a.example', '']", "mx-1", []),
        ("'*@a.example'", "bulk", []),  # by main
        ("'*@a.example'", "alone", ["no member of 'alone' may send reports, which have the null sender; add \"\" to the senders of one"]),
        ("['*@a.example', '']", "alone", []),
    ],
)  # fmt: skip
def test_who_may_report(config: Loader, senders: str, via: str, told: list[str]) -> None:
    text = (
        "accounts: {main: {host: 127.0.0.1}}\n"
        f"direct: {{mx-1: {{senders: {senders}}}}}\n"
        "pools: {bulk: {members: [mx-1, main]}, alone: {members: [mx-1]}}\n"
        f"routes: [{{via: [bulk, alone]}}]\ndsn: {{via: {via}}}\n"
    )
    if told:
        assert problems(config, text) == [f"5:12: dsn.via: {text}" for text in told]
    else:
        assert config(text).dsn.via == via


def test_none_may_report(config: Loader) -> None:
    made = config("direct: {mx-1: {senders: '*@a.example'}}\nroutes: [{via: mx-1}]\n")
    assert warnings(made) == [
        '1:1: direct: none may send reports, which have the null sender; add "" to the senders of one, '
        "or say dsn: {to: none}"
    ]
