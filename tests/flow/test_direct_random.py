"""Mail by MX while hosts, the DNS and the configuration change at random: each message arrives once, or ends with a reason."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from fakes import DROP, RESET, SILENT, Later
from lab import Lab, lab, sites
from nameserver import Says
from rig import Rig, running

from relay.deliver import connect, direct, smtp, trunk
from relay.reply import Stage
from relay.scheduler import blame, outcomes, resting
from relay.scheduler import sites as siting

HOSTS = {f"d{n}.test": f"127.0.1.{n}" for n in range(1, 7)}
SECONDS, MESSAGES = 5.0, 240
FAST = "  default: {retry: {schedule: [100ms], give_up: 1d}}"

# What a host does for a while. None of it leaves a doubt about what it took.
DOES = [
    {},
    {},
    {"BANNER": "421 4.3.2 not now"},
    {"BANNER": "554 5.3.2 no mail here"},
    {"BANNER": DROP},
    {"BANNER": SILENT},
    {"EHLO": "502 what"},
    {"EHLO": RESET},
    {"MAIL": "421 4.7.0 too many connections"},
    {"MAIL": "451 4.7.1 try again in 1 seconds"},
    {"RCPT": "450 4.2.0 Greylisted, try again in 1 seconds"},
    {"RCPT": "421 4.3.0 going down"},
    {"RCPT": "550 5.1.1 no such user"},
    {"DATA": "451 4.3.0 local error"},
    {"DATA": DROP},
    {"DOT": "452 4.3.1 disk full"},
    {"DOT": "421 4.3.2 shutting down"},
    {"DOT": Later(0.2, "250 2.0.0 ok")},
]
SEEDS = int(os.environ.get("STORM_SEEDS", "2"))
ENTRIES = [
    "one: {source: 127.0.2.1, connections: 4}, two: {source: 127.0.2.2, connections: 3}",
    "one: {source: 127.0.2.1, connections: 2}, two: {source: 127.0.2.2, connections: 1}",
    "one: {source: 127.0.2.1, connections: 8}, two: {source: 127.0.2.9}",
    "one: {source: 127.0.2.1, connections: 3}, two: {source: '::1'}",
]
RULES = [
    "per: mx",
    "per: domain, connections: 1",
    "per: egress, connections: 5",
    "per: relay, limits: [300 messages/s]",
    "per: mx, limits: [50 connections/s], messages_per_connection: 2",
    "per: mx, tls: opportunistic, recipients_per_message: 1",
]


def configured(here: Lab, lot: random.Random, *, well: bool = False) -> Path:
    """`well`: all hosts can be reached by it."""
    return here.config(
        lot.choice(RULES),
        rules=lot.choice(["", "name: own, match: {recipient: '*@d1.test'}", "name: own, match: {mx: '*.d2.test'}"]),
        direct=ENTRIES[0] if well else lot.choice(ENTRIES),
        pools="both: {members: {one: 2, two: 1}}",
        routes=f"  - {{name: all, via: {lot.choice(['both', 'one', 'two', '[one, two]', '[both, one]'])}}}",
        classes=FAST,
        extra="breaker: {cool_down: 300ms, max: 600ms}\n" + lot.choice(["", "log: {redact: false}"]),
    )


def says(here: Lab, lot: random.Random, name: str) -> None:
    """What the DNS says of a domain from now on, for a second or two."""
    other = lot.choice(list(HOSTS))
    match lot.randrange(6):
        case 0 | 1:
            here.domain(name, HOSTS[name], ttl=1)
        case 2:
            here.dns.say(name, "MX", f"1 mx1.{other}.", ttl=1)
        case 3:
            here.dns.say(name, "MX", f"1 gone.{name}.", f"2 mx1.{other}.", f"2 mx1.{name}.", ttl=1)
            here.dns.say(f"gone.{name}", "A", ttl=1)
            here.dns.say(f"gone.{name}", "AAAA", ttl=1)
        case 4:
            here.dns.told[name, "MX"] = Says(rcode="SERVFAIL")
        case 5:
            here.dns.told[name, "MX"].wait = 0.3  # type: ignore[union-attr]


async def troubled(here: Lab, rig: Rig, lot: random.Random) -> None:
    """For so long; then all is well again, and stays as it is."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        await asyncio.sleep(lot.uniform(0.01, 0.15))
        match lot.randrange(10):
            case 0:
                configured(here, lot)
                assert rig.app.reload()[0]
            case 1:
                lot.choice(list(here.mx.values())).cut_between()  # type: ignore[attr-defined]
            case 2 | 3 | 4:
                says(here, lot, lot.choice(list(HOSTS)))
            case _:
                lot.choice(list(here.mx.values())).script = dict(lot.choice(DOES))
        check(rig)
    for name in HOSTS:
        here.domain(name, HOSTS[name], ttl=1)
        here.mx[name].script = {}
    configured(here, lot, well=True)
    assert rig.app.reload()[0]


def check(rig: Rig, *, quiet: bool = False) -> None:
    """What is counted is what there is; while there is work a place may be given that nobody has taken yet."""
    carriers = rig.app.scheduler.carriers
    held = [way for way in [*carriers.egresses.values(), *carriers.retired] if way.trunk is not None]
    for one in {way.trunk for way in held} | set(carriers.egresses.trunks.values()):
        open_ = sum(way.sessions for way in held if way.trunk is one)
        assert one.sessions == open_ if quiet else one.sessions >= open_, one.account.name
        assert 0 <= one.dialling <= one.sessions
    for way in held:
        assert way.sessions >= 0 and way.carriers >= 0 and way.asking >= 0 and way.sending >= 0 and way.granted >= 0
        if way.backlog and not way.retired:
            assert way.carriers > 0, f"{way.key}: work, and nobody at it"


@pytest.mark.storm
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_each_message_ends_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    lot = random.Random(seed)
    random.seed(seed)
    short = dict.fromkeys(Stage, 0.5)
    for module in (connect, smtp):
        monkeypatch.setattr(module, "TIMEOUTS", module.TIMEOUTS | short | {Stage.DOT: 30.0})
    for module, name in ((blame, "REST"), (blame, "UNSAFE"), (outcomes, "REST"), (outcomes, "AGAIN")):
        monkeypatch.setattr(module, name, 0.3)
    monkeypatch.setattr(resting, "DESTINATION_REST", 0.3)
    monkeypatch.setattr(siting, "AGAIN", 0.2)
    monkeypatch.setattr(trunk, "TURN", 0.2)
    monkeypatch.setattr(direct, "SERVES", 0.3)
    async with lab(tmp_path, HOSTS) as here:
        for host in here.mx.values():
            host.cut_between = lambda host=host: cut_idle(host)  # type: ignore[attr-defined]
        async with running(configured(here, lot)) as rig:
            trouble = asyncio.create_task(troubled(here, rig, lot))
            wanted, ids = Counter[str](), list[str]()
            for n in range(MESSAGES // 8):
                mail = []
                for i in range(8):
                    to = {f"u{n}.{i}.{k}@{lot.choice(list(HOSTS))}" for k in range(lot.choice([1, 1, 1, 4]))}
                    wanted.update(to)
                    mail.append(("app@example.com", tuple(sorted(to)), b"Subject: x\r\n\r\nx\r\n"))
                ids += await rig.send_many(mail)
                await asyncio.sleep(SECONDS / (MESSAGES / 8) * 0.7)
            await trouble
            with contextlib.suppress(AssertionError):
                await rig.settled(60)
            stuck = [row for row in await rows(rig, ids) if row["state"] not in ("delivered", "failed")]
            assert not stuck, stuck[:3]
            came = Counter(here.delivered)
            failed = {row["recipient"]: row["why"] for row in await rows(rig, ids) if row["state"] == "failed"}
            assert came == wanted - Counter(failed.keys()), "lost or doubled"
            assert all("550" in why or "5." in why for why in failed.values()), failed
            await quiet(rig)
            scheduler = rig.app.scheduler
            assert not scheduler.carriers.at_work and not scheduler._granted and not rig.said("carrier_died")
            assert not rig.said("delivery_error") and not rig.said("dispatch_error") and not rig.said("lookup_error")
            assert all(not way.busy for way in [*sites(rig, "one"), *sites(rig, "two")])
        trunks = scheduler.carriers.egresses.trunks.values()
        assert all(one.sessions == 0 and one.dialling == 0 for one in trunks)


async def quiet(rig: Rig) -> None:
    """Once the last sessions have said goodbye."""
    end = time.monotonic() + 30
    while True:
        await asyncio.sleep(0.1)
        try:
            check(rig, quiet=True)
            assert not rig.app.scheduler.carriers.at_work and not rig.app.scheduler._granted
            return
        except AssertionError:
            if time.monotonic() > end:
                raise


def cut_idle(host: object) -> None:
    """Every session in which nothing is under way, as after an idle time-out: a cut after the dot would leave a doubt."""
    if not any(t.ended and not t.answered for t in host.transactions):  # type: ignore[attr-defined]
        host.cut()  # type: ignore[attr-defined]


async def rows(rig: Rig, ids: list[str]) -> list[dict[str, object]]:
    return [row for start in range(0, len(ids), 100) for row in await rig.rows(*ids[start : start + 100])]
