"""Which lane of direct delivery a destination shares with others: by its MX, asked for when something is due for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace

from relay import clock
from relay.maillog import MailLog
from relay.nexthop.hops import Hops
from relay.nexthop.mx import Mx
from relay.nexthop.site import Site, site_of
from relay.policy.lanefacts import LaneFacts
from relay.settings import Config

AGAIN = 5.0  # seconds between two questions for one destination, whatever its TTL
AT_ONCE = 200  # questions; what may be asked of the DNS at once is less, and of what waits nothing is kept but the name


class Sites:
    """Answers from memory; what it does not know it looks up, and tells by `found`."""

    def __init__(self, mx: Mx, config: Config, log: MailLog) -> None:
        self.mx, self.config, self.log = mx, config, log
        self.found: Callable[[str], None] = lambda domain: None
        self._hops: dict[str, Hops] = {}
        self._asked: dict[str, float] = {}  # when
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, None] = {}  # to be asked for, in their order
        self.by_name: dict[str, Site] = {}

    def apply(self, config: Config, mx: Mx) -> None:
        """A new configuration: sites are named anew, and the DNS is asked anew by who is due. An answer that is under way may
        be that of a server which is not asked any more."""
        self.config, self.mx = config, mx
        self.by_name.clear()
        self._asked = dict.fromkeys(self._asked, 0.0)
        self._hops = {domain: replace(hops, expires=0.0) for domain, hops in self._hops.items()}
        asked, self._under_way = self._under_way, {}
        for domain, task in asked.items():
            task.cancel()
            self._ask(domain)

    def of(self, facts: LaneFacts) -> Site | None:
        """The site of these facts' destination; None: its MX is not known yet."""
        hops = self._hops.get(facts.destination)
        if hops is None:
            return None
        site = site_of(hops, facts.ask, self.config.destinations)
        return self.by_name.setdefault(site.name, site)

    def look(self, domain: str) -> None:
        """Sees to it that what is known of a domain is not older than its TTL; `found` tells what is new."""
        hops, now = self._hops.get(domain), clock.monotonic()
        if domain in self._under_way or (
            hops is not None and now < max(hops.expires, self._asked.get(domain, 0.0) + AGAIN)
        ):
            return
        if len(self._under_way) >= AT_ONCE:
            self._waiting[domain] = None
        else:
            self._ask(domain)

    def _ask(self, domain: str) -> None:
        self._asked[domain] = clock.monotonic()
        self._under_way[domain] = task = asyncio.get_running_loop().create_task(self._look(domain), name="site")
        task.add_done_callback(lambda done: self._looked(domain, done))

    async def _look(self, domain: str) -> None:
        known, found = self._hops.get(domain), await self.mx.find(domain)
        if found.refusal is not None and found.refusal.code < 500 and known is not None and not known.refusal:
            found = replace(known, expires=found.expires)  # the DNS is in trouble: its lane stays where it is
        self._hops[domain] = found

    def _looked(self, domain: str, task: asyncio.Task[None]) -> None:
        if self._under_way.get(domain) is task:
            del self._under_way[domain]
        if task.cancelled():
            return
        while self._waiting and len(self._under_way) < AT_ONCE:
            following = next(iter(self._waiting))
            del self._waiting[following]
            self.look(following)
        if error := task.exception():
            self.log.error("lookup_error", domain=domain, error=repr(error))
            # Mail must move: what is wrong is said at the attempt.
            self._hops[domain] = Hops(domain, ((domain,),), implicit=True)
        self.found(domain)

    def keep(self, domains: Collection[str], names: Collection[str]) -> None:
        """Forgets all but these: no lane is for another domain, or leaves to another site."""
        for gone in self._hops.keys() - domains:
            del self._hops[gone]
            self._asked.pop(gone, None)
        self.by_name = {name: site for name, site in self.by_name.items() if name in names}

    def hosts(self) -> dict[str, tuple[str, ...]]:
        """Of each domain that was looked up and takes mail."""
        return {domain: hops.names for domain, hops in self._hops.items() if hops.names}

    def stop(self) -> None:
        self._waiting.clear()
        for task in self._under_way.values():
            task.cancel()
