"""A stranger's domain, its DNS, hosts and policy, against everybody else's mail: it harms nobody's but its own."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from certificates import Certs, certs
from fakes import SILENT
from lab import burst, lab, sites, soon
from rig import running
from simmx import SimMx
from stsserver import Policy, StsServer, text

from relay import clock
from relay.deliver import direct
from relay.deliver.tried import Tried
from relay.nexthop import fetch
from relay.nexthop.hops import Addresses
from tests.pace import within

__all__ = ["certs"]

DAY = "  default: {retry: {schedule: [1h], give_up: 1d}}"
QUOTA = "450 4.7.1 this sender has exceeded its 24-hour sending limit"

# -- lanes


@pytest.mark.parametrize("says", [{"RCPT": QUOTA}, {"BANNER": "421 4.7.0 too many connections"}, {"BANNER": "554 no"}])
async def test_a_backup_of_a_strangers_speaks_for_no_lane_of_others(tmp_path: Path, says: dict[str, str]) -> None:
    """Its best host is a name of the victim's zone that leads nowhere, so that its backup, the stranger's own, takes part."""
    async with lab(tmp_path, {"victim.test": "127.0.1.1", "evil.test": "127.0.1.2"}) as here:
        here.dns.say("evil.test", "MX", "1 gone.victim.test.", "2 mx1.evil.test.")
        here.dns.say("gone.victim.test", "A")
        here.dns.say("gone.victim.test", "AAAA")
        here.mx["evil.test"].script |= says
        async with running(here.config(rules="name: own, match: {mx: '*.victim.test'}", classes=DAY)) as rig:
            await burst(rig, [f"u{n}@evil.test" for n in range(8)])
            await soon(lambda: here.mx["evil.test"].visits)
            await asyncio.sleep(0.3)
            await rig.reaches(await rig.send("x@victim.test"), "delivered")
            (way,) = (way for way in sites(rig) if way.site == "own")
            assert not way.breaker.failures and not way.pace.rate and not way.fewer


# -- what is remembered of a host


async def test_tls_that_breaks_by_a_strangers_name_breaks_for_nobody_else(tmp_path: Path, certs: Certs) -> None:
    """Servers are told a name in TLS (SNI), and may refuse one that is none of theirs: it is the stranger who says that name."""
    identity = certs.right("mx1.victim.test")
    async with lab(tmp_path, {"victim.test": "127.0.1.1"}, identity=identity) as here:
        here.dns.say("evil.test", "MX", "1 mx.evil.test.")
        here.dns.say("mx.evil.test", "A", "127.0.1.1")
        here.dns.say("mx.evil.test", "AAAA")
        mx = here.mx["victim.test"]

        def choose(tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
            return None if name == "mx1.victim.test" else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

        assert mx.tls is not None
        mx.tls.sni_callback = choose
        async with running(here.config(classes=DAY)) as rig:
            await rig.reaches(await rig.send("x@evil.test"), "delivered")
            assert mx.visits[-1].tls == ""
            await rig.reaches(await rig.send("x@victim.test"), "delivered")
            assert mx.visits[-1].tls, "in clear text"


async def test_tls_that_breaks_by_a_rule_breaks_for_no_other(tmp_path: Path, certs: Certs) -> None:
    """One wants TLS 1.3 where there is any; the host has 1.2, which is good enough for the others."""
    identity = certs.right("mx1.victim.test")
    async with lab(tmp_path, {"victim.test": "127.0.1.1"}, identity=identity) as here:
        here.dns.say("other.test", "MX", "1 mx1.victim.test.")
        mx = here.mx["victim.test"]
        assert mx.tls is not None
        mx.tls.maximum_version = ssl.TLSVersion.TLSv1_2
        rules = "name: own, match: {recipient: '*@other.test'}, tls: {mode: opportunistic, minimum: '1.3'}"
        async with running(here.config(rules=rules, classes=DAY)) as rig:
            await rig.reaches(await rig.send("x@other.test"), "delivered")
            await rig.reaches(await rig.send("x@victim.test"), "delivered")
            assert mx.visits[-1].tls == "TLSv1.2", "in clear text"


async def test_a_host_is_not_dead_for_what_is_wrong_with_a_rule(tmp_path: Path, certs: Certs) -> None:
    """A port where it does not listen: other rules reach it as before."""
    async with lab(tmp_path, {"victim.test": "127.0.1.1"}, identity=certs.right("mx1.victim.test")) as here:
        here.dns.say("one.test", "MX", "1 mx1.victim.test.")
        file = here.config(rules="name: one, match: {recipient: '*@one.test'}, tls: opportunistic", classes=DAY)
        file.write_text(file.read_text().replace(f"port: {here.port}", "port: 1", 1))
        async with running(file) as rig:
            row = await rig.tried(await rig.send("x@one.test"))
            assert "Connection refused" in row["why"], row
            dead = rig.app.scheduler.network.dead
            assert not any(dead.until(what, time.monotonic()) for what in ("mx1.victim.test", "127.0.1.1"))


# -- places


async def test_an_attempt_ends_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A domain with many hosts that accept and never greet: the place that it has is somebody else's turn."""
    monkeypatch.setattr(direct, "LONG", 500.0)
    monkeypatch.setattr(direct, "SET_UP", 0.4)
    hosts = [f"127.0.3.{n}" for n in range(1, 6)]
    dialled, dial = list[str](), direct.Direct._dial

    async def counted(way: direct.Direct, address: str) -> Any:
        dialled.append(address)
        return await dial(way, address)

    # Each of them takes so long, whatever the machine does meanwhile.
    passed = SimpleNamespace(monotonic=lambda: 300.0 * sum(address in hosts for address in dialled), now=clock.now)
    monkeypatch.setattr(direct.Direct, "_dial", counted)
    monkeypatch.setattr(direct, "clock", passed)
    async with lab(tmp_path, {"good.test": "127.0.1.1"}, also=hosts) as here, contextlib.AsyncExitStack() as stack:
        for host in hosts:
            await stack.enter_async_context(SimMx(host, here.port, {"BANNER": SILENT}))
        here.domain("evil.test", *hosts)
        file = here.config(direct="mx-1: {connections: 2}", routes="  - {name: all, via: mx-1}", classes=DAY)
        async with running(file) as rig:
            number = await rig.send("x@evil.test")
            await soon(lambda: dialled)
            await rig.reaches(await rig.send("x@good.test"), "delivered")
            assert len(dialled) <= 3, dialled
            row = await rig.tried(number)
            assert "timed out" in row["why"] and "3 more hosts are left for the next attempt" in row["why"], row


@pytest.mark.parametrize("words", ["BANNER", "EHLO", "STARTTLS"])
async def test_a_session_that_is_never_ready_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, certs: Certs
) -> None:
    """Each reply in its time, and each the slowest that it may be."""
    monkeypatch.setattr(direct, "SET_UP", 0.5)
    async with (
        lab(tmp_path, {"evil.test": "127.0.1.1"}, {words: SILENT}, identity=certs.right("x.test")) as here,
        running(here.config(classes=DAY)) as rig,
    ):
        row = await rig.tried(await rig.send("x@evil.test"))
        assert "timed out" in row["why"], row
        await soon(lambda: here.mx["evil.test"].open == 0)


async def test_a_slow_policy_keeps_no_session_of_others(
    tmp_path: Path, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers' domains name the victim's host, and their policies take half a minute each."""
    monkeypatch.setattr(direct, "PATIENCE", 0.3)
    monkeypatch.setenv("SSL_CERT_FILE", str(certs.bundle))
    async with StsServer(certs) as sts, lab(tmp_path, {"victim.test": "127.0.1.1"}) as here:
        monkeypatch.setattr(fetch, "PORT", sts.port)
        for n in range(20):
            name = f"evil{n}.test"
            here.dns.say(name, "MX", "1 mx1.victim.test.")
            here.dns.say(f"_mta-sts.{name}", "TXT", '"v=STSv1; id=1;"')
            here.dns.say(f"mta-sts.{name}", "A", "127.0.0.1")
            here.dns.say(f"mta-sts.{name}", "AAAA")
            sts.policies[name] = Policy(text("testing", "mx1.victim.test"), delay=30.0)
        slow = asyncio.Event()
        sts.policies["evil0.test"] = Policy(text("testing", "mx1.victim.test"), until=slow)
        async with running(here.config("per: mx, connections: 2", classes=DAY)) as rig:
            await rig.reaches(await rig.send("x@victim.test"), "delivered")
            bad = await burst(rig, [f"x@evil{n}.test" for n in range(20)])
            await soon(lambda: sts.asked)
            began = time.monotonic()
            await rig.reaches(await rig.send("y@victim.test"), "delivered")
            assert time.monotonic() - began < 25
            row = await rig.tried(bad[0])
            assert row["state"] == "deferred" and "has an MTA-STS policy is not known yet" in row["why"], row
            slow.set()
            await soon(lambda: rig.app.scheduler.network.sts.known("evil0.test"))


async def test_a_host_with_thousands_of_addresses_holds_up_nobody(tmp_path: Path) -> None:
    """All in one answer of the DNS, none of which may be dialled; and each could be one of ours, which listens everywhere."""
    async with lab(tmp_path, {}, also=["0.0.0.0"]) as here:
        many = [f"10.{n >> 8}.{n & 255}.1" for n in range(3000)]
        file = here.config(rules="name: own, match: {recipient: '*@evil.test'}", classes=DAY)
        file.write_text(
            file.read_text()
            .replace("allow_private: true, ", "", 1)
            .replace(
                'address: "127.0.0.1:0"}',
                f'address: "127.0.0.1:0"}}, {{name: all, address: "0.0.0.0:{here.port}", clients: [127.0.0.0/8]}}',
            )
        )
        async with running(file) as rig:
            way = rig.app.scheduler.network.direct(rig.app.config.accounts["direct"], rig.app.config.destinations[0])
            found = Addresses(v4=tuple(many))
            assert not within(
                0.02, lambda: way.usable("mx1.evil.test", found, Tried("evil.test"), 0), "sorting them out"
            )
