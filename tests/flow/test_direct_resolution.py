"""What the DNS says of a domain, and what becomes of its mail: Knot's zones, which Unbound validates, and simulated hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mxcases import ZONE, Case, check, zone
from world import World, bogus, plain, world

A, B, C = "127.0.1.1", "127.0.1.2", "127.0.1.3"
UP: dict[str, Any] = {}
NO_UTF8 = {"extensions": ("PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES")}
TWO = ["@ MX 10 mx1", "@ MX 20 mx2", f"mx1 A {A}", f"mx2 A {B}"]
EQUAL = ["@ MX 10 mx1", "@ MX 10 mx2", f"mx1 A {A}", f"mx2 A {B}"]


def greets(banner: str) -> dict[str, Any]:
    return {"script": {"BANNER": banner}}


def failed(name: str, reply: str, *why: str, **more: Any) -> Case:
    return Case(name, state="failed", reply=reply, why=["rejected", *why], **{"dialled": 0} | more)


def deferred(name: str, reply: str, *why: str, **more: Any) -> Case:
    return Case(name, state="deferred", reply=reply, why=why, **more)


HOSTS = [
    Case("preference", ["@ MX 20 mx2", "@ MX 10 mx1", *TWO[2:]], {A: UP, B: UP}, took=[A], dialled=1),
    Case("refused-backup", TWO, {B: UP}, took=[B]),
    Case("refused-equal", EQUAL, {B: UP}, took=[B]),
    Case("busy", TWO, {A: greets("421 4.3.2 too busy"), B: UP}, took=[B], dialled=2),
    Case("unwilling", TWO, {A: greets("554 5.7.1 not you"), B: UP}, took=[B], dialled=2),
    Case("no-mail-first", TWO, {A: greets("521 5.3.2 no mail here"), B: UP}, took=[B], dialled=2),
    Case("third", [*TWO, "@ MX 30 mx3", f"mx3 A {C}"], {B: greets("421 4.3.2 no"), C: UP}, took=[C], dialled=2),
    deferred(
        "all-unwilling", "554 5.7.1", f"mx1.all-unwilling.{ZONE}[{A}]: 554 5.7.1 not you", f"[{B}]: 554 5.7.1 nor you",
        records=TWO, hosts={A: greets("554 5.7.1 not you"), B: greets("554 5.7.1 nor you")}, dialled=2,
    ),
    deferred(
        "all-busy", "421 4.3.2", f"[{A}]: 421 4.3.2 a", f"[{B}]: 421 4.3.2 b",
        records=TWO, hosts={A: greets("421 4.3.2 a"), B: greets("421 4.3.2 b")}, dialled=2,
    ),
    deferred("all-refused", "0", f"[{A}]: Connection refused", f"[{B}]: Connection refused", records=TWO),
    failed(
        "no-mail", "556 5.1.10", f"no-mail.{ZONE} takes no mail", f"[{A}]: 521 5.3.2 a", f"[{B}]: 521 b",
        records=TWO, hosts={A: greets("521 5.3.2 a"), B: greets("521 b")}, dialled=2,
    ),
    deferred(
        "no-mail-or-down", "0", f"[{A}]: 521 no", f"[{B}]: Connection refused",
        records=TWO, hosts={A: greets("521 no")}, dialled=1,
    ),
    Case("hundred", [f"@ MX {n} mx{n}.plain.example." for n in range(100)], {B: UP}, took=[B], dialled=1),
]  # fmt: skip

RECORDS = [
    Case("implicit", [f"@ A {A}"], {A: UP}, took=[A]),
    Case("implicit-v6", ["@ AAAA ::1"], {"::1": UP}, took=["::1"]),
    failed("null", "556 5.1.10", f"null.{ZONE} accepts no mail (null MX, RFC 7505)", records=["@ MX 0 .", f"@ A {A}"],
           hosts={A: UP}),
    Case("null-beside", ["@ MX 0 .", "@ MX 10 mx", f"mx A {A}"], {A: UP}, took=[A]),
    failed("nobody", "550 5.1.2", f"no such domain: nobody.{ZONE}"),
    failed("nothing", "550 5.4.4", f"nothing.{ZONE} has neither MX nor address", records=["@ TXT x"]),
    failed("gone", "550 5.4.4", f"mx.gone.{ZONE}: it has no address", records=["@ MX 10 mx"]),
    failed("bare", "550 5.4.4", f"mx.bare.{ZONE}: it has no address", records=["@ MX 10 mx", "mx TXT x"]),
    Case("bare-first", ["@ MX 10 mx1", "@ MX 20 mx2", f"mx2 A {A}"], {A: UP}, took=[A]),
    failed("number", "550 5.4.4", f"the MX of number.{ZONE} names 127.0.1.1, which is no host",
           records=["@ MX 10 127.0.1.1."], hosts={A: UP}),
    Case("number-first", ["@ MX 10 127.0.1.2.", "@ MX 20 mx", f"mx A {A}"], {A: UP, B: UP}, took=[A]),
    Case("alias", [f"@ CNAME preference.{ZONE}."], {A: UP}, took=[A]),
    Case("alias-of-host", ["@ CNAME www", f"www A {A}"], {A: UP}, took=[A]),
    failed("alias-of-nobody", "550 5.1.2", "no such domain: x.alias-of-nobody.lab.example, of which alias-of-nobody",
           records=["@ CNAME x"]),
    deferred("alias-loop", "451 4.4.3", "the DNS can't tell where mail for", records=["@ CNAME x", "x CNAME @"]),
    Case("mx-alias", ["@ MX 10 mx", "mx CNAME real", f"real A {A}"], {A: UP}, took=[A]),
    failed("mx-null-alias", "550 5.4.4", "it has no address", records=["@ MX 10 mx", "mx CNAME x"]),
    deferred("bogus", "451 4.4.3", "the DNS can't tell where mail for bogus.example goes", "SERVFAIL",
             to="b@bogus.example", hosts={A: UP}, dialled=0),
    deferred("bogus-host", "451 4.4.3", "mx.bogus.example", "SERVFAIL", records=["@ MX 10 mx.bogus.example."],
             hosts={A: UP}, dialled=0),
    Case("bogus-host-first", ["@ MX 10 mx.bogus.example.", "@ MX 20 mx", f"mx A {A}"], {A: UP}, took=[A]),
]  # fmt: skip

ADDRESSED = [
    Case("literal", hosts={A: UP}, to=f"b@[{A}]", took=[A]),
    Case("literal-v6", hosts={"::1": UP}, to="b@[IPv6:::1]", took=["::1"]),
    deferred("literal-down", "0", f"[{A}]: Connection refused", to=f"b@[{A}]"),
    *(
        failed(f"literal-{text}", "550 5.1.2", f"[{text}]".lower(), "is no address literal", to=f"b@[{text}]")
        for text in ("127.0.1", "127.0.1.256", "::1", "IPv6:127.0.1.1", "IPv6:::g", "x400:a")
    ),
    Case("upper", TWO, {A: UP}, to=f"b@UPPER.{ZONE.upper()}", took=[A]),
    Case("dot", TWO, {A: UP}, to=f"b@dot.{ZONE}.", took=[A]),
    Case("xn--bcher-kva", TWO, {A: UP}, to=f"b@bücher.{ZONE}", took=[A]),
    Case("xn--bcher-kva-a", TWO, {A: NO_UTF8}, to=f"b@xn--bcher-kva-a.{ZONE}", took=[A]),
    failed("xn--mnchen-3ya", "553 5.6.7", "SMTPUTF8", to=f"b@münchen.{ZONE}", records=TWO, hosts={A: NO_UTF8, B: UP},
           dialled=1),
    failed("no-label", "550 5.1.2", "can't be a domain", to="b@" + "ü" * 70 + f".{ZONE}"),
    Case("v6-down", ["@ MX 10 mx", "mx AAAA ::1", f"mx A {A}"], {A: UP}, took=[A]),
    Case("v4-down", ["@ MX 10 mx", "mx AAAA ::1", f"mx A {A}"], {"::1": UP}, took=["::1"]),
    Case("v6-unreachable", ["@ MX 10 mx", "mx AAAA fe80::1", f"mx A {A}"], {A: UP}, took=[A]),
    Case("v4-alone", ["@ MX 10 mx", "mx AAAA ::1", f"mx A {A}"], {A: UP, "::1": UP}, took=[A],
         routes="  - {name: all, via: direct-4}", extra="direct: {direct-4: {source: 127.0.0.1}}"),
    Case("v6-alone", ["@ MX 10 mx", "mx AAAA ::1", f"mx A {A}"], {A: UP, "::1": UP}, took=["::1"],
         routes="  - {name: all, via: direct-6}", extra="direct: {direct-6: {source: '::1'}}"),
    deferred("v6-lacking", "451 4.4.4", "[::1]: direct-4 has no IPv6 source", records=["@ AAAA ::1"], hosts={"::1": UP},
             dialled=0, routes="  - {name: all, via: direct-4}", extra="direct: {direct-4: {source: 127.0.0.1}}"),
]  # fmt: skip

OURS = "  - {name: all, via: direct-x}"
LOOPS = [
    failed("our-name", "554 5.4.6", "relay.test: that is this relay", records=["@ MX 10 Relay.Test."]),
    failed("our-name-beside", "554 5.4.6", "loops back to us", records=["@ MX 10 relay.test.", "@ MX 10 mx", f"mx A {A}"],
           hosts={A: UP}),
    failed("our-name-before", "554 5.4.6", "loops back to us", records=["@ MX 10 relay.test.", "@ MX 20 mx", f"mx A {A}"],
           hosts={A: UP}),
    failed("our-other-name", "554 5.4.6", "out.relay.test: that is this relay", records=["@ MX 10 out.relay.test."],
           extra="direct: {direct-x: {hostname: out.relay.test}}", routes=OURS),
    failed("our-address", "554 5.4.6", "[127.0.0.1]: that is this relay", records=["@ MX 10 mx", "mx A 127.0.0.1"]),
    failed("our-address-mapped", "554 5.4.6", "that is this relay", records=["@ MX 10 mx", "mx AAAA ::ffff:127.0.0.1"]),
    failed("our-address-any", "554 5.4.6", "[0.0.0.0]: that is this relay", records=["@ MX 10 mx", "mx A 0.0.0.0"]),
    failed("our-literal", "554 5.4.6", "that is this relay", to="b@[127.0.0.1]"),
    failed("our-greeting", "554 5.4.6", "greets with our own name relay.test", records=TWO[::2],
           hosts={A: {"name": "relay.test"}}, dialled=1),
    failed("our-other-greeting", "554 5.4.6", "greets with our own name relay.test", records=TWO[::2],
           hosts={A: {"name": "relay.test"}}, dialled=1,
           extra="direct: {direct-x: {hostname: out.relay.test}}", routes=OURS),
    deferred("we-are-backup", "0", f"[{A}]: Connection refused", "relay.test: that is this relay",
             records=["@ MX 10 mx1", f"mx1 A {A}", "@ MX 20 relay.test.", "@ MX 20 mx2", "@ MX 30 mx2", f"mx2 A {B}"],
             hosts={B: UP}, dialled=0),
    deferred("we-are-backup-by-address", "0", f"[{A}]: Connection refused", "[127.0.0.1]: that is this relay",
             records=["@ MX 10 mx1", f"mx1 A {A}", "@ MX 20 us", "us A 127.0.0.1", "@ MX 30 mx2", f"mx2 A {B}"],
             hosts={B: UP}, dialled=0),
    Case("backup-for", ["@ MX 10 mx1", f"mx1 A {A}", "@ MX 20 relay.test."], {A: UP}, took=[A]),
]  # fmt: skip

PUBLIC = "{name: lab, per: mx, port: PORT}"
ON_LOOPBACK = {A: UP, "::1": UP}
PRIVATE = [
    *(
        failed(f"private-{number}", "550 5.4.4", f"{text}]: not an address of the public network (allow_private)",
               records=["@ MX 10 mx", f"mx {'AAAA' if ':' in text else 'A'} {text}"], hosts=ON_LOOPBACK, rule=PUBLIC)
        for number, text in enumerate((
            A, "10.0.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255",
            "::1", "64:ff9b::7f00:101", "2002:7f00:101::1", "fe80::1", "fd00::1", "ff02::1", "2001:db8::1",
        ))
    ),
    failed("private-mapped", "550 5.4.4", "not an address of the public network",
           records=["@ MX 10 mx", f"mx AAAA ::ffff:{A}"], hosts=ON_LOOPBACK, rule=PUBLIC),
    failed("private-implicit", "550 5.4.4", "not an address of the public network", records=[f"@ A {A}"],
           hosts=ON_LOOPBACK, rule=PUBLIC),
    failed("private-literal", "550 5.4.4", "not an address of the public network", to=f"b@[{A}]", hosts=ON_LOOPBACK,
           rule=PUBLIC),
    failed("private-literal-v6", "550 5.4.4", "not an address", to="b@[IPv6:::1]", hosts=ON_LOOPBACK, rule=PUBLIC),
]  # fmt: skip

CASES = [*HOSTS, *RECORDS, *ADDRESSED, *LOOPS, *PRIVATE]


@pytest.fixture(scope="module", name="dns_world")
def _world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    zones = {ZONE: zone(CASES), "bogus.example": bogus("@ MX 10 mx", f"mx A {A}")}
    zones["plain.example"] = plain(*(f"mx{n} A {B if n == 3 else C}" for n in range(100)))
    with world(tmp_path_factory.mktemp("dns") / "world", zones) as made:
        yield made


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_one_message(case: Case, dns_world: World, tmp_path: Path) -> None:
    await check(case, tmp_path, dns_world.server)
