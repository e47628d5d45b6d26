"""What an operator sees of direct delivery: explain, the queue, the figures, and the report that a sender gets."""

from __future__ import annotations

import asyncio
import time
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from fakes import SILENT, Upstream
from nameserver import Says, Told
from rig import FAST, Rig, free_port, process, running, submit, until, write_config
from simmx import SimMx

from relay import clock
from relay.cli.explain import destination
from relay.cli.queue import _named
from relay.cli.service import _leaving
from relay.deliver.pool import key_of, name_of
from relay.deliver.survey import survey
from relay.nexthop.site import Site
from relay.policy.routing import Facts
from relay.settings import ANYWHERE
from tests.pace import within
from tests.ports import common_port

MAIL = b"From: a@example.com\r\nSubject: x\r\n\r\nHello\r\n"
SLOW = "  default: {retry: {schedule: [1h], give_up: 1d}}"
POOL = """direct:
  mx-1: {source: [127.0.0.1], hostname: mx1.relay.test}
  mx-2: {source: [127.0.0.2, "::1"], hostname: mx2.relay.test}
pools: {bulk: {members: {mx-2: 1, mx-1: 3}}}"""


def config(
    folder: Path,
    dns: Told,
    port: int,
    *,
    via: str = "direct",
    rules: str = "",
    extra: str = "",
    accounts: dict[str, str] | None = None,
    classes: str = SLOW,
    dsn: str = "to: none",
    own_port: int = 0,
    timeout: str = "10s",
) -> Path:
    """All domains of the test are on loopback, but those of a rule of the test's own."""
    lab = f"  - {{name: lab, per: mx, allow_private: true, port: {port}}}"
    made = (
        f"dns: {{servers: ['{dns.server}'], timeout: {timeout}, trust_ad: true}}\ndestinations:\n{rules}{lab}\n{extra}"
    )
    routes = f"  - {{name: all, via: {via}}}"
    return write_config(folder, accounts or {}, routes=routes, extra=made, classes=classes, dsn=dsn, port=own_port)


async def explained(rig: Rig, recipient: str) -> tuple[dict[str, Any], str]:
    """As JSON, and what is told of the domain as text."""
    found = await rig.app.admin.service.explain({"from": "a@example.com", "to": recipient})
    told = found["destination"]
    return found, "\n".join(text for text, _ in destination(told)) if told else ""


# -- explain


async def test_explain_tells_where_it_leads(tmp_path: Path) -> None:
    with Told() as dns:
        dns.say("example.net", "MX", "20 mx2.example.net.", "10 mx1.example.net.", ad=True)
        dns.say("mx1.example.net", "A", "127.0.1.1", ad=True)
        dns.say("mx1.example.net", "AAAA", ad=True)
        dns.say("_2525._tcp.mx1.example.net", "TLSA", f"3 1 1 {'ab' * 32}", ad=True)
        dns.say("mx2.example.net", "A", "127.0.1.2")
        dns.say("mx2.example.net", "AAAA", "::1")
        async with running(config(tmp_path, dns, 2525, via="bulk", extra=POOL)) as rig:
            found, text = await explained(rig, "b@example.net")
            told = found["destination"]
            assert (told["domain"], told["rule"], told["secure"]) == ("example.net", "lab", True)
            assert told["lane"] == "lab/{mx1,mx2}.example.net" and told["policy"] == "opportunistic"
            one, two = told["hosts"]
            assert (one["host"], one["preference"], one["v4"], one["v6"]) == ("mx1.example.net", 1, ["127.0.1.1"], [])
            assert one["tls"] == "dane" and one["records"] == ["3 1 1 abababababababab…"] and one["dialled"]
            assert (two["preference"], two["v6"], two["tls"], two["dialled"]) == (2, ["::1"], "opportunistic", True)
            assert two["trouble"] == ["mx2.example.net[::1]: mx-1 has no IPv6 source"]
            assert "MX, proved by the DNS (DNSSEC); port 2525" in text and "TLSA 3 1 1 abab" in text
            first, second = found["egresses"]
            assert [(e["egress"], e["weight"], e["share"], e["pool"]) for e in (first, second)] == [
                ("mx-1", 3, 0.75, "bulk"),
                ("mx-2", 1, 0.25, "bulk"),
            ]
            assert first["source"] == ["127.0.0.1"] and first["hostname"] == "mx1.relay.test"
            assert first["when"] == "now" and second["source"] == ["127.0.0.2", "::1"]
            assert not rig.app.scheduler.egresses  # a look makes nothing


async def test_explain_tells_what_the_sender_would_hear(tmp_path: Path) -> None:
    with Told() as dns:
        dns.say("null.example", "MX", "0 .")
        dns.say("odd.example", "MX", "10 192.0.2.1.")
        dns.told["trouble.example", "MX"] = Says(rcode="SERVFAIL")
        async with running(config(tmp_path, dns, 25)) as rig:
            heard = {
                "b@null.example": "556 5.1.10 null.example accepts no mail (null MX, RFC 7505)",
                "b@gone.example": "550 5.1.2 no such domain: gone.example",
                "b@odd.example": "550 5.4.4 the MX of odd.example names 192.0.2.1, which is no host",
                "b@trouble.example": "451 4.4.3 the DNS can't tell where mail for trouble.example goes: ",
                "b@[192.0.2.256]": "550 5.1.2 [192.0.2.256] is no address literal",
            }
            for recipient, reply in heard.items():
                found, text = await explained(rig, recipient)
                assert found["destination"]["refusal"].startswith(reply), recipient
                assert found["egresses"][0]["when"].startswith(f"not dialled: {reply}")
                fate = "it would be deferred" if reply.startswith("4") else "the sender would hear"
                assert f"{fate}: {reply}" in text


async def test_explain_tells_what_is_in_the_way(tmp_path: Path) -> None:
    rules = (
        "  - {name: bank, match: {recipient: '*@bank.example'}, tls: starttls, limits: [1/min]}\n"
        "  - {name: public, match: {recipient: '*@*.example'}}\n"
    )
    with Told() as dns:
        for domain in ("bank", "inside"):
            dns.say(f"{domain}.example", "MX", f"10 mx.{domain}.example.")
            dns.say(f"mx.{domain}.example", "A", "10.1.2.3")
        dns.say("back.example", "MX", "10 relay.test.", "20 mx.inside.example.")
        dns.say("ours.example", "MX", "10 mx.out.example.", "20 mx.ours.example.", "30 mx.none.example.")
        for name, address in (("out", "9.9.9.9"), ("ours", "127.0.0.1")):
            dns.say(f"mx.{name}.example", "A", address)
        port = free_port()
        rules = rules.replace("*@*.example'}", f"*@*.example'}}, port: {port}")
        async with running(config(tmp_path, dns, 25, rules=rules, own_port=port)) as rig:
            found, text = await explained(rig, "b@inside.example")
            (host,) = found["destination"]["hosts"]
            private = "mx.inside.example[10.1.2.3]: not an address of the public network (allow_private)"
            assert not host["dialled"] and host["trouble"] == [private] and private in text
            assert found["destination"]["lane"] == "public"
            found, text = await explained(rig, "b@bank.example")
            (host,) = found["destination"]["hosts"]
            assert (host["tls"], host["by"]) == ("verified", "destinations rule bank")
            assert "lane bank (rule bank" in text and "verified (destinations rule bank)" in text
            found, text = await explained(rig, "b@back.example")
            assert [host["dialled"] for host in found["destination"]["hosts"]] == [False, False]
            assert "relay.test: that is this relay" in text
            found, text = await explained(rig, "b@ours.example")
            first, second, third = found["destination"]["hosts"]
            assert (first["dialled"], second["dialled"], third["dialled"]) == (True, False, False)
            assert "mx.ours.example[127.0.0.1]: that is this relay" in text
            assert third["trouble"] == ["mx.none.example: it has no address"]
            assert not len(rig.app.scheduler.network.dead)
            rig.app.scheduler.network.dead.note(f"mx.inside.example:{port}", clock.monotonic())
            _, text = await explained(rig, "b@inside.example")
            assert "mx.inside.example did not answer: tried after others until " in text


async def test_explain_waits_for_no_dns_for_ever(tmp_path: Path) -> None:
    with Told() as dns:
        dns.told["silent.example", "MX"] = None
        dns.say("half.example", "MX", "10 mx.half.example.", "20 mx.silent.example.")
        dns.say("mx.half.example", "A", "127.0.1.1")
        dns.say("mx.half.example", "AAAA")
        dns.told["mx.silent.example", "A"] = dns.told["mx.silent.example", "AAAA"] = None
        async with running(config(tmp_path, dns, 25, timeout="60s")) as rig:  # which it does not wait for
            network, made = rig.app.scheduler.network, rig.app.config

            async def looked(domain: str, seconds: float) -> dict[str, Any]:
                began = time.monotonic()
                told = await survey(network, made, Facts("", f"b@{domain}"), ["direct"], seconds)
                assert time.monotonic() - began < 30
                return told

            told = await looked("silent.example", 0.5)
            assert told["trouble"].startswith("the DNS has not said within 0.5 s") and not told["hosts"]
            assert [text for text, _ in destination(told)] == [f"silent.example: {told['trouble']}"]
            good, bad = (await looked("half.example", 3.0))["hosts"]  # the other one's answers come within that
            assert good["dialled"] and not good["trouble"]
            assert bad["trouble"] == ["mx.silent.example: the DNS has not answered within 3 s"]


async def test_explain_tells_a_lane_that_rests(tmp_path: Path) -> None:
    port = free_port("127.0.1.1")
    with Told() as dns:
        dns.say("example.net", "MX", "10 mx1.example.net.")
        dns.say("mx1.example.net", "A", "127.0.1.1")
        async with running(config(tmp_path, dns, port)) as rig:
            number = await rig.send("b@example.net")
            await rig.tried(number)
            breaker = rig.egress("direct to lab/mx1.example.net").breaker
            breaker.opened, breaker.until, breaker.why = 1, clock.now() + 600, "connect: refused"
            found, text = await explained(rig, "b@example.net")
            assert found["egresses"][0]["when"].startswith("rests until ")
            assert found["egresses"][0]["when"].endswith(": connect: refused")
            assert "mx1.example.net did not answer: tried after others until " in text
            status = rig.app.admin.service.status()
            assert status["direct"] == [{"egress": "direct", "destinations": 1, "resting": 1}]
            assert status["accounts"] == 0 and not status["leaving"]
            assert _leaving(status).startswith("no: direct rests until ")
            assert _leaving(status).endswith(": lab/mx1.example.net: connect: refused")
            found, _ = await explained(rig, "b@example.org")  # another destination is none the worse
            assert found["destination"]["refusal"].startswith("550 5.1.2")


async def test_explain_without_a_relay_asks_the_dns_itself(tmp_path: Path) -> None:
    with Told() as dns:
        dns.say("example.net", "MX", "10 mx1.example.net.")
        dns.say("mx1.example.net", "A", "127.0.1.1")
        file = config(tmp_path, dns, 25, via="bulk", extra=POOL)
        with process(file) as relay:
            pass  # it has stopped
        command = ("explain", "--config", str(file), "--from", "a@example.com", "--to", "b@example.net")
        text = await asyncio.to_thread(relay.cli, *command)
    assert "pool bulk: each message draws one by weight and keeps to it" in text
    assert "75% of bulk  no relay is running to ask" in text and "by MX, from 127.0.0.1, as mx1.relay.test" in text
    assert "example.net: lane lab/mx1.example.net (rule lab " in text
    assert "  1. mx1.example.net  127.0.1.1  opportunistic" in text


# -- the queue


async def test_the_queue_names_the_entry_and_the_lane_its_destination(tmp_path: Path) -> None:
    hosts = ["127.0.1.1", "127.0.1.2"]
    port = common_port(hosts)
    with Told() as dns:
        for n, host in enumerate(hosts, 1):
            dns.say(f"d{n}.example", "MX", f"10 mx{n}.example.")
            dns.say(f"mx{n}.example", "A", host)
        dns.told["d3.example", "MX"] = None  # it is being looked up
        async with (
            SimMx(hosts[0], port),
            running(config(tmp_path, dns, port, via="bulk", extra=POOL, timeout="60s")) as rig,
        ):
            good, bad, unknown = [await rig.send(f"b@d{n}.example", message=MAIL) for n in (1, 2, 3)]
            row = await rig.reaches(good, "delivered")
            assert row["egress"] in ("mx-1", "mx-2") and row["lane"] == "default/all/lab/mx1.example"
            assert row["remote"] == f"mx1.example[127.0.1.1]:{port}" and row["tls"] == "clear"
            assert row["destination"] == "lab/mx1.example"
            row = await rig.tried(bad)
            assert row["egress"] in ("mx-1", "mx-2") and row["lane"] == "default/all/lab/mx2.example"
            assert row["remote"] == "" and "mx2.example[127.0.1.2]" in row["why"]
            row = await rig.row(unknown)
            assert row["why"] == "its domain's mail servers are being looked up" and row["next_at"] is None
            assert row["egress"] in ("mx-1", "mx-2") and row["lane"] == "default/all"

            service = rig.app.admin.service
            seen = set[str]()
            for name in ("mx-1", "mx-2"):
                rows, _ = await service.rows(service.parse_filter({"egress": name}), None, 10)
                seen |= {row["queue_id"] for row in rows}
                assert {row["egress"] for row in rows} <= {name}
            assert seen == {good, bad, unknown}
            assert (await service.rows(service.parse_filter({"egress": "direct"}), None, 10))[0] == []


async def test_show_tells_by_which_host(tmp_path: Path) -> None:
    port = free_port("127.0.1.1")
    with Told() as dns:
        dns.say("example.net", "MX", "10 mx1.example.net.")
        dns.say("mx1.example.net", "A", "127.0.1.1")
        async with SimMx("127.0.1.1", port):
            with process(config(tmp_path, dns, port)) as relay:
                rig_port = relay.port
                (number,) = await submit(rig_port, [("a@example.com", ("b@example.net",), MAIL)])
                await until(lambda: "event=delivered" in relay.log)
                # First, for the session is kept for half a minute, and each of these takes its time to start.
                stats = await asyncio.to_thread(relay.cli, "queue", "stats")
                shown = ""
                end = time.monotonic() + 60
                while "  delivered  " not in shown:
                    assert time.monotonic() < end, shown
                    shown = await asyncio.to_thread(relay.cli, "queue", "show", number)
                status = await asyncio.to_thread(relay.cli, "status")
    assert shown.count(f"by mx1.example.net[127.0.1.1]:{port}, clear") == 1
    assert f"by: mx1.example.net[127.0.1.1]:{port}, clear" in shown
    assert "lane default/all/lab/mx1.example.net" in shown and "via direct" in shown
    assert "direct\tMX\tready\t1\t0\t-\t" in stats
    assert "direct to lab/mx1.example.net\t\tready\t1 of " in stats
    assert "leaving      yes\n" in status


async def test_a_host_of_another_attempt_is_not_named(tmp_path: Path) -> None:
    """Who takes over has said nothing, if it can't be reached: the row must not tell of the first one's host."""
    port, dead = free_port("127.0.1.1"), free_port()
    with Told() as dns:
        dns.say("example.net", "MX", "10 mx1.example.net.")
        dns.say("mx1.example.net", "A", "127.0.1.1")
        accounts = {"main": f"port: {dead}, tls: none"}
        async with (
            SimMx("127.0.1.1", port, {"MAIL": "421 4.3.2 closing"}),
            running(config(tmp_path, dns, port, via="[direct, main]", accounts=accounts)) as rig,
        ):
            row = await rig.tried(await rig.send("b@example.net"))
            assert (row["egress"], row["remote"]) == ("main", "")
            assert "failed_over" in await rig.story(row["queue_id"])


# -- the figures


async def test_a_look_changes_nothing(tmp_path: Path) -> None:
    """An entry with all its sessions open closed an idle one each time that somebody looked."""
    hosts = ["127.0.1.1", "127.0.1.2"]
    port = common_port(hosts)
    with Told() as dns:
        for n, host in enumerate(hosts, 1):
            dns.say(f"d{n}.example", "MX", f"10 mx{n}.example.")
            dns.say(f"mx{n}.example", "A", host)
        extra = "direct: {mx-1: {connections: 1}}"
        async with (
            SimMx(hosts[0], port) as first,
            SimMx(hosts[1], port) as second,
            running(config(tmp_path, dns, port, via="mx-1", extra=extra)) as rig,
        ):
            await rig.reaches(await rig.send("b@d1.example"), "delivered")
            await until(lambda: rig.egress("mx-1 to lab/mx1.example").busy == 0)
            service = rig.app.admin.service
            for _ in range(3):
                await service.stats()
                found, _ = await explained(rig, "b@d2.example")
                assert found["egresses"][0]["when"] == "now"  # the place of the idle one is to be had
            assert list(rig.app.scheduler.egresses) == ["mx-1 to lab/mx1.example"]
            assert rig.egress("mx-1 to lab/mx1.example").sessions == 1 and first.open == 1
            await rig.reaches(await rig.send("b@d2.example"), "delivered")
            assert first.open == 0 and second.open == 1


async def test_what_is_in_use_has_no_room(tmp_path: Path) -> None:
    hosts = ["127.0.1.1", "127.0.1.2", "127.0.1.3"]
    port = common_port(hosts)
    with Told() as dns:
        for n, host in enumerate(hosts, 1):
            dns.say(f"d{n}.example", "MX", f"10 mx{n}.example.")
            dns.say(f"mx{n}.example", "A", host)
        extra = "direct: {mx-1: {connections: 1}}"
        async with (
            SimMx(hosts[0], port, {"DOT": SILENT}) as first,
            SimMx(hosts[1], port),
            SimMx(hosts[2], port),
            running(config(tmp_path, dns, port, via="mx-1", extra=extra)) as rig,
        ):
            await rig.send("b@d1.example")
            await until(lambda: bool(first.transactions and first.transactions[0].ended))
            await rig.send("b@d2.example")
            await until(lambda: "mx-1 to lab/mx2.example" in rig.app.scheduler.egresses)
            await until(lambda: rig.egress("mx-1 to lab/mx2.example").busy > 0)  # it stands in line
            number = await rig.send("b@d3.example")
            await until(lambda: "mx3.example" in str(rig.app.scheduler.sites.by_name))
            row = await rig.row(number)
            assert row["why"] == "all connections of mx-1 to new hosts are busy", row
            (row,) = rig.app.scheduler.outlook.egress_rows()
            assert (row["sessions"], row["connections"], row["why"]) == (
                1,
                1,
                "it has as many connections as it may, 1",
            )


@pytest.mark.parametrize(
    ("then", "event"), [("rest", "destination_rests"), ("slow", "destination_slowed"), ("fewer", "destination_crowded")]
)
async def test_what_its_hosts_say_is_no_word_about_an_account(tmp_path: Path, then: str, event: str) -> None:
    port = free_port("127.0.1.1")
    rule = f"{{reply: '^450 4.7.1 enough', scope: account, then: {then}, wait: 20m, means: too much for them}}"
    extra = f"direct: {{mx-1: {{replies: [{rule}]}}}}"
    with Told() as dns:
        dns.say("example.net", "MX", "10 mx1.example.net.")
        dns.say("mx1.example.net", "A", "127.0.1.1")
        async with (
            SimMx("127.0.1.1", port, {"MAIL": "450 4.7.1 enough"}),
            running(config(tmp_path, dns, port, via="mx-1", extra=extra)) as rig,
        ):
            number = await rig.send("b@example.net")
            await until(lambda: bool(rig.said(event)))
            assert rig.said(event)[0]["egress"] == "mx-1 to lab/mx1.example.net"
            assert not [kind for kind, _ in rig.events if kind.startswith("account_")]
            await until(lambda: not rig.egress("mx-1 to lab/mx1.example.net").busy)
            row = await rig.reaches(number, "queued", "deferred")
            assert row["egress"] == "mx-1" and "too much for them" in row["why"]


async def test_whose_limit_it_is(tmp_path: Path) -> None:
    """A rule's own, the entry's, and one that all entries have together are raised in three places."""
    port = free_port("127.0.1.1")
    rules = "".join(
        f"  - {{name: {name}, match: {{recipient: '*@{name}.example'}}, allow_private: true, port: {port}{more}}}\n"
        for name, more in (("own", ", limits: [1/h]"), ("all", ", per: relay, limits: [1/h]"))
    )
    with Told() as dns:
        for name in ("own", "all", "net"):
            dns.say(f"{name}.example", "MX", "10 mx1.example.")
        dns.say("mx1.example", "A", "127.0.1.1")
        extra = "direct: {mx-1: {limits: [3/h]}}"
        async with (
            SimMx("127.0.1.1", port),
            running(config(tmp_path, dns, port, via="mx-1", rules=rules, extra=extra)) as rig,
        ):
            for name, whose in (
                ("own", "its limit of 1/h"),
                ("all", "all's limit of 1/h"),
                ("net", "mx-1's limit of 3/h"),
            ):
                await rig.reaches(await rig.send(f"a@{name}.example"), "delivered")
                row = await rig.row(await rig.send(f"b@{name}.example"))
                assert f"waits: {whose} is used up" in row["why"], row


async def test_one_reply_is_told_once(tmp_path: Path) -> None:
    """A 421 is why it has fewer connections, and what failed last."""
    port = free_port("127.0.1.1")
    with Told() as dns:
        dns.say("example.net", "MX", "10 mx1.example.net.")
        dns.say("mx1.example.net", "A", "127.0.1.1")
        async with (
            SimMx("127.0.1.1", port, {"MAIL": "421 4.7.0 too many"}),
            running(config(tmp_path, dns, port)) as rig,
        ):
            await rig.reaches(await rig.send("b@example.net"), "deferred")
            (row,) = await rig.app.scheduler.outlook.destination_rows("direct", 20)
            assert row["why"] == "mail: 421 4.7.0 too many; 1 of 20 connections"


async def test_ten_thousand_destinations(tmp_path: Path) -> None:
    """Bounded in what is told, and in how long nothing else can happen."""
    with Told() as dns:
        async with running(config(tmp_path, dns, 25, via="bulk", extra=POOL)) as rig:
            scheduler, service, now = rig.app.scheduler, rig.app.admin.service, clock.now()
            for i in range(10_000):
                site = f"mx{i}.example"
                scheduler.sites.by_name[site] = Site(site, ANYWHERE)
                egress = scheduler.egresses[key_of("mx-1", site)]
                if i % 1000 == 0:
                    egress.breaker.opened, egress.breaker.until, egress.breaker.why = 1, now + 600, "connect: refused"
                egress._open = i % 3
            status = within(0.5, service.status, "the status")
            assert status["direct"] == [
                {"egress": "mx-1", "destinations": 10_000, "resting": 10},
                {"egress": "mx-2", "destinations": 0, "resting": 0},
            ]
            assert status["leaving"] and status["resting_until"] == []
            assert _leaving(status) == "yes: mx-1: 10 of 10000 destinations rest (relay queue stats)"
            rows = (await service.stats())["egresses"]
            assert len(rows) == 22 and rows[0]["state"] == "10 of 10000 destinations rest"
            assert rows[0]["sessions"] == sum(i % 3 for i in range(10_000))
            assert [row["state"] for row in rows[1:21]] == ["resting"] * 10 + ["ready"] * 10
            assert _named(rows[1]).startswith("mx-1 to mx") and rows[1]["why"] == "connect: refused"
            assert all(row["sessions"] == 2 for row in rows[11:21]) and rows[21]["egress"] == "mx-2"


def test_an_entry_s_name_out_of_a_key() -> None:
    assert name_of(key_of("mx-1", "google")) == "mx-1" and name_of("main") == "main"


# -- the report


def part(message: bytes, kind: str) -> Message:
    return next(p for p in message_from_bytes(message).walk() if p.get_content_type() == kind)


@pytest.mark.parametrize(
    ("recipient", "remote", "diagnostic", "said"),
    [
        (
            "no@example.net",
            "dns; mx1.example.net",
            "smtp; 550 5.1.1 nobody",
            "The mail server mx1.example.net refused it",
        ),
        ("no@[127.0.1.1]", "dns; [127.0.1.1]", "smtp; 550 5.1.1 nobody", "The mail server [127.0.1.1] refused it"),
        ("no@gone.example", None, "x-relay; 5.1.2 no such domain: gone.example", "It can't be delivered:"),
    ],
)
async def test_a_report_names_the_host_that_refused(
    tmp_path: Path, recipient: str, remote: str | None, diagnostic: str, said: str
) -> None:
    port = free_port("127.0.1.1")
    with Told() as dns:
        dns.say("example.net", "MX", "10 mx1.example.net.")
        dns.say("mx1.example.net", "A", "127.0.1.1")
        async with (
            Upstream() as home,
            SimMx("127.0.1.1", port, {"RCPT": "550 5.1.1 nobody"}),
        ):
            accounts = {"home": f"port: {home.port}, tls: none"}
            file = config(tmp_path, dns, port, accounts=accounts, classes=FAST, dsn="to: sender, via: home")
            async with running(file) as rig:
                row = await rig.reaches(await rig.send(recipient), "failed")
                await until(lambda: bool(home.done))
                status = part(home.done[0].message, "message/delivery-status").as_string()
                text = part(home.done[0].message, "text/plain").as_string()
    fields = dict(line.split(": ", 1) for line in status.replace("\n ", " ").splitlines() if ": " in line)
    assert fields.get("Remote-MTA") == remote and fields["Diagnostic-Code"] == diagnostic
    assert fields["Status"] == row["last_reply"].split()[1] and said in text
    assert row["remote"] == (f"{remote.removeprefix('dns; ')}[127.0.1.1]:{port}" if remote and "[" not in remote else
                             f"[127.0.1.1]:{port}" if remote else "")  # fmt: skip
