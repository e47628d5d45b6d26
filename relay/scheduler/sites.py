"""Which lane of direct delivery a destination shares with others: by its MX, asked for when something is due for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from relay import clock
from relay.maillog import MailLog
from relay.nexthop.hops import Hops
from relay.nexthop.mx import Mx
from relay.nexthop.site import Site, site_of
from relay.policy.lanefacts import LaneFacts
from relay.settings import Config

AGAIN = 5.0  # seconds between two questions for one destination, whatever its TTL


class Sites:
    """Answers from memory; what it does not know it looks up, and tells by `found`."""

    def __init__(self, mx: Mx, config: Config, log: MailLog) -> None:
        self.mx, self.config, self.log = mx, config, log
        self.found: Callable[[str], None] = lambda domain: None
        self._hops: dict[str, Hops] = {}
        self._asked: dict[str, float] = {}  # when
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self.by_name: dict[str, Site] = {}

    def apply(self, config: Config, mx: Mx) -> None:
        """A new configuration: sites are named anew, and the DNS is asked anew by who is due."""
        self.config, self.mx = config, mx
        self.by_name.clear()
        self._asked = dict.fromkeys(self._asked, 0.0)
        self._hops = {domain: replace(hops, expires=0.0) for domain, hops in self._hops.items()}

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
        if domain in self._under_way or (hops is not None and now < max(hops.expires, self._asked[domain] + AGAIN)):
            return
        self._asked[domain] = now
        task = asyncio.get_running_loop().create_task(self._look(domain), name="site")
        self._under_way[domain] = task
        task.add_done_callback(lambda done: self._looked(domain, done))

    async def _look(self, domain: str) -> None:
        known, found = self._hops.get(domain), await self.mx.find(domain)
        if found.refusal is not None and found.refusal.code < 500 and known is not None and not known.refusal:
            found = replace(known, expires=found.expires)  # the DNS is in trouble: its lane stays where it is
        self._hops[domain] = found

    def _looked(self, domain: str, task: asyncio.Task[None]) -> None:
        del self._under_way[domain]
        if task.cancelled():
            return
        if error := task.exception():
            self.log.error("lookup_error", domain=domain, error=repr(error))
            # Mail must move: what is wrong is said at the attempt.
            self._hops[domain] = Hops(domain, ((domain,),), implicit=True)
        self.found(domain)

    def forget(self, domain: str) -> None:
        """No lane is for it any more."""
        self._hops.pop(domain, None)
        self._asked.pop(domain, None)

    def stop(self) -> None:
        for task in self._under_way.values():
            task.cancel()
