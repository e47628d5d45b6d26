"""Mistakes in `direct`, `pools`, `destinations`: each told once, at its place, with what was meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from relay.config.load import ConfigError, load

Problems = Callable[[str], list[str]]


@pytest.fixture
def problems(tmp_path: Path) -> Problems:
    def told(text: str) -> list[str]:
        file = tmp_path / "relay.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load(file, {"HOME": "/nowhere"})
        return [f"{p.line}:{p.column}: {p.path}: {p.text}" for p in caught.value.problems]

    return told


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
        ("{limits: [5 bits/d]}", "1:23: direct.a.limits.rate: a rate counts messages, recipients, connections or bytes, such as "
         "30 messages/min or 500MB/h; a size is in kB, MB, GB, KiB, MiB, GiB"),
        ("{limits: [{rate: 5/d, timezone: Mars}]}", "1:45: direct.a.limits[1].timezone: no time zone 'Mars'; one is such as "
         "Europe/Berlin, or UTC"),
        ("{replies: [{reply: x, scope: message, then: slow}]}", "1:57: direct.a.replies[1].then: `slow` helps an account; "
         "message has no pace and no connections"),
        ("{host: mx.example}", "1:14: direct.a.host: unknown key 'host'; did you mean 'hostname'?"),
        ("{signs: true}", "1:14: direct.a.signs: unknown key 'signs'; known here: source, hostname, senders, connections, "
         "limits, warm_up, replies"),
    ],
)  # fmt: skip
def test_an_entry_that_is_refused(problems: Problems, text: str, told: str) -> None:
    assert problems(f"direct: {{a: {text}}}\n{END}") == [told]


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
def test_a_pool_that_is_refused(problems: Problems, text: str, told: str) -> None:
    more = "accounts: {main: {host: 127.0.0.1}}\nroutes: [{via: [main, p]}]\n"
    assert problems(f"pools: {{p: {text}}}\n{more}") == [told]


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
        *(
            (f"{{match: {{recipient: '{written}'}}}}", f"1:36: destinations[1].match.recipient: '{written}' can match nothing: "
             f"it is no address; did you mean \"{meant}\"?")
            for written, meant in (("bank.example", "*@bank.example"), ("@bank.example", "*@bank.example"),
                                   (".bank.example", "*@*.bank.example"))
        ),
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
def test_a_destination_that_is_refused(problems: Problems, text: str, told: str) -> None:
    assert problems(f"destinations: [{text}]\n{END}") == [told]


def test_one_namespace(problems: Problems) -> None:
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
    assert problems(text) == [
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
def test_what_no_via_may_name(problems: Problems, via: str, told: str) -> None:
    text = f"direct: {{mx-1: {{}}}}\npools: {{bulk: {{members: [mx-1]}}}}\nroutes: [{{via: {via}}}]\n"
    column = 25 if "," in via else 16
    assert problems(text) == [f"3:{column}: routes[1].via: {told}"]


def test_a_mistake_in_one_entry_leaves_the_others(problems: Problems) -> None:
    text = (
        "direct: {mx-1: {connections: x}, mx-2: {source: y}}\n"
        "pools: {one: {members: {mx-1: 1}}, two: {members: {mx-2: x}}}\n"
        "destinations: [{port: x}, {tls: {mode: none, ca: x}}]\n"
        "routes: [{via: [mx-1, one, two]}]\n"
        "dsn: {via: one}\n"
    )
    assert [told.split(": ")[0] for told in problems(text)] == ["1:30", "1:49", "2:58", "3:23", "3:50", "3:50"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("users: {u: {password: {env: PATH}, limits: [10 connections/min]}}\nlisten: [{address: '127.0.0.1:1', auth: required}]",
         "2:45: users.u.limits.rate: this rate counts mail; connections are limited at accounts, direct entries "
         "and destinations"),
        ("listen: [{address: '127.0.0.1:1', max_messages: {client: 10 connections/min}}]",
         "2:58: listen[1].max_messages.client: this rate counts messages, such as 10/min"),
        ("dns: {servers: ['127.0.0.1:0']}", "2:17: dns.servers: port 0 is none to ask at; without a port it is 53"),
    ],
)  # fmt: skip
def test_what_is_refused_elsewhere(problems: Problems, more: str, told: str) -> None:
    assert problems(f"{END}{more}\n") == [told]
