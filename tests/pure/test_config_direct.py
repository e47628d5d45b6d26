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


# What is refused

END = "routes: [{via: direct}]\n"
IP = "expected an IP address such as 203.0.113.5, found"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{source: [127.0.0.1, '::1', 127.0.0.2]}", "1:41: direct.a.source: a second IPv4 address; an entry has one of each "
         "at most: make two, and a pool of them"),
        ("{source: ['::1', '::2']}", "1:30: direct.a.source: a second IPv6 address; an entry has one of each at most: "
         "make two, and a pool of them"),
        ("{source: 203.0.113.0/24}", f"1:22: direct.a.source: {IP} the string '203.0.113.0/24'; a network is none"),
        ("{source: [mx1.example.com]}", f"1:23: direct.a.source: {IP} the string 'mx1.example.com'"),
        ("{source: 0.0.0.0}", "1:22: direct.a.source: 0.0.0.0 is no address; remove `source`, and the kernel chooses one"),
        ("{source: 224.0.0.1}", f"1:22: direct.a.source: {IP} the string '224.0.0.1'; nobody could reach that one"),
        ("{source: 'fe80::1%eth0'}", f"1:22: direct.a.source: {IP} the string 'fe80::1%eth0'; nobody could reach that one"),
        ("{source: '::ffff:127.0.0.1'}", f"1:22: direct.a.source: {IP} the string '::ffff:127.0.0.1'; nobody could reach that one"),
        ("{source: 5}", f"1:22: direct.a.source: {IP} the number 5"),
        ("{source: []}", "1:22: direct.a.source: an empty list; name at least one or remove the key"),
        ("{hostname: a b}", "1:24: direct.a.hostname: expected a host name such as relay.example.com, found the string 'a b'"),
        ("{connections: 0}", "1:27: direct.a.connections: must be at least 1, found the number 0"),
        ("{limits: [5 bytes/d]}", "1:23: direct.a.limits.rate: a rate counts messages, recipients or connections, such as "
         "30 messages/min"),
        ("{limits: [{rate: 5/d, timezone: Mars}]}", "1:45: direct.a.limits[1].timezone: no time zone 'Mars'"),
        ("{replies: [{reply: x, scope: message, then: slow}]}", "1:57: direct.a.replies[1].then: `slow` helps an account; "
         "message has no pace and no connections"),
        ("{host: mx.example}", "1:14: direct.a.host: unknown key 'host'; did you mean 'hostname'?"),
        ("{signs: true}", "1:14: direct.a.signs: unknown key 'signs'; known here: source, hostname, senders, connections, "
         "limits, replies"),
    ],
)  # fmt: skip
def test_an_entry_that_is_refused(config: Loader, text: str, told: str) -> None:
    assert problems(config, f"direct: {{a: {text}}}\n{END}") == [told]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{members: {}}", "1:22: pools.p.members: a pool without members; name at least one account or direct entry"),
        ("{members: []}", "1:22: pools.p.members: a pool without members; name at least one account or direct entry"),
        ("{}", "1:9: pools.p: 'members' is missing"),
        ("{members: direct}", "1:22: pools.p.members: expected a map of names to weights, or a list of names, found the "
         "string 'direct'"),
        ("{members: [direct, direct]}", "1:22: pools.p.members: 'direct' is named twice; for a larger share write {direct: 2}"),
        ("{members: [{direct: 2}]}", "1:22: pools.p.members: expected a list of names; weights stand in a map, such as "
         "{mx-1: 3, mx-2: 1}"),
        ("{members: {direct: 0}}", "1:31: pools.p.members.direct: must be at least 1, found the number 0"),
        ("{members: {direct: 1001}}", "1:31: pools.p.members.direct: must be at most 1000, found the number 1001"),
        ("{members: {direct: 0.5}}", "1:31: pools.p.members.direct: expected a whole number, found the number 0.5"),
        ("{members: {p: 1}}", "1:23: pools.p.members.p: 'p' is a pool; the members of one are accounts and direct entries"),
        ("{members: [direct, p]}", "1:31: pools.p.members: 'p' is a pool; the members of one are accounts and direct entries"),
        ("{members: [drect]}", "1:23: pools.p.members: no account 'drect'; did you mean 'direct'?"),
        ("{members: {xyz: 2}}", "1:23: pools.p.members.xyz: no account 'xyz'; there is direct, main"),
        ("{members: [direct], sticky: recipient}", "1:40: pools.p.sticky: expected one of message, found the string 'recipient'"),
    ],
)  # fmt: skip
def test_a_pool_that_is_refused(config: Loader, text: str, told: str) -> None:
    more = "accounts: {main: {host: 127.0.0.1}}\nroutes: [{via: [main, p]}]\n"
    assert problems(config, f"pools: {{p: {text}}}\n{more}") == [told]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{name: a b}", "1:23: destinations[1].name: 'a b' is no name; one has up to 64 letters, digits, '_', '.', '-' and "
         "begins with a letter or digit"),
        ("{name: x}, {name: x}", "1:34: destinations.x.name: a second destination named 'x', the first at line 1"),
        ("{name: destination-2}, {port: 26}", "1:39: destinations[2]: a second destination named 'destination-2', the first "
         "at line 1"),
        ("{match: {from: x}}", "1:25: destinations[1].match.from: unknown key 'from'; known here: mx, recipient, not"),
        ("{match: {not: {not: {}}}}", "1:31: destinations[1].match.not.not: unknown key 'not'; known here: mx, recipient"),
        ("{match: {mx: a@b}}", "1:29: destinations[1].match.mx: expected a host or pattern such as *.google.com, found the "
         "string 'a@b'; in DNS form (xn--…)"),
        ("{match: {mx: mx.bücher.example}}", "1:29: destinations[1].match.mx: expected a host or pattern such as "
         "*.google.com, found the string 'mx.bücher.example'; in DNS form (xn--…)"),
        ("{match: {recipient: <>}}", "1:36: destinations[1].match.recipient: '<>' can match nothing: write the address "
         "alone; \"\" is the null sender"),
        ("{per: host}", "1:22: destinations[1].per: expected one of egress, relay, mx, domain, found the string 'host'"),
        ("{connections: 0}", "1:30: destinations[1].connections: must be at least 1, found the number 0"),
        ("{port: 0}", "1:23: destinations[1].port: must be at least 1, found the number 0"),
        ("{limits: [5]}", "1:26: destinations[1].limits.rate: expected a rate such as 100/min, 14/s or 5000/d; a period is one "
         "of s, min, h, d"),
        ("{tls: implicit}", "1:22: destinations[1].tls.mode: port 25 has no TLS from the first byte (RFC 3207); use one of "
         "none, opportunistic, starttls"),
        ("{tls: {mode: none, verify: true}}", "1:43: destinations[1].tls.verify: `verify` has no meaning without TLS (mode "
         "none); remove it"),
        ("{tls: {certificate: x}}", "1:23: destinations[1].tls.certificate: unknown key 'certificate'; known here: mode, "
         "verify, ca, pin, minimum"),
        ("{tls: {ca: /nowhere/ca.pem}}", "1:27: destinations[1].tls.ca: /nowhere/ca.pem: No such file or directory"),
        ("{allow_private: yes}", "1:32: destinations[1].allow_private: expected true or false, found the string 'yes'"),
    ],
)  # fmt: skip
def test_a_destination_that_is_refused(config: Loader, text: str, told: str) -> None:
    assert problems(config, f"destinations: [{text}]\n{END}") == [told]


def test_one_namespace(config: Loader) -> None:
    text = (
        "pools: {b: {members: [a]}, c: {members: [a]}, direct: {members: [a]}}\n"
        "accounts:\n"
        "  a: {host: 127.0.0.1}\n"
        "  b: {host: 127.0.0.1}\n"
        "  direct: {host: 127.0.0.1}\n"
        "direct: {a: {}, c: {}, direct: {}}\n"
        "routes: [{via: [a, b, c]}]\n"
    )
    reserved = "`direct` is the name of delivery by MX from the kernel's address; choose another"
    assert problems(config, text) == [
        "1:9: pools.b: accounts.b at line 4 has this name already; a `via` must mean one thing",
        "1:28: pools.c: direct.c at line 6 has this name already; a `via` must mean one thing",
        f"1:47: pools.direct: {reserved}",
        f"5:3: accounts.direct: {reserved}",
        "6:10: direct.a: accounts.a at line 3 has this name already; a `via` must mean one thing",
        f"6:24: direct.direct: {reserved}",
    ]


@pytest.mark.parametrize(
    ("via", "told"),
    [
        ("drect", "no account 'drect'; did you mean 'direct'?"),
        ("bluk", "no account 'bluk'; did you mean 'bulk'?"),
        ("mx1", "no account 'mx1'; did you mean 'mx-1'?"),
        ("[direct, direct]", "'direct' is named twice; fail-over tries each once"),
    ],
)
def test_what_no_via_may_name(config: Loader, via: str, told: str) -> None:
    text = f"direct: {{mx-1: {{}}}}\npools: {{bulk: {{members: [mx-1]}}}}\nroutes: [{{via: {via}}}]\n"
    column = 25 if "," in via else 16
    assert problems(config, text) == [f"3:{column}: routes[1].via: {told}"]


def test_a_mistake_in_one_entry_leaves_the_others(config: Loader) -> None:
    text = (
        "direct: {mx-1: {connections: x}, mx-2: {source: y}}\n"
        "pools: {one: {members: {mx-1: 1}}, two: {members: {mx-2: x}}}\n"
        "destinations: [{port: x}, {tls: {mode: none, ca: x}}]\n"
        "routes: [{via: [mx-1, one, two]}]\n"
        "dsn: {via: one}\n"
    )
    assert [told.split(": ")[0] for told in problems(config, text)] == ["1:30", "1:49", "2:58", "3:23", "3:50", "3:50"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("users: {u: {password: {env: PATH}, limits: [10 connections/min]}}\nlisten: [{address: '127.0.0.1:1', auth: required}]",
         "2:45: users.u.limits.rate: this rate counts recipients or messages; connections are bounded by "
         "`listen.max_connections`"),
        ("listen: [{address: '127.0.0.1:1', max_messages: {client: 10 connections/min}}]",
         "2:58: listen[1].max_messages.client: this rate counts messages, such as 10/min"),
        ("dns: {servers: ['127.0.0.1:0']}", "2:17: dns.servers: port 0 is none to ask at; without a port it is 53"),
    ],
)  # fmt: skip
def test_what_is_refused_elsewhere(config: Loader, more: str, told: str) -> None:
    assert problems(config, f"{END}{more}\n") == [told]
