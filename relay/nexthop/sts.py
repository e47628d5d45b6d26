"""MTA-STS (RFC 8461): which policy a domain has, remembered for as long as it lasts, over restarts too.

Promises: a policy that was seen applies until it ends, whatever happens to DNS and HTTPS meanwhile (§5.1); those in use are renewed
each day, so that nobody gains by blocking that for a while (§10.2); a fetch that failed is not tried again for five minutes (§3.3).
"""

from __future__ import annotations

import asyncio
import importlib
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from heapq import nsmallest
from pathlib import Path
from typing import Any, TypeVar

from relay import clock, https
from relay.maillog import MailLog
from relay.metrics import Counter
from relay.nexthop.kept import Kept
from relay.nexthop.stspolicy import StsPolicy, parse_policy, parse_record
from relay.resolver import DnsTrouble, Resolver

__all__ = ["Sts", "StsPolicy", "parse_policy", "parse_record"]

MOST = 10_000  # domains in memory
AT_ONCE = 64  # fetches
DAY, HOUR = 86400.0, 3600.0
AGAIN = 300.0  # seconds after a failed fetch, for one id
TROUBLE = 60.0  # seconds until the DNS is asked again after it had no answer
SHORTEST = 10.0  # seconds that any answer holds: a TTL or a `max_age` may be 0
LATELY = 30 * DAY  # a policy that nobody asked for since is left to end
PAUSE = 60.0  # seconds between two looks at what is to be renewed
PATIENCE = 10.0  # seconds for a file

FETCHES = Counter(
    "relay_sts_fetches_total", "Fetches of MTA-STS policies by their end: ok, failed, malformed.", ["result"]
)

_DOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class _Domain:
    """Times are epoch seconds, by `clock.now`."""

    name: str
    policy: StsPolicy | None = None  # the one that was seen last; it may have ended
    answer: StsPolicy | None = None  # what applies until `due`
    due: float = 0.0
    used: float = 0.0
    recalled: bool = False
    failed: str = ""  # the id whose policy could not be fetched,
    again: float = 0.0  # and until when that is not tried again
    renew: float = 0.0  # not before
    told: bool = False
    private: bool = True  # whether its policy may be at an address that `allow_private` lets pass
    asking: asyncio.Task[None] | None = None  # until the answer is there

    def live(self) -> StsPolicy | None:
        return self.policy if self.policy is not None and self.policy.ends > clock.now() else None

    def answered(self, due: float) -> None:
        """What is known applies until `due`, or until it ends; one that was fetched just now, for a moment in any case."""
        now, policy = clock.now(), self.policy
        if policy is not None and (policy.ends > now or policy.fetched_at > now - SHORTEST):
            self.answer, due = (policy if policy.mode != "none" else None), min(due, policy.ends)
        else:
            self.answer = None
        if self.again > now:
            due = min(due, self.again)
        self.due = max(due, now + SHORTEST)


class Sts:
    """`resolver` may be replaced, after a reload. `run` is the loop that renews."""

    def __init__(
        self,
        resolver: Resolver,
        folder: Path | None,
        log: MailLog,
        allow_private: Callable[[str], bool] = lambda address: False,
    ) -> None:
        """`folder` None: policies are lost with the process. `allow_private`: whether a policy may be fetched from this address,
        which is none of the public network."""
        self.resolver, self.allow_private = resolver, allow_private
        self._log = log
        self._folder, self._kept = folder, Kept(folder) if folder is not None else None
        self._domains: dict[str, _Domain] = {}
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._told = False

    async def of(self, domain: str, private: bool = True) -> StsPolicy | None:
        """The policy that applies to mail for a domain, in mode enforce or testing; None: none does. Never raises.

        Who asks at the same time shares one fetch, which takes a minute at most, and goes on when they give up. `private`: its
        rule lets it have an address that is not of the public network.
        """
        name = domain.lower().removesuffix(".")
        if not _DOMAIN.fullmatch(name) or name.rpartition(".")[2].isdigit():
            return None  # an address literal, or nothing that could have a policy
        entry = self._entry(name)
        entry.used, entry.private = clock.now(), private
        while entry.due <= clock.now():
            task = entry.asking or _begun(entry, self._ask(entry))
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()
        return entry.answer

    def meanwhile(self, domain: str) -> tuple[StsPolicy | None] | None:
        """What applies to who can't wait for `of`: the policy that was known before it asked again, if that lasts yet. None: it
        has never had an answer. Else a domain whose DNS or policy server keeps silent would have no mail at all."""
        entry = self._domains.get(domain.lower().removesuffix("."))
        if entry is None or not entry.due:
            return None
        live = entry.live()
        return (live if live is not None and live.mode != "none" else None,)

    def known(self, domain: str) -> StsPolicy | None:
        """What `of` said last, without asking."""
        entry = self._domains.get(domain.lower().removesuffix("."))
        return entry.answer if entry is not None and entry.due > clock.now() else None

    async def run(self) -> None:
        """Renews policies before they end. Ends only by cancellation."""
        swept = 0.0
        try:
            while True:
                if self._kept is not None and swept < clock.now() - DAY:
                    swept = clock.now()
                    await self._file(self._kept.sweep, swept)
                await self.renew()
                await asyncio.sleep(PAUSE)
        finally:
            for entry in self._domains.values():
                if entry.asking is not None:
                    entry.asking.cancel()

    async def renew(self) -> None:
        """One round: those in use that are a day old, or half as old as they get."""
        now = clock.now()
        due = [entry for entry in self._domains.values() if _is_to_be_renewed(entry, now)]
        for start in range(0, len(due), AT_ONCE):
            await asyncio.gather(*map(self._renew, due[start : start + AT_ONCE]))

    async def _ask(self, entry: _Domain) -> None:
        if not entry.recalled and self._kept is not None:
            entry.policy = await self._file(self._kept.load, entry.name, clock.now())
        entry.recalled = True
        id_, due = await self._announced(entry)
        live = entry.live()
        # No record, or no answer: that alone takes no policy away (RFC 8461 §5.1).
        if id_ is not None and (live is None or live.id != id_):
            await self._fetch(entry, id_)
        entry.answered(due)

    async def _announced(self, entry: _Domain) -> tuple[str | None, float]:
        """The id in the DNS, and until when that holds."""
        try:
            found = await self.resolver.look(f"_mta-sts.{entry.name}", "TXT")
        except DnsTrouble:
            return None, clock.now() + TROUBLE
        return parse_record(found.records), clock.now() + found.expires - clock.monotonic()

    async def _renew(self, entry: _Domain) -> None:
        """Whether it is announced or not: else whoever suppresses the record for long enough takes the policy away."""
        if entry.asking is None and entry.policy is not None:
            await _begun(entry, self._renewed(entry, entry.policy))

    async def _renewed(self, entry: _Domain, policy: StsPolicy) -> None:
        id_, due = await self._announced(entry)
        await self._fetch(entry, id_ or policy.id)
        left = policy.ends - clock.now()
        entry.renew = clock.now() + min(HOUR, max(AGAIN, left / 4))  # unless it was renewed
        entry.answered(due)

    async def _fetch(self, entry: _Domain, id_: str) -> None:
        if entry.failed == id_ and clock.now() < entry.again:
            return
        # Late, and off the loop: what it loads nobody pays for whose recipients have no policy.
        fetching = await asyncio.to_thread(importlib.import_module, "relay.nexthop.fetch")
        try:
            async with self._gate:
                raw = await fetching.fetch(
                    entry.name, self.resolver, lambda address: entry.private and self.allow_private(address)
                )
            entry.policy = parse_policy(raw, id_, clock.now())
        except (https.Unanswered, ValueError) as error:
            FETCHES.inc(1, "malformed" if isinstance(error, ValueError) else "failed")
            entry.failed, entry.again = id_, clock.now() + AGAIN
            self._tell(entry, str(error))
            return
        FETCHES.inc(1, "ok")
        entry.failed, entry.told = "", False
        if self._kept is not None:
            await self._file(self._kept.save, entry.name, entry.policy)

    def _tell(self, entry: _Domain, why: str) -> None:
        """Once, until it goes well again (RFC 8461 §3.3)."""
        live = entry.live()
        if not entry.told and (live is None or live.mode != "none"):
            entry.told = True
            cached = live.mode if live is not None else None
            self._log.warning("sts_fetch_failed", domain=entry.name, why=why, cached=cached)

    async def _file(self, work: Callable[..., _T], *args: object) -> _T | None:
        """None also where the folder is in trouble, which is told once; memory goes on."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await asyncio.to_thread(work, *args)
        except TimeoutError:
            self._kept, why = None, f"it hangs, {PATIENCE:g} s: it is left alone until the next start"
        except OSError as error:
            why = error.strerror or str(error)
        if not self._told:
            self._told = True
            self._log.warning("sts_not_kept", folder=self._folder, why=why)
        return None

    def _entry(self, name: str) -> _Domain:
        entry = self._domains.get(name)
        if entry is None:
            entry = self._domains[name] = _Domain(name, used=clock.now())
            if len(self._domains) > MOST:
                self._shrink()
        return entry

    def _shrink(self) -> None:
        """A tenth at a time, first those without a policy: finding them takes a look at all."""
        idle = (entry for entry in self._domains.values() if entry.asking is None)
        for entry in nsmallest(MOST // 10, idle, key=lambda e: (e.policy is not None, e.used)):
            del self._domains[entry.name]


def _is_to_be_renewed(entry: _Domain, now: float) -> bool:
    policy = entry.policy
    if policy is None or policy.mode == "none" or policy.ends <= now or entry.used < now - LATELY:
        return False
    return now >= max(entry.renew, policy.fetched_at + min(DAY, policy.max_age / 2))


def _begun(entry: _Domain, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Others wait for it; it is nobody's own, or who had asked first could leave it undone."""

    def ended(_: object) -> None:
        entry.asking = None

    task = entry.asking = asyncio.create_task(work, name=f"sts-{entry.name}")
    task.add_done_callback(ended)
    return task
