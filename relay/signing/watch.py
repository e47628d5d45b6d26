"""Which keys may sign because their record has been seen (`when_published`), and asking for those that have not been.

Promises: a key that was seen stays seen until the process ends, over any reload. What is remembered and asked is bounded: the
domains below a wildcard are chosen by who sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import chain

from relay import clock, metrics
from relay.maillog import MailLog
from relay.resolver import DnsTrouble, Resolver
from relay.signing.key import SigningKey
from relay.signing.rules import Rule

AGAIN, SOON = 60.0, 10.0  # seconds until the next question: where the record is not there, and after trouble
MOST = 10_000  # records below wildcards
FORGET = 3600.0  # seconds after which nobody looks for one any more
AT_ONCE = 16  # questions
ROUND = 64  # questions below wildcards until the named ones have their turn again
PAUSE = 1.0  # seconds between two rounds

PUBLISHED = metrics.Gauge(
    "relay_signing_key_published", "1 once the record of a key with when_published was seen", ["domain", "selector"]
)

_Id = tuple[str, str, str]  # d=, selector, public key


@dataclass(slots=True, eq=False)
class _Record:
    domain: str
    selector: str
    key: SigningKey
    seen: bool | None = None  # None: nobody knows
    due: float = 0.0  # when to ask (again), monotonic; so is the next
    wanted: float = 0.0  # when it was looked for last
    told: set[str] = field(default_factory=set)
    asking: asyncio.Event | None = None  # set when the answer is there


class Watch:
    """`run` is the loop. Only `seen` may be called from other threads than the loop's."""

    def __init__(self, log: MailLog, resolver: Resolver) -> None:
        self._log, self._resolver = log, resolver
        self._named: dict[_Id, _Record] = {}  # d= stands in the configuration
        self._others: dict[_Id, _Record] = {}  # below wildcards, or no more in the configuration
        self._missed: deque[tuple[Rule, str]] = deque(maxlen=MOST)  # looked for, by whatever thread, and in neither
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        PUBLISHED.source = self._published

    def follow(self, rules: Iterable[Rule], resolver: Resolver | None = None) -> None:
        """The entries of a configuration that has just been taken; `resolver`: where it is another one now."""
        self._resolver = resolver or self._resolver
        named: dict[_Id, _Record] = {}
        for rule in rules:
            domain = "" if rule.domain.startswith("*") and not rule.sign_as else rule.signs_as("")
            if rule.when_published and domain:
                id_ = _id(rule, domain)
                named[id_] = self._find(id_) or _Record(domain, rule.selector, rule.key)
        before, self._named = self._named, named
        for id_, record in before.items():
            if id_ not in named:
                self._others[id_] = record
                record.wanted = clock.monotonic()
        for id_ in named:
            self._others.pop(id_, None)
        self._shrink()
        self._news.set()

    def seen(self, rule: Rule, domain: str) -> bool | None:
        """Was the record of this key for d= seen? None: nobody knows yet; it is asked for."""
        id_ = _id(rule, domain)
        record = self._find(id_)
        if record is not None:
            record.wanted = clock.monotonic()
            return record.seen
        self._missed.append((rule, domain))
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed: the process ends
                self._loop.call_soon_threadsafe(self._news.set)
        return None

    async def known(self, rule: Rule, domain: str) -> bool | None:
        """As `seen`, after the first answer, which the resolver's timeout bounds; None: there was trouble just now."""
        record = self._record(rule, domain)
        while record.seen is None and (record.asking or record.due <= clock.monotonic()):
            if record.asking is None:
                await self._ask(record)
            else:
                await record.asking.wait()
        return record.seen

    async def run(self) -> None:
        """Asks for what has not been seen; ends only by cancellation."""
        self._loop = asyncio.get_running_loop()
        while True:
            self._news.clear()
            while self._missed:
                self._record(*self._missed.popleft())
            due = self._due(clock.monotonic())
            for start in range(0, len(due), AT_ONCE):
                await asyncio.gather(*map(self._ask, due[start : start + AT_ONCE]))
            await asyncio.sleep(PAUSE)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._rest(clock.monotonic())):
                    await self._news.wait()

    def _due(self, now: float) -> list[_Record]:
        for id_, record in list(self._others.items()):
            if record.seen is not True and record.wanted < now - FORGET:
                del self._others[id_]
        named = (r for r in self._named.values() if _waits(r) and r.due <= now)
        others = (r for r in self._others.values() if _waits(r) and r.due <= now)
        return [*named, *nsmallest(ROUND, others, key=lambda r: r.due)]

    def _rest(self, now: float) -> float | None:
        """Seconds until the next is due; None: there is none."""
        due = (r.due for r in chain(self._named.values(), self._others.values()) if _waits(r))
        soonest = min(due, default=None)
        return None if soonest is None else max(0.0, soonest - now)

    async def _ask(self, record: _Record) -> None:
        if record.asking is not None:
            return  # somebody else has begun meanwhile
        record.asking = asyncio.Event()
        try:
            # Late, and off the loop: what it loads nobody pays for who asks nothing.
            published = await asyncio.to_thread(importlib.import_module, "relay.signing.published")
            name = published.place(record.selector, record.domain)
            found = published.compare(record.key, await self._resolver.txt(name))
        except DnsTrouble as trouble:
            record.due = clock.monotonic() + SOON
            self._tell(record, "unknown", f"DNS could not be asked: {trouble}")
        else:
            record.seen, record.due = found.good, clock.monotonic() + AGAIN
            self._tell(record, found.verdict, found.text)
        finally:
            record.asking.set()
            record.asking = None
            self._news.set()  # `run` may have begun to rest meanwhile, and left this one out

    def _tell(self, record: _Record, verdict: str, text: str) -> None:
        """Each once."""
        if verdict in record.told:
            return
        record.told.add(verdict)
        domain, selector = record.domain, record.selector
        if verdict == "ok":
            self._log.event("key_published", domain=domain, selector=selector, note=text)
        else:
            self._log.warning("key_unpublished_yet", domain=domain, selector=selector, verdict=verdict, why=text)

    def _find(self, id_: _Id) -> _Record | None:
        return self._named.get(id_) or self._others.get(id_)

    def _record(self, rule: Rule, domain: str) -> _Record:
        id_ = _id(rule, domain)
        record = self._find(id_)
        if record is None:
            record = self._others[id_] = _Record(domain, rule.selector, rule.key, wanted=clock.monotonic())
            self._shrink()
            self._news.set()
        record.wanted = clock.monotonic()
        return record

    def _shrink(self) -> None:
        """A tenth at a time, those that are seen last: finding them takes a look at all."""
        if len(self._others) > MOST:
            order = [(record.seen is True, record.wanted, id_) for id_, record in self._others.items()]
            for _, _, id_ in nsmallest(MOST // 10, order):
                del self._others[id_]

    def _published(self) -> Iterable[tuple[tuple[str, ...], float]]:
        found: dict[tuple[str, ...], float] = {}
        for record in self._named.values():
            labels = record.domain, record.selector
            found[labels] = min(found.get(labels, 1.0), float(record.seen is True))
        return found.items()


def _id(rule: Rule, domain: str) -> _Id:
    return domain, rule.selector, rule.key.public


def _waits(record: _Record) -> bool:
    return record.seen is not True and record.asking is None
