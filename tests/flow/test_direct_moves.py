"""Mail by MX over time and side by side: the DNS changes or is in trouble, hosts die, domains share hosts and lanes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from mxcases import Lab, lab, said
from nameserver import Says, Told
from simmx import SimMx

from relay import clock
from relay.nexthop import mx
from relay.reply import MAX_TEXT
from relay.scheduler import sites

A, B, C = "127.0.1.1", "127.0.1.2", "127.0.1.3"
UP: dict[str, Any] = {}
SOON = "  default: {retry: {schedule: [300ms], give_up: 1d}}"
RULE = "{name: lab, per: PER, allow_private: true, port: PORT, connections: 1}"


@pytest.fixture(name="dns")
def _dns(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    """Answers at once; what it fails to answer is asked again soon."""
    monkeypatch.setattr(mx, "TROUBLE", 0.2)
    monkeypatch.setattr("relay.resolver.TROUBLE", 0.2)
    monkeypatch.setattr(sites, "AGAIN", 0.1)
    with Told() as dns:
        yield dns


def exchange(dns: Told, domain: str, *hosts: tuple[int, str, str], ttl: int = 300) -> None:
    """(preference, name, address) of each."""
    dns.say(domain, "MX", *(f"{preference} {name}." for preference, name, _ in hosts), ttl=ttl)
    for _, name, address in hosts:
        dns.say(name, "AAAA" if ":" in address else "A", address, ttl=ttl)
        dns.say(name, "A" if ":" in address else "AAAA", ttl=ttl)


def rule(per: str = "mx", more: str = "") -> str:
    return RULE.replace("PER", per) + more


async def through(made: Lab, *recipients: str) -> None:
    """One after the other."""
    for recipient in recipients:
        await made.rig.reaches(await made.send(recipient), "delivered")


# -- trouble with the DNS, and its end


@pytest.mark.parametrize("name", ["a.test", "mx.a.test"])
@pytest.mark.parametrize(
    "trouble", [Says(rcode="SERVFAIL"), Says(rcode="REFUSED"), None], ids=["servfail", "refused", "mute"]
)
async def test_trouble_ends_and_the_mail_goes(dns: Told, tmp_path: Path, name: str, trouble: Says | None) -> None:
    exchange(dns, "a.test", (10, "mx.a.test", A))
    well = dict(dns.told)
    dns.told |= {(name, kind): trouble for kind in ("MX", "A", "AAAA") if (name, kind) in well or name == "mx.a.test"}
    async with lab(tmp_path, dns.server, {A: UP}, classes=SOON, timeout="600ms" if trouble is None else "10s") as made:
        number = await made.send("b@a.test")
        row = await made.rig.tried(number)
        assert (row["state"], said(row)) == ("deferred", "451 4.4.3") and made.dialled == 0
        assert ("no answer" if trouble is None else trouble.rcode) in row["why"] and f"{name}: " in row["why"]
        dns.told.update(well)
        row = await made.rig.reaches(number, "delivered")
        assert made.took == [A] and await made.rig.count() == 1 and row["attempts"] > 1


async def test_what_udp_cuts_off_comes_over_tcp(dns: Told, tmp_path: Path) -> None:
    exchange(dns, "a.test", (10, "mx.a.test", A))
    dns.told["a.test", "MX"] = Says(["a.test. 300 MX 10 mx.a.test."], cut=True)
    async with lab(tmp_path, dns.server, {A: UP}) as made:
        row = await made.rig.reaches(await made.send("b@a.test"), "delivered", "deferred")
        assert row["state"] == "delivered" and row["attempts"] == 1 and ("a.test", True) in dns.asked


async def test_answers_that_may_not_be_kept(dns: Told, tmp_path: Path) -> None:
    exchange(dns, "a.test", (10, "mx.a.test", A), ttl=0)
    async with lab(tmp_path, dns.server, {A: UP}) as made:
        await through(made, "b@a.test", "c@a.test")
        assert made.took == [A, A] and made.dialled == 1 and dns.questions.count(("a.test", "MX")) < 10


async def test_the_same_message_ends_in_three_ways(dns: Told, tmp_path: Path) -> None:
    exchange(dns, "a.test", (10, "mx.a.test", A))
    dns.say("b.test", "MX", "0 .")
    dns.told["c.test", "MX"] = Says(rcode="SERVFAIL")
    async with lab(tmp_path, dns.server, {A: UP}) as made:
        number = await made.send("1@a.test", "1@b.test", "2@a.test", "1@c.test", "1@d.test")
        await until(lambda: made.rig.app.spool.queued == 1)
        await until(lambda: any(fields["domain"] == "c.test" for fields in made.rig.said("deferred")))
        rows = {row["recipient"]: (row["state"], said(row)) for row in await made.rig.rows(number)}
        assert rows == {
            "1@a.test": ("delivered", "250 2.0.0"),
            "2@a.test": ("delivered", "250 2.0.0"),
            "1@b.test": ("failed", "556 5.1.10"),
            "1@c.test": ("deferred", "451 4.4.3"),
            "1@d.test": ("failed", "550 5.1.2"),
        }
        assert made.hosts[A].accepted[0].recipients == ("1@a.test", "2@a.test")


async def test_who_wrote_to_a_null_mx_hears_of_it_at_once(dns: Told, tmp_path: Path) -> None:
    exchange(dns, "a.test", (10, "mx.a.test", A))
    dns.say("b.test", "MX", "0 .")
    async with lab(tmp_path, dns.server, {A: UP}, dsn="to: sender") as made:
        await made.send("1@b.test", sender="me@a.test")
        await until(lambda: made.hosts[A].accepted)
        report = made.hosts[A].accepted[0]
        assert report.sender == "" and report.recipients == ("me@a.test",)
        assert (
            b"Status: 5.1.10" in report.content and b"null MX" in report.content and b"Action: failed" in report.content
        )


# -- another host


async def test_equals_share_the_mail(dns: Told, tmp_path: Path) -> None:
    exchange(dns, "a.test", (10, "mx1.a.test", A), (10, "mx2.a.test", B), (20, "mx3.a.test", C))
    once = rule().replace("}", ", messages_per_connection: 1}")
    async with lab(tmp_path, dns.server, {A: UP, B: UP, C: UP}, rules=once) as made:
        await made.rig.send_many([("s@example.com", (f"{n}@a.test",), b"Subject: x\r\n\r\nx\r\n") for n in range(40)])
        await made.rig.settled()
        assert made.took.count(A) + made.took.count(B) == 40 and min(made.took.count(A), made.took.count(B)) > 5
        assert made.dialled == 40


async def test_ten_addresses_of_which_one_lives(dns: Told, tmp_path: Path) -> None:
    addresses = [f"127.0.1.{n}" for n in range(1, 11)]
    exchange(dns, "a.test", (10, "mx.a.test", A))
    dns.say("mx.a.test", "A", *addresses)
    async with lab(tmp_path, dns.server, {}) as made:
        number = await made.send("b@a.test")
        row = await made.rig.tried(number)
        assert row["state"] == "deferred" and "5 more addresses of mx.a.test are left" in row["why"]
        left = [address for address in addresses if f"[{address}]" not in row["why"]]
        assert len(left) == 5
        async with SimMx(left[-1], made.port) as alive:
            service = made.rig.app.admin.service
            await service.act("retry", service.parse_filter({"id": number}), dry_run=False)
            row = await made.rig.reaches(number, "delivered")
            assert row["attempts"] == 2 and len(alive.accepted) == 1, "those that are dead come last"
            await through(made, "c@a.test")


@pytest.mark.parametrize(("count", "how"), [(25, None), (7, {"script": {"BANNER": "521 5.3.2 no mail here"}})])
async def test_no_mail_fails_while_a_host_is_left(
    dns: Told, tmp_path: Path, count: int, how: dict[str, Any] | None
) -> None:
    """More hosts without an address, or that take no mail, than one attempt looks at."""
    hosts = [(n, f"mx{n}.a.test", A) for n in range(count)]
    exchange(dns, "a.test", *hosts, (100, "mx.a.test", B))
    if how is None:
        for _, name, _ in hosts:
            dns.say(name, "A")
    async with lab(tmp_path, dns.server, {B: UP} | ({A: how} if how else {}), classes=SOON) as made:
        number = await made.send("b@a.test")
        row = await made.rig.tried(number)
        assert (row["state"], said(row)) == ("deferred", "451 4.4.3") and len(row["last_reply"]) < MAX_TEXT + 50
        row = await made.rig.reaches(number, "delivered", "failed")
        assert row["state"] == "delivered" and row["attempts"] == 2 and made.took == [B]


async def test_what_many_hosts_say_is_told_in_brief(dns: Told, tmp_path: Path) -> None:
    hosts = [f"127.0.1.{n}" for n in range(1, 6)]
    exchange(dns, "a.test", *((n, f"mx{n}.a.test", host) for n, host in enumerate(hosts)))
    rude = {"script": {"BANNER": "554 5.7.1 " + "no " * 150}}
    async with lab(tmp_path, dns.server, dict.fromkeys(hosts, rude)) as made:
        row = await made.rig.tried(await made.send("b@a.test"))
        assert row["state"] == "deferred" and len(row["last_reply"]) < MAX_TEXT + 20 and made.dialled == 5


async def test_one_host_out_of_reach_says_nothing_about_ipv6(dns: Told, tmp_path: Path) -> None:
    exchange(dns, "a.test", (10, "mx.a.test", "fe80::1"))  # of a link that nobody named: EINVAL
    dns.say("mx.a.test", "A", A)
    exchange(dns, "b.test", (10, "mx.b.test", "::1"))
    dns.say("mx.b.test", "A", A)
    async with lab(tmp_path, dns.server, {A: UP, "::1": UP}) as made:
        await through(made, "1@a.test", "1@b.test")
        assert made.took == [A, "::1"]


async def test_the_backup_of_one_domain_is_not_used_for_it_because_it_is_at_hand(dns: Told, tmp_path: Path) -> None:
    exchange(dns, "a.test", (10, "mx.a.test", A), (20, "shared.test", B))
    exchange(dns, "b.test", (10, "shared.test", B))
    async with lab(tmp_path, dns.server, {A: UP, B: UP}, rules=rule("egress")) as made:
        await through(made, "1@b.test", "1@a.test", "2@b.test")
        assert made.took == [B, A, B]
        await made.hosts[A].stop()
        await through(made, "2@a.test", "3@a.test", "3@b.test")
        assert made.took == [B, A, B, B, B, B]


# -- the DNS changes


async def test_after_its_ttl_an_answer_holds_no_more(dns: Told, tmp_path: Path) -> None:
    exchange(dns, "a.test", (10, "mx1.a.test", A), ttl=1)
    async with lab(tmp_path, dns.server, {A: UP, B: UP}) as made:
        await through(made, "1@a.test")
        exchange(dns, "a.test", (10, "mx2.a.test", B), ttl=1)
        known = made.rig.app.scheduler.network.mx.known("a.test")
        assert known is not None
        await until(lambda: clock.monotonic() > known.expires)
        await through(made, "2@a.test")
        assert made.took == [A, B], "though a session with the first is open"


async def test_mail_that_waits_goes_where_its_domain_has_gone(dns: Told, tmp_path: Path) -> None:
    exchange(dns, "a.test", (10, "mx1.a.test", A), ttl=1)
    async with lab(
        tmp_path, dns.server, {B: UP}, classes="  default: {retry: {schedule: [600ms], give_up: 1d}}"
    ) as made:
        number = await made.send("b@a.test")
        row = await made.rig.tried(number)
        assert row["state"] == "deferred" and A in row["why"]
        exchange(dns, "a.test", (10, "mx2.a.test", B), ttl=1)
        row = await made.rig.reaches(number, "delivered")
        assert made.took == [B] and row["attempts"] < 5
        await through(made, "c@a.test")
        assert "lab/mx2.a.test" in made.ways


# -- who shares what


async def test_one_transaction_for_each_domain_and_one_session_for_each_host(dns: Told, tmp_path: Path) -> None:
    for domain in ("a.test", "b.test", "c.test"):
        exchange(dns, domain, (10, "mx.test", A))
    exchange(dns, "d.test", (10, "mx.d.test", B))
    everybody = [f"{n}@{domain}.test" for n in range(3) for domain in "abcd"]
    async with lab(tmp_path, dns.server, {A: UP, B: UP}, rules=rule()) as made:
        number = await made.send(*everybody)
        await made.rig.settled()
        rows = await made.rig.rows(number)
        assert {row["recipient"] for row in rows if row["state"] == "delivered"} == set(everybody)
        taken = [one.recipients for host in (A, B) for one in made.hosts[host].accepted]
        assert sorted(taken) == [tuple(f"{n}@{domain}.test" for n in range(3)) for domain in "abcd"]
        assert [len(made.hosts[host].visits) for host in (A, B)] == [1, 1]


@pytest.mark.parametrize(
    ("rules", "ways", "sessions"),
    [
        (rule("mx"), {"lab/{mx1,mx2}.two.test", "lab/mx.c.test"}, 1),
        (rule("domain"), {"lab/a.test", "lab/b.test", "lab/c.test"}, 2),
        (rule("egress"), {"lab"}, 1),
        (rule("relay"), {"lab"}, 1),
        (
            rule().replace("{", "{match: {mx: 'mx?.two.test'}, ").replace("per: mx", "per: egress").replace("lab", "two")
            + f", {rule()}",
            {"two", "lab/mx.c.test"}, 1,
        ),
        (
            rule().replace("{", "{match: {recipient: '*@b.test'}, ").replace("lab", "bee").replace("mx,", "domain,")
            + f", {rule()}",
            {"bee/b.test", "lab/{mx1,mx2}.two.test", "lab/mx.c.test"}, 2,
        ),
    ],
    ids=["mx", "domain", "egress", "relay", "by-mx", "by-recipient"],
)  # fmt: skip
async def test_lanes_are_as_the_rules_say(dns: Told, tmp_path: Path, rules: str, ways: set[str], sessions: int) -> None:
    for domain in ("a.test", "b.test"):
        exchange(dns, domain, (10, "mx1.two.test", A), (10, "mx2.two.test", A))
    exchange(dns, "c.test", (10, "mx.c.test", B))
    async with lab(tmp_path, dns.server, {A: UP, B: UP}, rules=rules) as made:
        await through(made, "1@a.test", "1@b.test", "1@c.test")
        assert made.ways == ways and made.took == [A, A, B] and len(made.hosts[A].visits) == sessions


async def test_domains_at_one_provider_are_one_lane(dns: Told, tmp_path: Path) -> None:
    exchange(dns, "a.test", (1, "aspmx.l.google.com", A), (5, "alt1.aspmx.l.google.com", B))
    exchange(dns, "b.test", (1, "smtp.google.com", A))
    exchange(dns, "c.test", (1, "smtp.google.com", A), (1, "mx.c.test", A))
    gathered = "{name: goo, match: {mx: '*.google.com'}, allow_private: true, port: PORT, connections: 1}"
    async with lab(tmp_path, dns.server, {A: UP}, rules=f"{gathered}, {rule()}") as made:
        await through(made, "1@a.test", "1@b.test", "1@c.test")
        assert made.ways == {"goo", "lab/mx.c.test,smtp.google.com"}
        assert [len(made.hosts[A].visits), made.took] == [3, [A] * 3], "the second host is of another name"
    folder = tmp_path / "2"
    folder.mkdir()
    async with lab(folder, dns.server, {A: UP}, rules="{name: lab, match: {recipient: '*@x.test'}}") as made:
        for domain in ("a.test", "b.test"):
            row = await made.rig.tried(await made.send(f"1@{domain}"))
            assert (row["state"], said(row)) == ("failed", "550 5.4.4") and made.dialled == 0
        assert made.ways == {"google"}
