"""Keys that wait for their record: asked for until it is seen, seen for good, and bounded."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conftest import free_port, until
from nameserver import Scripted

from relay import metrics
from relay.maillog import MailLog
from relay.resolver import Resolver
from relay.signing import watch as module
from relay.signing.keys import generate
from relay.signing.rules import Rule
from relay.signing.watch import PUBLISHED, Watch

KEY, OTHER = generate("ed25519"), generate("ed25519")
NAMED = Rule("example.com", "s1", KEY, when_published=True)
BELOW = Rule("*.example.com", "s1", KEY, when_published=True)
ANY = Rule("*", "s1", KEY, when_published=True)


class Bench:
    """A watch, what the DNS holds, and what was told."""

    def __init__(self) -> None:
        self.records: dict[str, list[str] | str | None] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.log = MailLog(None)
        self.log.listeners.append(lambda kind, fields: self.events.append((kind, dict(fields))))
        self.dns = Scripted(lambda name, _: self.records.get(name, "NXDOMAIN"))
        self.watch = Watch(self.log, Resolver((self.dns.server,), 20.0))

    def publish(self, domain: str = "example.com", selector: str = "s1") -> None:
        self.records[f"{selector}._domainkey.{domain}"] = [KEY.record]

    def told(self) -> list[str]:
        return [f"{kind} {fields.get('verdict') or ''}".rstrip() for kind, fields in self.events]

    def metric(self) -> dict[str, float]:
        wanted = [
            li for li in metrics.exposition().decode().splitlines() if li.startswith("relay_signing_key_published{")
        ]
        return {li.partition("{")[2].partition("}")[0]: float(li.rpartition(" ")[2]) for li in wanted}


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    for name, seconds in {"AGAIN": 0.1, "SOON": 0.05, "PAUSE": 0.01}.items():
        monkeypatch.setattr(module, name, seconds)
    made = Bench()
    with made.dns:
        yield made
    PUBLISHED.source = list


@contextlib.asynccontextmanager
async def running(watch: Watch) -> AsyncIterator[None]:
    task = asyncio.create_task(watch.run())
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_key_signs_once_its_record_is_seen(bench: Bench) -> None:
    bench.watch.follow([NAMED])
    assert bench.watch.seen(NAMED, "example.com") is None
    assert bench.metric() == {'domain="example.com",selector="s1"': 0.0}
    async with running(bench.watch):
        await until(lambda: bench.watch.seen(NAMED, "example.com") is False)
        await until(lambda: len(bench.dns.asked) >= 4)
        assert bench.told() == ["key_unpublished_yet absent"], "once"
        bench.records["s1._domainkey.example.com"] = [OTHER.record]
        await until(lambda: len(bench.events) == 2)
        bench.publish()
        await until(lambda: bench.watch.seen(NAMED, "example.com"))
        asked = len(bench.dns.asked)
        await asyncio.sleep(0.3)
        assert len(bench.dns.asked) == asked, "nobody asks for what was seen"
    assert bench.told() == ["key_unpublished_yet absent", "key_unpublished_yet wrong key", "key_published"]
    assert bench.metric() == {'domain="example.com",selector="s1"': 1.0}


async def test_seen_once_is_seen_for_good(bench: Bench) -> None:
    bench.publish()
    bench.watch.follow([NAMED])
    assert await bench.watch.known(NAMED, "example.com") is True
    bench.records.clear()
    for rules in ([NAMED], [], [NAMED], [Rule("example.com", "s1", OTHER, when_published=True)], [NAMED]):
        bench.watch.follow(rules, Resolver((bench.dns.server,), 20.0))
        assert bench.watch.seen(NAMED, "example.com") is True
    assert bench.watch.seen(Rule("example.com", "s1", OTHER, when_published=True), "example.com") is None, "another key"


async def test_what_is_unknown_is_waited_for(bench: Bench) -> None:
    bench.publish("a.example.com")
    found = await asyncio.gather(
        *(bench.watch.known(BELOW, d) for d in ["a.example.com"] * 20 + ["b.example.com"] * 20)
    )
    assert found == [True] * 20 + [False] * 20
    assert len(bench.dns.asked) == 2, "who asks for the same waits for the same answer"
    assert bench.watch.seen(BELOW, "a.example.com") is True and bench.watch.seen(BELOW, "b.example.com") is False


async def test_who_waits_goes_on_where_the_asker_gave_up(bench: Bench) -> None:
    bench.records["s1._domainkey.example.com"] = None  # silence
    first = asyncio.create_task(bench.watch.known(NAMED, "example.com"))
    await until(lambda: bench.dns.asked)
    second = asyncio.create_task(bench.watch.known(NAMED, "example.com"))
    await asyncio.sleep(0.01)
    bench.publish()
    first.cancel()
    assert await asyncio.wait_for(second, 30) is True


async def test_trouble_is_not_an_answer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SOON", 3600.0)
    bench.records["s1._domainkey.example.com"] = "SERVFAIL"
    bench.watch.follow([NAMED])
    assert await bench.watch.known(NAMED, "example.com") is None
    asked = len(bench.dns.asked)
    assert await bench.watch.known(NAMED, "example.com") is None and len(bench.dns.asked) == asked, "not at once again"
    assert bench.told() == ["key_unpublished_yet unknown"] and "SERVFAIL" in bench.events[0][1]["why"]
    bench.publish()
    (record,) = bench.watch._named.values()
    record.due = 0.0  # its time has come
    async with running(bench.watch):
        await until(lambda: bench.watch.seen(NAMED, "example.com"))
    assert bench.told()[1:] == ["key_published"]


async def test_trouble_takes_nothing_back(bench: Bench) -> None:
    bench.watch.follow([NAMED])
    assert await bench.watch.known(NAMED, "example.com") is False
    bench.records["s1._domainkey.example.com"] = "SERVFAIL"
    async with running(bench.watch):
        await until(lambda: len(bench.events) == 2)
        assert bench.watch.seen(NAMED, "example.com") is False


async def test_a_thread_s_question_is_asked_by_the_loop(bench: Bench) -> None:
    bench.publish("new.example.com")
    async with running(bench.watch):
        await asyncio.sleep(0.05)  # it rests: there is nothing to ask
        assert await asyncio.to_thread(bench.watch.seen, BELOW, "new.example.com") is None
        await until(lambda: bench.watch.seen(BELOW, "new.example.com"))


async def test_threads_and_the_loop_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 200)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def look(start: int) -> None:
        for n in range(start, start + 600):
            bench.watch.seen(ANY, f"d{n % 500}.test")

    try:
        async with running(bench.watch):
            await asyncio.gather(*(asyncio.to_thread(look, start) for start in (0, 100, 200, 300)))
            for _ in range(20):
                bench.watch.follow([NAMED])
                await asyncio.sleep(0.01)
            assert len(bench.watch._others) <= 200
    finally:
        sys.setswitchinterval(before)


async def test_what_senders_choose_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 100)
    bench.publish("good.test")
    bench.watch.follow([NAMED, ANY])
    assert await bench.watch.known(ANY, "good.test") is True
    for n in range(1000):
        assert await bench.watch.known(ANY, f"d{n}.test") is False
    assert len(bench.watch._others) <= 100
    assert bench.watch.seen(ANY, "good.test") is True, "those that were never seen go first"
    assert list(bench.metric()) == ['domain="example.com",selector="s1"'], "no label that a sender chooses"
    monkeypatch.setattr(module, "FORGET", 0.0)
    monkeypatch.setattr(module, "AGAIN", 60.0)
    async with running(bench.watch):
        await until(lambda: len(bench.watch._others) == 1, 60)


async def test_the_named_come_first(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUND", 8)
    for n in range(100):
        bench.watch.seen(ANY, f"d{n}.test")
    bench.watch.follow([NAMED])
    async with running(bench.watch):
        await until(lambda: bench.watch.seen(NAMED, "example.com") is False)
        assert len(bench.dns.asked) <= 2 * 8
        await until(lambda: len({name for name, _ in bench.dns.asked}) == 101, 60)


async def test_a_sub_domain_policy_and_another_d(bench: Bench) -> None:
    mine = Rule("*", "s1", KEY, sign_as="example.org", when_published=True)
    bench.publish("example.org")
    bench.watch.follow([mine, Rule("quiet.example", "s1", KEY)])
    async with running(bench.watch):
        await until(lambda: bench.watch.seen(mine, mine.signs_as("whoever.example")))
    assert bench.metric() == {'domain="example.org",selector="s1"': 1.0}


async def test_two_keys_at_one_place_are_one_series(bench: Bench) -> None:
    bench.publish()
    bench.watch.follow([NAMED, Rule("example.com", "s1", OTHER, users=("shop",), when_published=True)])
    async with running(bench.watch):
        await until(lambda: len(bench.events) == 2)
    assert bench.metric() == {'domain="example.com",selector="s1"': 0.0}


async def test_it_rests_where_there_is_nothing_to_do(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 0
    real = bench.watch._due

    def counted(now: float) -> list[module._Record]:
        nonlocal rounds
        rounds += 1
        return real(now)

    monkeypatch.setattr(bench.watch, "_due", counted)
    async with running(bench.watch):
        await until(lambda: rounds)
        await asyncio.sleep(0.3)
        assert rounds <= 2


async def test_no_server_at_all(bench: Bench) -> None:
    watch = Watch(bench.log, Resolver((f"127.0.0.1:{free_port()}",), 0.1))
    watch.follow([NAMED])
    async with running(watch):
        await until(lambda: bench.events)
    assert bench.told() == ["key_unpublished_yet unknown"]
    gc.collect()  # nothing that was never awaited
