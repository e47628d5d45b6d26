"""Mail by MX over time and side by side: policies that change, are cached or taken away, and hosts that domains share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from fakes import DROP
from nameserver import Says, Told
from rig import Rig, running
from simmx import SimMx
from stsserver import Policy, StsServer, text
from tlslab import ADDRESSES, MAIL, OTHER, Lab, said_mail

from relay import clock, resolver
from relay.deliver import direct
from relay.deliver.direct import TESTING
from relay.nexthop import fetch, sts

HOST, OTHER_HOST, DOMAIN = "mx.example.net", "mx2.example.net", "policed.example"
TRUSTED, FORGED = "TLSv1.3, verified, MTA-STS enforce", "TLSv1.3, not verified"


class Street:
    """A name server, a policy server, certificates of one host, and a relay beside them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, dns: Told) -> None:
        self.folder, self.dns = folder, dns
        self.lab = Lab(folder, [])
        self.right, self.wrong = self.lab.certs.right(HOST, OTHER_HOST), self.lab.certs.right("other.example")
        self.sts = StsServer(self.lab.certs)
        monkeypatch.setenv("SSL_CERT_FILE", str(self.lab.certs.bundle))
        for number, host in enumerate((HOST, OTHER_HOST)):
            dns.say(host, "A", ADDRESSES[number])
            dns.say(host, "AAAA")

    def host(self, identity: Any = None, number: int = 0, **script: Any) -> SimMx:
        return SimMx(ADDRESSES[number], self.lab.port, script, identity=identity)

    def domain(self, name: str, *hosts: str, policy: str = "", id_: str = "1", ttl: int = 300) -> None:
        """`hosts`: named by MX, the best first; without any, the one that there is. `policy`: its text."""
        self.dns.say(name, "MX", *(f"{10 * n} {host}." for n, host in enumerate(hosts or (HOST,), 1)))
        if policy:
            self.dns.say(f"_mta-sts.{name}", "TXT", f'"v=STSv1; id={id_};"', ttl=ttl)
            self.dns.say(f"mta-sts.{name}", "A", "127.0.0.1")
            self.dns.say(f"mta-sts.{name}", "AAAA")
            self.sts.policies[name] = Policy(policy)

    def relay(
        self, rule: str = "", trust_ad: bool = False, timeout: str = "10s"
    ) -> contextlib.AbstractAsyncContextManager[Rig]:
        """`timeout`: of the DNS, where it is to be silent."""
        return running(self.lab.config(self.folder, self.dns.server, rule=rule, trust_ad=trust_ad, timeout=timeout))


@pytest.fixture
async def street(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Street]:
    with Told() as dns:
        made = Street(tmp_path, monkeypatch, dns)
        async with made.sts:
            monkeypatch.setattr(fetch, "PORT", made.sts.port)
            yield made


async def sent(rig: Rig, domain: str) -> tuple[str, str]:
    """(state, TLS or the reply)"""
    (number,) = await rig.send_many([("a@example.com", (f"b@{domain}",), MAIL)])
    row = await rig.reaches(number, "delivered", "deferred", "failed")
    if row["state"] != "delivered":
        return row["state"], row["last_reply"]
    return "delivered", (await rig.message(number))["events"][-1]["tls"]


def recipients(mx: SimMx) -> list[list[str]]:
    """Of each session, the domains of those that were named in it."""
    return [
        [line.rpartition("@")[2].partition(">")[0] for line in visit.commands if line.startswith("RCPT")]
        for visit in mx.visits
    ]


# -- policies over time


@pytest.mark.parametrize("record", ["there", "gone", "silent", "nonsense"])
async def test_a_cached_policy_outlives_a_restart(street: Street, record: str) -> None:
    """RFC 8461 §3.3 and §10.2: who blocks its fetch, or the record, takes nothing away."""
    street.domain(DOMAIN, policy=text("enforce", HOST))
    async with street.host(street.right), street.relay() as rig:
        assert await sent(rig, DOMAIN) == ("delivered", TRUSTED)
    await street.sts.stop()
    timeout = "1s" if record == "silent" else "10s"  # shorter than that of a session for a policy
    match record:
        case "gone":
            del street.dns.told[f"_mta-sts.{DOMAIN}", "TXT"]
        case "silent":
            street.dns.told[f"_mta-sts.{DOMAIN}", "TXT"] = None
        case "nonsense":
            street.dns.say(f"_mta-sts.{DOMAIN}", "TXT", '"v=STSv2; id=2;"')
    async with street.host(street.wrong) as mx, street.relay(timeout=timeout) as rig:
        state, reply = await sent(rig, DOMAIN)
        assert state == "deferred" and reply.startswith("451 4.7.5 ") and "Hostname mismatch" in reply
        assert len(mx.visits) == 1 and not said_mail([mx])


async def test_a_new_id_that_can_not_be_fetched_leaves_the_old_policy(street: Street) -> None:
    street.domain(DOMAIN, policy=text("enforce", HOST))
    async with street.host(street.right), street.relay() as rig:
        assert await sent(rig, DOMAIN) == ("delivered", TRUSTED)
    street.domain(DOMAIN, policy=text("none"), id_="2")
    street.sts.policies[DOMAIN].status = 500
    async with street.host(street.wrong) as mx, street.relay() as rig:
        assert "Hostname mismatch" in (await sent(rig, DOMAIN))[1]
        assert not said_mail([mx])
        (event,) = rig.said("sts_fetch_failed")
        assert event["cached"] == "enforce" and "it answered 500" in event["why"]


async def test_a_policy_that_ended_is_none(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    street.domain(DOMAIN, policy=text("enforce", HOST, max_age=3600))
    async with street.host(street.right), street.relay() as rig:
        assert await sent(rig, DOMAIN) == ("delivered", TRUSTED)
    await street.sts.stop()
    later = time.time() + 3700
    before = clock.monotonic()
    monkeypatch.setattr(clock, "now", lambda: later + clock.monotonic() - before)
    async with street.host(street.wrong), street.relay() as rig:
        assert await sent(rig, DOMAIN) == ("delivered", FORGED)
        (event,) = rig.said("sts_fetch_failed")
        assert event["cached"] is None


@pytest.mark.parametrize("first", ["enforce", "testing", "none"])
async def test_a_policy_that_changes_counts_for_open_sessions_too(
    street: Street, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one mode to another while a session is idle, which was good enough before."""
    monkeypatch.setattr(sts, "SHORTEST", 0.05)
    street.domain(DOMAIN, policy=text(first, *([HOST] if first != "none" else [])), ttl=0)
    then = "none" if first == "enforce" else "enforce"
    async with street.host(street.right if first == "enforce" else street.wrong) as mx, street.relay() as rig:
        said = await sent(rig, DOMAIN)
        assert said == ("delivered", TRUSTED if first == "enforce" else FORGED)
        visits = len(mx.visits)
        street.domain(DOMAIN, policy=text(then, *([HOST] if then != "none" else [])), id_="2", ttl=0)
        changed = clock.monotonic()
        await until(lambda: clock.monotonic() > changed + 2 * sts.SHORTEST)
        said = await sent(rig, DOMAIN)
        if then == "none":
            assert said == ("delivered", FORGED)
        else:
            assert said[0] == "deferred" and "Hostname mismatch" in said[1]
            assert all(at < visits for _, at in said_mail([mx]))
        assert street.sts.policies[DOMAIN].asked == 1


async def test_testing_is_counted(street: Street) -> None:
    before = TESTING.values[()]
    street.domain(DOMAIN, policy=text("testing", HOST))
    async with street.host(street.wrong), street.relay() as rig:
        assert await sent(rig, DOMAIN) == ("delivered", FORGED)
        assert await sent(rig, DOMAIN) == ("delivered", FORGED)  # on the same session
    assert TESTING.values[()] == before + 1


@pytest.mark.parametrize("slow", ["record", "server"])
@pytest.mark.parametrize("cached", [False, True])
async def test_who_never_says_what_the_policy_is_has_its_mail(
    street: Street, slow: str, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 8461 §3.3, §5.1: without an answer, as before. The first attempt does not wait for it, nor does any later one."""
    street.domain(DOMAIN, policy=text("enforce", HOST))
    if cached:
        async with street.host(street.right), street.relay() as rig:
            assert await sent(rig, DOMAIN) == ("delivered", TRUSTED)
    monkeypatch.setattr(direct, "PATIENCE", 0.3)
    for name in ("TROUBLE", "SHORTEST", "AGAIN"):
        monkeypatch.setattr(sts, name, 0.2)
    monkeypatch.setattr(resolver, "TROUBLE", 0.1)
    if slow == "record":
        street.dns.told[f"_mta-sts.{DOMAIN}", "TXT"] = None
    else:
        street.dns.say(f"_mta-sts.{DOMAIN}", "TXT", '"v=STSv1; id=2;"', ttl=0)
        street.dns.told[f"mta-sts.{DOMAIN}", "A"] = None
    file = street.lab.config(street.folder, street.dns.server, trust_ad=False, timeout="1s")
    file.write_text(file.read_text().replace("200ms", "1h"))  # no attempt between those that are looked at
    async with street.host(street.wrong) as mx, running(file) as rig:
        state, reply = await sent(rig, DOMAIN)
        assert state == "deferred" and reply.startswith("451 4.7.5 ") and "is not known yet" in reply
        policies = rig.app.scheduler.network.sts
        for _ in range(1 if cached else 2):  # a policy that is not met lets the domain rest
            await policies.of(DOMAIN)
            await until(lambda: policies._domains[DOMAIN].due < clock.now())  # it is asked again
            state, reply = await sent(rig, DOMAIN)
            if cached:
                assert state == "deferred" and "Hostname mismatch" in reply
            else:
                assert (state, reply) == ("delivered", FORGED)
        assert bool(said_mail([mx])) is not cached


# -- domains that share a host


async def test_sessions_are_shared_where_the_same_is_required(street: Street) -> None:
    for name in ("a1.example", "a2.example"):
        street.domain(name)
    for name in ("b1.example", "b2.example"):
        street.domain(name, policy=text("enforce", HOST))
    async with street.host(street.right) as mx, street.relay() as rig:
        for name in ("a1.example", "b1.example", "a2.example", "b2.example", "a1.example"):
            state, tls = await sent(rig, name)
            assert (state, tls) == ("delivered", TRUSTED if name[0] == "b" else FORGED)
        assert recipients(mx) == [["a1.example", "a2.example", "a1.example"], ["b1.example", "b2.example"]]
        assert len(rig.app.scheduler.egresses) == 1


@pytest.mark.parametrize("usage", [2, 3])
async def test_sessions_by_dane_are_shared_unless_names_count(street: Street, usage: int) -> None:
    identity = street.lab.certs.right(HOST, root=True)
    for name in ("a.example", "b.example"):
        street.dns.say(name, "MX", f"10 {HOST}.", ad=True)
    street.dns.say(HOST, "A", ADDRESSES[0], ad=True)
    street.dns.say(HOST, "AAAA", ad=True)
    street.dns.say(f"_{street.lab.port}._tcp.{HOST}", "TLSA", identity.tlsa(usage, at=-1 if usage == 2 else 0), ad=True)
    async with street.host(identity) as mx, street.relay(trust_ad=True) as rig:
        for name in ("a.example", "b.example"):
            assert (await sent(rig, name))[1].startswith(f"TLSv1.3, DANE {usage} 1 1 ")
        assert recipients(mx) == ([["a.example"], ["b.example"]] if usage == 2 else [["a.example", "b.example"]])


async def test_a_policy_that_is_not_met_is_one_domains_own(street: Street) -> None:
    """Others at the host go on, on its lane and its sessions; the domain rests after one attempt, whatever else waits for it."""
    street.domain("a.example")
    street.domain(DOMAIN, policy=text("enforce", HOST))
    async with street.host(street.wrong) as mx, street.relay() as rig:
        assert await sent(rig, "a.example") == ("delivered", FORGED)
        for number in range(7):  # more than a breaker bears
            (late,) = await rig.send_many([("a@example.com", (f"b{number}@{DOMAIN}",), MAIL)])
            row = await rig.reaches(late, "deferred", "delivered", "failed")
            assert (row["state"], row["attempts"]) == ("deferred", 1 if number == 0 else 0), row
        assert await sent(rig, "a.example") == ("delivered", FORGED)
        assert recipients(mx) == [["a.example", "a.example"], []]
        (egress,) = rig.app.scheduler.egresses.values()
        assert not egress.breaker.failures and not egress.breaker.is_open


async def test_a_broken_handshake_is_no_reason_for_clear_text_where_a_policy_is(street: Street) -> None:
    """What was learnt of a host by a domain without a policy counts for such domains alone."""
    street.domain("a.example")
    street.domain(DOMAIN, policy=text("enforce", HOST))
    async with street.host(street.right, HANDSHAKE=[DROP, None]) as mx, street.relay() as rig:
        assert await sent(rig, "a.example") == ("delivered", "clear")
        assert await sent(rig, DOMAIN) == ("delivered", TRUSTED)
        assert await sent(rig, "a.example") == ("delivered", "clear")
        assert recipients(mx) == [[], ["a.example", "a.example"], [DOMAIN]]


async def test_one_message_to_domains_that_require_different_things(street: Street) -> None:
    street.domain("a.example")
    street.domain(DOMAIN, policy=text("enforce", HOST))
    async with street.host(street.wrong) as mx, street.relay() as rig:
        (number,) = await rig.send_many([("a@example.com", ("b@a.example", f"b@{DOMAIN}"), MAIL)])
        await until(lambda: rig.said("delivered") and rig.said("deferred"))
        assert [e["recipient"] for e in rig.said("delivered")] == ["b@a.example"]
        assert [e["recipient"] for e in rig.said("deferred")] == [f"b@{DOMAIN}"]
        assert {domain for session in recipients(mx) for domain in session} == {"a.example"}
        assert len(await rig.rows(number)) == 2


async def test_a_policy_can_not_make_the_lane_of_others_rest(street: Street) -> None:
    """It allows a host that is dead alone, beside one that is everybody's: that one is none the worse."""
    street.domain("a.example")
    for number in range(7):  # more than a breaker bears
        street.domain(f"evil{number}.example", HOST, OTHER_HOST, policy=text("enforce", OTHER_HOST))
    async with street.host(street.right), street.relay() as rig:
        for number in range(7):
            state, reply = await sent(rig, f"evil{number}.example")
            assert state == "deferred" and "Connection refused" in reply and "is none of the hosts" in reply
        assert await sent(rig, "a.example") == ("delivered", FORGED)
        for egress in rig.app.scheduler.egresses.values():
            assert not egress.breaker.failures and not egress.breaker.is_open


async def test_a_rule_that_changes_counts_for_open_sessions_too(street: Street) -> None:
    street.domain("a.example")
    async with street.host(street.wrong) as mx, street.relay() as rig:
        for _ in range(2):  # the second time the session is known to be good
            assert await sent(rig, "a.example") == ("delivered", FORGED)
        street.lab.config(street.folder, street.dns.server, rule="{verify: true}", trust_ad=False)
        assert rig.app.reload()[0]
        state, reply = await sent(rig, "a.example")
        assert state == "deferred" and "Hostname mismatch" in reply
        assert recipients(mx) == [["a.example", "a.example"], []]


# -- what the DNS does not tell


TROUBLES: list[tuple[str, Says | None]] = [
    ("silent", None),
    ("servfail", Says(rcode="SERVFAIL")),
    ("refused", Says(rcode="REFUSED")),
]


@pytest.mark.parametrize(("trouble", "says"), TROUBLES, ids=[trouble for trouble, _ in TROUBLES])
@pytest.mark.parametrize("of", ["TLSA", "CNAME"])
async def test_trouble_with_the_records_is_no_reason_to_do_without(
    street: Street, trouble: str, says: Says | None, of: str
) -> None:
    """RFC 7672 §2.1.1. An alias that leads out of what is proven may be proven itself (§2.2.2)."""
    street.dns.say(DOMAIN, "MX", f"10 {HOST}.", ad=True)
    street.dns.say(HOST, "A", ADDRESSES[0], ad=True)
    street.dns.say(HOST, "AAAA", ad=True)
    if of == "CNAME":
        for kind, records in (("A", [f"real.example. 300 A {ADDRESSES[0]}"]), ("AAAA", [])):
            street.dns.told[HOST, kind] = Says([f"{HOST}. 300 CNAME real.example.", *records])
    name = f"_{street.lab.port}._tcp.{HOST}" if of == "TLSA" else HOST
    street.dns.told[name, of] = says
    timeout = "1s" if says is None else "10s"
    async with street.host(street.right) as mx, street.relay(trust_ad=True, timeout=timeout) as rig:
        state, reply = await sent(rig, DOMAIN)
        assert state == "deferred" and reply.startswith("451 4.7.5 DANE: the "), reply
        assert "can't be looked up" in reply and not mx.visits


async def test_records_alone_that_are_not_proven(street: Street) -> None:
    street.dns.say(DOMAIN, "MX", f"10 {HOST}.", ad=True)
    street.dns.say(HOST, "A", ADDRESSES[0], ad=True)
    street.dns.say(HOST, "AAAA", ad=True)
    street.dns.say(f"_{street.lab.port}._tcp.{HOST}", "TLSA", f"3 1 1 {OTHER}", ad=False)
    async with street.host(street.wrong), street.relay(trust_ad=True) as rig:
        assert await sent(rig, DOMAIN) == ("delivered", FORGED)


async def test_an_address_has_no_policy_and_is_asked_for_by_no_name(street: Street) -> None:
    async with street.host(street.wrong) as mx, street.relay(trust_ad=True) as rig:
        for _ in range(2):
            assert await sent(rig, f"[{ADDRESSES[0]}]") == ("delivered", FORGED)
        assert [visit.sni for visit in mx.visits] == [None]
        assert not street.dns.questions
