"""Where a domain's mail goes, without asking the DNS: what the relay knows already, else by a few domains that everybody knows.

Any other domain is its own host. Whose mail is hosted elsewhere (a company's at Google, say) is told apart only by what a
running relay has looked up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from relay.maillog import MailLog
from relay.nexthop.hops import Hops
from relay.nexthop.mx import Mx
from relay.nexthop.site import Site
from relay.policy.lanefacts import LaneFacts
from relay.scheduler.sites import Sites
from relay.settings import Config

# One of each provider's hosts, as `nexthop/providers.yaml` knows them, for the domains of its own mailboxes.
_HOSTS = {
    "gmail-smtp-in.l.google.com": "gmail.com googlemail.com",
    "outlook-com.olc.protection.outlook.com": "outlook.com hotmail.com live.com msn.com outlook.de hotmail.de live.de",
    "mta5.am0.yahoodns.net": "yahoo.com aol.com ymail.com rocketmail.com yahoo.de yahoo.co.uk",
    "mx01.mail.icloud.com": "icloud.com me.com mac.com",
    "mx00.emig.gmx.net": "gmx.de gmx.net gmx.com gmx.at gmx.ch",
    "mx-ha02.web.de": "web.de",
    "mx00.t-online.de": "t-online.de",
}
_KNOWN = {domain: host for host, domains in _HOSTS.items() for domain in domains.split()}


class Guessed(Sites):
    """`hosts`: the MX hosts of domains that a running relay has looked up."""

    def __init__(self, mx: Mx, config: Config, hosts: Mapping[str, Sequence[str]]) -> None:
        super().__init__(mx, config, MailLog(None))
        self._hosts = dict(hosts)
        self.guessed: set[str] = set()  # domains

    def of(self, facts: LaneFacts) -> Site | None:
        domain = facts.destination
        if domain not in self._hops:
            hosts = tuple(self._hosts.get(domain, ()))
            if not hosts:
                self.guessed.add(domain)
                hosts = (_KNOWN.get(domain, domain),)
            self._hops[domain] = Hops(domain, (hosts,), implicit=hosts == (domain,))
        return super().of(facts)

    def look(self, domain: str) -> None:
        """Nothing is looked up."""
